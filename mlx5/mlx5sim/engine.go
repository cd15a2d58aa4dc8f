package mlx5sim

import (
	"math/bits"
	"time"
)

// qpEngine is the queue engine's part of a QP. All of it is guarded by fab.mu.
type qpEngine struct {
	// waiting is set while the QP's next send waits for a timer, and wireBusy
	// while it waits for the wire to take it. Later sends wait behind it.
	waiting  bool
	wireBusy bool
	gen      uint64 // tells a timer that fires late that nobody waits for it
	timer    *time.Timer

	tries    uint32 // of the next send, that nothing answered
	rnrTries uint32 // of the next send, that were answered by an RNR NAK

	// PSNs of the in-process transport, advanced per packet as on the wire, so
	// that a QP which was reconnected on one side only is found out.
	sqPSN, rqPSN uint32

	notifyDrained bool // SQ_DRAINED is due when the SQ stands still in SQD

	recv      recvWQE
	recvTaken bool // recv was taken and is not completed
	counted   bool // in recvCQ.eng.errQPs
}

// quiesceSQ ends all waiting of the SQ, and the wire's part in it.
func (q *qp) quiesceSQ() {
	q.eng.gen++
	if q.eng.timer != nil {
		q.eng.timer.Stop()
		q.eng.timer = nil
	}
	q.eng.waiting, q.eng.wireBusy = false, false
	q.eng.tries, q.eng.rnrTries = 0, 0
	q.eng.notifyDrained = false
	q.wireReset()
}

// syncSQ takes over the producer index from the doorbell record. It reports
// false where that announces more than the queue holds.
func (q *qp) syncSQ() bool {
	return q.sq.sync(q.file.dma, q.dbrec+dbSend)
}

// syncRQ is syncSQ for the receive queue.
func (q *qp) syncRQ() bool {
	return q.rq.sync(q.file.dma, q.dbrec+dbRecv)
}

// Offsets in a QP's doorbell record (MLX5_RCV_DBR, MLX5_SND_DBR).
const (
	dbRecv = 0
	dbSend = 4
)

func (w *wq) sync(dma DMA, addr uint64) bool {
	if w.size == 0 {
		return true
	}
	v, ok := load32(dma, addr)
	if !ok {
		return false
	}
	pi := w.pi + uint32(uint16(v)-uint16(w.pi))
	if pi-w.ci > w.size {
		return false
	}
	w.pi = pi
	return true
}

// engineStateChanged is MODIFY_QP's call after it changed attr.state from old.
func (q *qp) engineStateChanged(old uint8) {
	switch q.attr.state {
	case stateReset:
		q.engineReset()
		return
	case stateRTR:
		q.eng.rqPSN = q.attr.rqPSN & psnMask
	case stateRTS:
		if old == stateRTR {
			q.eng.sqPSN = q.attr.sqPSN & psnMask
		}
		if old == stateSQD && !q.syncSQ() {
			q.overflow()
			return
		}
		q.runSQ()
	case stateSQD:
		if old == stateRTS {
			q.checkDrained()
		}
	case stateErr:
		if old != stateErr {
			q.flush()
		}
	}
}

// rerouted is MODIFY_QP's call after it may have changed the address vector or
// the limits of a QP in SQD: the wire keeps what it derived from them.
func (q *qp) rerouted() {
	if q.req.ready {
		q.req.path, q.req.routed = q.file.dev.pathOf(&q.attr.dest)
	}
	if q.resp.ready {
		q.resp.path, _ = q.file.dev.pathOf(&q.attr.dest)
	}
}

// engineReset forgets all that the QP has in progress. Its CQEs stay in their
// CQs. The driver resets the doorbell record.
func (q *qp) engineReset() {
	q.quiesceSQ()
	q.sq.pi, q.sq.next, q.sq.ci = 0, 0, 0
	q.rq.pi, q.rq.ci = 0, 0
	q.eng.recvTaken = false
	q.eng.sqPSN, q.eng.rqPSN = 0, 0
	if q.eng.counted {
		q.countErr(-1)
	}
}

// engineDestroy is engineReset for a QP that goes away; nothing of it runs any
// more.
func (q *qp) engineDestroy() { q.engineReset() }

// mtuBytes is the port's active MTU.
func (d *Device) mtuBytes() uint32 { return uint32(d.opt.mtu.Bytes()) }

const psnMask = 1<<24 - 1

// packets is how many packets n bytes take at the path MTU.
func (q *qp) packets(n uint64) uint32 {
	shift := bits.Len32(q.pathMTUBytes()) - 1
	return uint32(max(1, (n+1<<shift-1)>>shift))
}

// pathMTUBytes decodes enum ib_mtu.
func (q *qp) pathMTUBytes() uint32 {
	if q.attr.pathMTU < 1 || q.attr.pathMTU > 5 {
		return 4096
	}
	return 128 << q.attr.pathMTU
}
