package mlx5sim

import (
	"net/netip"

	"github.com/rrppcc-go/rrppcc/internal/roce"
)

// link carries RoCEv2 packets between devices that do not share a fabric. It
// may lose, repeat and reorder them.
type link interface {
	// send gives packets to the wire and returns how many of them it refused.
	// It never waits. Caller holds the fabric's mutex: the order of calls is
	// the order of packets.
	send(runs []run) (refused int)
	// Close ends the link's goroutines. What arrives goes to Device.deliver
	// until then. Caller must not hold the fabric's mutex.
	Close() error
}

// ipClass is what the IP header says of how a packet is to be treated: its
// traffic class (IPv4: TOS) and its hop limit (TTL). The ICRC covers neither.
type ipClass struct {
	traffic, hops uint8
}

// plainClass is what packets have that ask for nothing.
var plainClass = ipClass{hops: wireHopLimit}

// ipClass is what an address vector asks for. Packets without any hops would get
// nowhere: a kernel would take the route's limit, and so is 0 taken here.
func (av *addressVector) ipClass() ipClass {
	if av.hopLimit == 0 {
		return ipClass{av.trafficClass, wireHopLimit}
	}
	return ipClass{av.trafficClass, av.hopLimit}
}

// run is consecutive packets to one destination: all of size bytes, but for
// the last, which may be shorter.
type run struct {
	to     netip.AddrPort
	class  ipClass
	size   int
	b      []byte
	closed bool // ended in a shorter packet
}

// A run must fit one datagram of 64 KiB before the kernel cuts it, and older
// kernels cut into 64 at most.
const (
	maxRunBytes   = 65535 - 40 - 8
	maxRunPackets = 64
)

// packets is the number of packets in r.
func (r *run) packets() int { return (len(r.b) + r.size - 1) / r.size }

// burst is what one receive returned: packets from one source, all of size
// bytes but for the last.
type burst struct {
	from  netip.AddrPort
	class ipClass // as far as the link sees it, or plainClass
	size  int
	b     []byte
	// ip is the IPv4 header of the burst's only packet, 20 bytes, where the link
	// sees it. Else it is nil, and is taken to be what a UDP link sends.
	ip []byte
}

// maxPacketBytes is the longest packet of the profile: an MTU of 4096 and the
// longest headers.
const maxPacketBytes = 4096 + roce.MaxHeaderSize + roce.ICRCSize

// arenaBytes is how much may be queued for the wire before it goes out in the
// middle of a critical section.
const arenaBytes = 256 << 10

// batch collects the packets of one critical section, so that they leave in
// few system calls. They leave before the mutex is released: sending does not
// wait, and packets of one QP must not overtake each other.
type batch struct {
	arena []byte // backs the runs; len is what is used
	runs  []run
}

// room returns space for a packet of n bytes, which commit queues. Until then
// nothing is used up.
func (d *Device) room(n int) []byte {
	t := &d.wire.tx
	if t.arena == nil {
		t.arena = make([]byte, 0, arenaBytes)
		t.runs = make([]run, 0, 64)
	}
	if cap(t.arena)-len(t.arena) < n {
		d.sendBatch()
	}
	used := len(t.arena)
	return t.arena[used : used+n : used+n]
}

// commit seals pkt, which room returned, and queues it.
func (d *Device) commit(p *path, pkt []byte) {
	p.flow.Seal(pkt)
	d.stats.TxPackets++
	t := &d.wire.tx
	used := len(t.arena)
	t.arena = t.arena[:used+len(pkt)]
	if n := len(t.runs); n > 0 {
		r := &t.runs[n-1]
		if !r.closed && r.to == p.to && r.class == p.class && len(pkt) <= r.size && len(r.b)+len(pkt) <= maxRunBytes && len(r.b) < r.size*(maxRunPackets-1)+1 {
			r.b = r.b[:len(r.b)+len(pkt)]
			r.closed = len(pkt) < r.size
			return
		}
	}
	t.runs = append(t.runs, run{to: p.to, class: p.class, size: len(pkt), b: t.arena[used:len(t.arena):cap(t.arena)]})
}

// sendBatch gives what is queued to the link.
func (d *Device) sendBatch() {
	t := &d.wire.tx
	if len(t.runs) == 0 {
		return
	}
	if d.down {
		for i := range t.runs {
			d.stats.Drops.PortDown += uint64(t.runs[i].packets())
		}
	} else if d.link == nil {
		for i := range t.runs {
			d.stats.Drops.LinkTx += uint64(t.runs[i].packets())
		}
	} else {
		d.stats.Drops.LinkTx += uint64(d.transmit(t.runs))
	}
	t.runs = t.runs[:0]
	t.arena = t.arena[:0]
}

// transmit is the link's send, with captures and faults before it.
func (d *Device) transmit(runs []run) (refused int) {
	if len(d.captures) > 0 {
		d.captureSent(runs)
	}
	if d.out != nil {
		return d.out.pass(runs)
	}
	return d.link.send(runs)
}

// path is the way to a peer: its UDP address, and the ICRC of packets to it.
type path struct {
	to    netip.AddrPort
	class ipClass
	flow  roce.Flow
}

// pathOf is the path of av from d, if a link can lead there.
func (d *Device) pathOf(av *addressVector) (path, bool) {
	p, ok := d.pathTo(av.dgid)
	p.class = av.ipClass()
	return p, ok
}

// pathTo is the path from d to the device of gid, for packets of plainClass.
func (d *Device) pathTo(gid [16]byte) (path, bool) {
	a, ok := addrOfGID(gid)
	if !ok || a.Is4() != d.addr.Is4() {
		return path{}, false
	}
	to := netip.AddrPortFrom(a, roce.Port)
	return path{to: to, class: plainClass, flow: roce.NewFlow(netip.AddrPortFrom(d.addr, roce.Port), to)}, true
}

// addrOfGID is the address of the device that has the GID gid. A link-local
// GID gives it away where it was derived from an IPv4 address; see macOf.
func addrOfGID(gid [16]byte) (netip.Addr, bool) {
	if isLinkLocal(gid) {
		m := macOfGID(gid)
		return netip.AddrFrom4([4]byte(m[2:])), m[0] == 0x02 && m[1] == 0x5a
	}
	a := netip.AddrFrom16(gid).Unmap()
	return a, !a.IsUnspecified() && !a.IsMulticast()
}
