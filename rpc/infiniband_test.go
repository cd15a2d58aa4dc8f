package rpc

import (
	"strings"
	"testing"

	"github.com/rrppcc-go/rrppcc/mlx5/mlx5sim"
)

// TestPeerOnTheOtherLinkLayerIsRefused: the ports cannot reach each other, and the
// session must say so when it is made, whichever side asks.
func TestPeerOnTheOtherLinkLayerIsRefused(t *testing.T) {
	r := newRig(t)
	defer r.run(r.srv)()
	ib := r.endpointOf(r.device(mlx5sim.WithInfiniBand()), 3)
	defer r.run(ib)()
	for _, way := range []struct {
		name     string
		from, to *Endpoint
	}{{"from InfiniBand", ib, r.srv}, {"to InfiniBand", r.srv, ib}} {
		s, err := way.from.Connect(r.ctx, way.to.URI(), way.to.id)
		if err == nil {
			s.Close()
			t.Errorf("%s: connected", way.name)
		} else if !strings.Contains(err.Error(), "InfiniBand") {
			t.Errorf("%s: %v", way.name, err)
		}
	}
}

// TestHelloHasTheLID: without it nobody could answer.
func TestHelloHasTheLID(t *testing.T) {
	r := newRig(t)
	ib := r.endpointOf(r.device(mlx5sim.WithInfiniBand()), 3)
	p, err := ib.ctx.QueryPort(1)
	if err != nil {
		t.Fatal(err)
	}
	if got := ib.t.Local(); got.LID == 0 || got.LID != p.LID {
		t.Errorf("LID %#x, want %#x", got.LID, p.LID)
	}
	if got := r.srv.t.Local().LID; got != 0 {
		t.Errorf("LID %#x of an Ethernet port", got)
	}
}
