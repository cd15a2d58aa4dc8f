package verbstest

import "github.com/rrppcc-go/rrppcc/uverbs"

var overrunTests = []test{
	{name: "OverrunCQIsTold", run: func(e *env) {
		// The receiver's CQ holds a few completions, its receive queue many.
		a, z, wr := e.datagrams(shape{wrs: 64, recvDepth: 4})
		src, dst := a.mr(8, 0), z.mr(48, localOnly)
		wr.SGList = []uverbs.SGE{src.SGE(0, 8)}
		depth := z.recvCQ.Depth()
		if depth+2 > 64 {
			e.Fatalf("asked for a CQ of 4, got %d: too many for this test", depth)
		}
		for i := range depth + 2 {
			z.recv(uint64(i), dst.SGE(0, 48))
		}
		for i := range depth + 2 {
			wr.WRID = uint64(i)
			a.send(wr)
			a.sent(uint64(i), uverbs.WCSend)
		}
		if ev := e.async(z.host); ev.Type != uverbs.EventCQErr || ev.CQ != z.recvCQ {
			e.Fatalf("event %v (of this CQ: %v), want its error", ev.Type, ev.CQ == z.recvCQ)
		}
		want := e.expects(RuleOverrunState)
		if want == uverbs.QPStateErr.String() {
			z.state(uverbs.QPStateErr)
		}
		e.rule(RuleOverrunState, z.query().State.String())
		// What was written before is good; all objects can be closed.
		for i, wc := range z.take(z.recvCQ) {
			if wc.Status == uverbs.WCSuccess && wc.WRID != uint64(i) {
				e.Errorf("completion %d: %+v", i, wc)
			}
		}
		a.state(uverbs.QPStateRTS) // not its fault
	}},
}
