package engine

// wheelSlots buckets of wheelTick nanoseconds each. A timer further away than
// the wheel is long goes round.
const (
	wheelSlots = 256
	wheelTick  = 1_000_000
)

// timer is an intrusive entry of the wheel. Timers are lazy: moving `when`
// further away costs nothing until the old time comes.
type timer struct {
	next, prev *timer
	when       int64 // ns; the time that the owner wants
	at         int64 // tick that the entry is filed under
	fire       func(now int64)
}

// wheel is a hashed timing wheel over the owner's clock.
type wheel struct {
	buckets [wheelSlots]timer // list heads
	tick    int64             // ticks up to here have fired
	count   int
}

func (w *wheel) init(now int64) {
	w.tick = now / wheelTick
	for i := range w.buckets {
		h := &w.buckets[i]
		h.next, h.prev = h, h
	}
}

// set makes t fire at when or within a tick after it. An armed timer is moved
// only where it has to fire earlier.
func (w *wheel) set(t *timer, when int64) {
	t.when = when
	at := (when + wheelTick - 1) / wheelTick
	if at <= w.tick {
		at = w.tick + 1
	}
	if t.next != nil {
		if t.at <= at {
			return
		}
		w.unlink(t)
	}
	w.link(t, at)
}

func (w *wheel) link(t *timer, at int64) {
	t.at = at
	h := &w.buckets[at&(wheelSlots-1)]
	t.prev, t.next = h.prev, h
	h.prev.next = t
	h.prev = t
	w.count++
}

func (w *wheel) unlink(t *timer) {
	t.prev.next, t.next.prev = t.next, t.prev
	t.next, t.prev = nil, nil
	w.count--
}

// stop disarms t.
func (w *wheel) stop(t *timer) {
	if t.next != nil {
		w.unlink(t)
	}
}

// advance fires what is due at now. A timer whose `when` has moved on is filed
// again.
func (w *wheel) advance(now int64) {
	to := now / wheelTick
	if to-w.tick > wheelSlots {
		w.advanceFar(now, to)
		return
	}
	for w.tick < to {
		w.tick++
		w.expire(&w.buckets[w.tick&(wheelSlots-1)], w.tick, now)
	}
}

// advanceFar serves a jump of more than a whole turn: every bucket once.
func (w *wheel) advanceFar(now, to int64) {
	w.tick = to
	for i := range w.buckets {
		w.expire(&w.buckets[i], to, now)
	}
}

// expire fires the entries of one bucket that are filed at or before tick. The
// due ones are first moved to a list of their own, so that a callback may set
// and stop any timer.
func (w *wheel) expire(h *timer, tick, now int64) {
	var due timer
	due.next, due.prev = &due, &due
	for t := h.next; t != h; {
		next := t.next
		if t.at <= tick {
			t.prev.next, t.next.prev = t.next, t.prev
			t.prev, t.next = due.prev, &due
			due.prev.next = t
			due.prev = t
		}
		t = next
	}
	for due.next != &due {
		t := due.next
		w.unlink(t)
		if t.when > now {
			w.set(t, t.when)
			continue
		}
		t.fire(now)
	}
}

// next returns the time of the earliest filed entry, or false without any.
func (w *wheel) next() (int64, bool) {
	if w.count == 0 {
		return 0, false
	}
	best := int64(1<<63 - 1)
	for i := int64(1); i <= wheelSlots; i++ {
		h := &w.buckets[(w.tick+i)&(wheelSlots-1)]
		for t := h.next; t != h; t = t.next {
			best = min(best, t.at)
		}
		if best <= w.tick+i {
			break
		}
	}
	return best * wheelTick, true
}
