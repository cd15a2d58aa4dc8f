package mlx5sim

import "github.com/rrppcc-go/rrppcc/internal/roce"

// atomicResults keeps the answers of the last max_dest_rd_atomic atomics, which
// must not be executed again when their request is repeated.
type atomicResults struct {
	last [maxReads]atomicResult
	n    uint32 // how many are in last
	next uint32 // where the next one goes
}

type atomicResult struct {
	psn   uint32
	value uint64
}

// add keeps value for a repetition of psn, in place of the oldest of limit.
func (r *atomicResults) add(psn uint32, value uint64, limit uint8) {
	size := min(uint32(limit), maxReads)
	r.last[r.next%size] = atomicResult{psn, value}
	r.next = (r.next + 1) % size
	r.n = min(r.n+1, size)
}

// find returns what the atomic of psn answered.
func (r *atomicResults) find(psn uint32) (value uint64, ok bool) {
	for _, a := range r.last[:r.n] {
		if a.psn == psn {
			return a.value, true
		}
	}
	return 0, false
}

// acceptAtomic executes an atomic and queues its answer.
func (q *qp) acceptAtomic(p *roce.Packet) bool {
	r := &q.resp
	h := p.AtomicETH()
	m, s := q.remoteAtomic(h.RKey, h.VA)
	if s == synOK && q.tooManyFetches() {
		s = synRemInvReq
	}
	if s != synOK {
		q.refuseRequest(nakOf(s), s)
		return false
	}
	if r.jobs.n == maxReads { // makes room first: this may end the QP
		if q.answerReads(^uint32(0)); !r.ready {
			return false
		}
	}
	old, ok := q.file.dev.fab.atomic(m, h.VA, p.Opcode == roce.RCCmpSwap, h.SwapAdd, h.Compare)
	if !ok {
		q.fatalNAK(roce.NAKRemoteOp)
		q.toError()
		return false
	}
	r.msn = (r.msn + 1) & psnMask
	r.results.add(p.PSN, old, q.attr.maxDestRd)
	q.queueRead(readJob{psn: p.PSN, msn: r.msn, n: 1, atomic: true, value: old})
	q.expectBehind(1)
	return true
}

// repeatAtomic answers an atomic again, as repeatRead does a READ. One whose
// answer is not kept any more was not asked for by a requester that keeps to the
// limit.
func (q *qp) repeatAtomic(p *roce.Packet) {
	if old, ok := q.resp.results.find(p.PSN); ok {
		q.dropJobs(p.PSN)
		q.queueRead(readJob{psn: p.PSN, msn: q.resp.msn, n: 1, atomic: true, value: old, again: true})
	}
}

// onAtomicAck handles the answer to an atomic.
func (q *qp) onAtomicAck(p *roce.Packet) {
	if !q.advance(p.PSN) {
		q.lostResponse()
		return
	}
	o := &q.req.ops[q.req.head%wireOps]
	if !o.op.isAtomic() || !p.AETH().Syndrome.IsAck() {
		q.file.dev.stats.Drops.Malformed++
		return
	}
	b := q.file.dev.fab.eng.word[:]
	hostOrder.PutUint64(b, p.AtomicAck())
	q.takeAnswer(o, 0, 0, b)
}
