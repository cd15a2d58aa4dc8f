package mlx5sim

import (
	"bytes"
	"fmt"
	"math"
	"math/rand/v2"
	"net/netip"
	"runtime"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/rrppcc-go/rrppcc/internal/roce"
)

// setFaults sets faults, and prints what replays them if the test fails.
func setFaults(t testing.TB, d *Device, dir Direction, f Faults, seed uint64) uint64 {
	t.Helper()
	seed, err := d.SetFaults(dir, f, seed)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("SetFaults(%d, %+v, %d)", dir, f, seed)
	return seed
}

// numbered sends a packet with the PSN i and n bytes of payload.
func numbered(d *Device, to *path, i, n int) {
	d.fab.mu.Lock()
	defer d.fab.mu.Unlock()
	pkt := d.room(roce.Size(roce.RCSendMiddle, n))
	clear(pkt)
	h := roce.BTH{Opcode: roce.RCSendMiddle, Pad: uint8(roce.Pad(n)), PKey: defaultPKey, PSN: uint32(i)}
	h.Put(pkt)
	d.commit(to, pkt)
	d.sendBatch()
}

// outlet is a device that sends into nothing.
func outlet(t testing.TB) (*node, *captureLink, *path) {
	r := newRig(t)
	n := r.node(r.device("10.0.0.1"))
	link := &captureLink{}
	n.d.link = link
	to, ok := n.d.pathTo(netip.MustParseAddr("10.0.0.2").As16())
	if !ok {
		t.Fatal("no path")
	}
	return n, link, &to
}

// sent is what link has seen, by PSN, and whether the ICRC is right.
func (l *captureLink) sent(to *path) (psns []int) {
	for _, b := range l.pkts {
		psn := int(be.Uint32(b[8:]) & roce.PSNMask)
		if !to.flow.Valid(b) {
			psn = -1 // corrupt
		}
		psns = append(psns, psn)
	}
	l.pkts = nil
	return psns
}

var eachFault = []struct {
	name  string
	f     Faults
	count func(*FaultStats) uint64
}{
	{"loss", Faults{Loss: 0.05}, func(s *FaultStats) uint64 { return s.Lost }},
	{"duplicates", Faults{Duplicate: 0.2}, func(s *FaultStats) uint64 { return s.Duplicated }},
	{"reordering", Faults{Reorder: 0.1}, func(s *FaultStats) uint64 { return s.Reordered }},
	{"corruption", Faults{Corrupt: 0.05}, func(s *FaultStats) uint64 { return s.Corrupted }},
	{"delay", Faults{Delay: 300 * time.Microsecond, Jitter: 200 * time.Microsecond}, nil},
	{"bandwidth", Faults{Bandwidth: 1e9}, nil},
	{"a small buffer", Faults{Bandwidth: 1e9, Buffer: 8000}, func(s *FaultStats) uint64 { return s.Overflowed }},
	{"all", Faults{Loss: 0.02, Duplicate: 0.05, Reorder: 0.05, Corrupt: 0.02, Delay: 20 * time.Microsecond,
		Jitter: 20 * time.Microsecond, Bandwidth: 1e10}, func(s *FaultStats) uint64 { return s.Lost + s.Corrupted }},
}

// checkFaults compares what was done to packets with what the receiver dropped.
func checkFaults(t *testing.T, p *wirePair, count func(*FaultStats) uint64) {
	t.Helper()
	sa, sb := p.a.statsNow(), p.b.statsNow()
	t.Logf("a: %+v", sa)
	t.Logf("b: %+v", sb)
	if count != nil && (count(&sa.FaultsOut) == 0 || count(&sa.FaultsIn) == 0) {
		t.Error("the fault never happened")
	}
	for _, x := range []struct{ corrupted, dropped uint64 }{
		{sa.FaultsIn.Corrupted, sa.Drops.BadICRC + sa.Drops.Malformed},
		{sa.FaultsOut.Corrupted, sb.Drops.BadICRC + sb.Drops.Malformed},
	} {
		// A corrupt packet that is repeated is dropped twice.
		if x.dropped < x.corrupted || count == nil && x.dropped > 0 {
			t.Errorf("%d packets were corrupted and %d dropped for it", x.corrupted, x.dropped)
		}
	}
	if sb.FaultsOut != (FaultStats{}) || sb.FaultsIn != (FaultStats{}) {
		t.Error("b has faults, and none were set")
	}
}

func TestEachFaultCostsTimeAndNotData(t *testing.T) {
	for _, tt := range eachFault {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p := lossyPair(t, 0, Faults{})
				setFaults(t, p.a.d, BothWays, tt.f, 11)
				a, b := p.connect(qpOpts{sqSize: 256}, func(q *qp) {
					q.attr.pathMTU = 3
					q.attr.timeout = 11 // 8 ms
					q.attr.rnrRetry = rnrInfinite
				})
				w := &workload{t: t, p: p, qa: a, qb: b, rng: rand.New(rand.NewPCG(1, 7)), messages: 300,
					sizes: []uint32{0, 1, 1024, 1025, 4096, 9000}, idle: func() { time.Sleep(20 * time.Microsecond) }}
				w.run()
				time.Sleep(time.Second) // what is under way arrives
				synctest.Wait()
				checkFaults(t, p, tt.count)
			})
		})
	}
}

func TestEachFaultOverSockets(t *testing.T) {
	for _, tt := range eachFault {
		t.Run(tt.name, func(t *testing.T) {
			p := udpPair(t, openLink)
			seed := setFaults(t, p.a.d, BothWays, tt.f, 0)
			if seed == 0 {
				t.Fatal("the seed in use is 0")
			}
			a, b := p.connect(qpOpts{sqSize: 256}, func(q *qp) {
				q.attr.pathMTU = 3
				q.attr.timeout = 13 // 33 ms: a busy machine must not use up all retries
				q.attr.rnrRetry = rnrInfinite
			})
			w := &workload{t: t, p: p, qa: a, qb: b, rng: rand.New(rand.NewPCG(1, 7)), messages: 100,
				sizes: []uint32{0, 1, 1024, 1025, 4096, 9000}, idle: runtime.Gosched}
			w.run()
			s := p.a.statsNow()
			if tt.count != nil && tt.count(&s.FaultsOut)+tt.count(&s.FaultsIn) == 0 && tt.f.Buffer == 0 {
				t.Errorf("the fault never happened: %+v", s)
			}
		})
	}
}

// fates sends 1000 packets in virtual time and returns how they arrive, by the
// microsecond.
func fates(t *testing.T, seed uint64, size func(i int) int) (log []string) {
	synctest.Test(t, func(t *testing.T) {
		n, link, to := outlet(t)
		setFaults(t, n.d, Outbound, Faults{Loss: 0.1, Duplicate: 0.1, Reorder: 0.1, Corrupt: 0.1, Delay: 50 * time.Microsecond, Jitter: 30 * time.Microsecond}, seed)
		start := time.Now()
		look := func() {
			synctest.Wait()
			n.locked(func() {
				for _, psn := range link.sent(to) {
					log = append(log, fmt.Sprint(time.Since(start).Microseconds(), " ", psn))
				}
			})
		}
		for i := range 1000 {
			numbered(n.d, to, i, size(i))
			time.Sleep(5 * time.Microsecond)
			look()
		}
		for range 200 {
			time.Sleep(5 * time.Microsecond)
			look()
		}
		n.locked(func() {
			if len(n.d.out.held) != 0 || n.d.out.heldBytes != 0 {
				t.Errorf("%d packets of %d bytes are held still", len(n.d.out.held), n.d.out.heldBytes)
			}
			s := n.d.stats.FaultsOut
			if uint64(len(log)) != 1000-s.Lost+s.Duplicated || s.Lost < 60 || s.Duplicated < 60 || s.Reordered < 60 || s.Corrupted < 60 {
				t.Errorf("%d packets arrived: %+v", len(log), s)
			}
		})
	})
	return log
}

func TestASeedReplaysWhatHappened(t *testing.T) {
	full := func(int) int { return 1024 }
	one := fates(t, 5, full)
	if two := fates(t, 5, full); !slices.Equal(one, two) {
		t.Error("the same seed gives something else")
	}
	if two := fates(t, 6, full); slices.Equal(one, two) {
		t.Error("another seed gives the same")
	}
	if two := fates(t, 5, func(i int) int { return i }); !slices.Equal(one, two) {
		t.Error("the fate of a packet depends on what is in it")
	}
}

func TestDirectionsHaveChancesOfTheirOwn(t *testing.T) {
	n, _, _ := outlet(t)
	setFaults(t, n.d, BothWays, Faults{Loss: 0.5}, 9)
	if n.d.out.rng.Uint64() == n.d.in.rng.Uint64() {
		t.Error("both directions draw the same")
	}
}

func TestLostDatagramsAreLost(t *testing.T) {
	for _, dir := range []Direction{Outbound, Inbound} {
		u := newUDOverWire(t)
		at := u.a
		if dir == Inbound {
			at = u.b
		}
		setFaults(t, at.d, dir, Faults{Loss: 0.3}, 1)
		const rounds = 400
		arrived := 0
		for i := range rounds {
			u.b.recv(u.qb, u.mem.sge(0, 4136))
			u.a.send(u.qa, ctrl{op: opSend, flags: ce}, segAV(u.b.d.gids[0].gid, u.qb.qpn, 0x11111111), segInline([]byte{byte(i)}))
			if all := u.a.take(u.qa.sendCQ); len(all) != 1 || all[0].syn != synOK {
				t.Fatalf("datagram %d: %+v", i, all)
			}
			u.pass()
			if all := u.b.take(u.qb.recvCQ); len(all) == 1 {
				arrived++
				if got := u.b.bytes(u.mem)[40]; got != byte(i) {
					t.Fatalf("datagram %d brought %d", i, got)
				}
			} else {
				// Its receive is still there: the next one needs none.
				u.qb.rq.pi--
			}
		}
		s := at.statsNow()
		if lost := s.FaultsOut.Lost + s.FaultsIn.Lost; int(lost)+arrived != rounds || lost < rounds/5 || lost > rounds/2 {
			t.Errorf("direction %d: %d of %d arrived, %d were lost", dir, arrived, rounds, lost)
		}
	}
}

func TestPartitionHeals(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := lossyPair(t, 0, Faults{})
		a, _ := p.connect(qpOpts{sqSize: 64}, func(q *qp) { q.attr.timeout = 14 }) // 67 ms, 8 times
		src, dst := p.a.mr(64<<10, accessLocalWrite), p.b.mr(64<<10, accessLocalWrite|accessRemoteWrite)
		peer, other := p.a.d.addr, netip.MustParseAddr("10.0.0.3")
		write := func(seed byte) (done func() []got) {
			p.a.locked(func() { p.a.fill(src, seed) })
			p.a.send(a, ctrl{op: opWrite, flags: ce}, segRAddr(dst.iova, dst.key), src.sge(0, 64<<10))
			return func() []got { synctest.Wait(); return p.a.take(a.sendCQ) }
		}
		partition := func(dir Direction, peers ...netip.Addr) {
			if err := p.b.d.Partition(dir, peers...); err != nil {
				t.Fatal(err)
			}
		}
		for i, dir := range []Direction{Inbound, Outbound, BothWays} {
			partition(dir, other, netip.AddrFrom16(peer.As16()))
			done := write(byte(i))
			time.Sleep(200 * time.Millisecond)
			if all := done(); len(all) != 0 {
				t.Fatalf("through the partition: %+v", all)
			}
			partition(dir, other) // another host's absence does not matter
			time.Sleep(200 * time.Millisecond)
			if all := done(); len(all) != 1 || all[0].syn != synOK {
				t.Fatalf("healed: %+v", all)
			}
			p.a.locked(func() {
				p.b.locked(func() {
					if !bytes.Equal(p.a.bytes(src), p.b.bytes(dst)) {
						t.Error("data differ")
					}
				})
			})
			partition(dir)
			if p.b.d.in != nil || p.b.d.out != nil {
				t.Error("something stays of a partition that healed")
			}
		}
		if s := p.b.statsNow(); s.FaultsIn.Partitioned == 0 || s.FaultsOut.Partitioned == 0 {
			t.Errorf("%+v", s)
		}
		partition(BothWays, peer)
		done := write(9)
		time.Sleep(10 * time.Second)
		if all := done(); len(all) != 1 || all[0].syn != synRetryExc {
			t.Errorf("a partition that lasts: %+v", all)
		}
	})
}

// arrivals sends packets of 1000 bytes in one moment and returns when they
// arrive, and in which order.
func arrivals(t *testing.T, f Faults, packets int) (at []time.Duration, psns []int) {
	synctest.Test(t, func(t *testing.T) {
		n, link, to := outlet(t)
		setFaults(t, n.d, Outbound, f, 3)
		start := time.Now()
		for i := range packets {
			numbered(n.d, to, i, 1000-roce.BTHSize-roce.ICRCSize)
		}
		for range 1000 {
			n.locked(func() {
				for _, psn := range link.sent(to) {
					at, psns = append(at, time.Since(start)), append(psns, psn)
				}
			})
			time.Sleep(10 * time.Microsecond)
			synctest.Wait()
		}
	})
	return at, psns
}

func TestDelayAndBandwidthTakeTime(t *testing.T) {
	const us = time.Microsecond
	for _, tt := range []struct {
		name    string
		f       Faults
		packets int
		want    []time.Duration
	}{
		{"none", Faults{Duplicate: 1}, 1, []time.Duration{0, 0}},
		{"delay", Faults{Delay: 1000 * us}, 3, []time.Duration{1000 * us, 1000 * us, 1000 * us}},
		{"bandwidth", Faults{Bandwidth: 8e6}, 3, []time.Duration{1000 * us, 2000 * us, 3000 * us}},
		{"both", Faults{Bandwidth: 8e6, Delay: 500 * us}, 2, []time.Duration{1500 * us, 2500 * us}},
		{"buffer", Faults{Bandwidth: 8e6, Buffer: 2000}, 5, []time.Duration{1000 * us, 2000 * us}},
	} {
		got, _ := arrivals(t, tt.f, tt.packets)
		if !slices.Equal(got, tt.want) {
			t.Errorf("%s: %v, want %v", tt.name, got, tt.want)
		}
	}
	at, psns := arrivals(t, Faults{Jitter: 1000 * us}, 50)
	if !slices.IsSorted(psns) || at[0] == at[49] || at[49] > 1010*us {
		t.Errorf("jitter: %v at %v", psns, at)
	}
	if _, psns := arrivals(t, Faults{Reorder: 0.3}, 50); slices.IsSorted(psns) || len(psns) != 50 {
		t.Errorf("reordered: %v", psns)
	}
}

func TestFaultsThatEndKeepTheOrderOfWhatIsUnderWay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n, link, to := outlet(t)
		setFaults(t, n.d, Outbound, Faults{Delay: time.Second}, 1)
		numbered(n.d, to, 1, 10)
		setFaults(t, n.d, Outbound, Faults{}, 1)
		numbered(n.d, to, 2, 10)
		time.Sleep(2 * time.Second)
		synctest.Wait()
		n.locked(func() {
			if got := link.sent(to); !slices.Equal(got, []int{1, 2}) || n.d.out != nil {
				t.Errorf("%v arrived, impairment %+v", got, n.d.out)
			}
		})
		// A device that goes takes what it held with it.
		setFaults(t, n.d, Outbound, Faults{Delay: time.Second}, 1)
		numbered(n.d, to, 3, 10)
		if err := n.d.Close(); err != nil {
			t.Fatal(err)
		}
		if _, err := n.d.SetFaults(Outbound, Faults{}, 1); err != nil {
			t.Error("after Close:", err)
		}
		time.Sleep(2 * time.Second)
		synctest.Wait()
		n.locked(func() {
			if got := link.sent(to); len(got) != 0 {
				t.Errorf("a closed device sent %v", got)
			}
		})
	})
}

func TestFlippedBitsAreThoseThatTheICRCCovers(t *testing.T) {
	pkt := make([]byte, 24)
	seen := map[string]bool{}
	for n := range uint64(23 * 8) {
		b := flipped(pkt, n)
		if b[4] != 0 || bytes.Equal(b, pkt) || seen[string(b)] {
			t.Fatalf("bit %d: %x", n, b)
		}
		seen[string(b)] = true
	}
	for n := range 6 {
		flipped(make([]byte, n), 77) // must not panic
	}
}

func TestSetFaultsRefusesWhatNoLinkCanDo(t *testing.T) {
	n, _, _ := outlet(t)
	for _, f := range []Faults{{Loss: -0.1}, {Duplicate: 1.1}, {Reorder: math.NaN()}, {Corrupt: math.Inf(1)}, {Delay: -1},
		{Jitter: 2 * time.Hour}, {Bandwidth: -1}, {Bandwidth: 999}, {Buffer: -1}, {Buffer: 1<<30 + 1}} {
		if _, err := n.d.SetFaults(Outbound, f, 1); err == nil {
			t.Errorf("%+v is taken", f)
		}
	}
	for _, dir := range []Direction{0, 4, 0xff} {
		if _, err := n.d.SetFaults(dir, Faults{}, 1); err == nil {
			t.Errorf("direction %d is taken", dir)
		}
		if n.d.Partition(dir) == nil {
			t.Errorf("partition in direction %d", dir)
		}
	}
	if n.d.Partition(Inbound, netip.Addr{}) == nil {
		t.Error("partition from nobody")
	}
	if n.d.out != nil || n.d.in != nil {
		t.Error("a refused call left something")
	}
}
