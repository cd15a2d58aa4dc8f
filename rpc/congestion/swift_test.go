package congestion

import (
	"math"
	"math/rand/v2"
	"testing"
	"time"
)

const us = time.Microsecond

// answered is an answer that took delay, to a request sent when it must have
// been.
func answered(c *SwiftController, now, delay time.Duration) time.Duration {
	return c.Answered(Sample{Now: now, Sent: now - delay, Delay: delay})
}

func TestSwiftIsPassedByWithoutCongestion(t *testing.T) {
	c := Swift{}.New(8)
	for now := time.Duration(0); now < 10*time.Millisecond; now += 10 * us {
		if gap := answered(c, now, 50*us); gap != 0 {
			t.Fatalf("gap of %v", gap)
		}
	}
	if c.Window() != 8 || c.Decreases() != 0 {
		t.Errorf("window %v after %d decreases", c.Window(), c.Decreases())
	}
}

func TestSwiftCutsByTheExcessOncePerRoundTrip(t *testing.T) {
	c := Swift{Range: -1}.New(8)
	// 20 % too much: 8 * (1 - 0.8*0.2).
	gap := answered(c, 1000*us, 62500)
	if want := 8 * 0.84; math.Abs(c.Window()-want) > 1e-9 {
		t.Errorf("window %v, want %v", c.Window(), want)
	}
	if want := float64(62500) / c.Window(); math.Abs(float64(gap)-want) > 1 {
		t.Errorf("gap %v, want %v ns", gap, want)
	}
	// What was sent before that tells nothing new.
	before := c.Window()
	answered(c, 1010*us, 500*us)
	if c.Window() != before {
		t.Errorf("window %v, was %v", c.Window(), before)
	}
	// What was sent later does; half is the most that goes at once.
	answered(c, 2000*us, 900*us)
	if c.Window() != before/2 || c.Decreases() != 2 {
		t.Errorf("window %v, was %v, %d decreases", c.Window(), before, c.Decreases())
	}
}

func TestSwiftGrowsByAShareOfARequestPerRoundTrip(t *testing.T) {
	c := Swift{Increase: 0.5}.New(8)
	now := time.Millisecond
	for range 20 {
		now += 2 * time.Millisecond
		answered(c, now, time.Millisecond)
	}
	low := c.Window()
	if low > 0.001+1e-9 {
		t.Errorf("window %v after 20 cuts", low)
	}
	answered(c, now+10*us, 5*us)
	if got := c.Window() - low; math.Abs(got-0.5) > 1e-9 {
		t.Errorf("below 1 the window grew by %v for an answer", got)
	}
	answered(c, now+20*us, 5*us)
	before := c.Window()
	answered(c, now+30*us, 5*us)
	if got := c.Window() - before; math.Abs(got-0.5/before) > 1e-9 {
		t.Errorf("at %v the window grew by %v for an answer", before, got)
	}
	answers := 0
	for ; c.Window() < 8; answers++ {
		if answered(c, now+time.Second, 5*us) == 0 != (c.Window() == 8) {
			t.Fatalf("paced with a window of %v", c.Window())
		}
	}
	if answers < 50 || answers > 80 { // 64/2/0.5
		t.Errorf("%d answers to a full window", answers)
	}
}

func TestSwiftsTargetGrowsAsTheWindowShrinks(t *testing.T) {
	c := Swift{Target: 50 * us, Range: 80 * us}.New(16)
	last := time.Duration(0)
	for _, w := range []float64{16, 8, 4, 1, 0.5, 0.1, 0.01} {
		c.window = w
		target := c.target()
		if target < last || target < 50*us || target > 130*us {
			t.Errorf("target at window %v: %v, after %v", w, target, last)
		}
		last = target
	}
	if last != 130*us {
		t.Errorf("target at the smallest window: %v", last)
	}
	c.window = 16
	if got := c.target(); got != 50*us {
		t.Errorf("target at the full window: %v", got)
	}
}

func TestSwiftTakesALossOnce(t *testing.T) {
	c := Swift{}.New(8)
	for i := range 8 { // all of a window, lost together
		c.Answered(Sample{Now: time.Duration(20+i) * time.Millisecond, Sent: time.Millisecond, Resent: true, Lost: true})
	}
	if c.Window() != 4 {
		t.Errorf("window %v, want 4", c.Window())
	}
	c.Answered(Sample{Now: 60 * time.Millisecond, Sent: 50 * time.Millisecond, Resent: true, Lost: true})
	if c.Window() != 2 {
		t.Errorf("window %v, want 2", c.Window())
	}
}

func TestSwiftForgivesTimeoutsOfSlowHandlers(t *testing.T) {
	for name, answer := range map[string]Sample{
		"the slow one":         {Resent: true, Delay: 5 * us},
		"the slow one, blind":  {Resent: true},
		"another, and quickly": {Delay: 5 * us},
	} {
		c := Swift{}.New(8)
		now := time.Duration(0)
		for range 12 { // backed off, as the engine's are
			sent := now
			now += 20 * time.Millisecond
			c.TimedOut(now, sent)
		}
		if c.Window() != 0.001 {
			t.Errorf("%s: window %v after timeouts", name, c.Window())
		}
		answer.Now, answer.Sent = now+time.Millisecond, now
		c.Answered(answer)
		if c.Window() != 8 {
			t.Errorf("%s: window %v afterwards", name, c.Window())
		}
	}
	// A loss is not forgiven.
	c := Swift{}.New(8)
	c.TimedOut(20*time.Millisecond, 0)
	c.Answered(Sample{Now: 25 * time.Millisecond, Sent: 0, Resent: true, Lost: true})
	answered(c, 26*time.Millisecond, 5*us)
	if w := c.Window(); w > 4.1 {
		t.Errorf("window %v after a loss", w)
	}
}

func TestTimeoutsOfOneWindowAreOne(t *testing.T) {
	c := Swift{}.New(8)
	for i := range 8 {
		c.TimedOut(20*time.Millisecond+time.Duration(i)*time.Millisecond, 0)
	}
	if c.Window() != 4 {
		t.Errorf("window %v, want 4", c.Window())
	}
}

// Whatever comes, window and gap stay within their bounds.
func TestSwiftStaysWithinBounds(t *testing.T) {
	for seed := range uint64(50) {
		r := rand.New(rand.NewPCG(seed, 1))
		window := 1 + r.IntN(64)
		p := Swift{
			Target: time.Duration(r.Int64N(int64(time.Millisecond))), Range: time.Duration(r.Int64N(int64(time.Millisecond)) - 1000),
			Increase: r.Float64() * 100, Decrease: r.Float64() * 3, MaxDecrease: r.Float64() * 2, MinWindow: r.Float64() * 2,
		}
		if r.IntN(4) == 0 {
			p = Swift{Increase: math.NaN(), Decrease: math.Inf(1), MaxDecrease: -1, MinWindow: math.Inf(-1)}
		}
		c := p.New(window)
		now := time.Duration(0)
		for range 5000 {
			now += time.Duration(r.Int64N(int64(time.Millisecond)))
			var gap time.Duration
			switch r.IntN(10) {
			case 0:
				gap = c.TimedOut(now, now-time.Duration(r.Int64N(int64(time.Second))))
			case 1:
				gap = c.Answered(Sample{Now: now, Sent: now - time.Second, Resent: true, Lost: true})
			case 2:
				gap = c.Answered(Sample{Now: now, Delay: time.Duration(r.Int64())})
			default:
				gap = c.Answered(Sample{Now: now, Sent: now - 100*us, Delay: time.Duration(r.Int64N(int64(200 * us))), Resent: r.IntN(5) == 0})
			}
			w := c.Window()
			if !(w > 0 && w <= float64(window)) || gap < 0 || gap == 0 != (w == float64(window)) {
				t.Fatalf("seed %d, %+v: window %v of %d, gap %v", seed, p, w, window, gap)
			}
		}
	}
}

func TestSwiftDoesNotAllocate(t *testing.T) {
	c := Swift{}.New(8)
	now := time.Millisecond
	if n := testing.AllocsPerRun(1000, func() {
		now += 100 * us
		answered(c, now, 90*us)
		answered(c, now, 10*us)
		c.TimedOut(now, now)
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func BenchmarkSwift(b *testing.B) {
	for _, c := range []struct {
		name  string
		delay time.Duration
	}{{"uncongested", 10 * us}, {"congested", 100 * us}} {
		b.Run(c.name, func(b *testing.B) {
			s := Swift{}.New(8)
			now := time.Millisecond
			for b.Loop() {
				now += 10 * us
				answered(s, now, c.delay)
			}
		})
	}
}
