package nexus

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strconv"
)

// splitURI takes "host:port" apart.
func splitURI(uri string) (host string, port uint16, err error) {
	host, service, err := net.SplitHostPort(uri)
	if err != nil {
		return "", 0, fmt.Errorf("nexus: URI %q: want host:port, such as 10.0.0.1:31850: %w", uri, err)
	}
	p, err := strconv.ParseUint(service, 10, 16)
	if err != nil {
		return "", 0, fmt.Errorf("nexus: URI %q: port %q is not a number from 0 to 65535", uri, service)
	}
	return host, uint16(p), nil
}

// resolve returns the addresses of host, IPv4 first: a name with both is more
// often served at that one (localhost is). There is at least one.
func resolve(ctx context.Context, uri, host string) ([]netip.Addr, error) {
	if ip, err := netip.ParseAddr(host); err == nil {
		return []netip.Addr{ip.Unmap()}, nil
	}
	ips, err := net.DefaultResolver.LookupNetIP(ctx, "ip", host)
	if err == nil && len(ips) == 0 {
		err = fmt.Errorf("no address")
	}
	if err != nil {
		return nil, fmt.Errorf("nexus: URI %q: host %s does not resolve: %w; check the name, or give an IP address", uri, host, err)
	}
	for i := range ips {
		ips[i] = ips[i].Unmap()
	}
	slices.SortStableFunc(ips, func(a, b netip.Addr) int { return a.BitLen() - b.BitLen() })
	return ips, nil
}

// reachable keeps the addresses that a socket bound to local can send to.
func reachable(local netip.Addr, ips []netip.Addr) []netip.Addr {
	return slices.DeleteFunc(ips, func(ip netip.Addr) bool {
		if local.Is4() {
			return !ip.Is4()
		}
		return !local.IsUnspecified() && ip.Is4()
	})
}
