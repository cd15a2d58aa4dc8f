package mlx5sim

import (
	"errors"
	"io"
	"net/netip"
	"sync"
	"syscall"
	"time"

	"github.com/rrppcc-go/rrppcc/internal/roce"
)

// etherLink carries packets in Ethernet frames. One goroutine reads frames, one
// writes them; the second one alone knows the neighbours, and the first tells it
// what it hears by ARP.
type etherLink struct {
	dev    *Device
	addr   netip.AddrPort
	frames io.ReadWriteCloser
	out    *outQueue
	heard  chan arp
	wg     sync.WaitGroup
	quit   chan struct{}
	once   sync.Once
	err    error

	// Of the writer.
	neighbors map[netip.Addr]*neighbor
	held      int // packets that wait, of all neighbours
	frame     [frameHead + maxPacketBytes]byte
}

// neighbor is another host of the segment. A known MAC address stays until ARP
// tells another.
type neighbor struct {
	known   bool
	mac     [6]byte
	asked   time.Time   // when ARP was last asked
	waiting []heldFrame // packets for which the MAC address is missing
}

type heldFrame struct {
	to    netip.AddrPort
	class ipClass
	pkt   []byte
}

const (
	// maxFrame is the longest frame that is read whole: jumbo frames.
	maxFrame = 9216
	// maxHeld bounds the packets that wait for ARP, as hosts do. The transport
	// repeats what is lost.
	maxHeld      = 64
	maxHeard     = 16 // ARP packets that the writer has not seen yet
	maxNeighbors = 1024
	// arpPause is how long nobody is asked again; what waits for longer is lost.
	arpPause = 100 * time.Millisecond
)

func openEtherLink(d *Device, frames io.ReadWriteCloser) *etherLink {
	l := &etherLink{
		dev:       d,
		addr:      netip.AddrPortFrom(d.addr, roce.Port),
		frames:    frames,
		out:       newOutQueue(),
		heard:     make(chan arp, maxHeard),
		quit:      make(chan struct{}),
		neighbors: make(map[netip.Addr]*neighbor),
	}
	l.wg.Go(l.writer)
	l.wg.Go(l.reader)
	return l
}

func (l *etherLink) send(runs []run) (refused int) { return l.out.put(runs) }

func (l *etherLink) reader() {
	buf := make([]byte, maxFrame)
	in := make([]burst, 1)
	for {
		n, err := l.frames.Read(buf)
		if errors.Is(err, syscall.ECONNREFUSED) {
			continue // the socket's other end is not there yet, or was away
		}
		if err != nil {
			return
		}
		var ok bool
		if in[0], ok = parseFrame(buf[:n], l.dev.mac, l.addr); ok {
			l.dev.deliver(in)
		} else if a, ok := parseARP(buf[:n]); ok && a.target == l.addr.Addr() {
			select {
			case l.heard <- a:
			default: // the writer is stuck: who asks will ask again
			}
		}
	}
}

func (l *etherLink) writer() {
	for {
		select {
		case s := <-l.out.ready:
			to, class, pkt := l.out.take(s)
			if h := l.neighbor(to.Addr()); h != nil && h.known {
				l.write(to, class, h.mac, pkt)
			} else if h != nil {
				l.ask(h, to, class, pkt)
			}
			l.out.free <- s
		case a := <-l.heard:
			l.hear(&a)
		case <-l.quit:
			return
		}
	}
}

// write sends a packet. One that is refused is a lost one: the transport sends
// it again.
func (l *etherLink) write(to netip.AddrPort, class ipClass, mac [6]byte, pkt []byte) {
	n := frameHead + copy(l.frame[frameHead:], pkt)
	putFrame(l.frame[:], mac, l.dev.mac, to, l.addr, class, len(pkt))
	for ; n < minFrame; n++ {
		l.frame[n] = 0
	}
	l.frames.Write(l.frame[:n])
}

// neighbor finds or adds a neighbour. Nil: there are too many.
func (l *etherLink) neighbor(a netip.Addr) *neighbor {
	h := l.neighbors[a]
	if h == nil && len(l.neighbors) < maxNeighbors {
		h = new(neighbor)
		l.neighbors[a] = h
	}
	return h
}

// ask holds a packet back and asks who has its destination's address, unless
// that was asked just now.
func (l *etherLink) ask(h *neighbor, to netip.AddrPort, class ipClass, pkt []byte) {
	if now := time.Now(); h.asked.IsZero() || now.Sub(h.asked) >= arpPause {
		h.asked = now
		l.held -= len(h.waiting)
		h.waiting = nil
		l.say(&arp{request: true, destination: etherBroadcast, target: to.Addr()})
	}
	if l.held < maxHeld {
		l.held++
		h.waiting = append(h.waiting, heldFrame{to, class, append([]byte(nil), pkt...)})
	}
}

// hear takes an ARP packet about this device's address.
func (l *etherLink) hear(a *arp) {
	if !a.sender.IsUnspecified() && a.sender != l.addr.Addr() {
		if h := l.neighbor(a.sender); h != nil {
			h.known, h.mac = true, a.mac
			l.held -= len(h.waiting)
			for _, w := range h.waiting {
				l.write(w.to, w.class, h.mac, w.pkt)
			}
			h.waiting = nil
		}
	}
	if a.request {
		l.say(&arp{destination: a.mac, targetMAC: a.mac, target: a.sender})
	}
}

// say sends an ARP packet of this device.
func (l *etherLink) say(a *arp) {
	a.mac, a.sender = l.dev.mac, l.addr.Addr()
	var b [minFrame]byte
	a.put(&b)
	l.frames.Write(b[:])
}

func (l *etherLink) Close() error {
	l.once.Do(func() {
		close(l.quit)
		l.err = l.frames.Close()
		l.wg.Wait()
	})
	return l.err
}
