package rxe

import (
	"errors"
	"syscall"
	"testing"

	"github.com/rrppcc-go/rrppcc/uverbs"
)

func TestDeviceSRQ(t *testing.T) {
	a, b := devices(t)
	attr := &uverbs.SRQInitAttr{SRQAttr: uverbs.SRQAttr{MaxWR: 10, MaxSGE: 2}}
	srq := must(b.pd.CreateSRQ(attr))(t)
	t.Cleanup(func() { check(t, srq.Close()) }) // after its QPs
	t.Logf("created %+v", attr)
	share := func(i *uverbs.QPInitAttr) {
		if i.SendCQ == b.cq {
			i.SRQ = srq
		}
	}
	q1, r1 := rcPair(a, b, share, usual)
	q2, _ := rcPair(a, b, share, usual)
	if n, err := r1.PostRecv([]uverbs.RecvWR{{}}); n != 0 || !errors.Is(err, uverbs.ErrQPUsesSRQ) {
		t.Errorf("PostRecv on the QP: %d, %v", n, err)
	}
	if err := srq.Close(); err == nil {
		t.Error("closed under its QPs")
	} else {
		t.Logf("close in use: %v", err)
	}
	depth := int(attr.MaxWR)
	post := func(from, to int) {
		for i := from; i < to; i++ {
			b.recv(srq, uverbs.RecvWR{WRID: uint64(i), SGList: []uverbs.SGE{b.mr.SGE(i*100, 30), b.mr.SGE(i*100+50, 30)}})
		}
	}
	post(0, depth)
	if n, err := srq.PostRecv([]uverbs.RecvWR{{}}); n != 0 || !errors.Is(err, uverbs.ErrQueueFull) {
		t.Errorf("post to a full queue: %d, %v", n, err)
	}
	check(t, srq.Modify(&uverbs.SRQAttr{Limit: 5}, uverbs.SRQLimit))
	if got := must(srq.Query())(t); got.Limit != 5 || int(got.MaxWR) != depth || got.MaxSGE != 2 {
		t.Errorf("query: %+v", got)
	}
	fill(a.mem[:60], 1)
	for i := range depth {
		q := q1
		if i%2 == 1 {
			q = q2
		}
		a.send(q, uverbs.SendWR{WRID: 100, Opcode: uverbs.WRSend, Flags: sig, SGList: []uverbs.SGE{a.mr.SGE(0, 60)}})
		a.want(100, uverbs.WCSuccess, uverbs.WCSend)
		b.want(uint64(i), uverbs.WCSuccess, uverbs.WCRecv)
		same(t, "first piece", b.mem[i*100:][:30], a.mem[:30])
		same(t, "second piece", b.mem[i*100+50:][:30], a.mem[30:60])
	}
	if ev := b.event(uverbs.EventSRQLimitReached); ev.SRQ != srq {
		t.Errorf("event %+v", ev)
	}
	if got := must(srq.Query())(t); got.Limit != 0 {
		t.Errorf("after the event: %+v", got)
	}

	// Another size keeps what is posted.
	post(0, 3)
	if err := srq.Modify(&uverbs.SRQAttr{MaxWR: 2}, uverbs.SRQMaxWR); !errors.Is(err, syscall.EINVAL) {
		t.Errorf("3 receives in 2: %v", err)
	}
	if err := srq.Modify(&uverbs.SRQAttr{MaxWR: 100}, uverbs.SRQMaxWR); err != nil {
		t.Logf("resize: %v", err)
	} else {
		got := must(srq.Query())(t)
		t.Logf("resized: %+v", got)
		post(3, int(got.MaxWR))
		for i := range int(got.MaxWR) {
			a.send(q1, uverbs.SendWR{WRID: 100, Opcode: uverbs.WRSend, Flags: sig, SGList: []uverbs.SGE{a.mr.SGE(0, 60)}})
			a.want(100, uverbs.WCSuccess, uverbs.WCSend)
			b.want(uint64(i), uverbs.WCSuccess, uverbs.WCRecv)
		}
	}
	if err := srq.Modify(&uverbs.SRQAttr{Limit: 1 << 30}, uverbs.SRQLimit); err == nil {
		t.Error("an absurd limit is accepted")
	}
}

func TestDeviceResizeCQ(t *testing.T) {
	a, b := devices(t)
	cq := must(b.ctx.CreateCQ(&uverbs.CQInitAttr{Depth: 10}))(t)
	t.Cleanup(func() { check(t, cq.Close()) }) // after its QP
	qa, qb := rcPair(a, b, func(i *uverbs.QPInitAttr) {
		if i.RecvCQ == b.cq {
			i.RecvCQ = cq
		}
	}, usual)
	wc := make([]uverbs.WC, 50)
	id := uint64(0)
	fire := func(n int) {
		for range n {
			b.recv(qb, uverbs.RecvWR{WRID: id})
			a.send(qa, uverbs.SendWR{WRID: id, Opcode: uverbs.WRSend, Flags: sig})
			a.want(id, uverbs.WCSuccess, uverbs.WCSend)
			id++
		}
	}
	next := uint64(0)
	drain := func(n int) {
		t.Helper()
		for n > 0 {
			k, err := cq.Poll(wc[:min(n, len(wc))])
			if k == 0 || err != nil {
				t.Fatalf("%d, %v; %d missing", k, err, n)
			}
			for _, c := range wc[:k] {
				if c.WRID != next {
					t.Fatalf("completion %d, want %d", c.WRID, next)
				}
				next++
			}
			n -= k
		}
	}
	before := cq.Depth()
	fire(9)
	drain(4)
	for _, depth := range []int{100, 20, 40} {
		if err := cq.Resize(depth); err != nil {
			t.Fatal(err)
		}
		if cq.Depth() < depth {
			t.Errorf("depth %d, asked %d", cq.Depth(), depth)
		}
		fire(12)
		drain(12)
	}
	drain(5)
	fire(10)
	if err := cq.Resize(3); err == nil {
		t.Error("10 completions fit in 3")
	} else {
		t.Logf("too small: %v", err)
	}
	drain(10)
	t.Logf("depth %d, then %d", before, cq.Depth())
}

func TestDeviceQueueFull(t *testing.T) {
	a, b := devices(t)
	qa, qb := rcPair(a, b, nil, usual)
	t.Logf("capacities %+v", qa.Cap())
	sends := make([]uverbs.SendWR, qa.Cap().MaxSendWR+5)
	for i := range sends {
		sends[i] = uverbs.SendWR{WRID: uint64(i), Opcode: uverbs.WRSend, Flags: sig}
	}
	n, err := qa.PostSend(sends) // nobody receives: RNR keeps them in the ring
	if n != int(qa.Cap().MaxSendWR) || !errors.Is(err, uverbs.ErrQueueFull) {
		t.Errorf("%d of %d, %v", n, qa.Cap().MaxSendWR, err)
	}
	recvs := make([]uverbs.RecvWR, qb.Cap().MaxRecvWR+5)
	m, err := qb.PostRecv(recvs)
	if m != int(qb.Cap().MaxRecvWR) || !errors.Is(err, uverbs.ErrQueueFull) {
		t.Errorf("%d of %d, %v", m, qb.Cap().MaxRecvWR, err)
	}
	for i := range min(m, n) {
		a.want(uint64(i), uverbs.WCSuccess, uverbs.WCSend)
		b.want(0, uverbs.WCSuccess, uverbs.WCRecv)
	}
}

func TestDeviceResetAndReuse(t *testing.T) {
	a, b := devices(t)
	qa, qb := rcPair(a, b, nil, usual)
	for _, how := range []string{"from RTS", "by way of ERR"} {
		t.Run(how, func(t *testing.T) {
			// Left behind: receives, sends that wait for a receiver, completions.
			b.recv(qb, uverbs.RecvWR{WRID: 1}, uverbs.RecvWR{WRID: 2})
			a.send(qa, uverbs.SendWR{WRID: 3, Opcode: uverbs.WRSend, Flags: sig}, uverbs.SendWR{WRID: 3, Opcode: uverbs.WRSend, Flags: sig})
			b.want(1, uverbs.WCSuccess, uverbs.WCRecv) // the second stays in the CQ
			a.recv(qa, uverbs.RecvWR{WRID: 4}, uverbs.RecvWR{WRID: 4}, uverbs.RecvWR{WRID: 4})
			a.send(qa, uverbs.SendWR{WRID: 5, Opcode: uverbs.WRSend, Flags: sig}, uverbs.SendWR{WRID: 5, Opcode: uverbs.WRSend, Flags: sig})
			for _, q := range []*uverbs.QP{qa, qb} {
				if how != "from RTS" {
					a.modify(q, uverbs.QPAttr{State: uverbs.QPStateErr}, 0)
				}
				a.modify(q, uverbs.QPAttr{State: uverbs.QPStateReset}, 0)
			}
			if n, err := qa.PostSend([]uverbs.SendWR{{Opcode: uverbs.WRSend}}); n != 0 || !errors.Is(err, uverbs.ErrQPState) {
				t.Errorf("post in RESET: %d, %v", n, err)
			}
			a.rcUp(qa, b, qb, usual)
			b.rcUp(qb, a, qa, usual)
			for i := range uint64(100) {
				fill(a.mem[:100], byte(i))
				b.recv(qb, uverbs.RecvWR{WRID: 10 + i, SGList: []uverbs.SGE{b.mr.SGE(0, 100)}})
				a.send(qa, uverbs.SendWR{WRID: 10 + i, Opcode: uverbs.WRSend, Flags: sig, SGList: []uverbs.SGE{a.mr.SGE(0, 100)}})
				a.want(10+i, uverbs.WCSuccess, uverbs.WCSend)
				b.want(10+i, uverbs.WCSuccess, uverbs.WCRecv)
				same(t, "after reset", b.mem[:100], a.mem[:100])
			}
		})
	}
}

func TestDeviceSQD(t *testing.T) {
	a, b := devices(t)
	qa, qb := rcPair(a, b, nil, usual)
	b.recv(qb, uverbs.RecvWR{WRID: 1}, uverbs.RecvWR{WRID: 2})
	a.send(qa, uverbs.SendWR{WRID: 1, Opcode: uverbs.WRSend, Flags: sig})
	a.want(1, uverbs.WCSuccess, uverbs.WCSend)
	a.modify(qa, uverbs.QPAttr{State: uverbs.QPStateSQD, SQDAsyncNotify: true}, uverbs.AttrSQDAsyncNotify)
	if ev := a.event(uverbs.EventSQDrained); ev.QP != qa {
		t.Errorf("event %+v", ev)
	}
	attr := must(qa.Query())(t)
	if attr.State != uverbs.QPStateSQD || attr.SQDraining {
		t.Errorf("in SQD: %+v", attr)
	}
	a.send(qa, uverbs.SendWR{WRID: 2, Opcode: uverbs.WRSend, Flags: sig}) // waits for RTS
	if wc, ok := a.nextWithin(patience / 100); ok {
		t.Errorf("executed in SQD: %+v", wc)
	}
	a.modify(qa, uverbs.QPAttr{State: uverbs.QPStateRTS}, 0)
	if wc, ok := a.nextWithin(patience / 20); ok {
		if wc.WRID != 2 || wc.Status != uverbs.WCSuccess {
			t.Errorf("after SQD: %+v", wc)
		}
	} else {
		t.Log("a send posted in SQD waits for the next doorbell")
		b.recv(qb, uverbs.RecvWR{WRID: 3})
		a.send(qa, uverbs.SendWR{WRID: 3, Opcode: uverbs.WRSend, Flags: sig})
		a.want(2, uverbs.WCSuccess, uverbs.WCSend)
		a.want(3, uverbs.WCSuccess, uverbs.WCSend)
	}
}

func TestDeviceThousandObjects(t *testing.T) {
	a, _ := devices(t)
	for range 50 {
		var qps []*uverbs.QP
		for range 20 {
			cq := must(a.ctx.CreateCQ(&uverbs.CQInitAttr{Depth: 1}))(t)
			qp := must(a.pd.CreateQP(&uverbs.QPInitAttr{Type: uverbs.QPTypeUD, SendCQ: cq, RecvCQ: cq, Cap: uverbs.QPCap{MaxSendWR: 1, MaxSendSGE: 1}}))(t)
			qps = append(qps, qp)
			t.Cleanup(func() { check(t, cq.Close()) })
		}
		for _, qp := range qps {
			check(t, qp.Close())
		}
	}
}
