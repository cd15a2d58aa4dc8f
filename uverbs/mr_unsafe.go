package uverbs

import (
	"math"
	"runtime"
	"sync/atomic"
	"syscall"
	"unsafe"

	"github.com/rrppcc-go/rrppcc/internal/abi"
	"github.com/rrppcc-go/rrppcc/internal/kernel"
)

// MR is a registered memory region. The kernel pins its pages; the memory must
// stay mapped until Close. Memory of the Go heap must not be registered: the
// device would keep writing to it after the collector has given it to somebody
// else. Use mapped memory, such as a msgbuf pool's.
type MR struct {
	pd     *PD
	mem    []byte
	handle uint32
	lkey   uint32
	rkey   uint32
	closed atomic.Bool
}

// RegisterMR registers mem with the given access. The device addresses it by
// its virtual address.
func (pd *PD) RegisterMR(mem []byte, access AccessFlags) (*MR, error) {
	if len(mem) == 0 {
		return nil, opError("register", "mr", syscall.EINVAL)
	}
	if pd.closed.Load() {
		return nil, &Error{Op: "register", Object: "mr", Err: ErrClosed, Hint: "the PD"}
	}
	addr := uint64(uintptr(unsafe.Pointer(&mem[0])))
	in := &abi.Ib_uverbs_reg_mr{
		Start:        addr,
		Length:       uint64(len(mem)),
		Hca_va:       addr,
		Pd_handle:    pd.handle,
		Access_flags: uint32(access),
	}
	out := new(abi.Ib_uverbs_reg_mr_resp)
	err := pd.ctx.writeCommand(abi.IB_USER_VERBS_CMD_REG_MR, kernel.Bytes(in), kernel.Bytes(out)).Run(pd.ctx.file)
	runtime.KeepAlive(mem)
	if err != nil {
		return nil, &Error{Op: "register", Object: "mr", Hint: mrHint(err, len(mem), access), Err: err}
	}
	return &MR{pd: pd, mem: mem, handle: out.Mr_handle, lkey: out.Lkey, rkey: out.Rkey}, nil
}

// LKey returns the key by which local work requests name the region.
func (mr *MR) LKey() uint32 { return mr.lkey }

// RKey returns the key by which a remote peer names the region.
func (mr *MR) RKey() uint32 { return mr.rkey }

// Addr returns the address of the region's first byte.
func (mr *MR) Addr() uint64 { return uint64(uintptr(unsafe.Pointer(&mr.mem[0]))) }

// Bytes returns the registered memory.
func (mr *MR) Bytes() []byte { return mr.mem }

// Len returns the region's size in bytes.
func (mr *MR) Len() int { return len(mr.mem) }

// SGE returns the scatter/gather element for n bytes at offset off.
// It panics if they are not within the region, or are more than the 32 bits of
// an element's length can say.
func (mr *MR) SGE(off, n int) SGE {
	_ = mr.mem[off : off+n]
	if uint64(n) > math.MaxUint32 {
		panic("uverbs: scatter/gather element of 4 GiB or more")
	}
	return SGE{Addr: mr.Addr() + uint64(off), Length: uint32(n), LKey: mr.lkey}
}

// Close deregisters the region. The memory stays the caller's.
func (mr *MR) Close() error {
	if mr.closed.Swap(true) {
		return opError("deregister", "mr", ErrClosed)
	}
	cmd := mr.pd.ctx.command(abi.UVERBS_OBJECT_MR, abi.UVERBS_METHOD_MR_DESTROY)
	cmd.Object(abi.UVERBS_ATTR_DESTROY_MR_HANDLE, mr.handle)
	if err := cmd.Run(mr.pd.ctx.file); err != nil {
		mr.closed.Store(false)
		return opError("deregister", "mr", err)
	}
	return nil
}
