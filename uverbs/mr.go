package uverbs

import (
	"errors"
	"math"
	"sync/atomic"
	"syscall"

	"github.com/rrppcc-go/rrppcc/internal/abi"
	"github.com/rrppcc-go/rrppcc/internal/kernel"
)

// MR is a registered memory region. The kernel pins its pages; the memory must
// stay mapped until Close. Memory of the Go heap must not be registered: the
// device would keep writing to it after the collector has given it to somebody
// else. Use mapped memory, such as a msgbuf pool's.
type MR struct {
	pd     *PD
	mem    []byte // nil for a dma-buf
	iova   uint64
	length uint64
	handle uint32
	lkey   uint32
	rkey   uint32
	closed atomic.Bool
}

// RegisterMR registers mem with the given access. The device addresses it by
// its virtual address.
func (pd *PD) RegisterMR(mem []byte, access AccessFlags) (*MR, error) {
	return pd.RegisterMRIova(mem, memAddr(mem), access)
}

// RegisterMRIova registers mem so that work requests address it from iova on,
// which must be as far from the start of its page as mem is (EINVAL).
func (pd *PD) RegisterMRIova(mem []byte, iova uint64, access AccessFlags) (*MR, error) {
	if len(mem) == 0 {
		return nil, opError("register", "mr", syscall.EINVAL)
	}
	if pd.closed.Load() {
		return nil, &Error{Op: "register", Object: "mr", Err: ErrClosed, Hint: "the PD"}
	}
	in := &abi.Ib_uverbs_reg_mr{
		Start:        memAddr(mem),
		Length:       uint64(len(mem)),
		Hca_va:       iova,
		Pd_handle:    pd.handle,
		Access_flags: uint32(access),
	}
	out := new(abi.Ib_uverbs_reg_mr_resp)
	err := pd.ctx.run(pd.ctx.writeCommand(abi.IB_USER_VERBS_CMD_REG_MR, kernel.Bytes(in), kernel.Bytes(out)))
	keepAlive(mem)
	if err != nil {
		return nil, &Error{Op: "register", Object: "mr", Hint: mrHint(err, uint64(len(mem)), access), Err: err}
	}
	if access&AccessZeroBased != 0 {
		iova = 0
	}
	return &MR{pd: pd, mem: mem, iova: iova, length: uint64(len(mem)), handle: out.Mr_handle, lkey: out.Lkey, rkey: out.Rkey}, nil
}

// RegisterDMABuf registers length bytes at offset of the dma-buf fd: memory of
// another device, such as a GPU. Work requests address it from offset on.
// EOPNOTSUPP says that the device cannot; Linux 5.12 is the first that can. The
// descriptor may be closed afterwards.
func (pd *PD) RegisterDMABuf(fd int, offset, length uint64, access AccessFlags) (*MR, error) {
	if length == 0 || fd < 0 || uint64(fd) > math.MaxInt32 {
		return nil, opError("register", "dma-buf", syscall.EINVAL)
	}
	if pd.closed.Load() {
		return nil, &Error{Op: "register", Object: "dma-buf", Err: ErrClosed, Hint: "the PD"}
	}
	out := new(struct{ lkey, rkey uint32 })
	cmd := pd.ctx.command(abi.UVERBS_OBJECT_MR, abi.UVERBS_METHOD_REG_DMABUF_MR)
	cmd.NewObject(abi.UVERBS_ATTR_REG_DMABUF_MR_HANDLE)
	cmd.Object(abi.UVERBS_ATTR_REG_DMABUF_MR_PD_HANDLE, pd.handle)
	cmd.Const(abi.UVERBS_ATTR_REG_DMABUF_MR_OFFSET, offset)
	cmd.Const(abi.UVERBS_ATTR_REG_DMABUF_MR_LENGTH, length)
	cmd.Const(abi.UVERBS_ATTR_REG_DMABUF_MR_IOVA, offset)
	cmd.U32(abi.UVERBS_ATTR_REG_DMABUF_MR_FD, uint32(fd)) // not an object of uverbs: a number, not a handle
	cmd.U32(abi.UVERBS_ATTR_REG_DMABUF_MR_ACCESS_FLAGS, uint32(access))
	cmd.Out(abi.UVERBS_ATTR_REG_DMABUF_MR_RESP_LKEY, kernel.Bytes(&out.lkey))
	cmd.Out(abi.UVERBS_ATTR_REG_DMABUF_MR_RESP_RKEY, kernel.Bytes(&out.rkey))
	if err := pd.ctx.run(cmd); err != nil {
		return nil, &Error{Op: "register", Object: "dma-buf", Hint: dmaBufHint(err), Err: err}
	}
	return &MR{pd: pd, iova: offset, length: length, handle: cmd.Handle(abi.UVERBS_ATTR_REG_DMABUF_MR_HANDLE),
		lkey: out.lkey, rkey: out.rkey}, nil
}

// ReregFlags tells what Rereg changes: enum ibv_rereg_mr_flags.
type ReregFlags uint32

const (
	ReregTranslation ReregFlags = abi.IB_MR_REREG_TRANS
	ReregPD          ReregFlags = abi.IB_MR_REREG_PD
	ReregAccess      ReregFlags = abi.IB_MR_REREG_ACCESS
)

// Rereg changes the region's memory (mem), its protection domain (pd) or its
// access, as flags say; the other arguments are not looked at. The keys may
// change. No work request may use the region meanwhile, and no other goroutine
// the MR. EOPNOTSUPP says that the driver cannot, or not this; after any other
// error the region may be unusable, and only Close is left.
func (mr *MR) Rereg(flags ReregFlags, pd *PD, mem []byte, access AccessFlags) error {
	if mr.closed.Load() {
		return opError("reregister", "mr", ErrClosed)
	}
	in := &abi.Ib_uverbs_rereg_mr{Mr_handle: mr.handle, Flags: uint32(flags), Pd_handle: mr.pd.handle}
	if flags&ReregTranslation != 0 {
		if len(mem) == 0 {
			return opError("reregister", "mr", syscall.EINVAL)
		}
		in.Start, in.Hca_va, in.Length = memAddr(mem), memAddr(mem), uint64(len(mem))
	}
	if flags&ReregPD != 0 {
		if pd == nil || pd.ctx != mr.pd.ctx || pd.closed.Load() {
			return &Error{Op: "reregister", Object: "mr", Err: syscall.EINVAL, Hint: "the PD is closed, or of another context"}
		}
		in.Pd_handle = pd.handle
	}
	if flags&ReregAccess != 0 {
		in.Access_flags = uint32(access)
	}
	c := mr.pd.ctx
	out := new(abi.Ib_uverbs_rereg_mr_resp)
	err := c.run(c.writeCommand(abi.IB_USER_VERBS_CMD_REREG_MR, kernel.Bytes(in), kernel.Bytes(out)))
	keepAlive(mem)
	if err != nil {
		e := &Error{Op: "reregister", Object: "mr", Hint: mrHint(err, in.Length, access), Err: err}
		if errors.Is(err, syscall.EOPNOTSUPP) {
			e.Hint = "the driver cannot, or not this: close the region and register a new one"
		}
		return e
	}
	mr.lkey, mr.rkey = out.Lkey, out.Rkey
	if flags&ReregTranslation != 0 {
		mr.mem, mr.iova, mr.length = mem, in.Hca_va, in.Length
	}
	if flags&ReregPD != 0 {
		mr.pd = pd
	}
	return nil
}

// PD returns the region's protection domain.
func (mr *MR) PD() *PD { return mr.pd }

// LKey returns the key by which local work requests name the region.
func (mr *MR) LKey() uint32 { return mr.lkey }

// RKey returns the key by which a remote peer names the region.
func (mr *MR) RKey() uint32 { return mr.rkey }

// Addr returns the address by which work requests name the region's first
// byte: its virtual address, unless it was registered at another.
func (mr *MR) Addr() uint64 { return mr.iova }

// Bytes returns the registered memory; nil for a dma-buf.
func (mr *MR) Bytes() []byte { return mr.mem }

// Len returns the region's size in bytes.
func (mr *MR) Len() int { return int(mr.length) }

// SGE returns the scatter/gather element for n bytes at offset off.
// It panics if they are not within the region, or are more than the 32 bits of
// an element's length can say.
func (mr *MR) SGE(off, n int) SGE {
	if off < 0 || n < 0 || uint64(off) > mr.length || uint64(n) > mr.length-uint64(off) {
		panic("uverbs: scatter/gather element outside of its region")
	}
	if uint64(n) > math.MaxUint32 {
		panic("uverbs: scatter/gather element of 4 GiB or more")
	}
	return SGE{Addr: mr.iova + uint64(off), Length: uint32(n), LKey: mr.lkey}
}

// Close deregisters the region. The memory stays the caller's.
func (mr *MR) Close() error {
	if mr.closed.Swap(true) {
		return opError("deregister", "mr", ErrClosed)
	}
	cmd := mr.pd.ctx.command(abi.UVERBS_OBJECT_MR, abi.UVERBS_METHOD_MR_DESTROY)
	cmd.Object(abi.UVERBS_ATTR_DESTROY_MR_HANDLE, mr.handle)
	if err := mr.pd.ctx.runDestroy(cmd); err != nil {
		mr.closed.Store(false)
		return opError("deregister", "mr", err)
	}
	return nil
}
