package mlx5

import (
	"bytes"
	"errors"
	"strconv"
	"syscall"
	"testing"

	kabi "github.com/rrppcc-go/rrppcc/internal/abi"
	"github.com/rrppcc-go/rrppcc/mlx5/internal/abi"
	"github.com/rrppcc-go/rrppcc/mlx5/internal/prm"
	"github.com/rrppcc-go/rrppcc/uverbs"
)

// goldenStruct is a kernel structure: bytes with user pointers zeroed.
type goldenStruct struct {
	Struct string         `json:"struct"`
	Hex    hexBytes       `json:"hex"`
	Fields map[string]any `json:"fields"`
}

type goldenCreateQP struct {
	Type      string    `json:"type"`
	SRQ       bool      `json:"srq"`
	SigAll    int       `json:"sq_sig_all"`
	API       string    `json:"api"`
	SendOps   string    `json:"send_ops_flags"`
	Requested goldenCap `json:"requested"`
	Returned  goldenCap `json:"returned"`
	Errno     int       `json:"errno"`
	Reached   *bool     `json:"reached_kernel"`
	SQCnt     uint32    `json:"sq_wqe_cnt"`
	SQOffset  int       `json:"sq_offset"`
	RQCnt     uint32    `json:"rq_wqe_cnt"`
	RQStride  uint32    `json:"rq_stride"`
	BufBytes  int       `json:"buf_alloc_size"`
	DBOffset  u64       `json:"dbrec_page_offset"`
	KernelCap struct {
		Data goldenStruct `json:"data"`
	} `json:"kernel_cap"`
	UHW struct {
		Data goldenStruct `json:"data"`
	} `json:"kernel_udata_in"`
}

// overhead is what libmlx5 reserves per send WQE for the operations that the
// vector's QP was created for.
func (v *goldenCreateQP) overhead(t *testing.T) uint32 {
	if v.Type == "UD" {
		return overheadUD
	}
	if v.SendOps == "" {
		return overheadLib
	}
	ops, err := strconv.ParseUint(v.SendOps, 0, 64)
	if err != nil {
		t.Fatal(err)
	}
	const (
		rdma   = 0x1 | 0x2 | 0x10 // WRITE, WRITE_WITH_IMM, READ
		atomic = 0x20 | 0x40
		umr    = 0x80 | 0x100 // LOCAL_INV, BIND_MW
	)
	switch {
	case ops&umr != 0:
		return overheadLib
	case ops&atomic != 0:
		return overheadRC + 16
	case ops&rdma != 0:
		return overheadRC
	}
	return 16
}

func runCreateQPFile(t *testing.T, f *goldenFile, y *tally) {
	vectors(t, f, func(t *testing.T, v *goldenCreateQP) {
		if v.Type != "UD" && v.Type != "RC" {
			y.skip(t, "QP type "+v.Type+" is not offered")
			return
		}
		y.ran++
		t.Setenv("MLX5_SCATTER_TO_CQE", "1") // as libmlx5 has it
		typ, own := uverbs.QPTypeUD, uint32(overheadUD)
		if v.Type == "RC" {
			typ, own = uverbs.QPTypeRC, overheadRC
		}
		overhead := v.overhead(t)
		r := openRig(t, newFakeKernel(t))
		recv, send := r.cq(15), r.cq(15)
		srq := r.srq(16, 1) // its doorbell record comes third
		before := len(r.k.commands)
		attr := &uverbs.QPInitAttr{Type: typ, SendCQ: send, RecvCQ: recv, Cap: v.Requested.cap(), SigAll: v.SigAll != 0}
		requested := v.Requested.cap()
		if v.SRQ {
			attr.SRQ = srq
			requested.MaxRecvWR, requested.MaxRecvSGE = 0, 0
		}

		if v.Errno == 0 && v.Returned.MaxInline > 1<<20 {
			y.differ("capacities whose inline size wraps around are EINVAL")
			if _, err := layoutQP(&r.drv.lim, v.Requested.cap(), overhead); !errors.Is(err, syscall.EINVAL) {
				t.Errorf("%v, want EINVAL", err)
			}
			return
		}
		if overhead != own {
			// Ours is smaller, so what goes to the kernel differs. The rule is the
			// same: run it with libmlx5's number.
			y.differ("RC send WQEs reserve 32 bytes before the data, whatever operations were asked for")
			layout, err := layoutQP(&r.drv.lim, requested, overhead)
			if (err != nil) != (v.Errno != 0) {
				t.Fatalf("%v, want errno %d", err, v.Errno)
			}
			if err == nil && (layout.user() != v.Returned.cap() || layout.sqEntries != v.SQCnt || layout.rqEntries != v.RQCnt || layout.sqOffset() != v.SQOffset) {
				t.Errorf("layout %+v, want %+v", layout, *v)
			}
			checkSmaller(t, r, v, attr)
			return
		}
		uqp, err := r.pd.CreateQP(attr)
		if v.Errno != 0 {
			if !errors.Is(err, syscall.Errno(v.Errno)) || (len(r.k.commands) > before) != *v.Reached {
				t.Errorf("%v, want errno %d", err, v.Errno)
			}
			return
		}
		if err != nil {
			t.Fatal(err)
		}
		q := uqp.Driver().(*qp)
		if uqp.Cap() != v.Returned.cap() {
			t.Errorf("capacities %+v, want %+v", uqp.Cap(), v.Returned)
		}
		if q.rq.entries > 0 && 1<<q.rq.shift != v.RQStride {
			t.Errorf("receive stride %d, want %d", 1<<q.rq.shift, v.RQStride)
		}
		if q.sq.entries > 0 && prm.Distance(&q.mem[0], q.sq.start) != uint32(v.SQOffset) {
			t.Errorf("send queue at %d, want %d", prm.Distance(&q.mem[0], q.sq.start), v.SQOffset)
		}
		if len(q.mem) != v.BufBytes || prm.Addr(&q.mem[0])%4096 != 0 || q.db.slot*r.drv.dbrecs.stride != int(v.DBOffset) {
			t.Errorf("buffer of %d bytes, record %d, want %d, at %d", len(q.mem), q.db.slot, v.BufBytes, v.DBOffset)
		}
		cmd := r.k.commands[len(r.k.commands)-1]
		if got := cmd.attrs[kabi.UVERBS_ATTR_CREATE_QP_CAP].in; !bytes.Equal(got, v.KernelCap.Data.Hex) {
			t.Errorf("kernel's capacities %x, want %x", got, []byte(v.KernelCap.Data.Hex))
		}
		in := cmd.attrs[kabi.UVERBS_ATTR_UHW_IN].in
		req := decode[abi.Mlx5_ib_create_qp](in)
		if req.Buf_addr != prm.Addr(&q.mem[0]) || req.Db_addr != prm.Addr(bytePtr(q.db.DBRec)) {
			t.Errorf("addresses %#x, %#x", req.Buf_addr, req.Db_addr)
		}
		clear(in[:16])
		if !bytes.Equal(in, v.UHW.Data.Hex) {
			t.Errorf("driver's payload\n got %x\nwant %x", in, []byte(v.UHW.Data.Hex))
		}
		if _, ok := cmd.attrs[kabi.UVERBS_ATTR_CREATE_QP_FLAGS]; ok != (v.SigAll != 0) {
			t.Error("flags attribute")
		}
	})
}

// checkSmaller creates the QP in our sizes: what was asked is there, in no more
// memory than libmlx5 takes.
func checkSmaller(t *testing.T, r *rig, v *goldenCreateQP, attr *uverbs.QPInitAttr) {
	t.Helper()
	ask := attr.Cap
	if attr.SRQ != nil {
		ask.MaxRecvWR, ask.MaxRecvSGE = 0, 0
	}
	uqp, err := r.pd.CreateQP(attr)
	if err != nil {
		if v.Errno == 0 {
			t.Errorf("refused: %v", err)
		}
		return
	}
	got := uqp.Cap()
	if got.MaxSendWR < ask.MaxSendWR || got.MaxRecvWR < ask.MaxRecvWR || got.MaxSendSGE < ask.MaxSendSGE ||
		got.MaxRecvSGE < ask.MaxRecvSGE || got.MaxInline < ask.MaxInline {
		t.Errorf("capacities %+v, asked %+v", got, ask)
	}
	if q := uqp.Driver().(*qp); v.Errno == 0 && v.SendOps == "" && (q.sq.entries > v.SQCnt || len(q.mem) > v.BufBytes) {
		t.Errorf("%d WQEBBs in %d bytes, libmlx5 takes %d in %d", q.sq.entries, len(q.mem), v.SQCnt, v.BufBytes)
	}
}
