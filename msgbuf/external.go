package msgbuf

import (
	"fmt"
	"sync"
)

// External is memory that no pool allocated, registered as a whole. Views name
// parts of it as Bufs, which work wherever a pool's do.
//
// Any goroutine may call its methods.
type External struct {
	mu     sync.Mutex
	owner  Pool   // of the views: never allocates, takes what is freed
	mem    []byte // nil if the CPU does not see it
	addr   uint64 // of its first byte, as work requests name it
	size   int    // bytes
	reg    Registration
	lkey   uint32
	rkey   uint32
	spare  *block
	out    int
	bytes  int64 // capacity of the views that are out
	closed bool
}

// NewExternal registers mem, which must stay mapped and in place until Close.
// It must not be memory of the Go heap or of a goroutine's stack: the device
// writes to it behind the back of the garbage collector, which may have moved
// it or given it to somebody else. Memory from mmap, of a file or of a shared
// segment, is what this is for.
func NewExternal(reg Registrar, mem []byte, access Access) (*External, error) {
	if len(mem) == 0 {
		return nil, fmt.Errorf("msgbuf: register external memory: %w: it is empty", ErrCapacity)
	}
	r, err := reg.Register(mem, access)
	if err != nil {
		return nil, fmt.Errorf("msgbuf: register %d bytes of external memory: %w", len(mem), err)
	}
	return newExternal(reg, r, mem, uint64(addrOf(mem)), len(mem), access), nil
}

// NewUnmapped is NewExternal for memory that the CPU does not see, such as a GPU's:
// size bytes that are registered already, as r, in reg's protection domain, and
// that work requests name from addr on. Buffers of it have no Bytes. Close closes r.
func NewUnmapped(reg Registrar, r Registration, addr uint64, size int, access Access) (*External, error) {
	if size <= 0 || addr+uint64(size) < addr {
		return nil, fmt.Errorf("msgbuf: %d bytes of unmapped memory at %#x: %w", size, addr, ErrCapacity)
	}
	return newExternal(reg, r, nil, addr, size, access), nil
}

func newExternal(reg Registrar, r Registration, mem []byte, addr uint64, size int, access Access) *External {
	x := &External{mem: mem, addr: addr, size: size, reg: r, lkey: r.LKey()}
	x.owner.registrar, x.owner.access = reg, access
	if access == RemoteRead {
		x.rkey = r.RKey()
	}
	return x
}

// Len returns the size of the memory in bytes.
func (x *External) Len() int { return x.size }

// Bytes returns all of the memory; nil if the CPU does not see it.
func (x *External) Bytes() []byte { return x.mem }

// View returns n bytes from offset off as a Buf. Free of it drops the view and
// leaves the memory alone; views may overlap, and what that means is the
// caller's business. In steady state it does not allocate.
func (x *External) View(off, n int) (Buf, error) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.closed {
		return Buf{}, fmt.Errorf("msgbuf: view of external memory: %w", ErrClosed)
	}
	if off < 0 || n < 0 || off > x.size || n > x.size-off {
		return Buf{}, fmt.Errorf("msgbuf: view of %d bytes at %d of %d: %w", n, off, x.size, ErrCapacity)
	}
	x.drain()
	b := x.spare
	if b == nil {
		b = &block{pool: &x.owner}
	} else {
		x.spare = b.next
	}
	b.next = nil
	if x.mem != nil {
		b.mem = x.mem[off : off+n : off+n]
	}
	b.size, b.length = n, n
	b.addr, b.lkey, b.rkey = x.addr+uint64(off), x.lkey, x.rkey
	x.out++
	x.bytes += int64(n)
	gen := b.gen.Load() + 1
	b.gen.Store(gen)
	return Buf{b: b, gen: gen}, nil
}

// drain takes the freed views back.
func (x *External) drain() {
	for b := x.owner.returned.Swap(nil); b != nil; {
		next := b.next
		x.out--
		x.bytes -= int64(b.size)
		b.mem, b.size, b.addr, b.lkey, b.rkey = nil, 0, 0, 0, 0
		b.next, x.spare = x.spare, b
		b = next
	}
}

// Close ends the registration; the memory may be unmapped then. While views are
// out it returns an *InUseError and changes nothing, except that there are no
// new views; call it again once they have been freed. Closing twice returns nil.
func (x *External) Close() error {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.closed = true
	x.drain()
	if x.out > 0 {
		return &InUseError{Bufs: x.out, Bytes: x.bytes}
	}
	if x.reg == nil {
		return nil
	}
	if err := x.reg.Close(); err != nil {
		return fmt.Errorf("msgbuf: deregister %d bytes of external memory: %w", x.size, err)
	}
	x.reg = nil
	return nil
}
