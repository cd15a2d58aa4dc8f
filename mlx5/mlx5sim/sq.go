package mlx5sim

import "time"

// runSQ executes send WQEs in order until the queue is empty, or has to wait,
// or the QP leaves RTS.
func (q *qp) runSQ() {
	op := &q.file.dev.fab.eng.op
	defer q.file.dev.flushWire()
	q.file.dev.fab.eng.ahead.q = nil // what it holds of the queue may have been another use of its slots
	for (q.attr.state == stateRTS || q.begun()) && q.sq.next != q.sq.pi && !q.eng.waiting && !q.eng.wireBusy {
		if fo := q.file.foreign; fo != nil && fo.yields(q) {
			return
		}
		if s := q.fetch(op); s != synOK {
			q.refuse(op, s)
			return
		}
		if !q.execute(op) {
			return
		}
	}
}

// sends reports whether the QP's state lets the SQ execute, if only what it has
// begun.
func (q *qp) sends() bool { return q.attr.state == stateRTS || q.attr.state == stateSQD }

// begun reports whether the QP is in SQD and has yet to finish the WQE at
// sq.next: it was tried, and is to be tried again.
func (q *qp) begun() bool {
	return q.attr.state == stateSQD && q.eng.tries|q.eng.rnrTries != 0
}

// draining reports whether sends are still to finish before the SQ stands
// still.
func (q *qp) draining() bool { return q.sq.ci != q.sq.next || q.begun() }

// checkDrained raises the event that entering SQD asked for, once the SQ
// stands still.
func (q *qp) checkDrained() {
	if q.eng.notifyDrained && !q.draining() {
		q.eng.notifyDrained = false
		q.asyncEvent(eventSQDrained)
	}
}

// fetch decodes the WQE at sq.next. On error op still tells its index and
// size.
func (q *qp) fetch(op *sendOp) syndrome {
	op.index = q.sq.next
	op.wqebbs = 1
	op.opcode = opNOP
	mask := q.sq.size - 1
	slot := op.index & mask
	dma := q.file.dma
	first := dma.View(q.sq.buf+uint64(slot)*wqebbBytes, wqebbBytes)
	if first == nil {
		if first = q.copied(op.index); first == nil {
			return synLocalQPOp
		}
	}
	ds, wqebbs := decodeCtrl(first)
	op.opcode = first[3]
	if wqebbs > q.sq.pi-op.index {
		return synLocalQPOp // ends behind what the doorbell announced
	}
	op.wqebbs = wqebbs
	n := ds * segBytes
	if n <= len(first) {
		return op.decode(first[:n], q.typ, q.qpn)
	}
	if slot+wqebbs <= q.sq.size {
		if v := dma.View(q.sq.buf+uint64(slot)*wqebbBytes, n); v != nil {
			return op.decode(v, q.typ, q.qpn)
		}
	}
	op.buf = grow(op.buf, maxWQEBytes+wqebbBytes)
	for i := range wqebbs {
		at := q.sq.buf + uint64((slot+i)&mask)*wqebbBytes
		if dma.Read(at, op.buf[i*wqebbBytes:(i+1)*wqebbBytes]) != nil {
			return synLocalQPOp
		}
	}
	return op.decode(op.buf[:n], q.typ, q.qpn)
}

// aheadBytes is how much of a send queue that cannot be viewed is copied at a
// time: for another process's memory that costs little more than one WQE.
const aheadBytes = 1024

// lookahead is a copy of WQEBBs that a doorbell announced, whose WQEs are about
// to be executed. Posted WQEs do not change.
type lookahead struct {
	q        *qp
	from, to uint32 // free-running indices
	buf      [aheadBytes]byte
}

// copied returns a copy of the WQEBB index of q, and of what was announced
// behind it as far as it was copied at once; nil where it cannot be read. It is
// valid until the next call.
func (q *qp) copied(index uint32) []byte {
	a := &q.file.dev.fab.eng.ahead
	if a.q != q || index-a.from >= a.to-a.from {
		slot := index & (q.sq.size - 1)
		n := min(q.sq.pi-index, q.sq.size-slot, aheadBytes/wqebbBytes)
		at := q.sq.buf + uint64(slot)*wqebbBytes
		a.q = nil
		if q.file.dma.Read(at, a.buf[:n*wqebbBytes]) != nil {
			if n = 1; q.file.dma.Read(at, a.buf[:wqebbBytes]) != nil {
				return nil
			}
		}
		a.q, a.from, a.to = q, index, index+n
	}
	return a.buf[(index-a.from)*wqebbBytes : (a.to-a.from)*wqebbBytes]
}

// grow returns b with length n, in place if it has the capacity.
func grow(b []byte, n int) []byte {
	if cap(b) < n {
		return make([]byte, n)
	}
	return b[:n]
}

// execute starts one send and reports whether the next may follow.
func (q *qp) execute(op *sendOp) bool {
	if op.opcode == opNOP || op.opcode == opUMR {
		return q.executeHere(op)
	}
	d := q.file.dev
	av := &q.attr.dest
	if q.typ == qpUD {
		av = &op.av.addressVector
		if d.infiniband() {
			op.av.asInfiniBand()
		}
	}
	if op.length > maxMsgBytes || q.typ == qpUD && op.length > uint64(d.mtuBytes()) {
		return q.refuse(op, synLocalLen)
	}
	if op.fetches() {
		if q.attr.maxRdAtomic == 0 {
			return q.refuse(op, synLocalQPOp)
		}
		if op.isAtomic() {
			if op.length < atomicBytes {
				return q.refuse(op, synLocalLen)
			}
			op.length = atomicBytes // whatever its segments have room for
		}
	}
	if int(av.sgidIndex) >= len(d.gids) && (av.isGlobal || !d.infiniband()) {
		return q.refuse(op, synLocalQPOp)
	}
	to := d.destination(av)
	if to != nil && (d.down || to.down) {
		if q.typ != qpRC || q.eng.tries <= uint32(q.attr.retryCnt) {
			d.stats.Drops.PortDown++
		}
		return q.unreached(op)
	}
	routable := d.link != nil && d.gids[av.sgidIndex].typ == gidRoCEv2 // the link speaks nothing else
	switch {
	case q.typ == qpUD && to != nil:
		return q.executeUD(op, to)
	case to != nil:
		if q.wireFirst() {
			return false
		}
		if q.typ == qpUC {
			return q.executeUC(op, to)
		}
		return q.executeRC(op, to)
	case routable:
		return q.handToWire(op)
	case q.typ != qpRC:
		d.stats.Drops.Unreachable++
	}
	return q.unreached(op)
}

// executeHere runs what does not leave the device.
func (q *qp) executeHere(op *sendOp) bool {
	if q.wireFirst() {
		return false
	}
	if op.opcode == opUMR {
		if s := q.executeUMR(op); s != synOK {
			return q.refuse(op, s)
		}
	}
	q.sq.next = op.end()
	q.completeSend(op, 0)
	return true
}

// unreached is what becomes of op where no way leads to its destination: an
// unreliable message has left, an RC message is tried again.
func (q *qp) unreached(op *sendOp) bool {
	if q.wireFirst() {
		return false
	}
	if q.typ == qpRC {
		return q.lost(op)
	}
	q.sq.next = op.end()
	q.completeSend(op, 0)
	return true
}

// refuse fails a send that was not started.
func (q *qp) refuse(op *sendOp, s syndrome) bool {
	if q.wireFirst() {
		return false
	}
	q.sq.next = op.end()
	q.failSend(op, s)
	return false
}

// handToWire gives op to the wire, or waits for resumeSQ.
func (q *qp) handToWire(op *sendOp) bool {
	q.sq.next = op.end() // before the call: the wire may complete it at once
	if !q.wireSend(op) {
		if q.sends() {
			q.sq.next = op.index
			q.eng.wireBusy = true
		}
		return false
	}
	return true
}

// resumeSQ is the wire's call when it can take more after it refused an op.
func (q *qp) resumeSQ() {
	q.eng.wireBusy = false
	q.runSQ()
}

// completeSend ends op with success: a CQE if it was signaled. byteLen is what
// the CQE counts, for a READ the bytes read. The wire calls it in order.
func (q *qp) completeSend(op *sendOp, byteLen uint32) {
	if !q.retire(op) {
		return
	}
	q.eng.tries, q.eng.rnrTries = 0, 0
	if op.signaled {
		q.sendCQ.add(&cqe{opcode: cqeReq, uidx: q.uidx, qpn: q.qpn, wqeOpcode: op.opcode, counter: op.wqeIndex(), byteCount: byteLen, inline: op.inline})
	}
	if q.attr.state == stateSQD {
		q.checkDrained()
	}
}

// failSend ends op with an error CQE, signaled or not. An RC QP goes to ERR
// with everything flushed; a UD or UC QP to SQE, where receives go on.
func (q *qp) failSend(op *sendOp, s syndrome) {
	if !q.retire(op) {
		return
	}
	q.sendCQ.add(&cqe{opcode: cqeReqErr, uidx: q.uidx, qpn: q.qpn, wqeOpcode: op.opcode, counter: op.wqeIndex(), syn: s})
	if q.typ != qpRC && q.attr.state == stateRTS {
		q.attr.state = stateSQE
		q.quiesceSQ()
		q.flushSQ()
		return
	}
	q.toError()
}

// retire takes op off the SQ. It reports false where op is not on it any more:
// the QP was flushed or reset meanwhile.
func (q *qp) retire(op *sendOp) bool {
	if op.end()-q.sq.ci-1 >= q.sq.next-q.sq.ci {
		return false
	}
	q.sq.ci = op.end()
	return true
}

// wait stalls the SQ for t; then it runs again from the same WQE. t = 0 stalls
// it until the QP is reset. ack tells the ACK timer from the RNR timer.
func (q *qp) wait(t time.Duration, ack bool) {
	q.eng.waiting = true
	if t == 0 {
		return
	}
	q.eng.gen++
	gen := q.eng.gen
	fab := q.file.dev.fab
	q.eng.timer = time.AfterFunc(t, func() {
		fab.mu.Lock()
		defer fab.mu.Unlock()
		if q.eng.gen != gen || !q.eng.waiting {
			return
		}
		q.eng.waiting = false
		if ack {
			d := q.file.dev
			d.stats.Timeouts++
			if q.eng.tries <= uint32(q.attr.retryCnt) {
				d.stats.Retransmits++
			}
		}
		q.runSQ()
	})
}
