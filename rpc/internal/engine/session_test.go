package engine

import (
	"testing"

	"github.com/rrppcc-go/rrppcc/msgbuf"
)

func TestClosingAbortsAndGetsQuiet(t *testing.T) {
	p := newPair(t)
	var kept *Handle
	p.s.e.Handle(1, func(h *Handle) (msgbuf.Buf, error) { kept = h; return h.Defer() })
	p.s.e.Handle(2, func(*Handle) (msgbuf.Buf, error) { return p.s.message(5000, 1), nil })
	small, large, reading := p.call(1, 10, 10), p.call(1, 5000, 10), p.call(2, 0, 5000)
	p.to(p.s, p.c.sent()...)
	p.to(p.c, p.s.sent()...)
	p.call(1, 10, 10)
	queued := p.call(1, 10, 10)
	p.cs.Closing(p.now, ErrSessionClosed)
	p.want(queued, ErrSessionClosed)
	if p.cs.Quiet() {
		t.Error("quiet with calls under way")
	}
	late := p.call(1, 10, 10)
	p.want(late, ErrSessionClosed)
	p.c.flush()
	p.want(small, ErrSessionClosed)
	p.wantOpen(large)
	p.wantOpen(reading)
	p.run()
	p.want(large, ErrSessionClosed)
	p.want(reading, ErrSessionClosed)
	if !p.cs.Quiet() {
		t.Error("not quiet without calls")
	}
	kept.Take()
	p.s.e.Respond(p.now, kept, msgbuf.Buf{}, nil)
	p.finish()
}

func TestFailEndsEverything(t *testing.T) {
	p := newPair(t)
	p.s.e.Handle(1, func(*Handle) (msgbuf.Buf, error) { return p.s.message(5000, 1), nil })
	reading := p.call(1, 0, 5000)
	p.to(p.s, p.c.sent()...)
	p.to(p.c, p.s.sent()...)
	cancelled := p.call(1, 5000, 0)
	cancelled.Abort(p.now)
	small := p.call(1, 10, 0)
	p.call(1, 10, 0)
	queued := p.call(1, 10, 0)
	p.c.expect(KindLargeRequest, KindCancel, KindRequest, KindRequest)
	p.cs.Fail(p.now, ErrPeerDead)
	p.cs.Fail(p.now, ErrTimeout) // too late
	p.want(queued, ErrPeerDead)
	p.c.flush()
	p.want(small, ErrPeerDead)
	p.want(cancelled, ErrAborted)
	p.wantOpen(reading)
	p.c.read(p.now, true)
	p.want(reading, ErrPeerDead)
	p.c.expect() // nothing is said to the dead
	p.wait(500 * ms)
	p.c.expect()
	p.finish()
}

func TestFailDestFailsOnlyThatPeersSessions(t *testing.T) {
	p := newPair(t)
	other := p.c.e.NewSession(true, 1)
	other.Connect(p.now, Peer{Dest: 8, MaxSmall: 100})
	waiting := p.c.e.NewSession(true, 2)
	p.c.e.FailDest(p.now, 7, ErrPeerDead)
	if p.cs.Err() != ErrPeerDead || other.Err() != nil || waiting.Err() != nil {
		t.Errorf("sessions ended with %v, %v, %v", p.cs.Err(), other.Err(), waiting.Err())
	}
	n := 0
	p.c.e.Sessions(func(s *Session) {
		n++
		s.Fail(p.now, ErrSessionClosed)
	})
	if n != 2 {
		t.Errorf("%d sessions lived, want 2", n)
	}
	p.finish()
}

func TestSessionIndexIsUsedAgainWithAnotherToken(t *testing.T) {
	p := newPair(t)
	p.s.e.Handle(1, echo)
	c := p.call(1, 10, 10)
	old := p.c.sent()
	p.ss.Fail(p.now, ErrPeerDead)
	ss := p.s.e.NewSession(false, 99)
	ss.Connect(p.now, Peer{Dest: 9, Session: p.cs.Index(), Token: p.cs.Token(), QPN: p.c.qpn, MaxSmall: 100})
	if ss.Index() != p.ss.Index() {
		t.Fatalf("index %d, want %d again", ss.Index(), p.ss.Index())
	}
	p.to(p.s, old...)
	p.s.expect()
	if p.s.e.Stats.DropToken != 1 {
		t.Error("a datagram for the old session reached the new one")
	}
	c.Abort(p.now)
	ss.Fail(p.now, ErrSessionClosed)
	p.finish()
}

// TestCallbacksMayDoAnything lets callbacks of every kind of end start, abort,
// close and fail.
func TestCallbacksMayDoAnything(t *testing.T) {
	acts := map[string]func(p *pair, all []*Call){
		"start":   func(p *pair, _ []*Call) { p.call(1, 10, 10) },
		"abort":   func(p *pair, all []*Call) { abortAll(p, all) },
		"closing": func(p *pair, _ []*Call) { p.cs.Closing(p.now, ErrSessionClosed) },
		"fail":    func(p *pair, _ []*Call) { p.cs.Fail(p.now, ErrPeerDead) },
		"flushed": func(p *pair, _ []*Call) { p.c.post(); p.c.e.Flushed() },
		"tick":    func(p *pair, _ []*Call) { p.now += 30 * ms; p.c.e.Tick(p.now) },
		"dest":    func(p *pair, _ []*Call) { p.c.e.FailDest(p.now, 7, ErrPeerDead) },
	}
	ends := map[string]func(p *pair, all []*Call){
		"response": func(p *pair, _ []*Call) { p.run() },
		"abort":    func(p *pair, all []*Call) { abortAll(p, all) },
		"deadline": func(p *pair, _ []*Call) { p.c.sent(); p.wait(100 * ms) },
		"closing":  func(p *pair, _ []*Call) { p.cs.Closing(p.now, ErrSessionClosed) },
		"fail":     func(p *pair, _ []*Call) { p.c.sent(); p.cs.Fail(p.now, ErrPeerDead) },
	}
	for endName, end := range ends {
		for actName, act := range acts {
			t.Run(endName+" then "+actName, func(t *testing.T) {
				p := newPair(t)
				p.s.e.Handle(1, echo)
				var all []*Call
				acted := 0
				for i := range 3 * testWindow {
					n := []int{10, 500, 5000}[i%3]
					c := &Call{Type: 1, Req: p.c.message(n, 1), Resp: p.c.alloc(n), Deadline: p.now + 50*ms}
					c.Fn = func(c *Call) {
						p.ended = append(p.ended, c)
						if acted++; acted <= 20 {
							act(p, all)
						}
					}
					all = append(all, c)
					p.cs.Start(p.now, c)
				}
				end(p, all)
				p.run()
				p.wait(200 * ms)
				p.run()
				p.cs.Closing(p.now, ErrSessionClosed)
				p.run()
				for _, c := range all {
					if !p.over(c) {
						t.Fatal("a call did not end")
					}
				}
				p.finish()
			})
		}
	}
}

func abortAll(p *pair, all []*Call) {
	for _, c := range all {
		c.Abort(p.now)
	}
}

// TestHandlerWaitsForANestedCall runs the owner's loop within a handler, as a
// blocking call from a handler does: the inner turn gets lost datagrams sent
// again and ends the nested call.
func TestHandlerWaitsForANestedCall(t *testing.T) {
	for _, n := range []int{10, 5000} {
		p := newPair(t)
		// The server is the client of a session back.
		bs, bc := p.c.e.NewSession(false, 3), p.s.e.NewSession(true, 4)
		bs.Connect(p.now, Peer{Dest: 7, Session: bc.Index(), Token: 4, QPN: p.s.qpn, MaxSmall: testMaxSmall})
		bc.Connect(p.now, Peer{Dest: 9, Session: bs.Index(), Token: 3, QPN: p.c.qpn, MaxSmall: testMaxSmall})
		p.c.e.Handle(2, echo)
		p.s.e.Handle(1, func(h *Handle) (msgbuf.Buf, error) {
			before := sum(h.Data())
			done := false
			inner := &Call{Type: 2, Req: p.s.message(n, 9), Resp: p.s.alloc(n), Fn: func(*Call) { done = true }}
			bc.Start(p.now, inner)
			p.s.sent() // all lost
			for i := 0; !done; i++ {
				if i > 100 {
					t.Fatal("the nested call does not end")
				}
				p.wait(5 * ms)
				p.run()
			}
			if inner.Err != nil || sum(inner.Resp.Bytes()) != sum(inner.Req.Bytes()) || sum(h.Data()) != before {
				t.Error("the nested call went wrong", inner.Err)
			}
			inner.Req.Free()
			inner.Resp.Free()
			return echo(h)
		})
		c := p.call(1, n, n)
		p.run()
		p.want(c, nil)
		if sum(c.Resp.Bytes()) != sum(c.Req.Bytes()) {
			t.Error("bad response")
		}
		bs.Fail(p.now, ErrSessionClosed)
		bc.Fail(p.now, ErrSessionClosed)
		p.finish()
	}
}

// TestRequestAnsweredAndSlotReusedWithinTheHandler: the handler hands its
// request over, and while it is still running the answer goes out and the slot
// takes the next request.
func TestRequestAnsweredAndSlotReusedWithinTheHandler(t *testing.T) {
	for _, n := range []int{10, 5000} {
		p := newPair(t)
		var kept []*Handle
		var next *Call
		p.s.e.Handle(1, func(h *Handle) (msgbuf.Buf, error) {
			kept = append(kept, h)
			if len(kept) == 1 {
				buf, err := h.Defer()
				h.Take()
				p.s.e.Respond(p.now, h, msgbuf.Buf{}, nil)
				p.run()
				next = p.call(1, 20, 10)
				p.run()
				return buf, err
			}
			return h.Defer()
		})
		c := p.call(1, n, 10)
		req := p.c.sent()
		burst := p.to(p.s, req...)
		p.run()
		p.want(c, nil)
		p.wantOpen(next)
		if len(kept) != 2 || kept[1].sl != kept[0].sl {
			t.Fatal("the slot was not used again")
		}
		if burst[0].Held {
			t.Error("the receive slot of the answered request is held")
		}
		kept[1].Take()
		p.s.e.Respond(p.now, kept[1], msgbuf.Buf{}, nil)
		p.run()
		p.want(next, nil)
		p.finish()
	}
}

func TestAbandonEndsWhatTheQueuesHeld(t *testing.T) {
	p := newPair(t)
	p.s.e.Handle(1, echo)
	p.s.e.Handle(2, func(*Handle) (msgbuf.Buf, error) { return p.s.message(5000, 1), nil })
	for _, n := range []int{10, 500, 5000} {
		p.call(1, n, n)
	}
	p.call(2, 0, 5000)
	p.to(p.s, p.c.sent()...)
	p.to(p.c, p.s.sent()...)
	p.c.flush()
	p.call(1, 600, 600)
	for _, ep := range []*endpoint{p.c, p.s} {
		ep.e.Sessions(func(s *Session) { s.Fail(p.now, ErrPeerDead) })
		ep.e.Abandon(p.now)
		ep.tokens, ep.reads = nil, nil
	}
	if len(p.ended) != 5 {
		t.Errorf("%d calls ended, want all 5", len(p.ended))
	}
	p.finish()
}

func TestSessionFailsWhileItsAnswerWaitsToBePosted(t *testing.T) {
	p := newPair(t)
	p.s.e.Handle(1, func(*Handle) (msgbuf.Buf, error) { return p.s.message(10, 1), nil })
	c := p.call(1, 10, 10)
	p.to(p.s, p.c.sent()...)
	p.ss.Fail(p.now, ErrPeerDead)
	if n := p.s.small.Stats().InUse; n != 1 {
		t.Error("the response is freed while it waits to be copied")
	}
	p.s.flush()
	if n := p.s.small.Stats().InUse; n != 0 {
		t.Error("the response is kept")
	}
	c.Abort(p.now)
	p.finish()
}

func TestSessionFailsWhileReadingIntoASlotWithACache(t *testing.T) {
	p := newPair(t)
	p.s.e.Handle(1, echo)
	p.call(1, 10, 10)
	p.run()
	c := p.call(1, 5000, 10)
	p.to(p.s, p.c.sent()...)
	p.s.flush()
	p.ss.Fail(p.now, ErrPeerDead)
	p.s.read(p.now, true)
	p.s.expect()
	p.cs.Fail(p.now, ErrPeerDead)
	p.c.flush()
	p.want(c, ErrPeerDead)
	p.finish()
}

func TestCallEndedInFlushedWaitsForTheNextFlush(t *testing.T) {
	p := newPair(t)
	var second *Call
	first := &Call{Type: 1, Fn: func(c *Call) {
		second = p.call(1, 10, 10)
		second.Abort(p.now)
	}}
	p.cs.Start(p.now, first)
	first.Abort(p.now)
	p.c.post()
	p.c.e.Flushed()
	if first.Err != ErrAborted {
		t.Fatal("the first call has not ended")
	}
	p.wantOpen(second) // its request is still in Tx
	p.c.flush()
	p.want(second, ErrAborted)
	p.finish()
}
