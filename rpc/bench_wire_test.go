package rpc_test

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/rrppcc-go/rrppcc/msgbuf"
	"github.com/rrppcc-go/rrppcc/rpc"
	"github.com/rrppcc-go/rrppcc/rpc/rpctest"
)

// wireClient is a client of a server in another process.
type wireClient struct {
	testing.TB
	ep       *rpc.Endpoint
	sessions []*rpc.Session
}

func newWireClient(tb testing.TB, sessions int, opts ...rpc.Option) *wireClient {
	tb.Helper()
	return newWireClientOf(tb, sessions, rpctest.ServerConfig{}, opts...)
}

// newWireClientOf is newWireClient with options of both ends.
func newWireClientOf(tb testing.TB, sessions int, cfg rpctest.ServerConfig, opts ...rpc.Option) *wireClient {
	tb.Helper()
	backend := rpctest.TwoProcesses()
	must := func(err error) {
		tb.Helper()
		if err != nil {
			tb.Fatal(err)
		}
	}
	srv, err := backend.StartServer(cfg)
	must(err)
	p, err := backend.NewProcess(rpctest.ProcessConfig{})
	if err != nil {
		tb.Fatal(errors.Join(err, srv.Close()))
	}
	ep, err := rpc.NewEndpoint(p.Nexus, 1, p.Verbs, opts...)
	tb.Cleanup(func() {
		if ep != nil {
			ep.Close()
		}
		if err := errors.Join(p.Close(), srv.Close()); err != nil {
			tb.Error(err)
		}
	})
	must(err)
	c := &wireClient{TB: tb, ep: ep}
	for range sessions {
		s, err := ep.Connect(context.Background(), srv.URI(), 1)
		must(err)
		c.sessions = append(c.sessions, s)
	}
	return c
}

func (c *wireClient) buf(n int) msgbuf.Buf {
	b, err := c.ep.Alloc(n)
	if err != nil {
		c.Fatal(err)
	}
	c.Cleanup(func() { b.Free() })
	return b
}

// pump returns a function that makes n requests, so many at a time, with the
// client's loop by hand and without a pause.
func (c *wireClient) pump(typ uint8, req msgbuf.Buf, respBytes, outstanding int) (run func(n int)) {
	left, underWay := 0, 0
	var failed error
	var resps []msgbuf.Buf
	for range outstanding {
		resps = append(resps, c.buf(respBytes))
	}
	var done func(*rpc.Request)
	start := func(tag uint64) {
		left--
		underWay++
		c.sessions[int(tag)%len(c.sessions)].Enqueue(typ, req, resps[tag], tag, done)
	}
	done = func(r *rpc.Request) {
		underWay--
		if r.Err() != nil {
			failed = r.Err()
		}
		if left > 0 {
			start(r.Tag())
		}
	}
	return func(n int) {
		left = n
		for tag := 0; tag < outstanding && left > 0; tag++ {
			start(uint64(tag))
		}
		for underWay > 0 {
			c.ep.Poll()
		}
		if failed != nil {
			c.Fatal(failed)
		}
	}
}

// BenchmarkTwoProcesses is the rate of 32-byte requests over UDP loopback.
func BenchmarkTwoProcesses(b *testing.B) {
	for _, outstanding := range []int{1, 8, 64} {
		b.Run(fmt.Sprintf("32B/%d", outstanding), func(b *testing.B) {
			c := newWireClient(b, (outstanding+7)/8)
			run := c.pump(rpctest.TypeEcho, c.buf(32), 32, outstanding)
			run(1000)
			b.ReportAllocs()
			b.ResetTimer()
			begin := time.Now()
			run(b.N)
			b.ReportMetric(float64(b.N)/time.Since(begin).Seconds(), "rpc/s")
		})
	}
}

// BenchmarkTwoProcessesCall is the same through blocking calls of goroutines.
func BenchmarkTwoProcessesCall(b *testing.B) {
	for _, callers := range []int{1, 8, 64} {
		b.Run(fmt.Sprintf("32B/%d", callers), func(b *testing.B) {
			c := newWireClient(b, (callers+7)/8)
			ctx, cancel := context.WithCancel(context.Background())
			var loop, work sync.WaitGroup
			loop.Go(func() { c.ep.Run(ctx) })
			b.ReportAllocs()
			b.ResetTimer()
			begin := time.Now()
			for i := range callers {
				req, resp := c.buf(32), c.buf(32)
				n := b.N / callers
				if i < b.N%callers {
					n++
				}
				work.Go(func() {
					for range n {
						if err := c.sessions[i%len(c.sessions)].Call(ctx, rpctest.TypeEcho, req, resp); err != nil {
							b.Error(err)
							return
						}
					}
				})
			}
			work.Wait()
			b.ReportMetric(float64(b.N)/time.Since(begin).Seconds(), "rpc/s")
			b.StopTimer()
			cancel()
			loop.Wait()
		})
	}
}

// BenchmarkTwoProcessesLarge is the rate of requests that the server pulls.
func BenchmarkTwoProcessesLarge(b *testing.B) {
	for _, size := range []int{16 << 10, 1 << 20, 16 << 20, 64 << 20} {
		b.Run(fmt.Sprintf("%dKiB", size>>10), func(b *testing.B) {
			benchmarkWireLarge(b, size)
		})
	}
}

// BenchmarkTwoProcessesWindows is what it costs to offer messages by memory
// windows.
func BenchmarkTwoProcessesWindows(b *testing.B) {
	for _, size := range []int{16 << 10, 1 << 20} {
		b.Run(fmt.Sprintf("%dKiB/windows", size>>10), func(b *testing.B) { benchmarkWireLarge(b, size) })
		b.Run(fmt.Sprintf("%dKiB/keys", size>>10), func(b *testing.B) { benchmarkWireLarge(b, size, rpc.WithRegionKeys()) })
	}
}

func benchmarkWireLarge(b *testing.B, size int, opts ...rpc.Option) {
	c := newWireClient(b, 1, opts...)
	req, resp := c.buf(size), c.buf(8)
	b.SetBytes(int64(size))
	b.ResetTimer()
	for range b.N {
		if err := c.sessions[0].Call(context.Background(), rpctest.TypeChecksum, req, resp); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkTwoProcessesCrossing compares the two ways of requests of more than a
// datagram: in several datagrams, and by RDMA READ.
func BenchmarkTwoProcessesCrossing(b *testing.B) {
	for _, outstanding := range []int{1, 8} {
		for _, size := range []int{4096, 2 * 4072, 3 * 4072, 4 * 4072, 6 * 4072, 8 * 4072, 12 * 4072, 16 * 4072} {
			for _, way := range []string{"UD", "READ"} {
				b.Run(fmt.Sprintf("%d/%dB/%s", outstanding, size, way), func(b *testing.B) {
					threshold := 16 * 4072
					if way == "READ" {
						threshold = 1
					}
					const credits = 8 * 17
					c := newWireClientOf(b, 1, rpctest.ServerConfig{Credits: credits}, rpc.WithCredits(credits), rpc.WithLargeThreshold(threshold))
					run := c.pump(rpctest.TypeCount, c.buf(size), 8, outstanding)
					run(200)
					b.SetBytes(int64(size))
					b.ResetTimer()
					run(b.N)
				})
			}
		}
	}
}
