package engine

import "math/bits"

// A client with congestion control wants to know how long the server had its
// request, so that this time is not taken for the network's. Byte 3 of the
// answer's header says it, in units of 256 ns with 4 significant bits, rounded
// up:
//
//	0        nobody asked
//	1..31    as many units
//	32..254  (16 + v%16) << (v/16 - 1) units, up to 125 ms
//	255      longer
const (
	holdShift   = 8
	holdUnknown = 255
)

// encodeHold returns d nanoseconds as byte 3 of an answer.
func encodeHold(d int64) uint8 {
	if d <= 0 {
		return 1
	}
	u := uint64(d-1)>>holdShift + 1 // units, rounded up
	if u < 32 {
		return uint8(u)
	}
	shift := bits.Len64(u) - 5
	if low := uint64(1)<<shift - 1; u&low != 0 {
		u += low // may carry: then the mantissa is 16 again, one shift further
		shift = bits.Len64(u) - 5
	}
	if shift > 14 {
		return holdUnknown
	}
	return uint8(min(uint64(shift+1)<<4|(u>>shift&15), holdUnknown))
}

// decodeHold returns what byte 3 of an answer says, in ns; false if it says
// nothing.
func decodeHold(v uint8) (int64, bool) {
	switch {
	case v == 0 || v == holdUnknown:
		return 0, false
	case v < 32:
		return int64(v) << holdShift, true
	}
	return int64(16+v&15) << (v>>4 - 1 + holdShift), true
}

// heldTx is an answer in Tx whose header is to say how long we had the request.
type heldTx struct {
	tx   int // index
	came int64
	sl   *serverSlot
	seq  uint32
}

// tell lets the answer, the last n datagrams of Tx, say how long we had the
// request. One that is repeated says what it said the first time, so that the
// client sees what the loss cost.
func (sl *serverSlot) tell(n int) {
	e := sl.s.e
	first := sl.hold == 0
	if first {
		sl.hold = encodeHold(e.now - sl.came)
	}
	for i := len(e.Tx) - n; i < len(e.Tx); i++ {
		e.Tx[i].Head[3] = sl.hold
		if first {
			e.held = append(e.held, heldTx{i, sl.came, sl, sl.seq})
		}
	}
}

// Unstamped reports that something in Tx wants to know when it is posted.
func (e *Engine) Unstamped() bool { return len(e.held)+len(e.unposted) > 0 }

// Stamp tells that what is in Tx is posted now. The owner calls it before it
// posts where Unstamped says so; otherwise the time of the last other call counts.
func (e *Engine) Stamp(now int64) {
	for i := range e.held {
		h := &e.held[i]
		v := encodeHold(now - h.came)
		e.Tx[h.tx].Head[3] = v
		if h.sl.seq == h.seq {
			h.sl.hold = v
		}
	}
	e.held = e.held[:0]
	if len(e.unposted) > 0 {
		e.measured = now
	}
	for _, sl := range e.unposted {
		sl.postedAt = now
	}
	e.unposted = e.unposted[:0]
}

// Measured returns when a request was posted last whose answer tells of the
// network. An owner that sleeps meanwhile does not see that: what passed since it
// polled last counts as its own time.
func (e *Engine) Measured() int64 { return e.measured }
