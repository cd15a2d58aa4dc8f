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
// behind a bounded queue that refuses what does not fit. It knows nothing of
// traffic classes and hop limits.
type netLink struct {
	dev  *Device
	conn *net.UDPConn
	out  *outQueue
	wg   sync.WaitGroup
	quit chan struct{}
	once sync.Once
	err  error
}

func openNetLink(d *Device) (*netLink, error) {
	conn, err := listen(d)
	if err != nil {
		return nil, err
	}
	conn.SetReadBuffer(socketBufferBytes)  // best effort
	conn.SetWriteBuffer(socketBufferBytes) // best effort
	l := &netLink{dev: d, conn: conn, out: newOutQueue(), quit: make(chan struct{})}
	l.wg.Go(l.writer)
	l.wg.Go(l.reader)
	return l, nil
}

func (l *netLink) send(runs []run) (refused int) { return l.out.put(runs) }

func (l *netLink) writer() {
	for {
		select {
		case s := <-l.out.ready:
			// A packet that the system refuses is a lost one: the transport
			// sends it again.
			to, _, pkt := l.out.take(s)
			l.conn.WriteToUDPAddrPort(pkt, to)
			l.out.free <- s
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
		in[0] = burst{from: unmap(from), class: plainClass, size: n, b: buf[:n]}
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
