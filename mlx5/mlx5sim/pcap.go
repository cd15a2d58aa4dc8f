package mlx5sim

import (
	"encoding/binary"
	"net/netip"
	"time"
)

// The pcap file format (draft-ietf-opsawg-pcap), in the byte order of the magic
// number, for which any will do.
const (
	pcapMagicNano = 0xa1b23c4d // time stamps in nanoseconds
	pcapRaw       = 101        // LINKTYPE_RAW: IPv4 and IPv6 packets
	pcapSnap      = 65535

	// pcapRecordBytes is the most that stands before a packet.
	pcapRecordBytes = 16 + grhBytes + udpBytes
)

// appendPcapHeader begins a file.
func appendPcapHeader(b []byte) []byte {
	le := binary.LittleEndian
	b = le.AppendUint32(b, pcapMagicNano)
	b = le.AppendUint16(le.AppendUint16(b, 2), 4) // version
	b = append(b, make([]byte, 8)...)             // time zone and accuracy: 0
	return le.AppendUint32(le.AppendUint32(b, pcapSnap), pcapRaw)
}

// appendPcapRecord appends the UDP datagram pkt with its headers. class and ip
// are as in burst.
func appendPcapRecord(b []byte, at time.Time, src, dst netip.AddrPort, class ipClass, ip, pkt []byte) []byte {
	var head [grhBytes]byte
	g := grh{src: src.Addr().As16(), dst: dst.Addr().As16(), trafficClass: class.traffic, hopLimit: class.hops, payload: udpBytes + len(pkt)}
	switch {
	case ip != nil:
	case g.put(&head) == l3IPv4:
		ip = head[grhBytes-ipv4Bytes:]
	default:
		ip = head[:]
	}
	le := binary.LittleEndian
	size := uint32(len(ip) + udpBytes + len(pkt))
	b = le.AppendUint32(b, uint32(at.Unix()))
	b = le.AppendUint32(b, uint32(at.Nanosecond()))
	b = le.AppendUint32(le.AppendUint32(b, size), size)
	b = append(b, ip...)
	for _, v := range [...]uint16{src.Port(), dst.Port(), uint16(udpBytes + len(pkt)), 0} {
		b = be.AppendUint16(b, v)
	}
	return append(b, pkt...)
}
