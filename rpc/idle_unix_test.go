//go:build unix

package rpc

import (
	"runtime"
	"syscall"
	"testing"
	"time"
)

// BenchmarkIdleProcess is the share of one core that a process uses with both
// ends of 1,000 idle sessions, over 3 s.
func BenchmarkIdleProcess(b *testing.B) {
	r := newRig(b, crowded()...)
	_, stop := r.many(1000)
	defer stop()
	runtime.GC()
	cpu := func() time.Duration {
		var u syscall.Rusage
		if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
			b.Fatal(err)
		}
		return time.Duration(u.Utime.Nano() + u.Stime.Nano())
	}
	for b.Loop() {
		before, start := cpu(), time.Now()
		<-time.After(3 * time.Second)
		b.ReportMetric(100*float64(cpu()-before)/float64(time.Since(start)), "%core")
	}
}
