package engine

import (
	"math/rand/v2"
	"testing"
	"time"

	"github.com/rrppcc-go/rrppcc/rpc/congestion"
)

// controlOf returns a control of congestion for the simulated network: 0 none, 1
// one that sees congestion everywhere, 2 one that does anything at all, 3 any of
// these.
func (s *sim) controlOf(kind int) congestion.Control {
	if kind == 3 {
		kind = s.rng.IntN(3)
	}
	switch kind {
	case 1:
		return congestion.Swift{Target: time.Microsecond, Range: -1}
	case 2:
		return chaos{s}
	}
	return nil
}

type chaos struct{ s *sim }

func (c chaos) NewController(int) congestion.Controller { return c }

func (c chaos) Answered(s congestion.Sample) time.Duration {
	if s.Delay < 0 || s.Lost && (s.Delay != 0 || !s.Resent) {
		c.s.tb.Errorf("sample %+v", s)
	}
	return c.gap()
}

func (c chaos) TimedOut(_, _ time.Duration) time.Duration { return c.gap() }

func (c chaos) gap() time.Duration {
	switch c.s.rng.IntN(4) {
	case 0:
		return 0
	case 1:
		return time.Duration(c.s.upTo(10 * ms))
	case 2:
		return time.Duration(c.s.rng.Int64()) - 1<<62
	}
	return time.Duration(c.s.upTo(100_000))
}

func TestSimulatedCongestionControl(t *testing.T) {
	paced, losses := uint64(0), uint64(0)
	simulate(t, 80, func(r *rand.Rand) simConfig {
		bad := func(p float64) float64 { return p * float64(r.IntN(3)) }
		return simConfig{
			nodes: 2 + r.IntN(3), sessions: 1 + r.IntN(5), calls: 150, ring: 16 + r.IntN(100),
			loss: bad(0.1), dup: bad(0.1), late: bad(0.1), readFails: bad(0.05),
			abort: bad(0.1), deadline: bad(0.1), churn: bad(0.02),
			slowHandlers: int64(1+r.IntN(40)) * ms, death: r.IntN(4) == 0, blocking: r.IntN(2) == 0,
			congestion: 1 + r.IntN(2), credits: r.IntN(6),
		}
	}, func(s *sim) {
		for _, n := range s.nodes {
			if !n.dead && n.e.pace.count != 0 {
				s.tb.Errorf("node %d: %d sessions left in the wheel", n.id, n.e.pace.count)
			}
			paced += n.e.Stats.Paced
			losses += n.e.Stats.Losses
		}
	})
	if !t.Failed() && (paced == 0 || losses == 0) {
		t.Errorf("%d requests paced, %d losses seen: this tests nothing", paced, losses)
	}
	t.Logf("%d requests paced, %d losses seen", paced, losses)
}
