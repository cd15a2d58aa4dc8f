package mlx5sim

import (
	"fmt"
	"math/rand/v2"
	"time"
)

// Flaps says for how long a port is up and down in turns. Each time is drawn
// anew, between half and one and a half times what it says.
type Flaps struct {
	Up, Down time.Duration
}

const (
	minFlap = time.Microsecond
	maxFlap = time.Hour
)

// flapping is a port that goes up and down. It is guarded by the fabric's mutex.
type flapping struct {
	f     Flaps
	rng   rand.PCG
	timer *time.Timer
}

// SetFlaps has the port go down and up again by itself, first down after a time
// of f.Up, as [Device.SetPortDown] and [Device.SetPortUp] do: with their async
// events, for messages within the process too. It replaces what was set before;
// the zero Flaps ends it and leaves the port up. It may be called at any time from
// any goroutine, and works in virtual time (testing/synctest) as in real time.
//
// All times come from seed, as the chances of [Device.SetFaults] do: with seed 0
// a random one is drawn, and the seed in use is returned.
func (d *Device) SetFlaps(f Flaps, seed uint64) (uint64, error) {
	if f != (Flaps{}) {
		for _, x := range [...]struct {
			name string
			v    time.Duration
		}{{"Up", f.Up}, {"Down", f.Down}} {
			if x.v < minFlap || x.v > maxFlap {
				return 0, fmt.Errorf("mlx5sim: Flaps.%s is %v; %v to %v is possible", x.name, x.v, minFlap, maxFlap)
			}
		}
	}
	for seed == 0 {
		seed = rand.Uint64()
	}
	d.fab.mu.Lock()
	defer d.fab.mu.Unlock()
	if d.closed {
		return seed, nil
	}
	if d.flaps != nil {
		d.flaps.stop()
		d.flaps = nil
		d.turnPort(false)
	}
	if f == (Flaps{}) {
		return seed, nil
	}
	fl := &flapping{f: f}
	fl.rng.Seed(seed, 0)
	d.flaps = fl
	fl.timer = time.AfterFunc(fl.draw(f.Up), func() { d.flap(fl) })
	return seed, nil
}

// draw is a time between half and one and a half times mean.
func (fl *flapping) draw(mean time.Duration) time.Duration {
	return mean/2 + time.Duration(fl.rng.Uint64()%uint64(mean))
}

func (fl *flapping) stop() {
	if fl != nil {
		fl.timer.Stop()
	}
}

// flap turns the port over, and sets the timer for the next time.
func (d *Device) flap(fl *flapping) {
	d.fab.mu.Lock()
	defer d.fab.mu.Unlock()
	if d.closed || d.flaps != fl {
		return
	}
	d.turnPort(!d.down)
	mean := fl.f.Up
	if d.down {
		mean = fl.f.Down
	}
	fl.timer.Reset(fl.draw(mean))
}
