package uverbs

import (
	"errors"
	"sync/atomic"
	"syscall"

	"github.com/rrppcc-go/rrppcc/internal/abi"
	"github.com/rrppcc-go/rrppcc/internal/kernel"
)

// AH is an address handle: where a UD work request goes. It is immutable and
// may be shared by goroutines. Work requests that are posted hold the address
// themselves: the handle may be closed while they are in a queue.
type AH struct {
	pd     *PD
	drv    any
	handle uint32
	issued bool
	closed atomic.Bool
}

// CreateAH creates an address handle. On RoCE the kernel resolves the MAC
// address of attr.DGID, which can take a second if nobody answers (ETIMEDOUT).
func (pd *PD) CreateAH(attr *AHAttr) (*AH, error) {
	c := pd.ctx
	if pd.closed.Load() {
		return nil, &Error{Op: "create", Object: "ah", Err: ErrClosed, Hint: "the PD"}
	}
	ah := &AH{pd: pd}
	drv, err := c.drv.CreateAH(attr, func(uhwOut []byte) error {
		in := &abi.Ib_uverbs_create_ah{Pd_handle: pd.handle, Attr: abi.Ib_uverbs_ah_attr{
			Grh: abi.Ib_uverbs_global_route{Dgid: attr.DGID, Flow_label: attr.FlowLabel, Sgid_index: attr.SGIDIndex,
				Hop_limit: attr.HopLimit, Traffic_class: attr.TrafficClass},
			Dlid: attr.DLID, Sl: attr.SL, Src_path_bits: attr.SrcPathBits, Static_rate: attr.StaticRate,
			Is_global: b2u8(attr.IsGlobal), Port_num: attr.Port,
		}}
		out := new(abi.Ib_uverbs_create_ah_resp)
		cmd := c.writeCommand(abi.IB_USER_VERBS_CMD_CREATE_AH, kernel.Bytes(in), kernel.Bytes(out))
		cmd.UHW(nil, uhwOut)
		if err := c.run(cmd); err != nil {
			return err
		}
		ah.issued = true
		ah.handle = out.Ah_handle
		return nil
	})
	if err != nil {
		if ah.issued {
			ah.destroy()
		}
		e := &Error{Op: "create", Object: "ah to " + attr.DGID.Addr().String(), Hint: hint(err), Err: err}
		if errors.Is(err, syscall.ETIMEDOUT) {
			e.Hint = unreachableHint(attr.DGID)
		}
		return nil, e
	}
	ah.drv = drv
	return ah, nil
}

// Driver returns the provider's address vector, for providers.
func (ah *AH) Driver() any { return ah.drv }

func (ah *AH) destroy() error {
	cmd := ah.pd.ctx.command(abi.UVERBS_OBJECT_AH, abi.UVERBS_METHOD_AH_DESTROY)
	cmd.Object(abi.UVERBS_ATTR_DESTROY_AH_HANDLE, ah.handle)
	return ah.pd.ctx.runDestroy(cmd)
}

// Close destroys the address handle.
func (ah *AH) Close() error {
	if ah.closed.Swap(true) {
		return opError("close", "ah", ErrClosed)
	}
	if ah.issued {
		if err := ah.destroy(); err != nil {
			ah.closed.Store(false)
			return opError("close", "ah", err)
		}
	}
	return nil
}
