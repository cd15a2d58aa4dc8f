package mlx5

import (
	"errors"
	"fmt"
	"math/bits"
	"os"
	"sync"
	"syscall"

	kabi "github.com/rrppcc-go/rrppcc/internal/abi"
	"github.com/rrppcc-go/rrppcc/internal/kernel"
	"github.com/rrppcc-go/rrppcc/mlx5/internal/abi"
	"github.com/rrppcc-go/rrppcc/mlx5/internal/prm"
	"github.com/rrppcc-go/rrppcc/uverbs"
)

func init() { uverbs.RegisterProvider(provider{}) }

type provider struct{}

func (provider) Name() string     { return "mlx5" }
func (provider) DriverID() uint32 { return kabi.RDMA_DRIVER_MLX5 }

// limits is what the kernel answered to GET_CONTEXT, validated.
type limits struct {
	bfRegBytes    uint32 // of a BlueFlame register; 0 = none
	staticBFRegs  uint32 // 0: UARs are objects
	uarsPerPage   uint32 // static UARs
	maxSQDesc     uint32 // bytes of a send WQE
	maxRQDesc     uint32 // bytes of a receive WQE
	maxSendWQEBBs uint32
	maxRecvWRs    uint32
	maxSRQRecvWRs uint32 // 0: no SRQs
	ports         int
	cqeVersion    uint8 // 1: CQEs carry the QP's user index; 0: its number
	ece           bool
	ahFromKernel  bool // CREATE_AH answers the destination MAC
	cacheLine     uint32
}

// contextDriver is the provider's half of an open device.
type contextDriver struct {
	ctx      *uverbs.Context
	lim      limits
	uars     *uars
	dbrecs   *dbrecs
	qps      *qpTable
	preferBF bool // MLX5_POST_SEND_PREFER_BF
	scatter  bool // MLX5_SCATTER_TO_CQE
	cqeBytes uint32

	mu    sync.Mutex
	ports map[uint8]uverbs.LinkLayer
}

func (provider) OpenContext(c *uverbs.Context) (uverbs.ContextDriver, error) {
	if !mmioSafe && !c.Device().Simulated() {
		return nil, fmt.Errorf("mlx5: no device access on this architecture: %w", syscall.EOPNOTSUPP)
	}
	cqeBytes, err := envCQEBytes()
	if err != nil {
		return nil, err
	}
	req := &abi.Mlx5_ib_alloc_ucontext_req_v2{
		Total_num_bfregs:       wantBFRegs,
		Num_low_latency_bfregs: wantLowLatency,
		Max_cqe_version:        1,
		Lib_caps:               abi.MLX5_LIB_CAP_4K_UAR | abi.MLX5_LIB_CAP_DYN_UAR,
	}
	resp := new(abi.Mlx5_ib_alloc_ucontext_resp)
	if err := c.GetContext(kernel.Bytes(req), kernel.Bytes(resp)); err != nil {
		return nil, err
	}
	lim, err := checkLimits(resp)
	if err != nil {
		return nil, err
	}
	d := &contextDriver{
		ctx:      c,
		lim:      lim,
		dbrecs:   newDBRecs(lim.cacheLine),
		qps:      newQPTable(lim.cqeVersion),
		preferBF: envSwitch("MLX5_POST_SEND_PREFER_BF", true),
		scatter:  envSwitch("MLX5_SCATTER_TO_CQE", false),
		cqeBytes: cqeBytes,
		ports:    make(map[uint8]uverbs.LinkLayer),
	}
	if d.uars, err = openUARs(c.Kernel(), &lim, envSwitch("MLX5_SHUT_UP_BF", false)); err != nil {
		return nil, err
	}
	return d, nil
}

// envSwitch reads a switch as libmlx5 does: set and not "0" is on.
func envSwitch(name string, unset bool) bool {
	if v, ok := os.LookupEnv(name); ok {
		return v != "0"
	}
	return unset
}

// envCQEBytes reads MLX5_CQE_SIZE.
func envCQEBytes() (uint32, error) {
	switch v := os.Getenv("MLX5_CQE_SIZE"); v {
	case "", "64":
		return prm.CQEBytes, nil
	case "128":
		return 2 * prm.CQEBytes, nil
	default:
		return 0, fmt.Errorf("mlx5: MLX5_CQE_SIZE is %q, not 64 or 128: %w", v, syscall.EINVAL)
	}
}

// checkLimits takes nothing on trust that sizes or offsets are computed from.
func checkLimits(r *abi.Mlx5_ib_alloc_ucontext_resp) (limits, error) {
	bad := func(what string, v uint64) (limits, error) {
		return limits{}, fmt.Errorf("mlx5: %w: %s %d", uverbs.ErrBadAnswer, what, v)
	}
	switch {
	case r.Max_sq_desc_sz < 64 || r.Max_sq_desc_sz > 1024 || r.Max_sq_desc_sz%16 != 0:
		return bad("max_sq_desc_sz", uint64(r.Max_sq_desc_sz))
	case r.Max_rq_desc_sz < 16 || r.Max_rq_desc_sz > 1024 || r.Max_rq_desc_sz%16 != 0:
		return bad("max_rq_desc_sz", uint64(r.Max_rq_desc_sz))
	case r.Max_send_wqebb == 0 || r.Max_send_wqebb > 1<<20:
		return bad("max_send_wqebb", uint64(r.Max_send_wqebb))
	case r.Max_recv_wr == 0 || r.Max_recv_wr > 1<<20:
		return bad("max_recv_wr", uint64(r.Max_recv_wr))
	case r.Num_ports == 0 || r.Num_ports > 254:
		return bad("num_ports", uint64(r.Num_ports))
	case r.Bf_reg_size != 0 && (bits.OnesCount32(r.Bf_reg_size) != 1 || r.Bf_reg_size < 128 || r.Bf_reg_size > 1024):
		return bad("bf_reg_size", uint64(r.Bf_reg_size))
	case r.Tot_bfregs > 4096:
		return bad("tot_bfregs", uint64(r.Tot_bfregs))
	case r.Num_uars_per_page > 64:
		return bad("num_uars_per_page", uint64(r.Num_uars_per_page))
	case r.Cqe_version > 1:
		return bad("cqe_version", uint64(r.Cqe_version))
	}
	return limits{
		bfRegBytes:    r.Bf_reg_size,
		staticBFRegs:  r.Tot_bfregs,
		uarsPerPage:   max(r.Num_uars_per_page, 1),
		maxSQDesc:     uint32(r.Max_sq_desc_sz),
		maxRQDesc:     uint32(r.Max_rq_desc_sz),
		maxSendWQEBBs: r.Max_send_wqebb,
		maxRecvWRs:    r.Max_recv_wr,
		maxSRQRecvWRs: min(r.Max_srq_recv_wr, maxSRQEntries),
		ports:         int(r.Num_ports),
		cqeVersion:    r.Cqe_version,
		ece:           r.Comp_mask&abi.MLX5_IB_ALLOC_UCONTEXT_RESP_MASK_ECE != 0,
		ahFromKernel:  r.Cmds_supp_uhw&abi.MLX5_USER_CMDS_SUPP_UHW_CREATE_AH != 0,
		cacheLine:     r.Cache_line_size,
	}, nil
}

// linkLayer returns a port's link layer, asked of the kernel once.
func (d *contextDriver) linkLayer(port uint8) (uverbs.LinkLayer, error) {
	d.mu.Lock()
	l, ok := d.ports[port]
	d.mu.Unlock()
	if ok {
		return l, nil
	}
	attr, err := d.ctx.QueryPort(port)
	if err != nil {
		return 0, err
	}
	d.mu.Lock()
	d.ports[port] = attr.LinkLayer
	d.mu.Unlock()
	return attr.LinkLayer, nil
}

func (d *contextDriver) Close() error {
	return errors.Join(d.uars.close(), d.dbrecs.close())
}
