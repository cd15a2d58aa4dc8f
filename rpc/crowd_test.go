package rpc

import (
	"context"
	"fmt"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/rrppcc-go/rrppcc/msgbuf"
)

// many opens n sessions from the rig's client to its server; both are driven
// until stop is called.
func (r *rig) many(n int) (sessions []*Session, stop func()) {
	r.Helper()
	stopSrv, stopCli := r.run(r.srv), r.run(r.cli)
	sessions = make([]*Session, n)
	var next atomic.Int64
	var wg sync.WaitGroup
	for range 48 { // fewer than a session manager takes at a time
		wg.Go(func() {
			for i := next.Add(1) - 1; i < int64(n); i = next.Add(1) - 1 {
				s, err := r.cli.Connect(r.ctx, r.srv.URI(), r.srv.ID())
				if err != nil {
					r.Errorf("session %d: %v", i, err)
					return
				}
				sessions[i] = s
			}
		})
	}
	wg.Wait()
	if r.Failed() {
		r.FailNow()
	}
	return sessions, func() { stopSrv(); stopCli() }
}

// crowded are the options of endpoints with tens of thousands of sessions: the
// device's longest ring, and one request per session at a time.
func crowded() []Option {
	return []Option{WithWindow(1), WithCredits(1), WithRingDepth(32768)}
}

func heapBytes() uint64 {
	var m runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

// Twenty thousand sessions between two endpoints share one RC queue pair, and
// all work.
func TestTwentyThousandSessions(t *testing.T) {
	n := 20_000
	if testing.Short() || raceEnabled {
		n = 2000
	}
	r := newRig(t, crowded()...)
	before := heapBytes()
	start := time.Now()
	sessions, stop := r.many(n)
	defer stop()
	took := time.Since(start)
	bytes := heapBytes() - before
	t.Logf("%d sessions in %v, %d bytes of heap for both ends of one", n, took, bytes/uint64(n))
	if bytes/uint64(n) > 16<<10 {
		t.Errorf("%d bytes per session", bytes/uint64(n))
	}
	start = time.Now()
	req := r.buf(r.cli, 32)
	must := func(err error) {
		if err != nil {
			t.Fatal(err)
		}
	}
	reqs := make([]*Request, n)
	resps := make([]msgbuf.Buf, n)
	for i, s := range sessions {
		var err error
		resps[i], err = r.cli.Alloc(32)
		must(err)
		reqs[i] = s.Go(rigEcho, req, resps[i])
	}
	for i := range reqs {
		must(reqs[i].Wait(r.ctx))
		resps[i].Free()
	}
	t.Logf("a request on each at once: %v", time.Since(start))
	st, err := r.srv.Stats(r.ctx)
	must(err)
	if st.Handled != uint64(n) {
		t.Errorf("%d requests handled, %d sent: %v", st.Handled, n, st)
	}
	r.cli.mu.Lock()
	pairs := len(r.cli.outgoing)
	r.cli.mu.Unlock()
	if pairs != 1 {
		t.Errorf("%d RC queue pairs", pairs)
	}
}

// BenchmarkSessionMemory is the heap that both ends of an idle session take.
func BenchmarkSessionMemory(b *testing.B) {
	for _, window := range []int{1, 8} {
		b.Run(fmt.Sprintf("window %d", window), func(b *testing.B) {
			const n = 2000
			for b.Loop() {
				r := newRig(b, WithWindow(window), WithCredits(window), WithRingDepth(16384))
				before := heapBytes()
				_, stop := r.many(n)
				b.ReportMetric(float64(heapBytes()-before)/n, "B/session")
				stop()
			}
		})
	}
}

// BenchmarkIdlePoll is a round without work, by the number of idle sessions.
func BenchmarkIdlePoll(b *testing.B) {
	for _, n := range []struct {
		name     string
		sessions int
	}{{"1", 1}, {"1000", 1000}, {"20000", 20_000}} {
		b.Run(n.name, func(b *testing.B) {
			r := newRig(b, crowded()...)
			_, stop := r.many(n.sessions)
			stop()
			b.ReportAllocs()
			for b.Loop() {
				r.cli.Poll()
			}
		})
	}
}

// BenchmarkNestedCall is one request whose handler makes one nested call, by
// the way the handler waits for it. "plain" has no nested call.
func BenchmarkNestedCall(b *testing.B) {
	const typ = 100
	for _, style := range []string{"plain", "callback", "coroutine", "background"} {
		b.Run(style, func(b *testing.B) {
			r := newRig(b)
			var self *Session
			req, resp := r.buf(r.srv, 32), r.buf(r.srv, 32)
			waiting := func(h *RequestHandle) (msgbuf.Buf, error) {
				if err := h.Call(self, rigEcho, req, resp); err != nil {
					return msgbuf.Buf{}, err
				}
				return h.Response(32)
			}
			switch style {
			case "plain":
				r.srv.Handle(typ, func(h *RequestHandle) (msgbuf.Buf, error) { return h.Response(32) })
			case "callback":
				r.srv.Handle(typ, func(h *RequestHandle) (msgbuf.Buf, error) {
					self.Enqueue(rigEcho, req, resp, 0, func(*Request) {
						out, err := r.srv.Alloc(32)
						if err != nil {
							h.Fail(err)
							return
						}
						h.Reply(out)
					})
					return h.Defer()
				})
			case "coroutine":
				r.srv.HandleCoroutine(typ, waiting)
			case "background":
				r.srv.HandleBackground(typ, waiting)
			}
			s := r.connect()
			var err error
			if self, err = r.srv.Connect(r.ctx, r.srv.URI(), r.srv.ID()); err != nil {
				b.Fatal(err)
			}
			creq, cresp := r.buf(r.cli, 32), r.buf(r.cli, 32)
			left := 0
			var done func(*Request)
			done = func(q *Request) {
				if q.Err() != nil {
					b.Fatal(q.Err())
				}
				if left--; left > 0 {
					s.Enqueue(typ, creq, cresp, 0, done)
				}
			}
			run := func(n int) {
				left = n
				s.Enqueue(typ, creq, cresp, 0, done)
				for i := 0; left > 0; i++ {
					r.cli.Poll()
					r.srv.Poll()
					if i&15 == 15 {
						runtime.Gosched()
					}
				}
			}
			run(1000)
			b.ReportAllocs()
			b.ResetTimer()
			run(b.N)
		})
	}
}

// Handlers that wait cost no allocation in steady state.
func TestHandlersThatWaitDoNotAllocate(t *testing.T) {
	if raceEnabled {
		t.Skip("the race detector makes sync.Pool forget")
	}
	r := newRig(t, WithSpin(time.Second))
	var self *Session
	req, resp := r.buf(r.srv, 32), r.buf(r.srv, 32)
	waiting := func(h *RequestHandle) (msgbuf.Buf, error) {
		if err := h.Call(self, rigEcho, req, resp); err != nil {
			return msgbuf.Buf{}, err
		}
		return h.Response(32)
	}
	r.srv.HandleBackground(100, waiting)
	r.srv.HandleCoroutine(101, waiting)
	s := r.connect()
	defer r.run(r.srv)()
	defer r.run(r.cli)()
	var err error
	if self, err = r.srv.Connect(r.ctx, r.srv.URI(), r.srv.ID()); err != nil {
		t.Fatal(err)
	}
	creq, cresp := r.buf(r.cli, 32), r.buf(r.cli, 32)
	for _, typ := range []uint8{100, 101} {
		call := func() {
			if err := s.Call(context.Background(), typ, creq, cresp); err != nil {
				t.Error(err)
			}
		}
		for range 500 {
			call()
		}
		if n := testing.AllocsPerRun(500, call); n != 0 {
			t.Errorf("type %d: %v allocations", typ, n)
		}
	}
}
