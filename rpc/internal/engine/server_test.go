package engine

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/rrppcc-go/rrppcc/msgbuf"
)

func TestErrorsOfTheServerReachTheCaller(t *testing.T) {
	foreign, _ := msgbuf.NewPool(&registrar{m: &memory{}}, msgbuf.RemoteRead).Alloc(5000)
	var nilErr *HandlerError
	for _, tc := range []struct {
		name    string
		handler func(p *pair) Handler
		err     error         // wanted, by identity
		he      *HandlerError // wanted, by value
		n       int           // bytes of the request
	}{
		{name: "no handler", err: ErrNoHandler},
		{name: "no handler, large request", err: ErrNoHandler, n: 5000},
		{name: "plain error", handler: func(*pair) Handler {
			return func(*Handle) (msgbuf.Buf, error) { return msgbuf.Buf{}, errors.New("no luck") }
		}, he: &HandlerError{Message: "no luck"}},
		{name: "own error, with a buffer", handler: func(p *pair) Handler {
			return func(*Handle) (msgbuf.Buf, error) {
				return p.s.alloc(10), fmt.Errorf("wrapped: %w", &HandlerError{Code: 77, Message: "mine"})
			}
		}, he: &HandlerError{Code: 77, Message: "mine"}, n: 5000},
		{name: "error with the cached buffer", handler: func(p *pair) Handler {
			return func(h *Handle) (msgbuf.Buf, error) { b, _ := h.Response(10); return b, errors.New("") }
		}, he: &HandlerError{}},
		{name: "long text", handler: func(*pair) Handler {
			return func(*Handle) (msgbuf.Buf, error) { return msgbuf.Buf{}, errors.New(strings.Repeat("x", 5000)) }
		}, he: &HandlerError{Message: strings.Repeat("x", MaxErrorText)}},
		{name: "nil error of a type", handler: func(*pair) Handler {
			return func(*Handle) (msgbuf.Buf, error) { return msgbuf.Buf{}, nilErr }
		}, he: &HandlerError{Message: "nil *HandlerError"}},
		{name: "error that panics", handler: func(*pair) Handler {
			return func(*Handle) (msgbuf.Buf, error) { return msgbuf.Buf{}, badError{} }
		}, he: &HandlerError{Message: "the handler's error panicked: bad", Panic: true}},
		{name: "panic", handler: func(*pair) Handler {
			return func(*Handle) (msgbuf.Buf, error) { panic("oops") }
		}, he: &HandlerError{Message: "oops", Panic: true}, n: 5000},
		{name: "panic after a response", handler: func(p *pair) Handler {
			return func(h *Handle) (msgbuf.Buf, error) { h.Response(10); panic(errors.New("late")) }
		}, he: &HandlerError{Message: "late", Panic: true}},
		{name: "another device's buffer", handler: func(*pair) Handler {
			return func(*Handle) (msgbuf.Buf, error) { return foreign, nil }
		}, err: ErrBadResponse},
		{name: "freed buffer", handler: func(p *pair) Handler {
			return func(*Handle) (msgbuf.Buf, error) { b := p.s.alloc(10); b.Free(); return b, nil }
		}, err: ErrBadResponse},
		{name: "large response in local memory", handler: func(p *pair) Handler {
			return func(*Handle) (msgbuf.Buf, error) { return p.s.small.Alloc(testMaxSmall + 1) }
		}, err: ErrBadResponse},
		{name: "response above the limit", handler: func(p *pair) Handler {
			return func(*Handle) (msgbuf.Buf, error) { return p.s.large.Alloc(testMaxMsg + 1) }
		}, err: ErrBadResponse},
	} {
		t.Run(tc.name, func(t *testing.T) {
			p := newPair(t)
			if tc.handler != nil {
				p.s.e.Handle(1, tc.handler(p))
			}
			for range 2 * testWindow { // every slot twice
				c := p.call(1, tc.n, 10)
				p.run()
				var he *HandlerError
				switch {
				case !p.over(c) || c.Err == nil:
					t.Fatal("call did not fail")
				case tc.he != nil && (!errors.As(c.Err, &he) || *he != *tc.he):
					t.Fatalf("ended with %#v, want %#v", c.Err, tc.he)
				case tc.err != nil && c.Err != tc.err:
					t.Fatalf("ended with %v, want %v", c.Err, tc.err)
				}
			}
			p.finish()
		})
	}
}

type badError struct{}

func (badError) Error() string { panic("bad") }

func TestPanickedIsTold(t *testing.T) {
	p := newPair(t)
	p.s.e.Handle(1, func(*Handle) (msgbuf.Buf, error) { panic(42) })
	p.call(1, 0, 0)
	p.run()
	if len(p.s.panics) != 1 || p.s.panics[0] != 42 {
		t.Errorf("told of %v", p.s.panics)
	}
	p.finish()
}

func TestServerOutOfMemory(t *testing.T) {
	p := newPair(t)
	p.s = newEndpoint(t, p.mem, 22, p.now, nil, msgbuf.WithMaxBytes(1)) // less than a region
	p.ss = p.s.e.NewSession(false, 1)
	p.c.e.FailDest(p.now, 7, ErrSessionClosed)
	p.cs = p.c.e.NewSession(true, 2)
	p.connect(testMaxSmall)
	p.s.e.Handle(1, echo)
	c := p.call(1, 5000, 10)
	p.run()
	p.want(c, ErrServerMemory)
	// An error whose text finds no memory goes without.
	p.s.e.Handle(1, func(h *Handle) (msgbuf.Buf, error) { return h.Response(10) })
	c = p.call(1, 10, 10)
	p.run()
	var he *HandlerError
	if !errors.As(c.Err, &he) || he.Message != "" {
		t.Errorf("ended with %v", c.Err)
	}
	p.finish()
}

func TestRequestAboveTheServersLimit(t *testing.T) {
	p := newPair(t)
	p.s.e.cfg.MaxMsg = 4000
	p.s.e.Handle(1, echo)
	c := p.call(1, 5000, 10)
	p.run()
	p.want(c, ErrTooLarge)
	p.finish()
}

func TestServerCannotReadTheRequest(t *testing.T) {
	p := newPair(t)
	p.s.e.Handle(1, echo)
	c := p.call(1, 5000, 10)
	p.to(p.s, p.c.sent()...)
	p.s.read(p.now, false)
	p.run()
	p.want(c, ErrReadFailed)
	p.finish()
}

func TestHandlerRunsOnceForDuplicates(t *testing.T) {
	p := newPair(t)
	ran := 0
	p.s.e.Handle(1, func(h *Handle) (msgbuf.Buf, error) { ran++; return echo(h) })
	for _, n := range []int{10, 500, 5000} {
		ran = 0
		c := p.call(1, n, n)
		req := p.c.sent()[0]
		p.to(p.s, req, req)
		if n == 5000 {
			p.to(p.s, req)
			p.s.expect() // still reading
			p.s.read(p.now, true)
		}
		first := p.s.sent()
		p.to(p.s, req, req) // each is answered with the kept response
		if again := p.s.sent(); len(again) != 2 || string(again[0].data) != string(first[0].data) {
			t.Errorf("%d bytes: duplicates are answered with %v", n, again)
		}
		p.to(p.c, first...)
		p.run()
		p.want(c, nil)
		p.to(p.s, req)
		p.run()
		if ran != 1 {
			t.Errorf("%d bytes: handler ran %d times", n, ran)
		}
	}
	p.finish()
}

func TestStaleRequestsAreDropped(t *testing.T) {
	p := newPair(t)
	p.s.e.Handle(1, echo)
	var old []packet
	for range 3 {
		p.call(1, 10, 10)
		req := p.c.sent()
		old = append(old, req...)
		p.to(p.s, req...)
		p.run()
	}
	p.to(p.s, old[:2]...)
	p.s.expect()
	if p.s.e.Stats.DropStale != 2 || p.s.e.Stats.Handled != 3 {
		t.Errorf("%+v", p.s.e.Stats)
	}
	p.finish()
}

func TestDeferredRequestKeepsItsSlots(t *testing.T) {
	p := newPair(t, func(c *Config) { c.Window = 1 })
	var kept *Handle
	p.s.e.Handle(1, func(h *Handle) (msgbuf.Buf, error) { kept = h; return h.Defer() })
	c := p.call(1, 10, 10)
	req := p.c.sent()
	burst := p.to(p.s, req...)
	if !burst[0].Held {
		t.Fatal("the receive slot is not held")
	}
	if burst := p.to(p.s, req...); burst[0].Held {
		t.Fatal("a duplicate's receive slot is held")
	}
	if sum(kept.Data()) != sum(c.Req.Bytes()) || kept.Large() || kept.Type() != 1 || kept.Session() != p.ss {
		t.Error("the Handle does not show the request")
	}
	// The client gives up and uses the slot again: busy until the answer.
	c.Abort(p.now)
	p.c.flush()
	next := p.call(1, 20, 10)
	p.to(p.s, p.c.expect(KindRequest)...)
	if p.s.e.Stats.DropBusy != 1 {
		t.Error("a busy slot took a request")
	}
	next.Abort(p.now)
	if !kept.Take() || kept.Take() {
		t.Error("Take does not claim once")
	}
	p.s.e.Respond(p.now, kept, msgbuf.Buf{}, nil)
	if len(p.s.e.Released) != 1 || p.s.e.Released[0] != burst[0].Slot {
		t.Errorf("released %v, held %d", p.s.e.Released, burst[0].Slot)
	}
	p.run()
	p.finish()
}

func TestEveryDeferredRequestHasItsOwnHandle(t *testing.T) {
	p := newPair(t)
	var kept []*Handle
	p.s.e.Handle(1, func(h *Handle) (msgbuf.Buf, error) { kept = append(kept, h); return h.Defer() })
	p.s.e.Handle(2, func(h *Handle) (msgbuf.Buf, error) { kept = append(kept, h); return msgbuf.Buf{}, ErrDeferred })
	for i := range 4 {
		c := p.call(uint8(1+i%2), 10, 10)
		p.run()
		h := kept[i]
		if !h.Take() {
			t.Fatal("the reply is taken already")
		}
		p.s.e.Respond(p.now, h, msgbuf.Buf{}, nil)
		p.run()
		p.want(c, nil)
		// Late second answers do nothing but free their buffer.
		if h.Take() {
			t.Error("the reply can be taken again")
		}
		p.s.e.Respond(p.now, h, p.s.message(10, 1), nil)
		p.s.expect()
	}
	p.finish()
}

func TestReplyTakenWhileTheHandlerRuns(t *testing.T) {
	p := newPair(t)
	// Answered from within, then again by returning.
	p.s.e.Handle(1, func(h *Handle) (msgbuf.Buf, error) {
		h.Take()
		p.s.e.Respond(p.now, h, p.s.message(10, 5), nil)
		return p.s.message(20, 6), nil
	})
	// Taken, returned and panicked, answered later: the taker wins.
	var kept *Handle
	p.s.e.Handle(2, func(h *Handle) (msgbuf.Buf, error) {
		kept = h
		h.Take()
		panic("after Take")
	})
	c := p.call(1, 10, 100)
	p.run()
	p.want(c, nil)
	if c.Resp.Len() != 10 {
		t.Errorf("response of %d bytes, want the first one of 10", c.Resp.Len())
	}
	c = p.call(2, 10, 100)
	p.run()
	p.wantOpen(c)
	p.s.e.Respond(p.now, kept, p.s.message(30, 6), nil)
	p.run()
	p.want(c, nil)
	if c.Resp.Len() != 30 {
		t.Errorf("response of %d bytes, want the taker's 30", c.Resp.Len())
	}
	if p.s.e.Released == nil {
		t.Error("the receive slot was not given back")
	}
	p.finish()
}

func TestSessionFailsWhileHandlerIsDeferred(t *testing.T) {
	for _, n := range []int{10, 5000} {
		p := newPair(t)
		var kept *Handle
		p.s.e.Handle(1, func(h *Handle) (msgbuf.Buf, error) {
			kept = h
			_, _ = h.Response(10)
			return h.Defer()
		})
		c := p.call(1, n, 10)
		want := sum(c.Req.Bytes())
		p.run()
		p.ss.Fail(p.now, ErrPeerDead)
		p.s.flush()
		if sum(kept.Data()) != want || len(p.s.e.Released) != 0 {
			t.Error("the request was taken from under the handler")
		}
		kept.Take()
		p.s.e.Respond(p.now, kept, p.s.message(9000, 1), nil)
		p.s.expect()
		if n == 10 && len(p.s.e.Released) != 1 {
			t.Error("the receive slot was not given back")
		}
		c.Abort(p.now)
		p.run()
		p.finish()
	}
}

func TestSessionFailsInTheHandler(t *testing.T) {
	for _, n := range []int{10, 5000} {
		p := newPair(t)
		p.s.e.Handle(1, func(h *Handle) (msgbuf.Buf, error) {
			h.Session().Fail(p.now, ErrPeerDead)
			return echo(h)
		})
		c := p.call(1, n, n)
		p.run()
		c.Abort(p.now)
		p.cs.Fail(p.now, ErrPeerDead)
		p.run()
		p.want(c, ErrAborted)
		p.finish()
	}
}

func TestSessionFailsWhileReading(t *testing.T) {
	p := newPair(t)
	p.s.e.Handle(1, echo)
	p.s.e.Handle(2, func(*Handle) (msgbuf.Buf, error) { return p.s.message(5000, 1), nil })
	p.s.e.Handle(3, func(*Handle) (msgbuf.Buf, error) { return p.s.message(500, 1), nil })
	a, b, c := p.call(1, 5000, 5000), p.call(2, 10, 5000), p.call(3, 500, 500)
	p.to(p.s, p.c.sent()...)
	p.to(p.c, p.s.sent()...)
	p.c.flush()
	p.cs.Fail(p.now, ErrPeerDead)
	p.ss.Fail(p.now, ErrPeerDead)
	p.c.flush()
	p.s.flush()
	p.want(a, ErrPeerDead)
	p.wantOpen(b) // READ in flight
	p.wantOpen(c) // send in flight
	if n := p.s.small.Stats().InUse; n != 2 {
		t.Errorf("the server holds %d buffers, want the READ's and the send's", n)
	}
	p.c.read(p.now, false)
	p.c.txDone()
	p.want(b, ErrPeerDead)
	p.want(c, nil) // its response came before the failure
	p.s.read(p.now, false)
	p.s.txDone()
	if n := p.s.small.Stats().InUse; n != 0 {
		t.Errorf("the server holds %d buffers", n)
	}
	p.finish()
}

func TestLargeResponseIsOfferedUntilPulled(t *testing.T) {
	p := newPair(t)
	p.s.e.Handle(1, func(*Handle) (msgbuf.Buf, error) { return p.s.message(5000, 1), nil })
	c := p.call(1, 10, 5000)
	p.to(p.s, p.c.sent()...)
	p.to(p.c, p.s.expect(KindLargeResponse)...)
	p.c.read(p.now, true)
	p.want(c, nil)
	p.c.expect(KindPulled) // lost
	p.wait(10 * ms)
	offer := p.s.expect(KindLargeResponse)
	p.to(p.c, offer...)
	p.c.flush()
	if len(p.c.reads) != 0 {
		t.Fatal("pulled twice")
	}
	p.to(p.s, p.c.expect(KindPulled)...)
	p.s.flush()
	if n := p.s.large.Stats().InUse; n != 0 {
		t.Error("the response is kept after PULLED")
	}
	for range 20 {
		p.wait(50 * ms)
		p.s.expect()
	}
	p.finish()
}

func TestNewRequestReleasesTheResponseBefore(t *testing.T) {
	p := newPair(t)
	p.s.e.Handle(1, func(h *Handle) (msgbuf.Buf, error) { return p.s.message(500, 1), nil })
	for range 10 {
		p.call(1, 10, 500)
		p.run()
		if n := p.s.small.Stats().InUse; n != 1 {
			t.Fatalf("%d buffers in use, want the last response", n)
		}
	}
	// While the NIC still reads it, it stays.
	p.call(1, 10, 500)
	p.to(p.s, p.c.sent()...)
	p.to(p.c, p.s.sent()...)
	p.call(1, 10, 500)
	p.to(p.s, p.c.sent()...)
	p.s.flush()
	if n := p.s.small.Stats().InUse; n != 2 {
		t.Errorf("%d buffers in use, want 2", n)
	}
	p.run()
	p.finish()
}

func TestCachedResponseIsNotReusedWhileTheNICReadsIt(t *testing.T) {
	p := newPair(t)
	p.s.e.Handle(1, echo)
	p.call(1, 500, 500)
	p.to(p.s, p.c.sent()...)
	p.s.flush()
	first := p.ss.server[0].cache
	p.to(p.c, p.s.sent()...)
	p.c.txDone()
	p.call(1, 500, 500)
	p.to(p.s, p.c.sent()...)
	p.s.flush()
	if p.ss.server[0].cache == first {
		t.Error("the buffer is used again while its send is in flight")
	}
	p.run()
	first = p.ss.server[0].cache
	p.call(1, 500, 500)
	p.run()
	if p.ss.server[0].cache != first {
		t.Error("the buffer is not used again although it is free")
	}
	p.finish()
}

func TestServerDropsForgedAndMalformed(t *testing.T) {
	p := newPair(t)
	p.s.e.Handle(1, func(*Handle) (msgbuf.Buf, error) { t.Error("handler ran"); return msgbuf.Buf{}, nil })
	good := Header{Kind: KindRequest, Type: 1, Session: p.ss.Index(), Token: p.ss.Token(), Seq: 1}
	b := p.c.message(5000, 1)
	drop := func(name string, count *uint64, change func(*Header), body []byte) {
		t.Helper()
		h, before := good, *count
		change(&h)
		p.to(p.s, datagram(h, body))
		p.s.expect()
		if *count != before+1 {
			t.Errorf("%s: not counted: %+v", name, p.s.e.Stats)
		}
	}
	st := &p.s.e.Stats
	drop("token", &st.DropToken, func(h *Header) { h.Token++ }, nil)
	drop("session", &st.DropSession, func(h *Header) { h.Session = 77 }, nil)
	drop("slot", &st.DropMalformed, func(h *Header) { h.Slot = testWindow }, nil)
	drop("number 0", &st.DropMalformed, func(h *Header) { h.Seq = 0 }, nil)
	drop("no control", &st.DropMalformed, func(h *Header) { h.Kind = KindLargeRequest }, nil)
	drop("no bytes", &st.DropMalformed, func(h *Header) { h.Kind = KindLargeRequest }, make([]byte, ControlBytes))
	drop("short control", &st.DropMalformed, func(h *Header) { h.Kind = KindLargeRequest }, controlOf(b)[:20])
	drop("cancel with a body", &st.DropMalformed, func(h *Header) { h.Kind = KindCancel }, []byte{1})
	drop("pulled with a body", &st.DropMalformed, func(h *Header) { h.Kind = KindPulled }, []byte{1})
	drop("response", &st.DropMalformed, func(h *Header) { h.Kind = KindResponse }, nil)
	drop("large response", &st.DropMalformed, func(h *Header) { h.Kind = KindLargeResponse }, controlOf(b))
	drop("error", &st.DropMalformed, func(h *Header) { h.Kind = KindError }, nil)
	d := datagram(good, nil).data
	p.s.e.Receive(p.now, []Rx{{Data: d, SrcQPN: 12345}}) // another sender
	if st.DropToken != 2 {
		t.Error("another sender: not counted")
	}
	for n := range HeaderBytes {
		p.s.e.Receive(p.now, []Rx{{Data: d[:n], SrcQPN: p.c.qpn}})
	}
	if st.DropShort != HeaderBytes {
		t.Errorf("%d short ones counted", st.DropShort)
	}
	d[0] = (Version+1)<<4 | 1
	p.s.e.Receive(p.now, []Rx{{Data: d, SrcQPN: p.c.qpn}})
	if st.DropVersion != 1 {
		t.Error("another version: not counted")
	}
	b.Free()
	p.finish()
}

func TestAClientCannotMakeTheServerHoldMoreThanItsWindow(t *testing.T) {
	p := newPair(t)
	p.s.e.Handle(1, func(h *Handle) (msgbuf.Buf, error) { return p.s.e.Alloc(5000) })
	b := p.c.message(5000, 1)
	for i := range uint32(1000) { // never says PULLED
		h := Header{Kind: KindLargeRequest, Type: 1, Slot: uint8(i % testWindow), Session: p.ss.Index(), Token: p.ss.Token(), Seq: 1 + i}
		p.to(p.s, datagram(h, controlOf(b)))
		p.s.flush()
		for len(p.s.reads) > 3 {
			p.s.read(p.now, true)
		}
		if n := p.s.large.Stats().InUse + p.s.small.Stats().InUse; n > 2*testWindow {
			t.Fatalf("the server holds %d buffers", n)
		}
	}
	b.Free()
	p.run()
	p.finish()
}

func TestNewRequestsAvoidSlotsThatAreBusyAtTheServer(t *testing.T) {
	p := newPair(t)
	var kept []*Handle
	p.s.e.Handle(1, echo)
	p.s.e.Handle(2, func(h *Handle) (msgbuf.Buf, error) { kept = append(kept, h); return h.Defer() })
	for i := range testWindow {
		for range 3 { // the slots that are left serve on
			c := p.call(1, 10, 10)
			p.run()
			p.want(c, nil)
		}
		c := p.call(2, 10+3000*(i%2), 10)
		p.run()
		c.Abort(p.now)
		p.run()
		p.want(c, ErrAborted)
	}
	if p.s.e.Stats.DropBusy != 0 {
		t.Errorf("%d requests met a busy slot", p.s.e.Stats.DropBusy)
	}
	// Now all are busy. The answer to the old request lets the new one in, at
	// once.
	c := p.call(1, 10, 10)
	p.run()
	p.wantOpen(c)
	for _, h := range kept {
		h.Take()
		p.s.e.Respond(p.now, h, msgbuf.Buf{}, nil)
	}
	p.run()
	p.want(c, nil)
	if p.cs.doubt != 0 {
		t.Errorf("slots %b are in doubt", p.cs.doubt)
	}
	p.finish()
}
