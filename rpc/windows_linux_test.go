package rpc

import (
	"bytes"
	"errors"
	"testing"
	"time"

	"github.com/rrppcc-go/rrppcc/msgbuf"
	"github.com/rrppcc-go/rrppcc/rpc/internal/engine"
	"github.com/rrppcc-go/rrppcc/uverbs"
)

// spoils are what there is to steal at a server: a message that is offered to
// the thief, and others that are not.
type spoils struct {
	*thief
	mine    engine.Control // offered to the thief
	secret  msgbuf.Buf     // the same, as the server has it
	foreign engine.Control // offered to somebody else
	idle    msgbuf.Buf     // large and not offered
	freed   engine.Control // was offered to the thief
	small   msgbuf.Buf
	region  *Region
}

const rigSecret = 77

// newSpoils lets a thief into a server which has just answered it.
func newSpoils(r *rig) *spoils {
	r.Helper()
	x := &spoils{thief: newThief(r)}
	var answers []msgbuf.Buf
	r.srv.Handle(rigSecret, func(h *RequestHandle) (msgbuf.Buf, error) {
		b, err := h.Response(20_000)
		fill(b, uint64(len(answers)))
		answers = append(answers, b)
		return b, err
	})
	x.join()
	honest := newThief(r) // who does not confirm either, so that it stays offered
	honest.join()
	honest.say(engine.KindRequest, rigSecret, 0, 1, nil)
	d := honest.next(engine.KindLargeResponse, 0, 1)
	x.foreign = d.control(r)

	x.say(engine.KindRequest, rigSecret, 1, 1, nil)
	d = x.next(engine.KindLargeResponse, 1, 1)
	x.freed = d.control(r)
	if s := x.read(x.freed.Addr, x.freed.Len, x.freed.RKey); s != uverbs.WCSuccess {
		r.Fatalf("a message that is offered: %v", s)
	}
	old := answers[len(answers)-1]
	x.say(engine.KindRequest, rigSecret, 0, 1, nil)
	d = x.next(engine.KindLargeResponse, 0, 1)
	x.mine, x.secret = d.control(r), answers[len(answers)-1]
	x.say(engine.KindPulled, 0, 1, 1, nil)
	for old.Valid() {
		x.look()
	}
	x.idle, x.small = r.buf(r.srv, 20_000), r.buf(r.srv, 100)
	return x
}

// What a peer with a valid session can read is what is offered to it, and only
// while it is.
func TestThiefReadsNothingButItsOffers(t *testing.T) {
	type attack struct {
		name string
		do   func(x *spoils) uverbs.WCStatus
	}
	read := func(name string, what func(x *spoils) (addr, n uint64, rkey uint32)) attack {
		return attack{name, func(x *spoils) uverbs.WCStatus { return x.read(what(x)) }}
	}
	attacks := []attack{
		read("a byte before", func(x *spoils) (uint64, uint64, uint32) { return x.mine.Addr - 1, 1, x.mine.RKey }),
		read("a byte behind", func(x *spoils) (uint64, uint64, uint32) { return x.mine.Addr + x.mine.Len, 1, x.mine.RKey }),
		read("one byte more", func(x *spoils) (uint64, uint64, uint32) { return x.mine.Addr, x.mine.Len + 1, x.mine.RKey }),
		read("the rest of its buffer", func(x *spoils) (uint64, uint64, uint32) {
			return x.mine.Addr + x.mine.Len, uint64(x.secret.Cap()) - x.mine.Len, x.mine.RKey
		}),
		read("far before", func(x *spoils) (uint64, uint64, uint32) { return x.mine.Addr - 1<<20, 64, x.mine.RKey }),
		read("around the end of all addresses", func(x *spoils) (uint64, uint64, uint32) { return ^uint64(0) - 10, 64, x.mine.RKey }),
		read("another peer's message, with its key", func(x *spoils) (uint64, uint64, uint32) {
			return x.foreign.Addr, x.foreign.Len, x.foreign.RKey
		}),
		read("another peer's message, with mine", func(x *spoils) (uint64, uint64, uint32) {
			return x.foreign.Addr, x.foreign.Len, x.mine.RKey
		}),
		read("my message, with another peer's key", func(x *spoils) (uint64, uint64, uint32) { return x.mine.Addr, x.mine.Len, x.foreign.RKey }),
		read("what it has confirmed", func(x *spoils) (uint64, uint64, uint32) { return x.freed.Addr, x.freed.Len, x.freed.RKey }),
		read("what it has confirmed, with another key", func(x *spoils) (uint64, uint64, uint32) { return x.freed.Addr, 64, x.mine.RKey }),
		read("its message, with the region's key", func(x *spoils) (uint64, uint64, uint32) { return x.mine.Addr, x.mine.Len, x.secret.LKey() }),
		read("a buffer that was never sent, with the region's key", func(x *spoils) (uint64, uint64, uint32) {
			return x.idle.Addr(), 64, x.idle.LKey()
		}),
		read("a small buffer", func(x *spoils) (uint64, uint64, uint32) { return x.small.Addr(), 64, x.small.LKey() }),
		read("a region of the user's", func(x *spoils) (uint64, uint64, uint32) {
			x.region = x.rig.region(x.srv, 1<<20, msgbuf.RemoteRead)
			b, err := x.region.Buf(0, 64)
			if err != nil {
				t.Fatal(err)
			}
			defer b.Free()
			return b.Addr(), 64, b.LKey() // which on ConnectX is the remote one, too
		}),
		read("the key before", func(x *spoils) (uint64, uint64, uint32) { return x.mine.Addr, 64, x.mine.RKey - 1 }),
		read("the key behind", func(x *spoils) (uint64, uint64, uint32) { return x.mine.Addr, 64, x.mine.RKey + 1 }),
		read("the next window's key", func(x *spoils) (uint64, uint64, uint32) { return x.mine.Addr, 64, x.mine.RKey + 1<<8 }),
		read("no key", func(x *spoils) (uint64, uint64, uint32) { return x.mine.Addr, 64, 0 }),
		{"its offer, after the next request in its place", func(x *spoils) uverbs.WCStatus {
			x.say(engine.KindRequest, rigSecret, 0, 2, nil)
			d := x.next(engine.KindLargeResponse, 0, 2)
			if c := d.control(x.rig); x.read(c.Addr, c.Len, c.RKey) != uverbs.WCSuccess {
				t.Error("the new offer cannot be read")
			}
			return x.read(x.mine.Addr, x.mine.Len, x.mine.RKey)
		}},
		{"writing", func(x *spoils) uverbs.WCStatus {
			return x.rdma(uverbs.WRRDMAWrite, x.mine.Addr, 64, x.mine.RKey)
		}},
		{"counting", func(x *spoils) uverbs.WCStatus {
			return x.rdma(uverbs.WRAtomicFetchAndAdd, (x.mine.Addr+7)&^7, 8, x.mine.RKey)
		}},
	}
	for _, a := range attacks {
		t.Run(a.name, func(t *testing.T) {
			r := newRig(t)
			x := newSpoils(r)
			// What is offered can be read, again and again.
			for _, n := range []uint64{x.mine.Len, 1} {
				if s := x.read(x.mine.Addr+x.mine.Len-n, n, x.mine.RKey); s != uverbs.WCSuccess {
					t.Fatalf("its own offer: %v", s)
				}
				if !bytes.Equal(x.loot.Bytes()[:n], x.secret.Bytes()[x.mine.Len-n:]) {
					t.Fatal("the message is not what was read")
				}
			}
			if s := a.do(x); s != uverbs.WCRemAccessErr && !(s == uverbs.WCRemInvReqErr && (a.name == "writing" || a.name == "counting")) {
				t.Errorf("%v", s)
			}
			// The others do not suffer.
			s := r.connect()
			req, resp := r.buf(r.cli, 50_000), r.buf(r.cli, 50_000)
			fill(req, 3)
			if err := r.call(s, rigEcho, req, resp); err != nil || !bytes.Equal(req.Bytes(), resp.Bytes()) {
				t.Errorf("an honest client: %v", err)
			}
			r.closeSession(s)
		})
	}
}

// A server that a client trusts with large requests reads these and no more,
// and not for longer than the client likes.
func TestThievingServerReadsNothingButItsOffers(t *testing.T) {
	setup := func(t *testing.T) (*rig, *thief, *Session, msgbuf.Buf, datagram, *error) {
		r := newRig(t)
		f := newThief(r)
		s := f.lure()
		req := r.buf(r.cli, 20_000)
		fill(req, 1)
		ended := new(error)
		*ended = errNone
		s.Enqueue(rigEcho, req, msgbuf.Buf{}, 0, func(q *Request) { *ended = q.Err() })
		d := f.next(engine.KindLargeRequest, 0, 1)
		c := d.control(r)
		if got := f.read(c.Addr, c.Len, c.RKey); got != uverbs.WCSuccess || !bytes.Equal(f.loot.Bytes()[:c.Len], req.Bytes()) {
			t.Fatalf("a request that is offered: %v", got)
		}
		return r, f, s, req, d, ended
	}
	end := func(f *thief, ended *error) {
		for *ended == errNone {
			f.look()
			if f.ctx.Err() != nil {
				f.Fatal("the request does not end")
			}
		}
	}
	t.Run("after its answer", func(t *testing.T) {
		r, f, _, req, d, ended := setup(t)
		f.say(engine.KindResponse, 0, d.Slot, d.Seq, nil)
		end(f, ended)
		if *ended != nil {
			t.Errorf("ended with %v", *ended)
		}
		fill(req, 99) // the caller's next secret
		c := d.control(r)
		if got := f.read(c.Addr, 1, c.RKey); got != uverbs.WCRemAccessErr {
			t.Errorf("%v", got)
		}
	})
	t.Run("after its word", func(t *testing.T) {
		r, f, _, _, d, ended := setup(t)
		f.say(engine.KindPulled, 0, d.Slot, d.Seq, nil)
		for range 20 {
			f.look()
		}
		c := d.control(r)
		if got := f.read(c.Addr, 1, c.RKey); got != uverbs.WCRemAccessErr || *ended != errNone {
			t.Errorf("%v, %v", got, *ended)
		}
	})
	t.Run("after it has been silent for too long", func(t *testing.T) {
		r, f, s, req, d, ended := setup(t)
		s.es.Closing(r.cli.now, ErrAborted)
		end(f, ended)
		if !errors.Is(*ended, ErrAborted) || s.Err() != nil {
			t.Errorf("ended with %v, session %v", *ended, s.Err())
		}
		fill(req, 99)
		c := d.control(r)
		if got := f.read(c.Addr, 1, c.RKey); got != uverbs.WCRemAccessErr {
			t.Errorf("%v", got)
		}
	})
	t.Run("beside the request", func(t *testing.T) {
		r, f, _, _, d, _ := setup(t)
		c := d.control(r)
		if got := f.read(c.Addr+1, c.Len, c.RKey); got != uverbs.WCRemAccessErr {
			t.Errorf("%v", got)
		}
	})
}

// With WithRegionKeys the peer reads all of the region, as documented: the
// attacks are real.
func TestThiefReadsTheRegionByItsKey(t *testing.T) {
	r := newRig(t, WithRegionKeys())
	if r.srv.MemoryWindows() {
		t.Fatal("windows in spite of WithRegionKeys")
	}
	x := newSpoils(r)
	if s := x.read(x.mine.Addr-64, 64, x.mine.RKey); s != uverbs.WCSuccess {
		t.Errorf("before the message: %v", s)
	}
	if s := x.read(x.foreign.Addr, x.foreign.Len, x.mine.RKey); s != uverbs.WCSuccess {
		t.Errorf("another peer's message: %v", s)
	}
}

// offersOf returns how many windows ep has, and how many of them no message has.
func offersOf(ep *Endpoint) (windows, free int) { return ep.t.Windows() }

func TestWindowsAreGivenBackAndReused(t *testing.T) {
	r := newRig(t)
	p := newPump(r, 20_000, 20_000, 8)
	p.run(1000) // every key of every window more than once
	for _, ep := range []*Endpoint{r.srv, r.cli} {
		if all, free := offersOf(ep); all != startWindows || free != all {
			t.Errorf("endpoint %d has %d windows, %d of them free", ep.ID(), all, free)
		}
	}
	r.closeSession(p.s)
}

// Offers wait for windows, which then come.
func TestOffersWaitForWindows(t *testing.T) {
	r := newRig(t)
	f := newThief(r) // who lets nothing go
	first := f.lure()
	sessions := []*Session{first}
	for range 4 {
		s, err := r.cli.Connect(r.ctx, f.nx.URI(), 9)
		if err != nil {
			t.Fatal(err)
		}
		sessions = append(sessions, s)
	}
	over, req := 0, r.buf(r.cli, 20_000)
	for i := range 8 * len(sessions) {
		sessions[i%len(sessions)].Enqueue(rigEcho, req, msgbuf.Buf{}, 0, func(q *Request) { over++ })
	}
	keys := map[uint32]bool{}
	for len(keys) < 8*len(sessions) {
		f.look()
		for _, d := range f.got {
			keys[d.control(r).RKey] = true
		}
		f.got = f.got[:0]
		if all, free := offersOf(r.cli); r.ctx.Err() != nil {
			t.Fatalf("%d requests, %d windows, %d of them free", len(keys), all, free)
		}
	}
	if all, free := offersOf(r.cli); all-free != 8*len(sessions) {
		t.Errorf("%d windows for %d offers", all-free, 8*len(sessions))
	}
	for i, s := range sessions {
		s.es.Closing(r.cli.now, ErrAborted)
		for s.es.Quiet() == false {
			f.look()
			if r.ctx.Err() != nil {
				t.Fatal("no end")
			}
		}
		if over != 8*(i+1) {
			t.Errorf("%d calls have ended", over)
		}
	}
	if all, free := offersOf(r.cli); all != free {
		t.Errorf("%d of %d windows are not free", all-free, all)
	}
}

// Breaking the connection while messages are offered: windows of the old one
// are gone, and the messages are offered anew.
func TestOffersAreRenewedOnTheNextConnection(t *testing.T) {
	for _, who := range []string{"client", "server"} {
		t.Run(who+"'s queue pair", func(t *testing.T) {
			r := newRig(t)
			s := r.connect()
			const n = 5<<20 + 3
			var reqs, resps []msgbuf.Buf
			for i := range 6 {
				reqs, resps = append(reqs, r.buf(r.cli, n)), append(resps, r.buf(r.cli, n))
				fill(reqs[i], uint64(i))
			}
			over := 0
			for i := range reqs {
				s.Enqueue(rigEcho, reqs[i], resps[i], 0, func(q *Request) {
					if over++; q.Err() != nil || !bytes.Equal(reqs[i].Bytes(), resps[i].Bytes()) {
						t.Errorf("request %d: %v", i, q.Err())
					}
				})
			}
			for _, at := range []uint64{8, 20, 40} {
				r.poll(func() bool { return r.srv.t.Chunks+r.cli.t.Chunks >= at })
				breakPair(r, map[string]*Endpoint{"client": r.cli, "server": r.srv}[who])
			}
			r.poll(func() bool { return over == len(reqs) })
			if r.srv.repairs < 2 || r.cli.repairs < 2 || r.srv.e.Stats.Handled != 6 {
				t.Errorf("%d and %d repairs, %d executions", r.cli.repairs, r.srv.repairs, r.srv.e.Stats.Handled)
			}
			r.poll(func() bool {
				all, free := offersOf(r.cli)
				srvAll, srvFree := offersOf(r.srv)
				return all == free && srvAll == srvFree && all >= startWindows && srvAll >= startWindows
			})
			r.closeSession(s)
		})
	}
}

// One end offers by windows, the other by regions' keys.
func TestEndsThatOfferInDifferentWays(t *testing.T) {
	r := newRig(t)
	for i, opt := range [][]Option{{WithRegionKeys()}, nil} {
		r.cli = r.endpoint(uint16(10+i), opt...)
		s := r.connect()
		req, resp := r.buf(r.cli, 3<<20), r.buf(r.cli, 3<<20)
		for round := range 3 {
			fill(req, uint64(round))
			if round == 1 {
				breakPair(r, r.srv)
			}
			if err := r.call(s, rigEcho, req, resp); err != nil || !bytes.Equal(req.Bytes(), resp.Bytes()) {
				t.Errorf("round %d: %v", round, err)
			}
		}
		r.closeSession(s)
	}
}

// A peer that names a connection which will never be cannot have its request
// wait for that.
func TestOfferByAConnectionThatNeverComes(t *testing.T) {
	r := newRig(t, func(o *options) { o.staleTime = 100 * time.Millisecond })
	f := newThief(r)
	f.join()
	c := engine.Control{Addr: f.loot.Addr(), Len: 50_000, RKey: 1, Conn: 2}
	f.say(engine.KindLargeRequest, rigEcho, 0, 1, engineControl(c).bytes())
	stop := r.run(r.srv) // which goes to sleep in between
	defer stop()
	for len(f.got) == 0 {
		f.lookAlone()
		if f.ctx.Err() != nil {
			t.Fatal("no answer comes")
		}
	}
	if d := f.got[0]; d.Kind != engine.KindError || engine.Code(d.Type) != engine.CodeReadFailed {
		t.Errorf("answered by %v, %d", d.Kind, d.Type)
	}
}

func TestWindowsAreSkippedWhereTheyProtectNothing(t *testing.T) {
	r := newRig(t)
	if !r.srv.MemoryWindows() {
		t.Error("no windows on the simulated ConnectX")
	}
	for _, drop := range []uverbs.DeviceCaps{uverbs.CapMemWindowType2B, uverbs.CapMemMgtExtensions} {
		if r.srv.useWindows(&uverbs.DeviceAttr{Caps: (uverbs.CapMemWindowType2B | uverbs.CapMemMgtExtensions) &^ drop}) {
			t.Errorf("windows without %#x", drop)
		}
	}
}

// Requests under way end when the device fails, though it confirms nothing.
func TestOffersEndWithTheDevice(t *testing.T) {
	r := newRig(t)
	s := r.connect()
	over, req, resp := 0, r.buf(r.cli, 50_000), r.buf(r.cli, 50_000)
	start := func(reqType uint8) {
		s.Enqueue(reqType, req, resp, 0, func(q *Request) {
			if over++; !errors.Is(q.Err(), ErrDevice) {
				t.Error(q.Err())
			}
		})
	}
	start(rigHold) // which the server has pulled
	r.poll(func() bool { return r.srv.e.Stats.Handled == 1 })
	start(rigHold) // which is offered
	for range 3 {
		r.cli.Poll()
	}
	start(rigEcho) // which is to be
	start(rigEcho)
	r.cli.deviceFailed(errNone)
	if over != 4 {
		t.Errorf("%d of 4 requests have ended", over)
	}
	r.srv.Poll()
	r.srv.deviceFailed(errNone)
}
