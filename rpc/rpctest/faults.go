package rpctest

import (
	"context"
	"errors"
	"strings"
	"time"

	"github.com/rrppcc-go/rrppcc/msgbuf"
	"github.com/rrppcc-go/rrppcc/rpc"
)

var errFault = errors.New("no route on purpose")

var faultTests = []test{
	{"DroppedAnswersAreSentAgain", nil, func(e *env) {
		// What the client does not hear the server says again, and no request
		// is executed twice.
		srv := e.server(ServerConfig{})
		var f rpc.Faults
		ep := e.client(rpc.WithFaults(&f))
		s := e.connect(ep, srv.URI(), 1)
		before := e.echoes(s, ep)
		for i := range 6 {
			data := random([]int{16, 20_000}[i%2], uint32(i))
			f.Drop(i%3 + 1)
			e.expect(s, ep, TypeEcho, data, data)
			if n := f.Dropping(); n != 0 {
				e.Errorf("%d datagrams were not dropped", n)
			}
		}
		if n := e.echoes(s, ep); n != before+6 {
			e.Errorf("%d requests were executed, not 6", n-before)
		}
		st, err := ep.Stats(e.ctx)
		e.must(err)
		if st.DropFault != 12 || st.Retransmits == 0 || !strings.Contains(st.String(), "DropFault=12") {
			e.Errorf("counters: %v", st)
		}
	}},
	{"DroppedRequestsAreSentAgain", []Capability{LocalPeers, SlowTests}, func(e *env) {
		var f rpc.Faults
		srv, cli, connect := e.local(rpc.WithFaults(&f))
		Bind(srv)
		s := connect()
		for i := range 6 {
			data := random([]int{16, 20_000}[i%2], uint32(i))
			f.Drop(2)
			e.expect(s, cli, TypeReverse, data, reversed(data))
		}
		st, err := srv.Stats(e.ctx)
		e.must(err)
		if st.DropFault != 12 || f.Dropping() != 0 {
			e.Errorf("counters: %v", st)
		}
	}},
	{"EverythingIsDroppedUntilTheDeadline", nil, func(e *env) {
		srv := e.server(ServerConfig{})
		var f rpc.Faults
		ep := e.client(rpc.WithFaults(&f))
		s := e.connect(ep, srv.URI(), 1)
		f.Drop(1 << 40)
		ctx, cancel := context.WithTimeout(e.ctx, 50*time.Millisecond)
		defer cancel()
		if err := s.Call(ctx, TypeEcho, msgbuf.Buf{}, msgbuf.Buf{}); !errors.Is(err, context.DeadlineExceeded) {
			e.Errorf("Call to a peer that is not heard: %v", err)
		}
		f.Drop(-f.Dropping())
		e.echo(s, ep)
	}},
	{"ResolutionFailsAtTheClient", nil, func(e *env) {
		srv := e.server(ServerConfig{RingDepth: 32})
		var f rpc.Faults
		ep := e.client(rpc.WithFaults(&f))
		f.FailResolution(2, errFault)
		for failed := 0; failed < 2; {
			_, err := ep.Connect(e.ctx, srv.URI(), 1)
			switch {
			case errors.Is(err, errFault):
				failed++
			case !errors.Is(err, rpc.ErrRingExhausted):
				e.Fatalf("connect without a route: %v", err)
			}
		}
		// The server hears that it was not wanted, and has room again.
		e.echo(e.connectOnceFree(ep, srv.URI(), 1), ep)
	}},
	{"ResolutionFailsAtTheServer", []Capability{LocalPeers}, func(e *env) {
		var f rpc.Faults
		srv, cli := e.endpoint(e.process(ProcessConfig{}), 1, rpc.WithFaults(&f), rpc.WithRingDepth(32)), e.client()
		Bind(srv)
		e.run(srv)
		f.FailResolution(2, errFault)
		for range 2 {
			if _, err := cli.Connect(e.ctx, srv.URI(), 1); err == nil || !strings.Contains(err.Error(), errFault.Error()) {
				e.Errorf("connect to a server without a route: %v", err)
			}
		}
		e.echo(e.connect(cli, srv.URI(), 1), cli)
	}},
	{"SessionManagerIsKilled", []Capability{SlowTests}, func(e *env) {
		// Our own session manager goes silent: the server takes us for dead and
		// ends its half, and so do we.
		srv := e.server(ServerConfig{ProcessConfig: mortal, RingDepth: 32})
		p := e.process(mortal)
		ep := e.endpoint(p, 1)
		s := e.connect(ep, srv.URI(), 1)
		e.run(ep)
		r := e.hold(s, ep, 16, 0, 1)[0]
		p.Kill()
		e.fails(r, rpc.ErrPeerDead)
		other := e.endpoint(e.process(mortal), 1)
		e.echo(e.connectOnceFree(other, srv.URI(), 1), other)
	}},
}

// echoes returns how many TypeEcho the server has executed.
func (e *env) echoes(s *rpc.Session, ep *rpc.Endpoint) int {
	e.Helper()
	got, err := e.call(s, ep, TypeCount, nil, 4)
	e.must(err)
	n, _, err := parse(got)
	e.must(err)
	return int(n)
}
