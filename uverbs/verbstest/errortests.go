package verbstest

import (
	"context"
	"time"

	"github.com/rrppcc-go/rrppcc/uverbs"
)

// errorTests: work requests that may not be done, and what both sides are told.
var errorTests = []test{
	{name: "RequesterMayOnlyUseItsOwnMemory", run: func(e *env) {
		a, z := e.connect(shape{}, rc{})
		good, gone := a.mr(100, localOnly), a.mr(100, localOnly)
		goneSGE := gone.SGE(0, 10)
		e.must(gone.Close())
		foreign, readOnly := e.mr(e.a.pd(), 100, localOnly), a.mr(100, 0)
		far := z.mr(100, remoteRW)
		gather := []struct {
			name string
			rule Rule
			sges []uverbs.SGE
		}{
			{"a key that never was", RuleBadGather, []uverbs.SGE{{Addr: good.Addr(), Length: 10, LKey: good.LKey() ^ 0x30300}}},
			{"a key with another low byte", RuleBadGather, []uverbs.SGE{{Addr: good.Addr(), Length: 10, LKey: good.LKey() ^ 1}}},
			{"memory of another PD", RuleBadGather, []uverbs.SGE{foreign.SGE(0, 10)}},
			{"one byte behind the end", RuleOverGather, []uverbs.SGE{{Addr: good.Addr() + 91, Length: 10, LKey: good.LKey()}}},
			{"one byte before the start", RuleOverGather, []uverbs.SGE{{Addr: good.Addr() - 1, Length: 10, LKey: good.LKey()}}},
			{"all of memory", RuleOverGather, []uverbs.SGE{{Addr: good.Addr(), Length: 1 << 30, LKey: good.LKey()}}},
			{"a region that was closed", RuleBadGather, []uverbs.SGE{goneSGE}},
			{"a second piece that is bad", RuleOverGather, []uverbs.SGE{good.SGE(0, 10), {Addr: good.Addr() + 91, Length: 10, LKey: good.LKey()}}},
		}
		for _, op := range []uverbs.WROpcode{uverbs.WRSend, uverbs.WRRDMAWrite} {
			for _, c := range gather {
				e.Logf("%v of %s", op, c.name)
				buf := z.mr(2000, localOnly)
				z.recv(7, buf.SGE(0, 2000))
				e.requesterFails(a, z, c.rule, uverbs.SendWR{Opcode: op, SGList: c.sges, RemoteAddr: far.Addr(), RKey: far.RKey()})
			}
		}
		e.is(far.Bytes(), 0)
		fill(far.Bytes(), 6)
		for _, sge := range []uverbs.SGE{readOnly.SGE(0, 10), foreign.SGE(0, 10), goneSGE} {
			z.recv(7)
			e.requesterFails(a, z, RuleBadReadSink, uverbs.SendWR{Opcode: uverbs.WRRDMARead, SGList: []uverbs.SGE{sge}, RemoteAddr: far.Addr(), RKey: far.RKey()})
		}
		e.is(readOnly.Bytes(), 0)
		e.is(foreign.Bytes(), 0)
	}},
	{name: "ResponderGrantsWhatItsRegionAllows", run: func(e *env) {
		a, z := e.connect(shape{}, rc{})
		mine := a.mr(5000, localOnly)
		fill(mine.Bytes(), 1)
		good, gone := z.mr(5000, remoteRW), z.mr(100, remoteRW)
		goneAddr, goneKey := gone.Addr(), gone.RKey()
		e.must(gone.Close())
		foreign := e.mr(e.z.pd(), 5000, remoteRW)
		readable, writable, local := z.mr(5000, uverbs.AccessLocalWrite|uverbs.AccessRemoteRead),
			z.mr(5000, uverbs.AccessLocalWrite|uverbs.AccessRemoteWrite), z.mr(5000, localOnly)
		for _, c := range []struct {
			name        string
			op          uverbs.WROpcode
			addr        uint64
			key         uint32
			n           int
			untouchable *uverbs.MR
		}{
			{"WRITE with a key that never was", uverbs.WRRDMAWrite, good.Addr(), good.RKey() ^ 0x30300, 10, good},
			{"WRITE with another low byte", uverbs.WRRDMAWrite, good.Addr(), good.RKey() ^ 1, 10, good},
			{"WRITE one byte behind the end", uverbs.WRRDMAWrite, good.Addr() + 4991, good.RKey(), 10, good},
			{"WRITE one byte before the start", uverbs.WRRDMAWrite, good.Addr() - 1, good.RKey(), 10, good},
			{"WRITE of many packets, of which the last leaves the region", uverbs.WRRDMAWrite, good.Addr() + 1, good.RKey(), 5000, good},
			{"WRITE around the end of the address space", uverbs.WRRDMAWrite, ^uint64(0) - 4, good.RKey(), 10, good},
			{"WRITE to a region of another PD", uverbs.WRRDMAWrite, foreign.Addr(), foreign.RKey(), 10, foreign},
			{"WRITE to a closed region", uverbs.WRRDMAWrite, goneAddr, goneKey, 10, nil},
			{"WRITE to a region that may be read", uverbs.WRRDMAWrite, readable.Addr(), readable.RKey(), 10, readable},
			{"WRITE to a local region", uverbs.WRRDMAWrite, local.Addr(), local.RKey(), 10, local},
			{"READ from a region that may be written", uverbs.WRRDMARead, writable.Addr(), writable.RKey(), 10, writable},
			{"READ from a local region", uverbs.WRRDMARead, local.Addr(), local.RKey(), 10, local},
			{"READ one byte behind the end", uverbs.WRRDMARead, good.Addr() + 4991, good.RKey(), 10, good},
			{"READ with a key that never was", uverbs.WRRDMARead, good.Addr(), good.RKey() ^ 0x30300, 10, good},
		} {
			e.Log(c.name)
			a.recv(8)
			z.recv(9)
			a.send(uverbs.SendWR{WRID: 1, Opcode: c.op, SGList: []uverbs.SGE{mine.SGE(0, c.n)}, RemoteAddr: c.addr, RKey: c.key},
				uverbs.SendWR{WRID: 2, Opcode: uverbs.WRSend, SGList: []uverbs.SGE{mine.SGE(0, 1)}})
			wcs := a.wait(a.sendCQ, 2)
			if wcs[0].WRID != 1 || wcs[0].Status != uverbs.WCRemAccessErr {
				e.Errorf("%s: work request %d: %v, want 1: remote access error", c.name, wcs[0].WRID, wcs[0].Status)
			}
			if wcs[1].WRID != 2 || wcs[1].Status != uverbs.WCWRFlushErr {
				e.Errorf("%s: behind it: work request %d: %v, want 2 flushed", c.name, wcs[1].WRID, wcs[1].Status)
			}
			a.flushed(a.recvCQ, 8)
			a.state(uverbs.QPStateErr)
			z.state(uverbs.QPStateErr)
			z.flushed(z.recvCQ, 9)
			if c.untouchable != nil {
				e.is(c.untouchable.Bytes(), 0)
			}
			renew(a, z, rc{})
		}
		works(a, z)
	}},
	{name: "ResponderTellsOfARefusedAccess", run: func(e *env) {
		a, z := e.connect(shape{}, rc{})
		src, dst := a.mr(8, 0), z.mr(8, remoteRW)
		a.send(uverbs.SendWR{Opcode: uverbs.WRRDMAWrite, SGList: []uverbs.SGE{src.SGE(0, 8)}, RemoteAddr: dst.Addr(), RKey: dst.RKey() ^ 0x10100})
		if got := a.failed(a.sendCQ, 0); got != status(uverbs.WCRemAccessErr) {
			e.Errorf("sender: %s", got)
		}
		z.state(uverbs.QPStateErr)
		if e.expects(RuleAccessEvent) == noEvent {
			e.rule(RuleAccessEvent, e.noEvent(z.host))
			return
		}
		ev := e.async(z.host)
		e.rule(RuleAccessEvent, ev.Type.String())
		if ev.QP != z.qp {
			e.Error("the event names another QP")
		}
	}},
	{name: "QPGrantsWhatItsAccessFlagsAllow", run: func(e *env) {
		for _, c := range []struct {
			rule Rule
			op   uverbs.WROpcode
			acc  uverbs.AccessFlags
		}{
			{RuleNoQPAccess, uverbs.WRRDMAWrite, uverbs.AccessRemoteRead},
			{RuleNoQPAccess, uverbs.WRRDMAWrite, 0},
			{RuleNoQPRead, uverbs.WRRDMARead, uverbs.AccessRemoteWrite},
			{RuleNoQPRead, uverbs.WRRDMARead, 0},
		} {
			a, z := e.connect(shape{}, rc{access: c.acc, noAccess: c.acc == 0})
			src, dst := a.mr(8, localOnly), z.mr(8, remoteRW)
			fill(src.Bytes(), 1)
			a.send(uverbs.SendWR{WRID: 3, Opcode: c.op, SGList: []uverbs.SGE{src.SGE(0, 8)}, RemoteAddr: dst.Addr(), RKey: dst.RKey()})
			e.rule(c.rule, a.failed(a.sendCQ, 3))
			a.state(uverbs.QPStateErr)
			z.state(uverbs.QPStateErr)
			e.is(dst.Bytes(), 0)
		}
	}},
	{name: "MessageLongerThanItsReceive", run: func(e *env) {
		for _, n := range []int{9, 1024, 5000} {
			a, z := e.connect(shape{}, rc{})
			src, dst := a.mr(5000, 0), z.mr(5008, localOnly)
			z.recv(5, dst.SGE(0, n-1))
			z.recv(6, dst.SGE(0, n))
			a.send(uverbs.SendWR{WRID: 1, Opcode: uverbs.WRSend, SGList: []uverbs.SGE{src.SGE(0, n)}})
			e.responderFails(a, z, RuleRecvTooSmall)
			e.is(dst.Bytes()[n:], 0)
		}
	}},
	{name: "ReceiveOfUnusableMemory", run: func(e *env) {
		a, z := e.connect(shape{}, rc{})
		src, good, gone := a.mr(64, 0), z.mr(64, localOnly), z.mr(64, localOnly)
		fill(src.Bytes(), 1)
		goneSGE := gone.SGE(0, 64)
		e.must(gone.Close())
		readOnly, foreign := z.mr(64, 0), e.mr(e.z.pd(), 64, localOnly)
		for name, sge := range map[string]uverbs.SGE{
			"a key that never was":        {Addr: good.Addr(), Length: 64, LKey: good.LKey() ^ 0x30300},
			"memory of another PD":        foreign.SGE(0, 64),
			"a region that was closed":    goneSGE,
			"memory that is not writable": readOnly.SGE(0, 64),
			"one byte behind the end":     {Addr: good.Addr() + 1, Length: 64, LKey: good.LKey()},
		} {
			e.Log(name)
			z.recv(5, sge)
			z.recv(6, good.SGE(0, 64))
			a.send(uverbs.SendWR{WRID: 1, Opcode: uverbs.WRSend, SGList: []uverbs.SGE{src.SGE(0, 64)}})
			e.responderFails(a, z, RuleRecvBadMemory)
			for _, mr := range []*uverbs.MR{good, readOnly, foreign} {
				e.is(mr.Bytes(), 0)
			}
			renew(a, z, rc{})
		}
		works(a, z)
	}},
}

const noEvent = "none"

// noEvent looks for an async event that should not be there. What has raised
// it has been seen on all other ways by now.
func (e *env) noEvent(h *host) string {
	e.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 100*time.Millisecond)
	defer cancel()
	for {
		ev, err := h.ctx.WaitAsyncEvent(ctx)
		if ctx.Err() != nil {
			return noEvent
		}
		e.must(err)
		if ev.Port == 0 {
			return ev.Type.String()
		}
	}
}

// requesterFails posts a request that must fail for its own memory, without the
// peer noticing, and connects the QPs anew. The peer has one receive, which must
// not be used.
func (e *env) requesterFails(a, z *end, rule Rule, wr uverbs.SendWR) {
	e.Helper()
	a.recv(3)
	wr.WRID = 1
	// Without a fence, a SEND may pass a READ whose answer is not there yet.
	a.send(wr, uverbs.SendWR{WRID: 2, Opcode: uverbs.WRSend, Flags: uverbs.SendFence})
	wcs := a.wait(a.sendCQ, 2)
	if wcs[0].WRID != 1 || wcs[1].WRID != 2 || wcs[1].Status != uverbs.WCWRFlushErr {
		e.Errorf("%+v, want work request 1, and 2 flushed", wcs)
	}
	e.rule(rule, status(wcs[0].Status))
	a.state(uverbs.QPStateErr)
	a.flushed(a.recvCQ, 3)
	if s := z.query().State; s != uverbs.QPStateRTS {
		e.Errorf("the peer is in %v, want RTS", s)
	}
	z.idle(z.recvCQ)
	renew(a, z, rc{})
}

// responderFails checks that a's work request 1 and z's receive 5 fail, that z's
// receive 6 is flushed, and that both are in ERR.
func (e *env) responderFails(a, z *end, rule Rule) {
	e.Helper()
	wcs := z.wait(z.recvCQ, 2)
	if wcs[0].WRID != 5 || wcs[1].WRID != 6 || wcs[1].Status != uverbs.WCWRFlushErr {
		e.Errorf("%+v, want work request 5, and 6 flushed", wcs)
	}
	e.rule(rule, both(wcs[0].Status, a.one(a.sendCQ, 1).Status))
	a.state(uverbs.QPStateErr)
	z.state(uverbs.QPStateErr)
}

// renew resets both QPs and connects them again.
func renew(a, z *end, c rc) {
	a.e.Helper()
	for _, d := range []*end{a, z} {
		d.modify(uverbs.QPStateReset)
	}
	a.up(z, c)
	z.up(a, c)
}
