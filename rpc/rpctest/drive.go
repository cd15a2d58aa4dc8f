package rpctest

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/rrppcc-go/rrppcc/msgbuf"
	"github.com/rrppcc-go/rrppcc/rpc"
)

var driveTests = []test{
	{"CallersDriveWhereNobodyRuns", nil, func(e *env) {
		ep, s := e.pair()
		for range 100 {
			e.echo(s, ep)
		}
		// Also with a context that never ends.
		e.must(s.Call(context.Background(), TypeEcho, e.buf(ep, 4), e.buf(ep, 4)))
	}},
	{"TwoGoroutinesShareTheDriving", nil, func(e *env) {
		ep, s := e.pair()
		e.callers(s, ep, 2, 500)
	}},
	{"RunTakesOverFromACall", nil, func(e *env) {
		srv := e.server(ServerConfig{})
		ep := e.client()
		s, control := e.connect(ep, srv.URI(), 1), e.connect(ep, srv.URI(), 1)
		for i := range 20 {
			r := e.hold(s, ep, 16, i, 1)[0]
			waiting := make(chan error, 1)
			go func() { waiting <- r.Wait(e.ctx) }() // drives, and sleeps
			e.held(control, ep, i+1)
			stop := e.run(ep)
			e.release(control, ep, 1)
			e.must(<-waiting)
			stop()
			e.echo(s, ep)
		}
	}},
	{"CallsTakeOverFromRun", nil, func(e *env) {
		ep, s := e.pair()
		var wg sync.WaitGroup
		stopped := make(chan struct{})
		go func() {
			defer close(stopped)
			for range 200 {
				ctx, cancel := context.WithCancel(e.ctx)
				done := make(chan struct{})
				go func() { ep.Run(ctx); close(done) }()
				e.try(s, ep, TypeEcho, []byte("x"), 1)
				cancel()
				<-done
			}
		}()
		for range 2 {
			wg.Go(func() {
				for {
					select {
					case <-stopped:
						return
					default:
					}
					if got, err := e.try(s, ep, TypeReverse, []byte("abc"), 8); err != nil || string(got) != "cba" {
						e.Errorf("%q, %v", got, err)
						return
					}
				}
			})
		}
		e.within("calls and Runs", func() error { <-stopped; wg.Wait(); return nil })
	}},
	{"SecondRunWaitsForTheFirst", nil, func(e *env) {
		ep, s := e.pair()
		first, second := e.run(ep), e.run(ep)
		e.echo(s, ep)
		first()
		e.echo(s, ep)
		third := e.run(ep)
		second()
		e.echo(s, ep)
		third()
		e.echo(s, ep)
	}},
	{"RunEndsWithItsContext", nil, func(e *env) {
		for _, spin := range []time.Duration{-1, 0, time.Millisecond} {
			ep := e.client(rpc.WithSpin(spin))
			ctx, cancel := context.WithCancel(e.ctx)
			done := make(chan error, 1)
			go func() { done <- ep.Run(ctx) }()
			_, err := ep.Stats(e.ctx) // it runs
			e.must(err)
			cancel()
			select {
			case err := <-done:
				e.must(err)
			case <-e.ctx.Done():
				e.Fatalf("Run with spin %v does not end", spin)
			}
		}
	}},
	{"RunEndsWithClose", nil, func(e *env) {
		for _, spin := range []time.Duration{-1, 0} {
			ep := e.client(rpc.WithSpin(spin))
			done := make(chan error, 1)
			go func() { done <- ep.Run(context.Background()) }()
			_, err := ep.Stats(e.ctx)
			e.must(err)
			e.within("close", ep.Close)
			if err := <-done; !errors.Is(err, rpc.ErrClosed) {
				e.Errorf("Run of a closed endpoint: %v", err)
			}
		}
	}},
	{"PollByHand", nil, func(e *env) {
		ep, s := e.pair()
		req, resp := e.data(ep, []byte("by hand")), e.buf(ep, 16)
		r := s.Go(TypeReverse, req, resp)
		e.poll(ep, func() bool {
			select {
			case <-r.Done():
				return true
			default:
				return false
			}
		})
		e.must(r.Err())
		e.same(resp.Bytes(), []byte("dnah yb"))
		over := 0
		for i := range 64 {
			s.Enqueue(TypeEcho, req, e.buf(ep, 16), uint64(i), func(r *rpc.Request) {
				if r.Err() != nil || string(r.Resp().Bytes()) != "by hand" {
					e.Errorf("request %d: %q, %v", r.Tag(), r.Resp().Bytes(), r.Err())
				}
				over++
			})
		}
		e.poll(ep, func() bool { return over == 64 })
	}},
	{"OneGoroutinePollsBothEnds", []Capability{DirectWire}, func(e *env) {
		srv, cli := e.endpoint(e.process(ProcessConfig{}), 1), e.client()
		Bind(srv)
		s := e.connectWhile(cli, srv)
		for _, n := range []int{32, 100_000} {
			req, resp := e.data(cli, random(n, 1)), e.buf(cli, n)
			over := false
			s.Enqueue(TypeReverse, req, resp, 0, func(r *rpc.Request) { over = r.Err() == nil })
			for i := 0; !over; i++ {
				cli.Poll()
				srv.Poll()
				if i > 100 {
					e.Fatalf("%d bytes: not answered after %d polls", n, i)
				}
			}
			e.same(resp.Bytes(), reversed(req.Bytes()))
		}
	}},
	{"EveryKindOfEventWakesASleepingLoop", nil, func(e *env) {
		// Both ends sleep as soon as they find nothing.
		srv := e.server(ServerConfig{})
		ep := e.client(rpc.WithSpin(0), rpc.WithRequestTimeout(30*time.Millisecond))
		s, control := e.connect(ep, srv.URI(), 1), e.connect(ep, srv.URI(), 1)
		e.run(ep)
		// The network and submissions.
		for range 200 {
			e.echo(s, ep)
		}
		data := random(30_000, 1)
		for range 20 {
			e.expect(s, ep, TypeReverse, data, reversed(data))
		}
		// A timer alone: the server says nothing.
		for _, r := range e.hold(s, ep, 16, 0, 12) {
			e.fails(r, context.DeadlineExceeded)
		}
		e.release(control, ep, len(e.held(control, ep, 8)))
	}},
	{"IdleLoopSleeps", nil, func(e *env) { idleSleeps(e) }},
	{"SubmissionsFromEverywhereWhileRunning", nil, func(e *env) {
		ep, s := e.pair()
		e.run(ep)
		e.callers(s, ep, 16, 50)
	}},
	{"HandlersRunWhileACallDrives", []Capability{LocalPeers}, func(e *env) {
		// Neither end runs its loop. A call that waits answers the other end
		// meanwhile.
		a, b := e.endpoint(e.process(ProcessConfig{}), 1), e.endpoint(e.process(ProcessConfig{}), 2)
		Bind(a)
		Bind(b)
		toB, toA := e.connectWhile(a, b), e.connectWhile(b, a)
		held := toB.Go(TypeHold, e.data(a, []byte("hold")), e.buf(a, 4))
		done := make(chan error, 1)
		go func() { done <- held.Wait(e.ctx) }()
		for range 100 {
			e.echo(toA, b)
		}
		e.run(b)
		e.held(toB, a, 1)
		e.release(toB, a, 1)
		e.must(<-done)
		e.answered(held)
	}},
	{"EnqueueOnAClosedSession", nil, func(e *env) {
		ep, s := e.pair()
		e.must(s.Close())
		var got error
		s.Enqueue(TypeEcho, msgbuf.Buf{}, msgbuf.Buf{}, 0, func(r *rpc.Request) { got = r.Err() })
		e.poll(ep, func() bool { return got != nil })
		if !errors.Is(got, rpc.ErrSessionClosed) {
			e.Error(got)
		}
	}},
}

// callers has n goroutines make k calls each.
func (e *env) callers(s *rpc.Session, ep *rpc.Endpoint, n, k int) {
	e.Helper()
	var wg sync.WaitGroup
	for i := range n {
		wg.Go(func() {
			data := random(24, uint32(i))
			for range k {
				got, err := e.try(s, ep, TypeReverse, data, len(data))
				if err != nil || string(got) != string(reversed(data)) {
					e.Errorf("caller %d: %v", i, err)
					return
				}
			}
		})
	}
	e.within("the callers", func() error { wg.Wait(); return nil })
}
