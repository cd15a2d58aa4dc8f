package nexus

// windowWords are the words of a window. A sender's counter runs over all of its
// receivers, and thousands of its Connects may be on the way at once.
const windowWords = 64

// windowBits are how far behind the highest counter a message may come. One
// word less than there is, so that the highest counter's word is never shared
// with the oldest.
const windowBits = (windowWords - 1) * 64

// window remembers which of a sender's counters have been used.
type window struct {
	top  uint64 // the highest used
	used [windowWords]uint64
}

// windowAfter returns the window of a sender that is met at this counter: all
// before it count as used.
func windowAfter(counter uint64) window {
	w := window{top: counter}
	for i := range w.used {
		w.used[i] = ^uint64(0)
	}
	// The counters of its word that are still to come.
	w.used[counter/64%windowWords] = 1<<(counter%64)<<1 - 1
	return w
}

// fresh reports whether a counter has not been used; of one too old it cannot be
// known, so it has.
func (w *window) fresh(counter uint64) bool {
	if counter > w.top {
		return true
	}
	return w.top-counter < windowBits && w.used[counter/64%windowWords]&(1<<(counter%64)) == 0
}

// mark notes that a counter has been used. It must be fresh, or used.
func (w *window) mark(counter uint64) {
	if counter > w.top {
		first, last := w.top/64+1, counter/64
		if last-w.top/64 > windowWords {
			first = last - windowWords + 1
		}
		for i := first; i <= last; i++ {
			w.used[i%windowWords] = 0
		}
		w.top = counter
	}
	if w.top-counter < windowBits {
		w.used[counter/64%windowWords] |= 1 << (counter % 64)
	}
}
