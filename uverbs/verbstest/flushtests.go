package verbstest

import (
	"fmt"

	"github.com/rrppcc-go/rrppcc/uverbs"
)

// flushTests: what becomes of posted work when a QP goes to ERR or RESET.
var flushTests = []test{
	{name: "ErrFlushesBothQueuesInOrder", run: func(e *env) {
		a, z := e.connect(shape{}, rc{minRNR: 14}) // z has no receive: nothing leaves
		src, dst := a.mr(8, 0), a.mr(8, localOnly)
		for i := range uint64(5) {
			a.recv(10+i, dst.SGE(0, 8))
			wr := uverbs.SendWR{WRID: 20 + i, Opcode: uverbs.WRSend, SGList: []uverbs.SGE{src.SGE(0, 8)}}
			if i == 3 {
				wr.Flags = uverbs.SendSignaled // the others are flushed all the same
			}
			a.send(wr)
		}
		a.modify(uverbs.QPStateErr)
		a.flushed(a.recvCQ, 10, 11, 12, 13, 14)
		a.flushed(a.sendCQ, 20, 21, 22, 23, 24)
		z.state(uverbs.QPStateRTS)
		z.idle(z.recvCQ)
	}},
	{name: "UDErrFlushesItsReceives", run: func(e *env) {
		a, z, wr := e.datagrams(shape{})
		src, dst := a.mr(8, 0), z.mr(48, localOnly)
		for i := range uint64(5) {
			z.recv(i, dst.SGE(0, 48))
		}
		z.modify(uverbs.QPStateErr)
		z.flushed(z.recvCQ, 0, 1, 2, 3, 4)
		wr.SGList = []uverbs.SGE{src.SGE(0, 8)}
		a.send(wr) // nobody cares
		a.sent(0, uverbs.WCSend)
	}},
	{name: "SendPostedInErrIsFlushed", run: func(e *env) {
		a, _ := e.connect(shape{}, rc{})
		a.modify(uverbs.QPStateErr)
		for i := range uint64(40) { // more than the queue holds at once
			a.send(uverbs.SendWR{WRID: i, Opcode: uverbs.WRSend})
			e.until(fmt.Sprintf("flush of send %d", i), func() bool {
				wcs := a.take(a.sendCQ)
				if len(wcs) > 1 || len(wcs) == 1 && (wcs[0].WRID != i || wcs[0].Status != uverbs.WCWRFlushErr) {
					e.Fatalf("%+v, want work request %d flushed", wcs, i)
				}
				return len(wcs) == 1
			})
		}
	}},
	{name: "ReceivePostedInErr", run: func(e *env) {
		_, z := e.connect(shape{}, rc{})
		other, peer := e.connect(shape{}, rc{})
		dst := z.mr(8, localOnly)
		z.recv(0, dst.SGE(0, 8))
		z.modify(uverbs.QPStateErr)
		z.flushed(z.recvCQ, 0)
		works(other, peer) // shows that time goes by, in which a device may come to rest
		z.recv(1, dst.SGE(0, 8))
		want := e.expects(RuleRecvAfterErr)
		if want == status(uverbs.WCWRFlushErr) {
			e.rule(RuleRecvAfterErr, z.failed(z.recvCQ, 1))
			return
		}
		works(other, peer)
		if got := z.take(z.recvCQ); len(got) > 0 {
			e.rule(RuleRecvAfterErr, status(got[0].Status))
			return
		}
		z.modify(uverbs.QPStateErr)
		z.flushed(z.recvCQ, 1)
		e.rule(RuleRecvAfterErr, want)
	}},
	{name: "ResetEmptiesTheQueues", run: func(e *env) {
		a, z := e.connect(shape{}, rc{minRNR: 14})
		dst := a.mr(8, localOnly)
		for i := range uint64(4) {
			a.recv(i, dst.SGE(0, 8))
			a.send(uverbs.SendWR{WRID: i, Opcode: uverbs.WRSend, Flags: uverbs.SendSignaled})
		}
		a.modify(uverbs.QPStateReset)
		z.modify(uverbs.QPStateReset)
		a.idle(a.sendCQ)
		a.idle(a.recvCQ)
		a.up(z, rc{})
		z.up(a, rc{})
		works(a, z) // with receives of its own, in front of no others
	}},
	{name: "ResetTakesCompletionsAlong", run: func(e *env) {
		a, z := e.connect(shape{}, rc{})
		dst := z.mr(8, localOnly)
		for i := range uint64(4) {
			z.recv(i, dst.SGE(0, 8))
			a.send(uverbs.SendWR{WRID: i, Opcode: uverbs.WRSend, Flags: uverbs.SendSignaled})
		}
		// A READ behind them completes when they have.
		z.send(uverbs.SendWR{WRID: 9, Opcode: uverbs.WRRDMARead, Flags: uverbs.SendSignaled})
		z.sent(9, uverbs.WCRDMARead)
		a.modify(uverbs.QPStateErr)
		z.modify(uverbs.QPStateErr)
		a.modify(uverbs.QPStateReset)
		z.modify(uverbs.QPStateReset)
		a.idle(a.sendCQ)
		z.idle(z.recvCQ)
		a.up(z, rc{})
		z.up(a, rc{})
		works(a, z)
	}},
	{name: "QPWorksAgainAndAgainAfterReset", run: func(e *env) {
		a, z := e.connect(shape{wrs: 16}, rc{})
		src, dst := a.mr(3000, 0), z.mr(3000, remoteRW)
		for round := range scaled(60, 8) {
			for range round % 7 { // other places in the rings
				works(a, z)
			}
			switch round % 3 {
			case 0:
				a.send(uverbs.SendWR{WRID: 1, Opcode: uverbs.WRRDMAWrite, SGList: []uverbs.SGE{src.SGE(0, 3000)}, RemoteAddr: dst.Addr() + 1, RKey: dst.RKey()})
				a.failed(a.sendCQ, 1)
			case 1:
				z.recv(3, dst.SGE(0, 10))
				z.modify(uverbs.QPStateErr)
				z.flushed(z.recvCQ, 3)
			}
			renew(a, z, rc{})
		}
		works(a, z)
	}},
	{name: "ClosedQPLeavesItsCQUsable", run: func(e *env) {
		a, z := e.connect(shape{}, rc{})
		second, _ := e.connect(shape{}, rc{})
		dst := z.mr(8, localOnly)
		for i := range uint64(4) {
			z.recv(i, dst.SGE(0, 8))
			a.send(uverbs.SendWR{WRID: i, Opcode: uverbs.WRSend, Flags: uverbs.SendSignaled})
		}
		a.wait(a.sendCQ, 4)
		a.send(uverbs.SendWR{WRID: 5, Opcode: uverbs.WRSend}) // waits for a receive
		e.must(a.qp.Close())
		e.must(z.qp.Close())
		// The CQs serve new QPs. What old ones left is gone, or comes first.
		na, nz := &end{host: a.host, prot: a.prot, sendCQ: a.sendCQ, recvCQ: a.recvCQ}, &end{host: z.host, prot: z.prot, sendCQ: z.sendCQ, recvCQ: z.recvCQ}
		for _, d := range []*end{na, nz} {
			d.qp = d.host.qp(d.prot, uverbs.QPInitAttr{Type: uverbs.QPTypeRC, SendCQ: d.sendCQ, RecvCQ: d.recvCQ, Cap: second.qp.Cap()})
		}
		for _, wc := range nz.take(nz.recvCQ) {
			if wc.QPN == nz.qp.QPN() {
				e.Errorf("a completion of the new QP before it worked: %+v", wc)
			}
		}
		na.take(na.sendCQ)
		na.up(nz, rc{})
		nz.up(na, rc{})
		works(na, nz)
		if n, err := z.qp.PostRecv([]uverbs.RecvWR{{}}); n != 0 || err == nil {
			e.Errorf("posted %d to a closed QP, %v", n, err)
		}
		if n, err := a.qp.PostSend([]uverbs.SendWR{{Opcode: uverbs.WRSend}}); n != 0 || err == nil {
			e.Errorf("posted %d to a closed QP, %v", n, err)
		}
	}},
	{name: "DrainedQPGoesOn", needs: []Capability{Drain}, run: func(e *env) {
		a, z := e.connect(shape{}, rc{})
		works(a, z)
		src, dst := a.mr(8, 0), z.mr(8, remoteRW)
		fill(src.Bytes(), 1)
		a.modify(uverbs.QPStateSQD)
		e.until("SQD, drained", func() bool {
			q := a.query()
			return q.State == uverbs.QPStateSQD && !q.SQDraining
		})
		z.recv(4, dst.SGE(0, 8))
		a.send(uverbs.SendWR{WRID: 3, Opcode: uverbs.WRSend, Flags: uverbs.SendSignaled, SGList: []uverbs.SGE{src.SGE(0, 8)}})
		z.idle(z.recvCQ)
		e.must(a.qp.Modify(&uverbs.QPAttr{State: uverbs.QPStateRTS, CurState: uverbs.QPStateSQD}, uverbs.AttrState|uverbs.AttrCurState))
		a.send(uverbs.SendWR{WRID: 5, Opcode: uverbs.WRRDMARead, Flags: uverbs.SendSignaled}) // its doorbell sends both
		for i, wc := range a.wait(a.sendCQ, 2) {
			if wc.Status != uverbs.WCSuccess || wc.WRID != uint64(3+2*i) {
				e.Errorf("completion %d: %+v", i, wc)
			}
		}
		z.received(4, uverbs.WCRecv, 8)
		e.same(dst.Bytes(), src.Bytes())
	}},
}

// Answers to RuleRecvAfterErr.
const flushedByState = "flushed when the QP is moved to ERR once more"
