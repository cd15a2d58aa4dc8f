package rpctest

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/rrppcc-go/rrppcc/msgbuf"
	"github.com/rrppcc-go/rrppcc/nexus"
	"github.com/rrppcc-go/rrppcc/rpc"
)

var openTests = []test{
	{"RequestsWaitForAnOpenedSession", nil, func(e *env) {
		srv := e.server(ServerConfig{})
		ep := e.client()
		s := ep.Open(srv.URI(), 1)
		var reqs []*rpc.Request
		for i := range 40 {
			n := []int{16, 9000}[i%2]
			reqs = append(reqs, s.Go(TypeEcho, e.data(ep, random(n, uint32(i))), e.buf(ep, n)))
		}
		// Nobody drives the endpoint until here: Wait does.
		for _, r := range reqs {
			e.answered(r)
		}
		e.must(s.Ready(e.ctx))
		e.echo(s, ep)
		e.must(s.Close())
		if err := s.Ready(e.ctx); !errors.Is(err, rpc.ErrSessionClosed) {
			e.Errorf("Ready of a closed session: %v", err)
		}
	}},
	{"OpenedSessionIsPolledByHand", nil, func(e *env) {
		srv := e.server(ServerConfig{})
		ep := e.client()
		for range 5 {
			s := ep.Open(srv.URI(), 1)
			var got error
			over := 0
			resp := e.buf(ep, 4)
			for range 20 {
				s.Enqueue(TypeEcho, e.data(ep, []byte("hand")), msgbuf.Buf{}, 0, func(*rpc.Request) { over++ })
			}
			s.Enqueue(TypeEcho, e.data(ep, []byte("hand")), resp, 0, func(r *rpc.Request) { got, over = r.Err(), over+1 })
			e.poll(ep, func() bool { return over == 21 })
			e.must(got)
			e.same(resp.Bytes(), []byte("hand"))
		}
	}},
	{"ManySessionsOpenAtOnce", nil, func(e *env) {
		srv := e.server(ServerConfig{RingDepth: 8192, Endpoints: 2})
		ep := e.client(rpc.WithRingDepth(8192))
		e.run(ep)
		var sessions []*rpc.Session
		for i := range 200 {
			sessions = append(sessions, ep.Open(srv.URI(), uint16(i%2+1)))
		}
		for i, s := range sessions {
			want := fmt.Append(nil, "session ", i)
			e.expect(s, ep, TypeReverse, want, reversed(want))
		}
	}},
	{"OpenedSessionDoesNotComeUp", nil, func(e *env) {
		srv := e.server(ServerConfig{RingDepth: 32})
		ep := e.client(rpc.WithRingDepth(64))
		e.run(ep)
		e.connect(ep, srv.URI(), 1)
		full := ep.Open(srv.URI(), 1) // no room there
		e.fails(full.Go(TypeEcho, msgbuf.Buf{}, msgbuf.Buf{}), rpc.ErrRingExhausted)
		if err := full.Ready(e.ctx); !errors.Is(err, rpc.ErrRingExhausted) {
			e.Errorf("Ready: %v", err)
		}
		unknown := ep.Open(srv.URI(), 77)
		var refused *nexus.RefusedError
		if err := unknown.Ready(e.ctx); !errors.As(err, &refused) || refused.Reason != nexus.ReasonNoSuchEndpoint {
			e.Errorf("an endpoint that does not exist: %v", err)
		}
		<-unknown.Done()
		if _, err := e.call(unknown, ep, TypeEcho, nil, 0); !errors.As(err, &refused) {
			e.Errorf("Call: %v", err)
		}
		e.must(unknown.Close())
		nowhere := ep.Open("no port", 1)
		if err := nowhere.Ready(e.ctx); err == nil {
			e.Error("a URI without a port is ready")
		}
	}},
	{"OpenWithoutRoomInTheOwnRing", nil, func(e *env) {
		srv := e.server(ServerConfig{})
		ep := e.client(rpc.WithRingDepth(32))
		s := e.connect(ep, srv.URI(), 1)
		second := ep.Open(srv.URI(), 1)
		if err := second.Err(); !errors.Is(err, rpc.ErrRingExhausted) {
			e.Fatalf("second session in a ring for one: %v", err)
		}
		e.fails(second.Go(TypeEcho, msgbuf.Buf{}, msgbuf.Buf{}), rpc.ErrRingExhausted)
		var got error
		second.Enqueue(TypeEcho, msgbuf.Buf{}, msgbuf.Buf{}, 0, func(r *rpc.Request) { got = r.Err() })
		if !errors.Is(got, rpc.ErrRingExhausted) {
			e.Errorf("Enqueue: %v", got)
		}
		e.must(second.Close())
		e.echo(s, ep)
	}},
	{"OpenedSessionIsClosedBeforeItIsUp", nil, func(e *env) {
		silent := e.process(ProcessConfig{})
		silent.Kill()
		for _, driven := range []bool{false, true} {
			ep := e.client(rpc.WithRingDepth(32))
			if driven {
				e.run(ep)
			}
			for range 3 { // each needs the room of the one before
				s := ep.Open(silent.Nexus.URI(), 1)
				r := s.Go(TypeEcho, msgbuf.Buf{}, msgbuf.Buf{})
				e.within("close", s.Close)
				e.fails(r, rpc.ErrSessionClosed)
			}
		}
	}},
	{"EndpointClosesWithOpeningSessions", nil, func(e *env) {
		silent := e.process(ProcessConfig{})
		silent.Kill()
		for _, driven := range []bool{false, true} {
			ep := e.client()
			if driven {
				e.run(ep)
			}
			var reqs []*rpc.Request
			for range 4 {
				reqs = append(reqs, ep.Open(silent.Nexus.URI(), 1).Go(TypeEcho, msgbuf.Buf{}, msgbuf.Buf{}))
			}
			start := time.Now()
			e.within("close", ep.Close)
			if took := time.Since(start); took > 4*time.Second {
				e.Errorf("Close took %v", took)
			}
			for _, r := range reqs {
				e.fails(r, rpc.ErrClosed)
			}
			if err := ep.Open(silent.Nexus.URI(), 1).Err(); !errors.Is(err, rpc.ErrClosed) {
				e.Errorf("Open after Close: %v", err)
			}
		}
	}},
	{"OpenReachesAPeerThatIsRestarted", []Capability{SlowTests}, func(e *env) {
		// The session to the dead process fails; one opened before the new
		// process is there comes up with it, and carries what was queued.
		srv := e.server(ServerConfig{ProcessConfig: reborn()})
		ep := e.endpoint(e.process(mortal), 1)
		e.run(ep)
		old := e.connect(ep, srv.URI(), 1)
		for range 2 {
			held := e.hold(old, ep, 16, 0, 1)[0]
			e.must(srv.Kill())
			e.fails(held, rpc.ErrPeerDead)
			data := random(20_000, 1)
			send := func() (*rpc.Session, *rpc.Request) {
				s := ep.Open(srv.URI(), 1)
				return s, s.Go(TypeReverse, e.data(ep, data), e.buf(ep, len(data)))
			}
			next, r := send()
			at := mortal
			at.URI, at.Rebind = srv.URI(), 10*time.Second
			again := e.server(ServerConfig{ProcessConfig: at})
			var refused *nexus.RefusedError
			for errors.As(e.wait(r), &refused) { // the process is there, its endpoint not yet
				next, r = send()
			}
			srv = again
			e.must(r.Err())
			e.same(r.Resp().Bytes(), reversed(data))
			old = next
		}
	}},
	{"CreditsDecideHowManySessionsFit", nil, func(e *env) {
		srv := e.server(ServerConfig{RingDepth: 64, Credits: 8})
		ep := e.client(rpc.WithRingDepth(256), rpc.WithCredits(16))
		var sessions []*rpc.Session
		for range 8 {
			sessions = append(sessions, e.connect(ep, srv.URI(), 1))
		}
		if _, err := ep.Connect(e.ctx, srv.URI(), 1); !errors.Is(err, rpc.ErrRingExhausted) {
			e.Errorf("ninth session in a ring for eight: %v", err)
		}
		// All windows full: the ring has just enough room.
		var reqs []*rpc.Request
		for i := range 256 {
			reqs = append(reqs, sessions[i%8].Go(TypeReverse, e.data(ep, random(100, uint32(i))), e.buf(ep, 100)))
		}
		for i, r := range reqs {
			e.must(e.wait(r))
			e.same(r.Resp().Bytes(), reversed(random(100, uint32(i))))
		}
	}},
	{"PollByHandIsNotTakenOverByAccept", []Capability{LocalPeers}, func(e *env) {
		// What an endpoint that is polled by hand accepts must not drive its
		// loop from another goroutine: Enqueue would race with it.
		a, b := e.endpoint(e.process(ProcessConfig{}), 1), e.endpoint(e.process(ProcessConfig{}), 2)
		Bind(a)
		Bind(b)
		e.run(b)
		toB := a.Open(b.URI(), 2)
		e.poll(a, func() bool { return ready(toB) })
		ctx, cancel := context.WithCancel(e.ctx)
		var wg sync.WaitGroup
		for range 2 {
			wg.Go(func() {
				for ctx.Err() == nil {
					if s, err := b.Connect(ctx, a.URI(), 1); err == nil {
						s.Close()
					}
				}
			})
		}
		n := 0
		next := func(*rpc.Request) { n++ }
		for i := range 2000 {
			toB.Enqueue(TypeCount, msgbuf.Buf{}, msgbuf.Buf{}, 0, next)
			e.poll(a, func() bool { return n > i-4 })
		}
		cancel()
		stop := e.run(a)
		wg.Wait()
		stop()
	}},
}

// ready reports whether an opened session is up.
func ready(s *rpc.Session) bool {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	return s.Ready(ctx) == nil
}
