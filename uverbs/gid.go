package uverbs

import (
	"fmt"
	"net/netip"
)

// GID is a 128-bit port address in network order. On RoCE it is an IPv6
// address, or an IPv4 address mapped into ::ffff:0:0/96.
type GID [16]byte

// GIDFromAddr returns the RoCEv2 GID of an IP address.
func GIDFromAddr(a netip.Addr) GID { return GID(a.As16()) }

// Addr returns the GID as an IP address; an IPv4-mapped GID as IPv4.
func (g GID) Addr() netip.Addr { return netip.AddrFrom16(g).Unmap() }

// IsZero reports whether the GID is all zeros, as an empty table slot reads.
func (g GID) IsZero() bool { return g == GID{} }

// String formats the GID as an IPv6 address.
func (g GID) String() string { return netip.AddrFrom16(g).String() }

// GIDType is enum ib_uverbs_gid_type.
type GIDType uint8

const (
	GIDTypeIB     GIDType = 0
	GIDTypeRoCEv1 GIDType = 1
	GIDTypeRoCEv2 GIDType = 2
)

func (t GIDType) String() string {
	switch t {
	case GIDTypeIB:
		return "IB"
	case GIDTypeRoCEv1:
		return "RoCE v1"
	case GIDTypeRoCEv2:
		return "RoCE v2"
	}
	return fmt.Sprintf("GIDType(%d)", uint8(t))
}

// GIDEntry is one filled slot of a port's GID table.
type GIDEntry struct {
	GID     GID
	Port    uint8
	Index   int
	Type    GIDType
	IfIndex int // netdev of a RoCE GID in the device's network namespace; 0 = none
}
