package msgbuf

import (
	"fmt"
	"math/bits"
	"sync/atomic"
)

const (
	hugePage = 2 << 20

	minOrder = 6  // the smallest block: 64 bytes, a cache line
	maxOrder = 25 // the largest block that is cut from a region: 32 MiB

	minRegion = hugePage
	maxRegion = 64 << 20 // of regions that are cut; bounds their bookkeeping to 256 KiB
	maxBlock  = 1 << maxOrder
)

// mappedBytes is the memory that all pools of the process have mapped.
var mappedBytes atomic.Int64

// region is one registered mapping. A cut region is managed by buddies; a whole
// one (for requests above maxBlock) is one block, rounded up to a huge page
// only, because rounding a large request up to a power of two would pin up to
// twice its memory.
type region struct {
	mem  []byte
	reg  Registration
	lkey uint32
	rkey uint32

	whole bool
	used  int  // bytes in blocks that are out or cached
	idle  bool // not used since the last Collect

	// free[o-minOrder] holds the free blocks of order o, by offset >> o. A
	// block is in one set at most, and never together with its buddy.
	// avail has bit o set where that set is not empty.
	free  []bitset
	avail uint32
	top   int // order of the whole region
}

// newRegion maps and registers size bytes, a multiple of hugePage, and a power
// of two unless whole. Where it fails, nothing stays behind.
func newRegion(registrar Registrar, access Access, size int, whole bool) (r *region, noHuge, err error) {
	mem, noHuge, err := mapMemory(size)
	if err != nil {
		return nil, noHuge, err
	}
	mappedBytes.Add(int64(size))
	reg, err := registrar.Register(mem, access)
	if err != nil {
		_ = unmapRegion(mem)
		return nil, noHuge, fmt.Errorf("register %d bytes: %w", size, err)
	}
	r = &region{mem: mem, reg: reg, lkey: reg.LKey(), whole: whole}
	if access == RemoteRead {
		r.rkey = reg.RKey()
	}
	if !whole {
		r.top = bits.TrailingZeros(uint(size))
		r.free = make([]bitset, r.top-minOrder+1)
		for o := minOrder; o <= r.top; o++ {
			r.free[o-minOrder] = newBitset(size >> o)
		}
		r.put(r.top, 0)
	}
	return r, noHuge, nil
}

// close deregisters and unmaps. While the device will not let go of the memory
// it stays mapped, and close may be tried again.
func (r *region) close() error {
	if err := r.reg.Close(); err != nil {
		return fmt.Errorf("deregister %d bytes: %w", len(r.mem), err)
	}
	err := unmapRegion(r.mem)
	r.mem = nil
	return err
}

func unmapRegion(mem []byte) error {
	mappedBytes.Add(-int64(len(mem)))
	return unmapMemory(mem)
}

func (r *region) put(order, i int) {
	r.free[order-minOrder].add(i)
	r.avail |= 1 << order
}

func (r *region) take(order, i int) {
	s := &r.free[order-minOrder]
	s.remove(i)
	if s.empty() {
		r.avail &^= 1 << order
	}
}

// alloc cuts a block of the order, at the lowest offset of the smallest free
// block that has room.
func (r *region) alloc(order int) (off int, ok bool) {
	fits := r.avail >> order << order
	if fits == 0 {
		return 0, false
	}
	o := bits.TrailingZeros32(fits)
	i := r.free[o-minOrder].first()
	r.take(o, i)
	for o > order { // keep the lower half, free the upper one
		o--
		i <<= 1
		r.put(o, i+1)
	}
	r.used += 1 << order
	r.idle = false
	return i << order, true
}

// release frees the block and merges it with its buddy for as long as that is
// free too.
func (r *region) release(order, off int) {
	r.used -= 1 << order
	i := off >> order
	for order < r.top && r.free[order-minOrder].has(i^1) {
		r.take(order, i^1)
		i >>= 1
		order++
	}
	r.put(order, i)
}
