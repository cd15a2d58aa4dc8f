package rpctest

import (
	"context"
	"errors"
	"slices"
	"time"

	"github.com/rrppcc-go/rrppcc/rpc"
)

var abortTests = []test{
	{"Aborting26Of64", nil, func(e *env) {
		for _, size := range []int{16, 20_000} {
			srv := e.server(ServerConfig{})
			ep := e.client()
			s, control := e.connect(ep, srv.URI(), 1), e.connect(ep, srv.URI(), 1)
			reqs := e.hold(s, ep, size, 0, 64)
			e.held(control, ep, 8) // 0 to 7 are with the server, the others in the backlog
			for _, r := range reqs[5:31] {
				r.Abort()
			}
			for _, r := range reqs[5:31] {
				e.fails(r, rpc.ErrAborted)
				// The buffers are ours again: whatever we do to them must
				// not show anywhere.
				Pattern(r.Req().Bytes(), 4711)
				r.Req().Free()
				r.Resp().Free()
			}
			// 3 requests that were aborted hold slots at the server; 5 + 3 and
			// the backlog follow.
			seen := 8
			for answered := 0; answered < 64-26+3; {
				tags := e.held(control, ep, min(seen, 64-26+3))
				seen = len(tags)
				n := seen - answered
				if n == 0 {
					seen++
					continue
				}
				e.release(control, ep, n)
				answered += n
			}
			for i, r := range reqs {
				if i >= 5 && i < 31 {
					continue
				}
				e.answered(r)
			}
			tags := e.held(control, ep, 64-26+3)
			for i := 8; i < 31; i++ {
				if slices.Contains(tags, i) {
					e.Errorf("request %d was aborted in the backlog, and executed", i)
				}
			}
			e.echo(s, ep)
		}
	}},
	{"AbortAtOnceAndRaceWithAnswers", nil, func(e *env) {
		ep, s := e.pair()
		for round := range 20 {
			size := []int{16, 9000}[round%2]
			var reqs []*rpc.Request
			for i := range 64 {
				reqs = append(reqs, s.Go(TypeReverse, e.data(ep, random(size, uint32(i))), e.buf(ep, size)))
			}
			for i, r := range reqs {
				if i%3 == round%3 {
					r.Abort()
					r.Abort()
				}
			}
			for i, r := range reqs {
				switch err := e.wait(r); {
				case err == nil:
					e.same(r.Resp().Bytes(), reversed(random(size, uint32(i))))
				case i%3 != round%3 || !errors.Is(err, rpc.ErrAborted):
					e.Fatalf("request %d: %v", i, err)
				}
				r.Abort() // of a request that is done: nothing
				r.Req().Free()
				r.Resp().Free()
			}
		}
		e.echo(s, ep)
	}},
	{"AbortOfALargeRequestThatIsPulled", nil, func(e *env) {
		srv := e.server(ServerConfig{})
		ep := e.client()
		s, control := e.connect(ep, srv.URI(), 1), e.connect(ep, srv.URI(), 1)
		reqs := e.hold(s, ep, 1<<20, 0, 4)
		e.held(control, ep, 4)
		for _, r := range reqs {
			r.Abort()
			e.fails(r, rpc.ErrAborted)
			r.Req().Free()
		}
		e.release(control, ep, 4)
		e.echo(s, ep)
	}},
	{"CallEndsWithItsContext", nil, func(e *env) {
		srv := e.server(ServerConfig{})
		ep := e.client()
		s, control := e.connect(ep, srv.URI(), 1), e.connect(ep, srv.URI(), 1)
		e.run(ep)
		for _, size := range []int{16, 20_000} {
			req, resp := e.data(ep, random(size, 1)), e.buf(ep, size)
			seen := len(e.held(control, ep, 0))
			ctx, cancel := context.WithCancel(e.ctx)
			done := make(chan error, 1)
			go func() { done <- s.Call(ctx, TypeHold, req, resp) }()
			e.held(control, ep, seen+1)
			cancel()
			if err := <-done; !errors.Is(err, context.Canceled) {
				e.Errorf("cancelled Call of %d bytes: %v", size, err)
			}
			req.Free()
			resp.Free()

			req, resp = e.data(ep, random(size, 1)), e.buf(ep, size)
			ctx, cancel = context.WithTimeout(e.ctx, 20*time.Millisecond)
			if err := s.Call(ctx, TypeHold, req, resp); !errors.Is(err, context.DeadlineExceeded) {
				e.Errorf("Call of %d bytes beyond its deadline: %v", size, err)
			}
			cancel()
			req.Free()
			resp.Free()
			e.drain(control, ep)
		}
		e.echo(s, ep)
	}},
	{"AbortedRequestsDoNotHoldUpNewOnes", nil, func(e *env) {
		// The server still works on what was given up, and so its slots are
		// busy there; there are others.
		srv := e.server(ServerConfig{})
		ep := e.client()
		s, control := e.connect(ep, srv.URI(), 1), e.connect(ep, srv.URI(), 1)
		for i, size := range []int{16, 20_000} {
			for k := range 3 {
				r := e.hold(s, ep, size, 0, 1)[0]
				e.held(control, ep, 3*i+k+1)
				r.Abort()
				e.fails(r, rpc.ErrAborted)
				e.echo(s, ep)
			}
		}
		st, err := ep.Stats(e.ctx)
		e.must(err)
		if st.Retransmits > 0 {
			e.Logf("%d retransmissions", st.Retransmits)
		}
		e.drain(control, ep)
	}},
	{"CallWithAnEndedContextSendsNothing", nil, func(e *env) {
		ep, s := e.pair()
		ctx, cancel := context.WithDeadline(e.ctx, time.Now().Add(-time.Second))
		defer cancel()
		if err := s.Call(ctx, TypeEcho, e.buf(ep, 4), e.buf(ep, 4)); !errors.Is(err, context.DeadlineExceeded) {
			e.Errorf("deadline in the past: %v", err)
		}
		e.expect(s, ep, TypeCount, nil, number(0))
	}},
	{"RequestTimeoutEndsWhatHasNoDeadline", nil, func(e *env) {
		srv := e.server(ServerConfig{})
		ep := e.client(rpc.WithRequestTimeout(50 * time.Millisecond))
		s := e.connect(ep, srv.URI(), 1)
		// 12 requests: some are in flight and some in the backlog.
		for _, r := range e.hold(s, ep, 16, 0, 12) {
			e.fails(r, context.DeadlineExceeded)
			r.Req().Free()
			r.Resp().Free()
		}
	}},
	{"WaitWithACancelledContextAborts", nil, func(e *env) {
		srv := e.server(ServerConfig{})
		ep := e.client()
		s, control := e.connect(ep, srv.URI(), 1), e.connect(ep, srv.URI(), 1)
		for i, size := range []int{16, 20_000} {
			r := e.hold(s, ep, size, 0, 1)[0]
			e.held(control, ep, i+1)
			ctx, cancel := context.WithCancel(e.ctx)
			cancel()
			if err := r.Wait(ctx); !errors.Is(err, context.Canceled) {
				e.Errorf("Wait with a cancelled context: %v", err)
			}
			<-r.Done()
			if !errors.Is(r.Err(), rpc.ErrAborted) {
				e.Errorf("the request ended with %v", r.Err())
			}
			r.Req().Free()
			r.Resp().Free()
			e.release(control, ep, 1)
		}
		e.echo(s, ep)
	}},
	{"AnswersOfAbortedRequestsAreNotTakenForOthers", nil, func(e *env) {
		// The slot of an aborted request is used again while the server still
		// has the old request: the late answer must not end the new one.
		srv := e.server(ServerConfig{})
		ep := e.client()
		s, control := e.connect(ep, srv.URI(), 1), e.connect(ep, srv.URI(), 1)
		old := e.hold(s, ep, 64, 0, 8)
		e.held(control, ep, 8)
		for _, r := range old {
			r.Abort()
			e.fails(r, rpc.ErrAborted)
		}
		var fresh []*rpc.Request
		for i := range 8 {
			fresh = append(fresh, s.Go(TypeReverse, e.data(ep, random(64, uint32(100+i))), e.buf(ep, 64)))
		}
		e.release(control, ep, 8)
		for i, r := range fresh {
			e.must(e.wait(r))
			e.same(r.Resp().Bytes(), reversed(random(64, uint32(100+i))))
		}
	}},
}
