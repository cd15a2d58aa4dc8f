package rpctest

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"sync"
	"syscall"
	"time"

	"github.com/rrppcc-go/rrppcc/nexus"
	"github.com/rrppcc-go/rrppcc/rpc"
)

var sessionTests = []test{
	{"EndpointsAreCreatedConcurrently", nil, func(e *env) {
		p := e.process(ProcessConfig{})
		const n = 16
		var wg sync.WaitGroup
		eps := make([]*rpc.Endpoint, n)
		errs := make([]error, n)
		for i := range n {
			wg.Go(func() { eps[i], errs[i] = rpc.NewEndpoint(p.Nexus, uint16(i+1), p.Verbs, rpc.WithRingDepth(128)) })
		}
		wg.Wait()
		defer func() {
			for _, ep := range eps {
				if ep != nil {
					e.within("close", ep.Close)
				}
			}
		}()
		e.must(errors.Join(errs...))
		for i, ep := range eps {
			if ep.ID() != uint16(i+1) || ep.URI() != p.Nexus.URI() {
				e.Errorf("endpoint %d calls itself %d at %s", i+1, ep.ID(), ep.URI())
			}
		}
	}},
	{"EndpointNumberIsTaken", nil, func(e *env) {
		p := e.process(ProcessConfig{})
		e.endpoint(p, 7)
		ep, err := rpc.NewEndpoint(p.Nexus, 7, p.Verbs)
		if err == nil {
			ep.Close()
			e.Fatal("two endpoints have the same number")
		}
	}},
	{"TenSessionsFromEachOfTwoEndpoints", nil, func(e *env) {
		srv := e.server(ServerConfig{})
		p := e.process(ProcessConfig{})
		for id := range 2 {
			ep := e.endpoint(p, uint16(id+1))
			for i := range 10 {
				s := e.connect(ep, srv.URI(), 1)
				if uri, rid := s.Remote(); uri != srv.URI() || rid != 1 {
					e.Errorf("session leads to endpoint %d at %s", rid, uri)
				}
				e.expect(s, ep, TypeReverse, fmt.Append(nil, "session ", i), reversed(fmt.Append(nil, "session ", i)))
			}
		}
	}},
	{"SessionsInBothDirectionsConnectConcurrently", []Capability{LocalPeers}, func(e *env) {
		a, b := e.endpoint(e.process(ProcessConfig{}), 1), e.endpoint(e.process(ProcessConfig{}), 2)
		Bind(a)
		Bind(b)
		e.run(a)
		e.run(b)
		var wg sync.WaitGroup
		for i := range 20 {
			from, to := a, b
			if i%2 == 1 {
				from, to = b, a
			}
			wg.Go(func() {
				s, err := from.Connect(e.ctx, to.URI(), to.ID())
				if err != nil {
					e.Error(err)
					return
				}
				want := fmt.Append(nil, "session ", i)
				if got, err := e.try(s, from, TypeEcho, want, 64); err != nil || string(got) != string(want) {
					e.Errorf("session %d: %q, %v", i, got, err)
				}
			})
		}
		wg.Wait()
	}},
	{"EndpointConnectsToItself", []Capability{LocalPeers}, func(e *env) {
		ep := e.client()
		Bind(ep)
		s := e.connect(ep, ep.URI(), ep.ID())
		e.echo(s, ep)
		data := random(100_000, 1)
		e.expect(s, ep, TypeReverse, data, reversed(data))
		e.must(s.Close())
	}},
	{"SessionTellsItsEnd", nil, func(e *env) {
		ep, s := e.pair()
		select {
		case <-s.Done():
			e.Fatal("session has ended before Close")
		default:
		}
		if s.Err() != nil || s.Endpoint() != ep {
			e.Fatalf("a living session says %v, of %p", s.Err(), s.Endpoint())
		}
		e.must(s.Close())
		<-s.Done()
		if !errors.Is(s.Err(), rpc.ErrSessionClosed) {
			e.Errorf("closed session says %v", s.Err())
		}
		e.must(s.Close())
		if _, err := e.call(s, ep, TypeEcho, nil, 0); !errors.Is(err, rpc.ErrSessionClosed) {
			e.Errorf("Call on a closed session: %v", err)
		}
		e.fails(s.Go(TypeEcho, e.buf(ep, 1), e.buf(ep, 1)), rpc.ErrSessionClosed)
	}},
	{"ServerRefusesUnknownEndpoint", nil, func(e *env) {
		srv := e.server(ServerConfig{})
		ep := e.client()
		s, err := ep.Connect(e.ctx, srv.URI(), 99)
		var refused *nexus.RefusedError
		if s != nil || !errors.As(err, &refused) || refused.Reason != nexus.ReasonNoSuchEndpoint {
			e.Fatalf("connect to an endpoint that does not exist: %v", err)
		}
		e.echo(e.connect(ep, srv.URI(), 1), ep)
	}},
	{"ConnectToNobodyTimesOut", nil, func(e *env) {
		ep := e.client()
		silent := e.process(ProcessConfig{})
		silent.Kill()
		ctx, cancel := context.WithTimeout(e.ctx, 200*time.Millisecond)
		defer cancel()
		_, err := ep.Connect(ctx, silent.Nexus.URI(), 1)
		var timeout *nexus.TimeoutError
		if !errors.As(err, &timeout) || !errors.Is(err, context.DeadlineExceeded) {
			e.Fatalf("connect to nobody: %v", err)
		}
	}},
	{"ConnectRejectsBadURIs", nil, func(e *env) {
		ep := e.client()
		ctx, cancel := context.WithTimeout(e.ctx, 10*time.Second)
		defer cancel()
		for _, uri := range []string{"", "nowhere", "127.0.0.1", "127.0.0.1:port", "127.0.0.1:99999", "no-such-host.invalid:1"} {
			if s, err := ep.Connect(ctx, uri, 1); err == nil {
				s.Close()
				e.Errorf("connected to %q", uri)
			}
		}
		if e.ctx.Err() != nil {
			e.Error("it took too long")
		}
	}},
	{"URIIsTaken", nil, func(e *env) {
		p := e.process(ProcessConfig{})
		nx, err := nexus.New(p.Nexus.URI())
		if err == nil {
			nx.Close()
		}
		if !errors.Is(err, syscall.EADDRINUSE) {
			e.Fatalf("second process at the same URI: %v", err)
		}
	}},
	{"RingExhaustedUntilASessionCloses", nil, func(e *env) {
		srv := e.server(ServerConfig{RingDepth: 64})
		ep := e.client()
		first := e.connect(ep, srv.URI(), 1)
		second := e.connect(ep, srv.URI(), 1)
		third, err := ep.Connect(e.ctx, srv.URI(), 1)
		if third != nil || !errors.Is(err, rpc.ErrRingExhausted) {
			e.Fatalf("third session in a ring for two: %v", err)
		}
		e.echo(first, ep)
		e.echo(second, ep)
		e.must(first.Close())
		again := e.connect(ep, srv.URI(), 1)
		e.echo(again, ep)
		e.echo(second, ep)
	}},
	{"OwnRingExhausted", nil, func(e *env) {
		srv := e.server(ServerConfig{})
		ep := e.client(rpc.WithRingDepth(32))
		s := e.connect(ep, srv.URI(), 1)
		if _, err := ep.Connect(e.ctx, srv.URI(), 1); !errors.Is(err, rpc.ErrRingExhausted) {
			e.Fatalf("second session in a ring for one: %v", err)
		}
		e.must(s.Close())
		e.echo(e.connect(ep, srv.URI(), 1), ep)
	}},
	{"WindowsMustAgree", nil, func(e *env) {
		srv := e.server(ServerConfig{})
		ep := e.client(rpc.WithWindow(4))
		_, err := ep.Connect(e.ctx, srv.URI(), 1)
		var refused *nexus.RefusedError
		if !errors.As(err, &refused) || refused.Reason != nexus.ReasonBadRequest {
			e.Fatalf("window of 4 to a window of 8: %v", err)
		}
	}},
	{"EndpointRejectsBadOptions", nil, func(e *env) {
		p := e.process(ProcessConfig{})
		for name, o := range map[string]rpc.Option{
			"window 0": rpc.WithWindow(0), "window 65": rpc.WithWindow(65), "no ring": rpc.WithRingDepth(1), "huge ring": rpc.WithRingDepth(1 << 20),
			"no message": rpc.WithMaxMessage(0), "no time": rpc.WithRequestTimeout(0), "port 77": rpc.WithPort(77), "GID 15000": rpc.WithGIDIndex(15000),
			"7 credits for a window of 8": rpc.WithCredits(7), "more credits than a ring has": rpc.WithCredits(4096),
		} {
			if ep, err := rpc.NewEndpoint(p.Nexus, 1, p.Verbs, o); err == nil {
				ep.Close()
				e.Errorf("%s is accepted", name)
			}
		}
		e.endpoint(p, 1)
	}},
	{"NothingListensOnAnotherHost", nil, func(e *env) {
		// The URI of a peer may be any address of its host; this is one that
		// it is not bound to.
		srv := e.server(ServerConfig{})
		ep := e.client()
		at := netip.MustParseAddrPort(srv.URI())
		ctx, cancel := context.WithTimeout(e.ctx, 100*time.Millisecond)
		defer cancel()
		if s, err := ep.Connect(ctx, netip.AddrPortFrom(netip.MustParseAddr("127.0.0.77"), at.Port()).String(), 1); err == nil {
			s.Close()
			e.Fatal("connected")
		}
	}},
}

func reversed(b []byte) []byte {
	r := make([]byte, len(b))
	reverseTo(r, b)
	return r
}

// try is call for other goroutines than the test's.
func (e *env) try(s *rpc.Session, ep *rpc.Endpoint, typ uint8, data []byte, room int) ([]byte, error) {
	req, err := ep.Alloc(len(data))
	if err != nil {
		return nil, err
	}
	defer req.Free()
	resp, err := ep.Alloc(room)
	if err != nil {
		return nil, err
	}
	defer resp.Free()
	copy(req.Bytes(), data)
	err = s.Call(e.ctx, typ, req, resp)
	return append([]byte(nil), resp.Bytes()...), err
}
