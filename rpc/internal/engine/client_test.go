package engine

import (
	"bytes"
	"errors"
	"testing"

	"github.com/rrppcc-go/rrppcc/msgbuf"
)

// echo answers with the request.
func echo(h *Handle) (msgbuf.Buf, error) {
	b, err := h.Response(len(h.Data()))
	copy(b.Bytes(), h.Data())
	return b, err
}

func TestCallSizesRoundTrip(t *testing.T) {
	sizes := []int{0, 1, testMaxInline - HeaderBytes, testMaxInline - HeaderBytes + 1, testMaxSmall, testMaxSmall + 1, 2 * testMaxSmall, 300_000, testMaxMsg}
	p := newPair(t)
	p.s.e.Handle(1, echo)
	for _, n := range sizes {
		c := p.call(1, n, n)
		p.run()
		p.want(c, nil)
		if !bytes.Equal(c.Resp.Bytes(), c.Req.Bytes()) || c.Resp.Len() != n {
			t.Errorf("%d bytes: the response of %d bytes differs", n, c.Resp.Len())
		}
		if large := n > testMaxSmall; c.ReqLarge != large || c.RespLarge != large {
			t.Errorf("%d bytes: large request %v, large response %v", n, c.ReqLarge, c.RespLarge)
		}
	}
	if p.c.e.Stats.Retransmits+p.s.e.Stats.Retransmits != 0 {
		t.Error("retransmitted without loss")
	}
	p.finish()
}

func TestCallWithoutBuffers(t *testing.T) {
	p := newPair(t)
	p.s.e.Handle(1, echo)
	c := &Call{Type: 1, Fn: func(c *Call) { p.ended = append(p.ended, c) }}
	p.cs.Start(p.now, c)
	p.run()
	p.want(c, nil)
	p.finish()
}

func TestResponseLongerThanBuffer(t *testing.T) {
	for _, n := range []int{65, testMaxSmall, 5000} {
		p := newPair(t)
		p.s.e.Handle(1, echo)
		c := p.call(1, n, 64)
		p.run()
		var e *ResponseTooLargeError
		if !p.over(c) || !errors.As(c.Err, &e) || e.Need != n || e.Cap != c.Resp.Cap() {
			t.Errorf("%d bytes: %v", n, c.Err)
		}
		if st := p.ss.server[0].state; n > testMaxSmall && st != serverIdle {
			t.Errorf("the server keeps a large response that nobody will pull (state %d)", st)
		}
		p.finish()
	}
}

func TestLongerRequestThanSessionTakesInOneDatagramIsCopied(t *testing.T) {
	p := newPair(t)
	p.connect(300) // no effect: connected already
	p.cs.Fail(p.now, ErrSessionClosed)
	p.ss.Fail(p.now, ErrSessionClosed)
	p.cs, p.ss = p.c.e.NewSession(true, 5), p.s.e.NewSession(false, 6)
	p.connect(300)
	p.s.e.Handle(1, func(h *Handle) (msgbuf.Buf, error) {
		b := p.s.alloc(len(h.Data())) // local-only, although it must be pulled
		copy(b.Bytes(), h.Data())
		return b, nil
	})
	c := p.call(1, 700, 700)
	p.run()
	p.want(c, nil)
	if !c.ReqLarge || !c.RespLarge || !bytes.Equal(c.Req.Bytes(), c.Resp.Bytes()) {
		t.Error("response differs, or was not pulled")
	}
	p.finish()
}

func TestStartRefusesBadCalls(t *testing.T) {
	p := newPair(t)
	fn := func(c *Call) { p.ended = append(p.ended, c) }
	freed := p.c.alloc(10)
	freed.Free()
	other := p.s.alloc(10)
	long, _ := p.c.large.Alloc(testMaxMsg + 1)
	local, _ := p.c.small.Alloc(testMaxSmall + 1)
	for _, tc := range []struct {
		name string
		c    *Call
		want error
	}{
		{"freed request", &Call{Req: freed, Fn: fn}, ErrBuffer},
		{"freed response", &Call{Resp: freed, Fn: fn}, ErrBuffer},
		{"another endpoint's request", &Call{Req: other, Fn: fn}, ErrBuffer},
		{"another endpoint's response", &Call{Resp: other, Fn: fn}, ErrBuffer},
		{"too long", &Call{Req: long, Fn: fn}, ErrTooLarge},
		{"large but local", &Call{Req: local, Fn: fn}, ErrBuffer},
		{"past deadline", &Call{Deadline: p.now, Fn: fn}, ErrTimeout},
	} {
		p.cs.Start(p.now, tc.c)
		p.c.expect()
		if !p.over(tc.c) || tc.c.Err != tc.want {
			t.Errorf("%s: %v, want %v", tc.name, tc.c.Err, tc.want)
		}
	}
	p.ended = nil
	c := &Call{Fn: fn}
	p.ss.Start(p.now, c)
	p.want(c, ErrSessionClosed)
	for _, b := range []msgbuf.Buf{other, long, local} {
		b.Free()
	}
	p.finish()
	c = &Call{Fn: fn}
	p.cs.Start(p.now, c)
	if c.Err == nil || c.Err != p.cs.Err() {
		t.Errorf("call on a failed session: %v, want %v", c.Err, p.cs.Err())
	}
}

func TestStartTwicePanics(t *testing.T) {
	p := newPair(t)
	c := p.call(1, 10, 10)
	defer func() {
		if recover() == nil {
			t.Error("no panic")
		}
	}()
	p.cs.Start(p.now, c)
}

func TestWindowAndBacklogAreFirstInFirstOut(t *testing.T) {
	p := newPair(t)
	var got []int
	p.s.e.Handle(1, func(h *Handle) (msgbuf.Buf, error) {
		got = append(got, len(h.Data()))
		return msgbuf.Buf{}, nil
	})
	for i := range 3 * testWindow {
		p.call(1, i, 0)
	}
	if n := len(p.c.sent()); n != testWindow {
		t.Fatalf("%d requests out, the window is %d", n, testWindow)
	}
	p.wait(10 * ms) // the first ones were lost above
	p.run()
	for i, n := range got {
		if n != i {
			t.Fatalf("executed %v, want them in order", got)
		}
	}
	if len(p.ended) != 3*testWindow || !p.cs.Quiet() {
		t.Fatalf("%d calls ended", len(p.ended))
	}
	p.finish()
}

func TestBacklogWaitsForConnect(t *testing.T) {
	p := newPair(t)
	p.s.e.Handle(1, echo)
	s := p.c.e.NewSession(true, 3)
	c := &Call{Type: 1, Fn: func(c *Call) { p.ended = append(p.ended, c) }}
	s.Start(p.now, c)
	late := &Call{Type: 1, Deadline: p.now + 5*ms, Fn: c.Fn}
	s.Start(p.now, late)
	p.c.expect()
	p.wait(7 * ms)
	p.want(late, ErrTimeout)
	ss := p.s.e.NewSession(false, 4)
	ss.Connect(p.now, Peer{Session: s.Index(), Token: 3, QPN: p.c.qpn, MaxSmall: 500})
	s.Connect(p.now, Peer{Session: ss.Index(), Token: 4, QPN: p.s.qpn, MaxSmall: 500})
	p.run()
	p.want(c, nil)
	s.Fail(p.now, ErrSessionClosed)
	ss.Fail(p.now, ErrSessionClosed)
	p.finish()
}

func TestLostRequestIsSentAgainWithBackoff(t *testing.T) {
	p := newPair(t)
	c := p.call(1, 10, 10)
	p.c.expect(KindRequest)
	start, at := p.now, []int64(nil)
	for p.now < start+400*ms {
		p.wait(ms)
		for range p.c.sent() {
			at = append(at, (p.now-start)/ms)
		}
	}
	want := []int64{10, 30, 70, 150, 230, 310, 390} // doubling up to MaxRTO
	if len(at) != len(want) {
		t.Fatalf("sent again at %v ms, want %v", at, want)
	}
	for i := range at {
		if at[i] != want[i] {
			t.Fatalf("sent again at %v ms, want %v", at, want)
		}
	}
	c.Abort(p.now)
	p.finish()
}

func TestRTOFollowsRoundTrips(t *testing.T) {
	p := newPair(t)
	p.s.e.Handle(1, echo)
	for range 50 {
		c := p.call(1, 10, 10)
		req := p.c.sent()
		p.now += 20 * ms // longer than InitialRTO, but no Tick sees it
		p.to(p.s, req...)
		p.to(p.c, p.s.sent()...)
		p.want(c, nil)
	}
	if p.cs.rto < 20*ms || p.cs.rto > 30*ms {
		t.Errorf("RTO is %d µs after steady round trips of 20 ms", p.cs.rto/1000)
	}
	// A retransmitted request tells nothing (Karn).
	before := p.cs.srtt
	c := p.call(1, 10, 10)
	p.c.sent()
	p.wait(50 * ms)
	req := p.c.expect(KindRequest)
	p.to(p.s, req...)
	p.to(p.c, p.s.sent()...)
	p.want(c, nil)
	if p.cs.srtt != before {
		t.Error("a retransmitted request was taken as a sample")
	}
	p.finish()
}

func TestDuplicateResponsesAreIgnored(t *testing.T) {
	p := newPair(t)
	p.s.e.Handle(1, echo)
	c := p.call(1, 10, 10)
	p.to(p.s, p.c.sent()...)
	r := p.s.expect(KindResponse)[0]
	p.to(p.c, r, r)
	p.want(c, nil)
	next := p.call(1, 20, 20)
	req := p.c.sent()
	p.to(p.c, r) // old number
	p.wantOpen(next)
	p.to(p.s, req...)
	p.run()
	p.want(next, nil)
	if p.c.e.Stats.Duplicates != 2 {
		t.Errorf("%d duplicates counted", p.c.e.Stats.Duplicates)
	}
	p.finish()
}

func TestResponseFromTheFutureIsRefused(t *testing.T) {
	p := newPair(t)
	c := p.call(1, 10, 10)
	req := p.c.sent()[0].header()
	h := Header{Kind: KindResponse, Slot: req.Slot, Session: p.cs.Index(), Token: p.cs.Token(), Seq: req.Seq + 1}
	p.to(p.c, datagram(h, nil))
	p.wantOpen(c)
	if p.c.e.Stats.DropMalformed != 1 {
		t.Error("not counted as malformed")
	}
	c.Abort(p.now)
	p.finish()
}

// datagram returns h and body as one.
func datagram(h Header, body []byte) packet {
	b := make([]byte, HeaderBytes, HeaderBytes+len(body))
	h.Put((*[HeaderBytes]byte)(b))
	return packet{data: append(b, body...)}
}

func controlOf(b msgbuf.Buf) []byte {
	var c [ControlBytes]byte
	(&Control{Addr: b.Addr(), Len: uint64(b.Len()), RKey: b.RKey()}).Put(&c)
	return c[:]
}

func TestRequestBufferWaitsForTheNIC(t *testing.T) {
	p := newPair(t)
	p.s.e.Handle(1, echo)
	c := p.call(1, testMaxSmall, testMaxSmall) // too long to be copied
	p.to(p.s, p.c.sent()...)
	p.to(p.c, p.s.sent()...)
	p.wantOpen(c) // the response is here, but the NIC has not let go of the request
	p.c.txDone()
	p.want(c, nil)
	p.finish()
}

func TestRequestBufferWaitsForEveryCopyInTheNIC(t *testing.T) {
	p := newPair(t)
	p.s.e.Handle(1, echo)
	c := p.call(1, testMaxSmall, testMaxSmall)
	req := p.c.sent()
	p.wait(10 * ms)
	p.c.expect(KindRequest)
	p.to(p.s, req...)
	p.to(p.c, p.s.sent()...)
	p.c.e.TxDone(p.c.tokens[0])
	p.c.flush()
	p.wantOpen(c)
	p.c.e.TxDone(p.c.tokens[1])
	p.c.flush()
	p.want(c, nil)
	p.c.tokens = nil
	p.finish()
}

func TestResponseWhileCopyOfRequestWaitsToBePosted(t *testing.T) {
	p := newPair(t)
	p.s.e.Handle(1, echo)
	c := p.call(1, 10, 10)
	p.to(p.s, p.c.sent()...)
	resp := p.s.sent()
	p.wait(10 * ms) // the retransmission is in Tx now
	p.to(p.c, resp...)
	p.wantOpen(c)
	p.c.flush()
	p.want(c, nil)
	p.run()
	p.finish()
}

func TestAbortSmallWaitsForFlush(t *testing.T) {
	p := newPair(t)
	c := p.call(1, 10, 10)
	c.Abort(p.now)
	p.wantOpen(c)
	p.c.flush()
	p.want(c, ErrAborted)
	c.Abort(p.now) // of no effect
	p.want(c, ErrAborted)
	p.finish()
}

func TestAbortInBacklogIsImmediate(t *testing.T) {
	p := newPair(t)
	for range testWindow {
		p.call(1, 10, 10)
	}
	a, b, c := p.call(1, 1, 1), p.call(1, 2, 2), p.call(1, 3, 3)
	b.Abort(p.now)
	p.want(b, ErrAborted)
	p.s.e.Handle(1, echo)
	p.run()
	p.want(a, nil)
	p.want(c, nil)
	p.finish()
}

func TestAbortLargeCancelsFirst(t *testing.T) {
	p := newPair(t)
	ran := 0
	p.s.e.Handle(1, func(h *Handle) (msgbuf.Buf, error) { ran++; return echo(h) })
	c := p.call(1, 5000, 5000)
	req := p.c.expect(KindLargeRequest)
	c.Abort(p.now)
	cancel := p.c.expect(KindCancel)
	p.wantOpen(c)
	p.to(p.s, cancel...) // overtakes the request
	pulled := p.s.expect(KindPulled)
	p.to(p.s, req...) // must not be pulled any more
	p.s.expect()
	if len(p.s.reads) != 0 || p.s.e.Stats.DropStale != 1 {
		t.Fatal("the server pulls a request that it has let go")
	}
	p.to(p.c, pulled...)
	p.want(c, ErrAborted)
	next := p.call(1, 6000, 6000) // the slot works on
	p.run()
	p.want(next, nil)
	if ran != 1 {
		t.Errorf("handler ran %d times", ran)
	}
	p.finish()
}

func TestAbortLargeWhileTheServerReads(t *testing.T) {
	p := newPair(t)
	p.s.e.Handle(1, func(h *Handle) (msgbuf.Buf, error) {
		t.Error("handler of a cancelled request ran")
		return msgbuf.Buf{}, nil
	})
	c := p.call(1, 5000, 5000)
	p.to(p.s, p.c.expect(KindLargeRequest)...)
	p.s.expect()
	c.Abort(p.now)
	p.to(p.s, p.c.expect(KindCancel)...)
	p.s.expect() // no promise before the READ is over
	p.wantOpen(c)
	p.s.read(p.now, true)
	p.s.out = nil // PULLED is lost
	p.wait(10 * ms)
	p.to(p.s, p.c.expect(KindCancel)...)
	p.to(p.c, p.s.expect(KindPulled)...)
	p.want(c, ErrAborted)
	p.finish()
}

func TestAbortLargeAfterPulledNeedsNoCancel(t *testing.T) {
	p := newPair(t)
	var kept *Handle
	p.s.e.Handle(1, func(h *Handle) (msgbuf.Buf, error) { kept = h; return h.Defer() })
	c := p.call(1, 5000, 5000)
	p.run()
	c.Abort(p.now)
	p.c.expect()
	p.want(c, ErrAborted)
	// The answer to nobody is large: it must be told off.
	b := p.s.message(9000, 1)
	kept.Take()
	p.s.e.Respond(p.now, kept, b, nil)
	p.run()
	if p.ss.server[0].state != serverIdle {
		t.Error("the server keeps its response")
	}
	p.finish()
}

func TestCancelAnsweredByResponse(t *testing.T) {
	for _, n := range []int{10, 5000} {
		p := newPair(t)
		p.s.e.Handle(1, func(h *Handle) (msgbuf.Buf, error) { return p.s.message(n, 1), nil })
		c := p.call(1, 5000, 5000)
		p.to(p.s, p.c.sent()...)
		p.s.read(p.now, true)
		resp := p.s.sent()
		c.Abort(p.now)
		p.c.expect(KindCancel)
		p.to(p.c, resp...)
		p.want(c, ErrAborted)
		p.run()
		if n == 5000 && p.ss.server[0].state != serverIdle {
			t.Error("the server keeps its response")
		}
		p.finish()
	}
}

func TestAbortWhileResponseIsRead(t *testing.T) {
	p := newPair(t)
	p.s.e.Handle(1, func(h *Handle) (msgbuf.Buf, error) { return p.s.message(5000, 1), nil })
	c := p.call(1, 10, 5000)
	p.to(p.s, p.c.sent()...)
	p.to(p.c, p.s.expect(KindLargeResponse)...)
	p.c.expect()
	c.Abort(p.now)
	p.wait(300 * ms)
	p.wantOpen(c) // our READ still writes to its buffer
	p.c.read(p.now, true)
	p.want(c, ErrAborted)
	p.to(p.s, p.c.sent()...)
	p.finish()
}

func TestReadOfResponseFails(t *testing.T) {
	p := newPair(t)
	p.s.e.Handle(1, func(h *Handle) (msgbuf.Buf, error) { return p.s.message(5000, 1), nil })
	c := p.call(1, 10, 5000)
	p.to(p.s, p.c.sent()...)
	p.to(p.c, p.s.sent()...)
	p.c.read(p.now, false)
	p.want(c, ErrReadFailed)
	p.to(p.s, p.c.sent()...)
	if p.ss.server[0].state != serverIdle {
		t.Error("the server keeps its response")
	}
	p.finish()
}

func TestDeadlines(t *testing.T) {
	p := newPair(t)
	start := func(n int) *Call {
		c := &Call{Type: 1, Req: p.c.message(n, 1), Resp: p.c.alloc(10), Deadline: p.now + 5*ms}
		c.Fn = func(c *Call) { p.ended = append(p.ended, c) }
		p.cs.Start(p.now, c)
		return c
	}
	small, large := start(10), start(5000)
	p.call(1, 10, 10)
	p.call(1, 10, 10)
	queued := start(10)
	p.c.sent()
	if at, ok := p.c.e.NextTimer(); !ok || at != p.now+5*ms {
		t.Errorf("next timer is at %d, the deadline at %d", at, p.now+5*ms)
	}
	p.wait(4 * ms)
	for _, c := range []*Call{small, large, queued} {
		p.wantOpen(c)
	}
	p.wait(ms)
	p.want(queued, ErrTimeout)
	cancel := p.c.expect(KindCancel)
	p.want(small, ErrTimeout)
	p.wantOpen(large)
	p.to(p.s, cancel...)
	p.run()
	p.want(large, ErrTimeout)
	p.wait(50 * ms)
	p.run()
	p.finish()
}

func TestPeerThatKeepsACancelledBufferIsStuck(t *testing.T) {
	p := newPair(t)
	c := p.call(1, 5000, 10)
	p.c.sent()
	c.Abort(p.now)
	start := p.now
	for len(p.c.stuck) == 0 && p.now < start+1000*ms {
		p.wait(ms)
		p.c.sent()
	}
	if p.now != start+500*ms || p.c.stuck[0] != 7 {
		t.Fatalf("peer %v stuck after %d ms, want 500", p.c.stuck, (p.now-start)/ms)
	}
	p.wantOpen(c)
	p.c.e.FailDest(p.now, 7, ErrPeerDead)
	p.c.flush()
	p.want(c, ErrAborted)
	if p.cs.Err() != ErrPeerDead {
		t.Errorf("session error is %v", p.cs.Err())
	}
	p.finish()
}

func TestRequestNumbersWrapAround(t *testing.T) {
	p := newPair(t)
	ran := 0
	p.s.e.Handle(1, func(h *Handle) (msgbuf.Buf, error) { ran++; return echo(h) })
	p.cs.slots[0].seq = 1<<32 - 3
	p.ss.server[0].seq, p.ss.server[0].skip = 1<<32-3, 1<<32-3
	var old []packet
	for i := range 6 {
		c := p.call(1, 10+i*3000, 20000)
		req := p.c.sent()
		p.to(p.s, req...)
		if i > 0 {
			p.s.read(p.now, true)
		}
		p.s.sent() // the answer is lost
		p.to(p.s, old...)
		p.s.expect()
		p.to(p.s, req...)
		p.run()
		p.want(c, nil)
		old = append(old, req...)
	}
	if ran != 6 {
		t.Errorf("handler ran %d times for 6 requests", ran)
	}
	if s := p.cs.slots[0].seq; s != 4 {
		t.Errorf("request number is %d, want 4: 0 is left out", s)
	}
	p.finish()
}

func TestOneRequestBufferForManyCalls(t *testing.T) {
	p := newPair(t)
	p.s.e.Handle(1, echo)
	for _, n := range []int{10, testMaxSmall, 5000} {
		req := p.c.message(n, 1)
		left := 64
		for range 64 {
			c := &Call{Type: 1, Req: req, Resp: p.c.alloc(n)}
			c.Fn = func(c *Call) {
				if c.Err != nil || sum(c.Resp.Bytes()) != sum(req.Bytes()) {
					t.Error("bad response", c.Err)
				}
				c.Resp.Free()
				left--
			}
			p.cs.Start(p.now, c)
		}
		p.run()
		if left != 0 {
			t.Fatalf("%d calls are open", left)
		}
		req.Free()
	}
	p.finish()
}

func TestCallMayBeStartedAgainFromItsCallback(t *testing.T) {
	p := newPair(t)
	p.s.e.Handle(1, echo)
	n := 0
	c := &Call{Type: 1, Req: p.c.message(10, 1), Resp: p.c.alloc(10)}
	c.Fn = func(c *Call) {
		if n++; n < 100 {
			p.cs.Start(p.now, c)
			return
		}
		p.ended = append(p.ended, c)
	}
	p.cs.Start(p.now, c)
	p.run()
	p.want(c, nil)
	p.finish()
}

func TestBadDatagramsOfTheServer(t *testing.T) {
	p := newPair(t)
	c := p.call(1, 10, 64)
	req := p.c.sent()[0].header()
	h := Header{Slot: req.Slot, Session: p.cs.Index(), Token: p.cs.Token(), Seq: req.Seq}
	b := p.s.message(5000, 1)
	send := func(k Kind, body []byte) {
		t.Helper()
		h.Kind = k
		p.to(p.c, datagram(h, body))
		p.c.expect()
		p.wantOpen(c)
	}
	send(KindLargeResponse, nil)
	send(KindLargeResponse, controlOf(b)[:23])
	send(KindLargeResponse, append(controlOf(b), 0))
	send(KindLargeResponse, make([]byte, ControlBytes)) // no bytes
	send(KindPulled, []byte{1})
	send(KindRequest, nil)
	send(KindLargeRequest, controlOf(b))
	send(KindCancel, nil)
	if n := p.c.e.Stats.DropMalformed; n != 8 {
		t.Errorf("%d malformed counted, want 8", n)
	}
	// A length that no buffer has ends the call.
	h.Kind = KindLargeResponse
	var big [ControlBytes]byte
	(&Control{Len: 1<<64 - 1}).Put(&big)
	p.to(p.c, datagram(h, big[:]))
	p.c.expect(KindPulled)
	var e *ResponseTooLargeError
	if !errors.As(c.Err, &e) || e.Need <= 0 {
		t.Errorf("ended with %v", c.Err)
	}
	b.Free()
	p.finish()
}

// TestCompletionsWhilePostingChangeNothing: the owner takes completions while
// it posts, to make room in the send queue. What it posts must not grow or go
// away meanwhile.
func TestCompletionsWhilePostingChangeNothing(t *testing.T) {
	p := newPair(t)
	p.s.e.Handle(1, echo)
	p.s.e.Handle(2, func(*Handle) (msgbuf.Buf, error) { return p.s.message(5000, 1), nil })
	token, read, pulled := p.call(1, 500, 500), p.call(2, 0, 5000), p.call(1, 5000, 5000)
	p.to(p.s, p.c.sent()...)
	p.to(p.c, p.s.sent()...)
	p.c.flush()
	p.call(1, 1, 1) // more to post
	tx, reads := len(p.c.e.Tx), len(p.c.e.Reads)
	p.c.e.TxDone(p.c.tokens[0])
	p.c.e.ReadDone(p.now, p.c.reads[0].Token, false)
	p.s.e.ReadDone(p.now, p.s.reads[0].Token, false)
	p.c.tokens, p.c.reads, p.s.reads = nil, nil, nil
	if len(p.c.e.Tx) != tx || len(p.c.e.Reads) != reads || len(p.s.e.Tx) != 0 {
		t.Error("a completion has put something into Tx or Reads")
	}
	p.wantOpen(token)
	p.wantOpen(read)
	if p.c.e.Idle() || p.s.e.Idle() {
		t.Error("idle with completions to serve")
	}
	p.c.flush()
	p.want(token, nil)
	p.want(read, ErrReadFailed)
	p.run()
	p.want(pulled, ErrReadFailed)
	p.finish()
}
