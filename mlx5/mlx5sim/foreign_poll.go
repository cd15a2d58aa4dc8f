package mlx5sim

// uarRegisters are the places of a UAR page where a store means something.
var uarRegisters = [...]uint32{
	uarArm,
	uarBlueFlame0, uarBlueFlame0 + uarHalfBytes,
	uarBlueFlame0 + 2*uarHalfBytes, uarBlueFlame0 + 3*uarHalfBytes,
}

// Poll looks at the program's UAR pages and does what it finds there. It
// reports whether it found anything: where it did not for long, the caller may
// wait between calls.
func (fo *Foreign) Poll() (worked bool) {
	fo.pollMu.Lock()
	defer fo.pollMu.Unlock()
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
	if fo.stuck.Load() {
		fo.forward()
	}
	return worked
}

// rung handles stores to page u: to a doorbell register if send is set, to the
// arm register if arm is not 0. A later store may have replaced an earlier one,
// so the values count for little: the doorbell records of all queues of the page
// tell what is new.
func (fo *Foreign) rung(u *uar, send bool, arm uint64) {
	f := fo.f
	f.dev.fab.mu.Lock()
	defer f.dev.fab.mu.Unlock()
	if f.closed || f.dev.closed || u.dead {
		return
	}
	if send {
		fo.sweepQPs(u)
	}
	if arm != 0 {
		fo.sweepCQs(u, uint32(arm>>32), uint32(arm)&0xffffff)
	}
}

// sweepQPs looks at the doorbell records of all QPs that ring on u.
func (fo *Foreign) sweepQPs(u *uar) {
	f := fo.f
	for qpn, q := range f.dev.qps {
		if q.file == f && q.uar == u {
			f.ringSend(&u.mem[0], qpn)
		}
	}
}

// sweepCQs arms CQ cqn with word, and what else on u has a new arm record.
func (fo *Foreign) sweepCQs(u *uar, word, cqn uint32) {
	fo.f.ringArm(&u.mem[0], word, cqn)
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

// recordReader reads doorbell records.
type recordReader struct{}
