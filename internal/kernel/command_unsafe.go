package kernel

import (
	"errors"
	"fmt"
	"runtime"
	"syscall"
	"unsafe"

	"github.com/rrppcc-go/rrppcc/internal/abi"
)

// Command is one RDMA_VERBS_IOCTL command under construction. It holds the
// attributes and keeps every buffer pinned from Run's start to its end, so that
// the kernel never sees an address that Go has moved on from.
//
// The zero Command is not usable; use [NewCommand]. A Command is used once, by
// one goroutine.
type Command struct {
	driver uint32
	object uint16
	method uint16
	attrs  []attr
}

type attr struct {
	abi.Ib_uverbs_attr
	ptr *byte // Data is this pointer, if not nil
}

const hdrSize = int(unsafe.Sizeof(abi.Ib_uverbs_ioctl_hdr{}))
const attrSize = int(unsafe.Sizeof(abi.Ib_uverbs_attr{}))

// maxAttrs keeps ib_uverbs_ioctl_hdr.length within 16 bits with room to spare.
const maxAttrs = 64

// NewCommand starts the command object.method for a device of driver.
func NewCommand(driver uint32, object, method uint16) *Command {
	return &Command{driver: driver, object: object, method: method, attrs: make([]attr, 0, 16)}
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

func (c *Command) add(id uint16, flags uint16, n int, data uint64, ptr *byte) {
	c.attrs = append(c.attrs, attr{
		Ib_uverbs_attr: abi.Ib_uverbs_attr{Attr_id: id, Len: uint16(n), Flags: flags, Data: data},
		ptr:            ptr,
	})
}

// In adds an input buffer: inline where it has at most 8 bytes, else by
// pointer.
func (c *Command) In(id uint16, p []byte) {
	if len(p) <= 8 {
		var word [8]byte
		copy(word[:], p)
		c.add(id, abi.UVERBS_ATTR_F_MANDATORY, len(p), *(*uint64)(unsafe.Pointer(&word)), nil)
		return
	}
	c.add(id, abi.UVERBS_ATTR_F_MANDATORY, len(p), 0, &p[0])
}

// U32 adds a 4-byte input.
func (c *Command) U32(id uint16, v uint32) {
	c.add(id, abi.UVERBS_ATTR_F_MANDATORY, 4, uint64(v), nil)
}

// Const adds an 8-byte input: UVERBS_ATTR_CONST_IN and u64 attributes.
func (c *Command) Const(id uint16, v uint64) {
	c.add(id, abi.UVERBS_ATTR_F_MANDATORY, 8, v, nil)
}

// Out adds an output buffer, which Run fills.
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

// Handle returns the new object handle or descriptor that Run stored in
// attribute id. A handle of 0 is valid.
func (c *Command) Handle(id uint16) uint32 {
	for i := range c.attrs {
		if c.attrs[i].Attr_id == id {
			return uint32(c.attrs[i].Data)
		}
	}
	return ^uint32(0)
}

// Run issues the command on f. The error is nil or a bare syscall.Errno.
func (c *Command) Run(f File) error {
	if len(c.attrs) > maxAttrs {
		return syscall.EINVAL
	}
	n := hdrSize + attrSize*len(c.attrs)
	words := make([]uint64, (n+7)/8)
	buf := unsafe.Slice((*byte)(unsafe.Pointer(&words[0])), n)
	*(*abi.Ib_uverbs_ioctl_hdr)(unsafe.Pointer(&words[0])) = abi.Ib_uverbs_ioctl_hdr{
		Length:    uint16(n),
		Object_id: c.object,
		Method_id: c.method,
		Num_attrs: uint16(len(c.attrs)),
		Driver_id: c.driver,
	}

	var pin runtime.Pinner
	defer pin.Unpin()
	pin.Pin(&words[0])
	raw := unsafe.Slice((*abi.Ib_uverbs_attr)(unsafe.Add(unsafe.Pointer(&words[0]), hdrSize)), len(c.attrs))
	for i := range c.attrs {
		raw[i] = c.attrs[i].Ib_uverbs_attr
		if p := c.attrs[i].ptr; p != nil {
			pin.Pin(p)
			raw[i].Data = uint64(uintptr(unsafe.Pointer(p)))
		}
	}
	err := f.Ioctl(buf)
	for i := range c.attrs {
		if c.attrs[i].ptr == nil {
			c.attrs[i].Data = raw[i].Data
		}
	}
	if err == nil {
		return nil
	}
	var errno syscall.Errno
	if !errors.As(err, &errno) {
		return fmt.Errorf("ioctl: %w", err)
	}
	return errno
}

// Bytes is v's memory. v must be a kernel structure: fixed layout, no
// pointers.
func Bytes[T any](v *T) []byte {
	return unsafe.Slice((*byte)(unsafe.Pointer(v)), unsafe.Sizeof(*v))
}
