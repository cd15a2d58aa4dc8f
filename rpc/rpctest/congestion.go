package rpctest

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"time"

	"github.com/rrppcc-go/rrppcc/rpc"
	"github.com/rrppcc-go/rrppcc/rpc/congestion"
)

// metronome is a controller that leaves the same time between all requests, and
// counts what it is told.
type metronome struct {
	gap               time.Duration
	answers, timeouts atomic.Int64
	bad               atomic.Int64 // samples that cannot be
}

func (m *metronome) NewController(int) congestion.Controller { return m }

func (m *metronome) Answered(s congestion.Sample) time.Duration {
	m.answers.Add(1)
	if s.Delay < 0 || s.Now < s.Sent || s.Delay > s.Now-s.Sent || s.Lost && !s.Resent {
		m.bad.Add(1)
	}
	return m.gap
}

func (m *metronome) TimedOut(now, sent time.Duration) time.Duration {
	m.timeouts.Add(1)
	if now < sent {
		m.bad.Add(1)
	}
	return m.gap
}

var congestionTests = []test{
	{"PacedRequestsAllArrive", nil, func(e *env) {
		for _, gap := range []time.Duration{10 * time.Microsecond, 3 * time.Millisecond} { // of which a loop sleeps through the second
			m := &metronome{gap: gap}
			ep, s := e.pair(rpc.WithCongestionControl(m))
			e.run(ep)
			var work sync.WaitGroup
			const callers, each = 20, 10
			for i := range callers {
				req := e.data(ep, random(1+i*700, uint32(i)))
				resp := e.buf(ep, 1+i*700)
				work.Go(func() {
					for range each {
						if err := s.Call(e.ctx, TypeReverse, req, resp); err != nil {
							e.Error(err)
							return
						}
						e.same(resp.Bytes(), reversed(req.Bytes()))
					}
				})
			}
			work.Wait()
			st, err := ep.Stats(e.ctx)
			e.must(err)
			// All but those of the first window, which went before any answer.
			if st.Paced < callers*each-64 || m.answers.Load() < callers*each || m.bad.Load() != 0 {
				e.Errorf("%d requests paced, %d answers, %d impossible samples; %v", st.Paced, m.answers.Load(), m.bad.Load(), st)
			}
			ss, err := s.Stats(e.ctx)
			e.must(err)
			if ss.Gap != gap || ss.RTT <= 0 || ss.Timeout < ss.RTT || ss.Active != 0 || ss.Waiting != 0 || ss.Window != 0 {
				e.Errorf("session: %+v", ss)
			}
		}
	}},
	{"PacedRequestsEndByAbortDeadlineAndClose", nil, func(e *env) {
		ep, s := e.pair(rpc.WithCongestionControl(&metronome{gap: time.Hour})) // as long as there is
		e.run(ep)
		for range 3 {
			e.echo(s, ep)
		}
		var reqs []*rpc.Request
		for range 30 {
			reqs = append(reqs, s.Go(TypeEcho, e.data(ep, []byte("when?")), e.buf(ep, 8)))
		}
		aborted := reqs[20]
		aborted.Abort()
		e.fails(aborted, rpc.ErrAborted)
		ctx, cancel := context.WithTimeout(e.ctx, time.Millisecond)
		defer cancel()
		if err := s.Call(ctx, TypeEcho, e.data(ep, []byte("now!")), e.buf(ep, 8)); !errors.Is(err, context.DeadlineExceeded) {
			e.Errorf("call with a deadline: %v", err)
		}
		e.wait(reqs[0]) // a tenth of a second at most
		e.within("close the session", s.Close)
		closed := 0
		for _, r := range reqs {
			if err := e.wait(r); errors.Is(err, rpc.ErrSessionClosed) {
				closed++
			} else if err != nil && r != aborted {
				e.Errorf("request ended with %v", err)
			}
		}
		if closed == 0 {
			e.Error("no request waited when the session was closed")
		}
	}},
	{"SwiftLeavesNothingBehind", nil, func(e *env) {
		// A target that every network misses: windows of a fraction of a request.
		ep, s := e.pair(rpc.WithCongestionControl(congestion.Swift{Target: 1, Range: -1, MinWindow: 0.05}))
		e.run(ep)
		var reqs []*rpc.Request
		for i := range 100 {
			data := random(1+i*50, uint32(i))
			reqs = append(reqs, s.Go(TypeEcho, e.data(ep, data), e.buf(ep, len(data))))
		}
		for _, r := range reqs {
			e.answered(r)
		}
		st, err := s.Stats(e.ctx)
		e.must(err)
		if st.Window <= 0 || st.Window > 8 {
			e.Errorf("window is %v", st.Window)
		}
		e.echo(s, ep)
	}},
	{"PacedSessionSurvivesItsPeer", nil, func(e *env) {
		srv := e.server(ServerConfig{})
		ep := e.client(rpc.WithCongestionControl(&metronome{gap: 20 * time.Millisecond}))
		e.run(ep)
		s := e.connect(ep, srv.URI(), 1)
		for range 2 {
			e.echo(s, ep)
		}
		var reqs []*rpc.Request
		for range 50 {
			reqs = append(reqs, s.Go(TypeEcho, e.data(ep, []byte("still there?")), e.buf(ep, 16)))
		}
		e.wait(reqs[0])
		e.must(srv.Close())
		for _, r := range reqs {
			if err := e.wait(r); err != nil && !errors.Is(err, rpc.ErrSessionClosed) && !errors.Is(err, rpc.ErrPeerDead) {
				e.Errorf("request ended with %v", err)
			}
		}
		if e.wait(reqs[len(reqs)-1]) == nil {
			e.Error("the last request was answered by a server that is gone")
		}
	}},
}
