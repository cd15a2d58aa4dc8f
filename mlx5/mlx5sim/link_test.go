package mlx5sim

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"runtime"
	"syscall"
	"testing"
	"time"

	"github.com/rrppcc-go/rrppcc/internal/roce"
)

// udpPair is two devices of two fabrics with sockets of their own on loopback
// addresses.
func udpPair(t testing.TB, open func(d *Device) (link, error)) *wirePair {
	if runtime.GOOS != "linux" {
		t.Skip("needs all of 127.0.0.0/8, which only Linux has on its loopback interface")
	}
	p := newPair(t, fmt.Sprint(randomLoopback()), fmt.Sprint(randomLoopback()))
	for _, n := range []*node{p.a, p.b} {
		l, err := open(n.d)
		if err != nil {
			t.Fatal(err)
		}
		n.locked(func() { n.d.link = l })
		t.Cleanup(func() {
			n.locked(func() {
				n.d.closed = true
				n.d.wire.stop()
			})
			if err := l.Close(); err != nil {
				t.Error("close:", err)
			}
			if err := l.Close(); err != nil {
				t.Error("close again:", err)
			}
		})
	}
	return p
}

func openPlain(d *Device) (link, error) {
	l, err := openNetLink(d)
	if err != nil {
		return nil, err
	}
	return l, nil
}

var links = []struct {
	name string
	open func(d *Device) (link, error)
}{{"native", openLink}, {"net", openPlain}}

func TestMessagesOverLoopbackSockets(t *testing.T) {
	for _, l := range links {
		for _, mtu := range []uint8{3, 5} {
			t.Run(fmt.Sprintf("%s/MTU %d", l.name, 128<<mtu), func(t *testing.T) {
				p := udpPair(t, l.open)
				a, b := p.connect(qpOpts{sqSize: 256}, func(q *qp) {
					q.attr.pathMTU = mtu
					q.attr.rnrRetry = rnrInfinite
					q.attr.timeout = 16 // a machine with much to do keeps the other side from answering
				})
				w := &workload{t: t, p: p, qa: a, qb: b, rng: rand.New(rand.NewPCG(1, 7)), messages: 500,
					sizes: []uint32{0, 1, 4096, 4097, 65536}, idle: runtime.Gosched}
				w.run()
				t.Logf("a: %+v", p.a.statsNow())
				t.Logf("b: %+v", p.b.statsNow())
			})
		}
	}
}

// await polls until the CQ has n completions.
func (n *node) await(c *cq, want int) (all []got) {
	n.t.Helper()
	for deadline := time.Now().Add(30 * time.Second); len(all) < want; runtime.Gosched() {
		all = append(all, n.take(c)...)
		if time.Now().After(deadline) {
			n.t.Fatalf("%d of %d completions after 30 s: %+v", len(all), want, n.statsNow())
		}
	}
	for _, g := range all {
		if g.syn != synOK {
			n.t.Fatalf("completion with %v", g.syn)
		}
	}
	return all
}

func TestLargeMessagesOverLoopbackSockets(t *testing.T) {
	for _, l := range links {
		for _, size := range []uint32{1 << 20, 16 << 20} {
			t.Run(fmt.Sprintf("%s/%d", l.name, size), func(t *testing.T) {
				p := udpPair(t, l.open)
				qa, qb := p.connect(qpOpts{}, func(q *qp) { q.attr.pathMTU = 5 })
				src := p.a.mr(uint64(size), accessLocalWrite)
				dst := p.b.mr(uint64(size), accessLocalWrite|accessRemoteRead|accessRemoteWrite)
				for i, op := range []uint8{opSend, opWrite, opRead} {
					seed := byte(i * 77)
					p.a.locked(func() {
						p.b.locked(func() {
							if op == opRead {
								clear(p.a.bytes(src))
								p.b.fill(dst, seed)
								return
							}
							clear(p.b.bytes(dst))
							p.a.fill(src, seed)
							p.b.recv(qb, dst.sge(0, size))
						})
						if op == opSend {
							p.a.put(qa, ctrl{op: op, flags: ce}, src.sge(0, size))
						} else {
							p.a.put(qa, ctrl{op: op, flags: ce}, segRAddr(dst.iova, dst.key), src.sge(0, size))
						}
					})
					p.a.ring(qa)
					p.a.await(qa.sendCQ, 1)
					if op == opSend {
						if g := p.b.await(qb.recvCQ, 1); g[0].bytes != size {
							t.Fatalf("%d bytes received", g[0].bytes)
						}
					}
					p.a.locked(func() {
						p.b.locked(func() {
							if string(p.a.bytes(src)) != string(p.b.bytes(dst)) {
								t.Errorf("opcode %#x: data differ", op)
							}
						})
					})
				}
			})
		}
	}
}

func TestLinkRefusesTakenAndForeignAddresses(t *testing.T) {
	p := udpPair(t, openLink)
	other := newRig(t).device(p.a.d.addr.String())
	for _, l := range links {
		if l, err := l.open(other); !errors.Is(err, syscall.EADDRINUSE) {
			t.Errorf("taken address: %v, %v", l, err)
		}
	}
	far := newRig(t).device("192.0.2.1")
	if l, err := openLink(far); !errors.Is(err, syscall.EADDRNOTAVAIL) {
		t.Errorf("an address of somebody else: %v, %v", l, err)
	}
}

func TestForgedDatagramsAreCountedAndDropped(t *testing.T) {
	p := udpPair(t, openLink)
	conn, err := net.DialUDP("udp4", nil, net.UDPAddrFromAddrPort(netip.AddrPortFrom(p.a.d.addr, roce.Port)))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	bad := make([]byte, 40)
	h := roce.BTH{Opcode: roce.RCAck, PKey: defaultPKey}
	h.Put(bad)
	for _, b := range [][]byte{{}, {1}, make([]byte, 15), make([]byte, 16), bad[:20], bad, make([]byte, 60000)} {
		if _, err := conn.Write(b); err != nil {
			t.Fatal(err)
		}
	}
	var s Stats
	for deadline := time.Now().Add(10 * time.Second); s.RxPackets < 6 && time.Now().Before(deadline); runtime.Gosched() {
		s = p.a.statsNow()
	}
	// The empty one has no packet in it.
	if s.RxPackets != 6 || s.Drops.Malformed+s.Drops.BadICRC != 6 {
		t.Errorf("%+v", s)
	}
}

// took polls for one completion as a program does, without the device's
// mutex: the race detector would object, so this is for benchmarks.
func (n *node) took(c *cq) bool {
	raw, ok := n.poll(c)
	if ok && raw[63]>>4 >= cqeReqErr {
		n.t.Fatalf("completion with %v", syndrome(raw[55]))
	}
	return ok
}

// spin waits for one completion by polling.
func (n *node) spin(c *cq) {
	for !n.took(c) {
		runtime.Gosched()
	}
}

// park waits for one completion on the CQ's channel.
func (n *node) park(c *cq) {
	var ev [8]byte
	for !n.took(c) {
		if n.arm(c, false); n.took(c) {
			return
		}
		if _, err := c.channel.ReadEvent(n.t.Context(), ev[:]); err != nil {
			n.t.Fatal(err)
		}
	}
}

// waits are the ways in which a program can wait for a completion.
var waits = []struct {
	name string
	for1 func(n *node, c *cq)
}{{"park", (*node).park}, {"spin", (*node).spin}}

// eachWay runs f for each link and way to wait.
func eachWay(b *testing.B, f func(b *testing.B, p *wirePair, wait func(n *node, c *cq))) {
	for _, l := range links {
		for _, w := range waits {
			b.Run(l.name+"/"+w.name, func(b *testing.B) {
				p := udpPair(b, l.open)
				cpu := cpuTime()
				f(b, p, w.for1)
				b.ReportMetric(float64((cpuTime()-cpu).Nanoseconds())/1000/float64(b.N), "cpu-us/op")
				b.ReportMetric(float64(p.a.statsNow().Retransmits)/float64(b.N), "retransmits/op")
			})
		}
	}
}

func BenchmarkRead1MiBOverUDP(b *testing.B) {
	eachWay(b, func(b *testing.B, p *wirePair, wait func(n *node, c *cq)) {
		qa, _ := p.connect(qpOpts{}, func(q *qp) { q.attr.pathMTU = 5 })
		const size = 1 << 20
		src := p.a.mr(size, accessLocalWrite)
		dst := p.b.mr(size, accessRemoteRead)
		b.SetBytes(size)
		for b.Loop() {
			p.a.locked(func() {
				p.a.put(qa, ctrl{op: opRead, flags: ce}, segRAddr(dst.iova, dst.key), src.sge(0, size))
			})
			p.a.ring(qa)
			wait(p.a, qa.sendCQ)
		}
	})
}

func BenchmarkUDPingPongOverUDP(b *testing.B) {
	eachWay(b, func(b *testing.B, p *wirePair, wait func(n *node, c *cq)) {
		type end struct {
			*node
			q   *qp
			mem *mr
		}
		ends := [2]end{{node: p.a}, {node: p.b}}
		for i := range ends {
			e := &ends[i]
			e.q = e.qp("UD", qpOpts{})
			e.mem = e.mr(4096, accessLocalWrite)
			e.q.to(stateInit, stateRTR, stateRTS)
		}
		one := func(from, to *end) {
			to.locked(func() { to.recv(to.q, to.mem.sge(0, 4096)) })
			from.locked(func() {
				from.put(from.q, ctrl{op: opSend}, segAV(to.d.gids[0].gid, to.q.qpn, 0x11111111), segInline(make([]byte, 32)))
			})
			from.ring(from.q)
			wait(to.node, to.q.recvCQ)
		}
		for b.Loop() {
			one(&ends[0], &ends[1])
			one(&ends[1], &ends[0])
		}
	})
}

// BenchmarkSocketPackets sends packets of 4 KiB through two links and counts
// what arrives.
func BenchmarkSocketPackets(b *testing.B) {
	for _, gso := range []bool{true, false} {
		for _, size := range []int{64, 4096} {
			b.Run(fmt.Sprintf("gso %v/%d", gso, size), func(b *testing.B) {
				p := udpPair(b, openLink)
				setGSO(p.a.d.link, gso)
				to := netip.AddrPortFrom(p.b.d.addr, roce.Port)
				path, _ := p.a.d.pathTo(p.b.d.addr.As16())
				path.to = to
				sent := 0
				b.SetBytes(int64(size))
				for b.Loop() {
					p.a.locked(func() {
						pkt := p.a.d.room(roce.Size(roce.RCSendMiddle, size))
						h := roce.BTH{Opcode: roce.RCSendMiddle, PKey: defaultPKey}
						h.Put(pkt)
						p.a.d.commit(&path, pkt)
					})
					if sent++; sent%60 == 0 {
						p.a.locked(p.a.d.sendBatch)
						for p.b.statsNow().RxPackets+256 < uint64(sent) {
							runtime.Gosched()
						}
					}
				}
				s := p.a.statsNow()
				b.ReportMetric(float64(s.Drops.LinkTx)/float64(b.N), "refused/op")
			})
		}
	}
}
