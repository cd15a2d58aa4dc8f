//go:build amd64 || arm64

package guest

import (
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// poller watches the UAR pages of all programs: a store to a page of memory
// raises no interrupt, so somebody has to look. It runs on a thread of its own,
// spins while doorbells come, and sleeps longer and longer when none do; with
// no device open it sleeps until one is.
type poller struct {
	mu     sync.Mutex // for writers of files
	files  atomic.Pointer[[]*deviceFile]
	wake   chan struct{}
	ending atomic.Bool
	done   chan struct{}
}

// How the poller waits: pauses by the number of rounds since the last doorbell.
//
// Spinning is short, and there is no sched_yield: a program that polls its CQ
// competes for the same processors, and the scheduler gives a thread that has
// slept little but often its turn at once, one that spins or yields only after
// the others' slices. (Two polling ping-pongs on 2 busy processors: 50 to 1,000
// µs per round trip with pauses of 10 µs, 5 to 30 ms with either.)
var pauses = [...]struct {
	rounds int
	pause  time.Duration
}{
	{100, 0},                       // some 20 µs
	{2000, 10 * time.Microsecond},  // some 0.1 s
	{5000, 100 * time.Microsecond}, // some 0.5 s
}

// longestPause is what follows. time.Sleep is no good for pauses of a millisecond
// or less on an otherwise idle runtime.
const longestPause = time.Millisecond

// pollerSlice is the time slice that the poller asks the scheduler for: threads with
// a shorter slice come before those that run (Linux 6.12).
const pollerSlice = 100 * time.Microsecond

// pauseAfter is how long to wait after so many rounds without a doorbell.
func pauseAfter(rounds int) time.Duration {
	for _, p := range pauses {
		if rounds < p.rounds {
			return p.pause
		}
	}
	return longestPause
}

func newPoller() *poller {
	p := &poller{wake: make(chan struct{}, 1), done: make(chan struct{})}
	p.files.Store(new([]*deviceFile))
	return p
}

func (p *poller) signal() {
	select {
	case p.wake <- struct{}{}:
	default:
	}
}

// add has f polled.
func (p *poller) add(f *deviceFile) {
	p.mu.Lock()
	files := append(slices.Clone(*p.files.Load()), f)
	p.files.Store(&files)
	p.mu.Unlock()
	p.signal()
}

// remove ends that. A call of Poll may be under way still.
func (p *poller) remove(f *deviceFile) {
	p.mu.Lock()
	defer p.mu.Unlock()
	files := slices.Clone(*p.files.Load())
	if i := slices.Index(files, f); i >= 0 {
		files = slices.Delete(files, i, i+1)
		p.files.Store(&files)
	}
}

// end has run return, and waits for it.
func (p *poller) end() {
	p.ending.Store(true)
	p.signal()
	<-p.done
}

func (p *poller) run() {
	defer close(p.done)
	runtime.LockOSThread() // for good: its timers are made precise
	unix.Prctl(unix.PR_SET_TIMERSLACK, 1, 0, 0, 0)
	if attr, err := unix.SchedGetAttr(0, 0); err == nil && attr.Policy == unix.SCHED_NORMAL {
		attr.Runtime = uint64(pollerSlice)
		unix.SchedSetAttr(0, attr, 0)
	}
	idle := 0
	for !p.ending.Load() {
		files := *p.files.Load()
		if len(files) == 0 {
			<-p.wake
			idle = 0
			continue
		}
		worked := false
		for _, f := range files {
			if f.foreign.Poll() {
				worked = true
			}
		}
		if worked {
			idle = 0
			continue
		}
		if d := pauseAfter(idle); d > 0 {
			nanosleep(d)
		}
		idle++
	}
}

func nanosleep(d time.Duration) {
	ts := unix.NsecToTimespec(int64(d))
	unix.Nanosleep(&ts, nil)
}
