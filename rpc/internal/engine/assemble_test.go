package engine

import (
	"bytes"
	"errors"
	"slices"
	"testing"

	"github.com/rrppcc-go/rrppcc/msgbuf"
)

// testPart is what a part carries in the tests' sessions.
const testPart = testMaxSmall - PartBytes

// missing returns what a KindMissing asks for.
func (p packet) missing() uint64 {
	which, ok := parseMissing(p.data[HeaderBytes:])
	if !ok {
		panic("engine sent a bad question")
	}
	return which
}

// kinds returns n times k.
func kinds(k Kind, n int) []Kind { return slices.Repeat([]Kind{k}, n) }

// part makes a datagram with one part of data.
func part(h Header, total, index int, data []byte) packet {
	var b [PartBytes]byte
	(&Part{Total: uint32(total), Index: uint8(index)}).Put(&b)
	return datagram(h, append(b[:], data...))
}

// wantEcho requires that c ended with its request as the response, all of it by
// datagrams.
func (p *pair) wantEcho(c *Call) {
	p.Helper()
	p.want(c, nil)
	if !bytes.Equal(c.Resp.Bytes(), c.Req.Bytes()) {
		p.Errorf("%d bytes: the response of %d bytes differs", c.Req.Len(), c.Resp.Len())
	}
	if c.ReqLarge || c.RespLarge {
		p.Errorf("%d bytes: large request %v, large response %v", c.Req.Len(), c.ReqLarge, c.RespLarge)
	}
}

func TestMessagesInPartsRoundTrip(t *testing.T) {
	for _, parts := range []int{2, 3, 17, 64} {
		p := newPairOfParts(t, parts)
		runs := 0
		p.s.e.Handle(1, func(h *Handle) (msgbuf.Buf, error) {
			runs++
			if h.Large() != (len(h.Data()) > parts*testPart) {
				t.Error("the handler is told wrong whether the request was pulled")
			}
			return echo(h)
		})
		sizes := []int{testMaxSmall, testMaxSmall + 1}
		for k := 2; k <= parts; k += 1 + k/3 {
			sizes = append(sizes, k*testPart-1, k*testPart, k*testPart+1)
		}
		sizes = append(sizes, parts*testPart-1, parts*testPart, parts*testPart+1)
		for i, n := range sizes {
			reads := p.s.e.Stats.Reads + p.c.e.Stats.Reads
			c := p.call(1, n, n)
			p.run()
			p.want(c, nil)
			if large := n > parts*testPart; large {
				if !c.ReqLarge || !c.RespLarge {
					t.Errorf("%d parts, %d bytes: large request %v, large response %v", parts, n, c.ReqLarge, c.RespLarge)
				}
			} else {
				p.wantEcho(c)
				if p.s.e.Stats.Reads+p.c.e.Stats.Reads != reads {
					t.Errorf("%d parts, %d bytes: there was a READ", parts, n)
				}
			}
			if runs != i+1 {
				t.Errorf("%d parts, %d bytes: %d handlers have run, want %d", parts, n, runs, i+1)
			}
		}
		st, sst := p.c.e.Stats, p.s.e.Stats
		if st.Retransmits+sst.Retransmits+st.Duplicates+sst.Duplicates+st.DropMalformed+sst.DropMalformed != 0 {
			t.Errorf("%d parts: %+v %+v", parts, st, sst)
		}
		if st.Assembled == 0 || st.Assembled != sst.Assembled {
			t.Errorf("%d parts: %d and %d messages assembled", parts, st.Assembled, sst.Assembled)
		}
		p.finish()
	}
}

// Parts may come in any order, and any of them twice, and late ones after the
// answer.
func TestPartsInAnyOrder(t *testing.T) {
	const n = 3*testPart + 5
	for order := range 24 {
		p := newPairOfParts(t, 4)
		runs := 0
		p.s.e.Handle(1, func(h *Handle) (msgbuf.Buf, error) {
			runs++
			return echo(h)
		})
		c := p.call(1, n, n)
		// permute returns parts in the order with that number, the second one
		// twice.
		permute := func(ps []packet) (out []packet) {
			left := slices.Clone(ps)
			for k, o := len(left), order; k > 0; k-- {
				out = append(out, left[o%k])
				left = slices.Delete(left, o%k, o%k+1)
				o /= k
			}
			return slices.Insert(out, 2, out[1])
		}
		reqs := permute(p.c.expect(kinds(KindRequestPart, 4)...))
		for i, r := range reqs {
			p.to(p.s, r)
			if i < len(reqs)-1 {
				p.s.expect()
			}
		}
		resps := permute(p.s.expect(kinds(KindResponsePart, 4)...))
		for i, r := range resps {
			if i < len(resps)-1 {
				p.wantOpen(c)
			}
			p.to(p.c, r)
		}
		p.c.txDone()
		p.wantEcho(c)
		p.to(p.s, reqs...)
		p.s.expect()
		p.to(p.c, resps...)
		p.c.expect()
		if runs != 1 {
			t.Errorf("order %d: the handler ran %d times", order, runs)
		}
		p.finish()
	}
}

func TestResponseInPartsLongerThanBuffer(t *testing.T) {
	const n = 3 * testPart
	for first := range 3 {
		p := newPairOfParts(t, 3)
		p.s.e.Handle(1, func(h *Handle) (msgbuf.Buf, error) { return p.s.message(n, 1), nil })
		c := p.call(1, 10, 64)
		mark := sum(c.Resp.Full())
		p.to(p.s, p.c.sent()...)
		ps := p.s.expect(kinds(KindResponsePart, 3)...)
		p.to(p.c, ps[first])
		p.c.flush()
		var e *ResponseTooLargeError
		if !p.over(c) || !errors.As(c.Err, &e) || e.Need != n || e.Cap != c.Resp.Cap() {
			t.Errorf("part %d: %v", first, c.Err)
		}
		p.to(p.c, ps...)
		if sum(c.Resp.Full()) != mark {
			t.Error("the buffer was written to")
		}
		p.finish()
	}
}

// A call that ends in the middle of its response gives its buffer back at once,
// and what comes late does not touch it.
func TestAbortInTheMiddleOfAResponse(t *testing.T) {
	const n = 3 * testPart
	for name, end := range map[string]func(p *pair, c *Call) error{
		"abort":    func(p *pair, c *Call) error { c.Abort(p.now); return ErrAborted },
		"deadline": func(p *pair, c *Call) error { p.wait(30 * ms); return ErrTimeout },
		"death":    func(p *pair, c *Call) error { p.cs.Fail(p.now, ErrPeerDead); return ErrPeerDead },
		"closing":  func(p *pair, c *Call) error { p.cs.Closing(p.now, ErrSessionClosed); return ErrSessionClosed },
	} {
		p := newPairOfParts(t, 3)
		p.s.e.Handle(1, echo)
		c := &Call{Type: 1, Req: p.c.message(n, 1), Resp: p.c.alloc(n), Deadline: p.now + 25*ms}
		c.Fn = func(c *Call) { p.ended = append(p.ended, c) }
		p.cs.Start(p.now, c)
		p.to(p.s, p.c.sent()...)
		ps := p.s.sent()
		p.to(p.c, ps[:2]...)
		p.wantOpen(c)
		want := end(p, c)
		p.c.txDone()
		p.want(c, want)
		scribble(c.Resp.Full())
		mark := sum(c.Resp.Full())
		p.to(p.c, ps...)
		if sum(c.Resp.Full()) != mark {
			t.Errorf("%s: the response came into a buffer that the caller has back", name)
		}
		p.finish()
	}
}

// A request that is given up in the middle leaves nothing at the server once
// the slot's next one comes, and that one first asks whether there is room.
func TestAbortInTheMiddleOfARequest(t *testing.T) {
	for _, next := range []int{10, 3 * testPart, 50_000} {
		p := newPairOfParts(t, 3, func(c *Config) { c.Window = 1 })
		runs := 0
		p.s.e.Handle(1, func(h *Handle) (msgbuf.Buf, error) {
			runs++
			return echo(h)
		})
		c := p.call(1, 3*testPart, 3*testPart)
		ps := p.c.sent()
		p.to(p.s, ps[0], ps[2])
		c.Abort(p.now)
		p.c.txDone()
		p.want(c, ErrAborted)
		scribble(c.Req.Full())

		c2 := p.call(1, next, next)
		if next == 3*testPart {
			p.to(p.s, p.c.expect(KindMissing)...)
			p.to(p.c, p.s.expect(KindMissing)...)
			p.to(p.s, p.c.expect(kinds(KindRequestPart, 3)...)...)
		}
		p.run()
		p.want(c2, nil)
		if !bytes.Equal(c2.Resp.Bytes(), c2.Req.Bytes()) {
			t.Errorf("%d bytes: wrong response", next)
		}
		p.to(p.s, ps...)
		p.s.expect()
		if runs != 1 || p.s.e.pulled != 0 {
			t.Errorf("%d bytes: %d handlers have run, %d bytes of requests are kept", next, runs, p.s.e.pulled)
		}
		p.finish()
	}
}

// While the handler of the request before is still at work, the next one waits
// and is not sent in vain.
func TestRequestInPartsBehindABusySlot(t *testing.T) {
	p := newPairOfParts(t, 3, func(c *Config) { c.Window = 1 })
	var h *Handle
	p.s.e.Handle(1, func(x *Handle) (msgbuf.Buf, error) { h = x; return h.Defer() })
	p.s.e.Handle(2, echo)
	c := p.call(1, 2*testPart, 100)
	p.to(p.s, p.c.sent()...)
	c.Abort(p.now)
	p.c.txDone()
	p.want(c, ErrAborted)
	c2 := p.call(2, 3*testPart, 3*testPart)
	p.to(p.s, p.c.expect(KindMissing)...)
	p.s.expect()
	if p.s.e.Stats.DropBusy != 1 {
		t.Errorf("%+v", p.s.e.Stats)
	}
	h.Take()
	p.s.e.Respond(p.now, h, msgbuf.Buf{}, nil)
	p.to(p.c, p.s.expect(KindResponse)...) // the late answer: now there is room
	p.to(p.s, p.c.expect(KindMissing)...)
	p.to(p.c, p.s.expect(KindMissing)...)
	p.to(p.s, p.c.expect(kinds(KindRequestPart, 3)...)...)
	p.run()
	p.wantEcho(c2)
	p.finish()
}

func TestPeerDiesInTheMiddleOfARequest(t *testing.T) {
	p := newPairOfParts(t, 4)
	p.s.e.Handle(1, echo)
	c := p.call(1, 4*testPart, 100)
	p.to(p.s, p.c.sent()[:3]...)
	p.ss.Fail(p.now, ErrPeerDead)
	if p.s.e.pulled != 0 {
		t.Error("the request's memory is kept")
	}
	p.cs.Fail(p.now, ErrPeerDead)
	p.c.txDone()
	p.want(c, ErrPeerDead)
	p.finish()
}

func TestMalformedPartsAreDropped(t *testing.T) {
	p := newPairOfParts(t, 4)
	runs := 0
	p.s.e.Handle(1, func(h *Handle) (msgbuf.Buf, error) {
		runs++
		return echo(h)
	})
	const n = 2*testPart + 7 // three parts
	full, rest := make([]byte, testPart), make([]byte, 7)
	bad := map[string]func(h Header) packet{
		"index beyond the count":  func(h Header) packet { return part(h, n, 3, rest) },
		"index far beyond":        func(h Header) packet { return part(h, n, 255, full) },
		"no data":                 func(h Header) packet { return part(h, n, 0, nil) },
		"too little data":         func(h Header) packet { return part(h, n, 1, full[1:]) },
		"too much data":           func(h Header) packet { return part(h, n, 2, full) },
		"length 0":                func(h Header) packet { return part(h, 0, 0, nil) },
		"short enough for one":    func(h Header) packet { return part(h, testMaxSmall, 0, full) },
		"more than the ring has":  func(h Header) packet { return part(h, 4*testPart+1, 0, full) },
		"far more":                func(h Header) packet { return part(h, 1<<32-1, 0, full) },
		"no block":                func(h Header) packet { return datagram(h, nil) },
		"block that is too short": func(h Header) packet { return datagram(h, make([]byte, PartBytes-1)) },
		"reserved byte":           func(h Header) packet { return datagram(h, append([]byte{0xff, 7, 0, 0, 0, 1, 0, 0}, full...)) },
	}
	h := Header{Kind: KindRequestPart, Type: 1, Slot: 2, Session: p.ss.Index(), Token: p.ss.Token(), Seq: 1}
	st := &p.s.e.Stats
	deliver := func(name string, pk packet, want uint64) {
		t.Helper()
		before := st.DropMalformed
		p.to(p.s, pk)
		p.s.expect()
		if got := st.DropMalformed - before; got != want {
			t.Errorf("%s: %d counted, want %d", name, got, want)
		}
	}
	for name, make := range bad {
		deliver(name, make(h), 1)
	}
	if p.ss.server[2].state != serverIdle || p.s.e.pulled != 0 {
		t.Fatal("a malformed part has begun a request")
	}
	// In the middle of a message, the same, and another length.
	deliver("good", part(h, n, 1, full), 0)
	for name, make := range bad {
		deliver(name+", in the middle", make(h), 1)
	}
	deliver("another length", part(h, n+1, 0, full), 1)
	deliver("number 0", part(Header{Kind: KindRequestPart, Type: 1, Slot: 2, Session: h.Session, Token: h.Token}, n, 0, full), 1)
	deliver("good", part(h, n, 2, rest), 0)
	for _, body := range [][]byte{nil, make([]byte, 7), make([]byte, 8), make([]byte, 9)} {
		m := h
		m.Kind = KindMissing
		deliver("question", datagram(m, body), 1)
	}
	if runs != 0 {
		t.Error("the handler has run")
	}
	p.to(p.s, part(h, n, 0, full))
	p.s.expect(kinds(KindResponsePart, 3)...)
	if runs != 1 {
		t.Errorf("the handler has run %d times", runs)
	}

	// The client.
	c := p.call(1, 10, n)
	p.c.sent()
	ch := Header{Kind: KindResponsePart, Slot: 0, Session: p.cs.Index(), Token: p.cs.Token(), Seq: 1}
	before := p.c.e.Stats.DropMalformed
	for _, make := range bad {
		p.to(p.c, make(ch))
	}
	p.to(p.c, part(ch, n, 0, full))
	for _, make := range bad {
		p.to(p.c, make(ch))
	}
	p.to(p.c, part(ch, n-1, 1, full))
	for _, k := range []Kind{KindResponse, KindError, KindLargeResponse} { // it has begun another answer
		x := ch
		x.Kind = k
		p.to(p.c, datagram(x, make([]byte, ControlBytes)))
	}
	m := ch
	m.Kind = KindMissing
	p.to(p.c, datagram(m, []byte{1, 0, 0, 0, 0, 0, 0, 0})) // of a request in one datagram
	if got, want := p.c.e.Stats.DropMalformed-before, uint64(2*len(bad)+5); got != want {
		t.Errorf("the client counts %d malformed, want %d", got, want)
	}
	p.wantOpen(c)
	p.to(p.c, part(ch, n, 2, rest), part(ch, n, 1, full))
	p.c.txDone()
	p.want(c, nil)
	p.finish()
}

func TestMemoryOfRequestsInPartsIsBounded(t *testing.T) {
	p := newPairOfParts(t, 4, func(c *Config) { c.MaxPulled = 5000 })
	p.s.e.Handle(1, echo)
	a := p.call(1, 4*testPart, 4*testPart)
	ps := p.c.sent()
	p.to(p.s, ps[0])
	b := p.call(1, 2*testPart, 2*testPart)
	p.to(p.s, p.c.sent()...)
	p.to(p.c, p.s.expect(KindError)...)
	p.c.txDone()
	p.want(b, ErrServerMemory)
	p.to(p.s, ps...)
	p.run()
	p.wantEcho(a)
	if p.s.e.pulled != 0 {
		t.Errorf("%d bytes are counted still", p.s.e.pulled)
	}
	p.finish()

	p = newPairOfParts(t, 4)
	p.s.e.cfg.MaxMsg = 2*testPart - 1
	p.s.e.Handle(1, echo)
	c := p.call(1, 2*testPart, 100)
	p.run()
	p.want(c, ErrTooLarge)
	p.finish()

	p = newPairOfParts(t, 4)
	p.s.e.cfg.Small = msgbuf.NewPool(p.s.reg, msgbuf.Local, msgbuf.WithMaxBytes(1))
	p.s.e.Handle(1, echo)
	c = p.call(1, 2*testPart, 100)
	p.run()
	p.want(c, ErrServerMemory)
	p.finish()
}

// The rest of a request whose client went quiet is forgotten, as if it had never
// come, and comes again whole if the client was only slow.
func TestIncompleteRequestIsForgotten(t *testing.T) {
	for _, first := range []uint32{1, 1<<32 - 1} { // its number
		p := newPairOfParts(t, 4)
		runs := 0
		p.s.e.Handle(1, func(h *Handle) (msgbuf.Buf, error) {
			runs++
			return echo(h)
		})
		p.cs.slots[0].seq, p.ss.server[0].seq, p.ss.server[0].skip = first-1, first-1, first-1
		c := p.call(1, 4*testPart, 4*testPart)
		ps := p.c.sent()
		p.to(p.s, ps[1])
		for range 3 { // as long as it asks, it is not forgotten
			p.wait(p.s.e.partsKept() - 2*ms)
			p.to(p.s, p.c.expect(KindMissing)...)
			if got := p.s.expect(KindMissing)[0].missing(); got != 0b1101 {
				t.Errorf("the server misses %b", got)
			}
		}
		p.wait(p.s.e.partsKept() + 2*ms)
		if p.s.e.pulled != 0 || p.ss.server[0].req.Valid() {
			t.Error("the memory of an abandoned request is kept")
		}
		p.to(p.s, p.c.expect(KindMissing)...)
		p.to(p.c, p.s.expect(KindMissing)...)
		p.to(p.s, p.c.expect(kinds(KindRequestPart, 4)...)...)
		p.run()
		p.wantEcho(c)
		p.to(p.s, ps...)
		p.s.expect()
		if runs != 1 {
			t.Errorf("the handler ran %d times", runs)
		}
		p.finish()
	}
}

// What was cancelled stays so, also when an incomplete request before it is
// forgotten: its memory is the client's again.
func TestForgettingKeepsCancellations(t *testing.T) {
	p := newPairOfParts(t, 4, func(c *Config) { c.Window = 1 })
	p.s.e.Handle(1, func(*Handle) (msgbuf.Buf, error) { t.Error("the handler ran"); return msgbuf.Buf{}, nil })
	a := p.call(1, 4*testPart, 10)
	p.to(p.s, p.c.sent()[1])
	a.Abort(p.now)
	p.c.txDone()
	b := p.call(1, 50_000, 10)
	late := p.c.expect(KindLargeRequest)
	b.Abort(p.now)
	p.to(p.s, p.c.expect(KindCancel)...)
	p.to(p.c, p.s.expect(KindPulled)...)
	p.c.flush()
	p.want(b, ErrAborted)
	p.wait(p.s.e.partsKept() + 2*ms)
	if p.s.e.pulled != 0 {
		t.Error("not forgotten")
	}
	p.to(p.s, late...)
	p.s.flush()
	if len(p.s.reads) != 0 {
		t.Error("the server reads a request that was cancelled")
	}
	p.finish()
}

// A client that cancels a request in parts, which it need not, is believed.
func TestCancelOfARequestInParts(t *testing.T) {
	p := newPairOfParts(t, 4)
	p.s.e.Handle(1, func(*Handle) (msgbuf.Buf, error) { t.Error("the handler ran"); return msgbuf.Buf{}, nil })
	c := p.call(1, 2*testPart, 10)
	ps := p.c.sent()
	p.to(p.s, ps[0])
	h := ps[0].header()
	h.Kind = KindCancel
	p.to(p.s, datagram(h, nil))
	p.s.expect(KindPulled)
	if p.s.e.pulled != 0 {
		t.Error("the memory is kept")
	}
	p.to(p.s, ps...)
	p.s.expect()
	c.Abort(p.now)
	p.c.txDone()
	p.want(c, ErrAborted)
	p.finish()
}

func TestRequestAndResponseInPartsShareABuffer(t *testing.T) {
	p := newPairOfParts(t, 4)
	p.s.e.Handle(1, func(h *Handle) (msgbuf.Buf, error) { // as long, but other bytes
		return p.s.message(len(h.Data()), 7), nil
	})
	buf := p.c.message(3*testPart, 1)
	c := &Call{Type: 1, Req: buf, Resp: buf, Fn: func(c *Call) { p.ended = append(p.ended, c) }}
	p.cs.Start(p.now, c)
	p.to(p.s, p.c.sent()...)
	ps := p.s.sent()
	p.to(p.c, ps[0], ps[2])
	for range 3 { // the request is half overwritten, and must not go out again
		p.wait(100 * ms)
		p.c.expect(KindMissing)
	}
	p.to(p.c, ps[1])
	p.c.txDone()
	p.want(c, nil)
	want := make([]byte, 3*testPart)
	stream(7, want)
	if !bytes.Equal(buf.Bytes(), want) {
		t.Error("wrong response")
	}
	c.Resp = msgbuf.Buf{}
	p.finish()
}

// A message that goes in parts by the endpoint's measure, in memory that no peer
// can read, is copied where a session's peer has no room for parts.
func TestSessionWithoutRoomForParts(t *testing.T) {
	p := newPairOfParts(t, 1, func(c *Config) { c.Threshold = 5 * testPart })
	p.s.e.Handle(1, func(h *Handle) (msgbuf.Buf, error) {
		b := p.s.alloc(len(h.Data()))
		copy(b.Bytes(), h.Data())
		return b, nil
	})
	for n := testMaxSmall; n < 5*testPart; n += 700 {
		c := p.call(1, n, n)
		if c.Req.RKey() != 0 {
			t.Errorf("%d bytes: the peer can read the buffer", n)
		}
		p.run()
		p.want(c, nil)
		if !bytes.Equal(c.Resp.Bytes(), c.Req.Bytes()) || c.ReqLarge != (n > testMaxSmall) || c.RespLarge != c.ReqLarge {
			t.Errorf("%d bytes: wrong response, or large %v %v", n, c.ReqLarge, c.RespLarge)
		}
	}
	p.finish()
}

// A large request that is being cancelled ends with any answer, also one in
// parts.
func TestPartEndsACancelledRequest(t *testing.T) {
	p := newPairOfParts(t, 4)
	p.s.e.Handle(1, func(h *Handle) (msgbuf.Buf, error) { return p.s.message(2*testPart, 1), nil })
	c := p.call(1, 50_000, 2*testPart)
	p.to(p.s, p.c.sent()...)
	p.s.read(p.now, true)
	ps := p.s.expect(kinds(KindResponsePart, 2)...)
	c.Abort(p.now)
	p.c.expect(KindCancel)
	p.to(p.c, ps[1])
	p.c.flush()
	p.want(c, ErrAborted)
	p.finish()
}
