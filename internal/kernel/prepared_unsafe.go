package kernel

import (
	"fmt"
	"syscall"
	"unsafe"

	"github.com/rrppcc-go/rrppcc/internal/abi"
)

// Prepared is a write-style command that is built once and issued many times.
// It and all that it points to lie in memory that Go does not manage, so that
// issuing it allocates nothing and pins nothing. The kernel changes its
// attributes' flags, which does no harm. One goroutine at a time may run it.
type Prepared struct {
	cmd []byte // header and attributes, in mem
	in  []byte
	out []byte
}

// PrepareWrite builds an INVOKE_WRITE of the write-style command cmd in mem,
// which comes from [AllocPages] and stays the caller's. in is copied; outBytes
// is the size of the response structure and may be 0.
func PrepareWrite(mem []byte, driver, cmd uint32, in []byte, outBytes int) (*Prepared, error) {
	c := NewCommand(driver, abi.UVERBS_OBJECT_DEVICE, abi.UVERBS_METHOD_INVOKE_WRITE)
	c.Const(abi.UVERBS_ATTR_WRITE_CMD, uint64(cmd))
	attrs := 2
	if outBytes > 0 {
		attrs = 3
	}
	size := hdrSize + attrs*attrSize
	inAt := (size + 7) &^ 7
	outAt := (inAt + len(in) + 7) &^ 7
	if len(in) == 0 || outBytes < 0 || outAt+outBytes > len(mem) {
		return nil, fmt.Errorf("%w: a command of %d and %d bytes in %d", syscall.EINVAL, len(in), outBytes, len(mem))
	}
	p := &Prepared{cmd: mem[:size:size], in: mem[inAt : inAt+len(in) : inAt+len(in)], out: mem[outAt : outAt+outBytes : outAt+outBytes]}
	copy(p.in, in)
	c.In(abi.UVERBS_ATTR_CORE_IN, p.in)
	c.Out(abi.UVERBS_ATTR_CORE_OUT, p.out)
	if c.err != nil {
		return nil, c.err
	}
	for i, ptr := range c.ptrs[:c.n] {
		if ptr != nil {
			c.frame.attrs[i].Data = uint64(uintptr(unsafe.Pointer(ptr)))
		}
	}
	c.frame.hdr.Length, c.frame.hdr.Num_attrs = uint16(size), uint16(c.n)
	copy(p.cmd, unsafe.Slice((*byte)(unsafe.Pointer(&c.frame)), size))
	if len(in) <= 8 { // the attribute holds it
		data := hdrSize + attrSize + int(unsafe.Offsetof(abi.Ib_uverbs_attr{}.Data))
		p.in = p.cmd[data : data+len(in) : data+len(in)]
	}
	return p, nil
}

// In is the request, which may be changed between two runs.
func (p *Prepared) In() []byte { return p.in }

// Run issues the command on f. Its error is nil or a bare syscall.Errno.
func (p *Prepared) Run(f File) error { return f.Ioctl(p.cmd) }
