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

// How the poller waits, in rounds without a doorbell. time.Sleep is no good
// below a millisecond on an otherwise idle runtime.
const (
	spinRounds   = 2000                  // with sched_yield between them: about 1 ms
	shortRounds  = spinRounds + 2000     // sleeping shortPause, about 0.1 s
	shortPause   = 20 * time.Microsecond // plus some 50 µs that the machine adds
	longPause    = time.Millisecond
	longestPause = 2 * time.Millisecond
	longRounds   = shortRounds + 1000
)

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
		switch {
		case worked:
			idle = 0
			continue
		case idle < spinRounds:
			unix.Syscall(unix.SYS_SCHED_YIELD, 0, 0, 0)
		case idle < shortRounds:
			nanosleep(shortPause)
		case idle < longRounds:
			nanosleep(longPause)
		default:
			nanosleep(longestPause)
		}
		idle++
	}
}

func nanosleep(d time.Duration) {
	ts := unix.NsecToTimespec(int64(d))
	unix.Nanosleep(&ts, nil)
}
