package mlx5sim

// UAR page, PRM "User Access Region". A page of 4096 bytes has the CQ arm
// register and, at 0x800 and 0xa00, two BlueFlame registers of two halves each;
// either half of either takes doorbells of any QP.
const (
	uarPageBytes  = 4096
	uarArm        = 0x20
	uarBlueFlame0 = 0x800
	uarHalfBytes  = 0x100
	uarEnd        = 0xc00
)

// Kicker implements kernel.Kicker. The function acts on the register's present
// value. Two goroutines may use different registers of one page at once; who
// shares a doorbell register serialises the store and the call together, as it
// has to serialise its halves on hardware. The arm register is different: all CQs
// of a context share it by design, so an arming that was overwritten before its
// call is found by its doorbell record.
func (f *file) Kicker() func(uar *byte, offset uint32) { return f.kick }

func (f *file) kick(page *byte, offset uint32) {
	switch {
	case offset == uarArm:
	case offset >= uarBlueFlame0 && offset < uarEnd && offset%uarHalfBytes == 0:
	default:
		return
	}
	fab := f.dev.fab
	fab.mu.Lock()
	defer fab.mu.Unlock()
	if f.closed || f.dev.closed {
		return
	}
	v := register(page, offset)
	if offset == uarArm {
		f.ringArm(page, uint32(v>>32), uint32(v)&0xffffff)
		return
	}
	f.ringSend(page, uint32(v)>>8)
}

// takes reports whether page is the UAR page u, which its QP or CQ was created
// with. Stores to another page than that are ignored, as the device does: it is
// what keeps processes from ringing each other's doorbells.
func (u *uar) takes(page *byte) bool { return u != nil && len(u.mem) > 0 && &u.mem[0] == page }

// ringSend handles a doorbell, the first two words of a control segment: they
// name the QP. How far to go is in the doorbell record.
func (f *file) ringSend(page *byte, qpn uint32) {
	q := f.dev.qps[qpn]
	if q == nil || q.file != f || !q.uar.takes(page) {
		f.dev.stats.Drops.Doorbell++
		return
	}
	q.rung()
}

// rung does what is new in q's doorbell record.
func (q *qp) rung() {
	switch q.attr.state {
	case stateRTS:
		if !q.syncSQ() {
			q.overflow()
			return
		}
		q.runSQ()
	case stateSQE:
		q.flushSQ()
	case stateErr:
		q.flushSQ()
		q.flushRQ()
	}
}

// ringArm handles an arming of CQ cqn.
func (f *file) ringArm(page *byte, word, cqn uint32) {
	if c := f.dev.cqs[cqn]; c != nil && c.file == f && c.uar.takes(page) {
		c.arm(word)
	} else {
		f.dev.stats.Drops.Doorbell++
	}
	if len(f.dev.cqs) == 1 {
		return
	}
	for _, c := range f.dev.cqs {
		if c.file != f || c.cqn == cqn || !c.uar.takes(page) {
			continue
		}
		if w, ok := load32(f.dma, c.dbrec+dbArm); ok && w != c.eng.armWord {
			c.arm(w)
		}
	}
}
