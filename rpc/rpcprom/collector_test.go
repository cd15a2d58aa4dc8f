package rpcprom_test

import (
	"context"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	_ "github.com/rrppcc-go/rrppcc/mlx5"
	"github.com/rrppcc-go/rrppcc/mlx5/mlx5sim"
	"github.com/rrppcc-go/rrppcc/msgbuf"
	"github.com/rrppcc-go/rrppcc/nexus"
	"github.com/rrppcc-go/rrppcc/rpc"
	"github.com/rrppcc-go/rrppcc/rpc/rpcprom"
)

// newEndpoint makes an endpoint on a simulated device.
func newEndpoint(t *testing.T, id uint16) (*rpc.Endpoint, *nexus.Nexus) {
	t.Helper()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	dev, err := mlx5sim.New(mlx5sim.InProcess())
	must(err)
	t.Cleanup(func() { dev.Close() })
	verbs, err := dev.Verbs().Open()
	must(err)
	t.Cleanup(func() { verbs.Close() })
	nx, err := nexus.New("127.0.0.1:0")
	must(err)
	t.Cleanup(func() { nx.Close() })
	ep, err := rpc.NewEndpoint(nx, id, verbs)
	must(err)
	t.Cleanup(func() { ep.Close() })
	return ep, nx
}

func TestScrape(t *testing.T) {
	ep, nx := newEndpoint(t, 5)
	ep.Handle(1, func(h *rpc.RequestHandle) (msgbuf.Buf, error) { return msgbuf.Buf{}, nil })
	s, err := ep.Connect(t.Context(), ep.URI(), ep.ID()) // to itself
	if err != nil {
		t.Fatal(err)
	}
	for range 3 {
		if err := s.Call(t.Context(), 1, msgbuf.Buf{}, msgbuf.Buf{}); err != nil {
			t.Fatal(err)
		}
	}
	reg := prometheus.NewPedanticRegistry()
	reg.MustRegister(rpcprom.Endpoint(ep), rpcprom.Nexus(nx))
	problems, err := testutil.GatherAndLint(reg)
	if err != nil || len(problems) > 0 {
		t.Errorf("lint: %v %v", problems, err)
	}
	at := `{endpoint="5",process="` + ep.URI() + `"} `
	want := "# HELP rrpc_handled_total Requests given to a handler.\n# TYPE rrpc_handled_total counter\nrrpc_handled_total" + at + "3\n" +
		"# HELP rrpc_sessions Sessions there are, both ends, connecting ones and lanes included.\n# TYPE rrpc_sessions gauge\nrrpc_sessions" + at + "2\n" +
		"# HELP rrpc_up 1 if the counters could be read.\n# TYPE rrpc_up gauge\nrrpc_up" + at + "1\n" +
		"# HELP rrpc_nexus_conns Connections there are.\n# TYPE rrpc_nexus_conns gauge\nrrpc_nexus_conns{process=\"" + ep.URI() + "\"} 2\n"
	if err := testutil.GatherAndCompare(reg, strings.NewReader(want), "rrpc_handled_total", "rrpc_sessions", "rrpc_up", "rrpc_nexus_conns"); err != nil {
		t.Error(err)
	}
	// What runs is scraped as well, and what is closed says so.
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- ep.Run(ctx) }()
	if n, err := testutil.GatherAndCount(reg); err != nil || n < 30 {
		t.Errorf("%d metrics: %v", n, err)
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
	if err := ep.Close(); err != nil {
		t.Error(err)
	}
	want = "# HELP rrpc_up 1 if the counters could be read.\n# TYPE rrpc_up gauge\nrrpc_up" + at + "0\n"
	if err := testutil.GatherAndCompare(reg, strings.NewReader(want), "rrpc_up", "rrpc_handled_total"); err != nil {
		t.Error(err)
	}
}
