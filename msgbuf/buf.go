package msgbuf

import (
	"errors"
	"fmt"
	"sync/atomic"
)

// Errors of this package; they come wrapped with what was asked for.
var (
	// ErrNoMemory says that the pool's limit (WithMaxBytes) is reached.
	ErrNoMemory = errors.New("pool is at its limit")
	// ErrTooLarge says that more was asked for than MaxSize.
	ErrTooLarge = errors.New("larger than the largest buffer")
	// ErrClosed says that the pool is closed.
	ErrClosed = errors.New("pool is closed")
	// ErrFreed says that the Buf is freed or was never allocated.
	ErrFreed = errors.New("buffer is freed")
	// ErrCapacity says that a length lies outside the buffer's capacity.
	ErrCapacity = errors.New("length outside the buffer's capacity")
)

// block is the state behind a Buf. It is never given back to Go while its pool
// lives, only reused, so that a stale Buf always finds a generation to compare
// with.
type block struct {
	// gen is even while the block is free and odd while a Buf is out. It only
	// grows. Whoever moves it from odd to even (Free) owns the block until it is on
	// the pool's queue.
	gen    atomic.Uint64
	mem    []byte // the whole capacity; nil if the CPU does not see it
	size   int    // of it, bytes
	length int
	addr   uint64
	lkey   uint32
	rkey   uint32
	next   *block // in the return queue, a cache, or the spare list

	pool   *Pool
	region *region
	order  int8 // orderWhole for a whole region
	trace  freeTrace
}

const orderWhole = -1

// Buf is a handle to a registered buffer. It is a value: copy it freely, all
// copies name the same buffer. The zero Buf names none.
//
// After Free, every copy is stale: it answers nil and 0.
type Buf struct {
	b   *block
	gen uint64
}

// Valid says whether the Buf names a buffer that has not been freed.
func (b Buf) Valid() bool { return b.b != nil && b.b.gen.Load() == b.gen }

// IsNil says whether the Buf is the zero Buf. A stale Buf is not.
func (b Buf) IsNil() bool { return b.b == nil }

// Bytes returns the buffer's first Len bytes; nil if the Buf is not valid, or not
// mapped. The slice must not be used after Free.
func (b Buf) Bytes() []byte {
	if !b.Valid() || b.b.mem == nil {
		return nil
	}
	return b.b.mem[:b.b.length]
}

// Full returns the whole capacity, for writers that do not know the length yet;
// nil if the Buf is not valid, or not mapped.
func (b Buf) Full() []byte {
	if !b.Valid() {
		return nil
	}
	return b.b.mem
}

// Len returns the length in bytes.
func (b Buf) Len() int {
	if !b.Valid() {
		return 0
	}
	return b.b.length
}

// Cap returns the capacity in bytes, which may exceed what was asked for.
func (b Buf) Cap() int {
	if !b.Valid() {
		return 0
	}
	return b.b.size
}

// Mapped says whether the CPU sees the buffer's memory. That of other devices, such
// as a GPU's, it may not see: only NICs then read and write it. A Buf that is not
// valid is not mapped.
func (b Buf) Mapped() bool { return b.Valid() && b.b.mem != nil }

// SetLen sets the length. The content does not change.
// It must not run at the same time as any other use of the same buffer.
func (b Buf) SetLen(n int) error {
	if !b.Valid() {
		return fmt.Errorf("msgbuf: set length %d: %w", n, ErrFreed)
	}
	if n < 0 || n > b.b.size {
		return fmt.Errorf("msgbuf: set length %d of %d: %w", n, len(b.b.mem), ErrCapacity)
	}
	b.b.length = n
	return nil
}

// Addr returns the address of the first byte, as work requests and peers name
// it.
func (b Buf) Addr() uint64 {
	if !b.Valid() {
		return 0
	}
	return b.b.addr
}

// LKey returns the local key of the buffer's region.
func (b Buf) LKey() uint32 {
	if !b.Valid() {
		return 0
	}
	return b.b.lkey
}

// RKey returns the remote key of the buffer's region; 0 unless the pool is
// RemoteRead, and where the region's key grants nothing.
func (b Buf) RKey() uint32 {
	if !b.Valid() {
		return 0
	}
	return b.b.rkey
}

// Free gives the buffer back to its pool. Any goroutine may call it, once per
// buffer; it takes no lock and allocates nothing. Freeing the zero Buf does
// nothing; freeing a buffer twice panics.
func (b Buf) Free() {
	if b.b == nil {
		return
	}
	b.end()
	b.b.pool.giveBack(b.b)
}

// end makes every copy of the Buf stale.
func (b Buf) end() {
	if !b.b.gen.CompareAndSwap(b.gen, b.gen+1) {
		panic("msgbuf: buffer freed twice" + b.b.trace.where(b.gen))
	}
	b.b.trace.record(b.gen)
}

// Access returns what the buffer's memory is registered for; Local if the Buf is
// not valid.
func (b Buf) Access() Access {
	if !b.Valid() {
		return Local
	}
	return b.b.pool.access
}

// Registrar returns what the buffer's memory is registered with, nil if the
// Buf is not valid. It tells whether a buffer is of the device and protection
// domain that one works with.
func (b Buf) Registrar() Registrar {
	if !b.Valid() {
		return nil
	}
	return b.b.pool.registrar
}
