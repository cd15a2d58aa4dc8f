package engine

import "testing"

// Where the round trip is longer than the first timeout, every request is repeated
// and measures nothing; the timeout gets longer all the same, until one is not.
func TestTimeoutIsLearntWhereEveryRequestIsRepeated(t *testing.T) {
	p := newPair(t)
	p.s.e.Handle(1, echo)
	for i := range 3 * testWindow {
		before := p.c.e.Stats.Retransmits
		c := p.call(1, 8, 8)
		request := p.c.sent()
		for range 10 { // 50 ms, with a first timeout of 10
			p.wait(5 * ms)
			p.c.sent() // what is repeated gets lost
		}
		p.to(p.s, request...)
		p.to(p.c, p.s.sent()...)
		p.c.txDone()
		p.want(c, nil)
		again := p.c.e.Stats.Retransmits - before
		switch {
		case i == 0 && again == 0:
			t.Error("nothing was repeated at first: this tests nothing")
		case i > testWindow+1 && again != 0: // a window of repeated requests is a burst of losses, not a long way
			t.Errorf("request %d was repeated %d times", i, again)
		}
	}
	// On a fast network it gets short again.
	for range 100 {
		p.now += 20_000
		c := p.call(1, 8, 8)
		p.run()
		p.want(c, nil)
	}
	if p.cs.rto > 12*ms {
		t.Errorf("the timeout is still %d ms", p.cs.rto/ms)
	}
	p.finish()
}

// A steady round trip leaves room for a stall.
func TestTimeoutIsNotTheRoundTrip(t *testing.T) {
	p := newPair(t)
	for range 1000 {
		p.cs.sampleRTT(40 * ms)
	}
	if p.cs.rto < 50*ms || p.cs.rto > 60*ms {
		t.Errorf("a timeout of %d ms for a round trip of 40", p.cs.rto/ms)
	}
	p.finish()
}
