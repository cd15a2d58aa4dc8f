package rpctest

import (
	"github.com/rrppcc-go/rrppcc/rpc"
)

var largeTests = []test{
	{"LargeRequest", nil, func(e *env) {
		ep, s := e.pair()
		for i := range 100 {
			data := random(16384, uint32(i))
			req, resp := e.data(ep, data), e.buf(ep, 16)
			r := s.Go(TypeChecksum, req, resp)
			e.must(e.wait(r))
			e.same(resp.Bytes(), Checksum(data))
			if reqLarge, respLarge := r.Large(); !reqLarge || respLarge {
				e.Fatalf("request large %v, response large %v", reqLarge, respLarge)
			}
			req.Free()
			resp.Free()
		}
	}},
	{"LargeResponseIntoALargerBuffer", nil, func(e *env) {
		ep, s := e.pair()
		for i := range 100 {
			req, resp := e.data(ep, append(number(16384), number(i)...)), e.buf(ep, 50000)
			r := s.Go(TypeFill, req, resp)
			e.must(e.wait(r))
			e.same(resp.Bytes(), random(16384, uint32(i)))
			if reqLarge, respLarge := r.Large(); reqLarge || !respLarge {
				e.Fatalf("request large %v, response large %v", reqLarge, respLarge)
			}
			req.Free()
			resp.Free()
		}
	}},
	{"LargeRequestAndResponse", nil, func(e *env) {
		ep, s := e.pair()
		for i := range 50 {
			data := random(16384+i, uint32(i))
			e.expect(s, ep, TypeReverse, data, reversed(data))
		}
	}},
	{"OneMiB", nil, func(e *env) { bulk(e, 1<<20) }},
	{"SixteenMiB", nil, func(e *env) { bulk(e, 16<<20) }},
	{"SixtyFourMiB", nil, func(e *env) {
		ep, s := e.pair()
		data := random(64<<20, 79)
		e.expect(s, ep, TypeChecksum, data, Checksum(data))
	}},
	{"BrokenConnectionIsReplaced", nil, func(e *env) {
		// Sessions and messages outlive the RC connection that they use.
		var f rpc.Faults
		srv := e.server(ServerConfig{})
		ep := e.client(rpc.WithFaults(&f))
		e.run(ep)
		s := e.connect(ep, srv.URI(), 1)
		for i := range 3 {
			f.BreakReads(1)
			data := random(3<<20+i, uint32(i))
			e.expect(s, ep, TypeEcho, data, data)
		}
		st, err := ep.Stats(e.ctx)
		e.must(err)
		if st.Repairs != 3 || s.Err() != nil {
			e.Errorf("%d repairs; session: %v", st.Repairs, s.Err())
		}
	}},
	{"ConcurrentLargeRequests", nil, func(e *env) {
		ep, s := e.pair()
		var reqs []*rpc.Request
		for i := range 64 {
			n := 5000 + 3000*i
			reqs = append(reqs, s.Go(TypeReverse, e.data(ep, random(n, uint32(i))), e.buf(ep, n)))
		}
		for _, r := range reqs {
			e.must(e.wait(r))
			e.same(r.Resp().Bytes(), reversed(r.Req().Bytes()))
		}
	}},
	{"SmallAndLargeMixed", nil, func(e *env) {
		ep, s := e.pair()
		var reqs []*rpc.Request
		for i := range 200 {
			n := []int{0, 30, 3000, 9000, 70_000}[i%5]
			reqs = append(reqs, s.Go(TypeReverse, e.data(ep, random(n, uint32(i))), e.buf(ep, n)))
		}
		for _, r := range reqs {
			e.must(e.wait(r))
			e.same(r.Resp().Bytes(), reversed(r.Req().Bytes()))
		}
	}},
	{"LargeRequestBufferIsFreeAfterTheCall", nil, func(e *env) {
		// Once a call is over nobody reads its buffer: what is written then
		// must not reach the server.
		srv := e.server(ServerConfig{})
		ep := e.client()
		s, control := e.connect(ep, srv.URI(), 1), e.connect(ep, srv.URI(), 1)
		req, resp := e.buf(ep, 200_000), e.buf(ep, 200_000)
		for i := range 20 {
			data := random(200_000, uint32(i))
			copy(req.Bytes(), data)
			r := s.Go(TypeHold, req, resp)
			e.held(control, ep, i+1)
			e.release(control, ep, 1)
			e.must(e.wait(r))
			clear(req.Bytes())
			e.same(resp.Bytes(), data)
		}
	}},
	{"PathsAreCounted", nil, func(e *env) {
		ep, s := e.pair()
		data := random(100_000, 1)
		e.expect(s, ep, TypeReverse, data, reversed(data))
		st, err := ep.Stats(e.ctx)
		e.must(err)
		if st.Reads != 1 || st.ReadBytes != uint64(len(data)) {
			e.Errorf("the client pulled %d messages of %d bytes", st.Reads, st.ReadBytes)
		}
	}},
}

// bulk sends and fetches n bytes with checksums.
func bulk(e *env, n int) {
	ep, s := e.pair()
	data := random(n, 77)
	e.expect(s, ep, TypeChecksum, data, Checksum(data))
	e.expect(s, ep, TypeFill, append(number(n), number(78)...), random(n, 78))
	e.expect(s, ep, TypeEcho, data, data)
}
