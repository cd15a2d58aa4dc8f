package rpctest

import (
	"errors"
	"strings"

	"github.com/rrppcc-go/rrppcc/msgbuf"
	"github.com/rrppcc-go/rrppcc/rpc"
)

var errorTests = []test{
	{"HandlerErrorReachesTheCaller", nil, func(e *env) {
		ep, s := e.pair()
		for code, text := range map[uint32]string{0: "plain", 1: "", 42: "forty-two", 1<<32 - 1: "the last"} {
			_, err := e.call(s, ep, TypeFail, append(number(int(code)), text...), 64)
			var he *rpc.HandlerError
			if !errors.As(err, &he) || he.Code != code || he.Message != text || he.Panic {
				e.Errorf("code %d, %q: got %+v", code, text, err)
			}
		}
		long := strings.Repeat("x", 3000)
		_, err := e.call(s, ep, TypeFail, append(number(1), long...), 0)
		var he *rpc.HandlerError
		if !errors.As(err, &he) || len(he.Message) != 512 || he.Message != long[:512] {
			e.Errorf("a text of 3000 bytes: %v", err)
		}
		e.echo(s, ep)
	}},
	{"PanicOfAHandlerReachesTheCaller", nil, func(e *env) {
		ep, s := e.pair()
		for _, data := range [][]byte{[]byte("oh no"), []byte(strings.Repeat("oh ", 5000))} {
			_, err := e.call(s, ep, TypePanic, data, 0)
			var he *rpc.HandlerError
			if !errors.As(err, &he) || !he.Panic || he.Message != string(data[:min(len(data), 512)]) {
				e.Errorf("a handler that panics: %v", err)
			}
		}
		e.echo(s, ep)
	}},
	{"NoHandler", nil, func(e *env) {
		ep, s := e.pair()
		for _, n := range []int{0, 16, 20_000} {
			if _, err := e.call(s, ep, TypeUnbound, random(n, 1), 16); !errors.Is(err, rpc.ErrNoHandler) {
				e.Errorf("%d bytes of a type without handler: %v", n, err)
			}
		}
		e.echo(s, ep)
	}},
	{"ResponseTooLarge", nil, func(e *env) {
		ep, s := e.pair()
		for _, c := range []struct{ need, room int }{{100, 64}, {4000, 1}, {20_000, 4096}, {1 << 20, 65536}} {
			resp := e.buf(ep, c.room)
			err := s.Call(e.ctx, TypeFill, e.data(ep, append(number(c.need), number(1)...)), resp)
			var tooLarge *rpc.ResponseTooLargeError
			if !errors.As(err, &tooLarge) || tooLarge.Need != c.need || tooLarge.Cap != resp.Cap() {
				e.Errorf("%d bytes into %d: %v", c.need, resp.Cap(), err)
			}
			// What the error says is needed is enough.
			e.expect(s, ep, TypeFill, append(number(c.need), number(1)...), random(c.need, 1))
		}
		var tooLarge *rpc.ResponseTooLargeError
		if err := s.Call(e.ctx, TypeFill, e.data(ep, append(number(1), number(1)...)), msgbuf.Buf{}); !errors.As(err, &tooLarge) || tooLarge.Need != 1 {
			e.Errorf("1 byte into nothing: %v", err)
		}
	}},
	{"RequestLongerThanOurLimit", nil, func(e *env) {
		ep, s := e.pair(rpc.WithMaxMessage(50_000))
		if _, err := e.call(s, ep, TypeChecksum, random(50_001, 1), 8); !errors.Is(err, rpc.ErrTooLarge) {
			e.Errorf("a byte more than allowed: %v", err)
		}
		e.expect(s, ep, TypeChecksum, random(50_000, 1), Checksum(random(50_000, 1)))
	}},
	{"RequestLongerThanTheServersLimit", nil, func(e *env) {
		srv := e.server(ServerConfig{MaxMessage: 50_000})
		ep := e.client()
		s := e.connect(ep, srv.URI(), 1)
		if _, err := e.call(s, ep, TypeChecksum, random(50_001, 1), 8); !errors.Is(err, rpc.ErrTooLarge) {
			e.Errorf("a byte more than allowed: %v", err)
		}
		e.expect(s, ep, TypeChecksum, random(50_000, 1), Checksum(random(50_000, 1)))
	}},
	{"ResponseLongerThanTheServersLimit", nil, func(e *env) {
		srv := e.server(ServerConfig{MaxMessage: 50_000})
		ep := e.client()
		s := e.connect(ep, srv.URI(), 1)
		if _, err := e.call(s, ep, TypeFill, append(number(60_000), number(1)...), 60_000); !errors.Is(err, rpc.ErrBadResponse) {
			e.Errorf("the server answers more than it may: %v", err)
		}
		e.echo(s, ep)
	}},
	{"ManyFailuresAtOnce", nil, func(e *env) {
		ep, s := e.pair()
		var reqs []*rpc.Request
		for i := range 64 {
			typ := []uint8{TypeFail, TypePanic, TypeUnbound, TypeEcho}[i%4]
			reqs = append(reqs, s.Go(typ, e.data(ep, append(number(i+1), "text"...)), e.buf(ep, 64)))
		}
		for i, r := range reqs {
			err := e.wait(r)
			var he *rpc.HandlerError
			ok := false
			switch i % 4 {
			case 0:
				ok = errors.As(err, &he) && he.Code == uint32(i+1)
			case 1:
				ok = errors.As(err, &he) && he.Panic
			case 2:
				ok = errors.Is(err, rpc.ErrNoHandler)
			case 3:
				ok = err == nil
			}
			if !ok {
				e.Errorf("request %d of type %d ended with %v", i, r.Type(), err)
			}
		}
	}},
	{"HandlerReturnsABadBuffer", []Capability{LocalPeers}, func(e *env) {
		p := e.process(ProcessConfig{})
		srv, other, cli := e.endpoint(p, 1), e.endpoint(p, 2), e.client()
		foreign := e.buf(other, 16)
		freed := e.buf(srv, 16)
		freed.Free()
		srv.Handle(1, func(*rpc.RequestHandle) (msgbuf.Buf, error) { return other.Alloc(16) })
		srv.Handle(2, func(*rpc.RequestHandle) (msgbuf.Buf, error) { return freed, nil })
		e.run(srv)
		s := e.connect(cli, srv.URI(), 1)
		for typ := range uint8(2) {
			if _, err := e.call(s, cli, typ+1, nil, 16); !errors.Is(err, rpc.ErrBadResponse) {
				e.Errorf("handler %d: %v", typ+1, err)
			}
		}
		if !foreign.Valid() {
			e.Error("another endpoint's buffer was freed")
		}
	}},
}
