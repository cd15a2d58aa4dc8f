package rpctest

import (
	"bytes"
	"errors"
	"fmt"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"github.com/rrppcc-go/rrppcc/msgbuf"
	"github.com/rrppcc-go/rrppcc/rpc"
)

// forwardWaiting is forward for a handler that may wait.
func (s *Handlers) forwardWaiting(h *rpc.RequestHandle) (msgbuf.Buf, error) {
	next := s.next.Load()
	if next == nil {
		return msgbuf.Buf{}, errNoNext
	}
	req, a, b, err := s.triple(h.Bytes())
	if err != nil {
		return msgbuf.Buf{}, err
	}
	defer req.Free()
	defer a.Free()
	defer b.Free()
	first := h.Begin(next, TypeReverse, req, a)
	second := h.Begin(next, TypeReverse, req, b)
	if err := errors.Join(second.Wait(), first.Wait()); err != nil {
		return msgbuf.Buf{}, err
	}
	resp, err := h.Response(a.Len() + b.Len())
	if err == nil {
		copy(resp.Bytes()[copy(resp.Bytes(), a.Bytes()):], b.Bytes())
	}
	return resp, err
}

// bounce sends the request on until its first byte is 0.
func (s *Handlers) bounce(h *rpc.RequestHandle) (msgbuf.Buf, error) {
	data := h.Bytes()
	if data[0] == 0 {
		return respond(h, data[1:])
	}
	next := s.next.Load()
	if next == nil {
		return msgbuf.Buf{}, errNoNext
	}
	req, err := s.buffer(data)
	if err != nil {
		return msgbuf.Buf{}, err
	}
	defer req.Free()
	req.Bytes()[0]--
	resp, err := h.Response(len(data) - 1)
	if err != nil {
		return msgbuf.Buf{}, err
	}
	return resp, h.Call(next, h.Type(), req, resp)
}

// between makes two servers whose TypeBounces lead to each other, and a client
// with a session to the first.
func (e *env) between(cfg ServerConfig, opts ...rpc.Option) (*rpc.Endpoint, *rpc.Session) {
	e.Helper()
	a, b := e.server(cfg), e.server(cfg)
	ep := e.client(opts...)
	toA, toB := e.connect(ep, a.URI(), 1), e.connect(ep, b.URI(), 1)
	for s, other := range map[*rpc.Session]*ownedServer{toA: b, toB: a} {
		_, err := e.call(s, ep, TypeConnect, append(number(1), other.URI()...), 0)
		e.must(err)
	}
	return ep, toA
}

var waitingTypes = []uint8{TypeBounceBackground, TypeBounceCoroutine}

// local is an endpoint with handlers of the test's own, and a session to it.
func (e *env) local(opts ...rpc.Option) (srv, cli *rpc.Endpoint, connect func() *rpc.Session) {
	srv, cli = e.endpoint(e.process(ProcessConfig{}), 1, opts...), e.client()
	return srv, cli, func() *rpc.Session {
		e.run(srv)
		s := e.connect(cli, srv.URI(), 1)
		e.run(cli)
		return s
	}
}

var waitingTests = []test{
	{"HandlersThatWaitForward", nil, func(e *env) {
		ep, s := e.chain()
		for i := range 100 {
			for _, n := range []int{1, 13, 16384} {
				data := random(n, uint32(i))
				for _, typ := range []uint8{TypeForwardBackground, TypeForwardCoroutine} {
					e.expect(s, ep, typ, data, twice(reversed(data)))
				}
			}
		}
	}},
	{"HandlersThatWaitConcurrently", nil, func(e *env) {
		ep, s := e.chain()
		types := []uint8{TypeForward, TypeForwardBlocking, TypeForwardBackground, TypeForwardCoroutine}
		var reqs []*rpc.Request
		for i := range 256 {
			n := []int{10, 9000}[i/4%2]
			reqs = append(reqs, s.Go(types[i%4], e.data(ep, random(n, uint32(i))), e.buf(ep, 2*n)))
		}
		for _, r := range reqs {
			e.must(e.wait(r))
			e.same(r.Resp().Bytes(), twice(reversed(r.Req().Bytes())))
		}
	}},
	{"CallsNestToDepthSixteen", nil, func(e *env) {
		// To and fro between two servers that keep one worker each: every level
		// but one needs a goroutine more. Eight slots of the window each way are
		// just enough for one chain.
		ep, s := e.between(ServerConfig{Workers: 1})
		for _, typ := range waitingTypes {
			for depth := range 17 {
				for _, n := range []int{1, 9000} {
					rest := random(n, uint32(depth))
					e.expect(s, ep, typ, append([]byte{byte(depth)}, rest...), rest)
				}
			}
		}
	}},
	{"EightCallsNestToDepthSixteenAtOnce", nil, func(e *env) {
		ep, s := e.between(ServerConfig{Workers: 2, Window: 64, RingDepth: 1024}, rpc.WithWindow(64))
		for _, typ := range waitingTypes {
			for round := range 5 {
				var reqs []*rpc.Request
				for i := range 8 {
					n := []int{8, 9000}[(i+round)%2]
					reqs = append(reqs, s.Go(typ, e.data(ep, append([]byte{16}, random(n, uint32(i))...)), e.buf(ep, n)))
				}
				for _, r := range reqs {
					e.must(e.wait(r))
					e.same(r.Resp().Bytes(), r.Req().Bytes()[1:])
				}
			}
		}
	}},
	{"ManyCallsNestDeeperThanTheirWindows", nil, func(e *env) {
		// Chains that together need more slots than the two sessions between the
		// servers have: they get lanes, and all of them come through.
		ep, s := e.between(ServerConfig{Workers: 2})
		uri, id := s.Remote()
		via := []*rpc.Session{s, e.connect(ep, uri, id)}
		for _, typ := range waitingTypes {
			for _, chains := range []int{2, 16} {
				var reqs []*rpc.Request
				for i := range chains {
					n := []int{8, 9000}[i/2%2]
					reqs = append(reqs, via[i%2].Go(typ, e.data(ep, append([]byte{16}, random(n, uint32(i))...)), e.buf(ep, n)))
				}
				for _, r := range reqs {
					e.must(e.wait(r))
					e.same(r.Resp().Bytes(), r.Req().Bytes()[1:])
				}
			}
		}
	}},
	{"NestedCallsBeyondEveryLaneEnd", []Capability{LocalPeers}, func(e *env) {
		// One chain along one session of two slots. Without lanes its third call
		// waits for a slot, as all calls do, until its deadline; with two lanes
		// there is room for six, and the seventh ends at once.
		for bind, handle := range map[string]func(*rpc.Endpoint, uint8, rpc.Handler){
			"background": (*rpc.Endpoint).HandleBackground, "coroutine": (*rpc.Endpoint).HandleCoroutine,
		} {
			for lanes, timeout := range map[int]time.Duration{0: 100 * time.Millisecond, 2: time.Hour} {
				ep := e.endpoint(e.process(ProcessConfig{}), 1, rpc.WithWindow(2), rpc.WithNesting(lanes), rpc.WithRequestTimeout(timeout))
				var self atomic.Pointer[rpc.Session]
				var refused atomic.Int32
				handle(ep, 1, func(h *rpc.RequestHandle) (msgbuf.Buf, error) {
					ttl := h.Bytes()[0]
					if ttl == 0 {
						return respond(h, []byte("end"))
					}
					req, err := ep.Alloc(1)
					if err != nil {
						return msgbuf.Buf{}, err
					}
					defer req.Free()
					req.Bytes()[0] = ttl - 1
					resp, err := h.Response(3)
					if err != nil {
						return msgbuf.Buf{}, err
					}
					if err = h.Call(self.Load(), 1, req, resp); errors.Is(err, rpc.ErrNesting) {
						refused.Add(1)
					}
					return resp, err
				})
				e.run(ep)
				s := e.connect(ep, ep.URI(), 1)
				self.Store(s)
				depth := byte(2*lanes + 1)
				e.expect(s, ep, 1, []byte{depth}, []byte("end"))
				if _, err := e.call(s, ep, 1, []byte{depth + 1}, 3); err == nil {
					e.Errorf("%s: a chain of %d calls in a window of two with %d lanes", bind, depth+2, lanes)
				}
				if n := refused.Load(); lanes > 0 && n != 1 {
					e.Errorf("%s: %d calls were refused", bind, n)
				}
				e.expect(s, ep, 1, []byte{depth}, []byte("end"))
			}
		}
	}},
	{"HandlersSeeOneSessionWhateverTheLane", []Capability{LocalPeers}, func(e *env) {
		// A's handler calls B eight times at once in a window of two, from a
		// deferred handler: B sees one session, and the lanes end with it.
		a, b := e.endpoint(e.process(ProcessConfig{}), 1, rpc.WithWindow(2)), e.endpoint(e.process(ProcessConfig{}), 2, rpc.WithWindow(2))
		var toB *rpc.Session
		var mu sync.Mutex
		seen := map[*rpc.Session]int{}
		b.HandleBackground(1, func(h *rpc.RequestHandle) (msgbuf.Buf, error) {
			mu.Lock()
			defer mu.Unlock()
			seen[h.Session()]++
			return msgbuf.Buf{}, nil
		})
		const calls = 8
		a.Handle(1, func(h *rpc.RequestHandle) (msgbuf.Buf, error) {
			left := calls
			for range calls {
				h.Enqueue(toB, 1, msgbuf.Buf{}, msgbuf.Buf{}, 0, func(r *rpc.Request) {
					if r.Err() != nil {
						e.Errorf("nested call: %v", r.Err())
					}
					if left--; left == 0 {
						h.Reply(msgbuf.Buf{})
					}
				})
			}
			return h.Defer()
		})
		toB = e.connectWhile(a, b)
		e.run(a)
		e.run(b)
		s := e.connect(a, a.URI(), 1)
		for range 3 {
			e.must(s.Call(e.ctx, 1, msgbuf.Buf{}, msgbuf.Buf{}))
		}
		mu.Lock()
		defer mu.Unlock()
		for from, n := range seen {
			if len(seen) != 1 || n != 3*calls {
				e.Errorf("%p sent %d requests", from, n)
			}
			e.must(toB.Close())
			select {
			case <-from.Done():
			case <-e.ctx.Done():
				e.Fatal("the server's end lives on")
			}
		}
	}},
	{"LanesFindNoRoom", nil, func(e *env) {
		// The forwarding server's ring has room for four sessions, and there are
		// four: so no lane can be had, and nested calls wait for slots of their
		// session as others do.
		last := e.server(ServerConfig{})
		middle := e.server(ServerConfig{RingDepth: 32, Credits: 8})
		ep := e.client()
		var via []*rpc.Session
		for range 3 {
			via = append(via, e.connect(ep, middle.URI(), 1))
		}
		_, err := e.call(via[0], ep, TypeConnect, append(number(1), last.URI()...), 0)
		e.must(err)
		var reqs []*rpc.Request
		for i := range 96 {
			typ := []uint8{TypeForwardBackground, TypeForwardCoroutine}[i%2]
			reqs = append(reqs, via[i%3].Go(typ, e.data(ep, random(10, uint32(i))), e.buf(ep, 20)))
		}
		for _, r := range reqs {
			e.must(e.wait(r))
			e.same(r.Resp().Bytes(), twice(reversed(r.Req().Bytes())))
		}
	}},
	{"ContinuationsRunOnWorkers", nil, func(e *env) {
		// What goes on with a request may block in another one, many at a time,
		// while the loop goes on.
		ep, s := e.pair(rpc.WithWorkers(2))
		e.run(ep)
		const chains, length = 20, 10
		var over sync.WaitGroup
		over.Add(chains)
		for c := range chains {
			size := []int{16, 20_000}[c%2]
			req, resp, inner := e.data(ep, random(size, uint32(c))), e.buf(ep, size), e.buf(ep, size)
			left := length
			var next func(r *rpc.Request)
			next = func(r *rpc.Request) {
				if err := r.Err(); err != nil || !bytes.Equal(r.Resp().Bytes(), reversed(req.Bytes())) {
					e.Errorf("chain %d: %v", c, err)
				}
				if err := s.Call(e.ctx, TypeEcho, req, inner); err != nil || !bytes.Equal(inner.Bytes(), req.Bytes()) {
					e.Errorf("chain %d, within: %v", c, err)
				}
				if left--; left == 0 {
					over.Done()
					return
				}
				s.GoFunc(TypeReverse, req, resp, next)
			}
			e.must(s.GoFunc(TypeReverse, req, resp, next).Wait(e.ctx))
		}
		e.within("the chains", func() error { over.Wait(); return nil })
	}},
	{"CloseWaitsForContinuations", nil, func(e *env) {
		ep, s := e.pair()
		e.run(ep)
		var ran atomic.Int32
		var reqs []*rpc.Request
		for range 12 { // some in the backlog
			reqs = append(reqs, s.GoFunc(TypeHold, e.data(ep, number(0)), e.buf(ep, 4), func(r *rpc.Request) {
				if err := s.Call(e.ctx, TypeEcho, msgbuf.Buf{}, msgbuf.Buf{}); err == nil {
					e.Error("Call while the endpoint closes")
				}
				r.Req().Free()
				r.Resp().Free()
				ran.Add(1)
			}))
		}
		e.must(ep.Close())
		if n := ran.Load(); n != 12 {
			e.Errorf("%d of 12 continuations ran before Close was over", n)
		}
		for _, r := range reqs {
			if err := r.Wait(e.ctx); !errors.Is(err, rpc.ErrSessionClosed) && !errors.Is(err, rpc.ErrClosed) {
				e.Errorf("request of a closed endpoint: %v", err)
			}
		}
		done := make(chan error)
		s.GoFunc(TypeEcho, msgbuf.Buf{}, msgbuf.Buf{}, func(r *rpc.Request) { done <- r.Err() })
		if err := <-done; !errors.Is(err, rpc.ErrClosed) {
			e.Errorf("GoFunc on a closed endpoint: %v", err)
		}
	}},
	{"FailuresOfHandlersThatWait", nil, func(e *env) {
		ep, s := e.pair()
		for range 3 {
			for _, typ := range []uint8{TypePanicBackground, TypePanicCoroutine} {
				_, err := e.call(s, ep, typ, []byte("oh no"), 0)
				var he *rpc.HandlerError
				if !errors.As(err, &he) || !he.Panic || he.Message != "oh no" {
					e.Errorf("type %d panics: %v", typ, err)
				}
			}
			for _, typ := range []uint8{TypeFailBackground, TypeFailCoroutine} {
				_, err := e.call(s, ep, typ, append(number(7), "seven"...), 0)
				var he *rpc.HandlerError
				if !errors.As(err, &he) || he.Panic || he.Code != 7 || he.Message != "seven" {
					e.Errorf("type %d fails: %v", typ, err)
				}
			}
			for _, typ := range []uint8{TypeForwardBackground, TypeForwardCoroutine} {
				if _, err := e.call(s, ep, typ, []byte("x"), 2); err == nil {
					e.Errorf("type %d forwards to nowhere", typ)
				}
			}
		}
		e.echo(s, ep)
	}},
	{"BackgroundHandlersDoNotHoldUpTheLoop", []Capability{LocalPeers}, func(e *env) {
		srv, cli, connect := e.local(rpc.WithWorkers(2))
		Bind(srv)
		started, gate := make(chan struct{}, 8), make(chan struct{})
		srv.HandleBackground(100, func(h *rpc.RequestHandle) (msgbuf.Buf, error) {
			started <- struct{}{}
			<-gate
			return respond(h, h.Bytes())
		})
		s := connect()
		other := e.connect(cli, srv.URI(), 1)
		var reqs []*rpc.Request
		for i := range 16 {
			n := []int{16, 20_000}[i%2]
			reqs = append(reqs, s.Go(100, e.data(cli, random(n, uint32(i))), e.buf(cli, n)))
		}
		for range 8 { // all of the window, with two workers kept
			<-started
		}
		e.echo(other, cli)
		close(gate)
		for _, r := range reqs {
			e.answered(r)
		}
	}},
	{"BackgroundHandlerEndsItsGoroutine", []Capability{LocalPeers}, func(e *env) {
		srv, cli, connect := e.local(rpc.WithWorkers(1))
		srv.HandleBackground(1, func(h *rpc.RequestHandle) (msgbuf.Buf, error) {
			if h.Bytes()[0] == 1 {
				runtime.Goexit()
			}
			return respond(h, h.Bytes())
		})
		s := connect()
		for range 5 {
			var he *rpc.HandlerError
			if _, err := e.call(s, cli, 1, []byte{1}, 8); !errors.As(err, &he) {
				e.Errorf("a handler that ended its goroutine: %v", err)
			}
			e.expect(s, cli, 1, []byte{0}, []byte{0})
		}
	}},
	{"HandlersThatWaitMayDefer", []Capability{LocalPeers}, func(e *env) {
		srv, cli, connect := e.local()
		kept := make(chan *rpc.RequestHandle, 1)
		hold := func(h *rpc.RequestHandle) (msgbuf.Buf, error) {
			kept <- h
			return h.Defer()
		}
		srv.HandleBackground(1, hold)
		srv.HandleCoroutine(2, hold)
		s := connect()
		for i := range 20 {
			r := s.Go(uint8(i%2+1), e.data(cli, []byte{byte(i)}), e.buf(cli, 1))
			h := <-kept
			resp, err := srv.Alloc(1)
			e.must(err)
			copy(resp.Bytes(), h.Bytes())
			h.Reply(resp)
			e.answered(r)
			func() {
				defer func() {
					if recover() == nil {
						e.Error("Reply after Reply did not panic")
					}
				}()
				h.Reply(msgbuf.Buf{})
			}()
		}
	}},
	{"HandlersOnTheLoopCannotWait", []Capability{LocalPeers}, func(e *env) {
		srv, cli, connect := e.local()
		other := e.endpoint(e.process(ProcessConfig{}), 7)
		e.run(other)
		var toSelf, elsewhere atomic.Pointer[rpc.Session]
		try := func(h *rpc.RequestHandle) (msgbuf.Buf, error) {
			to := &toSelf
			if h.Bytes()[0] == 1 {
				to = &elsewhere
			}
			err := h.Call(to.Load(), 3, msgbuf.Buf{}, msgbuf.Buf{})
			if errors.Is(err, rpc.ErrCannotWait) {
				return respond(h, []byte("cannot"))
			}
			return respond(h, fmt.Append(nil, err))
		}
		srv.Handle(1, try)
		srv.HandleCoroutine(2, try)
		srv.Handle(3, func(*rpc.RequestHandle) (msgbuf.Buf, error) { return msgbuf.Buf{}, nil })
		srv.HandleCoroutine(4, func(h *rpc.RequestHandle) (msgbuf.Buf, error) {
			if err := toSelf.Load().Call(h.Context(), 3, msgbuf.Buf{}, msgbuf.Buf{}); !errors.Is(err, rpc.ErrDeadlock) {
				return msgbuf.Buf{}, fmt.Errorf("Session.Call in a coroutine: %v", err)
			}
			return msgbuf.Buf{}, nil
		})
		s := connect()
		toSelf.Store(e.connect(srv, srv.URI(), 1))
		elsewhere.Store(e.connect(other, srv.URI(), 1))
		for _, c := range []struct {
			typ, where byte
			want       string
		}{{1, 0, "cannot"}, {1, 1, "cannot"}, {2, 0, "<nil>"}, {2, 1, "cannot"}} {
			got, err := e.call(s, cli, c.typ, []byte{c.where}, 64)
			if err != nil || string(got) != c.want {
				e.Errorf("type %d, session %d: %q, %v", c.typ, c.where, got, err)
			}
		}
		_, err := e.call(s, cli, 4, nil, 0)
		e.must(err)
	}},
	{"CoroutineDoesNotWaitForWhatItBegan", []Capability{LocalPeers}, func(e *env) {
		// The handler returns while its nested calls are under way. They end
		// by themselves, and disturb no later request.
		srv, cli, connect := e.local()
		Bind(srv)
		var self atomic.Pointer[rpc.Session]
		srv.HandleCoroutine(100, func(h *rpc.RequestHandle) (msgbuf.Buf, error) {
			h.Begin(self.Load(), TypeCount, msgbuf.Buf{}, msgbuf.Buf{})
			h.Begin(self.Load(), TypeCount, msgbuf.Buf{}, msgbuf.Buf{})
			return respond(h, h.Bytes())
		})
		s := connect()
		self.Store(e.connect(srv, srv.URI(), 1))
		for i := range 100 {
			e.expect(s, cli, 100, []byte{byte(i)}, []byte{byte(i)})
			e.expect(self.Load(), srv, TypeReverse, []byte("ab"), []byte("ba"))
		}
	}},
	{"CloseWaitsForBackgroundHandlers", []Capability{LocalPeers}, func(e *env) {
		srv, cli, connect := e.local()
		var inside atomic.Int32
		started := make(chan struct{}, 8)
		srv.HandleBackground(1, func(h *rpc.RequestHandle) (msgbuf.Buf, error) {
			inside.Add(1)
			defer inside.Add(-1)
			want := append([]byte(nil), h.Bytes()...)
			started <- struct{}{}
			<-h.Context().Done()
			if string(want) != string(h.Bytes()) {
				e.Error("the request changed while its handler ran")
			}
			return respond(h, h.Bytes())
		})
		s := connect()
		var reqs []*rpc.Request
		for i := range 8 {
			n := []int{16, 20_000}[i%2]
			reqs = append(reqs, s.Go(1, e.data(cli, random(n, uint32(i))), e.buf(cli, n)))
		}
		for range 8 {
			<-started
		}
		e.within("close", srv.Close)
		if n := inside.Load(); n != 0 {
			e.Errorf("%d handlers outlive Close", n)
		}
		for _, r := range reqs { // some answers may still get through
			if err := e.wait(r); err != nil && !errors.Is(err, rpc.ErrSessionClosed) {
				e.Error(err)
			}
		}
	}},
	{"CloseEndsNestedCalls", []Capability{LocalPeers}, func(e *env) {
		for _, handle := range []func(*rpc.Endpoint, uint8, rpc.Handler){(*rpc.Endpoint).HandleBackground, (*rpc.Endpoint).HandleCoroutine} {
			last := e.server(ServerConfig{})
			srv, cli, connect := e.local()
			var next atomic.Pointer[rpc.Session]
			ended := make(chan error, 4)
			handle(srv, 1, func(h *rpc.RequestHandle) (msgbuf.Buf, error) {
				err := h.Call(next.Load(), TypeHold, msgbuf.Buf{}, msgbuf.Buf{})
				ended <- err
				return msgbuf.Buf{}, err
			})
			s := connect()
			next.Store(e.connect(srv, last.URI(), 1))
			var reqs []*rpc.Request
			for range 4 {
				reqs = append(reqs, s.Go(1, msgbuf.Buf{}, msgbuf.Buf{}))
			}
			control := e.connect(cli, last.URI(), 1)
			e.held(control, cli, 4)
			e.within("close", srv.Close)
			for range 4 {
				if err := <-ended; err == nil {
					e.Error("a nested call survived its endpoint")
				}
			}
			for _, r := range reqs {
				if e.wait(r) == nil {
					e.Error("a request survived its server")
				}
			}
			e.drain(control, cli)
		}
	}},
	{"RepliesAfterTheEndpointIsClosed", []Capability{LocalPeers}, func(e *env) {
		// What was deferred stays readable after Close, and replying frees it:
		// the process's check for lost buffers sees to that.
		for _, first := range []bool{false, true} {
			srv, cli, connect := e.local()
			kept := make(chan *rpc.RequestHandle, 8)
			srv.Handle(1, func(h *rpc.RequestHandle) (msgbuf.Buf, error) {
				kept <- h
				return h.Defer()
			})
			s := connect()
			var reqs []*rpc.Request
			for i := range 8 {
				n := []int{16, 20_000}[i%2]
				reqs = append(reqs, s.Go(1, e.data(cli, random(n, uint32(n))), e.buf(cli, n)))
			}
			var handles []*rpc.RequestHandle
			for range reqs {
				handles = append(handles, <-kept)
			}
			done := make(chan struct{})
			reply := func() {
				defer close(done)
				for i, h := range handles {
					e.same(h.Bytes(), random(len(h.Bytes()), uint32(len(h.Bytes()))))
					if i%2 == 0 {
						h.Reply(msgbuf.Buf{})
					} else {
						h.Fail(errors.New("too late"))
					}
				}
			}
			if first {
				e.within("close", srv.Close)
				reply()
			} else { // at the same time
				go reply()
				e.within("close", srv.Close)
			}
			<-done
			for _, r := range reqs {
				e.wait(r)
			}
		}
	}},
}
