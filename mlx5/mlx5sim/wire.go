package mlx5sim

import (
	"net/netip"
	"time"

	"github.com/rrppcc-go/rrppcc/internal/roce"
)

// wire is the device's half of the transport over the link. It is guarded by
// fab.mu.
//
// The transport works in critical sections: a doorbell, the packets of one
// receive, a timer. Within one, QPs change state and are touched; flushWire at
// its end lets each touched QP send what its state calls for. So one
// acknowledgement answers a whole burst, and packets leave in batches.
type wire struct {
	tx       batch
	touched  []*qp
	flushing bool

	// The path from the last packet's source, for its ICRC.
	rxFrom netip.AddrPort
	rxFlow roce.Flow
	udPath path // of the last datagram sent

	// One timer serves all QPs that wait for something. It is set to the
	// earliest deadline or before; who looks is who fires.
	timed   []*qp
	timer   *time.Timer
	timerAt time.Duration // 0: not set
	epoch   time.Time     // deadlines count from here
}

// defaultPKey is the full member key of the default partition, the only one
// there is.
const defaultPKey = 0xffff

// psnDiff is a-b for 24-bit PSNs: negative if a is before b.
func psnDiff(a, b uint32) int32 { return int32((a-b)<<8) >> 8 }

// touch notes that q may have something to send, or a timer to set.
func (q *qp) touch() {
	if !q.req.touched {
		q.req.touched = true
		w := &q.file.dev.wire
		w.touched = append(w.touched, q)
	}
}

// flushWire ends a critical section: touched QPs send, what is queued leaves,
// timers are set.
func (d *Device) flushWire() {
	w := &d.wire
	if w.flushing || len(w.touched) == 0 && len(w.tx.runs) == 0 {
		return
	}
	w.flushing = true
	var now time.Duration
	// The list grows meanwhile: a QP whose SQ goes on touches itself again.
	for i := 0; i < len(w.touched); i++ {
		q := w.touched[i]
		q.req.touched = false
		if d.qps[q.qpn] != q || q.typ == qpUD {
			continue
		}
		if q.typ == qpUC {
			q.pumpUC()
		} else {
			q.respond()
			q.pump()
		}
		q.refill()
		if now == 0 && (q.req.ready || q.resp.jobs.n > 0) {
			now = w.now()
		}
		d.setDeadline(q, now)
	}
	w.touched = w.touched[:0]
	d.sendBatch()
	w.flushing = false
}

// now is the time since the first time that anybody asked, and never 0.
func (w *wire) now() time.Duration {
	if w.epoch.IsZero() {
		w.epoch = time.Now()
	}
	return time.Since(w.epoch) + 1
}

// setDeadline puts q on the timer if it waits for something.
func (d *Device) setDeadline(q *qp, now time.Duration) {
	w := &d.wire
	q.setRequestDeadline(now)
	q.setReadDeadline(now)
	at := q.wireDeadline()
	if at == 0 {
		return
	}
	if !q.req.timed {
		q.req.timed = true
		w.timed = append(w.timed, q)
	}
	w.setTimer(d, at, now)
}

func (q *qp) wireDeadline() time.Duration {
	a, b := q.req.deadline, q.resp.deadline
	if a == 0 || b != 0 && b < a {
		return b
	}
	return a
}

func (w *wire) setTimer(d *Device, at, now time.Duration) {
	if w.timerAt != 0 && w.timerAt <= at {
		return
	}
	w.timerAt = at
	if w.timer == nil {
		w.timer = time.AfterFunc(at-now, d.wireTimer)
		return
	}
	w.timer.Reset(at - now)
}

// stop ends the timer.
func (w *wire) stop() {
	if w.timer != nil {
		w.timer.Stop()
	}
}

// wireTimer handles the deadlines that have passed.
func (d *Device) wireTimer() {
	d.fab.mu.Lock()
	defer d.fab.mu.Unlock()
	w := &d.wire
	w.timerAt = 0
	if d.closed {
		return
	}
	now := w.now()
	var next time.Duration
	keep := w.timed[:0]
	for _, q := range w.timed {
		if d.qps[q.qpn] != q {
			q.req.timed = false
			continue
		}
		if t := q.resp.deadline; t != 0 && t <= now {
			q.resp.deadline = 0
			q.touch()
		}
		if t := q.req.deadline; t != 0 && t <= now {
			q.req.deadline = 0
			q.expire()
		}
		at := q.wireDeadline()
		if at == 0 {
			q.req.timed = false
			continue
		}
		keep = append(keep, q)
		if next == 0 || at < next {
			next = at
		}
	}
	clear(w.timed[len(keep):])
	w.timed = keep
	if next != 0 {
		w.setTimer(d, next, now)
	}
	d.flushWire()
}

// deliver takes packets from the link.
func (d *Device) deliver(bursts []burst) {
	d.fab.mu.Lock()
	defer d.fab.mu.Unlock()
	if d.closed {
		return
	}
	if d.in != nil {
		d.in.arrive(bursts)
		d.flushWire()
		return
	}
	for i := range bursts {
		from, class, size := bursts[i].from, bursts[i].class, bursts[i].size
		for b := bursts[i].b; len(b) > 0; {
			pkt := b[:min(size, len(b))]
			b = b[len(pkt):]
			d.receive(from, class, bursts[i].ip, pkt)
		}
	}
	d.flushWire()
}

// receive checks one packet and hands it to its QP. class and ip are as in burst.
func (d *Device) receive(from netip.AddrPort, class ipClass, ip, b []byte) {
	drops := &d.stats.Drops
	if d.down {
		drops.PortDown++
		return
	}
	d.stats.RxPackets++
	if len(d.captures) > 0 {
		d.captureReceived(from, class, ip, b)
	}
	p, err := roce.Parse(b)
	if err != nil || from.Addr().Is4() != d.addr.Is4() {
		drops.Malformed++
		return
	}
	w := &d.wire
	if from != w.rxFrom {
		w.rxFrom = from
		w.rxFlow = roce.NewFlow(from, netip.AddrPortFrom(d.addr, roce.Port))
	}
	if ip != nil {
		w.rxFlow.SetIdentification(be.Uint16(ip[4:]), be.Uint16(ip[6:]))
	}
	if !w.rxFlow.Valid(b) {
		drops.BadICRC++
		return
	}
	if p.PKey&0x7fff != defaultPKey&0x7fff {
		drops.BadPKey++
		return
	}
	if p.Opcode.IsUD() {
		d.receiveUD(from, class, ip, &p)
		return
	}
	q := d.qps[p.DestQPN]
	switch {
	case q == nil || q.typ == qpUD || p.Opcode.IsUC() != (q.typ == qpUC):
		drops.NoQP++
	case !q.receives():
		drops.QPState++
		if q.attr.state == stateErr {
			q.flushRQ()
		}
	case !q.isPeer(from.Addr()):
		drops.BadSource++
	case q.typ == qpUC:
		q.onUC(&p)
	case p.Opcode.IsResponse():
		q.onResponse(&p)
	default:
		q.onRequest(&p)
	}
}

// isPeer reports whether a is the address of the device that q is connected
// to. The port is the sender's own choice.
func (q *qp) isPeer(a netip.Addr) bool {
	q.startResponder()
	return q.resp.path.to.Addr() == a
}

// wireReset forgets everything that q has on the wire: it left RTS or the
// state before for ERR or RESET. What the SQ holds is the engine's to flush.
func (q *qp) wireReset() {
	r := &q.req
	*r = requester{ops: r.ops, touched: r.touched, timed: r.timed}
	q.resp = responder{path: q.resp.path, epsn: q.resp.epsn, msn: q.resp.msn}
}
