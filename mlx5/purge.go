package mlx5

import (
	"sync/atomic"

	"github.com/rrppcc-go/rrppcc/mlx5/internal/prm"
)

// A QP that is closed or reset leaves entries in its CQs, which would name work
// requests that are gone. Only the CQ's owner may change the ring, and the QP
// may be closed by anybody; so the entries are counted at once, and taken out by
// the owner, at its next Poll.

// purge is an order to drop a QP's entries from a CQ.
type purge struct {
	next  *purge
	key   uint32 // of the QP, as CQEs carry it
	srq   *srq   // that its receives came from, or nil
	until uint32 // consumer index behind the QP's last possible entry, 24 bits
	done  func() // called once, when the entries are out
}

// purge orders the entries dropped that the CQ holds now. The QP produces no
// more. done may run on any goroutine, and runs in any case.
func (c *cq) purge(key uint32, shared *srq, done func()) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		done()
		return
	}
	p := &purge{key: key, srq: shared, until: c.producer(), done: done}
	for {
		p.next = c.pending.Load()
		if c.pending.CompareAndSwap(p.next, p) {
			return
		}
	}
}

// producer counts the entries that the device has written, from the consumer
// index that the owner published last. Meanwhile the owner may consume and the
// device may overwrite what was consumed: then the count stops short of where
// the owner is, and starts again.
func (c *cq) producer() uint32 {
	for {
		start := c.db.Load(prm.CQCI)
		i := start
		for i-start <= c.mask && c.written(i) {
			i++
		}
		if ahead := (c.db.Load(prm.CQCI) - start) & prm.CIMask; ahead <= i-start {
			return i & prm.CIMask
		}
	}
}

// runPurges carries out all orders. The owner calls it.
func (c *cq) runPurges() {
	for p := c.pending.Swap(nil); p != nil; p = p.next {
		c.drop(p)
		p.done()
	}
}

// drop takes the QP's entries between ci and until out of the ring: the others
// move towards until, and ci follows. What the entries took from an SRQ goes back
// to it.
func (c *cq) drop(p *purge) {
	n := (p.until - c.ci) & prm.CIMask
	if n > c.mask+1 {
		return // all of them are consumed
	}
	dropped := uint32(0)
	for i := c.ci + n; i != c.ci; {
		i--
		e := c.at(i)
		if c.key(e) == p.key {
			if last := e.LoadLast(); p.srq != nil && isReceive(last>>4&0xf) && p.srq.posted(last>>16) {
				c.giveBack(p.srq, last>>16)
			}
			dropped++
			continue
		}
		if dropped == 0 {
			continue
		}
		to := c.at(i + dropped)
		owner := to.LoadLast() & prm.CQEOwnerMask
		to.CopyBody(e, c.stride)
		to.StoreLast(e.LoadLast()&^prm.CQEOwnerMask | owner)
	}
	c.flushFreed()
	if dropped > 0 {
		c.ci += dropped
		c.db.Store(prm.CQCI, c.ci&prm.CIMask)
	}
}

func isReceive(op uint32) bool {
	switch op {
	case prm.CQERespSend, prm.CQERespSendImm, prm.CQERespWrImm, prm.CQERespSendInv, prm.CQERespErr:
		return true
	}
	return false
}

// key returns what names the QP in e.
func (c *cq) key(e *prm.CQE64) uint32 {
	if c.qps.byIndex {
		return e.SRQNUIDX.Host() & keyMask
	}
	return e.SOPDropQPN.Host() & keyMask
}

// countdown returns a function that calls f at its n-th call.
func countdown(n int32, f func()) func() {
	var left atomic.Int32
	left.Store(n)
	return func() {
		if left.Add(-1) == 0 {
			f()
		}
	}
}
