package mlx5sim

import (
	"net"
	"net/netip"
	"testing"

	"github.com/rrppcc-go/rrppcc/internal/roce"
	"golang.org/x/sys/unix"
)

// TestSocketSendsTheIPHeaderThatTheICRCCovers looks at packets as they pass the
// loopback interface: what a RoCE adapter would check against the ICRC.
func TestSocketSendsTheIPHeaderThatTheICRCCovers(t *testing.T) {
	const ethPIP = 0x0800
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, ethPIP>>8|ethPIP&0xff<<8)
	if err != nil {
		t.Skip("needs CAP_NET_RAW:", err)
	}
	defer unix.Close(fd)
	lo, err := net.InterfaceByName("lo")
	if err != nil {
		t.Skip(err)
	}
	if err := unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: ethPIP >> 8, Ifindex: lo.Index}); err != nil {
		t.Fatal(err)
	}
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: 5}); err != nil {
		t.Fatal(err)
	}
	p := udpPair(t, openLink)
	setGSO(p.a.d.link, false) // packet by packet, as to another host
	path, _ := p.a.d.pathTo(p.b.d.addr.As16())
	const packets = 3
	p.a.locked(func() {
		for i := range packets {
			pkt := p.a.d.room(roce.Size(roce.RCSendMiddle, 1024))
			clear(pkt)
			h := roce.BTH{Opcode: roce.RCSendMiddle, PKey: defaultPKey, PSN: uint32(i)}
			h.Put(pkt)
			p.a.d.commit(&path, pkt)
		}
		p.a.d.sendBatch()
	})
	buf := make([]byte, 65536)
	for seen := 0; seen < packets; {
		n, _, err := unix.Recvfrom(fd, buf, 0)
		if err != nil {
			t.Fatalf("after %d of %d packets: %v", seen, packets, err)
		}
		ip := buf[:n]
		if n < 28 || ip[0] != 0x45 || ip[9] != 17 || netip.AddrFrom4([4]byte(ip[16:20])) != p.b.d.addr {
			continue
		}
		if id, flags := be.Uint16(ip[4:]), be.Uint16(ip[6:]); id != 0 || flags != 0x4000 {
			t.Errorf("packet %d: identification %d, flags %#x", seen, id, flags)
		}
		udp := ip[20:]
		f := roce.NewFlow(netip.AddrPortFrom(netip.AddrFrom4([4]byte(ip[12:16])), be.Uint16(udp)), netip.AddrPortFrom(p.b.d.addr, be.Uint16(udp[2:])))
		if !f.Valid(udp[8:]) {
			t.Errorf("packet %d: ICRC is wrong", seen)
		}
		seen++
	}
}
