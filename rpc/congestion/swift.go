package congestion

import (
	"math"
	"time"
)

// Swift is delay-based control with a window in requests, after Kumar et al.,
// "Swift: Delay is Simple and Effective for Congestion Control in the
// Datacenter", SIGCOMM 2020. The fields are its parameters; 0 stands for the
// default.
//
// While delays stay below a target the window grows by Increase per round trip;
// above it, it shrinks once per round trip by the part of the delay that is too
// much, weighted by Decrease and at most MaxDecrease; so it does after a loss.
// Windows below 1 mean less than one request per round trip. The target grows
// as the window shrinks, since more sessions share a queue then.
//
// Where Swift counts packets in flight, this paces, at window / round trip, and
// counts nothing: a slow handler would hold a place of the window, and its
// session up. How many requests of a session are under way is bounded by
// rpc.WithWindow. A window as large as that is no congestion: nothing is paced.
type Swift struct {
	// Target is the delay, of both directions together, below which there is no
	// congestion: 50 us by default. It must be more than the round trip through
	// an idle network.
	Target time.Duration
	// Range is what the target gets on top at small windows, in full at a tenth
	// of a request: as much as Target by default, none if negative.
	Range time.Duration
	// Increase is how many requests the window grows by in a round trip: 0.05 by
	// default.
	Increase float64
	// Decrease is the weight of the excess in a decrease: 0.8 by default.
	Decrease float64
	// MaxDecrease is the most that one decrease takes away: 0.5 by default.
	MaxDecrease float64
	// MinWindow is the smallest window: 0.001 by default.
	MinWindow float64
}

// minScale is the window at which the target is largest.
const minScale = 0.1

// resetAfter is how many timeouts in a row take the window to its minimum.
const resetAfter = 5

// NewController returns a *SwiftController.
func (p Swift) NewController(window int) Controller { return p.New(window) }

// New returns the controller of a session with that many requests under way at
// most.
func (p Swift) New(window int) *SwiftController {
	if p.Target <= 0 {
		p.Target = 50 * time.Microsecond
	}
	if p.Range == 0 {
		p.Range = p.Target
	}
	positive := func(v *float64, preset, most float64) {
		if !(*v > 0) {
			*v = preset
		}
		*v = min(*v, most)
	}
	c := &SwiftController{max: float64(max(window, 1))}
	positive(&p.Increase, 0.05, c.max)
	positive(&p.Decrease, 0.8, 1)
	positive(&p.MaxDecrease, 0.5, 0.9)
	positive(&p.MinWindow, 0.001, 1)
	c.p, c.window = p, c.max
	if p.Range > 0 {
		// alpha/sqrt(window) + beta is Range at minScale and 0 at the full window.
		c.alpha = float64(p.Range) / (1/math.Sqrt(minScale) - 1/math.Sqrt(c.max))
		c.beta = -c.alpha / math.Sqrt(c.max)
	}
	return c
}

// SwiftController is the controller of Swift.
type SwiftController struct {
	p           Swift
	max         float64
	alpha, beta float64
	window      float64
	rtt         time.Duration // smoothed delay
	decreased   time.Duration // when, last
	before      float64       // window before the first of timeouts that may be none; 0 = no such
	timeouts    int           // in a row
	cuts        uint64
}

// Window returns the window in requests per round trip.
func (c *SwiftController) Window() float64 { return c.window }

// Decreases counts how often the window was cut.
func (c *SwiftController) Decreases() uint64 { return c.cuts }

// Answered implements Controller.
func (c *SwiftController) Answered(s Sample) time.Duration {
	if c.window == c.max && s.Delay <= c.p.Target && !s.Resent {
		return 0 // an uncongested session: nothing to think about
	}
	c.timeouts = 0
	if s.Lost {
		c.before = 0
		c.decrease(s.Now, s.Sent, 1-c.p.MaxDecrease)
		return c.gap()
	}
	if c.before > 0 && (s.Resent || s.Delay <= c.p.Target) { // the timeouts were a slow handler's
		c.window = max(c.window, c.before)
		c.before = 0
	}
	switch {
	case c.rtt == 0:
		c.rtt = s.Delay
	case s.Delay > 0:
		c.rtt += (s.Delay - c.rtt) / 8
	}
	if target := c.target(); s.Delay > target {
		c.decrease(s.Now, s.Sent, max(1-c.p.Decrease*float64(s.Delay-target)/float64(s.Delay), 1-c.p.MaxDecrease))
	} else {
		c.window = min(c.window+c.p.Increase/max(c.window, 1), c.max)
	}
	return c.gap()
}

// TimedOut implements Controller.
func (c *SwiftController) TimedOut(now, sent time.Duration) time.Duration {
	before, factor := c.window, 1-c.p.MaxDecrease
	if c.timeouts+1 >= resetAfter {
		factor = 0
	}
	if c.decrease(now, sent, factor) {
		c.timeouts++
		if c.before == 0 {
			c.before = before
		}
	}
	return c.gap()
}

// decrease multiplies the window by factor, unless what is to blame was sent
// before the window was cut last: it tells nothing of how things are since.
func (c *SwiftController) decrease(now, sent time.Duration, factor float64) bool {
	if c.cuts > 0 && sent < c.decreased {
		return false
	}
	c.cuts++
	c.decreased = now
	c.window = max(c.window*factor, c.p.MinWindow)
	return true
}

// target is the delay that is no congestion.
func (c *SwiftController) target() time.Duration {
	if c.alpha == 0 {
		return c.p.Target
	}
	scale := c.alpha/math.Sqrt(c.window) + c.beta
	return c.p.Target + time.Duration(min(max(scale, 0), float64(c.p.Range)))
}

// gap is the time between two requests at the present window.
func (c *SwiftController) gap() time.Duration {
	if c.window >= c.max {
		return 0
	}
	return time.Duration(min(float64(max(c.rtt, minRTT))/c.window, float64(maxGap)))
}

const (
	// minRTT bounds the round trip from below: a delay of 0 is one that was not
	// seen.
	minRTT = time.Microsecond
	maxGap = time.Hour
)
