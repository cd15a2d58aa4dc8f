package mlx5

import (
	"fmt"
	"syscall"

	"github.com/rrppcc-go/rrppcc/internal/kernel"
	"github.com/rrppcc-go/rrppcc/mlx5/internal/abi"
	"github.com/rrppcc-go/rrppcc/mlx5/internal/prm"
	"github.com/rrppcc-go/rrppcc/uverbs"
)

// Resize gives the CQ another ring. The device writes an entry of its own into
// the old ring where it stopped, and goes on behind it in the new one; what is
// before that entry is copied. Since it takes an index of its own, the entries
// move up by one.
func (c *cq) Resize(depth int, issue func(cqe uint32, uhwIn, uhwOut []byte) (uint32, error)) error {
	entries, err := cqEntries(depth)
	if err != nil {
		return fmt.Errorf("depth %d, at most %d: %w", depth, maxCQE, err)
	}
	if err := c.ctx.checkCQE(entries - 1); err != nil {
		return err
	}
	c.mu.Lock() // QPs that are closed meanwhile wait, and find the new ring
	defer c.mu.Unlock()
	c.runPurges() // what they asked for is in terms of the old ring
	if entries == c.mask+1 {
		return nil
	}
	waiting := uint32(0)
	for waiting <= c.mask && c.written(c.ci+waiting) {
		waiting++
	}
	if waiting >= entries {
		return fmt.Errorf("%d completions are waiting: %w", waiting, syscall.EINVAL)
	}
	next, err := newRing(entries, c.stride)
	if err != nil {
		return err
	}
	req := &abi.Mlx5_ib_resize_cq{Buf_addr: prm.Addr(&next.mem[0]), Cqe_size: uint16(c.stride)}
	if _, err := issue(entries-1, kernel.Bytes(req), nil); err != nil {
		freeMemory(next.mem)
		return err
	}

	// From here on the device writes to the new ring, whatever the old one says.
	old, ci := c.cqRing, c.ci
	c.cqRing = next
	c.depth.Store(entries - 1)
	defer freeMemory(old.mem)
	found := false
	for i := ci; i-ci <= old.mask && old.written(i); i++ {
		from := old.at(i)
		if found = from.LoadLast()>>4&0xf == prm.CQEResize; found {
			break
		}
		to := next.at(i + 1)
		to.CopyBody(from, c.stride)
		to.StoreLast(from.LoadLast()&^prm.CQEOwnerMask | (i+1)>>next.shift&1)
	}
	c.ci = ci + 1
	c.db.Store(prm.CQCI, c.ci&prm.CIMask)
	if !found {
		return fmt.Errorf("%w: no entry in the old queue says where the new one begins", uverbs.ErrBadAnswer)
	}
	return nil
}
