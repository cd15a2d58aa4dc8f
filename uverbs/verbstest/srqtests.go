package verbstest

import (
	"syscall"

	"github.com/rrppcc-go/rrppcc/uverbs"
)

// srq makes a shared receive queue that is closed with the test.
func (h *host) srq(pd *uverbs.PD, wrs uint32) *uverbs.SRQ {
	h.e.Helper()
	s, err := pd.CreateSRQ(&uverbs.SRQInitAttr{SRQAttr: uverbs.SRQAttr{MaxWR: wrs, MaxSGE: 2}})
	h.e.must(err)
	h.e.closeLater(s)
	return s
}

// shared makes n connected pairs, of which the z sides are of one PD and
// receive from one SRQ into one CQ.
func (e *env) shared(n int, wrs uint32) (as, zs []*end, srq *uverbs.SRQ) {
	e.Helper()
	pd := e.z.pd()
	srq = e.z.srq(pd, wrs)
	cq := e.z.cq(256, nil)
	for range n {
		a := e.a.end(shape{})
		z := &end{host: e.z, prot: pd, sendCQ: e.z.cq(32, nil), recvCQ: cq}
		z.qp = e.z.qp(pd, uverbs.QPInitAttr{Type: uverbs.QPTypeRC, SendCQ: z.sendCQ, RecvCQ: cq, SRQ: srq, Cap: uverbs.QPCap{MaxSendWR: 16, MaxSendSGE: 1}})
		a.up(z, rc{minRNR: 10})
		z.up(a, rc{})
		as, zs = append(as, a), append(zs, z)
	}
	return as, zs, srq
}

func (e *env) post(srq *uverbs.SRQ, wrs ...uverbs.RecvWR) {
	e.Helper()
	n, err := srq.PostRecv(wrs)
	e.must(err)
	if n != len(wrs) {
		e.Fatalf("%d of %d receives posted, without an error", n, len(wrs))
	}
}

var srqTests = []test{
	{name: "SRQServesItsQPs", needs: []Capability{SRQ}, run: func(e *env) {
		as, zs, srq := e.shared(3, 32)
		src, dst := make([]*uverbs.MR, len(as)), e.mr(zs[0].prot, 64*16, localOnly)
		for i, a := range as {
			src[i] = a.mr(100, 0)
			fill(src[i].Bytes(), byte(30*i))
		}
		for round := range scaled(30, 4) { // several laps
			for k := range 15 {
				e.post(srq, uverbs.RecvWR{WRID: uint64(k), SGList: []uverbs.SGE{dst.SGE(64*k, 10), dst.SGE(64*k+10, 54)}})
			}
			for k := range 15 {
				as[k%3].send(uverbs.SendWR{WRID: uint64(k), Opcode: uverbs.WRSendWithImm, ImmData: uint32(k / 3), Flags: uverbs.SendSignaled, SGList: []uverbs.SGE{src[k%3].SGE(k, 40)}})
			}
			for _, a := range as {
				for _, wc := range a.wait(a.sendCQ, 5) {
					if wc.Status != uverbs.WCSuccess {
						e.Fatalf("%+v", wc)
					}
				}
			}
			next := map[uint32]uint32{}
			for _, wc := range zs[0].wait(zs[0].recvCQ, 15) {
				if wc.Status != uverbs.WCSuccess || wc.ByteLen != 40 || wc.ImmData != next[wc.QPN] {
					e.Fatalf("round %d: %+v, want message %d of its QP", round, wc, next[wc.QPN])
				}
				for i, z := range zs {
					if z.qp.QPN() == wc.QPN {
						at := i + 3*int(wc.ImmData)
						e.same(dst.Bytes()[64*wc.WRID:64*wc.WRID+40], src[i].Bytes()[at:at+40])
					}
				}
				next[wc.QPN]++
			}
			if len(next) != 3 {
				e.Fatalf("completions of %d QPs, want 3", len(next))
			}
		}
	}},
	{name: "SRQLimitRaisesOneEvent", needs: []Capability{SRQ}, run: func(e *env) {
		as, zs, srq := e.shared(1, 32)
		a, z := as[0], zs[0]
		for i := range uint64(10) {
			e.post(srq, uverbs.RecvWR{WRID: i})
		}
		e.must(srq.Modify(&uverbs.SRQAttr{Limit: 5}, uverbs.SRQLimit))
		if got, err := srq.Query(); err != nil || got.Limit != 5 || got.MaxWR < 32 || got.MaxSGE < 2 {
			e.Errorf("Query: %+v, %v", got, err)
		}
		for i := range uint64(6) {
			a.send(uverbs.SendWR{WRID: i, Opcode: uverbs.WRSend, Flags: uverbs.SendSignaled})
			a.sent(i, uverbs.WCSend)
			z.received(i, uverbs.WCRecv, 0)
			if i == 4 { // 5 are left: not fewer
				if got := e.noEvent(e.z); got != noEvent {
					e.Fatalf("event %s at the limit", got)
				}
			}
		}
		if ev := e.async(e.z); ev.Type != uverbs.EventSRQLimitReached || ev.SRQ != srq {
			e.Errorf("event %v of %v, want the SRQ's limit", ev.Type, ev.SRQ)
		}
		a.send(uverbs.SendWR{WRID: 6, Opcode: uverbs.WRSend, Flags: uverbs.SendSignaled})
		a.sent(6, uverbs.WCSend)
		z.received(6, uverbs.WCRecv, 0)
		if got := e.noEvent(e.z); got != noEvent {
			e.Errorf("one more event: %s", got)
		}
		if got, err := srq.Query(); err != nil || got.Limit != 0 {
			e.Errorf("Query after the event: %+v, %v", got, err)
		}
	}},
	{name: "EmptySRQMakesSendersWait", needs: []Capability{SRQ}, run: func(e *env) {
		as, zs, srq := e.shared(1, 8)
		as[0].send(uverbs.SendWR{WRID: 1, Opcode: uverbs.WRSend, Flags: uverbs.SendSignaled})
		as[0].idle(as[0].sendCQ)
		e.post(srq, uverbs.RecvWR{WRID: 2})
		as[0].sent(1, uverbs.WCSend)
		zs[0].received(2, uverbs.WCRecv, 0)
	}},
	{name: "FullSRQRefuses", needs: []Capability{SRQ}, run: func(e *env) {
		as, zs, srq := e.shared(1, 8)
		wrs := make([]uverbs.RecvWR, 64)
		for i := range wrs {
			wrs[i].WRID = uint64(i)
		}
		n, err := srq.PostRecv(wrs)
		e.fails("more than it holds", err, uverbs.ErrQueueFull)
		if n < 8 {
			e.Errorf("%d posted, want 8 at least", n)
		}
		_, err = srq.PostRecv([]uverbs.RecvWR{{SGList: make([]uverbs.SGE, 1000)}})
		if err == nil {
			e.Error("1000 pieces were accepted")
		}
		for i := range uint64(n) {
			as[0].send(uverbs.SendWR{WRID: i, Opcode: uverbs.WRSend, Flags: uverbs.SendSignaled})
			as[0].sent(i, uverbs.WCSend)
			zs[0].received(i, uverbs.WCRecv, 0)
		}
		e.post(srq, uverbs.RecvWR{})
	}},
	{name: "QPWithAnSRQHasNoReceiveQueue", needs: []Capability{SRQ}, run: func(e *env) {
		_, zs, srq := e.shared(1, 8)
		_, err := zs[0].qp.PostRecv([]uverbs.RecvWR{{}})
		e.fails("PostRecv", err, uverbs.ErrQPUsesSRQ)
		e.fails("close the SRQ below its QP", srq.Close(), syscall.EBUSY)
		e.post(srq, uverbs.RecvWR{}) // still usable
		e.must(zs[0].qp.Close())
		e.must(srq.Close())
		e.fails("close it again", srq.Close(), uverbs.ErrClosed)
	}},
	{name: "SRQKeepsItsReceivesWhenAQPFails", needs: []Capability{SRQ}, run: func(e *env) {
		as, zs, srq := e.shared(2, 8)
		e.post(srq, uverbs.RecvWR{WRID: 1}, uverbs.RecvWR{WRID: 2})
		zs[0].modify(uverbs.QPStateErr)
		for i := range uint64(2) {
			as[1].send(uverbs.SendWR{WRID: i, Opcode: uverbs.WRSend, Flags: uverbs.SendSignaled})
			as[1].sent(i, uverbs.WCSend)
			zs[1].received(i+1, uverbs.WCRecv, 0)
		}
	}},
}
