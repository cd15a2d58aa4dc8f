package rpctest

import (
	"slices"
	"strings"

	"github.com/rrppcc-go/rrppcc/msgbuf"
	"github.com/rrppcc-go/rrppcc/rpc"
)

var smallTests = []test{
	{"SingleRequest", nil, func(e *env) {
		ep, s := e.pair()
		req, resp := e.data(ep, []byte("hello, world!")), e.buf(ep, 64)
		r := s.Go(TypeReverse, req, resp)
		e.must(e.wait(r))
		<-r.Done()
		e.same(resp.Bytes(), []byte("!dlrow ,olleh"))
		reqLarge, respLarge := r.Large()
		if r.Type() != TypeReverse || r.Req() != req || r.Resp() != resp || r.Err() != nil || reqLarge || respLarge {
			e.Errorf("request says type %d, error %v, large %v %v", r.Type(), r.Err(), reqLarge, respLarge)
		}
	}},
	{"ManyRequestsOneAfterTheOther", nil, func(e *env) {
		ep, s := e.pair()
		req, resp := e.buf(ep, 32), e.buf(ep, 32)
		for i := range 2000 {
			Pattern(req.Bytes(), uint32(i))
			e.must(s.Call(e.ctx, TypeReverse, req, resp))
			e.same(resp.Bytes(), reversed(req.Bytes()))
		}
		e.expect(s, ep, TypeCount, nil, number(0))
	}},
	{"ZeroSizedRequestAndResponse", nil, func(e *env) {
		ep, s := e.pair()
		resp := e.buf(ep, 1)
		e.must(s.Call(e.ctx, TypeEcho, e.buf(ep, 0), resp))
		if resp.Len() != 0 {
			e.Errorf("response of %d bytes", resp.Len())
		}
		e.must(s.Call(e.ctx, TypeEcho, msgbuf.Buf{}, msgbuf.Buf{}))
		e.must(s.Call(e.ctx, TypeEcho, e.buf(ep, 0), e.buf(ep, 0)))
		e.expect(s, ep, TypeFill, append(number(0), number(1)...), nil)
		e.expect(s, ep, TypeCount, nil, number(3))
	}},
	{"EverySizeAroundTheLimits", nil, func(e *env) {
		ep, s := e.pair()
		// Inline and gathered sends, datagrams and RDMA READ.
		var sizes []int
		for _, edge := range []int{0, 48, 172, 188, 4056, ep.MaxSmall(), ep.LargeThreshold(), 2 * ep.MaxSmall()} {
			for d := -3; d <= 3; d++ {
				sizes = append(sizes, max(edge+d, 0))
			}
		}
		for _, n := range sizes {
			data := random(n, uint32(n))
			req, resp := e.data(ep, data), e.buf(ep, n)
			r := s.Go(TypeReverse, req, resp)
			e.must(e.wait(r))
			e.same(resp.Bytes(), reversed(data))
			e.same(req.Bytes(), data)
			reqLarge, respLarge := r.Large()
			if want := n > ep.LargeThreshold(); reqLarge != want || respLarge != want {
				e.Errorf("%d bytes: request large %v, response large %v; the limit is %d", n, reqLarge, respLarge, ep.LargeThreshold())
			}
			req.Free()
			resp.Free()
		}
	}},
	{"OneRequestBufferSharedBy64Requests", nil, func(e *env) {
		ep, s := e.pair()
		for _, n := range []int{8, 1000, 20_000} {
			data := random(n, 5)
			req := e.data(ep, data)
			var reqs []*rpc.Request
			for range 64 {
				reqs = append(reqs, s.Go(TypeReverse, req, e.buf(ep, n)))
			}
			for _, r := range reqs {
				e.must(e.wait(r))
				e.same(r.Resp().Bytes(), reversed(data))
			}
			e.same(req.Bytes(), data)
		}
	}},
	{"64ConcurrentRequestsOverTheWindow", nil, func(e *env) {
		ep, s := e.pair()
		var reqs []*rpc.Request
		for i := range 64 {
			reqs = append(reqs, s.Go(TypeReverse, e.data(ep, random(16+i, uint32(i))), e.buf(ep, 128)))
		}
		for i, r := range reqs {
			e.must(e.wait(r))
			e.same(r.Resp().Bytes(), reversed(random(16+i, uint32(i))))
		}
	}},
	{"BacklogKeepsItsOrder", nil, func(e *env) {
		srv := e.server(ServerConfig{})
		ep := e.client()
		s, control := e.connect(ep, srv.URI(), 1), e.connect(ep, srv.URI(), 1)
		const window, n = 8, 64
		reqs := e.hold(s, ep, 16, 0, n)
		tags := e.held(control, ep, window)
		slices.Sort(tags)
		for i, tag := range tags {
			if i != tag {
				e.Fatalf("the window holds %v", tags)
			}
		}
		// Each answer lets exactly the next one out of the backlog.
		for i := window; i < n; i++ {
			e.release(control, ep, 1)
			if tags := e.held(control, ep, i+1); len(tags) != i+1 || tags[i] != i {
				e.Fatalf("after %d answers the server has seen %v", i-window+1, tags)
			}
		}
		e.release(control, ep, window)
		for _, r := range reqs {
			e.answered(r)
		}
	}},
	{"ResponseMayBeShorterThanItsBuffer", nil, func(e *env) {
		ep, s := e.pair()
		resp := e.buf(ep, 4000)
		for _, n := range []int{4000, 1, 0, 17} {
			e.must(s.Call(e.ctx, TypeEcho, e.data(ep, random(n, 3)), resp))
			e.same(resp.Bytes(), random(n, 3))
		}
	}},
	{"RequestAndResponseMayShareABuffer", nil, func(e *env) {
		ep, s := e.pair()
		for _, n := range []int{20, 3000} {
			buf := e.data(ep, random(n, 9))
			e.must(s.Call(e.ctx, TypeReverse, buf, buf))
			e.same(buf.Bytes(), reversed(random(n, 9)))
		}
	}},
	{"StatsCount", nil, func(e *env) {
		ep, s := e.pair()
		for range 10 {
			e.echo(s, ep)
		}
		if _, err := e.call(s, ep, TypeUnbound, nil, 0); err == nil {
			e.Error("a request without handler succeeded")
		}
		st, err := ep.Stats(e.ctx)
		e.must(err)
		if st.Requests != 11 || st.Responses != 10 || st.Failed != 1 || st.TxDatagrams < 11 || st.RxDatagrams < 11 ||
			st.RecvErrors != 0 || st.SendErrors != 0 || st.DropMalformed != 0 || st.DropToken != 0 {
			e.Errorf("%+v", st)
		}
	}},
	{"HandlersOwnBoth", []Capability{LocalPeers}, func(e *env) {
		srv, cli := e.endpoint(e.process(ProcessConfig{}), 3), e.client()
		var seen []string
		srv.Handle(255, func(h *rpc.RequestHandle) (msgbuf.Buf, error) {
			if h.Type() != 255 || h.Endpoint() != srv || h.Large() || h.Session() == nil {
				e.Errorf("handle says type %d, large %v, session %v", h.Type(), h.Large(), h.Session())
			}
			seen = append(seen, string(h.Bytes()))
			return respond(h, []byte(strings.ToUpper(string(h.Bytes()))))
		})
		stop := e.run(srv)
		s := e.connect(cli, srv.URI(), 3)
		e.expect(s, cli, 255, []byte("shout"), []byte("SHOUT"))
		stop()
		srv.Handle(255, nil)
		e.run(srv)
		if _, err := e.call(s, cli, 255, nil, 0); err != rpc.ErrNoHandler {
			e.Errorf("unbound type: %v", err)
		}
		if len(seen) != 1 || seen[0] != "shout" {
			e.Errorf("handler has seen %q", seen)
		}
	}},
}
