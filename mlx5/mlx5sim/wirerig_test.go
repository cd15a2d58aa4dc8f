package mlx5sim

import (
	"net/netip"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/rrppcc-go/rrppcc/internal/roce"
)

// wirePair is two devices of two fabrics that reach each other by a link alone.
type wirePair struct {
	a, b *node
}

// newPair makes two devices without links.
func newPair(t testing.TB, addrA, addrB string) *wirePair {
	one := func(addr string) *node {
		r := newRig(t)
		r.arena.mem = make([]byte, 4<<20)
		return r.node(r.device(addr))
	}
	return &wirePair{one(addrA), one(addrB)}
}

// lossyPair connects the two by links that treat packets as f says. Seeds count
// from 0.
func lossyPair(t testing.TB, seed uint64, f Faults) *wirePair {
	p := newPair(t, "10.0.0.1", "10.0.0.2")
	for i, n := range []*node{p.a, p.b} {
		peer := []*node{p.b, p.a}[i]
		n.d.link = &testLink{from: netip.AddrPortFrom(n.d.addr, roce.Port), to: peer.d}
		if _, err := n.d.SetFaults(Outbound, f, 2*seed+1+uint64(i)); err != nil {
			t.Fatal(err)
		}
	}
	return p
}

// connect makes an RC QP on each side and connects them.
func (p *wirePair) connect(o qpOpts, set func(q *qp)) (a, b *qp) { return p.connectOf("RC", o, set) }

func (p *wirePair) connectOf(typ string, o qpOpts, set func(q *qp)) (a, b *qp) {
	a, b = p.a.qp(typ, o), p.b.qp(typ, o)
	for _, q := range []*qp{a, b} {
		q.attr.minRNRTimer = 1 // 10 us
		q.attr.retryCnt = 7
		if set != nil {
			set(q)
		}
	}
	connect(a, b)
	return a, b
}

// locked runs f as the device's own code runs: nothing of the device runs
// beside it. Tests that have goroutines behind a link touch queues only so.
func (n *node) locked(f func()) {
	n.d.fab.mu.Lock()
	defer n.d.fab.mu.Unlock()
	f()
}

func (n *node) take(c *cq) (all []got) {
	n.locked(func() { all = n.pollAll(c) })
	return all
}

func (n *node) statsNow() (s Stats) {
	n.locked(func() { s = n.d.stats })
	return s
}

// testLink carries packets in the time of the test. It is perfect: what goes
// wrong is up to the device's faults.
type testLink struct {
	from netip.AddrPort
	to   *Device

	mu    sync.Mutex
	queue [][]byte
	inOut sync.Mutex // held while packets are delivered, in order
}

func (l *testLink) send(runs []run) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	for i := range runs {
		for pkt := range slices.Chunk(runs[i].b, runs[i].size) {
			l.queue = append(l.queue, slices.Clone(pkt))
		}
	}
	time.AfterFunc(time.Microsecond, l.arrive)
	return 0
}

func (l *testLink) arrive() {
	l.inOut.Lock()
	defer l.inOut.Unlock()
	l.mu.Lock()
	due := l.queue
	l.queue = nil
	l.mu.Unlock()
	bursts := make([]burst, 0, len(due))
	for _, b := range due {
		bursts = append(bursts, burst{from: l.from, class: plainClass, size: len(b), b: b})
	}
	if len(bursts) > 0 {
		l.to.deliver(bursts)
	}
}

func (l *testLink) Close() error { return nil }

// captureLink keeps what a device sends.
type captureLink struct {
	pkts  [][]byte
	runs  int
	quiet bool // count only
	n     int
}

func (l *captureLink) send(runs []run) int {
	l.runs += len(runs)
	for i := range runs {
		l.n += runs[i].packets()
		if l.quiet {
			continue
		}
		for pkt := range slices.Chunk(runs[i].b, runs[i].size) {
			l.pkts = append(l.pkts, slices.Clone(pkt))
		}
	}
	return 0
}

func (l *captureLink) Close() error { return nil }

// take parses and forgets what was sent.
func (l *captureLink) take(t testing.TB) (out []roce.Packet) {
	t.Helper()
	for _, b := range l.pkts {
		p, err := roce.Parse(b)
		if err != nil {
			t.Fatalf("the device sent %x: %v", b, err)
		}
		out = append(out, p)
	}
	l.pkts = nil
	return out
}

// stranger is a device's peer that the test plays itself, packet by packet.
type stranger struct {
	*node
	q    *qp
	link *captureLink
	addr netip.AddrPort
	flow roce.Flow
}

// newStranger connects an RC QP to a peer that does not exist. The QP sends
// from PSN 0x100 on and expects 0x200.
func newStranger(t testing.TB, set func(q *qp)) *stranger { return newStrangerOf(t, "RC", set) }

func newStrangerOf(t testing.TB, typ string, set func(q *qp)) *stranger {
	r := newRig(t)
	r.arena.mem = make([]byte, 4<<20)
	s := &stranger{node: r.node(r.device("10.0.0.1")), link: &captureLink{}, addr: netip.MustParseAddrPort("10.0.0.2:4791")}
	s.d.link = s.link
	s.flow = roce.NewFlow(s.addr, netip.AddrPortFrom(s.d.addr, roce.Port))
	s.q = s.qp(typ, qpOpts{})
	s.q.attr.destQPN = 0x77
	s.q.attr.dest.dgid = s.addr.Addr().As16()
	s.q.attr.sqPSN, s.q.attr.rqPSN = 0x100, 0x200
	if set != nil {
		set(s.q)
	}
	s.q.to(stateInit, stateRTR, stateRTS)
	t.Cleanup(func() { s.locked(s.d.wire.stop) })
	return s
}

// packet makes a packet to the stranger's QP: ext are its extension headers.
func (s *stranger) packet(h roce.BTH, ext, data []byte) []byte {
	h.Pad = uint8(roce.Pad(len(data)))
	h.PKey = defaultPKey
	h.DestQPN = s.q.qpn
	b := make([]byte, roce.Size(h.Opcode, len(data)))
	h.Put(b)
	copy(b[roce.BTHSize:], ext)
	copy(b[h.Opcode.HeaderSize():], data)
	s.flow.Seal(b)
	return b
}

// give delivers packets as one burst each, all in one critical section.
func (s *stranger) give(pkts ...[]byte) {
	var in []burst
	for _, p := range pkts {
		in = append(in, burst{from: s.addr, size: len(p), b: p})
	}
	s.d.deliver(in)
}

func reth(va uint64, rkey, n uint32) []byte {
	b := make([]byte, roce.RETHSize)
	roce.RETH{VA: va, RKey: rkey, Length: n}.Put(b)
	return b
}

func aeth(s roce.Syndrome) []byte {
	b := make([]byte, roce.AETHSize)
	roce.AETH{Syndrome: s}.Put(b)
	return b
}
