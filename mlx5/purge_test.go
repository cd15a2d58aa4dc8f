package mlx5

import (
	"math/rand/v2"
	"sync"
	"testing"

	"github.com/rrppcc-go/rrppcc/mlx5/internal/prm"
	"github.com/rrppcc-go/rrppcc/uverbs"
)

func smallLayout(t testing.TB, r *rig) qpLayout {
	l, err := layoutQP(&r.drv.lim, uverbs.QPCap{MaxSendWR: 16, MaxRecvWR: 16, MaxSendSGE: 1, MaxRecvSGE: 1}, overheadRC)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// TestClosedQPLeavesNoCompletions fills a ring with the completions of several
// QPs, at every place of the ring, closes one, and polls the others'.
func TestClosedQPLeavesNoCompletions(t *testing.T) {
	r := openRig(t, newFakeKernel(t))
	r.drv.uars.kick = nil
	layout := smallLayout(t, r)
	rnd := rand.New(rand.NewPCG(3, 4))
	for round := range 300 {
		both := r.cq(7)
		c := both.Driver().(*cq)
		c.ci = uint32(rnd.IntN(40))
		if round%3 == 0 {
			c.ci = 1<<24 - uint32(rnd.IntN(8)) // the published index wraps at 24 bits
		}
		for i := range 8 - c.ci&7 { // as if earlier laps had been there
			c.at(c.ci&7 + i).StoreLast(prm.CQEReq<<4 | ^(c.ci>>3)&1)
		}
		for i := range c.ci & 7 {
			c.at(i).StoreLast(prm.CQEReq<<4 | c.ci>>3&1)
		}
		c.db.Store(prm.CQCI, c.ci&prm.CIMask)
		var qps [3]*qp
		for i := range qps {
			qps[i] = r.qpWith(uverbs.QPTypeRC, both, both, layout, false, 600+uint32(i), 0)
			for j := range 8 {
				qps[i].PostSend([]uverbs.SendWR{{WRID: uint64(i*100 + j), Opcode: uverbs.WRSend}})
			}
		}
		var want []uint64
		var posted [3]uint16
		n := rnd.IntN(9)
		for k := range n {
			i := rnd.IntN(3)
			c.put(uint32(k), c.cqe(uint32(k), qps[i], prm.CQEReq, prm.OpcodeSend, posted[i]))
			if i != 1 {
				want = append(want, uint64(i*100)+uint64(posted[i]))
			}
			posted[i]++
		}
		key := qps[1].key
		if err := qps[1].Close(); err != nil {
			t.Fatal(err)
		}
		if r.drv.qps.lookup(key) == nil {
			t.Fatal("the key was free before the entries were out")
		}
		wcs := make([]uverbs.WC, 16)
		got, err := c.Poll(wcs)
		if got != len(want) || err != nil {
			t.Fatalf("round %d: %d, %v, want %d of %d", round, got, err, len(want), n)
		}
		for i, id := range want {
			if wcs[i].WRID != id {
				t.Fatalf("round %d: completion %d: %d, want %d", round, i, wcs[i].WRID, id)
			}
		}
		if r.drv.qps.lookup(key) != nil {
			t.Fatal("the key is not free")
		}
		if c.db.Load(prm.CQCI) != c.ci&prm.CIMask {
			t.Fatal("consumer index was not published")
		}
		qps[0].Close()
		qps[2].Close()
		both.Close()
	}
	if n := len(r.drv.uars.free); n != 4 {
		t.Errorf("%d registers are free of 4", n)
	}
}

// TestResetDropsOldCompletions resets a QP with completions in its CQs and uses
// it again: only the new ones come out.
func TestResetDropsOldCompletions(t *testing.T) {
	q := pollQP(t)
	s, rc := q.sendCQ, q.recvCQ
	s.put(0, s.cqe(0, q, prm.CQEReqErr, prm.OpcodeSend, 0))
	s.put(1, s.cqe(1, q, prm.CQEReqErr, prm.OpcodeSend, 1))
	rc.put(0, rc.cqe(0, q, prm.CQERespErr, 0, 0))
	q.StateChanged(uverbs.QPStateErr) // changes nothing
	q.StateChanged(uverbs.QPStateReset)
	if q.db.Load(prm.QPSend) != 0 || q.db.Load(prm.QPRecv) != 0 {
		t.Error("doorbell record was not cleared")
	}
	for i := range 3 {
		if n, err := q.PostSend([]uverbs.SendWR{{WRID: uint64(50 + i), Opcode: uverbs.WRSend}}); n != 1 {
			t.Fatal(err)
		}
	}
	if n, err := q.PostRecv([]uverbs.RecvWR{{WRID: 60}}); n != 1 {
		t.Fatal(err)
	}
	s.put(2, s.cqe(2, q, prm.CQEReq, prm.OpcodeSend, 2))
	rc.put(1, rc.cqe(1, q, prm.CQERespSend, 0, 0))
	wcs := make([]uverbs.WC, 8)
	if n, err := s.Poll(wcs); n != 1 || err != nil || wcs[0].WRID != 52 {
		t.Errorf("%d, %v, %+v", n, err, wcs[0])
	}
	if n, err := rc.Poll(wcs); n != 1 || err != nil || wcs[0].WRID != 60 {
		t.Errorf("%d, %v, %+v", n, err, wcs[0])
	}
}

// TestCQCloseReleasesKeys closes CQs that were never polled after their QPs.
func TestCQCloseReleasesKeys(t *testing.T) {
	r := openRig(t, newFakeKernel(t))
	send, recv := r.cq(7), r.cq(7)
	q := r.qpWith(uverbs.QPTypeRC, send, recv, smallLayout(t, r), false, 500, 0)
	q.Close()
	send.Close()
	if r.drv.qps.lookup(q.key) != q {
		t.Error("the key is free while the receive CQ may name it")
	}
	recv.Close()
	if r.drv.qps.lookup(q.key) != nil {
		t.Error("the key is not free")
	}
	for _, p := range r.drv.dbrecs.pages {
		if p.used != 0 {
			t.Errorf("%d doorbell records in use", p.used)
		}
	}
}

// TestCloseWhilePolled closes and creates QPs while another goroutine polls
// their CQ, into which a device writes on.
func TestCloseWhilePolled(t *testing.T) {
	r := openRig(t, newFakeKernel(t))
	r.drv.uars.kick = nil
	both := r.cq(31)
	c := both.Driver().(*cq)
	layout := smallLayout(t, r)
	live := r.qpWith(uverbs.QPTypeRC, both, both, layout, false, 400, 0)

	var closer sync.WaitGroup
	stop := make(chan struct{})
	closer.Add(1)
	go func() {
		defer closer.Done()
		for i := uint32(0); ; i++ {
			select {
			case <-stop:
				return
			default:
			}
			q := r.qpWith(uverbs.QPTypeRC, both, both, layout, false, 1000+i, 0)
			q.PostSend([]uverbs.SendWR{{WRID: 9999, Opcode: uverbs.WRSend}})
			if err := q.Close(); err != nil {
				t.Error(err)
				return
			}
		}
	}()
	wcs := make([]uverbs.WC, 8)
	next := uint64(0)
	for i := range 20000 {
		if n, err := live.PostSend([]uverbs.SendWR{{WRID: uint64(i), Opcode: uverbs.WRSend}}); n != 1 {
			t.Fatal(err)
		}
		c.put(0, c.cqe(0, live, prm.CQEReq, prm.OpcodeSend, uint16(i)))
		n, err := c.Poll(wcs)
		if n != 1 || err != nil || wcs[0].WRID != next {
			t.Fatalf("%d, %v, %+v", n, err, wcs[0])
		}
		next++
	}
	close(stop)
	closer.Wait()
	live.Close()
	c.Poll(wcs)
	for i := range uint32(64) {
		if r.drv.qps.lookup(i) != nil {
			t.Errorf("key %d is not free", i)
		}
	}
}
