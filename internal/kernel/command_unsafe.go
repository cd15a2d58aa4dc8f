package kernel

import (
	"errors"
	"fmt"
	"math"
	"runtime"
	"syscall"
	"unsafe"

	"github.com/rrppcc-go/rrppcc/internal/abi"
)

// Command is one RDMA_VERBS_IOCTL command under construction. It holds the
// attributes and keeps every buffer pinned from Run's start to its end, so that
// the kernel never sees an address that Go has moved on from. A buffer may also
// be mapped memory, which Go does not manage.
//
// The zero Command is not usable; use [NewCommand]. A Command is used once, by
// one goroutine.
type Command struct {
	frame frame
	ptrs  [maxAttrs]*byte // attribute i's Data becomes this pointer, if not nil
	n     int
	err   error // the first attribute that could not be expressed
}

// frame is what the kernel reads: the header and the attributes without a gap.
type frame struct {
	hdr   abi.Ib_uverbs_ioctl_hdr
	attrs [maxAttrs]abi.Ib_uverbs_attr
}

// maxAttrs is above what any method of the kernel takes (QP_CREATE: 17).
const maxAttrs = 32

const (
	hdrSize  = int(unsafe.Sizeof(abi.Ib_uverbs_ioctl_hdr{}))
	attrSize = int(unsafe.Sizeof(abi.Ib_uverbs_attr{}))
)

var _ [unsafe.Sizeof(abi.Ib_uverbs_ioctl_hdr{})]byte = [unsafe.Offsetof(frame{}.attrs)]byte{}

// NewCommand starts the command object.method for a device of driver.
func NewCommand(driver uint32, object, method uint16) *Command {
	c := new(Command)
	c.frame.hdr = abi.Ib_uverbs_ioctl_hdr{Object_id: object, Method_id: method, Driver_id: driver}
	return c
}

// NewWriteCommand starts an INVOKE_WRITE of the write-style command cmd. in is
// its request structure (without the 8-byte command header) and out its
// response structure; either may be nil.
func NewWriteCommand(driver uint32, cmd uint32, in, out []byte) *Command {
	c := NewCommand(driver, abi.UVERBS_OBJECT_DEVICE, abi.UVERBS_METHOD_INVOKE_WRITE)
	c.Const(abi.UVERBS_ATTR_WRITE_CMD, uint64(cmd))
	if in != nil {
		c.In(abi.UVERBS_ATTR_CORE_IN, in)
	}
	if out != nil {
		c.Out(abi.UVERBS_ATTR_CORE_OUT, out)
	}
	return c
}

// add appends an attribute. A command that cannot be expressed fails in Run,
// so that building one needs no error checks.
func (c *Command) add(id, flags uint16, n int, data uint64, ptr *byte) {
	switch {
	case c.err != nil:
	case c.n == maxAttrs:
		c.err = fmt.Errorf("%w: more than %d attributes", syscall.E2BIG, maxAttrs)
	case n > math.MaxUint16:
		c.err = fmt.Errorf("%w: attribute %#x has %d bytes, and a length is 16 bits", syscall.E2BIG, id, n)
	default:
		c.frame.attrs[c.n] = abi.Ib_uverbs_attr{Attr_id: id, Len: uint16(n), Flags: flags, Data: data}
		c.ptrs[c.n] = ptr
		c.n++
	}
}

// In adds an input buffer: inline where it has at most 8 bytes, else by
// pointer.
func (c *Command) In(id uint16, p []byte) {
	if len(p) <= 8 {
		var word uint64
		copy(Bytes(&word), p)
		c.add(id, abi.UVERBS_ATTR_F_MANDATORY, len(p), word, nil)
		return
	}
	c.add(id, abi.UVERBS_ATTR_F_MANDATORY, len(p), 0, &p[0])
}

// U32 adds a 4-byte input.
func (c *Command) U32(id uint16, v uint32) { c.In(id, Bytes(&v)) }

// Const adds an 8-byte input: UVERBS_ATTR_CONST_IN and u64 attributes.
func (c *Command) Const(id uint16, v uint64) {
	c.add(id, abi.UVERBS_ATTR_F_MANDATORY, 8, v, nil)
}

// Out adds an output buffer of at most 65535 bytes, which Run fills. An empty
// one is left out: the kernel has no zero-length outputs.
func (c *Command) Out(id uint16, p []byte) {
	if len(p) == 0 {
		return
	}
	c.add(id, abi.UVERBS_ATTR_F_MANDATORY, len(p), 0, &p[0])
}

// UHW adds the driver-private input and output; either may be nil.
func (c *Command) UHW(in, out []byte) {
	if in != nil {
		c.In(abi.UVERBS_ATTR_UHW_IN, in)
	}
	if out != nil {
		c.Out(abi.UVERBS_ATTR_UHW_OUT, out)
	}
}

// Object adds the handle of an existing object.
func (c *Command) Object(id uint16, handle uint32) {
	c.add(id, abi.UVERBS_ATTR_F_MANDATORY, 0, uint64(handle), nil)
}

// NewObject adds the place for a new object's handle; see [Command.Handle].
func (c *Command) NewObject(id uint16) {
	c.add(id, abi.UVERBS_ATTR_F_MANDATORY, 0, 0, nil)
}

// FD adds an open event file; an optional one may be ignored by the kernel.
func (c *Command) FD(id uint16, fd int32, optional bool) {
	flags := uint16(abi.UVERBS_ATTR_F_MANDATORY)
	if optional {
		flags = 0
	}
	c.add(id, flags, 0, uint64(int64(fd)), nil)
}

// NewFD adds the place for a new file descriptor; see [Command.Handle].
func (c *Command) NewFD(id uint16) {
	c.add(id, abi.UVERBS_ATTR_F_MANDATORY, 0, 0, nil)
}

// Handle returns the new object handle or descriptor that a successful Run
// stored in attribute id, or all ones if there is no such attribute. A handle
// of 0 is valid.
func (c *Command) Handle(id uint16) uint32 {
	for i := range c.n {
		if c.frame.attrs[i].Attr_id == id {
			return uint32(c.frame.attrs[i].Data)
		}
	}
	return ^uint32(0)
}

// Run issues the command on f. Its error wraps exactly one syscall.Errno, and
// is that errno itself where the kernel answered it.
func (c *Command) Run(f File) error {
	if c.err != nil {
		return c.err
	}
	c.frame.hdr.Length = uint16(hdrSize + attrSize*c.n)
	c.frame.hdr.Num_attrs = uint16(c.n)

	// The pins hold until the ioctl has returned. The frame and the buffers
	// are on the heap because they are passed to an interface's method and
	// kept in c; Pin is what promises that they stay where they are.
	var pin runtime.Pinner
	defer pin.Unpin()
	pin.Pin(c)
	for i := range c.n {
		if p := c.ptrs[i]; p != nil {
			pin.Pin(p) // does nothing for memory that Go does not manage
			c.frame.attrs[i].Data = uint64(uintptr(unsafe.Pointer(p)))
		}
	}
	err := f.Ioctl(unsafe.Slice((*byte)(unsafe.Pointer(&c.frame)), int(c.frame.hdr.Length)))
	if err == nil {
		return nil
	}
	var errno syscall.Errno
	if !errors.As(err, &errno) {
		return fmt.Errorf("%w: %w", syscall.EIO, err)
	}
	return errno
}

// Bytes is v's memory. v must be a kernel structure: fixed layout, no
// pointers.
func Bytes[T any](v *T) []byte {
	return unsafe.Slice((*byte)(unsafe.Pointer(v)), unsafe.Sizeof(*v))
}
