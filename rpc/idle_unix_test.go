//go:build unix

package rpc

import (
	"runtime"
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
	for b.Loop() {
		before, start := cpuTime(b), time.Now()
		<-time.After(3 * time.Second)
		b.ReportMetric(100*float64(cpuTime(b)-before)/float64(time.Since(start)), "%core")
	}
}
