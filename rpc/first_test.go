package rpc_test

import (
	"context"
	"testing"
	"time"

	_ "github.com/rrppcc-go/rrppcc/mlx5"
	"github.com/rrppcc-go/rrppcc/mlx5/mlx5sim"
	"github.com/rrppcc-go/rrppcc/msgbuf"
	"github.com/rrppcc-go/rrppcc/nexus"
	"github.com/rrppcc-go/rrppcc/rpc"
)

func TestFirst(t *testing.T) {
	fab := mlx5sim.NewFabric()
	mk := func(id uint16) *rpc.Endpoint {
		dev, err := mlx5sim.New(mlx5sim.InProcess(), mlx5sim.WithFabric(fab))
		if err != nil {
			t.Fatal(err)
		}
		c, err := dev.Verbs().Open()
		if err != nil {
			t.Fatal(err)
		}
		nx, err := nexus.New("127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		ep, err := rpc.NewEndpoint(nx, id, c)
		if err != nil {
			t.Fatal(err)
		}
		return ep
	}
	srv, cli := mk(1), mk(2)
	srv.Handle(7, func(h *rpc.RequestHandle) (msgbuf.Buf, error) {
		b, err := h.Response(len(h.Bytes()))
		if err != nil {
			return b, err
		}
		copy(b.Bytes(), h.Bytes())
		return b, nil
	})
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	go srv.Run(ctx)
	s, err := cli.Connect(ctx, srv.URI(), 1)
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range []int{0, 16, 300, 4080, 4081, 1 << 20, 16 << 20} {
		req, err := cli.Alloc(n)
		if err != nil {
			t.Fatal(err)
		}
		resp, _ := cli.Alloc(n)
		for i := range req.Bytes() {
			req.Bytes()[i] = byte(i * 7)
		}
		t0 := time.Now()
		if err := s.Call(ctx, 7, req, resp); err != nil {
			t.Fatal(n, err)
		}
		t.Log(n, time.Since(t0))
		if string(resp.Bytes()) != string(req.Bytes()) {
			t.Fatal("mismatch", n, resp.Len())
		}
		req.Free()
		resp.Free()
	}
	t0 := time.Now()
	req, _ := cli.Alloc(32)
	resp, _ := cli.Alloc(32)
	for range 10000 {
		if err := s.Call(ctx, 7, req, resp); err != nil {
			t.Fatal(err)
		}
	}
	t.Log(time.Since(t0) / 10000)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if err := cli.Close(); err != nil {
		t.Fatal(err)
	}
	if err := srv.Close(); err != nil {
		t.Fatal(err)
	}
}
