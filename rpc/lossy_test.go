package rpc

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"runtime"
	"testing"
	"time"

	"github.com/rrppcc-go/rrppcc/mlx5/mlx5sim"
	"github.com/rrppcc-go/rrppcc/msgbuf"
	"github.com/rrppcc-go/rrppcc/nexus"
)

// lossyEndpoint makes an endpoint on a device of its own, of which the link
// loses 5 % of what comes and goes, repeats some of it and changes its order.
func lossyEndpoint(t *testing.T, id uint16, seed uint64, opts ...Option) (*Endpoint, *mlx5sim.Device) {
	t.Helper()
	dev, err := mlx5sim.New(mlx5sim.WithFabric(mlx5sim.NewFabric()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { dev.Close() })
	seed, err = dev.SetFaults(mlx5sim.BothWays, mlx5sim.Faults{Loss: 0.05, Duplicate: 0.05, Reorder: 0.05, Corrupt: 0.01}, seed)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("endpoint %d: seed %d", id, seed)
	verbs, err := dev.Verbs().Open()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { verbs.Close() })
	nx, err := nexus.New("127.0.0.1:0", nexus.WithHeartbeat(0, 5*time.Second))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { nx.Close() })
	ep, err := NewEndpoint(nx, id, verbs, opts...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := ep.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
	})
	return ep, dev
}

// TestRequestsSurviveALossyFabric sends requests that go by UD, in one datagram
// and in several, and requests that go by RC, and checks that each handler ran
// once and each answer is right.
func TestRequestsSurviveALossyFabric(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("needs all of 127.0.0.0/8, which only Linux has on its loopback interface")
	}
	for _, seed := range []uint64{1, 0} { // 0 is another one each time
		t.Run(fmt.Sprint("seed ", seed), func(t *testing.T) { requestsOverLossyFabric(t, seed) })
		t.Run(fmt.Sprint("several datagrams, seed ", seed), func(t *testing.T) {
			requestsOverLossyFabric(t, seed, WithCredits(8*8), WithLargeThreshold(25_000))
		})
	}
}

func requestsOverLossyFabric(t *testing.T, seed uint64, opts ...Option) {
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	srv, far := lossyEndpoint(t, 1, seed, opts...)
	cli, near := lossyEndpoint(t, 2, seed, opts...)
	var ran int
	srv.Handle(rigEcho, func(h *RequestHandle) (msgbuf.Buf, error) {
		ran++
		buf, err := h.Response(len(h.Bytes()))
		if err == nil {
			for i, b := range h.Bytes() {
				buf.Bytes()[i] = ^b
			}
		}
		return buf, err
	})
	done := make(chan struct{})
	srvCtx, stop := context.WithCancel(ctx)
	go func() {
		defer close(done)
		srv.Run(srvCtx)
	}()
	sess, err := cli.Connect(ctx, srv.URI(), srv.ID())
	if err != nil {
		t.Fatal(err)
	}
	rng := rand.New(rand.NewPCG(seed, 1))
	const rounds, window = 8, 6
	sizes := []int{1, 32, 1000, 3000, 6000, 20000, 50000}
	for range rounds {
		var reqs, resps [window]msgbuf.Buf
		var calls [window]*Request
		for i := range window {
			n := sizes[rng.IntN(len(sizes))]
			if reqs[i], err = cli.Alloc(n); err != nil {
				t.Fatal(err)
			}
			if resps[i], err = cli.Alloc(n); err != nil {
				t.Fatal(err)
			}
			for k := range reqs[i].Bytes() {
				reqs[i].Bytes()[k] = byte(rng.Uint32())
			}
			calls[i] = sess.Go(rigEcho, reqs[i], resps[i])
		}
		for i, c := range calls {
			if err := c.Wait(ctx); err != nil {
				t.Fatalf("request of %d bytes: %v\nclient %+v\nserver %+v", reqs[i].Len(), err, near.Stats(), far.Stats())
			}
			want := bytes.Clone(reqs[i].Bytes())
			for k := range want {
				want[k] = ^want[k]
			}
			if !bytes.Equal(resps[i].Bytes(), want) {
				t.Fatalf("answer to %d bytes is wrong", len(want))
			}
			reqs[i].Free()
			resps[i].Free()
		}
	}
	if err := sess.Close(); err != nil {
		t.Error("close of the session:", err)
	}
	stop()
	<-done
	if ran != rounds*window {
		t.Errorf("the handler ran %d times for %d requests", ran, rounds*window)
	}
	s := near.Stats()
	if s.FaultsOut.Lost == 0 || s.FaultsIn.Lost == 0 || s.FaultsOut.Duplicated == 0 || s.FaultsOut.Reordered == 0 {
		t.Errorf("nothing went wrong: %+v", s)
	}
	t.Logf("client: %+v", s)
}
