package mlx5sim

import (
	"bytes"
	"math/rand/v2"
	"slices"
	"testing"
	"testing/synctest"
	"time"
)

// setFlaps sets flaps, and prints what replays them if the test fails.
func setFlaps(t testing.TB, d *Device, f Flaps, seed uint64) uint64 {
	t.Helper()
	seed, err := d.SetFlaps(f, seed)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("SetFlaps(%+v, %d)", f, seed)
	return seed
}

// turns records when a port goes down and up, for as long as the test sleeps.
func turns(d *Device, f Flaps, seed uint64, t *testing.T) (at []time.Duration) {
	begin := time.Now()
	setFlaps(t, d, f, seed)
	for down := false; time.Since(begin) < time.Second; time.Sleep(time.Microsecond * 50) {
		if now := d.isDown(); now != down {
			down = now
			at = append(at, time.Since(begin))
		}
	}
	setFlaps(t, d, Flaps{}, 0)
	return at
}

func TestFlapsComeFromTheSeed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newDuo(t, "RC")
		f := Flaps{Up: 20 * time.Millisecond, Down: 5 * time.Millisecond}
		one := turns(p.a.d, f, 7, t)
		if other := turns(p.b.d, f, 7, t); !slices.Equal(one, other) {
			t.Errorf("one seed: %v and %v", one, other)
		}
		if other := turns(p.a.d, f, 8, t); slices.Equal(one, other) {
			t.Error("two seeds do the same")
		}
		if n := len(one); n < 60 || n > 110 {
			t.Errorf("%d turns in a second", n)
		}
		last := time.Duration(0)
		for i, at := range one {
			mean := f.Up
			if i%2 == 1 {
				mean = f.Down
			}
			if d := at - last; d < mean/2-time.Millisecond || d > mean*3/2+time.Millisecond {
				t.Errorf("turn %d after %v, want about %v", i, d, mean)
			}
			last = at
		}
		if p.a.d.isDown() || p.b.d.isDown() {
			t.Error("the end of flapping leaves a port down")
		}
		if drawn := setFlaps(t, p.a.d, f, 0); drawn == 0 {
			t.Error("no seed was drawn")
		}
		before := len(p.a.asyncs())
		setFlaps(t, p.a.d, f, 9) // in place of the other
		time.Sleep(time.Second)
		if n := len(p.a.asyncs()); before == 0 || n < 60 || n > 110 {
			t.Errorf("%d events before, %d in a second", before, n)
		}
		if err := p.a.d.Close(); err != nil {
			t.Fatal(err)
		}
		if _, err := p.a.d.SetFlaps(f, 1); err != nil {
			t.Error(err)
		}
		time.Sleep(time.Second) // nothing of a closed device goes off
	})
}

func TestSetFlapsRefusesWhatNoPortCanDo(t *testing.T) {
	p := newDuo(t, "RC")
	for _, f := range []Flaps{{Up: time.Second}, {Down: time.Second}, {Up: -1, Down: -1}, {Up: time.Nanosecond, Down: time.Second}, {Up: time.Second, Down: 2 * time.Hour}} {
		if _, err := p.a.d.SetFlaps(f, 1); err == nil {
			t.Errorf("%+v was taken", f)
		}
	}
}

// TestTrafficOutlivesFlapsAndFaults has both ports flap while packets get lost,
// late and corrupt: everything arrives, once and in order.
func TestTrafficOutlivesFlapsAndFaults(t *testing.T) {
	for seed := range uint64(4) {
		synctest.Test(t, func(t *testing.T) {
			p := lossyPair(t, seed, Faults{Loss: 0.02, Duplicate: 0.02, Reorder: 0.02, Corrupt: 0.01, Delay: 10 * time.Microsecond})
			setFlaps(t, p.a.d, Flaps{Up: time.Millisecond, Down: 500 * time.Microsecond}, seed+1)
			setFlaps(t, p.b.d, Flaps{Up: 2 * time.Millisecond, Down: 700 * time.Microsecond}, seed+100)
			a, b := p.connect(qpOpts{sqSize: 256}, func(q *qp) {
				q.attr.pathMTU = 3
				q.attr.timeout = 12 // 16 ms: seven in a row are rare, and the seeds are fixed
				q.attr.rnrRetry = rnrInfinite
			})
			w := &workload{t: t, p: p, qa: a, qb: b, rng: rand.New(rand.NewPCG(seed, 7)), messages: 300,
				sizes: []uint32{0, 1, 1024, 1025, 4096, 9000}, idle: func() { time.Sleep(20 * time.Microsecond) }}
			w.run()
			if p.a.statsNow().Drops.PortDown == 0 || p.b.statsNow().Drops.PortDown == 0 {
				t.Error("no packet met a port that was down")
			}
			setFlaps(t, p.a.d, Flaps{}, 0)
			setFlaps(t, p.b.d, Flaps{}, 0)
		})
	}
}

// TestRemovalUnderLoad takes the device away at a time that a seed chooses, in
// the middle of traffic that faults disturb. What the peer has under way fails for
// want of answers, what succeeded before is whole, and nothing hangs.
func TestRemovalUnderLoad(t *testing.T) {
	for seed := range uint64(20) {
		synctest.Test(t, func(t *testing.T) {
			p := lossyPair(t, seed, Faults{Loss: 0.02, Reorder: 0.05, Delay: 20 * time.Microsecond, Bandwidth: 1e9})
			a, b := p.connect(qpOpts{sqSize: 64}, func(q *qp) { q.attr.timeout, q.attr.retryCnt = 11, 3 })
			src, dst := p.a.mr(16<<10, accessLocalWrite), p.b.mr(16<<10, accessLocalWrite|accessRemoteWrite|accessRemoteRead)
			data := bytes.Clone(p.a.fill(src, 7))
			rng := rand.New(rand.NewPCG(seed, 1))
			gone := time.AfterFunc(time.Duration(rng.IntN(3000))*time.Microsecond, func() { p.b.d.Close() })
			defer gone.Stop()
			posted, done, failed := 0, 0, 0
			for range 2000 {
				p.a.locked(func() {
					if posted-done < 32 && a.attr.state == stateRTS {
						op := uint8(opWrite)
						if rng.IntN(2) == 0 {
							op = opRead
						}
						n := rng.Uint32N(16 << 10)
						p.a.put(a, ctrl{op: op, flags: ce}, segRAddr(dst.iova, dst.key), src.sge(0, n))
						posted++
					}
				})
				p.a.ring(a)
				time.Sleep(20 * time.Microsecond)
				for _, g := range p.a.take(a.sendCQ) {
					if done++; g.op == cqeReq && failed == 0 {
						continue
					}
					if failed++; failed == 1 && g.syn != synRetryExc || failed > 1 && g.syn != synFlush {
						t.Fatalf("completion %d: %+v", done, g)
					}
				}
			}
			time.Sleep(time.Second)
			synctest.Wait()
			done += len(p.a.take(a.sendCQ))
			if posted != done || failed == 0 || b.attr.state == stateErr {
				t.Errorf("seed %d: %d posted, %d done, %d failed", seed, posted, done, failed)
			}
			p.a.locked(func() {
				if have := p.a.bytes(src); !bytes.Equal(have, data) { // READs bring back what WRITEs brought
					for i := range have {
						if have[i] != data[i] && have[i] != 0 {
							t.Fatalf("byte %d is %#x, and never was", i, have[i])
						}
					}
				}
			})
		})
	}
}
