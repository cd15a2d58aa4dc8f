package rpctest

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"sync/atomic"

	"github.com/rrppcc-go/rrppcc/msgbuf"
	"github.com/rrppcc-go/rrppcc/nexus"
	"github.com/rrppcc-go/rrppcc/rpc"
)

var closeTests = []test{
	{"SessionCloseEndsItsRequests", nil, func(e *env) {
		srv := e.server(ServerConfig{})
		ep := e.client()
		for _, size := range []int{16, 20_000} {
			s, control := e.connect(ep, srv.URI(), 1), e.connect(ep, srv.URI(), 1)
			before := len(e.held(control, ep, 0))
			reqs := e.hold(s, ep, size, 0, 20)
			e.held(control, ep, before+8)
			e.within("close the session", s.Close)
			for _, r := range reqs {
				e.fails(r, rpc.ErrSessionClosed)
				r.Req().Free()
				r.Resp().Free()
			}
			e.echo(control, ep)
			e.must(control.Close())
		}
	}},
	{"SessionCloseFromManyGoroutines", nil, func(e *env) {
		ep, s := e.pair()
		e.run(ep)
		var wg sync.WaitGroup
		for range 8 {
			wg.Go(func() {
				if err := s.Close(); err != nil {
					e.Error(err)
				}
			})
		}
		e.within("close", func() error { wg.Wait(); return nil })
	}},
	{"EndpointCloseEndsRequestsOfManyGoroutines", nil, func(e *env) {
		for _, driven := range []bool{false, true} {
			srv := e.server(ServerConfig{})
			p := e.process(ProcessConfig{})
			// The callers have their buffers back when Close does, and may be slow to
			// free them; Close warns of what is left, which is right.
			ep := e.endpoint(p, 1, rpc.WithLogger(slog.New(slog.DiscardHandler)))
			sessions := []*rpc.Session{e.connect(ep, srv.URI(), 1), e.connect(ep, srv.URI(), 1), e.connect(ep, srv.URI(), 1)}
			control := e.connect(ep, srv.URI(), 1)
			var stop func()
			if driven {
				stop = e.run(ep)
			}
			var wg sync.WaitGroup
			for i := range 60 {
				req, resp := e.data(ep, random([]int{16, 9000}[i%2], 1)), e.buf(ep, 9000)
				wg.Go(func() {
					err := sessions[i%3].Call(e.ctx, TypeHold, req, resp)
					if !errors.Is(err, rpc.ErrSessionClosed) && !errors.Is(err, rpc.ErrClosed) {
						e.Errorf("Call while the endpoint closes: %v", err)
					}
					req.Free()
					resp.Free()
				})
			}
			e.held(control, ep, 24)
			e.within("close the endpoint", ep.Close)
			e.within("end the calls", func() error { wg.Wait(); return nil })
			if driven {
				stop()
			}
			for _, s := range sessions {
				if err := s.Call(e.ctx, TypeEcho, msgbuf.Buf{}, msgbuf.Buf{}); !errors.Is(err, rpc.ErrClosed) {
					e.Errorf("Call after Close: %v", err)
				}
			}
			if _, err := ep.Connect(e.ctx, srv.URI(), 1); !errors.Is(err, rpc.ErrClosed) {
				e.Errorf("Connect after Close: %v", err)
			}
			if _, err := ep.Stats(e.ctx); !errors.Is(err, rpc.ErrClosed) {
				e.Errorf("Stats after Close: %v", err)
			}
			if err := ep.Run(e.ctx); !errors.Is(err, rpc.ErrClosed) {
				e.Errorf("Run after Close: %v", err)
			}
			if n := ep.Poll(); n != 0 {
				e.Errorf("Poll after Close found %d", n)
			}
		}
	}},
	{"CloseWhileConnectIsUnderWay", nil, func(e *env) {
		// To a server, where it may win or lose, and to nobody, where it would
		// wait for long.
		srv := e.server(ServerConfig{})
		silent := e.process(ProcessConfig{})
		silent.Kill()
		for i, uri := range []string{silent.Nexus.URI(), srv.URI(), srv.URI(), srv.URI()} {
			p := e.process(ProcessConfig{})
			ep := e.endpoint(p, 1)
			stop := e.run(ep)
			done := make(chan error, 4)
			begun := make(chan struct{}, 4)
			for range 4 {
				go func() {
					begun <- struct{}{}
					s, err := ep.Connect(e.ctx, uri, 1)
					if err == nil {
						<-s.Done()
						err = s.Err()
					}
					done <- err
				}()
			}
			for range min(i+1, 4) {
				<-begun
			}
			e.within("close the endpoint", ep.Close)
			for range 4 {
				select {
				case err := <-done:
					if err == nil {
						e.Error("a session outlived its endpoint")
					}
				case <-e.ctx.Done():
					e.Fatal("Connect hangs after Close")
				}
			}
			stop()
		}
	}},
	{"ConnectEndsWithItsContext", nil, func(e *env) {
		silent := e.process(ProcessConfig{})
		silent.Kill()
		ep := e.client()
		ctx, cancel := context.WithCancel(e.ctx)
		done := make(chan error, 1)
		go func() {
			_, err := ep.Connect(ctx, silent.Nexus.URI(), 1)
			done <- err
		}()
		cancel()
		select {
		case err := <-done:
			if !errors.Is(err, context.Canceled) {
				e.Errorf("cancelled Connect: %v", err)
			}
		case <-e.ctx.Done():
			e.Fatal("Connect does not end with its context")
		}
	}},
	{"PeersCloseEndsTheSession", []Capability{LocalPeers}, func(e *env) {
		srv, cli := e.endpoint(e.process(ProcessConfig{}), 1), e.client()
		handlers := Bind(srv)
		e.run(srv)
		s := e.connect(cli, srv.URI(), 1)
		e.run(cli)
		reqs := append(e.hold(s, cli, 16, 0, 8), e.hold(s, cli, 20_000, 8, 10)...)
		e.within("close the server's endpoint", srv.Close)
		handlers.Close()
		for _, r := range reqs {
			e.fails(r, rpc.ErrSessionClosed)
			r.Req().Free()
			r.Resp().Free()
		}
		select {
		case <-s.Done():
		case <-e.ctx.Done():
			e.Fatal("session outlives the server's endpoint")
		}
		if !errors.Is(s.Err(), rpc.ErrSessionClosed) {
			e.Errorf("session ended with %v", s.Err())
		}
		_, err := cli.Connect(e.ctx, srv.URI(), 1)
		var refused *nexus.RefusedError
		if !errors.As(err, &refused) {
			e.Errorf("connect to a closed endpoint: %v", err)
		}
	}},
	{"ServersEndOfASessionCloses", []Capability{LocalPeers}, func(e *env) {
		srv, cli := e.endpoint(e.process(ProcessConfig{}), 1), e.client()
		var end atomic.Pointer[rpc.Session]
		srv.Handle(1, func(h *rpc.RequestHandle) (msgbuf.Buf, error) {
			end.Store(h.Session())
			return msgbuf.Buf{}, nil
		})
		e.run(srv)
		s := e.connect(cli, srv.URI(), 1)
		e.must(s.Call(e.ctx, 1, msgbuf.Buf{}, msgbuf.Buf{}))
		e.run(cli)
		e.within("close the server's end", end.Load().Close)
		select {
		case <-s.Done():
		case <-e.ctx.Done():
			e.Fatal("the client's end lives on")
		}
		if _, err := e.call(s, cli, 1, nil, 0); !errors.Is(err, rpc.ErrSessionClosed) {
			e.Errorf("Call: %v", err)
		}
	}},
	{"SessionsOfOnePairCloseOneByOne", nil, func(e *env) {
		srv := e.server(ServerConfig{})
		ep := e.client()
		data := random(20_000, 1)
		for range 3 {
			var all []*rpc.Session
			for range 4 {
				all = append(all, e.connect(ep, srv.URI(), 1))
			}
			for i, s := range all {
				e.must(s.Close())
				for _, other := range all[i+1:] {
					e.expect(other, ep, TypeReverse, data, reversed(data))
				}
			}
		}
	}},
	{"SessionsComeAndGo", nil, func(e *env) {
		srv := e.server(ServerConfig{RingDepth: 256})
		ep := e.client()
		e.run(ep)
		var wg sync.WaitGroup
		for range 4 {
			wg.Go(func() {
				for i := range 10 {
					ctx, cancel := context.WithTimeout(e.ctx, patience)
					s, err := ep.Connect(ctx, srv.URI(), 1)
					cancel()
					if err != nil {
						e.Error(err)
						return
					}
					data := random([]int{40, 9000}[i%2], uint32(i))
					if got, err := e.try(s, ep, TypeReverse, data, len(data)); err != nil || string(got) != string(reversed(data)) {
						e.Errorf("request: %v", err)
					}
					if err := s.Close(); err != nil {
						e.Error(err)
					}
				}
			})
		}
		wg.Wait()
	}},
	{"ServerClosesWhileClientsCall", nil, func(e *env) {
		srv := e.server(ServerConfig{})
		ep := e.client()
		s := e.connect(ep, srv.URI(), 1)
		e.run(ep)
		started := make(chan struct{})
		var once sync.Once
		var wg sync.WaitGroup
		for i := range 4 {
			wg.Go(func() {
				data := random([]int{64, 20_000}[i%2], 1)
				for {
					got, err := e.try(s, ep, TypeReverse, data, len(data))
					if err != nil {
						if !errors.Is(err, rpc.ErrSessionClosed) {
							e.Errorf("Call while the server closes: %v", err)
						}
						return
					}
					if string(got) != string(reversed(data)) {
						e.Error("wrong answer")
						return
					}
					once.Do(func() { close(started) })
				}
			})
		}
		<-started
		e.must(srv.Close())
		e.within("end the calls", func() error { wg.Wait(); return nil })
	}},
}
