package rpc

import (
	"context"
	"testing"
	"time"

	_ "github.com/rrppcc-go/rrppcc/mlx5"
	"github.com/rrppcc-go/rrppcc/mlx5/mlx5sim"
	"github.com/rrppcc-go/rrppcc/msgbuf"
	"github.com/rrppcc-go/rrppcc/nexus"
	"github.com/rrppcc-go/rrppcc/uverbs"
)

// patience bounds every wait.
const patience = 60 * time.Second

// rig is a server and a client in this process, on simulated devices that
// deliver while the doorbell rings: what one goroutine polls is all that moves.
type rig struct {
	testing.TB
	fabric   *mlx5sim.Fabric
	devices  []*mlx5sim.Device
	srv, cli *Endpoint
	ctx      context.Context
}

// Types of the rig's server.
const (
	rigEcho uint8 = 1 + iota
	rigHold
)

func newRig(tb testing.TB, opts ...Option) *rig {
	tb.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	tb.Cleanup(cancel)
	r := &rig{TB: tb, fabric: mlx5sim.NewFabric(), ctx: ctx}
	r.srv, r.cli = r.endpoint(1, opts...), r.endpoint(2, opts...)
	r.srv.Handle(rigEcho, func(h *RequestHandle) (msgbuf.Buf, error) {
		buf, err := h.Response(len(h.Bytes()))
		if err == nil {
			copy(buf.Bytes(), h.Bytes())
		}
		return buf, err
	})
	r.srv.Handle(rigHold, func(h *RequestHandle) (msgbuf.Buf, error) { return h.Defer() })
	return r
}

// device makes a device of the rig's fabric, and opens it.
func (r *rig) device(opts ...mlx5sim.Option) *uverbs.Context {
	r.Helper()
	dev, err := mlx5sim.New(append(opts, mlx5sim.InProcess(), mlx5sim.WithFabric(r.fabric))...)
	if err != nil {
		r.Fatal(err)
	}
	r.devices = append(r.devices, dev)
	r.Cleanup(func() { dev.Close() })
	c, err := dev.Verbs().Open()
	if err != nil {
		r.Fatal(err)
	}
	r.Cleanup(func() { c.Close() })
	return c
}

func (r *rig) endpoint(id uint16, opts ...Option) *Endpoint {
	r.Helper()
	return r.endpointOf(r.device(), id, opts...)
}

// endpointOf makes an endpoint on an opened device.
func (r *rig) endpointOf(c *uverbs.Context, id uint16, opts ...Option) *Endpoint {
	r.Helper()
	// Counts of allocations are of the whole process: heartbeats, which allocate,
	// must not fall into them.
	nx, err := nexus.New("127.0.0.1:0", nexus.WithHeartbeat(time.Hour, 3*time.Hour))
	if err != nil {
		r.Fatal(err)
	}
	r.Cleanup(func() { nx.Close() })
	ep, err := NewEndpoint(nx, id, c, opts...)
	if err != nil {
		r.Fatal(err)
	}
	r.Cleanup(func() {
		if err := ep.Close(); err != nil {
			r.Errorf("close: %v", err)
		}
	})
	return ep
}

// run drives ep until stop is called.
func (r *rig) run(ep *Endpoint) (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		ep.Run(ctx)
	}()
	return func() {
		cancel()
		<-done
	}
}

// connect opens a session from the client to the server, which nobody drives.
func (r *rig) connect() *Session {
	r.Helper()
	stop := r.run(r.srv)
	defer stop()
	s, err := r.cli.Connect(r.ctx, r.srv.URI(), r.srv.ID())
	if err != nil {
		r.Fatal(err)
	}
	return s
}

// poll drives both ends until done says so.
func (r *rig) poll(done func() bool) {
	for i := 0; !done(); i++ {
		r.cli.Poll()
		r.srv.Poll()
		if i&1023 == 1023 && r.ctx.Err() != nil {
			r.Fatal("nothing happens any more")
		}
	}
}

// buf returns a buffer that is freed at the end.
func (r *rig) buf(ep *Endpoint, n int) msgbuf.Buf {
	r.Helper()
	b, err := ep.Alloc(n)
	if err != nil {
		r.Fatal(err)
	}
	r.Cleanup(func() { b.Free() })
	return b
}

// call sends one request and drives both ends until it is done.
func (r *rig) call(s *Session, reqType uint8, req, resp msgbuf.Buf) error {
	over := false
	var err error
	s.Enqueue(reqType, req, resp, 0, func(q *Request) { over, err = true, q.Err() })
	r.poll(func() bool { return over })
	return err
}
