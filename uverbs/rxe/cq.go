package rxe

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"sync/atomic"
	"syscall"

	kabi "github.com/rrppcc-go/rrppcc/internal/abi"
	"github.com/rrppcc-go/rrppcc/internal/kernel"
	"github.com/rrppcc-go/rrppcc/uverbs"
	"github.com/rrppcc-go/rrppcc/uverbs/rxe/internal/abi"
)

// cq is a completion queue: the kernel produces, the owner consumes.
type cq struct {
	ctx    *contextDriver
	ring   ring
	closed atomic.Bool

	// consumed counts the entries that were read; its low bits are the ring's
	// consumer index. Stored by the owner before the index, see purge.
	consumed atomic.Uint32

	pending atomic.Pointer[purge] // of QPs that were reset, by any goroutine
	purges  []purge               // the owner's

	arm    *kernel.Prepared
	armMem []byte
}

// purge has the owner drop a QP's entries that were written before it was
// reset.
type purge struct {
	qpn  uint32
	upTo uint32 // in terms of consumed
	next *purge
}

func (d *contextDriver) CreateCQ(attr *uverbs.CQInitAttr, issue func(cqe uint32, uhwIn, uhwOut []byte) (uint32, error)) (uverbs.CQDriver, error) {
	if attr.Depth > math.MaxInt32 {
		return nil, fmt.Errorf("depth %d: %w", attr.Depth, syscall.EINVAL)
	}
	q := &cq{ctx: d}
	resp := new(abi.Rxe_create_cq_resp)
	if _, err := issue(uint32(attr.Depth), nil, kernel.Bytes(resp)); err != nil {
		return nil, err
	}
	var err error
	if q.ring, err = mapRing(d.file, &resp.Mi, cqeBytes, uint32(attr.Depth)); err != nil {
		return nil, err
	}
	q.consumed.Store(q.ring.consumer())
	return q, nil
}

// SetHandle builds the command by which Arm names the CQ.
func (q *cq) SetHandle(handle uint32) (err error) {
	in := &kabi.Ib_uverbs_req_notify_cq{Cq_handle: handle}
	q.arm, q.armMem, err = q.ctx.prepare(kabi.IB_USER_VERBS_CMD_REQ_NOTIFY_CQ, kernel.Bytes(in), 0)
	return err
}

// Depth returns the completions that fit at once.
func (q *cq) Depth() int { return int(q.ring.mask) }

// Poll copies completions out of the ring, then gives their slots back.
func (q *cq) Poll(wc []uverbs.WC) (n int, err error) {
	if q.closed.Load() {
		return 0, uverbs.ErrClosed
	}
	if q.pending.Load() != nil {
		q.takePurges()
	}
	r := &q.ring
	first := q.consumed.Load()
	ci, prod := first, r.producer()
	for n < len(wc) && ci&r.mask != prod {
		e := &wc[n]
		ok := readCQE(e, r.slot(ci))
		ci++
		if !ok {
			err = uverbs.ErrCQCorrupt
			break
		}
		if len(q.purges) != 0 && q.purged(e.QPN, ci) {
			continue
		}
		if e.Flags&uverbs.WCGRH != 0 && !q.ctx.isUD(e.QPN) {
			e.Flags &^= uverbs.WCGRH
		}
		n++
	}
	if ci != first {
		q.consumed.Store(ci)
		r.setConsumer(ci & r.mask)
	}
	return n, err
}

// Arm asks the kernel for an event. It costs a system call.
func (q *cq) Arm(solicitedOnly bool) error {
	if q.closed.Load() {
		return uverbs.ErrClosed
	}
	var flag uint32
	if solicitedOnly {
		flag = 1
	}
	binary.NativeEndian.PutUint32(q.arm.In()[4:], flag)
	if err := q.arm.Run(q.ctx.file); err != nil {
		return q.ctx.commandError(err)
	}
	return nil
}

// EventArrived has nothing to note: the kernel keeps no sequence of events.
func (q *cq) EventArrived() {}

// Resize has the kernel make a new ring with the completions of the old one.
func (q *cq) Resize(depth int, issue func(cqe uint32, uhwIn, uhwOut []byte) (uint32, error)) error {
	if depth > math.MaxInt32 {
		return fmt.Errorf("depth %d: %w", depth, syscall.EINVAL)
	}
	q.takePurges()
	resp := new(abi.Rxe_create_cq_resp)
	if _, err := issue(uint32(depth), nil, kernel.Bytes(resp)); err != nil {
		return err
	}
	fresh, err := mapRing(q.ctx.file, &resp.Mi, cqeBytes, uint32(depth))
	if err != nil {
		return err
	}
	old := q.ring
	q.ring = fresh
	start := fresh.consumer()
	for i := range q.purges {
		q.purges[i].upTo += start - q.consumed.Load()
	}
	q.consumed.Store(start)
	return old.close()
}

// purge drops the QP's entries that are in the ring. The kernel writes no more
// of them. It may be called while the owner polls: equal counts before and after
// reading the producer index say that the two belong together, because the
// kernel can reuse a slot only after it was counted.
func (q *cq) purge(qpn uint32) {
	if q.closed.Load() {
		return
	}
	for {
		ci := q.consumed.Load()
		prod := q.ring.producer()
		if q.consumed.Load() != ci {
			continue
		}
		p := &purge{qpn: qpn, upTo: ci + (prod-ci)&q.ring.mask}
		if p.upTo == ci {
			return
		}
		for {
			p.next = q.pending.Load()
			if q.pending.CompareAndSwap(p.next, p) {
				return
			}
		}
	}
}

func (q *cq) takePurges() {
	for p := q.pending.Swap(nil); p != nil; p = p.next {
		q.purges = append(q.purges, *p)
	}
}

// purged reports whether the entry before ci is to be dropped, and forgets the
// purges that ci has passed.
func (q *cq) purged(qpn, ci uint32) (drop bool) {
	keep := q.purges[:0]
	for _, p := range q.purges {
		left := int32(p.upTo - ci) // entries of this purge behind this one
		drop = drop || left >= 0 && p.qpn == qpn
		if left > 0 {
			keep = append(keep, p)
		}
	}
	q.purges = keep
	return drop
}

// Close unmaps the ring.
func (q *cq) Close() error {
	if q.closed.Swap(true) {
		return nil
	}
	var errs []error
	if q.armMem != nil {
		errs = append(errs, kernel.FreePages(q.armMem))
	}
	return errors.Join(append(errs, q.ring.close())...)
}
