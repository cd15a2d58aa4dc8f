package engine

import (
	"math"
	"math/rand/v2"
	"testing"
)

// TestWheelAgainstModel checks the wheel against a plain list: no timer fires
// before its time, and none later than one tick after it.
func TestWheelAgainstModel(t *testing.T) {
	for seed := range uint64(300) {
		r := rand.New(rand.NewPCG(seed, 3))
		now := r.Int64N(5000 * ms)
		var w wheel
		w.init(now, seed%2 == 1)
		wheelTick := w.time(1)
		timers := make([]timer, 40)
		due := make([]int64, len(timers))   // 0 = not set
		limit := make([]int64, len(timers)) // fires before
		set := func(i int) {
			d := []int64{0, 1, wheelTick - 1, wheelTick, wheelTick + 1, r.Int64N(20 * ms), r.Int64N(2000 * ms), -5 * ms, r.Int64N(100_000 * ms)}
			due[i] = max(1, now+d[r.IntN(len(d))])
			limit[i] = max(due[i], now) + wheelTick
			w.set(&timers[i], due[i])
		}
		for i := range timers {
			timers[i].fire = func(at int64) {
				if at != now || due[i] == 0 || due[i] > now {
					t.Fatalf("seed %d: timer fires at %d, due at %d", seed, now, due[i])
				}
				due[i] = 0
				switch r.IntN(6) { // callbacks set and stop, themselves and others
				case 0:
					set(i)
				case 1:
					set(r.IntN(len(timers)))
				case 2:
					j := r.IntN(len(timers))
					w.stop(&timers[j])
					due[j] = 0
				}
			}
		}
		for range 400 {
			switch r.IntN(5) {
			case 0, 1:
				set(r.IntN(len(timers)))
			case 2:
				j := r.IntN(len(timers))
				w.stop(&timers[j])
				due[j] = 0
			default:
				d := []int64{0, r.Int64N(wheelTick), r.Int64N(10 * ms), r.Int64N(500 * ms), r.Int64N(20_000 * ms)}
				now += d[r.IntN(len(d))]
				w.advance(now)
				for i, at := range due {
					if at != 0 && limit[i] <= now {
						t.Fatalf("seed %d: timer due at %d has not fired at %d", seed, at, now)
					}
				}
			}
			// next is never later than the tick in which the first timer is due,
			// and false only without any.
			first := int64(math.MaxInt64)
			for _, at := range due {
				if at != 0 {
					first = min(first, at)
				}
			}
			at, ok := w.next()
			if first < math.MaxInt64 && (!ok || at >= max(first, w.tick*wheelTick)+2*wheelTick) {
				t.Fatalf("seed %d: next is %d, %v; a timer is due at %d", seed, at, ok, first)
			}
			if n := w.filed(); n != w.count {
				t.Fatalf("seed %d: %d timers are filed, count is %d", seed, n, w.count)
			}
		}
	}
}

// filed counts the timers in the wheel.
func (w *wheel) filed() int {
	n := 0
	for i := range w.buckets {
		for e := w.buckets[i].next; e != &w.buckets[i]; e = e.next {
			n++
		}
	}
	for e := w.due.next; e != &w.due; e = e.next {
		n++
	}
	return n
}

func TestWheelFiresWithinOneTick(t *testing.T) {
	for _, start := range []int64{0, 1, wheelTick - 1, wheelTick, 12345 * wheelTick / 7} {
		for _, d := range []int64{1, wheelTick / 2, wheelTick, 3*wheelTick + 1, (wheelSlots - 1) * wheelTick, wheelSlots * wheelTick, (3*wheelSlots + 5) * wheelTick} {
			var w wheel
			w.init(start, false)
			fired := int64(0)
			tm := timer{fire: func(now int64) { fired = now }}
			w.set(&tm, start+d)
			const step = wheelTick / 4
			for now := start; fired == 0 && now < start+d+2*wheelTick; now += step {
				w.advance(now)
			}
			if fired < start+d || fired >= start+d+wheelTick+step {
				t.Errorf("set at %d for %d later: fired %d later", start, d, fired-start)
			}
			if _, ok := w.next(); ok {
				t.Error("a timer is left")
			}
		}
	}
}

func TestWheelTakesTheLatestTimes(t *testing.T) {
	var w wheel
	w.init(0, false)
	tm := timer{fire: func(int64) { t.Error("fired") }}
	w.set(&tm, math.MaxInt64)
	if tm.at < 1<<40 {
		t.Errorf("filed under tick %d", tm.at)
	}
	for now := int64(0); now < 10_000*ms; now += 7 * ms {
		w.advance(now)
	}
}

// TestWheelAdvancesWithinACallback: a callback that waits for a later timer
// must not wait for ever, not even for one that is due together with it.
func TestWheelAdvancesWithinACallback(t *testing.T) {
	var w wheel
	w.init(0, false)
	var order []string
	same := timer{fire: func(int64) { order = append(order, "same") }}
	later := timer{fire: func(int64) { order = append(order, "later") }}
	outer := timer{fire: func(int64) {
		w.set(&later, 9*ms)
		if at, ok := w.next(); !ok || at > 5*ms {
			t.Errorf("next is %d while a timer is overdue", at)
		}
		w.advance(10 * ms)
		order = append(order, "outer")
	}}
	w.set(&outer, 5*ms)
	w.set(&same, 5*ms)
	w.advance(6 * ms)
	w.advance(12 * ms)
	if len(order) != 3 || order[0] != "same" || order[1] != "later" || order[2] != "outer" {
		t.Errorf("fired in the order %v", order)
	}
}
