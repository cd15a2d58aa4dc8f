package uverbs

import (
	"sync/atomic"

	"github.com/rrppcc-go/rrppcc/internal/abi"
	"github.com/rrppcc-go/rrppcc/internal/kernel"
)

// PD is a protection domain: MRs, QPs and AHs work together only within one.
// Methods may be called from several goroutines at once.
type PD struct {
	ctx    *Context
	handle uint32
	closed atomic.Bool
}

// AllocPD allocates a protection domain.
func (c *Context) AllocPD() (*PD, error) {
	in := new(abi.Ib_uverbs_alloc_pd)
	out := new(abi.Ib_uverbs_alloc_pd_resp)
	uhw := new([4]byte) // drivers that return a PD number want room for it
	cmd := c.writeCommand(abi.IB_USER_VERBS_CMD_ALLOC_PD, kernel.Bytes(in), kernel.Bytes(out))
	cmd.UHW(nil, uhw[:])
	if err := c.run(cmd); err != nil {
		return nil, opError("alloc", "pd", err)
	}
	return &PD{ctx: c, handle: out.Pd_handle}, nil
}

// Context returns the context that the PD belongs to.
func (pd *PD) Context() *Context { return pd.ctx }

// Close frees the PD. It fails with EBUSY while an MR, MW, QP, SRQ or AH uses it.
func (pd *PD) Close() error {
	if pd.closed.Swap(true) {
		return opError("close", "pd", ErrClosed)
	}
	cmd := pd.ctx.command(abi.UVERBS_OBJECT_PD, abi.UVERBS_METHOD_PD_DESTROY)
	cmd.Object(abi.UVERBS_ATTR_DESTROY_PD_HANDLE, pd.handle)
	if err := pd.ctx.runDestroy(cmd); err != nil {
		pd.closed.Store(false)
		return opError("close", "pd", err)
	}
	return nil
}
