package roce

import (
	"hash/crc32"
	"net/netip"
)

// Flow computes the ICRCs of the packets of one pair of UDP addresses.
//
// The ICRC (IBTA 7.8.1, annex A17.3.3) is the Ethernet CRC-32 over eight
// bytes of ones in the place of an LRH, the IP and UDP headers, and the packet
// up to the ICRC, where every field that may change on the way counts as ones:
// TOS, TTL and header checksum of IPv4; traffic class, flow label and hop
// limit of IPv6; the UDP checksum; BTH's FECN and BECN byte.
//
// IPv4's identification and flags are covered. A Flow takes them to be 0 and
// DF, as Linux sends them from an unconnected socket with IP_PMTUDISC_DO, until
// SetIdentification says otherwise.
//
// The CRC of the headers up to BTH depends on the length alone, so it is kept
// for the last one: a run of full-size packets costs one pass over the packet.
// A Flow is for one goroutine at a time. The zero Flow is not usable.
type Flow struct {
	hdr    [8 + 40 + 8]byte
	n      int    // bytes of hdr in use
	ip     int    // bytes of IP header
	length int    // of the packet that prefix is for, 0 = none
	prefix uint32 // CRC of hdr[:n]
}

// NewFlow is the flow of packets from src to dst, both IPv4 (or IPv4-mapped)
// or both IPv6.
func NewFlow(src, dst netip.AddrPort) Flow {
	var f Flow
	h := f.hdr[:]
	for i := range 8 {
		h[i] = 0xff
	}
	s, d := src.Addr().Unmap(), dst.Addr().Unmap()
	ip := h[8:]
	if s.Is4() && d.Is4() {
		f.ip = 20
		ip[0], ip[1] = 0x45, 0xff // version and IHL; TOS
		ip[6] = 0x40              // DF
		ip[8], ip[9] = 0xff, 17   // TTL, UDP
		ip[10], ip[11] = 0xff, 0xff
		s4, d4 := s.As4(), d.As4()
		copy(ip[12:], s4[:])
		copy(ip[16:], d4[:])
	} else {
		f.ip = 40
		ip[0], ip[1], ip[2], ip[3] = 0x6f, 0xff, 0xff, 0xff // version; traffic class, flow label
		ip[6], ip[7] = 17, 0xff                             // UDP, hop limit
		s16, d16 := s.As16(), d.As16()
		copy(ip[8:], s16[:])
		copy(ip[24:], d16[:])
	}
	udp := ip[f.ip:]
	be.PutUint16(udp, src.Port())
	be.PutUint16(udp[2:], dst.Port())
	udp[6], udp[7] = 0xff, 0xff
	f.n = 8 + f.ip + 8
	return f
}

// SetIdentification says what the next packets have in the second word of their
// IPv4 header: the identification, and the flags with the fragment offset. It
// must not be called on a flow of IPv6 packets, which have neither.
func (f *Flow) SetIdentification(id, flags uint16) {
	ip := f.hdr[8:]
	be.PutUint16(ip[4:], id)
	be.PutUint16(ip[6:], flags)
	f.length = 0
}

// sum returns the ICRC of the packet pkt, of which the last four bytes are
// room for it. pkt[4] is ones meanwhile.
func (f *Flow) sum(pkt []byte) uint32 {
	if len(pkt) != f.length {
		ip := f.hdr[8:]
		if f.ip == 20 {
			be.PutUint16(ip[2:], uint16(20+8+len(pkt)))
		} else {
			be.PutUint16(ip[4:], uint16(8+len(pkt)))
		}
		be.PutUint16(ip[f.ip+4:], uint16(8+len(pkt)))
		f.length = len(pkt)
		f.prefix = crc32.Update(0, crc32.IEEETable, f.hdr[:f.n])
	}
	congestion := pkt[4]
	pkt[4] = 0xff
	crc := crc32.Update(f.prefix, crc32.IEEETable, pkt[:len(pkt)-ICRCSize])
	pkt[4] = congestion
	return crc
}

// Seal stores the ICRC in the last four bytes of pkt, a whole packet of at
// least 16 bytes.
func (f *Flow) Seal(pkt []byte) {
	crc := f.sum(pkt)
	le := pkt[len(pkt)-ICRCSize:]
	le[0], le[1], le[2], le[3] = byte(crc), byte(crc>>8), byte(crc>>16), byte(crc>>24)
}

// Valid reports whether pkt ends in its ICRC. It writes to pkt while it
// computes, and leaves it as it was.
func (f *Flow) Valid(pkt []byte) bool {
	if len(pkt) < BTHSize+ICRCSize {
		return false
	}
	le := pkt[len(pkt)-ICRCSize:]
	return f.sum(pkt) == uint32(le[0])|uint32(le[1])<<8|uint32(le[2])<<16|uint32(le[3])<<24
}
