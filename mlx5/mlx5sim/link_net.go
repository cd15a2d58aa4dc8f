package mlx5sim

import (
	"net"
	"net/netip"
	"sync"

	"github.com/rrppcc-go/rrppcc/internal/roce"
)

// socketBufferBytes is asked for in both directions; the system may give less.
const socketBufferBytes = 8 << 20

// listen binds the RoCEv2 port of d's address. No address is shared: a taken
// one is EADDRINUSE.
func listen(d *Device) (*net.UDPConn, error) {
	network := "udp6"
	if d.addr.Is4() {
		network = "udp4"
	}
	return net.ListenUDP(network, net.UDPAddrFromAddrPort(netip.AddrPortFrom(d.addr, roce.Port)))
}

// netLink is a UDP link by means of package net alone: one system call per
// packet. Sending in package net can wait for room, so a goroutine does it,
// behind a bounded queue that refuses what does not fit.
type netLink struct {
	dev  *Device
	conn *net.UDPConn
	out  chan int // indices of slots that are ready to go
	free chan int // indices of slots that are empty
	slot []netSlot
	wg   sync.WaitGroup
	quit chan struct{}
	once sync.Once
	err  error
}

type netSlot struct {
	to netip.AddrPort
	n  int
	b  [maxPacketBytes]byte
}

const netSlots = 256

func openNetLink(d *Device) (*netLink, error) {
	conn, err := listen(d)
	if err != nil {
		return nil, err
	}
	conn.SetReadBuffer(socketBufferBytes)  // best effort
	conn.SetWriteBuffer(socketBufferBytes) // best effort
	l := &netLink{
		dev:  d,
		conn: conn,
		out:  make(chan int, netSlots),
		free: make(chan int, netSlots),
		slot: make([]netSlot, netSlots),
		quit: make(chan struct{}),
	}
	for i := range netSlots {
		l.free <- i
	}
	l.wg.Go(l.writer)
	l.wg.Go(l.reader)
	return l, nil
}

func (l *netLink) send(runs []run) (refused int) {
	for i := range runs {
		r := &runs[i]
		for b := r.b; len(b) > 0; {
			pkt := b[:min(len(b), r.size)]
			b = b[len(pkt):]
			select {
			case s := <-l.free:
				l.slot[s].to = r.to
				l.slot[s].n = copy(l.slot[s].b[:], pkt)
				l.out <- s // has room for all slots
			default:
				refused++
			}
		}
	}
	return refused
}

func (l *netLink) writer() {
	for {
		select {
		case s := <-l.out:
			// A packet that the system refuses is a lost one: the transport
			// sends it again.
			l.conn.WriteToUDPAddrPort(l.slot[s].b[:l.slot[s].n], l.slot[s].to)
			l.free <- s
		case <-l.quit:
			return
		}
	}
}

func (l *netLink) reader() {
	buf := make([]byte, maxRunBytes)
	in := make([]burst, 1)
	for {
		n, from, err := l.conn.ReadFromUDPAddrPort(buf)
		if err != nil {
			select {
			case <-l.quit:
				return
			default:
				continue // an ICMP error of an earlier packet, on some systems
			}
		}
		in[0] = burst{from: unmap(from), size: n, b: buf[:n]}
		l.dev.deliver(in)
	}
}

func (l *netLink) Close() error {
	l.once.Do(func() {
		close(l.quit)
		l.err = l.conn.Close()
		l.wg.Wait()
	})
	return l.err
}

func unmap(a netip.AddrPort) netip.AddrPort {
	return netip.AddrPortFrom(a.Addr().Unmap().WithZone(""), a.Port())
}
