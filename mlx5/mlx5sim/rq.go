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
	if q.srq != nil {
		return q.takeShared()
	}
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
	at := q.rq.slot(q.rq.ci)
	q.rq.ci++
	q.eng.recvTaken = true
	b := q.file.dma.View(at, int(q.rq.stride))
	if b == nil {
		if b = q.copyRecv(at, q.rq.stride); b == nil {
			q.failRecv(w, synLocalQPOp)
			return nil, recvDead
		}
	}
	w.decode(b)
	return w, recvOK
}

// nextRecv is takeRecv, but for a QP that took a receive for a message which
// was lost underway, or whose sender could not read it: the next message gets
// it.
func (q *qp) nextRecv() (*recvWQE, recvStatus) {
	if q.eng.recvTaken {
		return &q.eng.recv, recvOK
	}
	return q.takeRecv()
}

// slot is the address of the entry of index i.
func (w *wq) slot(i uint32) uint64 { return w.buf + uint64(i&(w.size-1))*uint64(w.stride) }

// copyRecv returns a copy of the receive WQE of n bytes at addr, nil if it
// cannot be read. It is valid until the next call.
func (q *qp) copyRecv(addr uint64, n uint32) []byte {
	buf := &q.file.dev.fab.eng.rwqe
	*buf = grow(*buf, int(n))
	if q.file.dma.Read(addr, *buf) != nil {
		return nil
	}
	return *buf
}

// recvPD is the PD that the segments of q's receives belong to.
func (q *qp) recvPD() *pd {
	if q.srq != nil {
		return q.srq.pd
	}
	return q.pd
}

// recvTag is what receive completions carry in srqn_uidx: the QP's user index
// or, in CQE version 0, the SRQ's number.
func (q *qp) recvTag() uint32 {
	if q.srq != nil && q.file.cqeVersion == 0 {
		return q.srq.srqn
	}
	return q.uidx
}

// intoCQE reports whether n bytes of received data go into the completion
// instead of the buffers.
func (q *qp) intoCQE(n uint64) bool {
	return q.recvInCQE && n > 0 && n <= q.recvCQ.inlineBytes()
}

// recvSpans finds where the first n bytes of w's data go. For data that goes
// into the CQE that is scratch memory, and inline is their number.
func (q *qp) recvSpans(w *recvWQE, n uint64) (dst []span, inline uint8, s syndrome) {
	eng := &q.file.dev.fab.eng
	if q.intoCQE(n) {
		eng.dst = append(eng.dst[:0], span{mem: eng.inline[:n], n: n})
		return eng.dst, uint8(n), synOK
	}
	eng.dst, s = q.recvPD().resolve(eng.dst[:0], w.sges, nil, n, accessLocalWrite)
	return eng.dst, 0, s
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
	return q.recvPD().window(w.sges, nil, off, src, true)
}

// recvInfo is what a receive completion tells about the message.
type recvInfo struct {
	byteLen   uint32 // UD: with the 40 bytes of the GRH
	imm       uint32
	hasImm    bool
	inv       bool  // SEND with invalidate: imm is the key
	inline    uint8 // bytes of the data that the CQE carries
	write     bool  // RDMA WRITE with immediate
	solicited bool
	srcQPN    uint32
	grh       bool  // the buffers start with a GRH: UD, on InfiniBand if there is one
	l3        uint8 // l3GRH, l3IPv6 or l3IPv4
	sl        uint8 // InfiniBand only
	slid      uint16
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
	case info.inv:
		op = cqeRespSendInv
	}
	q.recvCQ.add(&cqe{
		opcode: op, uidx: q.recvTag(), qpn: q.qpn, counter: w.index, byteCount: info.byteLen, imm: info.imm,
		srcQPN: info.srcQPN, grh: info.grh, l3: info.l3, sl: info.sl, slid: info.slid, solicited: info.solicited,
		inline: info.inline,
	})
}

// failRecv ends w with an error CQE; the QP goes to ERR.
func (q *qp) failRecv(w *recvWQE, s syndrome) {
	if !q.eng.recvTaken {
		return
	}
	q.eng.recvTaken = false
	q.recvCQ.add(&cqe{opcode: cqeRespErr, uidx: q.recvTag(), qpn: q.qpn, counter: w.index, syn: s})
	q.toError()
}
