package engine

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"testing"

	"github.com/rrppcc-go/rrppcc/msgbuf"
)

// simCall is a call with all that is needed to judge its end.
type simCall struct {
	Call
	n       *simNode
	p       *simSession
	want    outcome
	cap     int
	reqSum  uint64
	aborted bool
	over    bool
}

// seal fills b with bytes made from seed, and the checksum of them.
func seal(seed uint64, b []byte) {
	stream(seed, b)
	if len(b) >= 8 {
		binary.LittleEndian.PutUint64(b, seed)
	}
	if len(b) >= 16 {
		binary.LittleEndian.PutUint64(b[8:], seed^sum(b[16:]))
	}
}

// intact reports whether b is as seal left it, as far as can be seen.
func intact(b []byte) bool {
	return len(b) < 16 || binary.LittleEndian.Uint64(b[8:]) == binary.LittleEndian.Uint64(b)^sum(b[16:])
}

// outcome is what a handler does with a request; both sides derive it from the
// request's bytes.
type outcome struct {
	resp int // bytes
	seed uint64
}

// Request types, by what their handlers do.
const (
	simInline   = iota // answer in a buffer of Response
	simOwn             // answer in a buffer of Alloc
	simDeferred        // answer later
	simBlocking        // run the owner's loop until a call of one's own has ended
	simNested          // answer when a call of one's own has ended
	simFailing         // an error
	simPanic           // a panic
	simBad             // a buffer that cannot be sent
	simMissing         // no handler
	simTypes
)

func (s *sim) outcome(typ uint8, req []byte) outcome {
	x := sum(req) ^ uint64(typ)*0x9e3779b97f4a7c15
	sizes := [...]int{0, 1, int(x>>8) % 100, int(x>>8) % 1000, int(x>>8) % 30_000}
	return outcome{resp: sizes[x%uint64(len(sizes))], seed: x}
}

// call starts one random call; it runs on the owner.
func (n *simNode) call(p *simSession, now int64) {
	s := n.s
	if n.dead {
		return
	}
	sizes := [...]int{0, s.rng.IntN(16), s.rng.IntN(200), s.rng.IntN(1000), s.rng.IntN(40_000)}
	c := &simCall{n: n, p: p}
	c.Type = uint8(s.rng.IntN(simTypes))
	if s.chance(0.3) {
		c.Type = simInline
	}
	var err error
	if c.Req, err = n.e.Alloc(sizes[s.rng.IntN(len(sizes))]); err != nil {
		return
	}
	id := s.rng.Uint64()
	seal(id, c.Req.Bytes())
	c.reqSum = sum(c.Req.Bytes())
	c.want = s.outcome(c.Type, c.Req.Bytes())
	room := c.want.resp
	if s.chance(0.1) {
		room /= 2
	}
	if room > 0 || s.chance(0.5) {
		if c.Resp, err = n.e.Alloc(room); err != nil {
			c.Req.Free()
			return
		}
	}
	c.cap = c.Resp.Cap()
	if s.chance(s.cfg.deadline) {
		c.Deadline = now + s.upTo(30*ms)
	}
	if s.chance(s.cfg.abort) {
		s.after(s.upTo(2*ms), func() {
			n.ask(func(now int64) {
				if !c.over {
					c.aborted = true
					c.Abort(now)
				}
			})
		})
	}
	c.Fn = func(*Call) { c.end() }
	s.alive++
	p.open = append(p.open, c)
	p.cs.Start(now, &c.Call)
}

// end is the call's callback.
func (c *simCall) end() {
	s, n := c.n.s, c.n
	if c.over {
		s.tb.Fatalf("call ended twice")
	}
	if n.dead { // while it was in a handler that blocks
		return
	}
	c.over = true
	s.ended++
	s.alive--
	for i, o := range c.p.open {
		if o == c {
			c.p.open = append(c.p.open[:i], c.p.open[i+1:]...)
			break
		}
	}
	if sum(c.Req.Bytes()) != c.reqSum {
		s.tb.Errorf("the request has changed")
	}
	if s.mem.offered(c.Req) || s.mem.offered(c.Resp) {
		s.tb.Errorf("the call has ended, and its peer can read its buffers")
	}
	if err := c.judge(); err != nil {
		s.tb.Errorf("type %d, %d bytes, response %d of %d: %v", c.Type, c.Req.Len(), c.want.resp, c.cap, err)
	}
	// The buffers are the caller's again: whatever still reads or writes them
	// comes to light.
	scribble(c.Req.Full())
	scribble(c.Resp.Full())
	mark := sum(c.Resp.Full())
	free := func() {
		if sum(c.Resp.Full()) != mark {
			s.tb.Errorf("a response buffer was written to after its call had ended")
		}
		c.Req.Free()
		c.Resp.Free()
	}
	switch s.rng.IntN(3) {
	case 0:
		free()
	default:
		s.after(s.upTo(3*ms), func() {
			if !n.dead {
				free()
			}
		})
	}
	// Callbacks do as they like.
	if s.quiet {
		return
	}
	if s.chance(0.1) && s.started < s.cfg.calls {
		s.started++
		n.call(s.pairOf(n, c.p), n.clock())
	}
	if s.chance(s.cfg.abort/4) && len(c.p.open) > 0 {
		o := c.p.open[s.rng.IntN(len(c.p.open))]
		o.aborted = true
		o.Abort(n.clock())
	}
	if s.chance(s.cfg.churn/4) && !c.p.closing {
		s.breakLink(c.p.link)
		c.p.cs.Fail(n.clock(), errSim)
	}
}

// pairOf returns a session of which n is the client, p if there is no other.
func (s *sim) pairOf(n *simNode, p *simSession) *simSession {
	if q := s.pairs[s.rng.IntN(len(s.pairs))]; q.client == n {
		return q
	}
	return p
}

// judge says what is wrong with the call's outcome.
func (c *simCall) judge() error {
	s := c.n.s
	var he *HandlerError
	var tooLarge *ResponseTooLargeError
	err := c.Err
	switch {
	case err == nil:
		s.oks++
		switch {
		case c.Type > simNested:
			return errors.New("ended well")
		case c.Resp.Len() != c.want.resp && !c.Resp.IsNil() || c.want.resp > c.cap:
			return fmt.Errorf("response has %d bytes", c.Resp.Len())
		}
		want := make([]byte, c.want.resp)
		seal(c.want.seed, want)
		if c.want.resp > 0 && sum(want) != sum(c.Resp.Bytes()) {
			return errors.New("response is not that of the request")
		}
		return nil
	case errors.Is(err, ErrAborted) && c.aborted,
		errors.Is(err, ErrTimeout) && c.Deadline != 0,
		errors.Is(err, ErrSessionClosed) && c.p.closing,
		(errors.Is(err, ErrPeerDead) || errors.Is(err, errSim)) && (c.p.link.broken || c.p.cs.Err() != nil),
		errors.Is(err, ErrReadFailed) && s.readFailed,
		errors.Is(err, ErrServerMemory) && s.cfg.tinyMemory,
		errors.Is(err, ErrNoMemory) && s.cfg.tinyMemory,
		errors.Is(err, ErrNoHandler) && c.Type == simMissing,
		errors.Is(err, ErrBadResponse) && c.Type == simBad:
		return nil
	case errors.As(err, &he):
		switch {
		case c.Type == simPanic && he.Panic && he.Message == "simulated panic",
			c.Type == simFailing && he.Code == uint32(c.want.seed) && he.Message == "simulated error",
			(c.Type == simNested || c.Type == simBlocking) && he.Message == "nested call failed" && !he.Panic,
			he.Message == "out of memory" && s.cfg.tinyMemory,
			he.Message == "" && s.cfg.tinyMemory:
			return nil
		}
	case errors.As(err, &tooLarge):
		if tooLarge.Need == c.want.resp && tooLarge.Cap == c.cap && c.want.resp > c.cap && c.Type <= simNested {
			return nil
		}
	}
	return fmt.Errorf("ended with %w", err)
}

var errSimMemory = &HandlerError{Message: "out of memory"}

// handlers binds one handler per type.
func (n *simNode) handlers() {
	s := n.s
	start := func(h *Handle) outcome {
		if !intact(h.Data()) {
			s.tb.Errorf("a request is not what its caller sent")
		}
		if b := h.Data(); len(b) >= 8 {
			id := binary.LittleEndian.Uint64(b)
			if s.ran[id]++; s.ran[id] > 1 {
				s.tb.Errorf("the handler of request %#x runs for the %dth time", id, s.ran[id])
			}
		}
		return s.outcome(h.Type(), h.Data())
	}
	own := func(o outcome) (msgbuf.Buf, error) {
		b, err := n.e.Alloc(o.resp)
		if err != nil {
			return msgbuf.Buf{}, errSimMemory
		}
		seal(o.seed, b.Bytes())
		return b, nil
	}
	// later answers h at some time, in one of the ways that a request may go.
	later := func(h *Handle, o outcome, fail bool) {
		before := sum(h.Data())
		s.after(s.upTo(max(s.cfg.slowHandlers, 1)), func() {
			n.ask(func(now int64) {
				if sum(h.Data()) != before {
					s.tb.Errorf("a deferred request has changed under its handler")
				}
				if !h.Take() {
					s.tb.Errorf("the reply was taken by nobody else")
				}
				buf, err := own(o)
				if fail {
					buf.Free()
					buf, err = msgbuf.Buf{}, &HandlerError{Message: "nested call failed"}
				}
				n.e.Respond(now, h, buf, err)
			})
		})
	}
	n.e.Handle(simInline, func(h *Handle) (msgbuf.Buf, error) {
		o := start(h)
		b, err := h.Response(o.resp)
		if err != nil {
			return msgbuf.Buf{}, errSimMemory
		}
		seal(o.seed, b.Bytes())
		return b, nil
	})
	n.e.Handle(simOwn, func(h *Handle) (msgbuf.Buf, error) { return own(start(h)) })
	n.e.Handle(simDeferred, func(h *Handle) (msgbuf.Buf, error) {
		later(h, start(h), false)
		return h.Defer()
	})
	// nested starts a call for a handler and hands its outcome to fn. It
	// reports false where there is nobody to call.
	nested := func(h *Handle, fn func(failed bool)) bool {
		for _, p := range n.out {
			if p.closing || p.server.id <= n.id { // upwards, so that it ends
				continue
			}
			c := &Call{Type: simInline, Req: n.extract(h.Data()), Deadline: n.clock() + 500*ms}
			c.Resp, _ = n.e.Alloc(30_000)
			c.Fn = func(c *Call) {
				failed := c.Err != nil
				c.Req.Free()
				c.Resp.Free()
				fn(failed)
			}
			p.cs.Start(n.clock(), c)
			return true
		}
		return false
	}
	n.e.Handle(simNested, func(h *Handle) (msgbuf.Buf, error) {
		o := start(h)
		if !nested(h, func(failed bool) { later(h, o, failed) }) {
			return own(o)
		}
		return h.Defer()
	})
	n.e.Handle(simBlocking, func(h *Handle) (msgbuf.Buf, error) {
		o, before := start(h), sum(h.Data())
		done, failed := false, false
		if !s.cfg.blocking || n.depth >= 3 || !nested(h, func(f bool) { done, failed = true, f }) {
			return own(o)
		}
		n.depth++
		n.wake(s.upTo(5000)) // whoever waits polls, also where nothing arrives: the ring may be full
		for !done && !n.dead {
			s.next()
		}
		n.depth--
		if sum(h.Data()) != before {
			s.tb.Errorf("a request has changed under its handler")
		}
		if failed {
			return msgbuf.Buf{}, &HandlerError{Message: "nested call failed"}
		}
		return own(o)
	})
	n.e.Handle(simFailing, func(h *Handle) (msgbuf.Buf, error) {
		o := start(h)
		var b msgbuf.Buf
		if o.seed&64 != 0 {
			b, _ = own(o)
		}
		return b, &HandlerError{Code: uint32(o.seed), Message: "simulated error"}
	})
	n.e.Handle(simPanic, func(h *Handle) (msgbuf.Buf, error) {
		start(h)
		panic("simulated panic")
	})
	n.e.Handle(simBad, func(h *Handle) (msgbuf.Buf, error) {
		start(h)
		b, err := n.small.Alloc(max(600, n.e.cfg.Threshold+1))
		if err != nil {
			return msgbuf.Buf{}, errSimMemory
		}
		return b, nil
	})
}

// extract returns a request of a few bytes of data.
func (n *simNode) extract(data []byte) msgbuf.Buf {
	b, err := n.e.Alloc(min(len(data), 7))
	if err != nil {
		return msgbuf.Buf{}
	}
	copy(b.Bytes(), data)
	return b
}

func TestSimulatedNetwork(t *testing.T) {
	simulate(t, 150, func(r *rand.Rand) simConfig {
		bad := func(p float64) float64 { return p * float64(r.IntN(3)) }
		return simConfig{
			nodes: 2 + r.IntN(3), sessions: 1 + r.IntN(5), calls: 150, ring: 16 + r.IntN(100),
			loss: bad(0.1), dup: bad(0.1), late: bad(0.1), readFails: bad(0.05),
			abort: bad(0.1), deadline: bad(0.1), churn: bad(0.02),
			slowHandlers: int64(1+r.IntN(40)) * ms, tinyMemory: r.IntN(5) == 0, death: r.IntN(4) == 0, blocking: r.IntN(2) == 0,
		}
	}, nil)
}

func TestSimulatedNetworkWithoutLossNeverRetransmits(t *testing.T) {
	simulate(t, 20, func(r *rand.Rand) simConfig {
		return simConfig{nodes: 2, sessions: 2, calls: 300, credits: 2 + r.IntN(6), patient: true, slowHandlers: 200_000}
	}, func(s *sim) {
		if s.overflows > 0 {
			s.tb.Errorf("%d datagrams found no receive buffer", s.overflows)
		}
		for _, n := range s.nodes {
			st := &n.e.Stats
			if st.Retransmits+st.DropBusy+st.DropMalformed+st.DropStale != 0 {
				s.tb.Errorf("node %d: %+v", n.id, *st)
			}
		}
		if s.oks < s.ended/3 {
			s.tb.Errorf("only %d of %d calls ended well", s.oks, s.ended)
		}
	})
}

func TestSimulatedPeerVanishes(t *testing.T) {
	simulate(t, 30, func(r *rand.Rand) simConfig {
		return simConfig{nodes: 3, sessions: 4, calls: 200, ring: 64, loss: 0.05, late: 0.05, abort: 0.2, slowHandlers: 5 * ms, death: true}
	}, nil)
}

// TestCancelledCallsLeaveTheBuffersThatTheirCallersHaveBack runs 100,000 calls
// (RRPC_STRESS_CALLS says how many), half of which are given up at some moment,
// over a network that delays and doubles datagrams and stalls READs. Callers
// use their buffers for something else as soon as they have them back, and
// every byte is checked.
func TestCancelledCallsLeaveTheBuffersThatTheirCallersHaveBack(t *testing.T) {
	const perSeed = 1000
	calls := 100_000
	if testing.Short() || raceEnabled {
		calls = 5_000
	}
	if v := os.Getenv("RRPC_STRESS_CALLS"); v != "" {
		n, err := strconv.Atoi(v)
		if err != nil {
			t.Fatalf("RRPC_STRESS_CALLS: %v", err)
		}
		calls = n
	}
	ended, oks := 0, 0
	for seed := uint64(1); ended < calls && !t.Failed(); seed++ {
		r := rand.New(rand.NewPCG(seed, 3))
		s := newSim(&seedTB{T: t, seed: seed}, seed, simConfig{
			nodes: 2 + r.IntN(2), sessions: 1 + r.IntN(4), calls: perSeed, ring: 32 + r.IntN(200),
			loss: 0.05 * float64(r.IntN(2)), dup: 0.1, late: 0.1, stalls: 0.05, readFails: 0.02 * float64(r.IntN(2)),
			offers: float64(seed % 2),
			abort:  0.3, deadline: 0.3, slowHandlers: int64(1+r.IntN(10)) * ms,
		})
		s.run()
		ended += s.ended
		oks += s.oks
	}
	t.Logf("%d calls, %d ended well", ended, oks)
	if oks < ended/20 || oks > ended*19/20 {
		t.Errorf("%d of %d calls ended well: that is no mixture", oks, ended)
	}
}
