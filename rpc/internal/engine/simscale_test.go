package engine

import (
	"math/rand/v2"
	"testing"
)

// failedOnce are seeds that have shown a bug, by test, whatever their simulation is
// by now. Each says which.
var failedOnce = map[string][]uint64{
	// Found by taking the check of tokens out: a datagram to a process that has
	// died is executed by the one that came after it.
	"TestTenThousandSimulations": {1491},
}

// everything is a configuration in which all that can go wrong may, each with a
// chance of its own that is often 0.
func everything(r *rand.Rand) simConfig {
	bad := func(p float64) float64 { return p * float64(r.IntN(3)) }
	return simConfig{
		loss: bad(0.1), dup: bad(0.1), late: bad(0.1), readFails: bad(0.05), stalls: bad(0.05),
		offers: float64(r.IntN(3)) / 2, abort: bad(0.1), deadline: bad(0.1), churn: bad(0.02),
		crashes: bad(0.03), partitions: bad(0.02), jumps: bad(0.02),
		slowHandlers: int64(1+r.IntN(40)) * ms, tinyMemory: r.IntN(8) == 0, blocking: r.IntN(2) == 0,
		congestion: r.IntN(3), credits: r.IntN(6), ring: 16 + r.IntN(100),
	}
}

// Ten thousand short lives of a few nodes. Many short ones meet more beginnings
// and ends than a few long ones.
func TestTenThousandSimulations(t *testing.T) {
	seeds := 10_000
	if raceEnabled {
		seeds = 500
	}
	crashed, oks := 0, 0
	simulate(t, seeds, func(r *rand.Rand) simConfig {
		c := everything(r)
		c.nodes, c.sessions, c.calls = 2+r.IntN(3), 1+r.IntN(4), 10+r.IntN(30)
		return c
	}, func(s *sim) {
		crashed += s.crashed
		oks += s.oks
	})
	t.Logf("%d calls ended well, %d nodes crashed and came back", oks, crashed)
}

// Crashes, partitions and clocks that jump, in longer lives.
func TestSimulatedTrouble(t *testing.T) {
	crashed := 0
	simulate(t, 60, func(r *rand.Rand) simConfig {
		c := everything(r)
		c.nodes, c.sessions, c.calls = 3+r.IntN(4), 6, 300
		c.crashes, c.partitions, c.jumps = 0.01, 0.02, 0.01
		return c
	}, func(s *sim) { crashed += s.crashed })
	if !t.Failed() && crashed == 0 {
		t.Error("no node ever came back: this tests nothing")
	}
}

// Thousands of endpoints in one network and one goroutine.
func TestSimulatedThousandsOfEndpoints(t *testing.T) {
	nodes := 2000
	if testing.Short() || raceEnabled {
		nodes = 300
	}
	simulate(t, 1, func(r *rand.Rand) simConfig {
		return simConfig{
			nodes: nodes, sessions: 2 * nodes, calls: 5 * nodes, ring: 64,
			loss: 0.02, dup: 0.02, late: 0.02, readFails: 0.01, stalls: 0.01, offers: 0.5,
			abort: 0.05, deadline: 0.05, churn: 0.001, crashes: 0.02, partitions: 0.01, jumps: 0.005,
			slowHandlers: 5 * ms, congestion: 3,
		}
	}, func(s *sim) {
		t.Logf("%d nodes, %d sessions, %d calls, %d of them ended well; %d nodes crashed and came back", len(s.nodes), len(s.pairs), s.ended, s.oks, s.crashed)
		if s.oks < s.ended/4 || s.crashed == 0 {
			s.tb.Errorf("that is no mixture")
		}
	})
}
