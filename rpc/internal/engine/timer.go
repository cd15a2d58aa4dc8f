package engine

// wheelSlots buckets of one tick each. A timer further away than the wheel is
// long goes round. A tick has wheelTick nanoseconds; in the fine wheel, for
// pacing, fineTick, with which the division of each is one by a constant.
const (
	wheelSlots = 256
	wheelTick  = 1_000_000
	fineTick   = 1024
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
	due     timer             // list head: timers about to fire
	tick    int64             // ticks up to here have fired
	count   int
	fine    bool
}

// ticks returns the tick that t is in.
func (w *wheel) ticks(t int64) int64 {
	if w.fine {
		return t / fineTick
	}
	return t / wheelTick
}

// time returns when a tick begins.
func (w *wheel) time(tick int64) int64 {
	if w.fine {
		return tick * fineTick
	}
	return tick * wheelTick
}

func (w *wheel) init(now int64, fine bool) {
	w.fine = fine
	w.tick = w.ticks(now)
	for i := range w.buckets {
		h := &w.buckets[i]
		h.next, h.prev = h, h
	}
	w.due.next, w.due.prev = &w.due, &w.due
}

// set makes t fire at when or within a tick after it. An armed timer is moved
// only where it has to fire earlier.
func (w *wheel) set(t *timer, when int64) {
	t.when = when
	at := w.ticks(when)
	if w.time(at) < when { // rounding up by adding first would overflow
		at++
	}
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
// again. A callback may call advance: the inner call fires what the outer one
// has not got to yet, so that a callback that waits for something does not hold
// up the timer which that depends on.
func (w *wheel) advance(now int64) {
	to := w.ticks(now)
	if w.count == 0 {
		w.tick = max(w.tick, to)
		return
	}
	if to-w.tick > wheelSlots { // more than a whole turn: every bucket once
		w.tick = to
		for i := range w.buckets {
			w.collect(&w.buckets[i], to)
		}
	}
	w.fireDue(now)
	for w.tick < to {
		w.tick++
		w.collect(&w.buckets[w.tick&(wheelSlots-1)], w.tick)
		w.fireDue(now)
	}
}

// collect moves the entries of one bucket that are filed at or before tick to
// the due list, from where a callback may still set and stop them.
func (w *wheel) collect(h *timer, tick int64) {
	for t := h.next; t != h; {
		next := t.next
		if t.at <= tick {
			t.prev.next, t.next.prev = t.next, t.prev
			t.prev, t.next = w.due.prev, &w.due
			w.due.prev.next = t
			w.due.prev = t
		}
		t = next
	}
}

func (w *wheel) fireDue(now int64) {
	for w.due.next != &w.due {
		t := w.due.next
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
	if w.due.next != &w.due {
		return w.time(w.tick), true
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
	return w.time(best), true
}
