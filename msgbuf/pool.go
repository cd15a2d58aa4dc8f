package msgbuf

import (
	"errors"
	"fmt"
	"log/slog"
	"math/bits"
	"sync"
	"sync/atomic"
)

// MaxSize is the largest buffer, in bytes.
const MaxSize = 1 << 30

const (
	// Blocks of up to maxCached bytes pass through a cache per size, so that a
	// buffer that comes and goes does not split and merge its region each time.
	maxCachedOrder = 20 // 1 MiB
	cacheBlocks    = 64 // at most, per size
	cacheBytes     = 1 << 20
	cacheMin       = 4 // even where that is more than cacheBytes

	drainEvery   = 64      // allocations
	collectEvery = 1 << 16 // allocations, for owners that never call Collect
)

var hugePageLog sync.Once

// Option sets a property of a Pool.
type Option func(*Pool)

// WithLogger sets where the pool says that it does without huge pages (once per
// process) and that a region could not be given back. The default is silence.
func WithLogger(l *slog.Logger) Option { return func(p *Pool) { p.log = l } }

// WithMaxBytes limits the memory that the pool maps and registers. Regions are
// multiples of 2 MiB, so a limit below that allows no allocation. The default
// is no limit.
func WithMaxBytes(n int64) Option { return func(p *Pool) { p.maxBytes = n } }

// WithKeepFree sets how many entirely free regions of each kind (those that are
// cut, and those that are one buffer above 32 MiB) stay registered when the pool
// gives memory back. The default is 1.
func WithKeepFree(regions int) Option { return func(p *Pool) { p.keepFree = max(0, regions) } }

// Pool allocates registered buffers. All methods belong to one goroutine; Bufs
// may be freed from any.
type Pool struct {
	registrar Registrar
	access    Access
	log       *slog.Logger
	maxBytes  int64 // 0 is no limit
	keepFree  int

	regions  []*region
	bytes    int64 // mapped by all regions
	cutBytes int64 // mapped by cut regions
	inUse    int   // Bufs out, and freed ones that are not drained yet
	useBytes int64 // their capacity
	closed   bool

	cache  [maxCachedOrder + 1]blockCache
	spare  *block // states without memory
	allocs uint   // since the start, to drain now and then

	_        [64]byte // the line that other goroutines write
	returned atomic.Pointer[block]
	_        [56]byte
}

// blockCache is a stack of free blocks of one size that keep their memory.
type blockCache struct {
	head  *block
	count int
	limit int
	low   int // the smallest count since the last Collect: so many were not needed
}

// NewPool returns an empty pool. The first allocation maps and registers the
// first region.
func NewPool(reg Registrar, access Access, opts ...Option) *Pool {
	p := &Pool{registrar: reg, access: access, keepFree: 1}
	for _, o := range opts {
		o(p)
	}
	for o := minOrder; o <= maxCachedOrder; o++ {
		p.cache[o].limit = min(cacheBlocks, max(cacheMin, cacheBytes>>o))
	}
	return p
}

// orderOf returns the order of the smallest block that holds n bytes.
func orderOf(n int) int {
	if n <= 1<<minOrder {
		return minOrder
	}
	return bits.Len(uint(n - 1))
}

// Alloc returns a buffer of length n (0 is valid) and at least that capacity,
// aligned to 64 bytes or better. What is in it is undefined.
//
// In steady state it neither allocates nor locks nor enters the kernel; when
// the pool must grow it maps and registers memory, and fails with the
// registrar's error, ErrNoMemory, ErrTooLarge or ErrClosed (wrapped).
func (p *Pool) Alloc(n int) (Buf, error) {
	if n < 0 || n > MaxSize {
		return Buf{}, fmt.Errorf("msgbuf: alloc %d bytes: %w (0 to %d)", n, ErrTooLarge, MaxSize)
	}
	if p.allocs++; p.allocs%drainEvery == 0 {
		p.drain()
		if p.allocs%collectEvery == 0 {
			p.Collect()
		}
	}
	order := orderOf(n)
	if order <= maxCachedOrder {
		c := &p.cache[order]
		if c.head == nil {
			p.drain()
		}
		if b := c.head; b != nil {
			c.head, b.next = b.next, nil
			c.count--
			c.low = min(c.low, c.count)
			return p.lend(b, n), nil
		}
	}
	b, err := p.allocSlow(n, order)
	if err != nil {
		return Buf{}, fmt.Errorf("msgbuf: alloc %d bytes: %w", n, err)
	}
	return p.lend(b, n), nil
}

// lend makes the free block b a buffer of length n.
func (p *Pool) lend(b *block, n int) Buf {
	p.inUse++
	p.useBytes += int64(len(b.mem))
	b.length = n
	gen := b.gen.Load() + 1
	b.gen.Store(gen)
	return Buf{b: b, gen: gen}
}

func (p *Pool) allocSlow(n, order int) (*block, error) {
	if p.closed {
		return nil, ErrClosed
	}
	if order > maxCachedOrder {
		p.drain()
	}
	if n > maxBlock {
		return p.allocWhole(n)
	}
	if b := p.cut(order); b != nil {
		return b, nil
	}
	// What the caches hold may merge to a block that is large enough.
	p.flush(func(c *blockCache) int { return c.count })
	if b := p.cut(order); b != nil {
		return b, nil
	}
	need := max(minRegion, 1<<order)
	want := max(need, min(maxRegion, 1<<bits.Len64(uint64(max(p.cutBytes, 1)-1))))
	if p.maxBytes > 0 {
		for want > need && p.bytes+int64(want) > p.maxBytes {
			want /= 2
		}
	}
	r, err := p.grow(want, false)
	if err != nil && want > need && !errors.Is(err, ErrNoMemory) {
		// The device or RLIMIT_MEMLOCK may still have room for less.
		r, err = p.grow(need, false)
	}
	if err != nil {
		return nil, err
	}
	off, _ := r.alloc(order)
	return p.newBlock(r, order, off), nil
}

// cut takes a block from the regions there are, the oldest first, so that
// younger ones have a chance to become free.
func (p *Pool) cut(order int) *block {
	for _, r := range p.regions {
		if off, ok := r.alloc(order); ok {
			return p.newBlock(r, order, off)
		}
	}
	return nil
}

// allocWhole finds or makes a region for one large buffer.
func (p *Pool) allocWhole(n int) (*block, error) {
	size := (n + hugePage - 1) &^ (hugePage - 1)
	var best *region
	for _, r := range p.regions {
		// A region much larger than the request would waste pinned memory.
		if r.whole && r.used == 0 && len(r.mem) >= size && len(r.mem)-size <= size/4 &&
			(best == nil || len(r.mem) < len(best.mem)) {
			best = r
		}
	}
	if best == nil {
		var err error
		if best, err = p.grow(size, true); err != nil {
			return nil, err
		}
	}
	best.used, best.idle = len(best.mem), false
	return p.newBlock(best, orderWhole, 0), nil
}

// grow adds a region.
func (p *Pool) grow(size int, whole bool) (*region, error) {
	// Free regions that could not serve this request should not pile up.
	_ = p.trim(p.keepFree, false)
	if p.maxBytes > 0 && p.bytes+int64(size) > p.maxBytes {
		_ = p.trim(0, false)
		if p.bytes+int64(size) > p.maxBytes {
			return nil, fmt.Errorf("%w (%d of %d bytes mapped, %d more needed)", ErrNoMemory, p.bytes, p.maxBytes, size)
		}
	}
	r, noHuge, err := newRegion(p.registrar, p.access, size, whole)
	if noHuge != nil && p.log != nil {
		hugePageLog.Do(func() {
			p.log.Info("msgbuf: no huge pages, using normal ones; reserve some with sysctl vm.nr_hugepages for speed", "cause", noHuge)
		})
	}
	if err != nil {
		return nil, err
	}
	p.regions = append(p.regions, r)
	p.bytes += int64(size)
	if !whole {
		p.cutBytes += int64(size)
	}
	return r, nil
}

func (p *Pool) newBlock(r *region, order, off int) *block {
	b := p.spare
	if b == nil {
		b = &block{pool: p}
	} else {
		p.spare, b.next = b.next, nil
	}
	size := len(r.mem)
	if order != orderWhole {
		size = 1 << order
	}
	b.mem, b.size = r.mem[off:off+size:off+size], size
	b.addr = uint64(addrOf(b.mem))
	b.lkey, b.rkey = r.lkey, r.rkey
	b.region = r
	b.order = int8(order)
	return b
}

// giveBack puts a freed block on the return queue: a stack, of which the owner
// takes everything at once, so the exchange of its head is all it needs.
func (p *Pool) giveBack(b *block) {
	for {
		head := p.returned.Load()
		b.next = head
		if p.returned.CompareAndSwap(head, b) {
			return
		}
	}
}

// drain takes the freed blocks back.
func (p *Pool) drain() {
	if p.returned.Load() == nil {
		return
	}
	for b := p.returned.Swap(nil); b != nil; {
		next := b.next
		p.takeBack(b)
		b = next
	}
}

// takeBack keeps a freed block for the next allocation of its size, or returns
// its memory to its region.
func (p *Pool) takeBack(b *block) {
	p.inUse--
	p.useBytes -= int64(len(b.mem))
	if b.order >= 0 && b.order <= maxCachedOrder && !p.closed {
		if c := &p.cache[b.order]; c.count < c.limit {
			b.next, c.head = c.head, b
			c.count++
			return
		}
	}
	p.recycle(b)
}

// FreeLocal is [Buf.Free] for the pool's owner, without the return queue: it
// halves the cost of an allocation and its free. The Buf must be of this pool.
func (p *Pool) FreeLocal(b Buf) {
	if b.b == nil {
		return
	}
	if b.b.pool != p {
		panic("msgbuf: FreeLocal of another pool's buffer")
	}
	b.end()
	p.takeBack(b.b)
}

// recycle returns the block's memory to its region and keeps its state.
func (p *Pool) recycle(b *block) {
	r := b.region
	if r.whole {
		r.used = 0
	} else {
		r.release(int(b.order), int(b.addr-uint64(addrOf(r.mem))))
	}
	b.mem, b.size, b.region, b.addr, b.lkey, b.rkey = nil, 0, nil, 0, 0, 0
	b.next, p.spare = p.spare, b
}

// flush returns n(cache) blocks of each cache to their regions.
func (p *Pool) flush(n func(*blockCache) int) {
	for o := minOrder; o <= maxCachedOrder; o++ {
		c := &p.cache[o]
		for range n(c) {
			b := c.head
			c.head = b.next
			c.count--
			p.recycle(b)
		}
		c.low = c.count
	}
}

// trim gives back free regions until at most keep of each kind are left; with
// idleOnly, a region that was in use since the last such trim stays for now. A
// region that cannot be deregistered stays, and stays usable.
func (p *Pool) trim(keep int, idleOnly bool) error {
	var errs []error
	var free [2]int
	left := p.regions[:0]
	for _, r := range p.regions {
		kind := 0
		if r.whole {
			kind = 1
		}
		if r.used == 0 {
			if free[kind] >= keep && (r.idle || !idleOnly) {
				size := int64(len(r.mem))
				err := r.close()
				if err != nil {
					errs = append(errs, err)
				}
				if r.mem == nil {
					p.bytes -= size
					if !r.whole {
						p.cutBytes -= size
					}
					continue
				}
			}
			free[kind]++
			r.idle = r.idle || idleOnly
		}
		left = append(left, r)
	}
	clear(p.regions[len(left):])
	p.regions = left
	err := errors.Join(errs...)
	if err != nil && p.log != nil {
		p.log.Warn("msgbuf: cannot give memory back", "error", err)
	}
	return err
}

// Collect takes back what other goroutines have freed, merges the cached blocks
// and gives back the free regions (all but WithKeepFree) that were not needed
// since the last Collect. So a pool that has become idle is small again after
// three Collects, while one in steady use keeps what it works with. The owner's
// loop calls it now and then, best when idle, because deregistering is a system
// call; Alloc does it every 65536 allocations.
func (p *Pool) Collect() {
	p.drain()
	p.flush(func(c *blockCache) int { return c.low })
	_ = p.trim(p.keepFree, true)
}

// Trim takes back what other goroutines have freed, merges all that is free and
// gives back every region that is not in use.
func (p *Pool) Trim() error {
	p.drain()
	p.flush(func(c *blockCache) int { return c.count })
	return p.trim(0, false)
}

// Stats describes a pool at one moment. Sizes are in bytes.
type Stats struct {
	Regions   int   // registered regions
	Bytes     int64 // mapped and registered
	InUse     int   // buffers out
	UsedBytes int64 // capacity of the buffers out
}

// Stats returns the pool's numbers, after taking back what has been freed.
func (p *Pool) Stats() Stats {
	p.drain()
	return Stats{Regions: len(p.regions), Bytes: p.bytes, InUse: p.inUse, UsedBytes: p.useBytes}
}

// InUseError says that a pool, or external memory, was closed while buffers were
// out.
type InUseError struct {
	Bufs  int   // how many
	Bytes int64 // their capacity
}

func (e *InUseError) Error() string {
	return fmt.Sprintf("msgbuf: close: %d buffers (%d bytes) are still in use; free them and close again", e.Bufs, e.Bytes)
}

// Close ends allocation and gives back every region that is not in use. While
// buffers are out it returns an *InUseError and leaves their regions
// registered and mapped; call it again once they have been freed. Closing a
// closed pool returns nil.
func (p *Pool) Close() error {
	p.closed = true
	if err := p.Trim(); err != nil {
		return fmt.Errorf("msgbuf: close pool: %w", err)
	}
	if p.inUse > 0 {
		return &InUseError{Bufs: p.inUse, Bytes: p.useBytes}
	}
	return nil
}
