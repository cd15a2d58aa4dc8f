package mlx5sim

import "net/netip"

// outQueue is bounded room between a link's send, which never waits, and a
// goroutine of the link that may.
type outQueue struct {
	ready chan int // indices of slots that are to go
	free  chan int // indices of slots that are empty
	slot  []outSlot
}

// outSlot is a packet and where it goes.
type outSlot struct {
	to    netip.AddrPort
	class ipClass
	n     int
	b     [maxPacketBytes]byte
}

const outSlots = 256

func newOutQueue() *outQueue {
	q := &outQueue{ready: make(chan int, outSlots), free: make(chan int, outSlots), slot: make([]outSlot, outSlots)}
	for i := range outSlots {
		q.free <- i
	}
	return q
}

// put queues packets and returns how many there was no room for.
func (q *outQueue) put(runs []run) (refused int) {
	for i := range runs {
		r := &runs[i]
		for b := r.b; len(b) > 0; {
			pkt := b[:min(len(b), r.size)]
			b = b[len(pkt):]
			select {
			case s := <-q.free:
				q.slot[s].to, q.slot[s].class = r.to, r.class
				q.slot[s].n = copy(q.slot[s].b[:], pkt)
				q.ready <- s // has room for all slots
			default:
				refused++
			}
		}
	}
	return refused
}

// take returns the packet of slot s, which came from ready. The slot goes back
// to free once that is sent.
func (q *outQueue) take(s int) (to netip.AddrPort, class ipClass, pkt []byte) {
	return q.slot[s].to, q.slot[s].class, q.slot[s].b[:q.slot[s].n]
}
