package mlx5sim

import (
	"time"

	"github.com/rrppcc-go/rrppcc/internal/roce"
)

// requester is a connected QP's sending half over the link (IBTA 9.7); what UC
// does otherwise is in pumpUC. Operations
// that the SQ handed over wait in a ring until they are acknowledged. Packet i
// of an operation has PSN psn+i and, of the data, the i-th MTU; for a READ these
// are the PSNs of the responses. Going back is therefore only moving the send
// position to an earlier PSN.
type requester struct {
	touched bool // in wire.touched
	timed   bool // in wire.timed
	ready   bool // the rest is set up; UD uses next alone
	path    path
	routed  bool // path leads somewhere
	mtu     uint32

	ops        []wireOp // ring
	head, tail uint32   // free-running: ops in flight or waiting
	cur        uint32   // the op that is sent next, head <= cur <= tail
	pkt        uint32   // its packet
	full       bool     // refused an op when head was fullAt
	fullAt     uint32

	una  uint32 // PSN: all before it are answered
	snd  uint32 // PSN of the next packet, of op cur
	max  uint32 // PSN behind the last one ever sent
	next uint32 // PSN of the next op; UD: datagrams sent

	// Flow control: as many PSNs in flight as the path takes without loss,
	// learnt as TCP does, in packets.
	window, threshold, credit int32
	burst                     uint32 // UC: packets that it has sent since it paused

	reads     [maxReads]uint32 // PSNs behind the READ and atomic requests in flight
	readsHead uint32
	readsTail uint32

	recovering bool          // went back, and nothing new was answered since
	retries    uint32        // of una
	rnrTries   uint32        // of una
	waitRNR    time.Duration // to wait before una is sent again; 0: not waiting
	rearm      bool          // the timer starts anew at the end of the burst
	deadline   time.Duration // 0: none
}

// wireOp is an operation in the ring.
type wireOp struct {
	op     sendOp
	psn    uint32
	n      uint32 // PSNs
	failed syndrome
}

const (
	wireOps  = 64 // operations in the ring
	maxReads = 16 // READ and atomic requests in flight, whatever max_rd_atomic says

	// windowBytes bounds what is in flight, sent or asked for, so that it fits
	// the socket buffers of an unprivileged process; readBytes what one READ
	// request asks for.
	windowBytes = 256 << 10
	readBytes   = 64 << 10
	minWindow   = 16 // packets
	maxWindow   = 256

	ackEvery = 16 // packets of a message between requests for an ACK

	// minTimeout bounds the ACK timer from below. Hardware may wait up to four
	// times as long as the timeout says (IBTA 9.7.6.1.3); behind a socket and a
	// scheduler less than this is noise.
	minTimeout = 5 * time.Millisecond

	// psnSpan is how many PSNs may be in the ring: half of all, less one, or
	// before and after could not be told apart.
	psnSpan = 1<<23 - 1
)

// wireSend takes op over for the wire, or answers false where it cannot: then
// resumeSQ is called when it can.
func (q *qp) wireSend(op *sendOp) (accepted bool) {
	if q.typ == qpUD {
		q.sendDatagram(op)
		return true
	}
	q.startRequester()
	r := &q.req
	n := q.packets(op.length)
	if r.tail-r.head == wireOps || r.tail != r.head && uint32(psnDiff(r.next, r.una))+n > psnSpan {
		r.full, r.fullAt = true, r.head
		return false
	}
	o := &r.ops[r.tail%wireOps]
	o.op.copyFrom(op)
	o.psn, o.n, o.failed = r.next, n, synOK
	r.next = (r.next + n) & psnMask
	r.tail++
	q.touch()
	return true
}

func (q *qp) startRequester() {
	r := &q.req
	if r.ready {
		return
	}
	psn := q.attr.sqPSN & psnMask
	if r.ops == nil {
		r.ops = make([]wireOp, wireOps)
	}
	r.ready = true
	r.mtu = q.pathMTUBytes()
	r.path, r.routed = q.file.dev.pathOf(&q.attr.dest)
	r.una, r.snd, r.max, r.next = psn, psn, psn, psn
	r.window, r.threshold = minWindow, r.windowLimit()
}

func (r *requester) windowLimit() int32 {
	return min(max(windowBytes/int32(r.mtu), minWindow), maxWindow)
}

// wireFirst reports whether sends of q are still on the wire, and if so makes
// the SQ wait until one is through. What does not go over the wire asks it, so
// that completions stay in order.
func (q *qp) wireFirst() bool {
	r := &q.req
	if r.head == r.tail {
		return false
	}
	r.full, r.fullAt = true, r.head
	q.eng.wireBusy = true
	return true
}

// refill lets the SQ go on where the ring was full and has room.
func (q *qp) refill() {
	r := &q.req
	if r.full && r.head != r.fullAt {
		r.full = false
		q.resumeSQ()
	}
}

// pump sends what the window, the READ limit and fences let through.
func (q *qp) pump() {
	r := &q.req
	for r.ready && r.waitRNR == 0 && r.cur != r.tail {
		o := &r.ops[r.cur%wireOps]
		flight := psnDiff(r.snd, r.una)
		if o.failed != synOK || flight >= r.window {
			break
		}
		if o.op.fence && r.pkt == 0 && r.readBefore(r.cur) {
			break
		}
		n := uint32(1)
		if o.op.fetches() {
			if o.op.opcode == opRead {
				n = r.readChunk(o)
			}
			if flight > 0 && flight+int32(n) > r.window || r.readsTail-r.readsHead >= q.readLimit() {
				break
			}
			q.sendFetch(o, n)
		} else if s := q.sendPacket(o, flight+1 >= r.window); s != synOK {
			o.failed = s
			break
		}
		if flight == 0 {
			r.rearm = true
		}
		if psnDiff(r.snd, r.max) < 0 {
			q.file.dev.stats.Retransmits++
		}
		r.snd = (r.snd + n) & psnMask
		if psnDiff(r.snd, r.max) > 0 {
			r.max = r.snd
		}
		if r.pkt += n; r.pkt == o.n {
			r.cur++
			r.pkt = 0
		}
	}
	// An operation that could not be sent fails in its turn.
	if r.ready && r.head != r.tail {
		if o := &r.ops[r.head%wireOps]; o.failed != synOK {
			q.failSend(&o.op, o.failed)
		}
	}
}

// readBefore reports whether a READ or an atomic is outstanding before op i.
func (r *requester) readBefore(i uint32) bool {
	for k := r.head; k != i; k++ {
		if r.ops[k%wireOps].op.fetches() {
			return true
		}
	}
	return false
}

// readLimit is how many READs and atomics may be in flight.
func (q *qp) readLimit() uint32 { return min(max(uint32(q.attr.maxRdAtomic), 1), maxReads) }

// readChunk is the number of responses that the next request of o asks for. A
// long READ is asked for in pieces, which begin and end at fixed places: a
// repeated request must not reach beyond what was asked for before.
func (r *requester) readChunk(o *wireOp) uint32 {
	size := max(readBytes/r.mtu, 1)
	return min((r.pkt/size+1)*size, o.n) - r.pkt
}

// sendFetch sends the request of an atomic, or of n packets of a READ.
func (q *qp) sendFetch(o *wireOp, n uint32) {
	r, d := &q.req, q.file.dev
	r.reads[r.readsTail%maxReads] = (r.snd + n) & psnMask
	r.readsTail++
	if !r.routed {
		d.stats.Drops.Unreachable++
		return
	}
	opcode := roce.RCReadRequest
	switch o.op.opcode {
	case opCmpSwap:
		opcode = roce.RCCmpSwap
	case opFetchAdd:
		opcode = roce.RCFetchAdd
	}
	b := d.room(roce.Size(opcode, 0))
	h := roce.BTH{Opcode: opcode, MigReq: true, PKey: defaultPKey, DestQPN: q.attr.destQPN, AckReq: true, PSN: r.snd}
	h.Put(b)
	if o.op.isAtomic() {
		roce.AtomicETH{VA: o.op.raddr, RKey: o.op.rkey, SwapAdd: o.op.swapAdd, Compare: o.op.compare}.Put(b[roce.BTHSize:])
	} else {
		off := uint64(r.pkt) * uint64(r.mtu)
		length := min(uint64(n)*uint64(r.mtu), o.op.length-off)
		roce.RETH{VA: o.op.raddr + off, RKey: o.op.rkey, Length: uint32(length)}.Put(b[roce.BTHSize:])
	}
	d.commit(&r.path, b)
}

// sendPacket sends the next packet of a SEND or WRITE. An acknowledgement is
// asked for at the end of a message, now and then within, and where the window
// closes.
func (q *qp) sendPacket(o *wireOp, closes bool) syndrome {
	r, d := &q.req, q.file.dev
	first, last := r.pkt == 0, r.pkt+1 == o.n
	off := uint64(r.pkt) * uint64(r.mtu)
	n := int(min(uint64(r.mtu), o.op.length-off))
	opcode := requestOpcode(o.op.opcode, first, last)
	ack := last || closes || r.pkt%ackEvery == ackEvery-1
	if q.typ == qpUC {
		opcode, ack = opcode|roce.UCSendFirst, false
	}
	b := d.room(roce.Size(opcode, n))
	h := roce.BTH{Opcode: opcode, Solicited: last && o.op.solicited, MigReq: true, Pad: uint8(roce.Pad(n)), PKey: defaultPKey,
		DestQPN: q.attr.destQPN, AckReq: ack, PSN: r.snd}
	h.Put(b)
	at := opcode.HeaderSize()
	if opcode.IsWrite() && first {
		roce.RETH{VA: o.op.raddr, RKey: o.op.rkey, Length: uint32(o.op.length)}.Put(b[roce.BTHSize:])
	}
	if opcode.HasImm() || opcode.HasIETH() {
		roce.PutUint32(b[at-roce.ImmSize:], o.op.imm) // an IETH is as long
	}
	if s := q.gather(&o.op, off, b[at:at+n]); s != synOK {
		return s
	}
	clear(b[at+n:])
	if !r.routed {
		d.stats.Drops.Unreachable++
		return synOK
	}
	d.commit(&r.path, b)
	return synOK
}

// requestOpcode is RC's opcode for a packet of the WQE opcode op.
func requestOpcode(op uint8, first, last bool) roce.Opcode {
	base := roce.RCSendFirst
	if op == opWrite || op == opWriteImm {
		base = roce.RCWriteFirst
	}
	if op == opSendInv && last {
		if first {
			return roce.RCSendOnlyInv
		}
		return roce.RCSendLastInv
	}
	imm := roce.Opcode(0)
	if op == opSendImm || op == opWriteImm {
		imm = 1
	}
	switch {
	case first && last:
		return base + 4 + imm
	case first:
		return base
	case last:
		return base + 2 + imm
	}
	return base + 1
}

// onResponse handles an acknowledgement or the answer to a READ or an atomic.
func (q *qp) onResponse(p *roce.Packet) {
	r := &q.req
	if !r.ready || psnDiff(p.PSN, r.una) < 0 || psnDiff(p.PSN, r.max) >= 0 {
		q.file.dev.stats.Drops.Duplicate++
		return
	}
	q.touch()
	switch {
	case p.Opcode.IsReadResponse():
		q.onReadResponse(p)
		return
	case p.Opcode == roce.RCAtomicAck:
		q.onAtomicAck(p)
		return
	}
	s := p.AETH().Syndrome
	if s.IsAck() {
		if !q.advance((p.PSN + 1) & psnMask) {
			q.lostResponse()
		}
		return
	}
	// A NAK acknowledges all before it.
	if !q.advance(p.PSN) {
		q.lostResponse()
		return
	}
	switch {
	case s.IsRNR():
		q.onRNR(s.Code())
	case s == roce.NAKSequence:
		q.goBack()
	case s == roce.NAKInvalidRequest:
		q.failHead(synRemInvReq)
	case s == roce.NAKRemoteAccess:
		q.failHead(synRemAccess)
	case s == roce.NAKRemoteOp:
		q.failHead(synRemOp)
	default:
		q.file.dev.stats.Drops.Malformed++
	}
}

// advance takes all PSNs before psn as acknowledged. It reports false where
// one of them belongs to a READ or an atomic, whose data an acknowledgement does
// not bring, or where the QP went down meanwhile.
func (q *qp) advance(psn uint32) bool {
	r := &q.req
	for r.ready && r.una != psn {
		o := &r.ops[r.head%wireOps]
		if o.op.fetches() {
			return false
		}
		end := (o.psn + o.n) & psnMask
		if psnDiff(psn, end) < 0 {
			r.answered(psn)
			break
		}
		r.answered(end)
		r.head++
		q.completeSend(&o.op, uint32(o.op.length))
	}
	return r.ready
}

// answered moves una to psn, which is progress.
func (r *requester) answered(psn uint32) {
	n := psnDiff(psn, r.una)
	r.una = psn
	r.recovering = false
	r.retries, r.rnrTries = 0, 0
	r.rearm = true
	for r.readsHead != r.readsTail && psnDiff(r.reads[r.readsHead%maxReads], psn) <= 0 {
		r.readsHead++
	}
	if psnDiff(r.snd, psn) < 0 {
		r.seek(psn) // what was to be repeated arrived after all
	}
	if r.window < r.threshold {
		r.window = min(r.window+n, r.windowLimit())
	} else if r.credit += n; r.credit >= r.window {
		r.credit = 0
		r.window = min(r.window+1, r.windowLimit())
	}
}

// seek moves the send position to psn, between una and next.
func (r *requester) seek(psn uint32) {
	r.snd = psn
	for r.cur = r.head; r.cur != r.tail; r.cur++ {
		o := &r.ops[r.cur%wireOps]
		if k := psnDiff(psn, o.psn); uint32(k) < o.n && k >= 0 {
			r.pkt = uint32(k)
			return
		}
	}
	r.pkt = 0
}

func (q *qp) onReadResponse(p *roce.Packet) {
	r := &q.req
	if !q.advance(p.PSN) {
		q.lostResponse()
		return
	}
	o := &r.ops[r.head%wireOps]
	if o.op.opcode != opRead || p.Opcode != roce.RCReadRespMiddle && !p.AETH().Syndrome.IsAck() {
		q.file.dev.stats.Drops.Malformed++
		return
	}
	i := uint32(psnDiff(r.una, o.psn))
	off := uint64(i) * uint64(r.mtu)
	if uint64(len(p.Payload)) != min(uint64(r.mtu), o.op.length-off) {
		q.failHead(synBadResp)
		return
	}
	q.takeAnswer(o, i, off, p.Payload)
}

// takeAnswer stores data of the i-th packet that answers o, the oldest
// operation, and ends o with the last one.
func (q *qp) takeAnswer(o *wireOp, i uint32, off uint64, data []byte) {
	r := &q.req
	if q.answersInCQE(&o.op) {
		o.op.inline = uint8(copy(q.file.dev.fab.eng.inline[:], data))
	} else if s := q.scatterLocal(&o.op, off, data); s != synOK {
		q.failHead(s)
		return
	}
	r.answered((r.una + 1) & psnMask)
	if i+1 == o.n {
		r.head++
		q.completeSend(&o.op, uint32(o.op.length))
	}
}

// lostResponse asks again for READ responses that did not come although later
// ones did. More of the later ones may still be under way.
func (q *qp) lostResponse() {
	if q.req.ready && !q.req.recovering {
		q.goBack()
	}
}

// goBack sends everything from una on again.
func (q *qp) goBack() {
	r := &q.req
	if r.retries++; r.retries > uint32(q.attr.retryCnt) {
		q.failHead(synRetryExc)
		return
	}
	r.threshold = max(r.window/2, 4)
	r.window, r.credit = r.threshold, 0
	r.restart()
}

// restart puts the send position to una.
func (r *requester) restart() {
	r.recovering = true
	r.rearm = true
	r.readsHead = r.readsTail
	r.seek(r.una)
}

// onRNR waits as the responder asks, then sends una again.
func (q *qp) onRNR(code uint8) {
	r := &q.req
	if q.attr.rnrRetry != rnrInfinite && r.rnrTries >= uint32(q.attr.rnrRetry) {
		q.failHead(synRNRExc)
		return
	}
	r.rnrTries++
	r.retries = 0 // it answered
	r.restart()
	r.waitRNR = rnrDelay(code)
}

// failHead ends the oldest operation with an error, and with it the QP.
func (q *qp) failHead(s syndrome) {
	r := &q.req
	if r.ready && r.head != r.tail {
		q.failSend(&r.ops[r.head%wireOps].op, s)
	}
}

// setRequestDeadline sets the timer that the requester's state calls for.
func (q *qp) setRequestDeadline(now time.Duration) {
	r := &q.req
	switch {
	case !r.ready:
		r.deadline = 0
	case q.typ == qpUC:
		if r.burst > 0 && r.deadline == 0 {
			r.deadline = now + ucPause
		}
	case r.waitRNR != 0:
		if r.rearm {
			r.deadline = now + r.waitRNR
		}
	case r.snd == r.una:
		r.deadline = 0 // nothing is in flight
	case r.rearm:
		r.deadline = 0
		if t := ackTimeout(q.attr.timeout); t != 0 {
			r.deadline = now + max(t, minTimeout)
		}
	}
	r.rearm = false
}

// expire handles the requester's deadline.
func (q *qp) expire() {
	r := &q.req
	q.touch()
	if q.typ == qpUC {
		r.burst = 0
		return
	}
	if r.waitRNR != 0 {
		r.waitRNR = 0
		return
	}
	q.file.dev.stats.Timeouts++
	q.goBack()
}
