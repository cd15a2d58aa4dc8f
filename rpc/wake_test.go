package rpc

import (
	"context"
	"errors"
	"runtime"
	"testing"
	"time"

	"github.com/rrppcc-go/rrppcc/msgbuf"
)

// wakeRounds is how often a loop goes to sleep and must be woken: a million
// times, or fewer where that would take minutes.
func wakeRounds() int {
	if testing.Short() || raceEnabled {
		return 20_000
	}
	return 1_000_000
}

// A loop that sleeps at once is woken by every message and by every submission.
// One that is missed hangs the round, and the test says at which.
func TestNoWakeUpIsLost(t *testing.T) {
	for _, c := range []struct {
		name  string
		start func(r *rig) (round func() error)
	}{
		{"network", func(r *rig) func() error {
			// The client polls by hand; what wakes the server are completions.
			s := r.connect()
			r.Cleanup(r.run(r.srv))
			over := false
			var err error
			done := func(q *Request) { over, err = true, q.Err() }
			return func() error {
				over = false
				s.Enqueue(rigEcho, msgbuf.Buf{}, msgbuf.Buf{}, 0, done)
				for i := 0; !over; i++ {
					if r.cli.Poll() == 0 {
						runtime.Gosched()
					}
					if i&1023 == 1023 && r.ctx.Err() != nil {
						return r.ctx.Err()
					}
				}
				return err
			}
		}},
		{"submissions", func(r *rig) func() error {
			r.Cleanup(r.run(r.srv))
			ran := make(chan struct{}, 1)
			fn := func() { ran <- struct{}{} }
			return func() error {
				r.srv.submit(op{kind: opFunc, fn: fn})
				select {
				case <-ran:
					return nil
				case <-r.ctx.Done():
					return r.ctx.Err()
				}
			}
		}},
		{"network and submissions", func(r *rig) func() error {
			// The client's loop is woken by its callers, and by the server.
			s := r.connect()
			r.Cleanup(r.run(r.srv))
			r.Cleanup(r.run(r.cli))
			return func() error { return s.Call(r.ctx, rigEcho, msgbuf.Buf{}, msgbuf.Buf{}) }
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			// Nothing is sent again, which could hide a loss.
			never := func(o *options) { o.initialRTO, o.minRTO, o.maxRTO = time.Hour, time.Hour, time.Hour }
			r := newRig(t, WithSpin(0), never)
			var cancel context.CancelFunc
			r.ctx, cancel = context.WithTimeout(context.Background(), 3*patience)
			t.Cleanup(cancel)
			round := c.start(r)
			rounds := wakeRounds() / 4
			if c.name == "submissions" {
				rounds *= 2
			}
			start := time.Now()
			for i := range rounds {
				if err := round(); err != nil {
					t.Fatalf("round %d of %d: %v", i, rounds, err)
				}
			}
			t.Logf("%d rounds in %v", rounds, time.Since(start))
		})
	}
}

// Timers alone wake a loop that sleeps.
func TestTimersWakeTheLoop(t *testing.T) {
	r := newRig(t, WithSpin(0), WithRequestTimeout(time.Millisecond))
	s := r.connect()
	rounds := 300
	if testing.Short() || raceEnabled {
		rounds = 50
	}
	t.Cleanup(r.run(r.cli)) // and nobody drives the server
	for i := range rounds {
		err := s.Go(rigEcho, msgbuf.Buf{}, msgbuf.Buf{}).Wait(r.ctx)
		if !errors.Is(err, context.DeadlineExceeded) {
			t.Fatalf("round %d: %v", i, err)
		}
	}
}
