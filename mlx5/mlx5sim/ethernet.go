package mlx5sim

import "net/netip"

// What a RoCEv2 device needs of Ethernet: frames of IPv4 with UDP in it, and
// ARP (RFC 826) for IPv4.
const (
	etherBytes = 14 // destination, source, type
	ipv4Bytes  = 20 // without options
	arpBytes   = 28

	etherTypeIPv4 = 0x0800
	etherTypeARP  = 0x0806

	// frameHead is all before the packet.
	frameHead = etherBytes + ipv4Bytes + udpBytes

	// minFrame is what hardware pads frames to, without their checksum.
	minFrame = 60
)

var etherBroadcast = [6]byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}

func putEther(b []byte, dst, src [6]byte, typ uint16) {
	copy(b[0:], dst[:])
	copy(b[6:], src[:])
	be.PutUint16(b[12:], typ)
}

// putFrame lays out the headers of a packet of n bytes, which stands behind
// them. The IP header is the one that roce.Flow takes for granted: identification
// 0 and DF.
func putFrame(b []byte, dstMAC, srcMAC [6]byte, dst, src netip.AddrPort, class ipClass, n int) {
	putEther(b, dstMAC, srcMAC, etherTypeIPv4)
	var head [grhBytes]byte
	g := grh{src: src.Addr().As16(), dst: dst.Addr().As16(), trafficClass: class.traffic, hopLimit: class.hops, payload: udpBytes + n}
	g.put(&head)
	copy(b[etherBytes:], head[grhBytes-ipv4Bytes:])
	udp := b[etherBytes+ipv4Bytes:]
	be.PutUint16(udp[0:], src.Port())
	be.PutUint16(udp[2:], dst.Port())
	be.PutUint16(udp[4:], uint16(udpBytes+n))
	be.PutUint16(udp[6:], 0) // no checksum: the ICRC is stronger
}

// parseFrame finds the UDP datagram to the address and port of to in a frame to
// mac. A UDP checksum is not looked at.
func parseFrame(b []byte, mac [6]byte, to netip.AddrPort) (burst, bool) {
	if len(b) < frameHead || [6]byte(b) != mac || be.Uint16(b[12:]) != etherTypeIPv4 {
		return burst{}, false
	}
	ip := b[etherBytes:]
	n := int(be.Uint16(ip[2:]))
	// Without options and not a fragment. Behind n the frame may be padded.
	if ip[0] != 4<<4|5 || n > len(ip) || n < ipv4Bytes+udpBytes || be.Uint16(ip[6:])&0x3fff != 0 || ip[9] != 17 || ipv4Sum(ip) != 0xffff {
		return burst{}, false
	}
	udp := ip[ipv4Bytes:n]
	if netip.AddrFrom4([4]byte(ip[16:])) != to.Addr() || be.Uint16(udp[2:]) != to.Port() || int(be.Uint16(udp[4:])) != len(udp) {
		return burst{}, false
	}
	pkt := udp[udpBytes:]
	return burst{
		from:  netip.AddrPortFrom(netip.AddrFrom4([4]byte(ip[12:])), be.Uint16(udp)),
		class: ipClass{ip[1], ip[8]},
		size:  len(pkt),
		b:     pkt,
		ip:    ip[:ipv4Bytes],
	}, true
}

// ipv4Sum is the one's complement sum of an IPv4 header without options: all
// ones if its checksum is right.
func ipv4Sum(h []byte) uint16 {
	var sum uint32
	for i := 0; i < ipv4Bytes; i += 2 {
		sum += uint32(be.Uint16(h[i:]))
	}
	sum = sum&0xffff + sum>>16
	return uint16(sum&0xffff + sum>>16)
}

// arp is an ARP packet: who has the target's address, or what the sender's MAC
// is.
type arp struct {
	request     bool
	mac         [6]byte // of the sender
	sender      netip.Addr
	targetMAC   [6]byte // of a reply
	target      netip.Addr
	destination [6]byte // of the frame
}

// put lays out a whole frame, padded.
func (a *arp) put(b *[minFrame]byte) {
	*b = [minFrame]byte{}
	putEther(b[:], a.destination, a.mac, etherTypeARP)
	p := b[etherBytes:]
	be.PutUint16(p[0:], 1) // Ethernet
	be.PutUint16(p[2:], etherTypeIPv4)
	p[4], p[5] = 6, 4 // bytes of their addresses
	be.PutUint16(p[6:], 2)
	if a.request {
		be.PutUint16(p[6:], 1)
	}
	sender, target := a.sender.As4(), a.target.As4()
	copy(p[8:], a.mac[:])
	copy(p[14:], sender[:])
	copy(p[18:], a.targetMAC[:])
	copy(p[24:], target[:])
}

// parseARP reads an ARP packet for IPv4 on Ethernet.
func parseARP(b []byte) (arp, bool) {
	if len(b) < etherBytes+arpBytes || be.Uint16(b[12:]) != etherTypeARP {
		return arp{}, false
	}
	p := b[etherBytes:]
	op := be.Uint16(p[6:])
	if be.Uint16(p) != 1 || be.Uint16(p[2:]) != etherTypeIPv4 || p[4] != 6 || p[5] != 4 || op != 1 && op != 2 {
		return arp{}, false
	}
	a := arp{request: op == 1, mac: [6]byte(p[8:]), sender: netip.AddrFrom4([4]byte(p[14:])),
		targetMAC: [6]byte(p[18:]), target: netip.AddrFrom4([4]byte(p[24:])), destination: [6]byte(b)}
	// A sender without an address only looks whether the target's is taken.
	return a, a.mac[0]&1 == 0
}
