package engine

import (
	"errors"
	"testing"

	"github.com/rrppcc-go/rrppcc/msgbuf"
)

func withOffers(c *Config) { c.Offers = true }

func TestRequestIsSentOnceItCanBeRead(t *testing.T) {
	p := newPair(t, withOffers)
	p.s.e.Handle(1, echo)
	c := p.call(1, 5000, 6000)
	p.c.expect()
	p.wait(200 * ms) // nothing is repeated that was not sent
	p.c.expect()
	if o := p.c.offers; len(o) != 1 || o[0].Dest != 7 || o[0].Addr != c.Req.Addr() || o[0].Len != 5000 || o[0].LKey != c.Req.LKey() {
		t.Fatalf("offers: %+v", p.c.offers)
	}
	p.c.grant(p.now, 1)
	ps := p.c.expect(KindLargeRequest)
	if ctl, ok := ParseControl(ps[0].data[HeaderBytes:]); !ok || ctl.Conn != 1 || p.mem.remote(ctl.Addr, ctl.Len, ctl.RKey, 1) == nil {
		t.Fatalf("control block: %+v", ctl)
	}
	p.to(p.s, ps...)
	p.run()
	p.want(c, nil)
	if sum(c.Req.Bytes()) != sum(c.Resp.Bytes()) {
		t.Error("wrong response")
	}
	p.finish()
}

func TestRequestEndsBeforeItCanBeRead(t *testing.T) {
	for _, how := range []string{"deadline", "abort", "session"} {
		t.Run(how, func(t *testing.T) {
			p := newPair(t, withOffers)
			c := &Call{Type: 1, Req: p.c.message(5000, 1), Fn: func(c *Call) { p.ended = append(p.ended, c) }}
			c.Deadline = p.now + 5*ms
			p.cs.Start(p.now, c)
			p.c.expect()
			want := ErrTimeout
			switch how {
			case "deadline":
				p.wait(6 * ms)
			case "abort":
				want = ErrAborted
				c.Abort(p.now)
			case "session":
				want = ErrPeerDead
				p.cs.Fail(p.now, ErrPeerDead)
			}
			p.c.expect() // the server need not know
			p.wantOpen(c)
			p.c.grant(p.now, 1) // crosses the withdrawal
			p.c.expect()
			p.wantOpen(c)
			p.c.revoke()
			p.want(c, want)
			p.finish()
		})
	}
}

func TestCallEndsWhenItsRequestCannotBeReadAnyMore(t *testing.T) {
	p := newPair(t, withOffers)
	var kept *Handle
	p.s.e.Handle(1, func(h *Handle) (msgbuf.Buf, error) { kept = h; return h.Defer() })
	c := p.call(1, 5000, 10)
	p.c.sent()
	p.c.grant(p.now, 1)
	p.to(p.s, p.c.sent()...)
	p.s.read(p.now, true)
	p.to(p.c, p.s.expect(KindPulled)...)
	p.c.flush()
	if len(p.c.over) != 1 {
		t.Error("what was pulled is still offered")
	}
	kept.Take()
	p.s.e.Respond(p.now, kept, msgbuf.Buf{}, nil)
	p.to(p.c, p.s.expect(KindResponse)...)
	p.c.flush()
	p.wantOpen(c)
	p.c.revoke()
	p.want(c, nil)
	p.finish()
}

func TestResponseIsFreeWhenItCannotBeReadAnyMore(t *testing.T) {
	p := newPair(t, withOffers)
	p.s.e.Handle(1, func(h *Handle) (msgbuf.Buf, error) { return h.Response(5000) })
	c := p.call(1, 10, 6000)
	p.to(p.s, p.c.expect(KindRequest)...)
	p.s.expect()
	p.to(p.s, p.c.sent()...)
	p.wait(300 * ms)
	p.to(p.s, p.c.sent()...) // a duplicate: there is nothing to answer it with yet
	p.s.expect()
	p.s.grant(p.now, 1)
	p.to(p.c, p.s.expect(KindLargeResponse)...)
	p.c.read(p.now, true)
	p.want(c, nil)
	used := func() int { return p.s.large.Stats().InUse }
	p.to(p.s, p.c.expect(KindPulled)...)
	p.s.flush()
	if used() != 1 {
		t.Error("the response is free, and can be read")
	}
	p.s.revoke()
	if used() != 0 {
		t.Error("the response is not freed")
	}
	p.finish()
}

func TestRequestIsTakenFromAPeerThatKeepsIt(t *testing.T) {
	p := newPair(t, withOffers)
	c := p.call(1, 5000, 10)
	p.c.sent()
	p.c.grant(p.now, 1)
	p.c.expect(KindLargeRequest)
	c.Abort(p.now)
	start := p.now
	for len(p.c.over) == 0 && p.now < start+1000*ms {
		p.wait(ms)
		p.c.sent()
	}
	if p.now != start+500*ms || len(p.c.stuck) != 0 {
		t.Fatalf("taken back after %d ms, want 500; stuck: %v", (p.now-start)/ms, p.c.stuck)
	}
	p.wantOpen(c)
	p.c.revoke()
	p.want(c, ErrAborted)
	if p.cs.Err() != nil {
		t.Errorf("the session ended: %v", p.cs.Err())
	}
	p.finish()
}

func TestOfferThatCannotBeMadeFails(t *testing.T) {
	p := newPair(t, withOffers)
	fail := func(ep *endpoint) {
		ep.flush()
		for _, o := range ep.offers {
			ep.e.OfferDone(p.now, o.Token, 0, 0, false)
		}
		ep.offers = nil
		ep.flush()
	}
	c := p.call(1, 5000, 10)
	fail(p.c)
	p.c.revoke()
	p.want(c, ErrReadFailed)

	p.s.e.Handle(1, func(h *Handle) (msgbuf.Buf, error) { return h.Response(5000) })
	c = p.call(1, 10, 5000)
	p.to(p.s, p.c.sent()...)
	fail(p.s)
	p.run()
	p.want(c, ErrBadResponse)
	p.finish()
}

// Where the connection is replaced under a READ, its message is offered anew,
// and the READ goes on with the key that the peer then sends.
func TestReadGetsTheKeyOfTheNewConnection(t *testing.T) {
	p := newPair(t, withOffers)
	p.s.e.Handle(1, echo)
	c := p.call(1, 5000, 6000)
	key := func(ep *endpoint) Control {
		rkey, conn := ep.e.Key(ep.reads[0].Token)
		return Control{RKey: rkey, Conn: conn}
	}
	// again offers what ep has offered by another connection, and takes what it
	// sends to the other side.
	again := func(ep, other *endpoint, conn uint32) {
		t.Helper()
		for token, g := range ep.open {
			g.live = false
			rkey, g := p.mem.grant(ep, &Offer{Addr: g.addr, Len: g.n, LKey: p.mem.region(g.addr, g.n).key}, conn)
			ep.open[token] = g
			ep.e.OfferDone(p.now, token, rkey, conn, true)
		}
		before := key(other)
		ps := ep.sent()
		if len(ps) != 1 {
			t.Fatalf("sent %v after another offer", ps)
		}
		for _, change := range []func(*Control){
			func(c *Control) { c.Conn-- }, func(c *Control) { c.Conn -= 2 }, func(c *Control) { c.Conn = 0 },
			func(c *Control) { c.Addr++ }, func(c *Control) { c.Len-- }, func(c *Control) { c.Conn += 1 << 31 },
		} {
			d := append([]byte(nil), ps[0].data...)
			ctl, _ := ParseControl(d[HeaderBytes:])
			change(&ctl)
			ctl.Put((*[ControlBytes]byte)(d[HeaderBytes:]))
			p.to(other, packet{data: d})
			if key(other) != before {
				t.Errorf("another offer is taken for the same: %+v", ctl)
			}
		}
		p.to(other, ps...)
		if k := key(other); k.Conn != conn || k.RKey == before.RKey {
			t.Errorf("key is %+v, was %+v", k, before)
		}
	}
	p.c.sent()
	p.c.grant(p.now, 1)
	p.to(p.s, p.c.sent()...)
	p.s.flush()
	again(p.c, p.s, 2)
	again(p.c, p.s, 3)
	p.s.read(p.now, true)
	p.s.grant(p.now, 3)
	p.to(p.c, p.s.sent()...)
	p.c.revoke()
	p.c.flush()
	again(p.s, p.c, 4)
	p.run()
	p.want(c, nil)
	if sum(c.Req.Bytes()) != sum(c.Resp.Bytes()) {
		t.Error("wrong response")
	}
	p.finish()
}

func TestServerTellsThatItCannotOffer(t *testing.T) {
	told := 0
	p := newPair(t, withOffers, func(c *Config) {
		c.PeerBroken = func(dest, generation uint32) {
			if told++; generation != 3 {
				t.Errorf("generation %d", generation)
			}
		}
	})
	p.s.e.Handle(1, func(h *Handle) (msgbuf.Buf, error) { return h.Response(5000) })
	c := p.call(1, 10, 6000)
	p.to(p.s, p.c.sent()...)
	p.s.expect()
	p.s.e.Broken(p.now, 9, 3)
	p.to(p.c, p.s.expect(KindBroken)...)
	p.wait(300 * ms)
	p.to(p.s, p.c.sent()...) // which is lost on a server that has nothing to say
	p.to(p.c, p.s.expect(KindBroken)...)
	if told != 2 {
		t.Errorf("told %d times", told)
	}
	p.s.e.Repaired(9)
	p.run()
	p.want(c, nil)
	p.finish()
}

func TestAbandonEndsOffers(t *testing.T) {
	p := newPair(t, withOffers)
	granted, waiting := p.call(1, 5000, 10), (*Call)(nil)
	p.c.sent()
	p.c.grant(p.now, 1)
	p.c.sent()
	waiting = p.call(1, 6000, 10)
	p.cs.Fail(p.now, errors.New("gone"))
	p.c.e.Abandon(p.now)
	for _, g := range p.c.open {
		g.live = false
	}
	if !p.over(granted) || !p.over(waiting) {
		t.Error("calls do not end with the queues")
	}
	p.finish()
}
