package rpc_test

import (
	"context"
	"fmt"
	"os"
	"strings"
	"testing"

	_ "github.com/rrppcc-go/rrppcc/mlx5"
	"github.com/rrppcc-go/rrppcc/mlx5/mlx5sim"
	"github.com/rrppcc-go/rrppcc/msgbuf"
	"github.com/rrppcc-go/rrppcc/nexus"
	"github.com/rrppcc-go/rrppcc/rpc"
	"github.com/rrppcc-go/rrppcc/uverbs"
)

func Example() {
	dev, err := mlx5sim.New() // on a machine with a NIC: uverbs.DeviceByName("mlx5_0")
	if err != nil {
		panic(err)
	}
	defer dev.Close()
	ctx, stop := context.WithCancel(context.Background())
	ready, ended := make(chan string), make(chan error)
	go func() { ended <- serve(ctx, dev.Verbs(), "127.0.0.1:0", ready) }()
	if err := call(ctx, dev.Verbs(), <-ready); err != nil {
		panic(err)
	}
	stop()
	if err := <-ended; err != nil {
		panic(err)
	}
	// Output: HELLO, WORLD
}

const typeUpper = 42

func serve(ctx context.Context, dev *uverbs.Device, uri string, ready chan<- string) error {
	verbs, err := dev.Open()
	if err != nil {
		return err
	}
	defer verbs.Close()
	nx, err := nexus.New(uri) // the process's session manager, on UDP
	if err != nil {
		return err
	}
	defer nx.Close()
	ep, err := rpc.NewEndpoint(nx, 1, verbs)
	if err != nil {
		return err
	}
	defer ep.Close()
	ep.Handle(typeUpper, func(h *rpc.RequestHandle) (msgbuf.Buf, error) {
		resp, err := h.Response(len(h.Bytes())) // registered memory
		if err == nil {
			copy(resp.Bytes(), strings.ToUpper(string(h.Bytes())))
		}
		return resp, err
	})
	ready <- nx.URI()
	return ep.Run(ctx) // spins, then sleeps, until ctx ends
}

func call(ctx context.Context, dev *uverbs.Device, uri string) error {
	verbs, err := dev.Open()
	if err != nil {
		return err
	}
	defer verbs.Close()
	nx, err := nexus.New("127.0.0.1:0")
	if err != nil {
		return err
	}
	defer nx.Close()
	ep, err := rpc.NewEndpoint(nx, 2, verbs)
	if err != nil {
		return err
	}
	defer ep.Close()
	sess, err := ep.Connect(ctx, uri, 1)
	if err != nil {
		return err
	}
	req, err := ep.Alloc(12)
	if err != nil {
		return err
	}
	defer req.Free()
	resp, err := ep.Alloc(64)
	if err != nil {
		return err
	}
	defer resp.Free()
	copy(req.Bytes(), "hello, world")
	if err := sess.Call(ctx, typeUpper, req, resp); err != nil {
		return err
	}
	fmt.Println(string(resp.Bytes()))
	return nil
}

// TestReadmeShowsTheExample keeps the README's client and server in step with
// the ones above, which compile and run.
func TestReadmeShowsTheExample(t *testing.T) {
	src, err := os.ReadFile("example_test.go")
	if err != nil {
		t.Fatal(err)
	}
	readme, err := os.ReadFile("../README.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"serve", "call"} {
		_, fn, ok := strings.Cut(string(src), "\nfunc "+name+"(")
		fn, _, end := strings.Cut(fn, "\n}\n")
		if !ok || !end {
			t.Fatalf("no func %s in the example", name)
		}
		if !strings.Contains(string(readme), "func "+name+"("+fn+"\n}\n") {
			t.Errorf("README.md does not show func %s of example_test.go", name)
		}
	}
}
