package engine

import (
	"math/bits"
	"time"

	"github.com/rrppcc-go/rrppcc/rpc/congestion"
)

// flow is what congestion control keeps of a client's session. A session that is
// not paced, with gap 0, sends as if there were no control. A paced one leaves
// its calls in the backlog until it is their turn, where deadlines, aborts and
// the session's end find them as any other.
type flow struct {
	s      *Session
	swift  *congestion.SwiftController // called directly, if that is what it is
	custom congestion.Controller       // otherwise

	gap   int64  // between two turns, ns; 0 = not paced
	last  int64  // the last turn was due then
	cost  int64  // datagrams that went since, each of which takes a gap
	waits bool   // somebody has waited for the turn
	again uint64 // slots that wait to send once more
	turn  timer  // in Engine.pace
	heard int64  // when something came from the server last
	delay int64  // smoothed, ns
}

func newFlow(s *Session, control congestion.Control) *flow {
	f := &flow{s: s, custom: control.NewController(s.e.cfg.Window)}
	if c, ok := f.custom.(*congestion.SwiftController); ok {
		f.swift, f.custom = c, nil
	}
	f.turn.fire = func(int64) { s.pump() }
	return f
}

func (f *flow) stop() {
	f.s.e.pace.stop(&f.turn)
	f.again = 0
}

// sending takes notice of the slot's request, the last n datagrams of Tx.
func (f *flow) sending(sl *clientSlot, n int) {
	e := f.s.e
	for i := len(e.Tx) - n; i < len(e.Tx); i++ {
		e.Tx[i].Head[3] = 1
	}
	if f.gap != 0 {
		f.cost += int64(n)
	}
	if !sl.resent {
		f.again &^= 1 << sl.index
		sl.postedAt = e.now
		e.unposted = append(e.unposted, sl)
	}
}

// pump lets those go whose turn it is, and reports whether the session is not
// paced.
func (f *flow) pump() bool {
	s := f.s
	e := s.e
	for s.up && (f.gap != 0 || f.again != 0) {
		sl := f.repeats()
		if sl == nil && (s.freeMask == 0 || s.backlog.head == nil) {
			break
		}
		if f.gap != 0 {
			due := f.last + min(f.gap*f.cost, maxGap)
			if e.now < due && e.now >= f.last {
				f.waits = true
				e.pace.set(&f.turn, due)
				return false
			}
			// A turn that was waited for and comes late, since the loop does, is
			// made up for.
			last := f.last
			f.last = e.now
			if f.waits && e.now >= last {
				f.last = max(due, e.now-f.gap)
			}
			f.waits = false
			f.cost = 0
		}
		e.Stats.Paced++
		if sl != nil {
			f.again &^= 1 << sl.index
			sl.repeat()
		} else {
			s.launch(s.backlog.pop())
		}
	}
	return f.gap == 0
}

// repeats returns a slot that waits to send once more, nil without one.
func (f *flow) repeats() *clientSlot {
	for f.again != 0 {
		sl := &f.s.slots[bits.TrailingZeros64(f.again)]
		if sl.state == slotSent {
			return sl
		}
		f.again &= f.again - 1 // it has ended meanwhile
	}
	return nil
}

// repeat is asked when the slot's request was not answered in time. It reports
// whether to send it again now; otherwise that is done when it is its turn.
func (f *flow) repeat(sl *clientSlot, now int64) bool {
	if sent := sl.resend - sl.backoff; f.heard < sent {
		if f.swift != nil {
			f.set(f.swift.TimedOut(time.Duration(now), time.Duration(sent)))
		} else {
			f.set(f.custom.TimedOut(time.Duration(now), time.Duration(sent)))
		}
	}
	if f.gap == 0 {
		return true
	}
	f.again |= 1 << sl.index
	f.s.pump()
	return false
}

// answered takes in what an answer to the slot's request says about the network.
func (f *flow) answered(sl *clientSlot, hold uint8, bytes int) {
	e := f.s.e
	f.again &^= 1 << sl.index
	sample := congestion.Sample{Now: time.Duration(e.now), Sent: time.Duration(sl.postedAt), Resent: sl.resent, Bytes: bytes}
	if !sl.call.ReqLarge {
		sample.Bytes += sl.call.Req.Len()
	}
	// A repeated request may have found the one before it still in its slot, and
	// the answer does not tell how often.
	if had, ok := decodeHold(hold); ok && !(sl.resent && sl.behind) {
		delay := max(e.arrived-sl.postedAt-had, 0)
		if sl.resent && delay >= e.cfg.MinRTO {
			sample.Lost = true
			e.Stats.Losses++
		} else {
			sample.Delay = time.Duration(delay)
			f.delay += (delay - f.delay) / 8
		}
	}
	if f.swift != nil {
		f.set(f.swift.Answered(sample))
	} else {
		f.set(f.custom.Answered(sample))
	}
}

// set takes over the controller's gap.
func (f *flow) set(gap time.Duration) {
	old := f.gap
	f.gap = min(max(int64(gap), 0), maxGap)
	switch {
	case old == 0 && f.gap != 0:
		f.s.e.Stats.Congested++
		f.last, f.cost = f.s.e.now, 1
	case f.gap < old:
		f.s.pump() // somebody's turn may have come
	}
}

// maxGap bounds what a controller can ask for, and how long a request waits
// behind another one of several datagrams: it waits, it does not stop.
const maxGap = int64(100 * time.Millisecond)

// SessionStats is the present state of a client's session; times in ns.
type SessionStats struct {
	RTT, RTO   int64 // smoothed, with the handler's time
	Delay, Gap int64 // of the network; between paced requests
	Window     float64
	Active     int // slots in use
	Waiting    int // calls in the backlog
}

// Stats returns the session's state.
func (s *Session) Stats() SessionStats {
	st := SessionStats{RTT: s.srtt, RTO: s.rto, Active: s.active, Waiting: s.backlog.n}
	if f := s.flow; f != nil {
		st.Delay, st.Gap = f.delay, f.gap
		if f.swift != nil {
			st.Window = f.swift.Window()
		}
	}
	return st
}
