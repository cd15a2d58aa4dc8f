package nexus

import (
	"net/netip"
	"testing"
)

func TestLocalAddressesAreKnown(t *testing.T) {
	for _, tc := range []struct {
		listen, addr string
		want         bool
	}{
		{"10.0.0.1:5", "10.0.0.1:5", true},
		{"10.0.0.1:5", "10.0.0.1:6", false},
		{"10.0.0.1:5", "127.0.0.1:5", false},
		{"[::]:5", "127.0.0.1:5", true},
		{"[::]:5", "[::1]:5", true},
		{"[::]:5", "127.0.0.1:6", false},
		{"0.0.0.0:5", "192.0.2.77:5", false},
		{"[fe80::1%eth0]:5", "[fe80::1]:5", true},
	} {
		n := &Nexus{addr: netip.MustParseAddrPort(tc.listen)}
		if got := n.isLocal(netip.MustParseAddrPort(tc.addr)); got != tc.want {
			t.Errorf("%s at %s: %v", tc.addr, tc.listen, got)
		}
	}
}
