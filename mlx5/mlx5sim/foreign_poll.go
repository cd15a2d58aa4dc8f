package mlx5sim

import "slices"

// uarRegisters are the places of a UAR page where a store means something.
var uarRegisters = [...]uint32{
	uarArm,
	uarBlueFlame0, uarBlueFlame0 + uarHalfBytes,
	uarBlueFlame0 + 2*uarHalfBytes, uarBlueFlame0 + 3*uarHalfBytes,
}

// flushEvery is how many calls of Poll may pass before it looks again at the
// queues of QPs in ERR, which are flushed of what is posted to them without any
// doorbell.
const flushEvery = 32

// Poll looks at the program's UAR pages and does what it finds there. It
// reports whether it found anything: where it did not for long, the caller may
// wait between calls. It costs five loads for each page, and no system call
// while nothing is new.
func (fo *Foreign) Poll() (worked bool) {
	fo.pollMu.Lock()
	defer fo.pollMu.Unlock()
	if fo.again.Load() {
		fo.goOn()
		worked = true
	}
	for _, p := range *fo.pages.Load() {
		page := &p.mem[0]
		arm := takeRegister(page, uarArm)
		var send bool
		for _, reg := range uarRegisters[1:] {
			send = takeRegister(page, reg) != 0 || send
		}
		if send || arm != 0 {
			fo.rung(p.uar, send, arm)
			worked = true
		}
	}
	if fo.errQPs.Load() > 0 {
		if fo.idle++; fo.idle >= flushEvery {
			fo.idle = 0
			fo.flush()
		}
	}
	if fo.stuck.Load() {
		fo.forward()
	}
	if fo.dead.Load() {
		fo.unmapDead()
	}
	return worked
}

// rung handles stores to page u: to a doorbell register if send is set, to the
// arm register if arm is not 0. A later store may have replaced an earlier one
// of another queue, so the doorbell records of all queues of the page tell what
// is new.
func (fo *Foreign) rung(u *uar, send bool, arm uint64) {
	f := fo.f
	f.dev.fab.mu.Lock()
	defer f.dev.fab.mu.Unlock()
	if f.closed || f.dev.closed || u.dead {
		return
	}
	fo.beginTurn()
	defer fo.endTurn()
	if send {
		fo.sweepQPs(u, false)
	}
	if arm != 0 {
		fo.sweepCQs(u, uint32(arm>>32), uint32(arm)&0xffffff)
	}
}

// sweepQPs looks at the doorbell records of all QPs that ring on u, or of those
// in ERR alone. What it reads here only tells which of them to look at: by its turn
// a QP may have got further than that.
func (fo *Foreign) sweepQPs(u *uar, inErr bool) {
	r := fo.records()
	for i, q := range u.qps {
		if inErr && q.attr.state != stateErr {
			continue
		}
		rec, ok := r.load(q.dbrec, i+1 < len(u.qps) && samePage(q.dbrec, u.qps[i+1].dbrec))
		if !ok || uint16(be.Uint32(rec[dbSend:])) != uint16(q.sq.pi) || q.attr.state == stateErr && uint16(be.Uint32(rec[dbRecv:])) != uint16(q.rq.pi) {
			q.rung()
		}
	}
}

// turnLimit is how much of its queues a program may have executed before
// others of the fabric get their turn: some milliseconds' worth.
const turnLimit = 4096

// yields reports whether q's SQ is to wait for its program's next turn, and
// counts what it is about to execute otherwise. Caller holds fab.mu.
func (fo *Foreign) yields(q *qp) bool {
	if !fo.inTurn {
		return false // what packets and timers set off is little at a time
	}
	if fo.begun < turnLimit {
		fo.begun++
		return false
	}
	if !slices.Contains(fo.yielded, q) {
		fo.yielded = append(fo.yielded, q)
	}
	fo.again.Store(true)
	return true
}

// A turn is one time that the mutex is held for the program. Caller holds it.

func (fo *Foreign) beginTurn() { fo.inTurn, fo.begun = true, 0 }
func (fo *Foreign) endTurn()   { fo.inTurn = false }

// moved counts n bytes of data to the turn.
func (fo *Foreign) moved(n uint64) { fo.begun += int(n / pageSize) }

// goOn gives the SQs that yielded their turn.
func (fo *Foreign) goOn() {
	f := fo.f
	f.dev.fab.mu.Lock()
	defer f.dev.fab.mu.Unlock()
	fo.beginTurn()
	defer fo.endTurn()
	fo.again.Store(false)
	qps := fo.yielded
	fo.yielded = nil
	for _, q := range qps {
		if !f.closed && f.dev.qps[q.qpn] == q {
			q.rung()
		}
	}
}

// sweepCQs arms CQ cqn with word, and what else on u has a new arm record. An
// arm word that was acted on is not acted on again: the program's next one has
// another sequence number. So it does no harm that a record is seen before the
// doorbell which it was written for.
func (fo *Foreign) sweepCQs(u *uar, word, cqn uint32) {
	if c := fo.f.dev.cqs[cqn]; c == nil || c.file != fo.f || c.uar != u {
		fo.f.dev.stats.Drops.Doorbell++
	} else if word != c.eng.armWord {
		c.arm(word)
	}
	r := fo.records()
	for i, c := range u.cqs {
		rec, ok := r.load(c.dbrec, i+1 < len(u.cqs) && samePage(c.dbrec, u.cqs[i+1].dbrec))
		if !ok || be.Uint32(rec[dbArm:]) == c.eng.armWord {
			continue
		}
		if w, ok := load32(fo.f.dma, c.dbrec+dbArm); ok && w != c.eng.armWord {
			c.arm(w)
		}
	}
}

// flush flushes what was posted to QPs in ERR.
func (fo *Foreign) flush() {
	f := fo.f
	f.dev.fab.mu.Lock()
	defer f.dev.fab.mu.Unlock()
	if f.closed || f.dev.closed {
		return
	}
	for _, u := range f.uars {
		fo.sweepQPs(u, true)
	}
}

// forward hands on the records that event files had to keep.
func (fo *Foreign) forward() {
	f := fo.f
	f.dev.fab.mu.Lock()
	defer f.dev.fab.mu.Unlock()
	fo.stuck.Store(false)
	for _, e := range f.events {
		e.mu.Lock()
		e.forward()
		e.mu.Unlock()
	}
}

// recordReader reads doorbell records that come by rising address: those of
// one page by one access, as a library lays them out close together and an
// access to another process costs far more than the bytes that it brings.
type recordReader struct {
	dma  DMA
	page uint64 // that buf holds; 0: none
	one  [dbrecBytes]byte
	buf  [pageSize]byte
}

func samePage(a, b uint64) bool { return a/pageSize == b/pageSize }

// records returns fo's reader, which has seen nothing yet.
func (fo *Foreign) records() *recordReader {
	fo.record.dma, fo.record.page = fo.f.dma, 0
	return &fo.record
}

// load reads the record at addr, which is a multiple of its size. more says
// that the next one is of the same page. It takes the whole record at once, so
// that neither word can be half of what the program stored.
func (r *recordReader) load(addr uint64, more bool) (rec [dbrecBytes]byte, ok bool) {
	page, off := addr&^(pageSize-1), addr%pageSize
	if more && page != r.page {
		if r.dma.Read(page, r.buf[:]) != nil {
			return rec, false
		}
		r.page = page
	}
	if page == r.page {
		copy(rec[:], r.buf[off:])
		return rec, true
	}
	ok = r.dma.Read(addr, r.one[:]) == nil
	return r.one, ok
}
