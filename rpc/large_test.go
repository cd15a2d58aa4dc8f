package rpc

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"hash/crc32"
	"os"
	"strings"
	"testing"

	"github.com/rrppcc-go/rrppcc/msgbuf"
	"github.com/rrppcc-go/rrppcc/rpc/internal/engine"
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

func checksum(b []byte) []byte {
	return fmt.Appendf(nil, "%08x", crc32.Checksum(b, castagnoli))
}

// newSumRig is a rig whose server answers with the request's checksum.
func newSumRig(t testing.TB, opts ...Option) *rig {
	r := newRig(t, opts...)
	r.srv.Handle(rigEcho, func(h *RequestHandle) (msgbuf.Buf, error) {
		buf, err := h.Response(8)
		if err == nil {
			copy(buf.Bytes(), checksum(h.Bytes()))
		}
		return buf, err
	})
	return r
}

func TestMessageOf64MiBIsPulledInChunks(t *testing.T) {
	const n = 64<<20 - 3
	r := newSumRig(t)
	s := r.connect()
	req, resp := r.buf(r.cli, n), r.buf(r.cli, 8)
	fill(req, 1)
	if err := r.call(s, rigEcho, req, resp); err != nil || !bytes.Equal(resp.Bytes(), checksum(req.Bytes())) {
		t.Fatal(err)
	}
	if r.srv.t.Chunks != 64 {
		t.Errorf("%d chunks", r.srv.t.Chunks)
	}
	r.closeSession(s)
}

// availableBytes is the machine's free memory, 0 if that is not known.
func availableBytes() (n int64) {
	f, err := os.Open("/proc/meminfo")
	if err != nil {
		return 0
	}
	defer f.Close()
	for s := bufio.NewScanner(f); s.Scan(); {
		if rest, ok := strings.CutPrefix(s.Text(), "MemAvailable:"); ok {
			fmt.Sscan(rest, &n)
		}
	}
	return n << 10
}

func TestMessageOf1GiB(t *testing.T) {
	if testing.Short() || raceEnabled || availableBytes() < 6<<30 {
		t.Skip("wants 3 GiB and a second")
	}
	r := newSumRig(t)
	s := r.connect()
	req, resp := r.buf(r.cli, 1<<30), r.buf(r.cli, 8)
	for off := 0; off < 1<<30; off += 4096 {
		req.Bytes()[off] = byte(off >> 12 * 7)
	}
	if err := r.call(s, rigEcho, req, resp); err != nil || !bytes.Equal(resp.Bytes(), checksum(req.Bytes())) {
		t.Fatal(err)
	}
	r.closeSession(s)
}

func TestMessageBeyondTheServersLimitIsRefused(t *testing.T) {
	r := newRig(t)
	small := r.endpoint(3, WithMaxMessage(100_000))
	r.srv = small
	s := r.connect()
	req := r.buf(r.cli, 100_001)
	if err := r.call(s, rigEcho, req, msgbuf.Buf{}); !errors.Is(err, ErrTooLarge) {
		t.Error(err)
	}
	r.closeSession(s)
}

func TestRequestMemoryIsBounded(t *testing.T) {
	r := newRig(t, WithRequestMemory(5<<20))
	s := r.connect()
	req := r.buf(r.cli, 2<<20)
	for range 5 { // what has been handled counts no more
		if err := r.call(s, rigEcho, req, r.buf(r.cli, 2<<20)); err != nil {
			t.Fatal(err)
		}
	}
	handled := r.srv.e.Stats.Handled
	base := r.srv.mem.small.Stats().UsedBytes
	full, over := 0, 0
	for range 8 {
		s.Enqueue(rigHold, req, msgbuf.Buf{}, 0, func(q *Request) {
			over++
			if errors.Is(q.Err(), ErrServerMemory) {
				full++
			}
		})
	}
	r.poll(func() bool { return over == 6 && r.srv.e.Stats.Handled == handled+2 })
	if used := r.srv.mem.small.Stats().UsedBytes - base; full != 6 || used > 5<<20 {
		t.Errorf("%d of 8 requests were refused, %d bytes are used", full, used)
	}
	r.closeSession(s)
}

func TestAbortOfALargeRequestStopsItsPull(t *testing.T) {
	r := newSumRig(t)
	s := r.connect()
	req, resp := r.buf(r.cli, 64<<20), r.buf(r.cli, 8)
	var err error
	over := false
	s.Enqueue(rigEcho, req, resp, 0, func(q *Request) { over, err = true, q.Err() })
	r.poll(func() bool { return r.srv.t.Chunks > 0 })
	s.es.Closing(r.cli.now, ErrAborted) // aborts what is under way
	r.poll(func() bool { return over })
	if !errors.Is(err, ErrAborted) || r.srv.t.Chunks > 16 || r.srv.e.Stats.Handled != 0 {
		t.Errorf("%v after %d chunks of 64, %d executions", err, r.srv.t.Chunks, r.srv.e.Stats.Handled)
	}
	if r.srv.repairs != 0 {
		t.Error("an abort broke the connection")
	}
	r.closeSession(s)
}

func TestShortMessagesOvertakeLongOnes(t *testing.T) {
	r := newSumRig(t)
	same := r.connect() // of the same pair as the long one
	other := r.endpoint(4)
	stop := r.run(r.srv)
	foreign, err := other.Connect(r.ctx, r.srv.URI(), r.srv.ID())
	stop()
	if err != nil {
		t.Fatal(err)
	}
	long, short, shortToo := r.buf(r.cli, 64<<20), r.buf(r.cli, 20_000), r.buf(other, 20_000)
	fill(short, 1)
	fill(shortToo, 2)
	var order []string
	note := func(name string) func(*Request) {
		return func(q *Request) {
			if q.Err() != nil {
				t.Errorf("%s: %v", name, q.Err())
			}
			order = append(order, name)
		}
	}
	for range 4 {
		same.Enqueue(rigEcho, long, r.buf(r.cli, 8), 0, note("long"))
	}
	r.poll(func() bool { return r.srv.t.Chunks > 0 })
	before := r.srv.t.Chunks
	same.Enqueue(rigEcho, short, r.buf(r.cli, 8), 0, note("short"))
	foreign.Enqueue(rigEcho, shortToo, r.buf(other, 8), 0, note("foreign"))
	r.poll(func() bool {
		other.Poll()
		return len(order) >= 2
	})
	if order[0] == "long" || order[1] == "long" || r.srv.t.Chunks-before > 80 {
		t.Errorf("ended: %v, after %d chunks", order, r.srv.t.Chunks-before)
	}
	r.poll(func() bool { return len(order) == 6 })
	defer r.run(r.srv)()
	if err := errors.Join(same.Close(), foreign.Close()); err != nil {
		t.Error(err)
	}
}

func TestLargeBuffersAreFreeWithinOneRoundTrip(t *testing.T) {
	r := newRig(t)
	s := r.connect()
	const n = 200_000
	req, resp := r.buf(r.cli, n), r.buf(r.cli, n)
	usedSmall := func() int64 { return r.srv.mem.small.Stats().UsedBytes }
	usedLarge := func() int64 { return r.srv.mem.large.Stats().UsedBytes }
	if err := r.call(s, rigEcho, r.buf(r.cli, 1), resp); err != nil { // the slot's own buffers are there now
		t.Fatal(err)
	}
	small, large := usedSmall(), usedLarge()
	for round := range 20 {
		over := false
		s.Enqueue(rigEcho, req, resp, 0, func(q *Request) {
			if over = true; q.Err() != nil {
				t.Error(q.Err())
			}
			// The call is over, and its request the caller's: nobody reads it.
			fill(req, uint64(round))
		})
		pulled := false
		for polls := 0; !over; polls++ {
			r.cli.Poll()
			r.srv.Poll()
			// While the response waits to be pulled, the request's memory is
			// free already.
			if usedLarge() > large && usedSmall() == small {
				pulled = true
			}
			if polls > 1<<20 {
				t.Fatal("no end")
			}
		}
		if !pulled {
			t.Error("the request's memory is kept until the response was pulled")
		}
		r.cli.Poll() // sends PULLED
		r.srv.Poll()
		if usedLarge() != large || usedSmall() != small {
			t.Errorf("round %d: the server keeps %d and %d bytes", round, usedLarge()-large, usedSmall()-small)
		}
	}
	r.closeSession(s)
}

func TestReleaseFreesADeferredRequestBeforeItsReply(t *testing.T) {
	r := newRig(t)
	var held *RequestHandle
	r.srv.Handle(rigHold, func(h *RequestHandle) (msgbuf.Buf, error) {
		held = h
		return h.Defer()
	})
	s := r.connect()
	base, slots := r.srv.mem.small.Stats().UsedBytes, 0
	for i, n := range []int{500_000, 100} {
		req := r.buf(r.cli, n)
		over, held1 := false, held
		s.Enqueue(rigHold, req, msgbuf.Buf{}, 0, func(q *Request) {
			if over = true; q.Err() != nil {
				t.Error(q.Err())
			}
		})
		r.poll(func() bool { return held != held1 })
		if i == 0 && r.srv.mem.small.Stats().UsedBytes < base+int64(n) {
			t.Error("the pulled request is in no memory")
		}
		held.Release()
		held.Release()
		for range 3 {
			r.srv.Poll()
		}
		if used := r.srv.mem.small.Stats().UsedBytes; used != base || over {
			t.Errorf("%d bytes are kept; over: %v", used-base, over)
		}
		if held.Bytes() != nil {
			t.Error("the request is still there")
		}
		held.Reply(msgbuf.Buf{})
		r.poll(func() bool { return over })
		slots++
	}
	r.closeSession(s)
}

// lie is a control block that a peer sends about memory of its own.
type lie struct {
	name    string
	control func(true engine.Control) engine.Control
	request error // what becomes of a request that is said to lie there
	answer  error // what becomes of a call whose response is
}

var errNone = errors.New("no answer at all")

var lies = []lie{
	{"another key", func(c engine.Control) engine.Control { c.RKey ^= 0x100; return c }, ErrReadFailed, ErrReadFailed},
	{"no key", func(c engine.Control) engine.Control { c.RKey = 0; return c }, ErrReadFailed, ErrReadFailed},
	{"address 0", func(c engine.Control) engine.Control { c.Addr = 0; return c }, ErrReadFailed, ErrReadFailed},
	{"before the region", func(c engine.Control) engine.Control { c.Addr -= 1 << 30; return c }, ErrReadFailed, ErrReadFailed},
	{"beyond the region", func(c engine.Control) engine.Control { c.Len = 512 << 20; return c }, ErrReadFailed, nil},
	{"more than a message", func(c engine.Control) engine.Control { c.Len = 1<<30 + 1; return c }, ErrTooLarge, nil},
	{"more than there is", func(c engine.Control) engine.Control { c.Addr, c.Len = 1, 1<<63; return c }, ErrTooLarge, nil},
	{"around the end of all addresses", func(c engine.Control) engine.Control { c.Len = 1<<64 - 1; return c }, errNone, errNone},
	{"nothing", func(c engine.Control) engine.Control { c.Len = 0; return c }, errNone, errNone},
}

func (c engineControl) bytes() []byte {
	var b [engine.ControlBytes]byte
	(*engine.Control)(&c).Put(&b)
	return b[:]
}

type engineControl engine.Control

func TestLyingClientFailsItsRequestsAlone(t *testing.T) {
	r := newRig(t, WithRequestMemory(1<<30))
	f := newForger(r, r.cli.t.Local().QPN)
	to := f.target(r.srv)
	mem := r.buf(r.cli, 1<<20)
	truth := engine.Control{Addr: mem.Addr(), Len: 1 << 20, RKey: mem.RKey()}
	honest := r.endpoint(5)
	stop := r.run(r.srv)
	good, err := honest.Connect(r.ctx, r.srv.URI(), r.srv.ID())
	stop()
	if err != nil {
		t.Fatal(err)
	}
	goodReq, goodResp := r.buf(honest, 3<<20), r.buf(honest, 3<<20)
	for i, l := range lies {
		t.Run(l.name, func(t *testing.T) {
			s := r.connect()
			base, repairs := r.srv.mem.small.Stats().UsedBytes, r.srv.repairs
			// The client's device sends what the client's software never would:
			// request 1 of slot 0 lies there.
			f.send(to, header(engine.KindLargeRequest, r.serversEndOf(s), r.serversEndOf(s).Token(), 0, 1, engineControl(l.control(truth)).bytes()))
			fill(goodReq, uint64(i))
			over := false
			good.Enqueue(rigEcho, goodReq, goodResp, 0, func(q *Request) {
				if over = true; q.Err() != nil || !bytes.Equal(goodReq.Bytes(), goodResp.Bytes()) {
					t.Errorf("another client: %v", q.Err())
				}
			})
			r.poll(func() bool { honest.Poll(); return over })
			// The same number, and the server's answer to it is the one to the
			// lie.
			resp := r.buf(r.cli, 1<<20)
			err := r.call(s, rigEcho, mem, resp)
			if want := l.request; want == errNone && err != nil || want != errNone && !errors.Is(err, want) {
				t.Errorf("the lie ends with %v", err)
			}
			if err := r.call(s, rigEcho, mem, resp); err != nil {
				t.Errorf("the next request: %v", err)
			}
			r.cli.Poll()
			r.srv.Poll()
			if used := r.srv.mem.small.Stats().UsedBytes - base; used > 1<<16 {
				t.Errorf("%d bytes are kept for it", used)
			}
			if n := r.srv.repairs - repairs; n > 1 || n == 1 && l.request != ErrReadFailed {
				t.Errorf("it cost %d connections", n)
			}
			r.closeSession(s)
		})
	}
	r.closeSession(good)
}

// serversEndOf finds the server's end of s: the session that is the client's.
func (r *rig) serversEndOf(s *Session) (found *engine.Session) {
	r.srv.e.Sessions(func(es *engine.Session) {
		if uri, _ := es.User.(*Session).Remote(); uri == r.cli.URI() {
			found = es
		}
	})
	if found == nil {
		r.Fatal("the session has no other end")
	}
	return found
}

func TestLyingServerFailsItsAnswersAlone(t *testing.T) {
	r := newRig(t)
	f := newForger(r, r.srv.t.Local().QPN)
	to := f.target(r.cli)
	mem := r.buf(r.srv, 1<<20)
	truth := engine.Control{Addr: mem.Addr(), Len: 1 << 20, RKey: mem.RKey()}
	for _, l := range lies {
		t.Run(l.name, func(t *testing.T) {
			s := r.connect()
			req, resp := r.buf(r.cli, 16), r.buf(r.cli, 1<<20)
			over, handled := false, r.srv.e.Stats.Handled
			var err error
			s.Enqueue(rigHold, req, resp, 0, func(q *Request) { over, err = true, q.Err() })
			r.poll(func() bool { return r.srv.e.Stats.Handled > handled })
			f.send(to, header(engine.KindLargeResponse, s.es, s.es.Token(), 0, 1, engineControl(l.control(truth)).bytes()))
			if l.answer == errNone {
				for range 100 {
					r.cli.Poll()
					r.srv.Poll()
				}
				if over {
					t.Errorf("ended with %v", err)
				}
			} else {
				r.poll(func() bool { return over })
				var tooLarge *ResponseTooLargeError
				if l.answer == nil && !errors.As(err, &tooLarge) || l.answer != nil && !errors.Is(err, l.answer) {
					t.Errorf("ended with %v", err)
				}
			}
			// The session suffers from a server that lies about a slot; others
			// of the same pair do not.
			next, echo := r.connect(), r.buf(r.cli, 1<<20)
			if err := r.call(next, rigEcho, echo, r.buf(r.cli, 1<<20)); err != nil {
				t.Errorf("the next request: %v", err)
			}
			r.closeSession(next)
			r.closeSession(s)
		})
	}
}

func TestMessagesOfSeveralChunksDoNotAllocate(t *testing.T) {
	if raceEnabled {
		t.Skip("built with -race, msgbuf records who frees what")
	}
	for _, outstanding := range []int{1, 8} {
		p := newPump(newRig(t), 3<<20, 3<<20, outstanding)
		p.run(20)
		if n := testing.AllocsPerRun(5, func() { p.run(10) }); n != 0 {
			t.Errorf("10 requests of 3 MiB, %d at a time: %v allocations", outstanding, n)
		}
	}
}
