package mlx5sim

// grh is the network header of a datagram as the first 40 bytes of the
// receive buffers show it: for IPv4 20 bytes of zero and the IPv4 header, else an
// IPv6 header, which has the GRH's layout, or with RoCE v1 the GRH itself.
type grh struct {
	v1           bool
	src, dst     [16]byte
	trafficClass uint8
	flowLabel    uint32
	hopLimit     uint8
	payload      int // bytes behind the IP header: UDP to ICRC
}

const udpBytes = 8 // UDP header

// udWireBytes is how long the UDP datagram of a UD SEND of n bytes is: UDP 8,
// BTH 12, DETH 8, immediate 4, data padded to 4, ICRC 4.
func udWireBytes(n uint64, imm bool) int {
	size := udpBytes + 12 + 8 + int(n+3)&^3 + 4
	if imm {
		size += 4
	}
	return size
}

// l3Of is the network header type that a destination GID asks for.
func l3Of(gid [16]byte) uint8 {
	if isIPv4(gid) {
		return l3IPv4
	}
	return l3IPv6
}

// put lays the header out and returns its type.
func (g *grh) put(b *[grhBytes]byte) uint8 {
	*b = [grhBytes]byte{}
	if g.v1 || l3Of(g.dst) == l3IPv6 {
		be.PutUint32(b[0:], 6<<28|uint32(g.trafficClass)<<20|g.flowLabel&0xfffff)
		be.PutUint16(b[4:], uint16(g.payload))
		b[6] = 17 // UDP
		b[7] = g.hopLimit
		copy(b[8:], g.src[:])
		copy(b[24:], g.dst[:])
		if g.v1 {
			be.PutUint16(b[4:], uint16(g.payload-udpBytes))
			b[6] = 0x1b // BTH is next
			return l3GRH
		}
		return l3IPv6
	}
	h := b[20:]
	h[0] = 4<<4 | 5
	h[1] = g.trafficClass
	be.PutUint16(h[2:], uint16(20+g.payload))
	h[6] = 0x40 // don't fragment
	h[8] = g.hopLimit
	h[9] = 17
	copy(h[12:], g.src[12:])
	copy(h[16:], g.dst[12:])
	be.PutUint16(h[10:], ^ipv4Sum(h))
	return l3IPv4
}
