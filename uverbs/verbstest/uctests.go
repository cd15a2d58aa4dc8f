package verbstest

import (
	"errors"

	"github.com/rrppcc-go/rrppcc/uverbs"
)

const (
	ucRTR = uverbs.AttrState | uverbs.AttrAV | uverbs.AttrPathMTU | uverbs.AttrDestQPN | uverbs.AttrRQPSN
	ucRTS = uverbs.AttrState | uverbs.AttrSQPSN
)

// connectUC makes and connects two UC ends.
func (e *env) connectUC(s shape, c rc) (a, z *end) {
	e.Helper()
	s.typ = uverbs.QPTypeUC
	return e.connect(s, c)
}

// ucTests: unreliable connections have RC's SENDs and WRITEs, and nobody tells
// the sender what became of them. Packets between two QPs that nobody disturbs
// keep their order and arrive, here as on any wire that is not full.
var ucTests = []test{
	{name: "UCMovesEverySize", needs: []Capability{UC}, run: func(e *env) {
		a, z := e.connectUC(shape{}, rc{})
		const most = 20000
		src, dst, far := a.mr(most, 0), z.mr(most, localOnly), z.mr(most, remoteRW)
		for i, n := range []int{0, 1, 3, 1023, 1024, 1025, 2048, 3000, most} {
			fill(src.Bytes(), byte(i))
			clear(dst.Bytes())
			clear(far.Bytes())
			wr := uverbs.SendWR{Flags: uverbs.SendSignaled, SGList: []uverbs.SGE{src.SGE(0, n)}, RemoteAddr: far.Addr(), RKey: far.RKey(), ImmData: 0x0a0b0c00 + uint32(i)}
			write, with, send := wr, wr, wr
			write.WRID, write.Opcode = 1, uverbs.WRRDMAWrite
			with.WRID, with.Opcode = 2, uverbs.WRRDMAWriteWithImm
			send.WRID, send.Opcode = 3, uverbs.WRSend
			wr.WRID, wr.Opcode = 4, uverbs.WRSendWithImm
			z.recv(12)
			z.recv(13, dst.SGE(0, most))
			z.recv(14, dst.SGE(0, most))
			a.send(write)
			a.sent(1, uverbs.WCRDMAWrite)
			a.send(with)
			a.sent(2, uverbs.WCRDMAWrite)
			if wc := z.received(12, uverbs.WCRecvRDMAWithImm, n); wc.Flags&uverbs.WCWithImm == 0 || wc.ImmData != wr.ImmData {
				e.Errorf("%d bytes: immediate %#x, want %#x", n, wc.ImmData, wr.ImmData)
			}
			e.same(far.Bytes()[:n], src.Bytes()[:n])
			e.is(far.Bytes()[n:], 0)
			a.send(send)
			a.sent(3, uverbs.WCSend)
			if wc := z.received(13, uverbs.WCRecv, n); wc.Flags&uverbs.WCWithImm != 0 {
				e.Errorf("%d bytes: an immediate that nobody sent", n)
			}
			e.same(dst.Bytes()[:n], src.Bytes()[:n])
			e.is(dst.Bytes()[n:], 0)
			a.send(wr)
			a.sent(4, uverbs.WCSend)
			if wc := z.received(14, uverbs.WCRecv, n); wc.Flags&uverbs.WCWithImm == 0 || wc.ImmData != wr.ImmData {
				e.Errorf("%d bytes: immediate %#x, want %#x", n, wc.ImmData, wr.ImmData)
			}
		}
	}},
	{name: "UCGathersScattersAndInlines", needs: []Capability{UC}, run: func(e *env) {
		a, z := e.connectUC(shape{}, rc{})
		src, dst := a.mr(5000, 0), z.mr(5000, localOnly)
		fill(src.Bytes(), 1)
		z.recv(2, dst.SGE(4000, 7), dst.SGE(100, 1500), dst.SGE(2000, 1900))
		a.send(uverbs.SendWR{WRID: 1, Opcode: uverbs.WRSend, Flags: uverbs.SendSignaled, SGList: []uverbs.SGE{src.SGE(3, 1100), src.SGE(4000, 900), src.SGE(2000, 5)}})
		a.sent(1, uverbs.WCSend)
		z.received(2, uverbs.WCRecv, 2005)
		want := append(append(append([]byte(nil), src.Bytes()[3:1103]...), src.Bytes()[4000:4900]...), src.Bytes()[2000:2005]...)
		e.same(dst.Bytes()[4000:4007], want[:7])
		e.same(dst.Bytes()[100:1600], want[7:1507])
		e.same(dst.Bytes()[2000:2498], want[1507:])
		z.recv(4, dst.SGE(0, 64))
		a.send(uverbs.SendWR{WRID: 3, Opcode: uverbs.WRSend, Flags: uverbs.SendSignaled | uverbs.SendInline, SGList: []uverbs.SGE{src.SGE(7, 60)}})
		a.sent(3, uverbs.WCSend)
		z.received(4, uverbs.WCRecv, 60)
		e.same(dst.Bytes()[:60], src.Bytes()[7:67])
	}},
	{name: "UCHasNoReadsNorAtomics", needs: []Capability{UC}, run: func(e *env) {
		a, z := e.connectUC(shape{}, rc{})
		mine, far := a.mr(64, localOnly), z.mr(64, remoteRW|uverbs.AccessRemoteAtomic)
		for _, op := range []uverbs.WROpcode{uverbs.WRRDMARead, uverbs.WRAtomicCmpAndSwp, uverbs.WRAtomicFetchAndAdd} {
			wrs := []uverbs.SendWR{{Opcode: op, Flags: uverbs.SendSignaled, SGList: []uverbs.SGE{mine.SGE(0, 8)}, RemoteAddr: far.Addr(), RKey: far.RKey()}}
			if n, err := a.qp.PostSend(wrs); n != 0 || !errors.Is(err, uverbs.ErrBadOpcode) {
				e.Errorf("%v: %d posted, %v", op, n, err)
			}
		}
		dst := z.mr(8, localOnly)
		z.recv(2, dst.SGE(0, 8))
		a.send(uverbs.SendWR{WRID: 1, Opcode: uverbs.WRSend, Flags: uverbs.SendSignaled, SGList: []uverbs.SGE{mine.SGE(0, 8)}})
		a.sent(1, uverbs.WCSend)
		z.received(2, uverbs.WCRecv, 8)
	}},
	{name: "UCDropsWhatMayNotBeDone", needs: []Capability{UC}, run: func(e *env) {
		a, z := e.connectUC(shape{}, rc{})
		src, dst, far, local := a.mr(3000, 0), z.mr(3000, localOnly), z.mr(2000, remoteRW), z.mr(3000, localOnly)
		mark := z.mr(1, remoteRW)
		fill(src.Bytes(), 1)
		sges := []uverbs.SGE{src.SGE(0, 3000)}
		for name, wr := range map[string]uverbs.SendWR{
			"SEND without a receive":        {Opcode: uverbs.WRSend, SGList: sges},
			"WRITE over the end":            {Opcode: uverbs.WRRDMAWrite, SGList: sges, RemoteAddr: far.Addr(), RKey: far.RKey()},
			"WRITE with another key":        {Opcode: uverbs.WRRDMAWrite, SGList: sges[:1], RemoteAddr: far.Addr(), RKey: far.RKey() ^ 1},
			"WRITE to a local region":       {Opcode: uverbs.WRRDMAWrite, SGList: sges, RemoteAddr: local.Addr(), RKey: local.RKey()},
			"WRITE_WITH_IMM with a bad key": {Opcode: uverbs.WRRDMAWriteWithImm, SGList: sges, RemoteAddr: far.Addr(), RKey: far.RKey() ^ 1},
		} {
			wr.WRID, wr.Flags = 1, uverbs.SendSignaled
			if wr.Opcode == uverbs.WRRDMAWriteWithImm {
				z.recv(2, dst.SGE(0, 3000))
			}
			a.send(wr)
			if wc := a.one(a.sendCQ, 1); wc.Status != uverbs.WCSuccess {
				e.Errorf("%s: %v at the sender", name, wc.Status)
			}
			if wr.Opcode != uverbs.WRRDMAWriteWithImm {
				// A WRITE behind it shows that it came too early for the receive.
				mark.Bytes()[0] = 0
				a.send(uverbs.SendWR{WRID: 4, Opcode: uverbs.WRRDMAWrite, Flags: uverbs.SendSignaled, SGList: []uverbs.SGE{src.SGE(1, 1)}, RemoteAddr: mark.Addr(), RKey: mark.RKey()})
				a.sent(4, uverbs.WCRDMAWrite)
				e.until("WRITE", func() bool { return mark.Bytes()[0] == src.Bytes()[1] })
				z.recv(2, dst.SGE(0, 3000))
			}
			a.send(uverbs.SendWR{WRID: 3, Opcode: uverbs.WRSendWithImm, ImmData: 77, Flags: uverbs.SendSignaled, SGList: sges})
			a.sent(3, uverbs.WCSend)
			if wc := z.received(2, uverbs.WCRecv, 3000); wc.ImmData != 77 {
				e.Errorf("%s: it arrived", name)
			}
			z.idle(z.recvCQ)
			e.is(far.Bytes(), 0)
			e.is(local.Bytes(), 0)
		}
		z.state(uverbs.QPStateRTS)
		// The right to write to a QP can be taken away from it.
		write := uverbs.SendWR{WRID: 4, Opcode: uverbs.WRRDMAWrite, Flags: uverbs.SendSignaled, SGList: []uverbs.SGE{src.SGE(0, 1500)}, RemoteAddr: far.Addr(), RKey: far.RKey()}
		e.must(z.qp.Modify(&uverbs.QPAttr{AccessFlags: uverbs.AccessLocalWrite}, uverbs.AttrAccessFlags))
		a.send(write)
		a.sent(4, uverbs.WCRDMAWrite)
		z.recv(2, dst.SGE(0, 3000))
		a.send(uverbs.SendWR{WRID: 5, Opcode: uverbs.WRSend, Flags: uverbs.SendSignaled, SGList: sges})
		a.sent(5, uverbs.WCSend)
		z.received(2, uverbs.WCRecv, 3000)
		e.is(far.Bytes(), 0)
	}},
	{name: "UCSendLongerThanItsReceive", needs: []Capability{UC}, run: func(e *env) {
		a, z := e.connectUC(shape{}, rc{})
		src, dst := a.mr(3000, 0), z.mr(3000, localOnly)
		z.recv(2, dst.SGE(0, 2999))
		a.send(uverbs.SendWR{WRID: 1, Opcode: uverbs.WRSend, Flags: uverbs.SendSignaled, SGList: []uverbs.SGE{src.SGE(0, 3000)}})
		a.sent(1, uverbs.WCSend)
		if e.expects(RuleUCRecvSmall) != dropped {
			e.rule(RuleUCRecvSmall, z.failed(z.recvCQ, 2))
			z.state(uverbs.QPStateErr)
			return
		}
		a.send(uverbs.SendWR{WRID: 3, Opcode: uverbs.WRSendWithImm, ImmData: 5, Flags: uverbs.SendSignaled, SGList: []uverbs.SGE{src.SGE(0, 100)}})
		a.sent(3, uverbs.WCSend)
		got := dropped
		if wc := z.received(2, uverbs.WCRecv, 100); wc.ImmData != 5 {
			got = "received"
		}
		e.rule(RuleUCRecvSmall, got)
	}},
	{name: "UCErrorsOfTheSenderStopItsSends", needs: []Capability{UC}, run: func(e *env) {
		a, z := e.connectUC(shape{}, rc{})
		src, dst := a.mr(100, 0), z.mr(100, localOnly)
		z.recv(9, dst.SGE(0, 100))
		a.send(uverbs.SendWR{WRID: 1, Opcode: uverbs.WRSend, SGList: []uverbs.SGE{{Addr: src.Addr(), Length: 10, LKey: src.LKey() ^ 0x30300}}},
			uverbs.SendWR{WRID: 2, Opcode: uverbs.WRSend, SGList: []uverbs.SGE{src.SGE(0, 10)}})
		wcs := a.wait(a.sendCQ, 2)
		if wcs[0].WRID != 1 || wcs[1].WRID != 2 || wcs[1].Status != uverbs.WCWRFlushErr {
			e.Errorf("%+v", wcs)
		}
		e.rule(RuleBadUDGather, status(wcs[0].Status))
		e.rule(RuleUDErrState, a.query().State.String())
		z.idle(z.recvCQ)
		if a.query().State != uverbs.QPStateSQE {
			return
		}
		e.must(a.qp.Modify(&uverbs.QPAttr{State: uverbs.QPStateRTS, CurState: uverbs.QPStateSQE}, uverbs.AttrState|uverbs.AttrCurState))
		a.send(uverbs.SendWR{WRID: 3, Opcode: uverbs.WRSend, Flags: uverbs.SendSignaled, SGList: []uverbs.SGE{src.SGE(0, 10)}})
		a.sent(3, uverbs.WCSend)
		z.received(9, uverbs.WCRecv, 10)
	}},
	{name: "UCErrFlushesAndResetStartsAnew", needs: []Capability{UC}, run: func(e *env) {
		a, z := e.connectUC(shape{}, rc{})
		src, dst := a.mr(3000, 0), z.mr(3000, localOnly)
		for i := range uint64(4) {
			z.recv(i, dst.SGE(0, 3000))
		}
		z.modify(uverbs.QPStateErr)
		z.flushed(z.recvCQ, 0, 1, 2, 3)
		z.send(uverbs.SendWR{WRID: 9, Opcode: uverbs.WRSend})
		z.flushed(z.sendCQ, 9)
		a.send(uverbs.SendWR{WRID: 1, Opcode: uverbs.WRSend, Flags: uverbs.SendSignaled, SGList: []uverbs.SGE{src.SGE(0, 3000)}})
		a.sent(1, uverbs.WCSend) // nobody cares
		a.modify(uverbs.QPStateReset)
		z.modify(uverbs.QPStateReset)
		a.up(z, rc{mtu: uverbs.MTU256})
		z.up(a, rc{mtu: uverbs.MTU256})
		works(a, z)
		fill(src.Bytes(), 8)
		z.recv(5, dst.SGE(0, 3000))
		a.send(uverbs.SendWR{WRID: 6, Opcode: uverbs.WRSend, Flags: uverbs.SendSignaled, SGList: []uverbs.SGE{src.SGE(0, 3000)}})
		a.sent(6, uverbs.WCSend)
		z.received(5, uverbs.WCRecv, 3000)
		e.same(dst.Bytes(), src.Bytes())
	}},
	{name: "UCWakesAndSolicits", needs: []Capability{UC}, run: func(e *env) {
		a, z := e.connectUC(shape{}, rc{})
		src, dst := a.mr(8, 0), z.mr(8, localOnly)
		z.recv(1, dst.SGE(0, 8))
		e.must(z.recvCQ.Arm(true))
		a.send(uverbs.SendWR{WRID: 2, Opcode: uverbs.WRSend, Flags: uverbs.SendSignaled | uverbs.SendSolicited, SGList: []uverbs.SGE{src.SGE(0, 8)}})
		cq, err := z.recvCh.Wait(e.soon())
		e.must(err)
		if cq != z.recvCQ {
			e.Error("an event of another CQ")
		}
		a.sent(2, uverbs.WCSend)
		z.received(1, uverbs.WCRecv, 8)
	}},
}
