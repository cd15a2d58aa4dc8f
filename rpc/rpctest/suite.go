package rpctest

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"log/slog"
	"sync"
	"testing"
	"time"

	"github.com/rrppcc-go/rrppcc/internal/leakcheck"
	"github.com/rrppcc-go/rrppcc/msgbuf"
	"github.com/rrppcc-go/rrppcc/rpc"
)

// test is one test of the suite.
type test struct {
	name  string
	needs []Capability
	run   func(e *env)
}

// Run runs the suite on a backend.
func Run(t *testing.T, b Backend) {
	t.Run(b.Name(), func(t *testing.T) {
		for _, group := range [][]test{sessionTests, openTests, smallTests, partsTests, largeTests, abortTests, nestedTests, waitingTests, errorTests, faultTests, deathTests, closeTests, driveTests, bufferTests, crowdTests, outstandingTests, watchTests, congestionTests} {
			for _, c := range group {
				t.Run(c.name, func(t *testing.T) {
					for _, need := range c.needs {
						if reason := b.Lacks(need); reason != "" {
							t.Skip(reason)
						}
					}
					leakcheck.Check(t)
					ctx, cancel := context.WithTimeout(t.Context(), patience)
					defer cancel()
					e := &env{T: t, b: b, ctx: ctx}
					c.run(e)
				})
			}
		}
	})
}

// patience bounds every wait of a test that is expected to end by itself.
const patience = 60 * time.Second

// env is what a test works with. Everything that it makes ends with the test,
// in reverse order.
type env struct {
	*testing.T
	b   Backend
	ctx context.Context
}

// ownedServer is a server that is closed once, by the test or at its end.
type ownedServer struct {
	Server
	once sync.Once
	err  error
}

func (s *ownedServer) Close() error {
	s.once.Do(func() { s.err = s.Server.Close() })
	return s.err
}

// must ends the test on an error.
func (e *env) must(err error) {
	e.Helper()
	if err != nil {
		e.Fatal(err)
	}
}

// server starts a server.
func (e *env) server(cfg ServerConfig) *ownedServer {
	e.Helper()
	started, err := e.b.StartServer(cfg)
	e.must(err)
	s := &ownedServer{Server: started}
	e.Cleanup(func() {
		if err := s.Close(); err != nil {
			e.Errorf("close the server: %v", err)
		}
	})
	return s
}

func (e *env) process(cfg ProcessConfig) *Process {
	e.Helper()
	p, err := e.b.NewProcess(cfg)
	e.must(err)
	e.Cleanup(func() {
		if err := p.Close(); err != nil {
			e.Errorf("close the process: %v", err)
		}
	})
	return p
}

// endpoint makes an endpoint that nobody drives.
func (e *env) endpoint(p *Process, id uint16, opts ...rpc.Option) *rpc.Endpoint {
	e.Helper()
	w := new(watcher)
	ep, err := rpc.NewEndpoint(p.Nexus, id, p.Verbs, append([]rpc.Option{rpc.WithLogger(slog.New(w))}, opts...)...)
	e.must(err)
	e.Cleanup(func() {
		e.within("close the endpoint", func() error { return ep.Close() })
		if err := w.err(); err != nil {
			e.Errorf("endpoint %d: %v", id, err)
		}
	})
	return ep
}

// client makes a process with one endpoint.
func (e *env) client(opts ...rpc.Option) *rpc.Endpoint {
	e.Helper()
	return e.endpoint(e.process(ProcessConfig{}), 1000, opts...)
}

// run drives ep until the test ends, or until the returned function is called.
func (e *env) run(ep *rpc.Endpoint) (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := ep.Run(ctx); err != nil && !errors.Is(err, rpc.ErrClosed) {
			e.Errorf("Run: %v", err)
		}
	}()
	stop = func() {
		cancel()
		<-done
	}
	e.Cleanup(stop)
	return stop
}

func (e *env) connect(ep *rpc.Endpoint, uri string, id uint16) *rpc.Session {
	e.Helper()
	s, err := ep.Connect(e.ctx, uri, id)
	e.must(err)
	return s
}

// pair is a server with one endpoint, and a client's session to it.
func (e *env) pair(opts ...rpc.Option) (*rpc.Endpoint, *rpc.Session) {
	e.Helper()
	srv := e.server(ServerConfig{})
	ep := e.client(opts...)
	return ep, e.connect(ep, srv.URI(), 1)
}

// buf returns a buffer of ep, which is freed at the end of the test unless the
// test frees it.
func (e *env) buf(ep *rpc.Endpoint, n int) msgbuf.Buf {
	e.Helper()
	b, err := ep.Alloc(n)
	e.must(err)
	e.Cleanup(func() {
		if b.Valid() {
			b.Free()
		}
	})
	return b
}

// data returns a buffer with data in it.
func (e *env) data(ep *rpc.Endpoint, data []byte) msgbuf.Buf {
	e.Helper()
	b := e.buf(ep, len(data))
	copy(b.Bytes(), data)
	return b
}

// call sends data and returns the response.
func (e *env) call(s *rpc.Session, ep *rpc.Endpoint, typ uint8, data []byte, room int) ([]byte, error) {
	e.Helper()
	req, resp := e.data(ep, data), e.buf(ep, room)
	defer req.Free()
	defer resp.Free()
	err := s.Call(e.ctx, typ, req, resp)
	return bytes.Clone(resp.Bytes()), err
}

// expect calls and compares.
func (e *env) expect(s *rpc.Session, ep *rpc.Endpoint, typ uint8, data, want []byte) {
	e.Helper()
	got, err := e.call(s, ep, typ, data, len(want))
	e.must(err)
	e.same(got, want)
}

// echo shows that a session works.
func (e *env) echo(s *rpc.Session, ep *rpc.Endpoint) {
	e.Helper()
	e.expect(s, ep, TypeEcho, []byte("are you there?"), []byte("are you there?"))
}

func (e *env) same(got, want []byte) {
	e.Helper()
	if bytes.Equal(got, want) {
		return
	}
	if len(got) != len(want) {
		e.Fatalf("got %d bytes, want %d", len(got), len(want))
	}
	for i := range got {
		if got[i] != want[i] {
			e.Fatalf("byte %d of %d is %#x, want %#x", i, len(want), got[i], want[i])
		}
	}
}

// wait waits for a request.
func (e *env) wait(r *rpc.Request) error {
	e.Helper()
	err := r.Wait(e.ctx)
	if e.ctx.Err() != nil {
		e.Fatalf("request still not done: %v", err)
	}
	return err
}

// fails waits for a request that must end with an error that is want.
func (e *env) fails(r *rpc.Request, want error) {
	e.Helper()
	if err := e.wait(r); !errors.Is(err, want) {
		e.Fatalf("request ended with %v, want %v", err, want)
	}
}

// within runs fn, which must return nil before patience is over.
func (e *env) within(what string, fn func() error) {
	e.Helper()
	done := make(chan error, 1)
	go func() { done <- fn() }()
	timer := time.NewTimer(patience)
	defer timer.Stop()
	select {
	case err := <-done:
		if err != nil {
			e.Errorf("%s: %v", what, err)
		}
	case <-timer.C:
		panic("rpctest: " + what + " hangs") // a dump of all goroutines tells where
	}
}

// hold starts n requests that the server will keep, tagged from first on.
func (e *env) hold(s *rpc.Session, ep *rpc.Endpoint, size, first, n int) (reqs []*rpc.Request) {
	e.Helper()
	for i := range n {
		data := make([]byte, max(size, 4))
		Pattern(data, uint32(first+i))
		binary.LittleEndian.PutUint32(data, uint32(first+i))
		reqs = append(reqs, s.Go(TypeHold, e.data(ep, data), e.buf(ep, len(data))))
	}
	return reqs
}

// held waits until the server has kept n requests in its life, and returns their
// tags.
func (e *env) held(control *rpc.Session, ep *rpc.Endpoint, n int) (tags []int) {
	e.Helper()
	got, err := e.call(control, ep, TypeHeld, number(n), 4096)
	e.must(err)
	for ; len(got) >= 4; got = got[4:] {
		tags = append(tags, int(binary.LittleEndian.Uint32(got)))
	}
	return tags
}

// release lets the server answer the n oldest of the requests that it keeps.
func (e *env) release(control *rpc.Session, ep *rpc.Endpoint, n int) {
	e.Helper()
	got, err := e.call(control, ep, TypeRelease, number(n), 4)
	e.must(err)
	e.same(got, number(n))
}

// drain lets the server answer all requests that it keeps.
func (e *env) drain(control *rpc.Session, ep *rpc.Endpoint) {
	e.Helper()
	_, err := e.call(control, ep, TypeRelease, number(-1), 4)
	e.must(err)
}

// answered checks that a held request was echoed.
func (e *env) answered(r *rpc.Request) {
	e.Helper()
	e.must(e.wait(r))
	e.same(r.Resp().Bytes(), r.Req().Bytes())
}

// random returns n bytes of Pattern.
func random(n int, seed uint32) []byte {
	b := make([]byte, n)
	Pattern(b, seed)
	return b
}
