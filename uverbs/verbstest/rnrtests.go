package verbstest

import "github.com/rrppcc-go/rrppcc/uverbs"

// rnrTests: a receiver that is not ready, and one that is not there.
var rnrTests = []test{
	{name: "SendWithoutReceiveFailsAfterItsRetries", run: func(e *env) {
		for _, retries := range []uint8{noRetry, 1, 3} {
			for _, op := range []uverbs.WROpcode{uverbs.WRSend, uverbs.WRRDMAWriteWithImm} {
				a, z := e.connect(shape{}, rc{rnr: retries, minRNR: 10})
				src, dst := a.mr(8, 0), z.mr(8, remoteRW)
				a.send(uverbs.SendWR{WRID: 1, Opcode: op, SGList: []uverbs.SGE{src.SGE(0, 8)}, RemoteAddr: dst.Addr(), RKey: dst.RKey()},
					uverbs.SendWR{WRID: 2, Opcode: op, SGList: []uverbs.SGE{src.SGE(0, 8)}, RemoteAddr: dst.Addr(), RKey: dst.RKey()})
				wcs := a.wait(a.sendCQ, 2)
				if wcs[0].WRID != 1 || wcs[0].Status != uverbs.WCRNRRetryExcErr {
					e.Errorf("%v, %d retries: work request %d: %v, want 1: RNR retry exceeded", op, orDefault(retries, 0), wcs[0].WRID, wcs[0].Status)
				}
				if wcs[1].WRID != 2 || wcs[1].Status != uverbs.WCWRFlushErr {
					e.Errorf("the one behind it: work request %d: %v, want 2 flushed", wcs[1].WRID, wcs[1].Status)
				}
				a.state(uverbs.QPStateErr)
				z.state(uverbs.QPStateRTS) // not its fault
			}
		}
	}},
	{name: "SendWaitsForEverForAReceive", run: func(e *env) {
		a, z := e.connect(shape{}, rc{rnr: 7, minRNR: 14})
		src, dst := a.mr(8, 0), z.mr(8, localOnly)
		fill(src.Bytes(), 1)
		a.send(uverbs.SendWR{WRID: 1, Opcode: uverbs.WRSend, Flags: uverbs.SendSignaled, SGList: []uverbs.SGE{src.SGE(0, 8)}})
		// Seven retries would be over soon. Other QPs, which give up after six,
		// one after the other, show that time went by.
		for range 3 {
			clock, _ := e.connect(shape{}, rc{rnr: 6, minRNR: 14})
			clock.send(uverbs.SendWR{WRID: 9, Opcode: uverbs.WRSend})
			if got := clock.failed(clock.sendCQ, 9); got != status(uverbs.WCRNRRetryExcErr) {
				e.Fatalf("the clock: %s", got)
			}
			a.idle(a.sendCQ)
		}
		z.recv(2, dst.SGE(0, 8))
		a.sent(1, uverbs.WCSend)
		z.received(2, uverbs.WCRecv, 8)
		e.same(dst.Bytes(), src.Bytes())
	}},
	{name: "PeerThatIsGoneIsNoticed", run: func(e *env) {
		for _, gone := range []string{"closed", "reset"} {
			a, z := e.connect(shape{}, rc{timeout: 10, retries: 2})
			works(a, z)
			if gone == "closed" {
				e.must(z.qp.Close())
			} else {
				z.modify(uverbs.QPStateReset)
			}
			src := a.mr(8, 0)
			a.send(uverbs.SendWR{WRID: 1, Opcode: uverbs.WRSend, SGList: []uverbs.SGE{src.SGE(0, 8)}},
				uverbs.SendWR{WRID: 2, Opcode: uverbs.WRSend, SGList: []uverbs.SGE{src.SGE(0, 8)}})
			wcs := a.wait(a.sendCQ, 2)
			if wcs[0].WRID != 1 || wcs[0].Status != uverbs.WCRetryExcErr || wcs[1].WRID != 2 || wcs[1].Status != uverbs.WCWRFlushErr {
				e.Errorf("peer %s: %+v, want the first to exceed its retries and the second flushed", gone, wcs)
			}
			a.state(uverbs.QPStateErr)
		}
	}},
}
