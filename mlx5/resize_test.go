package mlx5

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"syscall"
	"testing"

	"github.com/rrppcc-go/rrppcc/mlx5/internal/abi"
	"github.com/rrppcc-go/rrppcc/mlx5/internal/prm"
	"github.com/rrppcc-go/rrppcc/uverbs"
)

// resizeRig is an RC QP on one CQ, whose kernel half is the test's.
type resizeRig struct {
	*rig
	ucq    *uverbs.CQ
	c      *cq
	q      *qp
	posted uint16 // sends completed by the device so far
	polled uint64
}

func newResizeRig(t *testing.T, depth int, start uint32) *resizeRig {
	r := &resizeRig{rig: openRig(t, newFakeKernel(t))}
	r.drv.uars.kick = nil
	r.ucq = r.cq(depth)
	r.c = r.ucq.Driver().(*cq)
	layout, err := layoutQP(&r.drv.lim, uverbs.QPCap{MaxSendWR: 256, MaxSendSGE: 1}, overheadRC)
	if err != nil {
		t.Fatal(err)
	}
	r.q = r.qpWith(uverbs.QPTypeRC, r.ucq, r.ucq, layout, false, 500, 0)
	for i := range 256 {
		if _, err := r.q.PostSend([]uverbs.SendWR{{WRID: uint64(i), Opcode: uverbs.WRSend}}); err != nil {
			t.Fatal(err)
		}
	}
	// As if start completions had been polled.
	r.c.ci = start
	r.c.db.Store(prm.CQCI, start&prm.CIMask)
	for i := range r.c.mask + 1 {
		owner := start >> r.c.shift & 1
		if i >= start&r.c.mask {
			owner ^= 1 // not written in this lap
		}
		r.c.at(i).StoreLast(prm.CQEReq<<4 | owner)
	}
	return r
}

// complete writes the next completion into a ring at index i.
func (r *resizeRig) complete(ring *cqRing, i uint32) {
	e := ring.at(i)
	e.SRQNUIDX, e.SOPDropQPN = prm.ToBE32(r.q.key), prm.ToBE32(prm.OpcodeSend<<24|r.q.qpn)
	e.StoreLast(uint32(r.posted)<<16 | prm.CQEReq<<4 | i>>ring.shift&1)
	r.posted++
}

func (r *resizeRig) poll(want int) error {
	wcs := make([]uverbs.WC, 300)
	n, err := r.c.Poll(wcs)
	if n != want || err != nil {
		return fmt.Errorf("%d completions, %v, want %d", n, err, want)
	}
	for _, wc := range wcs[:n] {
		if wc.WRID != r.polled {
			return fmt.Errorf("completion of %d, want %d", wc.WRID, r.polled)
		}
		r.polled++
	}
	return nil
}

// TestResizeMovesCompletions resizes CQs up and down, with completions that wait,
// that come while the kernel is at it, and that the device writes into the new
// ring before the old one is copied.
func TestResizeMovesCompletions(t *testing.T) {
	for _, cqeBytes := range []string{"64", "128"} {
		t.Setenv("MLX5_CQE_SIZE", cqeBytes)
		rnd := rand.New(rand.NewPCG(8, 9))
		for round := range 400 {
			depth := 1<<(2+rnd.IntN(5)) - 1
			start := rnd.Uint32N(300)
			if round%3 == 0 {
				start = 1<<24 - rnd.Uint32N(40)
			}
			r := newResizeRig(t, depth, start)
			at := start // the device's producer index
			waiting := rnd.IntN(depth + 1)
			for range waiting {
				r.complete(&r.c.cqRing, at)
				at++
			}
			next := 1<<(2+rnd.IntN(5)) - 1
			during := rnd.IntN(max(1, min(depth, next)-waiting+1))
			early := rnd.IntN(max(1, next-waiting-during+1))
			asked := false
			r.k.onResize = func(cqe uint32, in *abi.Mlx5_ib_resize_cq) {
				asked = true
				if int(cqe) != next || in.Cqe_size != uint16(r.c.stride) {
					t.Errorf("%d entries of %d bytes", cqe, in.Cqe_size)
				}
				for range during {
					r.complete(&r.c.cqRing, at)
					at++
				}
				r.c.at(at).StoreLast(prm.CQEResize<<4 | at>>r.c.shift&1)
				at++
				ring := cqRing{ring: &prm.Memory(in.Buf_addr, uint32(next+1)*r.c.stride)[r.c.stride-prm.CQEBytes],
					stride: r.c.stride, mask: uint32(next), shift: r.c.shift}
				for ring.shift = 0; 1<<ring.shift <= next; ring.shift++ {
				}
				for range early {
					r.complete(&ring, at)
					at++
				}
			}
			err := r.ucq.Resize(next)
			switch {
			case next == depth:
				if err != nil || asked {
					t.Fatalf("the same depth: %v, asked %v", err, asked)
				}
				during, early = 0, 0
			case waiting > next:
				if !errors.Is(err, syscall.EINVAL) || asked || r.ucq.Depth() != depth {
					t.Fatalf("%d waiting for a depth of %d: %v", waiting, next, err)
				}
				next, during, early = depth, 0, 0
			case err != nil:
				t.Fatal(err)
			}
			if r.ucq.Depth() != next {
				t.Fatalf("depth %d, want %d", r.ucq.Depth(), next)
			}
			if err := r.poll(waiting + during + early); err != nil {
				t.Fatalf("round %d, %d to %d: %v", round, depth, next, err)
			}
			for range 3 * next {
				if r.posted == 256 {
					break
				}
				r.complete(&r.c.cqRing, at)
				if at++; rnd.IntN(2) == 0 || at-r.c.ci > uint32(next-1) {
					if err := r.poll(int(at - r.c.ci)); err != nil {
						t.Fatalf("round %d, after it: %v", round, err)
					}
				}
			}
			r.q.Close()
			r.ucq.Close()
			r.close()
		}
	}
}

// TestResizeFails checks that the old ring stays if the kernel refuses, and what
// is said if its answer makes no sense.
func TestResizeFails(t *testing.T) {
	r := newResizeRig(t, 7, 3)
	before := mapped.Load()
	r.k.fail = func(object, method uint16) error { return syscall.ENOSPC }
	if err := r.ucq.Resize(31); !errors.Is(err, syscall.ENOSPC) {
		t.Error(err)
	}
	r.k.fail = nil
	if err := r.ucq.Resize(1 << 25); !errors.Is(err, syscall.EINVAL) {
		t.Error(err)
	}
	if n := mapped.Load(); n != before || r.ucq.Depth() != 7 {
		t.Errorf("%d bytes more, depth %d", n-before, r.ucq.Depth())
	}
	r.complete(&r.c.cqRing, 3)
	if err := r.poll(1); err != nil {
		t.Error(err)
	}
	r.complete(&r.c.cqRing, 4)
	if err := r.ucq.Resize(31); !errors.Is(err, uverbs.ErrBadAnswer) { // no marker
		t.Error(err)
	}
	if err := r.poll(1); err != nil {
		t.Errorf("what waited: %v", err)
	}
}

// TestResizeForgetsClosedQPs resizes a CQ that holds a closed QP's completions.
func TestResizeForgetsClosedQPs(t *testing.T) {
	r := newResizeRig(t, 7, 0)
	r.complete(&r.c.cqRing, 0)
	r.complete(&r.c.cqRing, 1)
	key := r.q.key
	r.q.Close()
	r.k.onResize = func(uint32, *abi.Mlx5_ib_resize_cq) { r.c.at(2).StoreLast(prm.CQEResize << 4) }
	if err := r.ucq.Resize(63); err != nil {
		t.Fatal(err)
	}
	if r.drv.qps.lookup(key) != nil || r.c.ci != 3 || r.c.db.Load(prm.CQCI) != 3 {
		t.Errorf("consumer index %d; the key is taken: %v", r.c.ci, r.drv.qps.lookup(key) != nil)
	}
	if n, err := r.c.Poll(make([]uverbs.WC, 4)); n != 0 || err != nil {
		t.Errorf("%d, %v", n, err)
	}
}
