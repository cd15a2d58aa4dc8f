package engine

import (
	"errors"
	"testing"
	"time"

	"github.com/rrppcc-go/rrppcc/msgbuf"
	"github.com/rrppcc-go/rrppcc/rpc/congestion"
)

// script is a controller that does as the test says, and keeps what it is told.
type script struct {
	gap      time.Duration
	window   int
	samples  []congestion.Sample
	timeouts int
}

func (c *script) NewController(window int) congestion.Controller {
	c.window = window
	return c
}

func (c *script) Answered(s congestion.Sample) time.Duration {
	c.samples = append(c.samples, s)
	return c.gap
}

func (c *script) TimedOut(_, _ time.Duration) time.Duration {
	c.timeouts++
	return c.gap
}

const us = int64(1000)

// newPaced is a pair whose client's session is controlled by c.
func newPaced(tb testing.TB, c congestion.Control) *pair {
	return newPair(tb, func(cfg *Config) { cfg.Congestion = c })
}

// spin lets the clock of both sides go on, as loops do that find nothing.
func (p *pair) spin(d int64) {
	p.now += d
	for _, ep := range []*endpoint{p.c, p.s} {
		ep.e.Receive(p.now, nil)
		ep.e.Tick(p.now)
	}
}

// post posts what the engine wants sent, at the present time.
func (p *pair) postNow(ep *endpoint) []packet {
	ep.e.Stamp(p.now)
	return ep.sent()
}

// exchange makes a call whose request and answer take d each, and which the
// server's handler, bound by the caller, keeps for as long as it does.
func (p *pair) exchange(typ uint8, d int64) *Call {
	p.Helper()
	c := p.call(typ, 32, 32)
	req := p.postNow(p.c)
	p.spin(d)
	p.to(p.s, req...)
	resp := p.postNow(p.s)
	p.spin(d)
	p.to(p.c, resp...)
	p.c.flush()
	p.want(c, nil)
	return c
}

func TestDelayIsWithoutTheServersTime(t *testing.T) {
	ctl := &script{}
	p := newPaced(t, ctl)
	if ctl.window != testWindow {
		t.Errorf("controller made for a window of %d", ctl.window)
	}
	for _, slow := range []int64{0, 10 * us, 800 * us, 20 * ms} {
		p.s.e.Handle(1, func(h *Handle) (msgbuf.Buf, error) {
			p.now += slow // on the loop, which reads no clock meanwhile
			return h.Response(8)
		})
		p.exchange(1, 30*us)
		got := ctl.samples[len(ctl.samples)-1]
		// The hold is rounded up, by a sixteenth at most.
		if d := int64(got.Delay); d > 60*us || d < 60*us-slow/16-us || got.Bytes != 40 || got.Lost || int64(got.Now) != p.now {
			t.Errorf("handler of %d us: %+v", slow/us, got)
		}
		if st := p.cs.Stats(); st.Delay > 60*us || st.Delay == 0 && slow == 0 {
			t.Errorf("smoothed delay is %d", st.Delay)
		}
	}
	p.finish()
}

func TestDelayIsWithoutTheTimeThatLoopsAreBusy(t *testing.T) {
	ctl := &script{}
	p := newPaced(t, ctl)
	p.s.e.Handle(1, echo)
	c := p.call(1, 32, 32)
	req := p.postNow(p.c)
	// The server's loop polls just before the request comes, and then does
	// something else for a long time; so does the client's with the answer.
	p.spin(20 * us)
	p.now += 5 * ms
	p.to(p.s, req...)
	resp := p.postNow(p.s)
	p.spin(20 * us)
	p.now += 3 * ms
	p.to(p.c, resp...)
	p.c.flush()
	p.want(c, nil)
	// The server's 5 ms are rounded up by more than the delay.
	if d := int64(ctl.samples[0].Delay); d > 40*us {
		t.Errorf("delay is %d", d)
	}
	p.finish()
}

// What a wake-up takes is not the network's: on a busy machine it is milliseconds.
func TestSleepIsNotTakenForTheNetwork(t *testing.T) {
	ctl := &script{}
	p := newPaced(t, ctl)
	p.s.e.Handle(1, echo)
	for _, who := range []string{"client", "server"} {
		p.spin(0)
		call := p.call(1, 32, 32)
		req := p.postNow(p.c)
		if p.c.e.Measured() != p.now {
			t.Errorf("measured %d, now %d", p.c.e.Measured(), p.now)
		}
		p.spin(10 * us)
		if who == "server" {
			p.now += 3 * ms
		}
		p.to(p.s, req...)
		resp := p.postNow(p.s)
		p.spin(10 * us)
		if who == "client" {
			p.now += 3 * ms
		}
		p.to(p.c, resp...)
		p.c.flush()
		p.want(call, nil)
		if got := int64(ctl.samples[len(ctl.samples)-1].Delay); got > 20*us {
			t.Errorf("the %s slept: delay %d", who, got)
		}
	}
	p.finish()
}

// deferred binds type 2 to a handler whose requests are answered by the
// returned function.
func (p *pair) deferred() func() {
	var waiting []*Handle
	p.s.e.Handle(2, func(h *Handle) (msgbuf.Buf, error) {
		waiting = append(waiting, h)
		return h.Defer()
	})
	return func() {
		for _, h := range waiting {
			h.Take()
			p.s.e.Respond(p.now, h, msgbuf.Buf{}, nil)
		}
		waiting = nil
	}
}

func TestTimeoutOfASlowHandlerIsNoLoss(t *testing.T) {
	ctl := &script{}
	p := newPaced(t, ctl)
	answer := p.deferred()
	c := p.call(2, 32, 32)
	p.to(p.s, p.postNow(p.c)...)
	for range 60 {
		p.spin(ms)
		p.to(p.s, p.postNow(p.c)...)
	}
	if p.c.e.Stats.Retransmits < 2 || ctl.timeouts != int(p.c.e.Stats.Retransmits) {
		t.Fatalf("%d retransmissions, %d timeouts told", p.c.e.Stats.Retransmits, ctl.timeouts)
	}
	answer()
	p.to(p.c, p.postNow(p.s)...)
	p.c.flush()
	p.want(c, nil)
	if got := ctl.samples[0]; got.Lost || !got.Resent || p.c.e.Stats.Losses != 0 {
		t.Errorf("%+v", got)
	}
	p.finish()
}

func TestLossesAreSeenInEitherDirection(t *testing.T) {
	for _, lost := range []string{"request", "answer"} {
		ctl := &script{}
		p := newPaced(t, ctl)
		p.s.e.Handle(1, echo)
		c := p.call(1, 32, 32)
		req := p.postNow(p.c)
		if lost == "answer" {
			p.to(p.s, req...)
			p.postNow(p.s)
		}
		for p.c.e.Stats.Retransmits == 0 {
			p.spin(ms)
		}
		p.to(p.s, p.postNow(p.c)...)
		p.to(p.c, p.postNow(p.s)...)
		p.c.flush()
		p.want(c, nil)
		if got := ctl.samples[0]; !got.Lost || !got.Resent || got.Delay != 0 || p.c.e.Stats.Losses != 1 || ctl.timeouts != 1 {
			t.Errorf("%s lost: %+v, %d timeouts", lost, got, ctl.timeouts)
		}
		p.finish()
	}
}

func TestTimeoutWhileOthersAreAnsweredIsNotTold(t *testing.T) {
	ctl := &script{}
	p := newPaced(t, ctl)
	answer := p.deferred()
	p.s.e.Handle(1, echo)
	slow := p.call(2, 32, 32)
	p.to(p.s, p.postNow(p.c)...)
	for range 40 {
		p.exchange(1, 500*us)
	}
	if p.c.e.Stats.Retransmits == 0 || ctl.timeouts != 0 {
		t.Errorf("%d retransmissions, %d timeouts told", p.c.e.Stats.Retransmits, ctl.timeouts)
	}
	answer()
	p.run()
	p.want(slow, nil)
	p.finish()
}

func TestPacedRequestsGoOneByOne(t *testing.T) {
	ctl := &script{gap: 100 * time.Microsecond}
	p := newPaced(t, ctl)
	p.s.e.Handle(1, echo)
	p.exchange(1, us) // after which the session is paced
	var calls []*Call
	for range testWindow + 2 {
		calls = append(calls, p.call(1, 32, 32))
	}
	if st := p.cs.Stats(); st.Gap != 100*us || st.Active != 0 || st.Waiting != len(calls) {
		t.Errorf("%+v", st)
	}
	var at []int64
	for begin := p.now; p.now < begin+int64(len(calls)+1)*100*us; p.spin(us) {
		for _, q := range p.postNow(p.c) {
			at = append(at, p.now)
			p.to(p.s, q)
			p.to(p.c, p.postNow(p.s)...)
		}
	}
	for _, c := range calls {
		p.want(c, nil)
	}
	for i := 1; i < len(at); i++ {
		// A tick late, and a turn of the loop; and what was late is made up for.
		if d := at[i] - at[i-1]; d < 97*us || d > 103*us {
			t.Errorf("request %d went %d ns after the one before", i, d)
		}
	}
	if n := p.c.e.Stats.Paced; n != uint64(len(calls)) || p.c.e.Stats.Congested != 1 {
		t.Errorf("%d of %d requests were paced; %d times congested", n, len(calls), p.c.e.Stats.Congested)
	}
	p.finish()
}

func TestLoopThatIsLateMakesUpForOneTurn(t *testing.T) {
	ctl := &script{gap: 100 * time.Microsecond}
	p := newPaced(t, ctl)
	p.s.e.Handle(1, echo)
	p.exchange(1, us)
	for range testWindow {
		p.call(1, 32, 32)
	}
	p.spin(100 * us)
	p.postNow(p.c)
	p.spin(ms)
	if n := len(p.postNow(p.c)); n != 2 {
		t.Errorf("%d requests after a pause, want 2", n)
	}
	p.spin(101 * us)
	if n := len(p.postNow(p.c)); n != 1 {
		t.Errorf("%d requests after that, want 1", n)
	}
	p.finishLossy()
}

func TestSmallerGapBringsTheTurnForward(t *testing.T) {
	ctl := &script{gap: 90 * time.Millisecond}
	p := newPaced(t, ctl)
	p.s.e.Handle(1, echo)
	first := p.call(1, 32, 32)
	p.to(p.s, p.postNow(p.c)...)
	resp := p.postNow(p.s)
	second := p.call(1, 32, 32) // not paced yet
	p.to(p.s, p.postNow(p.c)...)
	other := p.postNow(p.s)
	p.to(p.c, resp...)
	p.c.flush()
	p.want(first, nil)
	waits, too := p.call(1, 32, 32), p.call(1, 32, 32)
	p.spin(ms)
	if n := len(p.postNow(p.c)); n != 0 {
		t.Fatalf("%d requests went ahead of their turn", n)
	}
	ctl.gap = 0
	p.to(p.c, other...)
	p.want(second, nil)
	if n := len(p.postNow(p.c)); n != 2 {
		t.Errorf("%d requests went when the session was free again, want 2", n)
	}
	p.spin(200 * us)
	p.wantOpen(waits)
	p.wantOpen(too)
	p.finishLossy()
}

// finishLossy is finish for tests that lose datagrams: time passes until they are
// repeated.
func (p *pair) finishLossy() {
	p.Helper()
	for range 1000 {
		p.run()
		if p.cs.Quiet() {
			break
		}
		p.spin(ms)
	}
	p.finish()
}

func TestRepeatedRequestsArePacedToo(t *testing.T) {
	ctl := &script{gap: 2 * time.Millisecond}
	p := newPaced(t, ctl)
	p.s.e.Handle(1, echo)
	var calls []*Call
	for range testWindow {
		calls = append(calls, p.call(1, 32, 32)) // not paced yet
	}
	if n := len(p.postNow(p.c)); n != testWindow { // all are lost
		t.Fatalf("%d requests went", n)
	}
	var at []int64
	for len(at) < testWindow {
		p.spin(100 * us)
		for range p.postNow(p.c) { // these, too
			at = append(at, p.now)
		}
	}
	for i := 1; i < len(at); i++ {
		if d := at[i] - at[i-1]; d < 1900*us {
			t.Errorf("repeated request %d went %d ns after the one before", i, d)
		}
	}
	p.finishLossy()
	for _, c := range calls {
		p.want(c, nil)
	}
}

func TestWaitingForATurnEndsByAbortDeadlineAndClose(t *testing.T) {
	ctl := &script{gap: 50 * time.Millisecond}
	p := newPaced(t, ctl)
	p.s.e.Handle(1, echo)
	p.exchange(1, us)
	aborted := p.call(1, 32, 32)
	late := &Call{Type: 1, Deadline: p.now + 3*ms}
	late.Fn = func(c *Call) { p.ended = append(p.ended, c) }
	p.cs.Start(p.now, late)
	closed := p.call(1, 32, 32)
	aborted.Abort(p.now)
	p.want(aborted, ErrAborted)
	for range 5 {
		p.spin(ms)
	}
	p.want(late, ErrTimeout)
	gone := errors.New("gone")
	p.cs.Fail(p.now, gone)
	p.want(closed, gone)
	p.finish()
	if n := p.c.e.pace.count; n != 0 {
		t.Errorf("%d sessions left in the wheel", n)
	}
}

func TestClockThatJumpsHoldsNothingUp(t *testing.T) {
	for _, jump := range []int64{3600 * 1000 * ms, -500 * ms} {
		ctl := &script{gap: 10 * time.Millisecond}
		p := newPaced(t, ctl)
		p.s.e.Handle(1, echo)
		p.exchange(1, us)
		c := p.call(1, 32, 32)
		p.now += jump
		p.cs.Start(p.now, &Call{Type: 1, Fn: func(*Call) {}})
		for range 40 {
			p.spin(ms)
			p.run()
		}
		if jump > 0 {
			p.want(c, nil)
		} else if !p.over(c) {
			t.Errorf("call still waits after the clock was set back")
		}
		p.finish()
	}
}

func TestSessionsThatNobodyAskedSayNothing(t *testing.T) {
	p := newPair(t)
	p.s.e.Handle(1, echo)
	c := p.call(1, 32, 32)
	req := p.one(p.c)
	p.to(p.s, req...)
	resp := p.one(p.s)
	if req[0].data[3] != 0 || resp[0].data[3] != 0 {
		t.Errorf("bytes 3 of request and answer: %d, %d", req[0].data[3], resp[0].data[3])
	}
	if p.c.e.Unstamped() || p.s.e.Unstamped() {
		t.Error("somebody wants the time")
	}
	p.to(p.c, resp...)
	p.c.flush()
	p.want(c, nil)
	p.finish()
}

// one returns what ep sends, which must be one datagram.
func (p *pair) one(ep *endpoint) []packet {
	p.Helper()
	ps := ep.sent()
	if len(ps) != 1 {
		p.Fatalf("%d datagrams", len(ps))
	}
	return ps
}

// A request of several datagrams takes as many turns, and is measured from its
// last datagram at the server to the first one of the answer.
func TestRequestInPartsTakesATurnEach(t *testing.T) {
	const parts = 3
	ctl := &script{gap: 100 * time.Microsecond}
	p := newPairOfParts(t, parts, func(cfg *Config) { cfg.Congestion = ctl })
	p.s.e.Handle(1, echo)
	p.exchange(1, us)
	p.spin(ms)
	long, next := p.call(1, parts*testPart, parts*testPart), p.call(1, 32, 32)
	reqs := p.postNow(p.c)
	for i, q := range reqs {
		if q.header().Kind != KindRequestPart || q.data[3] != 1 {
			t.Errorf("datagram %d is %v, with %d in byte 3", i, q, q.data[3])
		}
		p.spin(50 * us)
		p.to(p.s, q)
		p.spin(0)
	}
	p.spin(parts*100*us - parts*50*us - 5*us)
	if n := len(p.postNow(p.c)); n != 0 {
		t.Errorf("%d datagrams went ahead of their turn", n)
	}
	p.spin(10 * us)
	then := p.postNow(p.c)
	if len(then) != 1 {
		t.Errorf("%d datagrams went when it was their turn", len(then))
	}
	p.to(p.s, then...)
	resps := p.s.sent()
	for i, q := range resps[:parts] {
		if q.header().Kind != KindResponsePart || q.data[3] == 0 {
			t.Errorf("answer %d is %v, with %d in byte 3", i, q, q.data[3])
		}
	}
	p.to(p.c, resps...)
	p.c.txDone()
	p.wantEcho(long)
	p.want(next, nil)
	// The answer was posted 155 us after the last part came, by the test's doing.
	if got := int64(ctl.samples[1].Delay); got < 150*us || got > 310*us {
		t.Errorf("delay of the long request: %d", got)
	}
	p.finish()
}
