package mlx5

import (
	"errors"
	"math/bits"
	"os"
	"sync"

	"github.com/rrppcc-go/rrppcc/mlx5/internal/prm"
)

// dbrecs hands out doorbell records. Records share pages, because the kernel
// pins whole pages, but not cache lines, because their owners are on different
// cores.
type dbrecs struct {
	stride int // bytes per record: a cache line

	mu     sync.Mutex
	pages  []*dbrecPage
	closed bool
}

type dbrecPage struct {
	mem  []byte
	free []uint64 // bitmap, 1 = free
	used int
}

// dbrec is one doorbell record.
type dbrec struct {
	*prm.DBRec
	page *dbrecPage
	slot int
}

// newDBRecs sets the stride from what the kernel says of the cache.
func newDBRecs(cacheLine uint32) *dbrecs {
	stride := 64
	if cacheLine > 64 && cacheLine <= 256 && bits.OnesCount32(cacheLine) == 1 {
		stride = int(cacheLine)
	}
	return &dbrecs{stride: stride}
}

// alloc returns a zeroed record, the lowest free one.
func (d *dbrecs) alloc() (dbrec, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	var page *dbrecPage
	for _, p := range d.pages {
		if p.used < len(p.mem)/d.stride {
			page = p
			break
		}
	}
	if page == nil {
		mem, err := allocMemory(os.Getpagesize())
		if err != nil {
			return dbrec{}, err
		}
		n := len(mem) / d.stride
		page = &dbrecPage{mem: mem, free: make([]uint64, (n+63)/64)}
		for i := range n {
			page.free[i/64] |= 1 << (i % 64)
		}
		d.pages = append(d.pages, page)
	}
	for w := range page.free {
		if page.free[w] != 0 {
			slot := w*64 + bits.TrailingZeros64(page.free[w])
			page.free[w] &= page.free[w] - 1
			page.used++
			r := dbrec{prm.Record(&page.mem[slot*d.stride]), page, slot}
			r.Store(0, 0)
			r.Store(1, 0)
			return r, nil
		}
	}
	panic("mlx5: doorbell page counts a free record that its bitmap lacks")
}

// release takes a record back; the device no longer uses it.
func (d *dbrecs) release(r dbrec) {
	d.mu.Lock()
	defer d.mu.Unlock()
	r.page.free[r.slot/64] |= 1 << (r.slot % 64)
	r.page.used--
	if d.closed && r.page.used == 0 {
		freeMemory(r.page.mem) // cannot fail: the mapping is whole
	}
}

// close frees the pages. One with records in use goes with its last record: a
// device that was removed refuses to destroy its objects, so that their queues
// outlive the context.
func (d *dbrecs) close() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.closed = true
	var errs []error
	for _, p := range d.pages {
		if p.used == 0 {
			errs = append(errs, freeMemory(p.mem))
		}
	}
	d.pages = nil
	return errors.Join(errs...)
}

// addr returns the record's address as the kernel takes it.
func (r dbrec) addr(stride int) uint64 { return prm.Addr(&r.page.mem[r.slot*stride]) }
