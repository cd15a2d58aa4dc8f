package mlx5sim

import "time"

// Execution between two QPs of one fabric: to completion, on the goroutine that
// rang the doorbell.

const grhBytes = 40

// executeUD delivers a datagram. It completes with success whatever becomes of
// it at the receiver.
func (q *qp) executeUD(op *sendOp, to *Device) bool {
	fab := q.file.dev.fab
	src, s := q.pd.resolve(fab.eng.src[:0], op.sges, op.wqe, op.length, 0)
	fab.eng.src = src
	if s != synOK {
		return q.refuse(op, s)
	}
	q.sq.next = op.end()
	if !q.deliverUD(op, to, src) {
		return q.refuse(op, synLocalProt)
	}
	q.wasLocal(op)
	q.completeSend(op, 0)
	return true
}

// wasLocal counts op, which did not leave the fabric.
func (q *qp) wasLocal(op *sendOp) {
	q.file.dev.stats.LocalMsgs++
	if fo := q.file.foreign; fo != nil {
		fo.moved(op.length)
	}
}

// udQKey is the QKey that a datagram carries: one with the top bit set in the
// work request stands for the QP's own.
func (q *qp) udQKey(av *udAV) uint32 {
	if av.qkey>>31 != 0 {
		return q.attr.qkey
	}
	return av.qkey
}

// deliverUD brings a datagram to its QP, or drops and counts it. It reports
// false where its data cannot be read.
func (q *qp) deliverUD(op *sendOp, to *Device, src []span) bool {
	fab := to.fab
	r, ok := to.udTarget(op.av.qpn, q.udQKey(&op.av))
	if !ok {
		return true
	}
	w, st := r.nextRecv()
	if st != recvOK {
		to.stats.Drops.NoReceive++
		return true
	}
	if w.length < op.length+grhBytes {
		to.stats.Drops.TooLong++
		r.failRecv(w, synLocalLen)
		return true
	}
	dst, s := r.recvPD().resolve(fab.eng.dst[:0], w.sges, nil, op.length+grhBytes, accessLocalWrite)
	fab.eng.dst = dst
	if s != synOK {
		r.failRecv(w, s)
		return true
	}
	info := recvInfo{
		byteLen: uint32(op.length) + grhBytes, imm: op.imm, hasImm: op.hasImm(), solicited: op.solicited,
		srcQPN: q.qpn, grh: op.av.isGlobal,
	}
	from := q.file.dev
	if from.infiniband() {
		info.slid, info.sl = from.lid, op.av.sl
	}
	done := movedAll
	if op.av.isGlobal { // always, on RoCE; else the first 40 bytes stay as they are
		gid := &from.gids[op.av.sgidIndex]
		g := grh{
			v1: gid.typ != gidRoCEv2, src: gid.gid, dst: op.av.dgid, trafficClass: op.av.trafficClass,
			flowLabel: op.av.flowLabel, hopLimit: op.av.hopLimit, payload: udWireBytes(op.length, op.hasImm()),
		}
		info.l3 = g.put(&fab.eng.grh)
		fab.eng.head[0] = span{mem: fab.eng.grh[:], n: grhBytes}
		done = fab.move(dst, fab.eng.head[:])
	}
	if done == movedAll {
		done = fab.move(skip(dst, grhBytes), src)
	}
	switch done {
	case cannotRead: // the receive stays for the next datagram
		return false
	case cannotWrite:
		r.failRecv(w, synLocalProt)
		return true
	}
	r.completeRecv(w, info)
	return true
}

// udTarget finds the QP that takes a datagram for qpn with qkey, or counts why
// none does. The wire asks it too.
func (d *Device) udTarget(qpn, qkey uint32) (*qp, bool) {
	r := d.qps[qpn]
	switch {
	case r == nil || r.typ != qpUD:
		d.stats.Drops.NoQP++
	case !r.receives():
		d.stats.Drops.QPState++
		if r.attr.state == stateErr {
			r.flushRQ()
		}
	case r.attr.qkey != qkey:
		d.stats.Drops.BadQKey++
	default:
		return r, true
	}
	return nil, false
}

// receives reports whether the QP's state lets packets in.
func (q *qp) receives() bool {
	switch q.attr.state {
	case stateRTR, stateRTS, stateSQD, stateSQE:
		return true
	}
	return false
}

// executeRC runs one operation against the connected QP on to.
func (q *qp) executeRC(op *sendOp, to *Device) bool {
	if q.eng.tries > uint32(q.attr.retryCnt) {
		return q.refuse(op, synRetryExc)
	}
	r := q.peer(to)
	if r == nil || q.eng.sqPSN != r.eng.rqPSN {
		return q.lost(op)
	}
	own, s := q.ownSpans(op)
	if s != synOK {
		return q.refuse(op, s)
	}
	var st rcResult
	switch op.opcode {
	case opSend, opSendImm, opSendInv:
		st = q.rcSend(op, r, own)
	case opWrite, opWriteImm:
		st = q.rcWrite(op, r, own)
	case opRead:
		st = q.rcRead(op, r, own)
	default:
		st = q.rcAtomic(op, r, own)
	}
	if !q.sends() {
		return false // what failed at the responder took q along: op is flushed
	}
	if st.rnr {
		to.stats.RNRNaks++
		return q.notReady(op, r)
	}
	if st.syn == synRemOp && r.file.gone() {
		return q.lost(op)
	}
	q.sq.next = op.end()
	if st.syn != synOK {
		q.failSend(op, st.syn)
		return false
	}
	n := q.packets(op.length)
	q.eng.sqPSN = (q.eng.sqPSN + n) & psnMask
	r.eng.rqPSN = (r.eng.rqPSN + n) & psnMask
	q.wasLocal(op)
	q.completeSend(op, uint32(op.length))
	return true
}

// ownSpans finds the memory that op's data come from or, where it fetches, go
// to.
func (q *qp) ownSpans(op *sendOp) (own []span, s syndrome) {
	eng := &q.file.dev.fab.eng
	var access uint32
	if op.fetches() {
		access = accessLocalWrite
		if q.answersInCQE(op) {
			op.inline = uint8(op.length)
			eng.src = append(eng.src[:0], span{mem: eng.inline[:op.length], n: op.length})
			return eng.src, synOK
		}
	}
	eng.src, s = q.pd.resolve(eng.src[:0], op.sges, op.wqe, op.length, access)
	return eng.src, s
}

// answersInCQE reports whether the data that op fetches go into its completion
// instead of memory.
func (q *qp) answersInCQE(op *sendOp) bool {
	return q.answerInCQE && op.signaled && op.length > 0 && op.length <= q.sendCQ.inlineBytes()
}

// rcResult is how the responder answered.
type rcResult struct {
	rnr bool
	syn syndrome // what the requester's completion shows
}

func failed(s syndrome) rcResult { return rcResult{syn: s} }

// peer is the QP of q's type on d that q is connected to, and that is connected back;
// nil if there is none that answers.
func (q *qp) peer(d *Device) *qp {
	r := d.qps[q.attr.destQPN]
	if r == nil || r.typ != q.typ {
		d.stats.Drops.NoQP++
		return nil
	}
	if !r.receives() {
		d.stats.Drops.QPState++
		if r.attr.state == stateErr {
			r.flushRQ()
		}
		return nil
	}
	if r.attr.destQPN != q.qpn || d.destination(&r.attr.dest) != q.file.dev {
		d.stats.Drops.BadSource++
		return nil
	}
	return r
}

// lost treats op as a packet that nobody answers: it is tried again after the
// timeout, 4.096 us * 2^timeout, 0 meaning never. (executeRC and, for want of a
// route, execute end the retries.)
func (q *qp) lost(op *sendOp) bool {
	if q.eng.tries > uint32(q.attr.retryCnt) {
		return q.refuse(op, synRetryExc)
	}
	q.eng.tries++
	q.wait(ackTimeout(q.attr.timeout), true)
	return false
}

// ackTimeout decodes the timeout attribute; 0 is for ever.
func ackTimeout(code uint8) time.Duration {
	if code &= 0x1f; code == 0 {
		return 0
	}
	return 4096 * time.Nanosecond << code
}

// rnrInfinite is the rnr_retry that never gives up.
const rnrInfinite = 7

// notReady handles an RNR NAK of r: try again after the time that r asks for.
func (q *qp) notReady(op *sendOp, r *qp) bool {
	q.eng.tries = 0 // it answered
	if q.attr.rnrRetry != rnrInfinite && q.eng.rnrTries >= uint32(q.attr.rnrRetry) {
		return q.refuse(op, synRNRExc)
	}
	q.eng.rnrTries++
	q.wait(rnrDelay(r.attr.minRNRTimer), false)
	return false
}

// rnrDelays is IBTA's table of RNR NAK timers in units of 10 us.
var rnrDelays = [32]uint32{
	65536, 1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192,
	256, 384, 512, 768, 1024, 1536, 2048, 3072, 4096, 6144, 8192, 12288, 16384, 24576, 32768, 49152,
}

func rnrDelay(code uint8) time.Duration {
	return time.Duration(rnrDelays[code&0x1f]) * 10 * time.Microsecond
}

// rcSend is the responder's side of a SEND. Where the data cannot be read, which
// is the requester's local error, the receive stays for the next message.
func (q *qp) rcSend(op *sendOp, r *qp, src []span) rcResult {
	fab := r.file.dev.fab
	w, st := r.nextRecv()
	switch st {
	case recvEmpty:
		return rcResult{rnr: true}
	case recvDead:
		return failed(synRemOp)
	}
	if w.length < op.length {
		r.failRecv(w, synLocalLen)
		return failed(synRemInvReq)
	}
	dst, inline, s := r.recvSpans(w, op.length)
	if s == synOK {
		switch fab.move(dst, src) {
		case cannotRead:
			return failed(synLocalProt)
		case cannotWrite:
			s = synLocalProt
		}
	}
	if s != synOK {
		r.failRecv(w, s)
		return failed(synRemOp)
	}
	if op.opcode == opSendInv && !r.file.dev.invalidate(r, op.imm) {
		r.failRecv(w, synLocalAccess)
		return failed(synRemAccess)
	}
	info := q.rcInfo(op)
	info.inline = inline
	r.completeRecv(w, info)
	return rcResult{}
}

func (q *qp) rcInfo(op *sendOp) recvInfo {
	d := q.file.dev
	info := recvInfo{
		byteLen: uint32(op.length), imm: op.imm, hasImm: op.hasImm(), inv: op.opcode == opSendInv, write: op.opcode == opWriteImm,
		solicited: op.solicited, srcQPN: q.qpn, l3: l3Of(q.attr.dest.dgid),
	}
	if d.gids[q.attr.dest.sgidIndex].typ != gidRoCEv2 {
		info.l3 = l3GRH
	}
	if d.infiniband() {
		info.slid, info.sl = d.lid, q.attr.dest.sl
	}
	return info
}

// rcWrite is the responder's side of an RDMA WRITE.
func (q *qp) rcWrite(op *sendOp, r *qp, src []span) rcResult {
	m, s := r.file.dev.remoteAccess(r, op.rkey, op.raddr, op.length, accessRemoteWrite)
	if s != synOK {
		r.accessError(s)
		return failed(s)
	}
	var w *recvWQE
	if op.opcode == opWriteImm {
		var st recvStatus
		switch w, st = r.nextRecv(); st {
		case recvEmpty:
			return rcResult{rnr: true}
		case recvDead:
			return failed(synRemOp)
		}
	}
	if m != nil {
		fab := r.file.dev.fab
		fab.eng.head[0] = m.spanOf(op.raddr, op.length)
		switch fab.move(fab.eng.head[:], src) {
		case cannotRead:
			return failed(synLocalProt)
		case cannotWrite:
			r.toError()
			return failed(synRemOp)
		}
	}
	if w != nil {
		r.completeRecv(w, q.rcInfo(op))
	}
	return rcResult{}
}

// rcRead is the responder's side of an RDMA READ.
func (q *qp) rcRead(op *sendOp, r *qp, dst []span) rcResult {
	s := synRemInvReq
	var m *mr
	if r.attr.maxDestRd > 0 {
		m, s = r.file.dev.remoteAccess(r, op.rkey, op.raddr, op.length, accessRemoteRead)
	}
	if s != synOK {
		r.accessError(s)
		return failed(s)
	}
	if m != nil {
		fab := r.file.dev.fab
		fab.eng.head[0] = m.spanOf(op.raddr, op.length)
		switch fab.move(dst, fab.eng.head[:]) {
		case cannotRead:
			r.toError()
			return failed(synRemOp)
		case cannotWrite:
			return failed(synLocalProt)
		}
	}
	return rcResult{}
}

// accessError is what becomes of a responder that had to refuse an RDMA
// operation: no work request of its own failed, so an async event tells, and the
// QP goes to ERR.
func (q *qp) accessError(s syndrome) {
	if q.typ == qpUC {
		q.file.dev.stats.Drops.Refused++ // nobody is told: the message is dropped
		return
	}
	if q.attr.state == stateErr {
		return
	}
	if s == synRemAccess {
		q.asyncEvent(eventQPAccessErr)
	} else {
		q.asyncEvent(eventQPReqErr)
	}
	q.toError()
}
