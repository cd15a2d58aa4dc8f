package uverbs

import (
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
)

// netdev is a network interface of this process's network namespace.
type netdev struct {
	index    int
	name     string
	up       bool
	loopback bool
	addrs    []netip.Addr // IPv4 as such, not mapped; no zones
}

// holds reports whether packets to a reach this interface's host. The loopback
// interface answers for all of 127.0.0.0/8.
func (d *netdev) holds(a netip.Addr) bool {
	return slices.Contains(d.addrs, a) || d.loopback && a.Is4() && a.IsLoopback()
}

// hostNetdevs lists the interfaces of this network namespace.
func hostNetdevs() ([]netdev, error) {
	ifaces, err := net.Interfaces()
	if err != nil {
		return nil, err
	}
	devs := make([]netdev, 0, len(ifaces))
	for _, iface := range ifaces {
		d := netdev{index: iface.Index, name: iface.Name, up: iface.Flags&net.FlagUp != 0, loopback: iface.Flags&net.FlagLoopback != 0}
		addrs, err := iface.Addrs()
		if err != nil {
			continue // it was removed since it was listed
		}
		for _, a := range addrs {
			if p, err := netip.ParsePrefix(a.String()); err == nil {
				d.addrs = append(d.addrs, p.Addr().Unmap().WithZone(""))
			}
		}
		devs = append(devs, d)
	}
	return devs, nil
}

// candidate is an entry of the GID table with what speaks for or against it.
type candidate struct {
	GIDEntry
	netdev string // of the GID, "" if unknown
	rank   int    // smaller is better
	why    string // why it cannot be used; "" if it can
}

// Ranks of usable GIDs. IPv4 comes first because that is what the rest of a
// cluster speaks by default; an address that only this host knows comes last.
const (
	rankIPv4 = iota
	rankIPv6
	rankLoopback
)

func (c *candidate) String() string {
	s := fmt.Sprintf("index %d: %s", c.Index, c.Type)
	if c.Type == GIDTypeRoCEv2 {
		s += " " + c.GID.Addr().String()
	} else {
		s += " " + c.GID.String()
	}
	if c.netdev != "" {
		s += " of " + c.netdev
	}
	if c.why != "" {
		s += ": " + c.why
	}
	return s
}

// ChooseGID chooses the entry of the port's GID table that a program here should
// use as its own address, and says why in words for a log. An index of 0 or
// more asks for that entry, which is checked; a negative one leaves the choice
// to the function:
//
// On RoCE it takes the RoCE v2 entry of an interface that is up in this
// process's network namespace and holds the address: IPv4 before global IPv6
// before loopback, and then the lowest index. On InfiniBand it takes entry 0.
//
// The port must be active, or else the error wraps [ErrPortDown]. Where no entry
// will do, the error wraps [ErrNoGID] and says of each why not.
func (c *Context) ChooseGID(port uint8, index int) (GIDEntry, string, error) {
	object := fmt.Sprintf("GID of port %d of %s", port, c.dev.Name())
	attr, err := c.QueryPort(port)
	if err != nil {
		return GIDEntry{}, "", err
	}
	if attr.State != PortActive {
		return GIDEntry{}, "", &Error{Op: "choose", Object: object, Err: fmt.Errorf("%w but %s", ErrPortDown, attr.State),
			Hint: "check the cable and the interface (ip link set up, rdma link show); on InfiniBand, the subnet manager"}
	}
	table, err := c.QueryGIDTable()
	if err != nil {
		return GIDEntry{}, "", err
	}
	table = slices.DeleteFunc(table, func(e GIDEntry) bool { return e.Port != port })
	var all []candidate
	if attr.LinkLayer == LinkLayerEthernet {
		devs, err := c.netdevs()
		if err != nil {
			return GIDEntry{}, "", opError("choose", object, err)
		}
		for _, e := range table {
			all = append(all, judgeRoCE(e, devs, index >= 0, c.dev.Simulated()))
		}
	} else {
		for _, e := range table {
			all = append(all, candidate{GIDEntry: e, rank: e.Index}) // entry 0 first
		}
	}
	best, reason := choose(all, index, attr.LinkLayer)
	if best == nil {
		return GIDEntry{}, "", &Error{Op: "choose", Object: object, Err: ErrNoGID, Hint: reason}
	}
	return best.GIDEntry, reason, nil
}

// judgeRoCE looks at one entry of a RoCE port. An entry that was asked for may
// be link-local, which is no choice for a program that does not know its peers.
func judgeRoCE(e GIDEntry, devs []netdev, asked, simulated bool) candidate {
	c := candidate{GIDEntry: e}
	addr := e.GID.Addr()
	i := slices.IndexFunc(devs, func(d netdev) bool {
		if e.IfIndex == 0 && simulated { // a simulator need not know its interface
			return d.holds(addr)
		}
		return e.IfIndex != 0 && d.index == e.IfIndex
	})
	if i >= 0 {
		c.netdev = devs[i].name
	}
	switch {
	case addr.IsLoopback():
		c.rank = rankLoopback
	case addr.Is6():
		c.rank = rankIPv6
	}
	switch {
	case e.Index > 255:
		c.why = "an address handle names entries up to 255 only"
	case e.Type != GIDTypeRoCEv2:
		c.why = "only RoCE v2 is used"
	case addr.IsUnspecified() || addr.IsMulticast():
		c.why = "not an address of a host"
	case addr.IsLinkLocalUnicast() && !asked:
		c.why = "link-local addresses are used only when asked for by index"
	case i < 0 && e.IfIndex == 0:
		c.why = "it has no network interface"
	case i < 0:
		c.why = fmt.Sprintf("interface %d is not in this network namespace", e.IfIndex)
	case !devs[i].up:
		c.why = "the interface is down (ip link set up)"
	case !devs[i].holds(addr):
		c.why = "the interface does not hold this address in this network namespace"
	}
	return c
}

// choose returns the best candidate or the one with the index asked for, and
// why; or nil and why none will do.
func choose(all []candidate, index int, link LinkLayer) (*candidate, string) {
	var usable []*candidate
	var lines []string
	for i := range all {
		c := &all[i]
		lines = append(lines, c.String())
		if c.why == "" && (index < 0 || c.Index == index) {
			usable = append(usable, c)
		}
	}
	if len(usable) == 0 {
		switch {
		case len(all) == 0:
			return nil, "the GID table is empty; a RoCE port gets its entries from the addresses of its interface (ip address add)"
		case index >= 0 && !slices.ContainsFunc(all, func(c candidate) bool { return c.Index == index }):
			return nil, fmt.Sprintf("index %d is empty; the table has %s", index, strings.Join(lines, "; "))
		}
		return nil, strings.Join(lines, "; ")
	}
	best := slices.MinFunc(usable, func(a, b *candidate) int {
		if a.rank != b.rank {
			return a.rank - b.rank
		}
		return a.Index - b.Index
	})
	switch {
	case index >= 0:
		return best, best.String() + " (asked for)"
	case link != LinkLayerEthernet:
		return best, best.String() + " (the first entry of an InfiniBand port)"
	case len(usable) == 1:
		return best, fmt.Sprintf("%s (the only usable one of %d)", best, len(all))
	}
	kind := [...]string{"the first IPv4 address", "no IPv4, the first IPv6 address", "loopback addresses only"}[best.rank]
	return best, fmt.Sprintf("%s (%s; %d of %d are usable)", best, kind, len(usable), len(all))
}
