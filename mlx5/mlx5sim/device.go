package mlx5sim

import (
	"crypto/rand"
	"errors"
	"fmt"
	"hash/fnv"
	"net"
	"net/netip"
	"runtime"
	"syscall"

	"github.com/rrppcc-go/rrppcc/internal/kernel"
	"github.com/rrppcc-go/rrppcc/uverbs"
)

const (
	driverMLX5     = 1 // RDMA_DRIVER_MLX5
	uverbsABI      = 1 // MLX5_IB_UVERBS_ABI_VERSION
	pageSize       = 4096
	gidTableLen    = 16
	numCompVectors = 8
	firstQPN       = 0x1a3
	firstCQN       = 0x405
	firstPDN       = 0x21
	firstUARIndex  = 16
	firstMKey      = 0x1822 // index; a key is index<<8 | variant
)

// bindTries bounds the search for a free loopback address.
const bindTries = 16

// New creates a device and, without [InProcess], binds its link. It is
// reachable when New returns. Close it.
func New(opts ...Option) (*Device, error) {
	o, err := makeOptions(opts)
	if err != nil {
		return nil, err
	}
	if o.addr.IsValid() {
		d := newDevice(o, o.addr)
		if err := d.start(); err != nil {
			return nil, err
		}
		return d, nil
	}
	var last error
	for range bindTries {
		d := newDevice(o, randomAddr(o))
		if last = d.start(); last == nil {
			return d, nil
		}
		if !o.inProcess && runtime.GOOS != "linux" {
			break // only 127.0.0.1 may exist here; see below
		}
	}
	if !o.inProcess {
		d := newDevice(o, netip.AddrFrom4([4]byte{127, 0, 0, 1}))
		if last = d.start(); last == nil {
			return d, nil
		}
	}
	if o.infiniband {
		return nil, last
	}
	return nil, fmt.Errorf("mlx5sim: no free loopback address found; give one with WithAddr, or stay within the process with InProcess: %w", last)
}

func newDevice(o options, addr netip.Addr) *Device {
	d := &Device{
		fab:      o.fabric,
		opt:      o,
		name:     o.name,
		addr:     addr,
		files:    make(map[*file]struct{}),
		qps:      make(map[uint32]*qp),
		cqs:      make(map[uint32]*cq),
		mrs:      make(map[uint32]*mr),
		mws:      make(map[uint32]*mw),
		srqs:     make(map[uint32]*srq),
		nextQPN:  firstQPN,
		nextCQN:  firstCQN,
		nextSRQN: firstSRQN,
		nextPDN:  firstPDN,
		nextUAR:  firstUARIndex,
		nextMKey: firstMKey,
	}
	if o.infiniband {
		d.mac = randomMAC()
		d.gids = []gidSlot{{d.portGID(), gidIB, 0}}
		return d
	}
	d.mac = macOf(addr)
	var ifindex uint32
	ifindex, d.ifname = interfaceOf(addr)
	ll, ip := linkLocal(d.mac), addr.As16()
	d.gids = []gidSlot{
		{ll, gidRoCEv1, ifindex}, {ll, gidRoCEv2, ifindex},
		{ip, gidRoCEv1, ifindex}, {ip, gidRoCEv2, ifindex},
	}
	return d
}

// start joins the fabric and opens the link, or leaves nothing behind.
func (d *Device) start() error {
	d.fab.mu.Lock()
	ok := d.opt.byWire || d.fab.join(d)
	d.fab.mu.Unlock()
	if !ok && d.infiniband() {
		return fmt.Errorf("mlx5sim: the subnet has no LID left, or another port of GUID %x: %w", d.nodeGUID(), syscall.EADDRINUSE)
	}
	if !ok {
		return fmt.Errorf("mlx5sim: address %s is taken by another device of the fabric: %w", d.addr, syscall.EADDRINUSE)
	}
	if d.opt.inProcess {
		return nil
	}
	l, err := d.openLink()
	d.fab.mu.Lock()
	defer d.fab.mu.Unlock()
	if err != nil {
		d.fab.leave(d)
		if errors.Is(err, syscall.EADDRNOTAVAIL) {
			return fmt.Errorf("mlx5sim: %s is no address of this host; take one that it has, or 127.x.y.z: %w", d.addr, err)
		}
		return fmt.Errorf("mlx5sim: link of %s: %w", d.addr, err)
	}
	d.link = l
	if d.opt.pcap != nil {
		d.pcap = d.capture(d.opt.pcap)
	}
	return nil
}

func (d *Device) openLink() (link, error) {
	if d.opt.frames != nil {
		return openEtherLink(d, d.opt.frames), nil
	}
	return openLink(d)
}

// randomAddr is the address of a device that was not given one.
func randomAddr(o options) netip.Addr {
	if o.infiniband {
		return netip.Addr{}
	}
	return randomLoopback()
}

// randomLoopback draws an address of 127.0.0.0/8 that looks like a host's.
func randomLoopback() netip.Addr {
	for {
		var b [3]byte
		rand.Read(b[:]) // never fails
		if b[0] == 0 || b[2] == 0 || b[2] == 255 {
			continue
		}
		return netip.AddrFrom4([4]byte{127, b[0], b[1], b[2]})
	}
}

// macOf derives the locally administered MAC address of the device at a. The
// mapping stands in for ARP: whoever knows the address knows the MAC.
func macOf(a netip.Addr) [6]byte {
	if a = a.Unmap(); a.Is4() {
		b := a.As4()
		return [6]byte{0x02, 0x5a, b[0], b[1], b[2], b[3]}
	}
	b := a.As16()
	h := fnv.New32a()
	h.Write(b[:])
	s := h.Sum32()
	return [6]byte{0x02, 0x5b, byte(s >> 24), byte(s >> 16), byte(s >> 8), byte(s)}
}

// macOfGID resolves a destination GID: a link-local one contains the MAC.
func macOfGID(gid [16]byte) [6]byte {
	if isLinkLocal(gid) {
		return [6]byte{gid[8] ^ 2, gid[9], gid[10], gid[13], gid[14], gid[15]}
	}
	return macOf(netip.AddrFrom16(gid))
}

// linkLocal is the fe80:: address with the modified EUI-64 of mac.
func linkLocal(mac [6]byte) [16]byte {
	return [16]byte{0: 0xfe, 1: 0x80, 8: mac[0] ^ 2, 9: mac[1], 10: mac[2], 11: 0xff, 12: 0xfe, 13: mac[3], 14: mac[4], 15: mac[5]}
}

func isLinkLocal(gid [16]byte) bool { return gid[0] == 0xfe && gid[1]&0xc0 == 0x80 }

func isIPv4(gid [16]byte) bool { return netip.AddrFrom16(gid).Is4In6() }

// interfaceOf finds the interface that holds a, or the loopback interface for
// a loopback address. 0 if there is none.
func interfaceOf(a netip.Addr) (uint32, string) {
	ifs, err := net.Interfaces()
	if err != nil {
		return 0, ""
	}
	for _, i := range ifs {
		addrs, err := i.Addrs()
		if err != nil {
			continue
		}
		for _, x := range addrs {
			n, ok := x.(*net.IPNet)
			if !ok {
				continue
			}
			if ip, ok := netip.AddrFromSlice(n.IP); ok && ip.Unmap() == a {
				return uint32(i.Index), i.Name
			}
		}
	}
	for _, i := range ifs {
		if a.IsLoopback() && i.Flags&net.FlagLoopback != 0 {
			return uint32(i.Index), i.Name
		}
	}
	return 0, ""
}

// Addr returns the address that the device's GIDs and its link use; on InfiniBand
// there is none, and it is the zero Addr.
func (d *Device) Addr() netip.Addr { return d.addr }

// Verbs returns the device as the verbs see it.
func (d *Device) Verbs() *uverbs.Device { return uverbs.NewDevice(d) }

// Info implements kernel.Device.
func (d *Device) Info() kernel.DeviceInfo {
	return kernel.DeviceInfo{
		Name:      d.name,
		Driver:    "mlx5_core",
		DriverID:  driverMLX5,
		ABI:       uverbsABI,
		NodeGUID:  d.nodeGUID(),
		Simulated: true,
	}
}

// nodeGUID is made from the MAC address as the vendor does.
func (d *Device) nodeGUID() [8]byte {
	m := d.mac
	return [8]byte{m[0], m[1], m[2], 0x03, 0x00, m[3], m[4], m[5]}
}

// Open implements kernel.Device.
func (d *Device) Open() (kernel.File, error) {
	f, err := d.open(newDirectDMA(), nil)
	if err != nil {
		return nil, err
	}
	f.watched = true
	return f, nil
}

// open makes a file whose memory dma reaches. fo is nil for a program of this
// process.
func (d *Device) open(dma DMA, fo *Foreign) (*file, error) {
	f := &file{dev: d, dma: dma, foreign: fo, handles: make(map[uint32]object), events: make(map[int32]*eventFile)}
	d.fab.mu.Lock()
	defer d.fab.mu.Unlock()
	if d.closed {
		return nil, syscall.ENODEV
	}
	d.files[f] = struct{}{}
	return f, nil
}

// Close removes the device: it leaves the fabric, its link closes and its
// goroutines end before Close returns. Files that are still open see what a
// removed device shows: commands fail with EIO, completion channels too, and
// the async event file delivers DEVICE_FATAL. Closing twice is no error.
func (d *Device) Close() error {
	d.fab.mu.Lock()
	if d.closed {
		d.fab.mu.Unlock()
		return nil
	}
	d.closed = true
	d.fab.leave(d)
	for f := range d.files {
		f.destroyAll()
		for _, e := range f.events {
			e.deviceRemoved()
		}
	}
	l := d.link
	d.wire.stop()
	d.errors.stop()
	d.flaps.stop()
	d.out.stop()
	d.in.stop()
	d.fab.mu.Unlock()
	if l != nil {
		// Outside the mutex: the link's reader takes it.
		return errors.Join(l.Close(), d.stopCaptures())
	}
	return nil
}
