package rpc

import (
	"context"
	"fmt"
	"runtime"
	"testing"
	"time"

	"github.com/rrppcc-go/rrppcc/mlx5/mlx5sim"
	"github.com/rrppcc-go/rrppcc/msgbuf"
)

// On a network whose round trip is longer than the first timeout, or longer than
// any timeout that would be fixed, the timeout follows what is measured: all but
// the first requests are sent once, however many are outstanding.
func TestTimeoutFollowsASlowNetwork(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("needs all of 127.0.0.0/8, which only Linux has on its loopback interface")
	}
	for _, oneWay := range []time.Duration{4 * time.Millisecond, 25 * time.Millisecond} {
		for _, outstanding := range []int{24, 32, 256} {
			t.Run(fmt.Sprintf("%v, %d outstanding", 2*oneWay, outstanding), func(t *testing.T) {
				const window = 32
				r := newSlowRig(t, oneWay, WithWindow(window))
				defer r.run(r.srv)()
				defer r.run(r.cli)()
				var sessions []*Session
				for range (outstanding + window - 1) / window {
					s, err := r.cli.Connect(r.ctx, r.srv.URI(), r.srv.ID())
					if err != nil {
						t.Fatal(err)
					}
					sessions = append(sessions, s)
				}
				round := func() {
					var reqs []*Request
					for i := range outstanding {
						reqs = append(reqs, sessions[i%len(sessions)].Go(rigEcho, msgbuf.Buf{}, msgbuf.Buf{}))
					}
					for _, q := range reqs {
						if err := q.Wait(r.ctx); err != nil {
							t.Fatal(err)
						}
					}
				}
				for range 2 {
					round() // learns
				}
				before, err := r.cli.Stats(r.ctx)
				if err != nil {
					t.Fatal(err)
				}
				const rounds = 6
				for range rounds {
					round()
				}
				after, err := r.cli.Stats(r.ctx)
				if err != nil {
					t.Fatal(err)
				}
				if n := after.Retransmits - before.Retransmits; n > rounds*uint64(outstanding)/2 { // the rest are stalls of the machine
					t.Errorf("%d of %d requests were sent again", n, rounds*outstanding)
				}
			})
		}
	}
}

// newSlowRig is a rig whose packets take their time.
func newSlowRig(t *testing.T, oneWay time.Duration, opts ...Option) *rig {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	t.Cleanup(cancel)
	r := &rig{TB: t, ctx: ctx}
	var far, near *mlx5sim.Device
	r.srv, far = lossyEndpoint(t, 1, 1, opts...)
	r.cli, near = lossyEndpoint(t, 2, 1, opts...)
	for _, dev := range []*mlx5sim.Device{far, near} {
		if _, err := dev.SetFaults(mlx5sim.BothWays, mlx5sim.Faults{}, 1); err != nil {
			t.Fatal(err)
		}
		if _, err := dev.SetFaults(mlx5sim.Outbound, mlx5sim.Faults{Delay: oneWay}, 1); err != nil {
			t.Fatal(err)
		}
	}
	r.srv.Handle(rigEcho, func(h *RequestHandle) (msgbuf.Buf, error) { return msgbuf.Buf{}, nil })
	return r
}
