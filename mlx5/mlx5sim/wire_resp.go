package mlx5sim

import (
	"time"

	"github.com/rrppcc-go/rrppcc/internal/roce"
)

// responder is an RC QP's receiving half over the link (IBTA 9.7.4, 9.9.3).
//
// Requests are executed in the order of their PSNs, each as it arrives; the
// answers leave at the end of the burst. READs queue up as jobs, and nothing that
// would acknowledge a later request leaves before them.
type responder struct {
	ready bool // all of it is set up; path, epsn and msn outlive it for a last NAK
	path  path
	mtu   uint32

	epsn uint32 // expected PSN
	msn  uint32 // messages executed
	nak  bool   // epsn was asked for with a NAK: no other until it comes

	owed   owed // the answer to send behind the jobs
	owedS  roce.Syndrome
	ackPSN uint32 // of owedAck

	// The message of which a First has come and no Last.
	msg    uint8 // opSend, opWrite, or opNOP: none
	off    uint64
	va     uint64 // of a WRITE
	rkey   uint32
	length uint64

	jobs     readQueue
	results  atomicResults
	deadline time.Duration // when the jobs go on
}

type owed uint8

const (
	owedNothing owed = iota
	owedAck          // of all up to ackPSN
	owedNAK          // owedS for epsn
)

// readQueue is the READs and atomics to answer, oldest first.
type readQueue struct {
	job [maxReads]readJob
	at  uint32 // the oldest
	n   uint32
}

type readJob struct {
	va     uint64
	rkey   uint32
	length uint64
	psn    uint32
	msn    uint32
	again  bool   // asked for once more
	next   uint32 // packet to send next
	n      uint32 // packets
	atomic bool   // executed already: value is the answer
	value  uint64
}

// A requester of ours asks for no more than its window. Others may ask for a
// gigabyte at once: it goes out in bursts, so that sockets can keep up.
const (
	readBurst = 64 // packets
	readPause = 200 * time.Microsecond
)

func (q *qp) startResponder() {
	r := &q.resp
	if r.ready {
		return
	}
	r.ready = true
	r.mtu = q.pathMTUBytes()
	r.path, _ = q.file.dev.pathOf(&q.attr.dest) // without one, no packet has the right source
	r.epsn, r.msn = q.attr.rqPSN&psnMask, 0
	r.msg = opNOP
}

// onRequest handles a packet of the requester's, first by its PSN.
func (q *qp) onRequest(p *roce.Packet) {
	r, stats := &q.resp, &q.file.dev.stats
	switch k := psnDiff(p.PSN, r.epsn); {
	case k > 0:
		stats.Drops.OutOfOrder++
		if !r.nak {
			stats.SequenceNaks++
			q.owe(owedNAK, roce.NAKSequence)
		}
	case k < 0:
		stats.Drops.Duplicate++
		if p.Opcode == roce.RCReadRequest {
			q.repeatRead(p)
		} else if p.Opcode == roce.RCCmpSwap || p.Opcode == roce.RCFetchAdd {
			q.repeatAtomic(p)
		} else if r.owed != owedNAK {
			q.oweAck(p.PSN) // the first one got lost
		}
	default:
		q.executeRequest(p)
	}
}

// owe notes the answer to send at the end of the burst. A NAK silences the
// responder until the packet comes that it asks for.
func (q *qp) owe(what owed, s roce.Syndrome) {
	q.resp.owed, q.resp.owedS = what, s
	if what == owedNAK {
		q.resp.nak = true
	}
	q.touch()
}

// oweAck notes that all up to psn is to be acknowledged: that of a SEND or
// WRITE, because a requester may take the acknowledgement of a READ's or an
// atomic's PSN for the end of an operation whose data it has not seen.
func (q *qp) oweAck(psn uint32) {
	r := &q.resp
	if r.owed != owedAck || psnDiff(psn, r.ackPSN) > 0 {
		r.ackPSN = psn
	}
	q.owe(owedAck, 0)
}

// executeRequest handles the packet that is expected.
func (q *qp) executeRequest(p *roce.Packet) {
	r := &q.resp
	if r.owed == owedNAK {
		r.owed = owedNothing
	}
	r.nak = false
	n := uint64(len(p.Payload))
	mtu := uint64(r.mtu)
	first, last := p.Opcode.IsFirst(), p.Opcode.IsLast()
	msg := uint8(opSend)
	switch {
	case p.Opcode.IsWrite():
		msg = opWrite
	case p.Opcode == roce.RCReadRequest:
		msg = opRead
	case p.Opcode == roce.RCCmpSwap:
		msg = opCmpSwap
	case p.Opcode == roce.RCFetchAdd:
		msg = opFetchAdd
	}
	// A message is First, Middles, Last, or Only; all but the end are full.
	if first != (r.msg == opNOP) || !first && r.msg != msg || n > mtu || !last && n != mtu || last && !first && n == 0 {
		q.refuseRequest(roce.NAKInvalidRequest, synRemInvReq)
		return
	}
	var done bool
	switch msg {
	case opRead:
		done = q.acceptRead(p)
	case opCmpSwap, opFetchAdd:
		done = q.acceptAtomic(p)
	case opWrite:
		done = q.executeWrite(p, first, last)
	default:
		done = q.executeSend(p, first, last)
	}
	if !done || !r.ready {
		return
	}
	if last {
		r.msg = opNOP
	} else {
		r.msg = msg
	}
	if msg&opRead == 0 { // a READ and an atomic have done so, and are answered otherwise
		r.epsn = (r.epsn + 1) & psnMask
		if last {
			r.msn = (r.msn + 1) & psnMask
		}
		if p.AckReq || r.owed == owedAck {
			q.oweAck(p.PSN)
		}
	}
}

// refuseRequest answers with a NAK that ends the requester's operation, and
// puts this QP into ERR with an async event.
func (q *qp) refuseRequest(nak roce.Syndrome, s syndrome) {
	q.fatalNAK(nak)
	q.accessError(s)
}

// fatalNAK sends a NAK at once, behind all READs: this QP is about to stop.
func (q *qp) fatalNAK(s roce.Syndrome) {
	q.answerReads(^uint32(0))
	if q.resp.ready && (s != roce.NAKRemoteOp || !q.file.gone()) {
		q.sendAck(s, q.resp.epsn)
	}
}

func nakOf(s syndrome) roce.Syndrome {
	switch s {
	case synRemInvReq:
		return roce.NAKInvalidRequest
	case synRemAccess:
		return roce.NAKRemoteAccess
	}
	return roce.NAKRemoteOp
}

// executeSend puts a packet of a SEND into the receive that it began with.
// False: the packet was not executed.
func (q *qp) executeSend(p *roce.Packet, first, last bool) bool {
	r := &q.resp
	w := &q.eng.recv
	if first {
		if !q.beginRecv() {
			return false
		}
		r.off = 0
	}
	inline, s := q.storeSend(p, first && last)
	if s != synOK {
		nak := roce.NAKRemoteOp
		if s == synLocalLen {
			nak = roce.NAKInvalidRequest
		}
		q.fatalNAK(nak)
		q.failRecv(w, s)
		return false
	}
	if !last {
		return true
	}
	if p.Opcode.HasIETH() && !q.file.dev.invalidate(q, p.InvalidateRKey()) {
		q.fatalNAK(roce.NAKRemoteAccess)
		q.failRecv(w, synLocalAccess)
		return false
	}
	info := q.wireInfo(p, r.off)
	info.inline = inline
	q.completeRecv(w, info)
	return true
}

// storeSend puts the payload of a packet of a SEND behind that of those before it,
// or, if it is the only one and short, aside for the CQE: inline bytes of it.
func (q *qp) storeSend(p *roce.Packet, only bool) (inline uint8, s syndrome) {
	r, w := &q.resp, &q.eng.recv
	n := uint64(len(p.Payload))
	if w.length < r.off+n {
		return 0, synLocalLen
	}
	if only && q.intoCQE(n) {
		inline = uint8(copy(q.file.dev.fab.eng.inline[:], p.Payload))
	} else if s := q.scatterRecv(w, r.off, p.Payload); s != synOK {
		return 0, s
	}
	r.off += n
	return inline, synOK
}

// beginRecv takes a receive, or asks the requester to come again.
func (q *qp) beginRecv() bool {
	switch _, st := q.nextRecv(); st {
	case recvEmpty:
		q.file.dev.stats.RNRNaks++
		q.owe(owedNAK, roce.RNR(q.attr.minRNRTimer))
		return false
	case recvDead: // and the QP in ERR already
		if !q.file.gone() {
			q.sendAck(roce.NAKRemoteOp, q.resp.epsn)
		}
		return false
	}
	return true
}

func (q *qp) wireInfo(p *roce.Packet, n uint64) recvInfo {
	imm := p.Imm()
	inv := p.Opcode.HasIETH()
	if inv {
		imm = p.InvalidateRKey()
	}
	return recvInfo{byteLen: uint32(n), imm: imm, inv: inv, hasImm: p.Opcode.HasImm(), write: p.Opcode.IsWrite(),
		solicited: p.Solicited, srcQPN: q.attr.destQPN, l3: l3Of(q.attr.dest.dgid)}
}

// executeWrite puts a packet of an RDMA WRITE into memory. The MR is looked
// up for each packet: it may have gone since the last one.
func (q *qp) executeWrite(p *roce.Packet, first, last bool) bool {
	r, d := &q.resp, q.file.dev
	if first {
		h := p.RETH()
		r.va, r.rkey, r.length, r.off = h.VA, h.RKey, uint64(h.Length), 0
		if _, s := d.remoteAccess(q, r.rkey, r.va, r.length, accessRemoteWrite); s != synOK {
			q.refuseRequest(nakOf(s), s)
			return false
		}
	}
	n := uint64(len(p.Payload))
	if left := r.length - r.off; n > left || last != (n == left) {
		q.refuseRequest(roce.NAKInvalidRequest, synRemInvReq)
		return false
	}
	m, s := d.remoteAccess(q, r.rkey, r.va+r.off, n, accessRemoteWrite)
	if s != synOK {
		q.refuseRequest(nakOf(s), s)
		return false
	}
	if p.Opcode.HasImm() && !q.beginRecv() {
		return false
	}
	if m != nil && m.write(r.va+r.off, p.Payload) != nil {
		q.fatalNAK(roce.NAKRemoteOp)
		q.toError()
		return false
	}
	r.off += n
	if p.Opcode.HasImm() {
		q.completeRecv(&q.eng.recv, q.wireInfo(p, r.length))
	}
	return true
}

// checkRead looks at a READ request's rights.
func (q *qp) checkRead(h roce.RETH) syndrome {
	if q.attr.maxDestRd == 0 || h.Length > maxMsgBytes {
		return synRemInvReq
	}
	_, s := q.file.dev.remoteAccess(q, h.RKey, h.VA, uint64(h.Length), accessRemoteRead)
	return s
}

// acceptRead queues a READ and takes the PSNs of its responses.
func (q *qp) acceptRead(p *roce.Packet) bool {
	r := &q.resp
	h := p.RETH()
	s := q.checkRead(h)
	if s == synOK && q.tooManyFetches() {
		s = synRemInvReq
	}
	if s != synOK {
		q.refuseRequest(nakOf(s), s)
		return false
	}
	r.msn = (r.msn + 1) & psnMask
	n := q.packets(uint64(h.Length))
	if !q.queueRead(readJob{va: h.VA, rkey: h.RKey, length: uint64(h.Length), psn: p.PSN, msn: r.msn, n: n}) {
		return false
	}
	q.expectBehind(n)
	return true
}

// tooManyFetches reports whether as many READs and atomics are unanswered as
// max_dest_rd_atomic allows. A requester that keeps to its own limit, which is no
// larger, never sees it. Repetitions do not count: the requester may have got over
// what they ask for.
func (q *qp) tooManyFetches() bool {
	jobs, n := &q.resp.jobs, uint32(0)
	for i := range jobs.n {
		if !jobs.job[(jobs.at+i)%maxReads].again {
			n++
		}
	}
	return n >= uint32(q.attr.maxDestRd)
}

// expectBehind takes the n PSNs of a queued answer, which acknowledges all
// before it.
func (q *qp) expectBehind(n uint32) {
	r := &q.resp
	r.epsn = (r.epsn + n) & psnMask
	if r.owed == owedAck {
		r.owed = owedNothing
	}
}

// repeatRead answers a READ again. The requester went back, and will ask again
// for all behind it too.
func (q *qp) repeatRead(p *roce.Packet) {
	r := &q.resp
	h := p.RETH()
	n := q.packets(uint64(h.Length))
	if psnDiff(p.PSN+n, r.epsn) > 0 || q.checkRead(h) != synOK {
		return // not what was asked before
	}
	q.dropJobs(p.PSN)
	q.queueRead(readJob{va: h.VA, rkey: h.RKey, length: uint64(h.Length), psn: p.PSN, msn: r.msn, n: n, again: true})
}

// dropJobs forgets the jobs from psn on.
func (q *qp) dropJobs(psn uint32) {
	jobs := &q.resp.jobs
	for jobs.n > 0 && psnDiff(jobs.job[(jobs.at+jobs.n-1)%maxReads].psn, psn) >= 0 {
		jobs.n--
	}
}

// queueRead appends a job. It reports false where the QP went down.
func (q *qp) queueRead(j readJob) bool {
	r := &q.resp
	if r.jobs.n == maxReads {
		if q.answerReads(^uint32(0)); !r.ready {
			return false
		}
	}
	r.jobs.job[(r.jobs.at+r.jobs.n)%maxReads] = j
	r.jobs.n++
	q.touch()
	return true
}

// respond sends what the responder owes: READ responses, then one ACK or NAK.
func (q *qp) respond() {
	r := &q.resp
	if !r.ready {
		return
	}
	if r.jobs.n > 0 && r.deadline == 0 {
		q.answerReads(readBurst)
	}
	if r.ready && r.jobs.n == 0 && r.owed != owedNothing {
		if r.owed == owedAck {
			q.sendAck(roce.Ack, r.ackPSN)
		} else {
			q.sendAck(r.owedS, r.epsn)
		}
		r.owed = owedNothing
	}
}

// setReadDeadline sets when jobs that are left go on.
func (q *qp) setReadDeadline(now time.Duration) {
	r := &q.resp
	if r.jobs.n == 0 {
		r.deadline = 0
	} else if r.deadline == 0 {
		r.deadline = now + readPause
	}
}

// answerReads sends up to limit packets of READ responses.
func (q *qp) answerReads(limit uint32) {
	r := &q.resp
	for r.jobs.n > 0 && limit > 0 {
		j := &r.jobs.job[r.jobs.at%maxReads]
		if s := q.sendReadResponse(j); s != synOK {
			// The memory went away between the request and now.
			psn := (j.psn + j.next) & psnMask
			r.jobs.n = 0
			if s != synRemOp || !q.file.gone() {
				q.sendAck(nakOf(s), psn)
			}
			q.accessError(s)
			return
		}
		limit--
		if j.next++; j.next == j.n {
			r.jobs.at++
			r.jobs.n--
		}
	}
}

func (q *qp) sendReadResponse(j *readJob) syndrome {
	r, d := &q.resp, q.file.dev
	if j.atomic {
		b := d.room(roce.Size(roce.RCAtomicAck, 0))
		h := roce.BTH{Opcode: roce.RCAtomicAck, MigReq: true, PKey: defaultPKey, DestQPN: q.attr.destQPN, PSN: j.psn}
		h.Put(b)
		roce.AETH{Syndrome: roce.Ack, MSN: j.msn}.Put(b[roce.BTHSize:])
		roce.PutUint64(b[roce.BTHSize+roce.AETHSize:], j.value)
		d.commit(&r.path, b)
		return synOK
	}
	off := uint64(j.next) * uint64(r.mtu)
	n := min(uint64(r.mtu), j.length-off)
	opcode := roce.RCReadRespMiddle
	switch first, last := j.next == 0, j.next+1 == j.n; {
	case first && last:
		opcode = roce.RCReadRespOnly
	case first:
		opcode = roce.RCReadRespFirst
	case last:
		opcode = roce.RCReadRespLast
	}
	m, s := d.remoteAccess(q, j.rkey, j.va+off, n, accessRemoteRead)
	if s != synOK {
		return s
	}
	b := d.room(roce.Size(opcode, int(n)))
	h := roce.BTH{Opcode: opcode, MigReq: true, Pad: uint8(roce.Pad(int(n))), PKey: defaultPKey,
		DestQPN: q.attr.destQPN, PSN: j.psn + j.next}
	h.Put(b)
	at := opcode.HeaderSize()
	if at > roce.BTHSize {
		roce.AETH{Syndrome: roce.Ack, MSN: j.msn}.Put(b[roce.BTHSize:])
	}
	if m != nil && m.read(j.va+off, b[at:at+int(n)]) != nil {
		return synRemOp
	}
	clear(b[at+int(n):])
	d.commit(&r.path, b)
	return synOK
}

// sendAck sends an acknowledgement of any kind for psn.
func (q *qp) sendAck(s roce.Syndrome, psn uint32) {
	d := q.file.dev
	b := d.room(roce.Size(roce.RCAck, 0))
	h := roce.BTH{Opcode: roce.RCAck, MigReq: true, PKey: defaultPKey, DestQPN: q.attr.destQPN, PSN: psn}
	h.Put(b)
	roce.AETH{Syndrome: s, MSN: q.resp.msn}.Put(b[roce.BTHSize:])
	d.commit(&q.resp.path, b)
}
