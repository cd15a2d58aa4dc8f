package mlx5sim

import (
	"bytes"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"runtime"
	"testing"
	"testing/synctest"
	"time"

	"github.com/rrppcc-go/rrppcc/internal/roce"
)

// segment is a device at the end of a wire, and the wire's other end. Writes
// and reads of a pipe are frame by frame.
func segment(t *testing.T) (*node, io.ReadWriteCloser) {
	here, there := net.Pipe()
	r := newRig(t)
	r.arena.mem = make([]byte, 4<<20)
	n := r.node(r.device("10.0.0.2"))
	attach(t, n, here)
	t.Cleanup(func() { there.Close() })
	return n, there
}

func attach(t *testing.T, n *node, frames io.ReadWriteCloser) {
	l := openEtherLink(n.d, frames)
	n.locked(func() { n.d.link = l })
	t.Cleanup(func() {
		n.locked(func() {
			n.d.closed = true
			n.d.wire.stop()
		})
		for range 2 {
			if err := l.Close(); err != nil {
				t.Error("close:", err)
			}
		}
	})
}

// frameOf reads a frame.
func frameOf(t *testing.T, wire io.Reader) []byte {
	t.Helper()
	b := make([]byte, maxFrame)
	n, err := wire.Read(b)
	if err != nil {
		t.Fatal(err)
	}
	return b[:n]
}

func write(t *testing.T, wire io.Writer, b []byte) {
	t.Helper()
	if _, err := wire.Write(b); err != nil {
		t.Fatal(err)
	}
}

func writeARP(t *testing.T, wire io.Writer, a arp) {
	t.Helper()
	var b [minFrame]byte
	a.put(&b)
	write(t, wire, b[:])
}

func TestMessagesOverEthernet(t *testing.T) {
	for _, mtu := range []uint8{3, 5} {
		t.Run(fmt.Sprintf("MTU %d", 128<<mtu), func(t *testing.T) {
			p := newPair(t, "10.0.0.1", "10.0.0.2")
			one, two := net.Pipe()
			attach(t, p.a, one)
			attach(t, p.b, two)
			a, b := p.connect(qpOpts{sqSize: 256}, func(q *qp) {
				q.attr.pathMTU = mtu
				q.attr.rnrRetry = rnrInfinite
			})
			w := &workload{t: t, p: p, qa: a, qb: b, rng: rand.New(rand.NewPCG(1, 7)), messages: 300,
				sizes: []uint32{0, 1, 4096, 4097, 65536}, idle: runtime.Gosched}
			w.run()
			for _, n := range []*node{p.a, p.b} {
				if s := n.statsNow(); s.Drops.Malformed+s.Drops.BadICRC > 0 || s.RxPackets == 0 {
					t.Errorf("%+v", s)
				}
			}
		})
	}
}

func TestEthernetDeviceAnswersARP(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, wire := segment(t)
		me, other := netip.MustParseAddr("10.0.0.2"), netip.MustParseAddr("10.0.0.9")
		writeARP(t, wire, arp{request: true, mac: testPeer, sender: other, target: netip.MustParseAddr("10.0.0.3"), destination: etherBroadcast})
		writeARP(t, wire, arp{request: true, mac: testPeer, sender: other, target: me, destination: etherBroadcast})
		got, ok := parseARP(frameOf(t, wire))
		if want := (arp{mac: testMAC, sender: me, targetMAC: testPeer, target: other, destination: testPeer}); !ok || got != want {
			t.Errorf("%+v, want %+v", got, want)
		}
	})
}

// sendTo has a UD QP of n send a datagram to the device at a.
func sendTo(n *node, q *qp, a string) {
	gid := netip.MustParseAddr(a).As16()
	n.locked(func() { n.put(q, ctrl{op: opSend}, segAV(gid, 5, 0x11111111), segInline([]byte("hello"))) })
	n.ring(q)
}

func TestPacketsWaitForARP(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n, wire := segment(t)
		q := n.qp("UD", qpOpts{})
		q.to(stateInit, stateRTR, stateRTS)
		const peer = "10.0.0.7"
		for i := range 3 {
			// Nobody answers the first two times.
			sendTo(n, q, peer)
			a, ok := parseARP(frameOf(t, wire))
			if !ok || !a.request || a.target != netip.MustParseAddr(peer) || a.mac != testMAC || a.destination != etherBroadcast {
				t.Fatalf("request %d: %+v, %v", i, a, ok)
			}
			sendTo(n, q, peer) // asks nobody again
			if i < 2 {
				time.Sleep(arpPause)
			}
		}
		synctest.Wait()
		writeARP(t, wire, arp{mac: testPeer, sender: netip.MustParseAddr(peer), targetMAC: testMAC, target: n.d.addr, destination: testMAC})
		for i := range 3 {
			if i == 2 {
				sendTo(n, q, peer) // knows the way
			}
			// The first four are lost.
			b := frameOf(t, wire)
			p, err := roce.Parse(b[frameHead:])
			if err != nil || [6]byte(b) != testPeer || p.PSN != q.attr.sqPSN+4+uint32(i) {
				t.Errorf("packet %d: to %x, %+v, %v", i, b[:6], p.BTH, err)
			}
		}
	})
}

func TestWaitingPacketsAndNeighborsAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n, wire := segment(t)
		asked := 0
		go func() {
			b := make([]byte, maxFrame)
			for {
				if _, err := wire.Read(b); err != nil {
					return
				}
				asked++
			}
		}()
		q := n.qp("UD", qpOpts{sqSize: 64})
		q.to(stateInit, stateRTR, stateRTS)
		const hosts = maxNeighbors + 100
		for i := range hosts {
			sendTo(n, q, fmt.Sprintf("10.1.%d.%d", i>>8, i&255))
			synctest.Wait()
			n.take(q.sendCQ)
		}
		if asked != maxNeighbors {
			t.Errorf("asked for %d neighbours, want %d", asked, maxNeighbors)
		}
		l := n.d.link.(*etherLink)
		waiting := 0
		for _, h := range l.neighbors {
			waiting += len(h.waiting)
		}
		if l.held != maxHeld || waiting != maxHeld {
			t.Errorf("%d packets are held, %d counted; want %d", waiting, l.held, maxHeld)
		}
	})
}

func TestEthernetDatagramShowsTheIPHeaderAsItCame(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n, wire := segment(t)
		q := n.qp("UD", qpOpts{})
		q.to(stateInit, stateRTR, stateRTS)
		mem := n.mr(4096, accessLocalWrite)
		n.locked(func() { n.recv(q, mem.sge(0, 4096)) })
		from, to := addrPort("10.0.0.1:51234"), addrPort("10.0.0.2:4791")
		pkt := make([]byte, roce.Size(roce.UDSendOnly, 8))
		h := roce.BTH{Opcode: roce.UDSendOnly, PKey: defaultPKey, DestQPN: q.qpn}
		h.Put(pkt)
		roce.DETH{QKey: 0x11111111, SrcQPN: 17}.Put(pkt[roce.BTHSize:])
		copy(pkt[roce.BTHSize+roce.DETHSize:], "datagram")
		flow := roce.NewFlow(from, to)
		flow.SetIdentification(0x1234, 0x4000)
		flow.Seal(pkt)

		b := make([]byte, frameHead+len(pkt))
		copy(b[frameHead:], pkt)
		putFrame(b, testMAC, testPeer, to, from, plainClass, len(pkt))
		write(t, wire, b) // identification 0: the ICRC is wrong
		ip := b[etherBytes:]
		ip[1], ip[8] = 0x28, 9
		be.PutUint16(ip[4:], 0x1234)
		be.PutUint16(ip[10:], 0)
		be.PutUint16(ip[10:], ^ipv4Sum(ip))
		write(t, wire, b)
		synctest.Wait()

		if s := n.statsNow(); s.Drops.BadICRC != 1 || s.RxPackets != 2 {
			t.Errorf("%+v", s)
		}
		if all := n.take(q.recvCQ); len(all) != 1 || all[0].syn != synOK {
			t.Fatalf("%+v", all)
		}
		got := n.bytes(mem)[:grhBytes+8]
		want := append(make([]byte, grhBytes-ipv4Bytes), ip[:ipv4Bytes]...)
		if want = append(want, "datagram"...); !bytes.Equal(got, want) {
			t.Errorf("received %x, want %x", got, want)
		}
	})
}

func TestEthernetWantsAnIPv4Address(t *testing.T) {
	here, there := net.Pipe()
	defer there.Close()
	defer here.Close()
	addr := WithAddr(netip.MustParseAddr("10.0.0.1"))
	for _, opts := range [][]Option{
		{WithEthernet(here)},
		{WithEthernet(here), WithAddr(netip.MustParseAddr("fd00::1"))},
		{WithEthernet(here), addr, InProcess()},
	} {
		if d, err := New(opts...); err == nil {
			d.Close()
			t.Error("accepted")
		}
	}
	d, err := New(WithEthernet(here), addr, WithFabric(NewFabric()))
	if err != nil {
		t.Fatal(err)
	}
	if err := d.Close(); err != nil {
		t.Error(err)
	}
	if _, err := here.Write([]byte{0}); err == nil {
		t.Error("Close left the frames open")
	}
}
