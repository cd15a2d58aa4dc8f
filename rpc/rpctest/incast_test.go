package rpctest

import (
	"testing"
	"time"

	"github.com/rrppcc-go/rrppcc/rpc/congestion"
)

func runIncast(t *testing.T, in Incast) IncastResult {
	t.Helper()
	r, err := in.Run()
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("control %T, rounds %v, seed %d: %v", in.Control, in.Rounds, in.Seed, r)
	return r
}

const incastBuffer = 1 << 20 // the default

// seeds returns n, or 1 where the race detector makes one take long. Experiments
// have one goroutine.
func seeds(n uint64) uint64 {
	if raceEnabled {
		return 1
	}
	return n
}

// 100 clients that always have something to send keep the queue full without
// control, and short with it, and the bottleneck busy either way.
func TestIncastKeepsTheQueueShort(t *testing.T) {
	for seed := range seeds(3) {
		in := Incast{Duration: 60 * time.Millisecond, Seed: seed}
		off := runIncast(t, in)
		if off.QueueMedian < incastBuffer*9/10 || off.EarlyDrops+off.Drops < 1000 || off.Retransmits == 0 || off.Paced != 0 {
			t.Errorf("without control the queue does not overflow: %v", off)
		}
		in.Control = congestion.Swift{}
		on := runIncast(t, in)
		if on.QueueMax > incastBuffer*4/10 || on.Drops != 0 || on.Retransmits != 0 || on.Paced == 0 {
			t.Errorf("with control the queue is long: %v", on)
		}
		if on.Goodput < 0.85 || on.Fairness < 0.95 {
			t.Errorf("with control the bottleneck is idle, or clients starve: %v", on)
		}
	}
}

// Clients that wait for each other stand still while one of them waits for a
// timeout: without control that is nearly always.
func TestIncastDoesNotCollapse(t *testing.T) {
	for seed := range seeds(2) {
		in := Incast{Rounds: true, Duration: 200 * time.Millisecond, Seed: seed}
		off := runIncast(t, in)
		if off.Goodput > 0.2 || off.Drops == 0 && off.Rounds > 0 {
			t.Errorf("without control there is no collapse: %v", off)
		}
		in.Control = congestion.Swift{}
		on := runIncast(t, in)
		if on.Goodput < 0.6 || on.Drops != 0 || on.QueueMax > incastBuffer*8/10 || on.Rounds < 10*off.Rounds {
			t.Errorf("collapse in spite of control: %v", on)
		}
	}
}

// A server whose handlers are slow is not a network that is. All clients together
// fill no queue here.
func TestSlowHandlersAreNoCongestion(t *testing.T) {
	for _, handler := range []time.Duration{300 * time.Microsecond, 4 * time.Millisecond, 30 * time.Millisecond} {
		in := Incast{Clients: 10, Request: 200, Handler: handler, Duration: max(40*time.Millisecond, 10*handler)}
		off := runIncast(t, in)
		in.Control = congestion.Swift{}
		on := runIncast(t, in)
		// Timeouts of the longest are paced: they could be losses until the answer
		// tells. What comes after it is not.
		if on.Paced > on.EarlyRetransmits+on.Retransmits || on.Requests < off.Requests || on.Latency99 > off.Latency99+time.Microsecond || on.Drops != 0 {
			t.Errorf("handlers take %v: with control %v, without %v", handler, on, off)
		}
	}
}

// constant leaves the same time between all requests.
type constant time.Duration

func (c constant) NewController(int) congestion.Controller             { return c }
func (c constant) Answered(congestion.Sample) time.Duration            { return time.Duration(c) }
func (c constant) TimedOut(time.Duration, time.Duration) time.Duration { return time.Duration(c) }

func TestIncastWithAControllerOfOnesOwn(t *testing.T) {
	// Half of what the link takes: 4102 bytes of every client in 262 us.
	r := runIncast(t, Incast{Control: constant(262 * time.Microsecond), Duration: 60 * time.Millisecond})
	if r.Goodput < 0.45 || r.Goodput > 0.52 || r.Drops != 0 || r.Fairness < 0.99 {
		t.Errorf("%v", r)
	}
}

func TestIncastIsReproducible(t *testing.T) {
	in := Incast{Control: congestion.Swift{}, Clients: 20, Duration: 10 * time.Millisecond, Seed: 7}
	a, b := runIncast(t, in), runIncast(t, in)
	if a != b {
		t.Errorf("%v\n%v", a, b)
	}
	in.Seed++
	if c := runIncast(t, in); c == a {
		t.Error("the seed makes no difference")
	}
}
