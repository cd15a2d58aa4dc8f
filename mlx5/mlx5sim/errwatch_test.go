//go:build linux

package mlx5sim_test

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/rrppcc-go/rrppcc/uverbs"
)

// TestReceivesPostedInErrAreFlushed: by itself, soon where something goes on and
// in time where nothing did for long. Nobody arms, rings or sends.
func TestReceivesPostedInErrAreFlushed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := rcPair(t)
		mr := a.mr(8, uverbs.AccessLocalWrite)
		toErr := func(e *end) {
			check(t, e.qp.Modify(&uverbs.QPAttr{State: uverbs.QPStateErr}, uverbs.AttrState))
		}
		toErr(a)
		id := uint64(0)
		flushed := func(within time.Duration) {
			t.Helper()
			for range 3 {
				id++
				a.recv(id, mr.SGE(0, 8))
			}
			time.Sleep(within)
			synctest.Wait()
			wcs := a.poll(a.recvCQ)
			if len(wcs) != 3 {
				t.Fatalf("%d of 3 receives flushed within %v", len(wcs), within)
			}
			for i, wc := range wcs {
				if wc.WRID != id-2+uint64(i) || wc.Status != uverbs.WCWRFlushErr {
					t.Errorf("completion %d: %+v", i, wc)
				}
			}
		}
		flushed(time.Millisecond)
		flushed(time.Millisecond)
		time.Sleep(time.Minute)
		flushed(100 * time.Millisecond)
		time.Sleep(time.Minute)
		toErr(b) // another device: nothing of a's
		flushed(100 * time.Millisecond)
		other := newEnd(t, a.sim, uverbs.QPTypeUD, 16)
		other.ud()
		toErr(other) // something goes on
		flushed(time.Millisecond)
		check(t, a.qp.Modify(&uverbs.QPAttr{State: uverbs.QPStateReset}, uverbs.AttrState))
		check(t, b.qp.Modify(&uverbs.QPAttr{State: uverbs.QPStateReset}, uverbs.AttrState))
		rcConnect(a, b)
		a.recv(77, mr.SGE(0, 8))
		time.Sleep(time.Second)
		if wcs := a.poll(a.recvCQ); len(wcs) != 0 {
			t.Errorf("a QP that left ERR: %+v", wcs)
		}
	})
}
