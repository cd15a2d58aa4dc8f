// Package roce holds the packet formats of RoCEv2: the InfiniBand transport
// headers that follow UDP port 4791, and the invariant CRC that ends every
// packet.
//
// A packet, as this package sees it, is a UDP payload:
//
//	BTH 12 | extension headers by opcode | payload | pad 0-3 | ICRC 4
//
// Layouts are those of the InfiniBand Architecture Specification, volume 1,
// chapter 9 (transport) and annex A17 (RoCEv2). All fields are big-endian but
// the ICRC, which goes on the wire least significant byte first.
//
// Put methods write a header at the start of a slice that must have room for
// it, and panic otherwise: its caller laid the packet out. [Parse] takes
// anything from anywhere, returns views of its input, and allocates nothing.
package roce
