package uverbs

import (
	"fmt"
	"sync/atomic"
	"syscall"

	"github.com/rrppcc-go/rrppcc/internal/abi"
	"github.com/rrppcc-go/rrppcc/internal/kernel"
)

// MWType is enum ibv_mw_type.
type MWType uint8

const (
	// MWType1 is bound, again and again, to any QP's PD.
	MWType1 MWType = 1
	// MWType2 is bound by a work request to one QP, with a key of the user's
	// choice, and freed by an invalidation.
	MWType2 MWType = 2
)

// MW is a memory window: a remote key for a part of an MR that a work request
// ([WRBindMW]) grants and an invalidation takes back, without the kernel.
// Methods may be called from several goroutines at once.
type MW struct {
	pd     *PD
	typ    MWType
	handle uint32
	rkey   uint32
	closed atomic.Bool
}

// MWBind is struct ibv_mw_bind_info, with the window and its new key: the
// operands of [WRBindMW].
type MWBind struct {
	MW *MW
	// OldRKey is the window's key before: MW.RKey, then the last NewRKey.
	OldRKey uint32
	// NewRKey differs from OldRKey in its low byte; [NextRKey] gives one.
	NewRKey uint32
	LKey    uint32 // of an MR with AccessMWBind
	Addr    uint64
	Length  uint64      // bytes; 0 unbinds a window of type 1
	Access  AccessFlags // remote access
}

// NextRKey returns the key that follows rkey: the low byte is the user's.
func NextRKey(rkey uint32) uint32 { return rkey&^0xff | (rkey+1)&0xff }

// AllocMW allocates a memory window. Devices without them answer EOPNOTSUPP.
func (pd *PD) AllocMW(typ MWType) (*MW, error) {
	if typ != MWType1 && typ != MWType2 {
		return nil, &Error{Op: "alloc", Object: "mw", Err: syscall.EINVAL, Hint: fmt.Sprintf("type %d", typ)}
	}
	if pd.closed.Load() {
		return nil, &Error{Op: "alloc", Object: "mw", Err: ErrClosed, Hint: "the PD"}
	}
	c := pd.ctx
	in := &abi.Ib_uverbs_alloc_mw{Pd_handle: pd.handle, Mw_type: uint8(typ)}
	out := new(abi.Ib_uverbs_alloc_mw_resp)
	if err := c.run(c.writeCommand(abi.IB_USER_VERBS_CMD_ALLOC_MW, kernel.Bytes(in), kernel.Bytes(out))); err != nil {
		return nil, opError("alloc", "mw", err)
	}
	return &MW{pd: pd, typ: typ, handle: out.Mw_handle, rkey: out.Rkey}, nil
}

// RKey returns the key that the kernel gave the window: the first OldRKey.
func (mw *MW) RKey() uint32 { return mw.rkey }

// Type returns the window's type.
func (mw *MW) Type() MWType { return mw.typ }

// PD returns the window's protection domain.
func (mw *MW) PD() *PD { return mw.pd }

// Close frees the window; what it granted ends.
func (mw *MW) Close() error {
	if mw.closed.Swap(true) {
		return opError("close", "mw", ErrClosed)
	}
	cmd := mw.pd.ctx.command(abi.UVERBS_OBJECT_MW, abi.UVERBS_METHOD_MW_DESTROY)
	cmd.Object(abi.UVERBS_ATTR_DESTROY_MW_HANDLE, mw.handle)
	if err := mw.pd.ctx.runDestroy(cmd); err != nil {
		mw.closed.Store(false)
		return opError("close", "mw", err)
	}
	return nil
}
