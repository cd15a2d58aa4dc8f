package rpc

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/rrppcc-go/rrppcc/msgbuf"
)

// pump keeps `outstanding` requests of one session under way, by hand, with
// both ends on one goroutine.
type pump struct {
	*rig
	s         *Session
	req       msgbuf.Buf
	resp      []msgbuf.Buf
	left      int // still to be started
	underWay  int
	failed    error
	completed func(*Request)
}

func newPump(r *rig, reqBytes, respBytes, outstanding int) *pump {
	r.Helper()
	p := &pump{rig: r, s: r.connect(), req: r.buf(r.cli, reqBytes)}
	for i := range p.req.Bytes() {
		p.req.Bytes()[i] = byte(i) // memory that was never written is no memory yet
	}
	for range outstanding {
		p.resp = append(p.resp, r.buf(r.cli, respBytes))
	}
	p.completed = func(q *Request) {
		if err := q.Err(); err != nil {
			p.failed = err
		}
		p.underWay--
		if p.left > 0 {
			p.start(q.Tag())
		}
	}
	return p
}

func (p *pump) start(tag uint64) {
	p.left--
	p.underWay++
	p.s.Enqueue(rigEcho, p.req, p.resp[tag], tag, p.completed)
}

// run makes n requests.
func (p *pump) run(n int) {
	p.left = n
	for tag := 0; tag < len(p.resp) && p.left > 0; tag++ {
		p.start(uint64(tag))
	}
	for p.underWay > 0 {
		p.cli.Poll()
		p.srv.Poll()
	}
	if p.failed != nil {
		p.Fatal(p.failed)
	}
}

// BenchmarkEnqueue is one request and its response, in process, both ends on
// this goroutine, without Run.
func BenchmarkEnqueue(b *testing.B) {
	for _, bytes := range []int{32, 1024, 4000} {
		for _, outstanding := range []int{1, 8, 32} {
			b.Run(fmt.Sprintf("%dB/%d", bytes, outstanding), func(b *testing.B) {
				p := newPump(newRig(b, WithWindow(max(8, outstanding))), bytes, bytes, outstanding)
				p.run(1000)
				b.ReportAllocs()
				b.ResetTimer()
				p.run(b.N)
			})
		}
	}
}

// BenchmarkLargeEnqueue has requests that the server pulls, and small answers.
func BenchmarkLargeEnqueue(b *testing.B) {
	for _, bytes := range []int{16 << 10, 1 << 20, 16 << 20, 64 << 20} {
		for _, outstanding := range []int{1, 8} {
			b.Run(fmt.Sprintf("%dKiB/%d", bytes>>10, outstanding), func(b *testing.B) {
				benchmarkLarge(b, bytes, outstanding)
			})
		}
	}
}

// BenchmarkWindows is what it costs to offer messages by memory windows.
func BenchmarkWindows(b *testing.B) {
	for _, bytes := range []int{16 << 10, 1 << 20} {
		for _, outstanding := range []int{1, 8} {
			b.Run(fmt.Sprintf("%dKiB/%d/windows", bytes>>10, outstanding), func(b *testing.B) {
				benchmarkLarge(b, bytes, outstanding)
			})
			b.Run(fmt.Sprintf("%dKiB/%d/keys", bytes>>10, outstanding), func(b *testing.B) {
				benchmarkLarge(b, bytes, outstanding, WithRegionKeys())
			})
		}
	}
}

func benchmarkLarge(b *testing.B, bytes, outstanding int, opts ...Option) {
	r := newRig(b, opts...)
	r.srv.Handle(rigEcho, func(h *RequestHandle) (msgbuf.Buf, error) { return h.Response(8) })
	p := newPump(r, bytes, 8, outstanding)
	p.run(20)
	b.ReportAllocs()
	b.SetBytes(int64(bytes))
	b.ResetTimer()
	p.run(b.N)
}

// BenchmarkCall is one blocking call; the server runs on its own goroutine, and
// the client's loop on the caller's, or on one more.
func BenchmarkCall(b *testing.B) {
	for _, who := range []string{"caller drives", "Run"} {
		b.Run(who, func(b *testing.B) {
			r := newRig(b)
			s := r.connect()
			defer r.run(r.srv)()
			if who == "Run" {
				defer r.run(r.cli)()
			}
			req, resp := r.buf(r.cli, 32), r.buf(r.cli, 32)
			ctx := context.Background()
			b.ReportAllocs()
			b.ResetTimer()
			for range b.N {
				if err := s.Call(ctx, rigEcho, req, resp); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// BenchmarkCallers is blocking calls from many goroutines over one session; both
// ends are run.
func BenchmarkCallers(b *testing.B) {
	for _, callers := range []int{1, 64, 1024} {
		b.Run(fmt.Sprintf("32B/%d", callers), func(b *testing.B) {
			r := newRig(b, WithWindow(64))
			s := r.connect()
			defer r.run(r.srv)()
			defer r.run(r.cli)()
			ctx := context.Background()
			var wg sync.WaitGroup
			var next atomic.Int64
			bufs := make([][2]msgbuf.Buf, callers)
			for i := range bufs {
				bufs[i] = [2]msgbuf.Buf{r.buf(r.cli, 32), r.buf(r.cli, 32)}
			}
			b.ReportAllocs()
			b.ResetTimer()
			for _, buf := range bufs {
				wg.Go(func() {
					for next.Add(1) <= int64(b.N) {
						if err := s.Call(ctx, rigEcho, buf[0], buf[1]); err != nil {
							b.Error(err)
							return
						}
					}
				})
			}
			wg.Wait()
		})
	}
}

// The hot path allocates nothing in steady state, small and large.
func TestEnqueueDoesNotAllocate(t *testing.T) {
	if raceEnabled {
		t.Skip("built with -race, msgbuf records who frees what")
	}
	for _, size := range []int{0, 32, 1000, 4000, 20_000} {
		for _, outstanding := range []int{1, 8, 64} {
			for _, opts := range [][]Option{nil, crossing(false)} {
				p := newPump(newRig(t, opts...), size, size, outstanding)
				p.run(2000)
				if n := testing.AllocsPerRun(20, func() { p.run(100) }); n != 0 {
					t.Errorf("100 requests of %d bytes, %d at a time, in datagrams %v: %v allocations", size, outstanding, opts != nil, n)
				}
			}
		}
	}
}

func TestCallDoesNotAllocate(t *testing.T) {
	if raceEnabled {
		t.Skip("the race detector makes sync.Pool forget")
	}
	for _, run := range []bool{false, true} {
		for _, size := range []int{0, 32, 1000, 4000, 20_000} {
			// Loops that do not go to sleep: events of the device allocate.
			r := newRig(t, WithSpin(time.Second))
			s := r.connect()
			stop := []func(){r.run(r.srv)}
			if run {
				stop = append(stop, r.run(r.cli))
			}
			req, resp := r.buf(r.cli, size), r.buf(r.cli, size)
			ctx := context.Background()
			call := func() {
				if err := s.Call(ctx, rigEcho, req, resp); err != nil {
					t.Error(err)
				}
			}
			for range 200 {
				call()
			}
			if n := testing.AllocsPerRun(500, call); n != 0 {
				t.Errorf("Call of %d bytes, client runs %v: %v allocations", size, run, n)
			}
			for _, f := range stop {
				f()
			}
		}
	}
}
