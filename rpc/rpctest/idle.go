//go:build unix

package rpctest

import (
	"runtime"
	"syscall"
	"time"
)

// idleSleeps measures the processor time of this process while two loops have
// nothing to do. The wait is the measurement; a loop that spins uses all of it.
func idleSleeps(e *env) {
	ep, s := e.pair()
	e.run(ep)
	e.echo(s, ep)
	runtime.GC()
	const window = 400 * time.Millisecond
	least := window
	// The best of three: a garbage collection or a slow timer is no spinning.
	for range 3 {
		before := cpuTime(e)
		select {
		case <-time.After(window):
		case <-e.ctx.Done():
		}
		least = min(least, cpuTime(e)-before)
		// In a virtual machine, time that the host gave to others counts, too.
		if least < window/4 {
			return
		}
	}
	e.Errorf("idle loops used %v of processor time in %v", least, window)
}

func cpuTime(e *env) time.Duration {
	var u syscall.Rusage
	e.must(syscall.Getrusage(syscall.RUSAGE_SELF, &u))
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
