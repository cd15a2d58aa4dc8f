package rpc

import (
	"bytes"
	"testing"
	"time"

	"github.com/rrppcc-go/rrppcc/msgbuf"
)

// The receive rings have room for all that sessions may send, also when they use
// it up and the other end does not look for long: nothing is dropped for want of a
// buffer.
func TestReceiveRingHoldsWhatSessionsMaySend(t *testing.T) {
	const sessions, window = 2, 8
	// What is sent again, on a machine that stalls, is not what this is about.
	patient := func(o *options) { o.initialRTO, o.minRTO, o.maxRTO = time.Hour, time.Hour, time.Hour }
	for _, credits := range []int{16, 24, 32, 64} {
		r := newRig(t, WithRingDepth(sessions*credits), WithCredits(credits), WithLargeThreshold(1<<20), WithNesting(0), patient)
		var all []*Session
		for range sessions {
			all = append(all, r.connect())
		}
		long := all[0].LargeThreshold()
		sizes := []int{long, 100, 100_000, long - 1, 4000, 100_000, long}
		left, underWay, n := 400, 0, 0
		var start func(s *Session, req, resp msgbuf.Buf)
		start = func(s *Session, req, resp msgbuf.Buf) {
			if left == 0 {
				return
			}
			left--
			underWay++
			size := sizes[n%len(sizes)]
			n++
			req.SetLen(size)
			fill(req, uint64(n))
			want := bytes.Clone(req.Bytes())
			s.Enqueue(rigEcho, req, resp, 0, func(q *Request) {
				underWay--
				if q.Err() != nil || !bytes.Equal(resp.Bytes(), want) {
					t.Errorf("%d credits, %d bytes: %v", credits, size, q.Err())
				}
				start(s, req, resp)
			})
		}
		for _, s := range all {
			for range window {
				start(s, r.buf(r.cli, 100_000), r.buf(r.cli, 100_000))
			}
		}
		// One end makes many rounds for each of the other's, in turns.
		for i := 0; underWay > 0; i++ {
			fast, slow := r.cli, r.srv
			if i/8%2 == 1 {
				fast, slow = slow, fast
			}
			for range 20 {
				fast.Poll()
			}
			slow.Poll()
			if r.ctx.Err() != nil {
				t.Fatal("nothing happens any more")
			}
		}
		for i, dev := range r.devices {
			if drops := dev.Stats().Drops.NoReceive; drops != 0 {
				st := []*Endpoint{r.srv, r.cli}[i].e.Stats
				t.Errorf("%d credits: end %d dropped %d datagrams for want of a buffer: %+v", credits, i, drops, st)
			}
		}
		if parts := r.srv.e.Stats.Assembled; (parts > 0) != (credits >= 3*window) {
			t.Errorf("%d credits: %d messages of several datagrams", credits, parts)
		}
	}
}

func TestLargeThresholdOfOptions(t *testing.T) {
	const small = 4080
	const part = small - 8
	for _, c := range []struct{ threshold, credits, window, want int }{
		{0, 32, 8, 3 * part},
		{0, 64, 8, 3 * part},
		{0, 24, 8, 2 * part},
		{0, 16, 8, small},
		{0, 8, 8, small},
		{1, 32, 8, small},
		{-1, 32, 8, small},
		{small + 1, 32, 8, small + 1},
		{1 << 30, 32, 8, 3 * part},
		{1 << 30, 136, 8, 16 * part},
		{1 << 30, 1 << 15, 8, 64 * part},
	} {
		o := options{threshold: c.threshold, credits: c.credits, window: c.window}
		if got := o.largeThreshold(small); got != c.want {
			t.Errorf("%+v: %d", c, got)
		}
	}
}
