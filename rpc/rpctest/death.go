package rpctest

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"runtime"
	"time"

	"github.com/rrppcc-go/rrppcc/msgbuf"
	"github.com/rrppcc-go/rrppcc/rpc"
)

// mortal makes deaths noticed soon, yet not by a stall of a slow machine.
var mortal = ProcessConfig{Heartbeat: 50 * time.Millisecond, DeadAfter: time.Second}

// reborn is mortal at an address of its own, where the system has more than one
// loopback address: so nobody takes the port between a death and a restart.
func reborn() ProcessConfig {
	c := mortal
	if runtime.GOOS == "linux" {
		c.URI = fmt.Sprintf("127.%d.%d.%d:0", 1+rand.IntN(250), rand.IntN(250), 1+rand.IntN(250))
	}
	return c
}

var deathTests = []test{
	{"RequestsOfADeadPeerFail", []Capability{SlowTests}, func(e *env) {
		srv := e.server(ServerConfig{ProcessConfig: mortal})
		ep := e.endpoint(e.process(mortal), 1)
		s, control := e.connect(ep, srv.URI(), 1), e.connect(ep, srv.URI(), 1)
		reqs := append(e.hold(s, ep, 16, 0, 4), e.hold(s, ep, 20_000, 4, 16)...) // some in the backlog
		e.held(control, ep, 8)
		e.run(ep)
		e.must(srv.Kill())
		for _, r := range reqs {
			e.fails(r, rpc.ErrPeerDead)
			r.Req().Free()
			r.Resp().Free()
		}
		for _, s := range []*rpc.Session{s, control} {
			select {
			case <-s.Done():
			case <-e.ctx.Done():
				e.Fatal("session outlives its peer")
			}
			if !errors.Is(s.Err(), rpc.ErrPeerDead) {
				e.Errorf("session ended with %v", s.Err())
			}
			if _, err := e.call(s, ep, TypeEcho, nil, 0); !errors.Is(err, rpc.ErrPeerDead) {
				e.Errorf("Call to a dead peer: %v", err)
			}
			e.must(s.Close())
		}
	}},
	{"RestartedPeerIsReachedAgain", []Capability{SlowTests}, func(e *env) {
		srv := e.server(ServerConfig{ProcessConfig: reborn()})
		ep := e.endpoint(e.process(mortal), 1)
		old := e.connect(ep, srv.URI(), 1)
		data := random(20_000, 1)
		e.expect(old, ep, TypeReverse, data, reversed(data))
		e.run(ep)
		e.must(srv.Kill())
		at := mortal
		at.URI, at.Rebind = srv.URI(), 10*time.Second
		e.server(ServerConfig{ProcessConfig: at})
		s := e.connect(ep, at.URI, 1)
		e.expect(s, ep, TypeReverse, data, reversed(data))
		select {
		case <-old.Done():
		case <-e.ctx.Done():
			e.Fatal("the session with the old process lives on")
		}
		if !errors.Is(old.Err(), rpc.ErrPeerDead) {
			e.Errorf("the old session ended with %v", old.Err())
		}
		e.expect(s, ep, TypeReverse, data, reversed(data))
	}},
	{"LinkComesBack", []Capability{SlowTests}, func(e *env) {
		// Whether the server dies or says goodbye, and also before it was ever
		// there: the link has a session again as soon as there is a server.
		home := e.server(ServerConfig{ProcessConfig: reborn()})
		at := mortal
		at.URI, at.Rebind = home.URI(), 10*time.Second
		e.must(home.Close())
		ep := e.endpoint(e.process(mortal), 1)
		l := ep.Link(at.URI, 1)
		data := random(20_000, 1)
		for round := range 4 {
			srv := e.server(ServerConfig{ProcessConfig: at})
			req, resp := e.data(ep, data), e.buf(ep, len(data))
			e.must(l.Call(e.ctx, TypeReverse, req, resp)) // nobody runs the loop but this
			e.same(resp.Bytes(), reversed(data))
			s, err := l.Ready(e.ctx)
			e.must(err)
			if s != l.Session() || l.Ups() != round+1 {
				e.Errorf("round %d: %d sessions were up", round, l.Ups())
			}
			held := e.hold(s, ep, 16, 0, 2)
			e.held(s, ep, 2)
			if round%2 == 0 {
				e.must(srv.Kill())
				e.fails(held[0], rpc.ErrPeerDead)
			} else {
				e.must(srv.Close())
				e.fails(held[0], rpc.ErrSessionClosed)
			}
			e.wait(held[1])
			ctx, cancel := context.WithTimeout(e.ctx, 20*time.Millisecond)
			if s, err := l.Ready(ctx); !errors.Is(err, context.DeadlineExceeded) && (err == nil) != (s != nil) {
				e.Errorf("Ready without a server: %v", err)
			}
			cancel()
		}
		e.must(l.Close())
		if _, err := l.Ready(e.ctx); !errors.Is(err, rpc.ErrClosed) {
			e.Errorf("Ready after Close: %v", err)
		}
		if err := l.Call(e.ctx, TypeEcho, msgbuf.Buf{}, msgbuf.Buf{}); !errors.Is(err, rpc.ErrClosed) {
			e.Errorf("Call after Close: %v", err)
		}
		e.must(l.Close())
	}},
	{"LinkEndsWithItsEndpoint", nil, func(e *env) {
		srv := e.server(ServerConfig{})
		ep := e.client()
		up, waiting := ep.Link(srv.URI(), 1), ep.Link(srv.URI(), 99)
		e.run(ep)
		_, err := up.Ready(e.ctx)
		e.must(err)
		errs := make(chan error, 1)
		go func() {
			_, err := waiting.Ready(e.ctx)
			errs <- err
		}()
		e.must(ep.Close())
		if err := <-errs; !errors.Is(err, rpc.ErrClosed) {
			e.Errorf("Ready while the endpoint closes: %v", err)
		}
		for _, l := range []*rpc.Link{up, waiting} {
			e.must(l.Close())
		}
	}},
	{"DeadClientLeavesNothingAtTheServer", []Capability{SlowTests}, func(e *env) {
		srv := e.server(ServerConfig{ProcessConfig: mortal, RingDepth: 64})
		stay := e.endpoint(e.process(mortal), 1)
		control := e.connect(stay, srv.URI(), 1)
		held := 0
		// The ring has room for one more session: so each dead client must have
		// given its share back before the next one gets in.
		for range 2 {
			p := e.process(mortal)
			ep := e.endpoint(p, 1)
			s := e.connectOnceFree(ep, srv.URI(), 1)
			e.hold(s, ep, 16, held, 4)
			e.hold(s, ep, 20_000, held+4, 4)
			stop := e.run(ep)
			held += 8
			e.held(control, stay, held)
			stop()
			p.Kill()
		}
		s := e.connectOnceFree(stay, srv.URI(), 1)
		e.release(control, stay, held)
		e.echo(s, stay)
	}},
	{"DeviceIsRemovedFromTheClient", []Capability{DeviceRemoval}, func(e *env) {
		srv := e.server(ServerConfig{ProcessConfig: mortal})
		// What has to be destroyed answers EIO by then, which Close reports; it
		// must end all the same, and leave nothing.
		p, err := e.b.NewProcess(mortal)
		e.must(err)
		defer p.Close()
		ep, err := rpc.NewEndpoint(p.Nexus, 1, p.Verbs)
		e.must(err)
		defer func() { e.within("close", func() error { ep.Close(); return nil }) }()
		s := e.connect(ep, srv.URI(), 1)
		reqs := append(e.hold(s, ep, 16, 0, 4), e.hold(s, ep, 20_000, 4, 12)...)
		e.must(p.Remove())
		for _, r := range reqs {
			if err := e.wait(r); err == nil {
				e.Error("a request survived its device")
			}
			r.Req().Free()
			r.Resp().Free()
		}
		if _, err := ep.Connect(e.ctx, srv.URI(), 1); err == nil {
			e.Error("a session came up without a device")
		}
	}},
}

func (e *env) connectOnceFree(ep *rpc.Endpoint, uri string, id uint16) *rpc.Session {
	e.Helper()
	s, err := connectOnceFree(e.ctx, ep, uri, id)
	e.must(err)
	return s
}

// connectOnceFree connects to an endpoint whose ring is full at first.
func connectOnceFree(ctx context.Context, ep *rpc.Endpoint, uri string, id uint16) (*rpc.Session, error) {
	for {
		s, err := ep.Connect(ctx, uri, id)
		if !errors.Is(err, rpc.ErrRingExhausted) || ctx.Err() != nil {
			return s, err
		}
	}
}
