package mlx5

import (
	"errors"
	"math/rand/v2"
	"runtime"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"

	kabi "github.com/rrppcc-go/rrppcc/internal/abi"
	"github.com/rrppcc-go/rrppcc/mlx5/internal/prm"
	"github.com/rrppcc-go/rrppcc/uverbs"
)

// srqRig is an SRQ with QPs, each on a CQ of its own.
func srqRig(tb testing.TB, maxWR uint32, qps, cqDepth int) (*rig, *uverbs.SRQ, []*qp) {
	r := openRig(tb, newFakeKernel(tb))
	r.drv.uars.kick = nil
	us := r.srq(maxWR, 2)
	layout, err := layoutQP(&r.drv.lim, uverbs.QPCap{MaxSendWR: 4, MaxSendSGE: 1}, overheadRC)
	if err != nil {
		tb.Fatal(err)
	}
	var list []*qp
	for i := range qps {
		list = append(list, r.qpOn(us, uverbs.QPTypeRC, r.cq(7), r.cq(cqDepth), layout, false, 700+uint32(i), 0))
	}
	return r, us, list
}

func shared(u *uverbs.SRQ) *srq { return u.Driver().(*srq) }

// post posts n receives with work request ids from first on.
func post(t testing.TB, u *uverbs.SRQ, first, n int) {
	t.Helper()
	for i := range n {
		if _, err := u.PostRecv([]uverbs.RecvWR{{WRID: uint64(first + i)}}); err != nil {
			t.Fatalf("receive %d: %v", first+i, err)
		}
	}
}

// room counts the receives that can be posted.
func room(u *uverbs.SRQ) int {
	n := 0
	for {
		if _, err := u.PostRecv([]uverbs.RecvWR{{WRID: 1 << 40}}); err != nil {
			return n
		}
		n++
	}
}

// listDevice takes WQEs from an SRQ as the device does: it follows the links as
// far as the doorbell record counts.
type listDevice struct {
	s     *srq
	next  uint32
	taken uint16
}

func (d *listDevice) take() (uint32, bool) {
	if uint16(d.s.db.Load(prm.QPRecv)) == d.taken {
		return 0, false
	}
	d.taken++
	i := d.next
	d.next = d.s.next(i)
	return i, true
}

// TestSRQServesManyPollers runs a device that completes receives in any order,
// in the CQs of several goroutines, and now and then has a page fault; one
// goroutine posts. Every receive comes out once, with its own WQE.
func TestSRQServesManyPollers(t *testing.T) {
	const pollers, total, ringDepth = 3, 20000, 255
	for _, maxWR := range []uint32{5, 60, 16384} { // the last has no WQEs to wait with
		_, us, qps := srqRig(t, maxWR, pollers, ringDepth)
		s := shared(us)
		if s.hasWait == (maxWR == 16384) {
			t.Fatalf("%d receives: waiting WQEs: %v", maxWR, s.hasWait)
		}
		var done atomic.Int64
		var wg sync.WaitGroup
		seen := make([]atomic.Int32, total)
		for _, q := range qps {
			wg.Go(func() {
				wcs := make([]uverbs.WC, 7)
				for done.Load() < total && !t.Failed() {
					n, err := q.recvCQ.Poll(wcs)
					if err != nil {
						t.Errorf("poll: %v", err)
						return
					}
					for _, wc := range wcs[:n] {
						if wc.WRID >= total || uint32(wc.WRID) != wc.ByteLen || wc.QPN != q.qpn {
							t.Errorf("completion %+v", wc)
							return
						}
						seen[wc.WRID].Add(1)
					}
					if done.Add(int64(n)); n == 0 {
						runtime.Gosched()
					}
				}
			})
		}
		wg.Go(func() { // the device
			rnd := rand.New(rand.NewPCG(1, uint64(maxWR)))
			d := listDevice{s: s}
			pi := make([]uint32, pollers)
			var held []uint32
			for done.Load() < total && !t.Failed() {
				for len(held) < 1+rnd.IntN(40) {
					i, ok := d.take()
					if !ok {
						break
					}
					held = append(held, i)
				}
				k := rnd.IntN(pollers)
				c := qps[k].recvCQ
				if len(held) == 0 || (pi[k]-c.db.Load(prm.CQCI))&prm.CIMask >= ringDepth {
					runtime.Gosched()
					continue
				}
				x := rnd.IntN(len(held))
				i := held[x]
				held[x] = held[len(held)-1]
				held = held[:len(held)-1]
				e := c.at(pi[k])
				e.SRQNUIDX, e.SOPDropQPN = prm.ToBE32(qps[k].key), prm.ToBE32(qps[k].qpn)
				e.ByteCnt = prm.ToBE32(uint32(prm.Data(prm.Add(s.wqe(i), prm.SegBytes)).Addr.Host()))
				op := uint32(prm.CQERespSend)
				if rnd.IntN(8) == 0 {
					op = prm.CQERespErr
					e.TimestampLow = prm.ToBE32(prm.VendorODPFault<<8 | prm.SyndromeRemoteAborted)
				}
				e.StoreLast(i<<16 | op<<4 | pi[k]>>c.shift&1)
				pi[k]++
			}
		})
		wrs := make([]uverbs.RecvWR, 5)
		for i := range wrs {
			wrs[i].SGList = []uverbs.SGE{{Length: 64, LKey: 3}}
		}
		for next := 0; next < total && !t.Failed(); {
			list := wrs[:min(len(wrs), total-next)]
			for i := range list {
				list[i].WRID = uint64(next + i)
				list[i].SGList[0].Addr = uint64(next + i)
			}
			n, err := us.PostRecv(list)
			if next += n; err == uverbs.ErrQueueFull {
				runtime.Gosched()
			} else if err != nil {
				t.Fatal(err)
			}
		}
		wg.Wait()
		for i := range seen {
			if n := seen[i].Load(); n != 1 {
				t.Fatalf("receive %d completed %d times", i, n)
			}
		}
		if n := room(us); n != int(s.maxWR) {
			t.Errorf("room for %d receives at the end, of %d", n, s.maxWR)
		}
	}
}

// TestPollRefusesImpossibleSharedEntries checks that each is consumed, reported,
// and takes nothing from the SRQ.
func TestPollRefusesImpossibleSharedEntries(t *testing.T) {
	_, us, qps := srqRig(t, 7, 2, 15)
	s := shared(us)
	post(t, us, 0, 3)
	q := qps[0]
	c, wcs := q.recvCQ, make([]uverbs.WC, 4)
	refuse := func(name string, c *cq, e []byte) {
		t.Helper()
		c.put(0, e)
		ci := c.ci
		if n, err := c.Poll(wcs); n != 0 || err != uverbs.ErrCQCorrupt || c.ci != ci+1 {
			t.Errorf("%s: %d, %v", name, n, err)
		}
	}
	refuse("not posted", c, c.cqe(0, q, prm.CQERespSend, 0, 3))
	refuse("one that waits", c, c.cqe(0, q, prm.CQERespSend, 0, 9))
	refuse("no such WQE", c, c.cqe(0, q, prm.CQERespErr, 0, 0xffff))
	refuse("fault of what is not posted", c, fault(c, 0, q, 5))
	refuse("another CQ's", qps[1].recvCQ, c.cqe(0, q, prm.CQERespSend, 0, 0))
	c.put(0, c.cqe(0, q, prm.CQERespSend, 0, 1))
	c.put(1, c.cqe(1, q, prm.CQERespSend, 0, 1))
	if n, err := c.Poll(wcs); n != 1 || err != uverbs.ErrCQCorrupt || wcs[0].WRID != 1 {
		t.Errorf("twice: %d, %v, %+v", n, err, wcs[0])
	}
	refuse("again", c, c.cqe(0, q, prm.CQERespSend, 0, 1))
	if n := room(us); n != 5 {
		t.Errorf("room for %d of 7 receives with 2 posted", n)
	}
	if s.db.Load(prm.QPRecv) != 8 {
		t.Errorf("%d posted", s.db.Load(prm.QPRecv))
	}
}

// fault makes the CQE of a page fault on WQE i.
func fault(c *cq, ahead uint32, q *qp, i uint16) []byte {
	b := c.cqe(ahead, q, prm.CQERespErr, 0, i)
	b[54], b[55] = prm.VendorODPFault, prm.SyndromeRemoteAborted
	return b
}

// TestSharedErrorsAreCompletions checks that another error of the same syndrome
// is the user's to see, and gives its WQE back.
func TestSharedErrorsAreCompletions(t *testing.T) {
	_, us, qps := srqRig(t, 7, 1, 15)
	post(t, us, 40, 7)
	q := qps[0]
	c, wcs := q.recvCQ, make([]uverbs.WC, 4)
	b := c.cqe(0, q, prm.CQERespErr, 0, 2)
	b[54], b[55] = 0x92, prm.SyndromeRemoteAborted
	c.put(0, b)
	b = c.cqe(1, q, prm.CQERespErr, 0, 0)
	b[54], b[55] = prm.VendorODPFault, prm.SyndromeLocalProt
	c.put(1, b)
	if n, err := c.Poll(wcs); n != 2 || err != nil || wcs[0].WRID != 42 || wcs[0].Status != uverbs.WCRemAbortErr || wcs[1].WRID != 40 || wcs[1].Status != uverbs.WCLocProtErr {
		t.Errorf("%d, %v, %+v", n, err, wcs[:2])
	}
	if n := room(us); n != 2 {
		t.Errorf("room for %d", n)
	}
}

// TestFaultedReceiveIsPostedAgain checks the copy, that the faulted WQE rests,
// and that a poster who is at work does the reposting.
func TestFaultedReceiveIsPostedAgain(t *testing.T) {
	_, us, qps := srqRig(t, 7, 1, 15)
	s, q := shared(us), qps[0]
	if _, err := us.PostRecv([]uverbs.RecvWR{{WRID: 5, SGList: []uverbs.SGE{{Addr: 1 << 40, Length: 100, LKey: 7}}}}); err != nil {
		t.Fatal(err)
	}
	d := listDevice{s: s}
	i, _ := d.take()
	c, wcs := q.recvCQ, make([]uverbs.WC, 4)
	c.put(0, fault(c, 0, q, uint16(i)))
	s.gate.Store(1) // somebody posts
	if n, err := c.Poll(wcs); n != 0 || err != nil || s.counter != 1 {
		t.Fatalf("%d, %v, %d posted", n, err, s.counter)
	}
	s.gate.Store(0)
	if n, err := us.PostRecv(nil); n != 0 || err != nil {
		t.Fatal(err)
	}
	j, ok := d.take()
	if !ok || j == i || *prm.Data(prm.Add(s.wqe(j), prm.SegBytes)) != *prm.Data(prm.Add(s.wqe(i), prm.SegBytes)) {
		t.Fatalf("WQE %d was not posted again: %d, %v", i, j, ok)
	}
	if s.waitTail != i || s.posted(i) {
		t.Errorf("WQE %d does not rest", i)
	}
	c.put(0, c.cqe(0, q, prm.CQERespSend, 0, uint16(j)))
	if n, err := c.Poll(wcs); n != 1 || err != nil || wcs[0].WRID != 5 {
		t.Errorf("%d, %v, %+v", n, err, wcs[0])
	}
	if n := room(us); n != 7 {
		t.Errorf("room for %d", n)
	}
}

// TestClosedQPGivesReceivesBack closes, or resets, a QP whose completions are
// still in its CQ: their WQEs return to the SRQ with the next Poll, or with the
// CQ's end. Other QPs' completions stay.
func TestClosedQPGivesReceivesBack(t *testing.T) {
	for name, end := range map[string]func(q *qp){
		"close": func(q *qp) { q.Close() },
		"reset": func(q *qp) { q.StateChanged(uverbs.QPStateErr); q.StateChanged(uverbs.QPStateReset) },
	} {
		for _, poll := range []bool{true, false} {
			before := mapped.Load()
			r, us, qps := srqRig(t, 7, 1, 15)
			q := qps[0]
			c := q.recvCQ
			layout, _ := layoutQP(&r.drv.lim, uverbs.QPCap{}, overheadRC)
			other := r.qpOn(us, uverbs.QPTypeRC, r.cq(7), r.cq(7), layout, false, 800, 0)
			other.recvCQ = c
			post(t, us, 0, 7)
			c.put(0, c.cqe(0, q, prm.CQERespSend, 0, 0))
			c.put(1, c.cqe(1, other, prm.CQERespSend, 0, 3))
			c.put(2, c.cqe(2, q, prm.CQERespErr, 0, 5))
			end(q)
			want := 2
			if poll {
				wcs := make([]uverbs.WC, 4)
				if n, err := c.Poll(wcs); n != 1 || err != nil || wcs[0].WRID != 3 {
					t.Errorf("%s: %d, %v, %+v", name, n, err, wcs[0])
				}
				want = 3
			} else {
				c.Close()
			}
			if n := room(us); n != want {
				t.Errorf("%s, polled %v: room for %d, want %d", name, poll, n, want)
			}
			// The SRQ's memory lives as long as a QP may look at it.
			if err := us.Close(); err != nil {
				t.Error(err)
			}
			if n, err := us.PostRecv([]uverbs.RecvWR{{}}); n != 0 || err != uverbs.ErrQPState {
				t.Errorf("after Close: %d, %v", n, err)
			}
			q.Close()
			other.Close()
			other.recvCQ.Close()
			r.close()
			for _, p := range r.drv.dbrecs.pages {
				t.Errorf("a page of doorbell records is left with %d in use", p.used)
			}
			if s := shared(us); s.refs.Load() != 0 {
				t.Errorf("%s: %d references, %d bytes mapped", name, s.refs.Load(), mapped.Load()-before)
			}
		}
	}
}

// TestQPOnSRQHasNoReceiveQueue checks the capacities, and PostRecv.
func TestQPOnSRQHasNoReceiveQueue(t *testing.T) {
	r := openRig(t, newFakeKernel(t))
	us := r.srq(4, 1)
	cq := r.cq(7)
	init := &uverbs.QPInitAttr{Type: uverbs.QPTypeUD, SendCQ: cq, RecvCQ: cq, SRQ: us, Cap: uverbs.QPCap{MaxSendWR: 2, MaxRecvWR: 50, MaxSendSGE: 1, MaxRecvSGE: 3}}
	qp, err := r.pd.CreateQP(init)
	if err != nil {
		t.Fatal(err)
	}
	if c := qp.Cap(); c.MaxRecvWR != 0 || c.MaxRecvSGE != 0 {
		t.Errorf("%+v", c)
	}
	if n, err := qp.PostRecv([]uverbs.RecvWR{{}}); n != 0 || err != uverbs.ErrQPUsesSRQ {
		t.Errorf("%d, %v", n, err)
	}
	other := openRig(t, newFakeKernel(t))
	s := other.srq(4, 1)
	init.SRQ = s
	if _, err := r.pd.CreateQP(init); !errors.Is(err, syscall.EINVAL) {
		t.Errorf("SRQ of another device: %v", err)
	}
	if n := shared(s).refs.Load(); n != 1 {
		t.Errorf("%d references", n)
	}
}

// TestSRQModify checks what reaches the kernel.
func TestSRQModify(t *testing.T) {
	r := openRig(t, newFakeKernel(t))
	us := r.srq(7, 1)
	before := len(r.k.commands)
	if err := us.Modify(&uverbs.SRQAttr{MaxWR: 20}, uverbs.SRQMaxWR); !errors.Is(err, syscall.EOPNOTSUPP) {
		t.Errorf("size: %v", err)
	}
	if err := us.Modify(&uverbs.SRQAttr{Limit: 8}, uverbs.SRQLimit); !errors.Is(err, syscall.EINVAL) {
		t.Errorf("limit above the size: %v", err)
	}
	if len(r.k.commands) != before {
		t.Error("the kernel was asked")
	}
	if err := us.Modify(&uverbs.SRQAttr{Limit: 7}, uverbs.SRQLimit); err != nil {
		t.Error(err)
	}
	in := decode[kabi.Ib_uverbs_modify_srq](r.k.commands[len(r.k.commands)-1].attrs[kabi.UVERBS_ATTR_CORE_IN].in)
	if in.Srq_limit != 7 || in.Attr_mask != uint32(uverbs.SRQLimit) {
		t.Errorf("%+v", in)
	}
}

// TestSRQRefusesRequests checks that what precedes a bad request is published.
func TestSRQRefusesRequests(t *testing.T) {
	_, us, _ := srqRig(t, 7, 0, 0)
	s := shared(us)
	for name, bad := range map[string]uverbs.RecvWR{
		"elements": {SGList: make([]uverbs.SGE, 4)},
		"length":   {SGList: []uverbs.SGE{{Length: 1}, {Length: 1 << 31}}},
	} {
		counter := s.counter
		if n, err := us.PostRecv([]uverbs.RecvWR{{WRID: 1}, bad, {}}); n != 1 || !errors.Is(err, syscall.EINVAL) || s.db.Load(prm.QPRecv) != counter+1 {
			t.Errorf("%s: %d, %v", name, n, err)
		}
	}
	if s.gate.Load() != 0 {
		t.Error("the gate is shut")
	}
}

// TestDeviceWithoutSRQs answers no receive for an SRQ.
func TestDeviceWithoutSRQs(t *testing.T) {
	k := newFakeKernel(t)
	copy(k.ucontext[28:32], make([]byte, 4))
	r := openRig(t, k)
	if _, err := r.pd.CreateSRQ(&uverbs.SRQInitAttr{SRQAttr: uverbs.SRQAttr{MaxWR: 1}}); !errors.Is(err, syscall.EINVAL) {
		t.Error(err)
	}
}

// TestSRQOutlivesItsLastEntry closes QP and SRQ while a CQ still holds an entry
// that names a WQE of the SRQ.
func TestSRQOutlivesItsLastEntry(t *testing.T) {
	_, us, qps := srqRig(t, 7, 1, 15)
	s, q := shared(us), qps[0]
	c := q.recvCQ
	post(t, us, 0, 2)
	c.put(0, c.cqe(0, q, prm.CQERespSend, 0, 1))
	c.put(1, c.cqe(1, q, prm.CQERespSend, 0, 0))
	q.sendCQ.Close()
	q.Close()
	if err := us.Close(); err != nil {
		t.Fatal(err)
	}
	before := mapped.Load()
	if n, err := c.Poll(make([]uverbs.WC, 4)); n != 0 || err != nil || s.refs.Load() != 0 {
		t.Errorf("%d, %v, %d references", n, err, s.refs.Load())
	}
	if freed := before - mapped.Load(); freed < int64(len(s.mem)+len(s.tables)) {
		t.Errorf("%d bytes were freed", freed)
	}
}
