package rpctest

import (
	"context"
	"errors"
	"time"

	"github.com/rrppcc-go/rrppcc/rpc"
)

// manyParts are credits for messages of up to 16 datagrams in a window of 8.
const manyParts = 8 * 17

// partBytes is what a datagram that is part of a message carries.
func partBytes(ep *rpc.Endpoint) int { return ep.MaxSmall() - 8 }

// partsPair is pair with messages of up to 16 datagrams at both ends.
func (e *env) partsPair(opts ...rpc.Option) (*ownedServer, *rpc.Endpoint, *rpc.Session) {
	e.Helper()
	srv := e.server(ServerConfig{Credits: manyParts, Threshold: 1 << 20})
	ep := e.client(append(opts, rpc.WithCredits(manyParts), rpc.WithLargeThreshold(1<<20))...)
	return srv, ep, e.connect(ep, srv.URI(), 1)
}

var partsTests = []test{
	{"EverySizeAroundEveryDatagram", nil, func(e *env) {
		_, ep, s := e.partsPair()
		part := partBytes(ep)
		if got := s.LargeThreshold(); got != 16*part || ep.LargeThreshold() != got {
			e.Fatalf("thresholds are %d and %d, want %d", got, ep.LargeThreshold(), 16*part)
		}
		sizes := []int{ep.MaxSmall() - 1, ep.MaxSmall(), ep.MaxSmall() + 1}
		for k := 2; k <= 16; k++ {
			sizes = append(sizes, k*part-1, k*part, k*part+1)
		}
		assembled := 0
		for _, n := range sizes {
			data := random(n, uint32(n))
			req, resp := e.data(ep, data), e.buf(ep, n)
			r := s.Go(TypeReverse, req, resp)
			e.must(e.wait(r))
			e.same(resp.Bytes(), reversed(data))
			e.same(req.Bytes(), data)
			reqLarge, respLarge := r.Large()
			if want := n > 16*part; reqLarge != want || respLarge != want {
				e.Errorf("%d bytes: request large %v, response large %v; the limit is %d", n, reqLarge, respLarge, 16*part)
			}
			if n > ep.MaxSmall() && n <= 16*part {
				assembled++
			}
			req.Free()
			resp.Free()
		}
		st, err := ep.Stats(e.ctx)
		e.must(err)
		if st.Reads != 1 || st.Assembled != uint64(assembled) {
			e.Errorf("%d messages were pulled, want 1, and %d put together, want %d", st.Reads, st.Assembled, assembled)
		}
	}},
	{"ThresholdIsWhatBothEndsHave", nil, func(e *env) {
		// 24 credits for a window of 8 are 3 datagrams of each slot, one of
		// which is not for messages.
		srv := e.server(ServerConfig{Credits: 24, Threshold: 1 << 20})
		for _, c := range []struct{ credits, threshold, ep, session int }{ // in datagrams
			{manyParts, 16, 16, 2},
			{16, 16, 0, 0}, // with 2 for a slot, only one is for messages
			{32, 2, 2, 2},
			{32, 3, 3, 2},
		} {
			probe := e.client()
			part, small := partBytes(probe), probe.MaxSmall()
			ep := e.client(rpc.WithCredits(c.credits), rpc.WithLargeThreshold(c.threshold*part))
			s := e.connect(ep, srv.URI(), 1)
			if got, want := ep.LargeThreshold(), max(c.ep*part, small); got != want {
				e.Errorf("%+v: the endpoint's threshold is %d, want %d", c, got, want)
			}
			if got, want := s.LargeThreshold(), max(c.session*part, small); got != want {
				e.Errorf("%+v: the session's threshold is %d, want %d", c, got, want)
			}
			for _, n := range []int{s.LargeThreshold(), s.LargeThreshold() + 1, ep.LargeThreshold() + 1, 16 * part} {
				data := random(n, uint32(n))
				r := s.Go(TypeReverse, e.data(ep, data), e.buf(ep, n))
				e.must(e.wait(r))
				e.same(r.Resp().Bytes(), reversed(data))
				if reqLarge, _ := r.Large(); reqLarge != (n > s.LargeThreshold()) {
					e.Errorf("%+v: request of %d bytes large %v", c, n, reqLarge)
				}
			}
		}
	}},
	{"EachEndHasItsOwnThreshold", nil, func(e *env) {
		for _, mine := range []int{1, 1 << 20} {
			srv := e.server(ServerConfig{Credits: manyParts, Threshold: 1<<20 + 1 - mine})
			ep := e.client(rpc.WithCredits(manyParts), rpc.WithLargeThreshold(mine))
			s := e.connect(ep, srv.URI(), 1)
			data := random(5*partBytes(ep), 1)
			r := s.Go(TypeReverse, e.data(ep, data), e.buf(ep, len(data)))
			e.must(e.wait(r))
			e.same(r.Resp().Bytes(), reversed(data))
			if reqLarge, respLarge := r.Large(); reqLarge != (mine == 1) || respLarge == reqLarge {
				e.Errorf("own threshold %d: request large %v, response large %v", mine, reqLarge, respLarge)
			}
		}
	}},
	{"ManyOfSeveralDatagramsAtOnce", nil, func(e *env) {
		_, ep, s := e.partsPair()
		sizes := []int{0, 30, ep.MaxSmall(), ep.MaxSmall() + 1, 3*partBytes(ep) + 5, 16 * partBytes(ep), 17 * partBytes(ep)}
		var reqs []*rpc.Request
		for i := range 210 {
			n := sizes[i%len(sizes)]
			reqs = append(reqs, s.Go(TypeReverse, e.data(ep, random(n, uint32(i))), e.buf(ep, n)))
		}
		for _, r := range reqs {
			e.must(e.wait(r))
			e.same(r.Resp().Bytes(), reversed(r.Req().Bytes()))
		}
		data := random(4*partBytes(ep), 5)
		req := e.data(ep, data)
		reqs = nil
		for range 64 {
			reqs = append(reqs, s.Go(TypeReverse, req, e.buf(ep, len(data))))
		}
		for _, r := range reqs {
			e.must(e.wait(r))
			e.same(r.Resp().Bytes(), reversed(data))
		}
		e.same(req.Bytes(), data)
	}},
	{"LostDatagramsOfALongAnswerAreSentAgain", nil, func(e *env) {
		var f rpc.Faults
		_, ep, s := e.partsPair(rpc.WithFaults(&f))
		before := e.echoes(s, ep)
		n := 8 * partBytes(ep)
		for i := range 9 {
			data := random(n, uint32(i))
			f.Drop(i)
			e.expect(s, ep, TypeEcho, data, data)
			if left := f.Dropping(); left != 0 {
				e.Fatalf("%d datagrams were not dropped", left)
			}
		}
		if ran := e.echoes(s, ep) - before; ran != 9 {
			e.Errorf("%d requests were executed, not 9", ran)
		}
		st, err := ep.Stats(e.ctx)
		e.must(err)
		if st.DropFault != 36 || st.Retransmits < 8 {
			e.Errorf("counters: %v", st)
		}
	}},
	{"LostDatagramsOfALongRequestAreSentAgain", []Capability{LocalPeers, SlowTests}, func(e *env) {
		var f rpc.Faults
		opts := []rpc.Option{rpc.WithCredits(manyParts), rpc.WithLargeThreshold(1 << 20)}
		srv := e.endpoint(e.process(ProcessConfig{}), 1, append(opts, rpc.WithFaults(&f))...)
		set := Bind(srv)
		e.Cleanup(set.Close)
		e.run(srv)
		cli := e.client(opts...)
		s := e.connect(cli, srv.URI(), 1)
		n := 8 * partBytes(cli)
		for i := range 9 {
			data := random(n, uint32(i))
			f.Drop(i)
			e.expect(s, cli, TypeEcho, data, data)
		}
		if ran := e.echoes(s, cli); ran != 9 {
			e.Errorf("%d requests were executed, not 9", ran)
		}
		st, err := srv.Stats(e.ctx)
		e.must(err)
		if st.DropFault != 36 || f.Dropping() != 0 {
			e.Errorf("counters: %v", st)
		}
	}},
	{"LongAnswerThatDoesNotFit", nil, func(e *env) {
		_, ep, s := e.partsPair()
		n := 3 * partBytes(ep)
		var tooLarge *rpc.ResponseTooLargeError
		_, err := e.call(s, ep, TypeFill, append(number(n), number(1)...), 100)
		if !errors.As(err, &tooLarge) || tooLarge.Need != n {
			e.Errorf("a response of %d bytes: %v", n, err)
		}
		e.expect(s, ep, TypeFill, append(number(n), number(1)...), random(n, 1))
	}},
	{"AbortOfRequestsOfSeveralDatagrams", nil, func(e *env) {
		srv, ep, s := e.partsPair()
		control := e.connect(ep, srv.URI(), 1)
		n := 5 * partBytes(ep)
		for range 3 {
			seen := len(e.held(control, ep, 0))
			reqs := e.hold(s, ep, n, 0, 16)
			e.held(control, ep, seen+8)
			for _, r := range reqs {
				r.Abort()
			}
			for _, r := range reqs {
				e.fails(r, rpc.ErrAborted)
				Pattern(r.Req().Bytes(), 4711) // ours again
				Pattern(r.Resp().Bytes(), 4712)
			}
			// Their slots are taken until the server answers, so these wait, with
			// what they are to carry unharmed.
			var after []*rpc.Request
			for i := range 16 {
				after = append(after, s.Go(TypeReverse, e.data(ep, random(n, uint32(i))), e.buf(ep, n)))
			}
			e.drain(control, ep)
			for i, r := range after {
				e.must(e.wait(r))
				e.same(r.Resp().Bytes(), reversed(random(n, uint32(i))))
			}
			want := random(n, 4712)
			for _, r := range reqs {
				e.same(r.Resp().Bytes(), want)
				r.Req().Free()
				r.Resp().Free()
			}
		}
		ctx, cancel := context.WithTimeout(e.ctx, 20*time.Millisecond)
		defer cancel()
		if err := s.Call(ctx, TypeHold, e.data(ep, random(n, 1)), e.buf(ep, n)); !errors.Is(err, context.DeadlineExceeded) {
			e.Errorf("beyond its deadline: %v", err)
		}
		e.drain(control, ep)
	}},
	{"RequestAndLongAnswerShareABuffer", nil, func(e *env) {
		var f rpc.Faults
		_, ep, s := e.partsPair(rpc.WithFaults(&f))
		n := 4 * partBytes(ep)
		for i := range 4 {
			buf := e.data(ep, random(n, 9))
			f.Drop(i)
			e.must(s.Call(e.ctx, TypeReverse, buf, buf))
			e.same(buf.Bytes(), reversed(random(n, 9)))
		}
	}},
	{"LongRequestsOfADeadPeerFail", []Capability{SlowTests}, func(e *env) {
		srv := e.server(ServerConfig{ProcessConfig: mortal, Credits: manyParts, Threshold: 1 << 20})
		ep := e.endpoint(e.process(mortal), 1, rpc.WithCredits(manyParts), rpc.WithLargeThreshold(1<<20))
		s, control := e.connect(ep, srv.URI(), 1), e.connect(ep, srv.URI(), 1)
		reqs := e.hold(s, ep, 5*partBytes(ep), 0, 16)
		e.held(control, ep, 8)
		e.run(ep)
		e.must(srv.Kill())
		for _, r := range reqs {
			e.fails(r, rpc.ErrPeerDead)
			r.Req().Free()
			r.Resp().Free()
		}
	}},
}
