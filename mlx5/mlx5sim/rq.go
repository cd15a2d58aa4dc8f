package mlx5sim

// recvWQE is a decoded receive WQE. Its memory belongs to the QP, which has at
// most one taken at a time.
type recvWQE struct {
	index  uint16
	sges   []dataSeg
	length uint64 // bytes of all sges
}

// recvStatus is the answer of takeRecv.
type recvStatus uint8

const (
	recvOK    recvStatus = iota
	recvEmpty            // nothing is posted
	recvDead             // the RQ cannot be used; the QP is in ERR now
)

// takeRecv takes the oldest posted receive. It is completed by completeRecv,
// failRecv or a flush.
func (q *qp) takeRecv() (*recvWQE, recvStatus) {
	w := &q.eng.recv
	if q.rq.ci == q.rq.pi {
		if !q.syncRQ() {
			q.overflow()
			return nil, recvDead
		}
		if q.rq.ci == q.rq.pi {
			return nil, recvEmpty
		}
	}
	w.index = uint16(q.rq.ci)
	w.sges, w.length = w.sges[:0], 0
	at := q.rq.buf + uint64(q.rq.ci&(q.rq.size-1))*uint64(q.rq.stride)
	q.rq.ci++
	q.eng.recvTaken = true
	b := q.file.dma.View(at, int(q.rq.stride))
	if b == nil {
		buf := &q.file.dev.fab.eng.rwqe
		*buf = grow(*buf, int(q.rq.stride))
		if q.file.dma.Read(at, *buf) != nil {
			q.failRecv(w, synLocalQPOp)
			return nil, recvDead
		}
		b = *buf
	}
	w.decode(b)
	return w, recvOK
}

// decode reads the scatter list: data segments up to the terminator (byte
// count 0, lkey 0x100) or the end of the stride. Other empty segments are
// skipped.
func (w *recvWQE) decode(b []byte) {
	for ; len(b) >= segBytes; b = b[segBytes:] {
		n := be.Uint32(b) &^ dataInline // the bit is reserved
		lkey := be.Uint32(b[4:])
		if n == 0 {
			if lkey == terminatorLKey {
				return
			}
			continue
		}
		w.sges = append(w.sges, dataSeg{addr: be.Uint64(b[8:]), n: n, lkey: lkey})
		w.length += uint64(n)
	}
}

// scatterRecv copies src to offset off of w's buffers.
func (q *qp) scatterRecv(w *recvWQE, off uint64, src []byte) syndrome {
	return q.window(w.sges, nil, off, src, true)
}

// recvInfo is what a receive completion tells about the message.
type recvInfo struct {
	byteLen   uint32 // UD: with the 40 bytes of the GRH
	imm       uint32
	hasImm    bool
	write     bool // RDMA WRITE with immediate
	solicited bool
	srcQPN    uint32
	grh       bool  // the buffers start with a GRH: UD
	l3        uint8 // l3GRH, l3IPv6 or l3IPv4
}

// completeRecv ends w with success.
func (q *qp) completeRecv(w *recvWQE, info recvInfo) {
	if !q.eng.recvTaken {
		return
	}
	q.eng.recvTaken = false
	op := uint8(cqeRespSend)
	switch {
	case info.write:
		op = cqeRespWrImm
	case info.hasImm:
		op = cqeRespSendImm
	}
	q.recvCQ.add(&cqe{
		opcode: op, uidx: q.uidx, qpn: q.qpn, counter: w.index, byteCount: info.byteLen, imm: info.imm,
		srcQPN: info.srcQPN, grh: info.grh, l3: info.l3, solicited: info.solicited,
	})
}

// failRecv ends w with an error CQE; the QP goes to ERR.
func (q *qp) failRecv(w *recvWQE, s syndrome) {
	if !q.eng.recvTaken {
		return
	}
	q.eng.recvTaken = false
	q.recvCQ.add(&cqe{opcode: cqeRespErr, uidx: q.uidx, qpn: q.qpn, counter: w.index, syn: s})
	q.toError()
}
