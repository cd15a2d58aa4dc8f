package mlx5sim

import (
	"net"
	"net/netip"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/rrppcc-go/rrppcc/internal/roce"
)

// TestClassAndHopLimitOnIPv6 has a plain socket for a peer: IPv6's loopback
// interface has one address alone, and an address is one device.
func TestClassAndHopLimitOnIPv6(t *testing.T) {
	r := newRig(t)
	n := r.node(r.device("::1"))
	l, err := openLink(n.d)
	if err != nil {
		t.Skip("no IPv6 loopback address:", err)
	}
	n.locked(func() { n.d.link = l })
	t.Cleanup(func() {
		n.locked(func() {
			n.d.closed = true
			n.d.wire.stop()
		})
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	})
	conn, err := net.ListenUDP("udp6", &net.UDPAddr{IP: net.IPv6loopback})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	raw, err := conn.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	option := func(name, v int) {
		t.Helper()
		raw.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), unix.IPPROTO_IPV6, name, v) })
		if err != nil {
			t.Fatal(err)
		}
	}
	option(unix.IPV6_RECVTCLASS, 1)
	option(unix.IPV6_RECVHOPLIMIT, 1)
	here := conn.LocalAddr().(*net.UDPAddr).AddrPort()
	device := netip.AddrPortFrom(n.d.addr, roce.Port)
	q := n.qp("UD", qpOpts{})
	q.to(stateInit, stateRTR, stateRTS)
	mem := n.mr(64, accessLocalWrite)
	flow := roce.NewFlow(here, device)

	for _, c := range []ipClass{plainClass, {0x28, 7}, {0xe0, 255}, {3, 64}, {0, 1}} {
		option(unix.IPV6_TCLASS, int(c.traffic))
		option(unix.IPV6_UNICAST_HOPS, int(c.hops))
		pkt := make([]byte, roce.Size(roce.UDSendOnly, 0))
		h := roce.BTH{Opcode: roce.UDSendOnly, PKey: defaultPKey, DestQPN: q.qpn}
		h.Put(pkt)
		roce.DETH{QKey: 0x11111111, SrcQPN: 17}.Put(pkt[roce.BTHSize:])
		flow.Seal(pkt)
		n.locked(func() { n.recv(q, mem.sge(0, 64)) })
		if _, err := conn.WriteToUDPAddrPort(pkt, device); err != nil {
			t.Fatal(err)
		}
		n.await(q.recvCQ, 1)
		n.locked(func() {
			if b := n.bytes(mem); b[0]>>4 != 6 || b[0]<<4|b[1]>>4 != c.traffic || b[7] != c.hops {
				t.Errorf("received % x, want %+v", b[:8], c)
			}
		})

		// And out: as one packet, and as a run that the kernel cuts.
		for _, size := range []int{4, 8} {
			n.locked(func() {
				if k := l.send([]run{{to: here, class: c, size: size, b: make([]byte, 8)}}); k != 0 {
					t.Errorf("%d packets refused", k)
				}
			})
			for range 8 / size {
				oob := make([]byte, 128)
				conn.SetReadDeadline(time.Now().Add(10 * time.Second))
				_, k, _, _, err := conn.ReadMsgUDPAddrPort(make([]byte, 64), oob)
				if err != nil {
					t.Fatal(err)
				}
				msgs, err := unix.ParseSocketControlMessage(oob[:k])
				if err != nil || len(msgs) != 2 {
					t.Fatalf("%d control messages: %v", len(msgs), err)
				}
				var got ipClass
				for _, m := range msgs {
					if m.Header.Type == unix.IPV6_TCLASS {
						got.traffic = uint8(hostOrder.Uint32(m.Data))
					} else {
						got.hops = uint8(hostOrder.Uint32(m.Data))
					}
				}
				if got != c {
					t.Errorf("sent with %+v, want %+v", got, c)
				}
			}
		}
	}
}
