package nexus

import (
	"math/rand/v2"
	"testing"
)

func TestWindowTakesEachCounterOnce(t *testing.T) {
	for seed := range uint64(20) {
		rng := rand.New(rand.NewPCG(seed, 0))
		var w window
		used := make(map[uint64]bool)
		top := uint64(0)
		for range 20000 {
			var c uint64
			switch rng.IntN(20) {
			case 0:
				c = top + 1 + uint64(rng.IntN(3*windowBits))
			case 1, 2, 3, 4, 5, 6, 7, 8, 9:
				c = top + 1 + uint64(rng.IntN(3))
			default:
				c = top - min(top, uint64(rng.IntN(windowBits+200)))
			}
			want := !used[c] && (c > top || top-c < windowBits)
			if got := w.fresh(c); got != want {
				t.Fatalf("seed %d: counter %d at %d is fresh: %v", seed, c, top, got)
			}
			if want {
				w.mark(c)
				used[c] = true
				top = max(top, c)
			}
		}
	}
}

func TestWindowOfALateComerStartsThere(t *testing.T) {
	for _, start := range []uint64{0, 1, 62, 63, 64, 1000, 1<<40 + 63} {
		w := windowAfter(start)
		w.mark(start)
		for c := start - min(start, 2*windowBits); c <= start; c++ {
			if w.fresh(c) {
				t.Errorf("met at %d, %d is taken", start, c)
			}
		}
		for c := start + 200; c > start; c-- {
			if !w.fresh(c) {
				t.Errorf("met at %d, %d is not taken", start, c)
			}
			w.mark(c)
		}
	}
}

func TestWindowAtTheEndOfTheCounter(t *testing.T) {
	w := windowAfter(1<<64 - 3)
	for _, c := range []uint64{1<<64 - 1, 1<<64 - 2} {
		if !w.fresh(c) {
			t.Errorf("%d is not taken", c)
		}
		w.mark(c)
		if w.fresh(c) {
			t.Errorf("%d is taken twice", c)
		}
	}
}
