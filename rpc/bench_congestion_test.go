package rpc

import (
	"fmt"
	"testing"
	"time"

	"github.com/rrppcc-go/rrppcc/rpc/congestion"
)

// BenchmarkEnqueueCongestion is BenchmarkEnqueue of 32 bytes without congestion
// control and with it, where there is no congestion.
func BenchmarkEnqueueCongestion(b *testing.B) {
	for _, outstanding := range []int{1, 8, 32} {
		for _, c := range []struct {
			name    string
			control congestion.Control
		}{{"off", nil}, {"on", congestion.Swift{}}} {
			b.Run(fmt.Sprintf("32B/%d/%s", outstanding, c.name), func(b *testing.B) {
				p := newPump(newRig(b, WithWindow(max(8, outstanding)), WithCongestionControl(c.control)), 32, 32, outstanding)
				p.run(1000)
				b.ReportAllocs()
				b.ResetTimer()
				p.run(b.N)
			})
		}
	}
}

// A session under congestion control allocates nothing in steady state, paced or
// not.
func TestCongestionControlDoesNotAllocate(t *testing.T) {
	if raceEnabled {
		t.Skip("built with -race, msgbuf records who frees what")
	}
	for _, c := range []congestion.Control{congestion.Swift{}, beat{}} {
		for _, size := range []int{32, 1000, 20_000} {
			p := newPump(newRig(t, WithCongestionControl(c)), size, size, 8)
			p.run(1000)
			if n := testing.AllocsPerRun(20, func() { p.run(50) }); n != 0 {
				t.Errorf("50 requests of %d bytes with %T: %v allocations", size, c, n)
			}
			if st := p.cli.e.Stats; c == (beat{}) && st.Paced == 0 {
				t.Errorf("%T: no request was paced", c)
			}
		}
	}
}

// beat is a controller that leaves a microsecond between requests.
type beat struct{}

func (b beat) NewController(int) congestion.Controller           { return b }
func (beat) Answered(congestion.Sample) time.Duration            { return time.Microsecond }
func (beat) TimedOut(time.Duration, time.Duration) time.Duration { return time.Microsecond }
