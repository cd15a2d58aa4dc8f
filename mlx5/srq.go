package mlx5

import (
	"errors"
	"fmt"
	"math/bits"
	"os"
	"runtime"
	"sync/atomic"
	"syscall"

	"github.com/rrppcc-go/rrppcc/internal/kernel"
	"github.com/rrppcc-go/rrppcc/mlx5/internal/abi"
	"github.com/rrppcc-go/rrppcc/mlx5/internal/prm"
	"github.com/rrppcc-go/rrppcc/uverbs"
)

// srq is a shared receive queue. Its WQEs form a list, linked by index in their
// next segments, which the device follows as far as the doorbell record counts.
// head is the WQE that is posted next, tail the last free one. The tail is never
// posted: its link is not known before another WQE is free, and the device may
// read a link as soon as the WQE is posted.
//
// Three kinds of goroutines meet here, and none waits for another:
//   - The poster owns head, tail and counter. It takes the gate for the length
//     of a PostRecv.
//   - The pollers of any number of CQs give WQEs back. Each pushes what it
//     retired in one Poll on the stack freed, by one compare-and-swap; the poster
//     takes the whole stack when its list runs out. The WQEs come back in the
//     order of the completions.
//   - A poller that meets a page fault has to post the WQE again. It pushes the
//     WQE on the stack faulted, and posts if nobody is at the gate; whoever is
//     looks at that stack once more when it leaves.
type srq struct {
	ctx    *contextDriver
	start  *byte // WQE 0
	slots  *byte // srqSlot per WQE
	db     dbrec
	mem    []byte
	tables []byte

	mask   uint32 // WQEs - 1
	shift  uint32 // log2 of bytes per WQE
	maxSGE int
	maxWR  uint32

	gate     atomic.Uint32 // 1: somebody posts
	head     uint32
	tail     uint32
	counter  uint32 // posted, free-running
	waitHead uint32 // WQEs that faulted rest in a list of their own before they
	waitTail uint32 // are used again: the device may still look at them
	hasWait  bool

	freed   atomic.Uint32 // stack by srqSlot.link: index+1 of the newest; 0: empty
	faulted atomic.Uint32

	closed atomic.Bool
	refs   atomic.Int32 // the SRQ itself, and every QP whose entries may be in a CQ
}

// srqSlot is what is known of a WQE. Whoever posts it writes it; the device's
// CQE hands it to the poller, and the stacks hand it back.
type srqSlot struct {
	wrid uint64
	link uint32 // srqPosted, or the next on the stack: index+1, 0 at the end
	_    uint32
}

const (
	srqSlotBytes = 16
	srqPosted    = ^uint32(0)
)

// srqLayout is how an SRQ lies in its buffer.
type srqLayout struct {
	entries uint32 // WQEs, a power of two
	usable  uint32 // of them in the list at first, a power of two; the rest wait
	shift   uint32
	maxSGE  uint32
}

// maxSRQEntries follows from the 16 bits of a link.
const maxSRQEntries = 1 << 16

// layoutSRQ sizes an SRQ: one WQE more than asked, because the tail is not
// posted, and as many again to replace those that faulted, if the device has as
// many.
func layoutSRQ(lim *limits, ask uverbs.SRQAttr) (srqLayout, error) {
	if ask.MaxWR == 0 || ask.MaxWR > lim.maxSRQRecvWRs || ask.MaxSGE > lim.maxRQDesc/prm.SegBytes {
		return srqLayout{}, syscall.EINVAL
	}
	wqe := max(roundUpPow2(prm.SegBytes+ask.MaxSGE*prm.SegBytes), 32)
	if wqe > lim.maxRQDesc {
		return srqLayout{}, syscall.EINVAL
	}
	l := srqLayout{
		usable: roundUpPow2(ask.MaxWR + 1),
		shift:  uint32(bits.TrailingZeros32(wqe)),
		maxSGE: wqe/prm.SegBytes - 1,
	}
	l.entries = l.usable
	if 2*ask.MaxWR+1 <= lim.maxSRQRecvWRs {
		l.entries = roundUpPow2(2*ask.MaxWR + 1)
	}
	if l.entries > maxSRQEntries {
		return srqLayout{}, syscall.EINVAL
	}
	return l, nil
}

func (d *contextDriver) CreateSRQ(attr *uverbs.SRQInitAttr, issue func(ask uverbs.SRQAttr, uhwIn, uhwOut []byte) (uverbs.SRQAttr, error)) (_ uverbs.SRQDriver, err error) {
	l, err := layoutSRQ(&d.lim, attr.SRQAttr)
	if err != nil {
		return nil, fmt.Errorf("capacities %+v: %w", attr.SRQAttr, err)
	}
	s := &srq{ctx: d, mask: l.entries - 1, shift: l.shift, maxSGE: int(l.maxSGE), maxWR: l.usable - 1}
	s.refs.Store(1)
	defer func() {
		if err != nil {
			s.Close()
		}
	}()
	page := uint32(os.Getpagesize())
	if s.mem, err = allocMemory(int(roundUp(l.entries<<l.shift, page))); err != nil {
		return nil, err
	}
	if s.tables, err = allocMemory(int(roundUp(l.entries*srqSlotBytes, page))); err != nil {
		return nil, err
	}
	if s.db, err = d.dbrecs.alloc(); err != nil {
		return nil, err
	}
	s.start, s.slots = &s.mem[0], &s.tables[0]
	s.tail = l.usable - 1
	s.linkUp(0, s.tail)
	if s.hasWait = l.entries > l.usable; s.hasWait {
		s.waitHead, s.waitTail = l.usable, l.entries-1
		s.linkUp(s.waitHead, s.waitTail)
	}

	req := &abi.Mlx5_ib_create_srq{Buf_addr: prm.Addr(s.start), Db_addr: s.db.addr(d.dbrecs.stride)}
	resp := new(abi.Mlx5_ib_create_srq_resp)
	ask := uverbs.SRQAttr{MaxWR: l.entries - 1, MaxSGE: l.maxSGE, Limit: attr.Limit}
	if _, err := issue(ask, kernel.Bytes(req), kernel.Bytes(resp)); err != nil {
		return nil, err
	}
	if resp.Srqn > keyMask {
		return nil, fmt.Errorf("%w: SRQ number %#x", uverbs.ErrBadAnswer, resp.Srqn)
	}
	attr.MaxWR, attr.MaxSGE = s.maxWR, l.maxSGE
	return s, nil
}

// linkUp makes a list of the WQEs from first to last.
func (s *srq) linkUp(first, last uint32) {
	for i := first; i < last; i++ {
		s.setNext(i, i+1)
	}
}

func (s *srq) wqe(i uint32) *byte { return prm.Add(s.start, i&s.mask<<s.shift) }

// next follows the list. The link is masked where it is used: the memory is the
// device's as much as ours.
func (s *srq) next(i uint32) uint32 { return prm.NextWQE(s.wqe(i)).Next.Host() & s.mask }

func (s *srq) setNext(i, next uint32) {
	*prm.NextWQE(s.wqe(i)) = prm.NextSeg{Next: prm.ToBE32(next)}
}

// posted tells whether a CQE may name WQE i.
func (s *srq) posted(i uint32) bool { return i <= s.mask && s.slot(i).link == srqPosted }

// PostRecv writes a WQE per request and publishes the ones that were accepted.
// Elements of length 0 are written, as libmlx5 does for SRQs alone.
func (s *srq) PostRecv(wrs []uverbs.RecvWR) (n int, err error) {
	if s.closed.Load() {
		return 0, uverbs.ErrQPState
	}
	for !s.gate.CompareAndSwap(0, 1) { // a page fault is being dealt with
		runtime.Gosched()
	}
	head := s.head
loop:
	for n < len(wrs) {
		wr := &wrs[n]
		if len(wr.SGList) > s.maxSGE {
			err = uverbs.ErrTooManySGEs
			break
		}
		if head == s.tail {
			if s.reclaim(); head == s.tail {
				err = uverbs.ErrQueueFull
				break
			}
		}
		at := s.wqe(head)
		p := prm.Add(at, prm.SegBytes)
		for i := range wr.SGList {
			sge := &wr.SGList[i]
			if sge.Length >= prm.InlineFlag {
				err = errSGETooLong
				break loop
			}
			*prm.Data(p) = prm.DataSeg{ByteCount: prm.ToBE32(sge.Length), LKey: prm.ToBE32(sge.LKey), Addr: prm.ToBE64(sge.Addr)}
			p = prm.Add(p, prm.SegBytes)
		}
		if len(wr.SGList) < s.maxSGE {
			*prm.Data(p) = prm.DataSeg{LKey: prm.ToBE32(prm.InvalidLKey)}
		}
		*s.slot(head) = srqSlot{wrid: wr.WRID, link: srqPosted}
		head = prm.NextWQE(at).Next.Host() & s.mask
		n++
	}
	if n > 0 {
		s.head = head
		s.publish(uint32(n))
	}
	s.gate.Store(0)
	if s.faulted.Load() != 0 {
		s.repost()
	}
	return n, err
}

// publish tells the device of n more WQEs.
func (s *srq) publish(n uint32) {
	s.counter += n
	toDevice()
	s.db.Store(prm.QPRecv, s.counter&0xffff)
}

// push puts the WQEs from first down to last, linked by their slots, on a
// stack. They are the caller's until then.
func (s *srq) push(stack *atomic.Uint32, first, last uint32) {
	for {
		top := stack.Load()
		s.slot(last).link = top
		if stack.CompareAndSwap(top, first+1) {
			return
		}
	}
}

// drain takes a stack's WQEs and returns the oldest, with the links turned
// towards the newest; 0 if there is none, else index+1.
func (s *srq) drain(stack *atomic.Uint32) uint32 {
	var oldest uint32
	for at := stack.Swap(0); at != 0; {
		slot := s.slot(at - 1)
		at, slot.link, oldest = slot.link, oldest, at
	}
	return oldest
}

// reclaim appends the WQEs that pollers gave back to the list.
func (s *srq) reclaim() {
	for at := s.drain(&s.freed); at != 0; at = s.slot(at - 1).link {
		s.setNext(s.tail, at-1)
		s.tail = at - 1
	}
}

// fault posts WQE i again, which the device gave up because its memory was not
// there. A poller calls it.
func (s *srq) fault(i uint32) {
	s.push(&s.faulted, i, i)
	s.repost()
}

// repost posts what faulted, unless somebody else is at the gate, who will.
func (s *srq) repost() {
	for s.faulted.Load() != 0 && s.gate.CompareAndSwap(0, 1) {
		for at := s.drain(&s.faulted); at != 0; {
			i := at - 1
			at = s.slot(i).link
			s.repostOne(i)
		}
		s.gate.Store(0)
	}
}

// repostOne posts a copy of WQE i. The WQE itself waits, and the one that has
// waited longest takes its place in the list.
func (s *srq) repostOne(i uint32) {
	back := i
	if s.hasWait {
		s.setNext(s.waitTail, i)
		s.waitTail = i
		back = s.waitHead
		s.waitHead = s.next(back)
	}
	s.setNext(s.tail, back)
	s.tail = back

	src, dst := prm.Add(s.wqe(i), prm.SegBytes), prm.Add(s.wqe(s.head), prm.SegBytes)
	for range s.maxSGE {
		*prm.Data(dst) = *prm.Data(src)
		if prm.Data(src).LKey.Host() == prm.InvalidLKey {
			break
		}
		src, dst = prm.Add(src, prm.SegBytes), prm.Add(dst, prm.SegBytes)
	}
	*s.slot(s.head) = srqSlot{wrid: s.slot(i).wrid, link: srqPosted}
	s.head = s.next(s.head)
	s.publish(1)
}

// Modify changes the limit. The device cannot change the size.
func (s *srq) Modify(attr *uverbs.SRQAttr, mask uverbs.SRQAttrMask, issue func(uhwIn []byte) error) error {
	if mask&uverbs.SRQMaxWR != 0 {
		return fmt.Errorf("the size of an SRQ is fixed: %w", syscall.EOPNOTSUPP)
	}
	if mask&uverbs.SRQLimit != 0 && attr.Limit > s.maxWR {
		return fmt.Errorf("limit %d of %d: %w", attr.Limit, s.maxWR, syscall.EINVAL)
	}
	return issue(nil)
}

// Close frees the queue, once no CQ holds an entry of its QPs any more.
func (s *srq) Close() error {
	if s.closed.Swap(true) {
		return nil
	}
	return s.unref()
}

func (s *srq) unref() error {
	if s.refs.Add(-1) != 0 {
		return nil
	}
	if s.db.DBRec != nil {
		s.ctx.dbrecs.release(s.db)
	}
	return errors.Join(freeMemory(s.mem), freeMemory(s.tables))
}
