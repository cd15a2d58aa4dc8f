package mlx5sim

import (
	"fmt"
	"io"
	"net/netip"
	"sync/atomic"

	"github.com/rrppcc-go/rrppcc/uverbs"
)

// Option configures [New].
type Option func(*options)

type options struct {
	name       string
	addr       netip.Addr
	fabric     *Fabric
	mtu        uverbs.MTU
	inProcess  bool
	infiniband bool
	byWire     bool
	frames     io.ReadWriteCloser
	pcap       io.Writer
}

// WithName sets the RDMA device name. The default is mlx5_sim0, mlx5_sim1, and
// so on, unique within the process.
func WithName(name string) Option { return func(o *options) { o.name = name } }

// WithAddr sets the IPv4 or IPv6 address of the device: its GIDs carry it and
// its link binds it. The default is a random free address of 127.0.0.0/8, so
// that several processes of one machine do not have to agree on anything.
func WithAddr(a netip.Addr) Option { return func(o *options) { o.addr = a.Unmap() } }

// WithFabric puts the device in f instead of the process-wide default fabric.
func WithFabric(f *Fabric) Option { return func(o *options) { o.fabric = f } }

// WithMTU sets the port's maximum and active MTU; the default is 4096.
func WithMTU(m uverbs.MTU) Option { return func(o *options) { o.mtu = m } }

// InProcess leaves out the UDP link: the device reaches only devices of its
// fabric, starts no goroutine and opens no socket.
func InProcess() Option { return func(o *options) { o.inProcess = true } }

// ByWire sends everything by the link: messages to other devices of the process,
// and to the device itself, become packets as well, which faults and captures
// meet.
func ByWire() Option { return func(o *options) { o.byWire = true } }

// WithEthernet puts the device on an Ethernet segment instead of a UDP socket:
// each Write to frames is one frame that it sends, and each Read must return
// one whole frame that arrived, without preamble and checksum. That may be a TAP
// interface, a packet socket, or a connected socket to QEMU's "-netdev dgram".
//
// The device needs an IPv4 address of the segment ([WithAddr]), answers ARP for
// it, and takes every peer to be on the segment: there is no router, no VLAN and
// no IPv6. The segment must carry packets of IP, UDP and transport headers and
// the MTU: 1100 bytes for [uverbs.MTU1024], 4200 for the default.
//
// Two goroutines of the device read and write; a Write that blocks makes the
// device drop packets, which its transport repeats. Close of the device closes
// frames, and that must end a Read and a Write that are under way.
func WithEthernet(frames io.ReadWriteCloser) Option { return func(o *options) { o.frames = frames } }

// WithInfiniBand makes the port an InfiniBand port: it has a LID, which the fabric
// gives it as a subnet manager would, and one GID, of its GUID. Address vectors name
// a LID, with or without a GRH. It reaches the InfiniBand ports of its fabric, itself
// among them, and has no IP address and no link of packets: [InProcess] is implied,
// and options that are about either are errors.
func WithInfiniBand() Option { return func(o *options) { o.infiniband = true } }

// WithPcap captures every packet of the device's link, from New to Close, as
// [Device.Capture] does. Close of the device writes out what is left and returns
// the capture's error; it does not close w.
func WithPcap(w io.Writer) Option { return func(o *options) { o.pcap = w } }

var nextName atomic.Uint32

func makeOptions(opts []Option) (options, error) {
	o := options{fabric: defaultFabric, mtu: uverbs.MTU4096}
	for _, f := range opts {
		f(&o)
	}
	if o.fabric == nil {
		return o, fmt.Errorf("mlx5sim: WithFabric(nil)")
	}
	if o.mtu.Bytes() == 0 {
		return o, fmt.Errorf("mlx5sim: MTU code %d is none of 1 (256) to 5 (4096)", uint8(o.mtu))
	}
	if o.addr.IsValid() && (o.addr.IsUnspecified() || o.addr.IsMulticast() || o.addr.Zone() != "") {
		return o, fmt.Errorf("mlx5sim: %s cannot be a device's address: it must be a unicast address without a zone", o.addr)
	}
	if o.infiniband {
		for _, x := range [...]struct {
			name  string
			given bool
		}{{"WithAddr", o.addr.IsValid()}, {"WithEthernet", o.frames != nil}, {"ByWire", o.byWire}, {"WithPcap", o.pcap != nil}} {
			if x.given {
				return o, fmt.Errorf("mlx5sim: WithInfiniBand and %s exclude each other: an InfiniBand port has no IP address, and its packets are not modelled", x.name)
			}
		}
		o.inProcess = true
	}
	if o.frames != nil && (!o.addr.Is4() || o.inProcess) {
		return o, fmt.Errorf("mlx5sim: WithEthernet needs an IPv4 address by WithAddr, and excludes InProcess")
	}
	if o.byWire && o.inProcess {
		return o, fmt.Errorf("mlx5sim: ByWire and InProcess exclude each other")
	}
	if o.pcap != nil && o.inProcess {
		return o, fmt.Errorf("mlx5sim: WithPcap and InProcess exclude each other: without a link there are no packets")
	}
	if o.name == "" {
		o.name = fmt.Sprintf("mlx5_sim%d", nextName.Add(1)-1)
	}
	return o, nil
}
