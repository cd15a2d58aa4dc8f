package rpctest

import (
	"errors"
	"sync"

	"github.com/rrppcc-go/rrppcc/msgbuf"
	"github.com/rrppcc-go/rrppcc/rpc"
)

var bufferTests = []test{
	{"FreedBuffersAreRefused", nil, func(e *env) {
		ep, s := e.pair()
		freed := e.buf(ep, 32)
		freed.Free()
		if err := s.Call(e.ctx, TypeEcho, freed, e.buf(ep, 32)); !errors.Is(err, rpc.ErrBuffer) {
			e.Errorf("freed request: %v", err)
		}
		if err := s.Call(e.ctx, TypeEcho, e.buf(ep, 32), freed); !errors.Is(err, rpc.ErrBuffer) {
			e.Errorf("freed response: %v", err)
		}
		e.expect(s, ep, TypeCount, nil, number(0))
	}},
	{"BuffersOfOtherEndpointsAreRefused", nil, func(e *env) {
		ep, s := e.pair()
		other := e.client()
		for _, n := range []int{32, 20_000} {
			foreign, own := e.buf(other, n), e.buf(ep, n)
			if err := s.Call(e.ctx, TypeEcho, foreign, own); !errors.Is(err, rpc.ErrBuffer) {
				e.Errorf("request of %d bytes in another endpoint's memory: %v", n, err)
			}
			if err := s.Call(e.ctx, TypeEcho, own, foreign); !errors.Is(err, rpc.ErrBuffer) {
				e.Errorf("response of %d bytes in another endpoint's memory: %v", n, err)
			}
		}
		e.expect(s, ep, TypeCount, nil, number(0))
	}},
	{"LargeMessageInLocalMemoryIsRefused", nil, func(e *env) {
		ep, s := e.pair()
		// A buffer for what goes in datagrams may have room for more; peers
		// cannot read it all the same.
		buf := e.buf(ep, ep.LargeThreshold())
		if err := buf.SetLen(ep.LargeThreshold() + 1); err != nil {
			e.Skipf("buffers of %d bytes have no spare room: %v", ep.LargeThreshold(), err)
		}
		if err := s.Call(e.ctx, TypeEcho, buf, e.buf(ep, buf.Len())); !errors.Is(err, rpc.ErrBuffer) {
			e.Errorf("large request in local-only memory: %v", err)
		}
		// As room for a response it will do.
		e.must(s.Call(e.ctx, TypeFill, e.data(ep, append(number(buf.Len()), number(1)...)), buf))
		e.same(buf.Bytes(), random(buf.Len(), 1))
	}},
	{"SmallMessageInLargeMemory", nil, func(e *env) {
		ep, s := e.pair()
		req, resp := e.buf(ep, 100_000), e.buf(ep, 100_000)
		e.must(req.SetLen(20))
		Pattern(req.Bytes(), 1)
		e.must(s.Call(e.ctx, TypeReverse, req, resp))
		e.same(resp.Bytes(), reversed(random(20, 1)))
	}},
	{"AllocAndFreeFromEverywhere", nil, func(e *env) {
		ep, s := e.pair()
		e.run(ep)
		free := make(chan msgbuf.Buf, 64)
		var makers, freers sync.WaitGroup
		for i := range 8 {
			makers.Go(func() {
				for k := range 300 {
					b, err := ep.Alloc([]int{0, 16, 4000, 5000, 100_000}[(i+k)%5])
					if err != nil {
						e.Error(err)
						return
					}
					if full := b.Full(); len(full) > 0 {
						full[0], full[len(full)-1] = byte(k), byte(k)
					}
					free <- b
				}
			})
			freers.Go(func() {
				for b := range free {
					b.Free()
				}
			})
		}
		e.callers(s, ep, 4, 50)
		makers.Wait()
		close(free)
		freers.Wait()
	}},
	{"AllocRejectsImpossibleSizes", nil, func(e *env) {
		ep := e.client()
		for _, n := range []int{-1, msgbuf.MaxSize + 1} {
			if b, err := ep.Alloc(n); err == nil {
				b.Free()
				e.Errorf("%d bytes are given", n)
			}
		}
	}},
	{"BuffersOutliveTheirEndpoint", nil, func(e *env) {
		p := e.process(ProcessConfig{})
		ep, err := rpc.NewEndpoint(p.Nexus, 1, p.Verbs)
		e.must(err)
		small, err := ep.Alloc(10)
		e.must(err)
		large, err := ep.Alloc(100_000)
		e.must(err)
		Pattern(large.Bytes(), 3)
		e.within("close", ep.Close)
		e.same(large.Bytes(), random(100_000, 3))
		small.Free()
		large.Free()
	}},
}
