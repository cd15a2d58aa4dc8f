package verbstest

import (
	"errors"
	"syscall"

	"github.com/rrppcc-go/rrppcc/uverbs"
)

var modifyTests = []test{
	{name: "QueryTellsWhatModifySet", run: func(e *env) {
		a, z := e.a.end(shape{}), e.z.end(shape{})
		if q := a.query(); q.State != uverbs.QPStateReset {
			e.Errorf("new QP in %v", q.State)
		}
		c := rc{mtu: uverbs.MTU512, timeout: 15, retries: 5, rnr: 3, minRNR: 9}
		e.must(a.qp.Modify(c.init(), rcInit))
		if q := a.query(); q.State != uverbs.QPStateInit || q.Port != port || q.AccessFlags != allAccess || q.PKeyIndex != 0 {
			e.Errorf("in INIT: %+v", q)
		}
		av := a.globalAV(z.host)
		av.HopLimit, av.TrafficClass, av.FlowLabel = 33, 0x68, 0x12345
		e.must(a.qp.Modify(c.rtr(av, z.qp.QPN(), 0), rcRTR))
		e.must(a.qp.Modify(c.rts(a.qp.QPN(), 0), rcRTS))
		q := a.query()
		if q.State != uverbs.QPStateRTS || q.PathMTU != uverbs.MTU512 || q.DestQPN != z.qp.QPN() || q.RQPSN != psn(z.qp.QPN(), 0) || q.SQPSN != psn(a.qp.QPN(), 0) ||
			q.MaxRdAtomic != 4 || q.MaxDestRdAtomic != 4 || q.MinRNRTimer != 9 || q.Timeout != 15 || q.RetryCnt != 5 || q.RNRRetry != 3 {
			e.Errorf("in RTS: %+v", q)
		}
		if q.AV.DGID != z.gid || q.AV.SGIDIndex != a.gidIndex || q.AV.TrafficClass != 0x68 || !q.AV.IsGlobal || q.AV.Port != port || q.AV.DLID != z.lid {
			e.Errorf("address vector %+v", q.AV)
		}
		e.rule(RuleHopLimit, map[bool]string{true: asAsked, false: routesOwn}[q.AV.HopLimit == 33])
		if a.qp.State() != uverbs.QPStateRTS || q.Cap != a.qp.Cap() {
			e.Errorf("State %v, Cap %+v and %+v", a.qp.State(), q.Cap, a.qp.Cap())
		}
		u := e.a.end(shape{typ: uverbs.QPTypeUD})
		u.upUD()
		if q := u.query(); q.State != uverbs.QPStateRTS || q.QKey != qkey {
			e.Errorf("UD: %+v", q)
		}
	}},
	{name: "ForbiddenTransitionsAreRefused", run: func(e *env) {
		type step struct {
			name string
			attr *uverbs.QPAttr
			mask uverbs.QPAttrMask
		}
		a, z := e.a.end(shape{}), e.z.end(shape{})
		full := rc{}
		rtr, rts := full.rtr(a.av(z.host), z.qp.QPN(), 0), full.rts(a.qp.QPN(), 0)
		refused := func(where string, steps ...step) {
			e.Helper()
			before := a.query().State
			for _, s := range steps {
				if err := a.qp.Modify(s.attr, s.mask); !errors.Is(err, syscall.EINVAL) {
					e.Errorf("%s: %s: %v, want EINVAL", where, s.name, err)
				}
				if got := a.query().State; got != before || a.qp.State() != before {
					e.Fatalf("%s: %s: refused, but in %v (State %v)", where, s.name, got, a.qp.State())
				}
			}
		}
		toRTR, toRTS := step{"to RTR", rtr, rcRTR}, step{"to RTS", rts, rcRTS}
		refused("RESET", toRTR, toRTS,
			step{"to INIT without access flags", full.init(), initMask},
			step{"to INIT without a port", full.init(), rcInit &^ uverbs.AttrPort},
			step{"to INIT with port 9", &uverbs.QPAttr{State: uverbs.QPStateInit, Port: 9}, rcInit},
			step{"to state 77", &uverbs.QPAttr{State: 77}, uverbs.AttrState})
		e.must(a.qp.Modify(full.init(), rcInit))
		refused("INIT", toRTS,
			step{"to RTR without an address", rtr, rcRTR &^ uverbs.AttrAV},
			step{"to RTR without an MTU", rtr, rcRTR &^ uverbs.AttrPathMTU},
			step{"to RTR with timeouts", rtr, rcRTR | uverbs.AttrTimeout})
		e.must(a.qp.Modify(rtr, rcRTR))
		refused("RTR", step{"to RTS without retries", rts, rcRTS &^ uverbs.AttrRetryCnt}, step{"to RTR", rtr, rcRTR},
			step{"to INIT", full.init(), rcInit})
		e.must(a.qp.Modify(rts, rcRTS))
		refused("RTS", toRTR, step{"to INIT", full.init(), rcInit}, step{"to RTS with all attributes", rts, rcRTS})
		z.up(a, full)
		works(a, z)
		a.modify(uverbs.QPStateErr)
		refused("ERR", toRTR, toRTS, step{"to INIT", full.init(), rcInit})
		u := e.a.end(shape{typ: uverbs.QPTypeUD})
		err := u.qp.Modify(&uverbs.QPAttr{State: uverbs.QPStateInit, Port: port}, initMask)
		e.fails("UD to INIT without a QKey", err, syscall.EINVAL)
	}},
	{name: "AttributesOutOfRange", run: func(e *env) {
		for _, c := range []struct {
			rule  Rule
			spoil func(init, rtr *uverbs.QPAttr)
		}{
			{RulePKeyIndex, func(init, _ *uverbs.QPAttr) { init.PKeyIndex = 4000 }},
			{RulePathMTU, func(_, rtr *uverbs.QPAttr) { rtr.PathMTU = e.a.mtu + 1 }},
			{RuleMaxDestRd, func(_, rtr *uverbs.QPAttr) { rtr.MaxDestRdAtomic = 200 }},
		} {
			if c.rule == RulePathMTU && e.a.mtu == uverbs.MTU4096 {
				continue // there is none above it
			}
			a := e.a.end(shape{})
			init, rtr := rc{}.init(), rc{}.rtr(a.av(e.z), 99, 0)
			c.spoil(init, rtr)
			err := a.qp.Modify(init, rcInit)
			if err == nil {
				err = a.qp.Modify(rtr, rcRTR)
			}
			e.rule(c.rule, errnoName(err))
		}
		a := e.a.end(shape{})
		e.must(a.qp.Modify(rc{}.init(), rcInit))
		for _, mtu := range []uverbs.MTU{6, 200} {
			if err := a.qp.Modify(rc{mtu: mtu}.rtr(a.av(e.z), 99, 0), rcRTR); !errors.Is(err, syscall.EINVAL) {
				e.Errorf("path MTU code %d: %v, want EINVAL", mtu, err)
			}
		}
	}},
	{name: "AccessOfARunningQPChanges", run: func(e *env) {
		a, z := e.connect(shape{}, rc{})
		src, dst := a.mr(8, 0), z.mr(8, remoteRW)
		fill(src.Bytes(), 1)
		wr := uverbs.SendWR{WRID: 1, Opcode: uverbs.WRRDMAWrite, Flags: uverbs.SendSignaled, SGList: []uverbs.SGE{src.SGE(0, 8)}, RemoteAddr: dst.Addr(), RKey: dst.RKey()}
		a.send(wr)
		a.sent(1, uverbs.WCRDMAWrite)
		clear(dst.Bytes())
		e.must(z.qp.Modify(&uverbs.QPAttr{AccessFlags: uverbs.AccessRemoteRead}, uverbs.AttrAccessFlags))
		a.send(wr)
		e.rule(RuleNoQPAccess, a.failed(a.sendCQ, 1))
		e.is(dst.Bytes(), 0)
	}},
}
