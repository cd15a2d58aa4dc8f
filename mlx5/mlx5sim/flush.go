package mlx5sim

// In ERR every work request completes with WR_FLUSH_ERR, in order, signaled or
// not. So does what is posted later: a send when its doorbell rings, and a
// receive, which rings none, when somebody looks at the QP: a doorbell, the arming
// of its CQ, a packet, or errWatch. (The program of another process has its
// doorbell records looked at anyway; see Foreign.Poll.)

// toError moves the QP to ERR by the device's own doing, and flushes it.
func (q *qp) toError() {
	if q.attr.state == stateErr || q.attr.state == stateReset {
		return
	}
	q.attr.state = stateErr
	q.flush()
}

// overflow handles a doorbell record that announces more than its queue
// holds: the QP cannot go on, and no work request can be told to have failed.
func (q *qp) overflow() {
	if q.attr.state == stateErr {
		return
	}
	q.asyncEvent(eventQPFatal)
	q.toError()
}

// flush empties both queues of a QP that just went to ERR.
func (q *qp) flush() {
	if !q.eng.counted {
		q.countErr(1)
	}
	q.quiesceSQ()
	q.flushSQ()
	q.flushRQ()
	if q.srq != nil {
		q.asyncEvent(eventLastWQEReached) // what is still on the SRQ is not this QP's
	}
}

// countErr tells those who have to look after QPs in ERR that q is one (1) or
// is one no more (-1).
func (q *qp) countErr(n int) {
	q.eng.counted = n > 0
	q.recvCQ.eng.errQPs += n
	if fo := q.file.foreign; fo != nil {
		fo.errQPs.Add(int32(n))
	} else if q.file.watched && q.rq.size > 0 {
		if w := &q.file.dev.errors; n > 0 {
			w.add(q.file.dev, q)
		} else {
			w.remove(q)
		}
	}
}

// flushSQ completes all that is on the SQ, in execution or not.
func (q *qp) flushSQ() {
	q.syncSQ() // an overflow is ignored: what was valid before is flushed
	for q.sq.ci != q.sq.pi {
		at := q.sq.buf + uint64(q.sq.ci&(q.sq.size-1))*wqebbBytes
		var ctrl [segBytes]byte
		if v := q.file.dma.View(at, segBytes); v != nil {
			ctrl = [segBytes]byte(v)
		} else if q.file.dma.Read(at, ctrl[:]) != nil {
			ctrl = [segBytes]byte{}
		}
		_, wqebbs := decodeCtrl(ctrl[:])
		index := q.sq.ci
		q.sq.ci += min(wqebbs, q.sq.pi-q.sq.ci)
		q.sendCQ.add(&cqe{opcode: cqeReqErr, uidx: q.uidx, qpn: q.qpn, wqeOpcode: ctrl[3], counter: uint16(index), syn: synFlush})
	}
	q.sq.next = q.sq.ci
}

// flushRQ completes the receive that a message was being written to, and all
// that are posted.
func (q *qp) flushRQ() {
	if q.eng.recvTaken {
		q.eng.recvTaken = false
		q.flushedRecv(q.eng.recv.index)
	}
	q.syncRQ()
	for q.rq.ci != q.rq.pi {
		index := uint16(q.rq.ci)
		q.rq.ci++
		q.flushedRecv(index)
	}
}

func (q *qp) flushedRecv(index uint16) {
	q.recvCQ.add(&cqe{opcode: cqeRespErr, uidx: q.recvTag(), qpn: q.qpn, counter: index, syn: synFlush})
}
