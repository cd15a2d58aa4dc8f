package rpctest

import (
	"context"
	"errors"
	"sync"

	"github.com/rrppcc-go/rrppcc/msgbuf"
	"github.com/rrppcc-go/rrppcc/rpc"
)

var nestedTests = []test{
	{"NestedSmall", nil, func(e *env) { nested(e, 13, 200) }},
	{"NestedLarge", nil, func(e *env) { nested(e, 16384, 30) }},
	{"NestedConcurrently", nil, func(e *env) {
		ep, s := e.chain()
		var reqs []*rpc.Request
		for i := range 64 {
			n := []int{10, 9000}[i/2%2]
			typ := []uint8{TypeForward, TypeForwardBlocking}[i%2]
			reqs = append(reqs, s.Go(typ, e.data(ep, random(n, uint32(i))), e.buf(ep, 2*n)))
		}
		for _, r := range reqs {
			e.must(e.wait(r))
			e.same(r.Resp().Bytes(), twice(reversed(r.Req().Bytes())))
		}
	}},
	{"CallFromAHandlerIsRefused", nil, func(e *env) {
		ep, s := e.chain()
		_, err := e.call(s, ep, TypeDeadlock, nil, 0)
		var he *rpc.HandlerError
		if !errors.As(err, &he) || he.Code != 1 || he.Panic {
			e.Fatalf("the handler saw %v", err)
		}
		e.expect(s, ep, TypeForward, []byte("ab"), []byte("baba"))
	}},
	{"CallFromACallbackIsRefused", nil, func(e *env) {
		ep, s := e.pair()
		resp := e.buf(ep, 8)
		var inner error
		over := false
		s.Enqueue(TypeEcho, e.data(ep, []byte("outer")), resp, 0, func(*rpc.Request) {
			inner = s.Call(e.ctx, TypeEcho, msgbuf.Buf{}, msgbuf.Buf{})
			over = true
		})
		e.poll(ep, func() bool { return over })
		if !errors.Is(inner, rpc.ErrDeadlock) {
			e.Errorf("Call from a callback: %v", inner)
		}
		e.same(resp.Bytes(), []byte("outer"))
		e.echo(s, ep)
	}},
	{"EnqueueFromCallbacks", nil, func(e *env) {
		ep, s := e.pair()
		req, resp := e.buf(ep, 16), e.buf(ep, 16)
		n := 0
		var next func(r *rpc.Request)
		next = func(r *rpc.Request) {
			if r.Err() != nil || r.Tag() != uint64(n) || r.Type() != TypeReverse {
				e.Errorf("request %d: tag %d, error %v", n, r.Tag(), r.Err())
			}
			e.same(resp.Bytes(), reversed(req.Bytes()))
			if n++; n < 500 {
				Pattern(req.Bytes(), uint32(n))
				s.Enqueue(TypeReverse, req, resp, uint64(n), next)
			}
		}
		s.Enqueue(TypeReverse, req, resp, 0, next)
		e.poll(ep, func() bool { return n == 500 })
	}},
	{"DeferredRequestsAreRepliedFromAnyGoroutine", []Capability{LocalPeers}, func(e *env) {
		srv, cli := e.endpoint(e.process(ProcessConfig{}), 1), e.client()
		handles := make(chan *rpc.RequestHandle, 64)
		srv.Handle(1, func(h *rpc.RequestHandle) (msgbuf.Buf, error) {
			handles <- h
			return h.Defer()
		})
		e.run(srv)
		s := e.connect(cli, srv.URI(), 1)
		e.run(cli)
		var reqs []*rpc.Request
		for i := range 40 {
			n := []int{24, 12_000}[i%2]
			reqs = append(reqs, s.Go(1, e.data(cli, random(n, uint32(i))), e.buf(cli, n)))
		}
		var wg sync.WaitGroup
		for range 8 {
			wg.Go(func() {
				for range 5 {
					h := <-handles
					// The request outlives its handler: it is still what was sent.
					resp, err := srv.Alloc(len(h.Bytes()))
					if err != nil {
						e.Error(err)
						h.Fail(err)
						continue
					}
					reverseTo(resp.Bytes(), h.Bytes())
					h.Reply(resp)
				}
			})
		}
		wg.Wait()
		for i, r := range reqs {
			e.must(e.wait(r))
			e.same(r.Resp().Bytes(), reversed(random(len(r.Req().Bytes()), uint32(i))))
		}
	}},
	{"ReplyingTwicePanics", []Capability{LocalPeers}, func(e *env) {
		srv, cli := e.endpoint(e.process(ProcessConfig{}), 1), e.client()
		kept := make(chan *rpc.RequestHandle, 1)
		srv.Handle(1, func(h *rpc.RequestHandle) (msgbuf.Buf, error) {
			kept <- h
			return h.Defer()
		})
		e.run(srv)
		s := e.connect(cli, srv.URI(), 1)
		e.run(cli)
		r := s.Go(1, msgbuf.Buf{}, msgbuf.Buf{})
		h := <-kept
		h.Reply(msgbuf.Buf{})
		for name, again := range map[string]func(){
			"Reply": func() { h.Reply(msgbuf.Buf{}) },
			"Fail":  func() { h.Fail(errors.New("late")) },
		} {
			func() {
				defer func() {
					if recover() == nil {
						e.Errorf("%s after Reply did not panic", name)
					}
				}()
				again()
			}()
		}
		e.must(e.wait(r))
	}},
	{"ReplyAfterTheSessionIsGone", []Capability{LocalPeers}, func(e *env) {
		srv, cli := e.endpoint(e.process(ProcessConfig{}), 1), e.client()
		kept := make(chan *rpc.RequestHandle, 2)
		srv.Handle(1, func(h *rpc.RequestHandle) (msgbuf.Buf, error) {
			kept <- h
			return h.Defer()
		})
		e.run(srv)
		s := e.connect(cli, srv.URI(), 1)
		e.run(cli)
		small := s.Go(1, e.data(cli, []byte("small")), e.buf(cli, 16))
		first := <-kept
		big := s.Go(1, e.data(cli, random(50_000, 1)), e.buf(cli, 16))
		second := <-kept
		ends := second.Session().Done()
		e.must(s.Close())
		e.fails(small, rpc.ErrSessionClosed)
		e.fails(big, rpc.ErrSessionClosed)
		select {
		case <-ends:
		case <-e.ctx.Done():
			e.Fatal("the server's end of the session lives on")
		}
		for _, h := range []*rpc.RequestHandle{first, second} {
			resp, err := srv.Alloc(10_000)
			e.must(err)
			h.Reply(resp) // nobody hears; the buffer is freed by the endpoint
		}
		e.connect(cli, srv.URI(), 1)
	}},
	{"BlockingCallsOfManyHandlers", []Capability{LocalPeers}, func(e *env) {
		// Two endpoints that call each other from goroutines of their handlers,
		// to a depth that the window has room for.
		a, b := e.endpoint(e.process(ProcessConfig{}), 1), e.endpoint(e.process(ProcessConfig{}), 2)
		var toA, toB *rpc.Session
		var wg sync.WaitGroup
		bounce := func(ep *rpc.Endpoint, to **rpc.Session) rpc.Handler {
			return func(h *rpc.RequestHandle) (msgbuf.Buf, error) {
				ttl := h.Bytes()[0]
				if ttl == 0 {
					return respond(h, []byte("done"))
				}
				wg.Go(func() {
					resp, err := ep.Alloc(8)
					if err != nil {
						h.Fail(err)
						return
					}
					req, err := ep.Alloc(1)
					if err == nil {
						req.Bytes()[0] = ttl - 1
						ctx, cancel := context.WithTimeout(e.ctx, patience)
						defer cancel()
						err = (*to).Call(ctx, 1, req, resp)
						req.Free()
					}
					if err != nil {
						resp.Free()
						h.Fail(err)
						return
					}
					h.Reply(resp)
				})
				return h.Defer()
			}
		}
		a.Handle(1, bounce(a, &toB))
		b.Handle(1, bounce(b, &toA))
		toB, toA = e.connectWhile(a, b), e.connectWhile(b, a)
		e.run(a)
		e.run(b)
		for range 20 {
			var reqs []*rpc.Request
			for range 4 {
				reqs = append(reqs, toB.Go(1, e.data(a, []byte{3}), e.buf(a, 8)))
			}
			for _, r := range reqs {
				e.must(e.wait(r))
				e.same(r.Resp().Bytes(), []byte("done"))
			}
		}
		wg.Wait()
	}},
}

// nested calls through an endpoint in the middle, both ways, n times each.
func nested(e *env, size, n int) {
	ep, s := e.chain()
	for _, typ := range []uint8{TypeForward, TypeForwardBlocking} {
		for i := range n {
			data := random(size, uint32(i))
			e.expect(s, ep, typ, data, twice(reversed(data)))
		}
	}
}

func twice(b []byte) []byte { return append(append([]byte(nil), b...), b...) }

// chain makes a client, a server that forwards, and one at the end.
func (e *env) chain() (*rpc.Endpoint, *rpc.Session) {
	e.Helper()
	last := e.server(ServerConfig{})
	middle := e.server(ServerConfig{})
	ep := e.client()
	s := e.connect(ep, middle.URI(), 1)
	_, err := e.call(s, ep, TypeConnect, append(number(1), last.URI()...), 0)
	e.must(err)
	return ep, s
}

// connectWhile connects from to other, which it drives meanwhile.
func (e *env) connectWhile(from, other *rpc.Endpoint) *rpc.Session {
	e.Helper()
	stop := e.run(other)
	defer stop()
	return e.connect(from, other.URI(), other.ID())
}

// poll polls ep by hand until done.
func (e *env) poll(ep *rpc.Endpoint, done func() bool) {
	e.Helper()
	for !done() {
		ep.Poll()
		if e.ctx.Err() != nil {
			e.Fatal("nothing happens any more")
		}
	}
}
