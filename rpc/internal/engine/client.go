package engine

import (
	"encoding/binary"
	"math"
	"math/bits"

	"github.com/rrppcc-go/rrppcc/msgbuf"
)

type slotState uint8

const (
	slotIdle       slotState = iota
	slotOffering             // the request is not sent: it cannot be read yet
	slotSent                 // request is out; waiting for the response
	slotAssembling           // parts of the response have come
	slotReading              // our READ of the response is in flight
	slotCancelling           // aborted; the server may still read the request
	slotDraining             // outcome is known; our NIC may still read the request
)

// clientSlot is one place in a session's window.
type clientSlot struct {
	s      *Session
	call   *Call
	err    error // outcome, in slotDraining; the abort's error before it
	timer  timer
	copied msgbuf.Buf // the request in memory that the peer can read, if Req is not
	parts  assembly   // of the response

	sentAt   int64 // first transmission
	postedAt int64 // the same, as congestion control wants it
	resend   int64 // next retransmission
	giveUp   int64 // end of CancelGrace
	backoff  int64

	sent      uint64 // Engine.flushes when the slot last put something into Tx, or its call ended
	seq       uint32 // request number, never 0 once used; the last one, when idle
	ref       uint32 // NIC's use of the request, or the peer's by an offer; 0 = none
	read      uint32 // token, in slotReading
	respLen   uint32
	index     uint8
	state     slotState
	resent    bool
	behind    bool // the server may still be busy with the request before
	pulled    bool // the server will not read the request (any more)
	asked     bool // the server may say which parts of the request are missing
	finishing bool // in Engine.finishing
	resends   uint8
}

// launch puts c into a free slot and sends it.
func (s *Session) launch(c *Call) {
	e := s.e
	// Where a request was given up, the server's handler may still be at work
	// and will not take another one: such slots come last.
	free := s.freeMask &^ s.doubt
	if free == 0 {
		free = s.freeMask
	}
	i := bits.TrailingZeros64(free)
	sl := &s.slots[i]
	sl.behind = s.doubt>>i&1 != 0
	s.freeMask &^= 1 << i
	s.doubt |= 1 << i
	s.active++
	sl.call, sl.err, sl.resends = c, nil, 0
	c.sent = e.now
	if sl.seq++; sl.seq == 0 {
		sl.seq = 1 // 0 is what a slot has seen before its first request
	}
	sl.state, sl.resent, sl.pulled, sl.asked = slotSent, false, false, false
	c.slot, c.state = sl, callActive
	if c.ReqLarge = c.Req.Len() > s.maxUD; c.ReqLarge && c.Req.Access() != msgbuf.RemoteRead {
		var err error
		if sl.copied, err = e.readable(c.Req); err != nil {
			if err != ErrBuffer && err != ErrUnmapped {
				err = ErrNoMemory
			}
			sl.end(err)
			return
		}
	}
	sl.sentAt, sl.backoff = e.now, s.rto
	sl.resend = e.now + s.rto
	if c.ReqLarge && e.offers(sl.large()) {
		sl.state = slotOffering
		sl.ref = e.pushOffer(s, sl.large(), sl, nil)
	} else {
		sl.send()
	}
	sl.arm()
}

// large returns the large request, where the peer can read it.
func (sl *clientSlot) large() msgbuf.Buf {
	if !sl.copied.IsNil() {
		return sl.copied
	}
	return sl.call.Req
}

// send transmits the request, or asks to cancel it.
func (sl *clientSlot) send() {
	s, c := sl.s, sl.call
	sl.sent = s.e.flushes
	switch {
	case sl.state == slotCancelling:
		s.e.push(s, KindCancel, 0, sl.index, sl.seq)
	case sl.state == slotAssembling:
		s.pushMissing(sl.index, sl.seq, sl.parts.missing)
	case c.ReqLarge:
		s.e.control(s.e.push(s, KindLargeRequest, c.Type, sl.index, sl.seq), sl.large(), sl.ref)
		if s.flow != nil {
			s.flow.sending(sl, 1)
		}
	case c.Req.Len() > s.maxSmall:
		// Behind a request that was given up the server's ring may still have
		// that one's parts.
		if sl.resent || sl.behind {
			sl.askParts()
		} else {
			sl.sendParts(everyPart)
		}
	default:
		tx := s.e.push(s, KindRequest, c.Type, sl.index, sl.seq)
		if s.flow != nil {
			s.flow.sending(sl, 1)
		}
		if old := sl.ref; c.Req.Len() > 0 {
			sl.ref = s.e.data(tx, c.Req, old)
			if sl.ref != old {
				s.e.refs[sl.ref].client = sl
			}
		}
	}
}

// arm sets the timer to the next thing that can happen to the slot.
func (sl *clientSlot) arm() {
	when := sl.resend
	if sl.state == slotReading || sl.state == slotOffering {
		if sl.call.Deadline == 0 || sl.err != nil {
			return
		}
		when = sl.call.Deadline
	} else if (sl.state == slotSent || sl.state == slotAssembling) && sl.call.Deadline != 0 {
		when = min(when, sl.call.Deadline)
	} else if sl.state == slotCancelling {
		when = min(when, sl.giveUp)
	}
	sl.s.e.wheel.set(&sl.timer, when)
}

// expired is the timer: deadlines and retransmission.
func (sl *clientSlot) expired(now int64) {
	switch sl.state {
	case slotIdle, slotDraining:
		return
	case slotOffering, slotSent, slotAssembling, slotReading:
		if d := sl.call.Deadline; d != 0 && d <= now && sl.err == nil {
			sl.abort(ErrTimeout)
			return
		}
	case slotCancelling:
		if now >= sl.giveUp && sl.s.e.refs[sl.ref].offer {
			sl.end(sl.err) // which takes the request back, whether the peer is ready or not
			return
		}
		if now >= sl.giveUp {
			sl.giveUp = now + sl.s.e.cfg.CancelGrace
			sl.s.e.cfg.PeerStuck(sl.s.dest)
			if sl.state != slotCancelling {
				return
			}
		}
	}
	if sl.state != slotReading && sl.state != slotOffering && sl.resend <= now {
		if f := sl.s.flow; f == nil || sl.state != slotSent || f.repeat(sl, now) {
			sl.repeat()
		}
		sl.backoff = min(2*sl.backoff, sl.s.e.cfg.MaxRTO)
		sl.resend = now + sl.backoff
	}
	sl.arm()
}

// repeat transmits what was not answered in time.
func (sl *clientSlot) repeat() {
	sl.s.e.Stats.Retransmits++
	sl.resent = true
	if sl.resends < 255 {
		sl.resends++
	}
	sl.send()
}

// abort ends the slot's call with err, when that is safe.
func (sl *clientSlot) abort(err error) {
	e := sl.s.e
	switch sl.state {
	case slotOffering:
		sl.end(err)
	case slotSent:
		if !sl.call.ReqLarge || sl.pulled {
			sl.end(err)
			return
		}
		sl.err = err
		sl.state = slotCancelling
		sl.giveUp = e.now + e.cfg.CancelGrace
		if e.refs[sl.ref].offer {
			sl.giveUp = e.now + e.cfg.OfferGrace
		}
		sl.backoff = sl.s.rto
		sl.resend = e.now + sl.backoff
		sl.send()
		sl.arm()
	case slotAssembling:
		sl.end(err)
	case slotReading:
		if sl.err == nil {
			sl.err = err
		}
	}
}

// end fixes the outcome. The call is reported when Tx is drained and the NIC
// has let go of the request.
func (sl *clientSlot) end(err error) {
	sl.err = err
	sl.state = slotDraining
	sl.s.e.withdraw(sl.ref)
	if !sl.finishing {
		sl.finishing = true
		sl.sent = sl.s.e.flushes
		sl.s.e.finishing = append(sl.s.e.finishing, sl)
	}
}

// done is end for outcomes that came from the server: the call is reported at
// once, unless a copy of the request is still in Tx.
func (sl *clientSlot) done(err error) {
	if sl.sent == sl.s.e.flushes {
		sl.end(err)
		return
	}
	sl.err = err
	sl.state = slotDraining
	sl.s.e.withdraw(sl.ref)
	sl.tryFinish()
}

// tryFinish reports the call if nothing holds its buffers.
func (sl *clientSlot) tryFinish() {
	if sl.state != slotDraining || sl.finishing {
		return
	}
	s := sl.s
	e := s.e
	if sl.ref != 0 {
		if e.refs[sl.ref].count > 0 {
			return
		}
		e.dropRef(sl.ref)
		sl.ref = 0
	}
	sl.copied.Free()
	sl.copied = msgbuf.Buf{}
	c := sl.call
	sl.call = nil
	sl.state = slotIdle
	s.freeMask |= 1 << sl.index
	s.active--
	e.endCall(c, sl.err)
	s.pump()
}

// sessionFailed ends the slot's call: the peer is gone.
func (sl *clientSlot) sessionFailed(err error) {
	switch sl.state {
	case slotOffering, slotSent, slotAssembling:
		sl.end(err)
	case slotCancelling:
		sl.end(sl.err)
	case slotReading:
		if sl.err == nil {
			sl.err = err
		}
	}
	if sl.state == slotIdle {
		sl.s.e.wheel.stop(&sl.timer)
	}
}

// fromServer takes a datagram of the server.
func (s *Session) fromServer(h *Header, body []byte) {
	e := s.e
	if s.flow != nil {
		s.flow.heard = e.now
	}
	if h.Kind == KindBroken {
		if len(body) != 4 || e.cfg.PeerBroken == nil {
			e.Stats.DropMalformed++
			return
		}
		e.cfg.PeerBroken(s.dest, binary.LittleEndian.Uint32(body))
		return
	}
	sl := &s.slots[h.Slot]
	if h.Seq != sl.seq || sl.state == slotIdle || sl.state == slotDraining {
		if int32(h.Seq-sl.seq) > 0 {
			e.Stats.DropMalformed++
			return
		}
		e.Stats.Duplicates++
		if h.Kind.answers() {
			sl.lateAnswer(h.Seq)
		}
		if h.Kind == KindLargeResponse {
			// The server waits for our word to free it.
			e.push(s, KindPulled, 0, h.Slot, h.Seq)
		}
		return
	}
	switch sl.state {
	case slotReading:
		e.Stats.Duplicates++
		if h.Kind == KindLargeResponse {
			e.rekey(sl.read, body)
		}
		return
	case slotOffering: // which nobody knows of
		e.Stats.DropMalformed++
		return
	}
	if sl.state == slotAssembling && h.Kind.answers() && h.Kind != KindResponsePart {
		e.Stats.DropMalformed++ // it had begun to answer with something else
		return
	}
	if sl.state == slotSent && h.Kind != KindPulled && h.Kind != KindMissing {
		if !sl.resent {
			s.unmeasured = 0
			s.sampleRTT(e.now - sl.sentAt)
		} else if s.unmeasured++; s.unmeasured > len(s.slots) && sl.backoff > s.rto {
			// Which of the copies was answered nobody knows, so this measures
			// nothing. If the timeout is shorter than the round trip there will be
			// nothing else, as now, for more than a window: then it stays as long as
			// it has become here, until an answer to a request that was sent once
			// measures it (RFC 6298, 5.7). After a burst of losses it does not.
			s.rto = sl.backoff
		}
	}
	if h.Kind.answers() {
		s.doubt &^= 1 << sl.index
		if s.flow != nil && sl.state == slotSent {
			s.flow.answered(sl, h.Hold, len(body))
		}
	}
	cancelled := sl.state == slotCancelling
	switch h.Kind {
	case KindPulled:
		if len(body) != 0 {
			e.Stats.DropMalformed++
			return
		}
		sl.pulled = true
		e.withdraw(sl.ref)
		if cancelled {
			sl.done(sl.err)
		}
	case KindResponse:
		if cancelled {
			sl.done(sl.err)
			return
		}
		sl.done(setResponse(sl.call.Resp, body))
	case KindLargeResponse:
		c, ok := ParseControl(body)
		if !ok || c.Len == 0 {
			e.Stats.DropMalformed++
			return
		}
		switch {
		case cancelled:
			e.push(s, KindPulled, 0, h.Slot, h.Seq)
			sl.done(sl.err)
		case c.Len > uint64(sl.call.Resp.Cap()):
			e.push(s, KindPulled, 0, h.Slot, h.Seq)
			sl.done(&ResponseTooLargeError{Need: int(min(c.Len, math.MaxInt)), Cap: sl.call.Resp.Cap()})
		default:
			sl.state = slotReading
			sl.pulled = true
			e.withdraw(sl.ref)
			sl.call.RespLarge = true
			sl.respLen = uint32(c.Len)
			sl.read = e.pushRead(s, &c, sl.call.Resp, sl, nil)
			sl.arm()
		}
	case KindResponsePart:
		if cancelled {
			sl.done(sl.err)
			return
		}
		sl.responsePart(body)
	case KindMissing:
		sl.missing(body)
	case KindError:
		if cancelled {
			sl.done(sl.err)
			return
		}
		sl.done(decodeError(Code(h.Type), body))
	default:
		e.Stats.DropMalformed++
	}
}

// lateAnswer takes notice of an answer to request seq, which was given up: the
// server's slot is free again, and takes a request that had to wait for that.
func (sl *clientSlot) lateAnswer(seq uint32) {
	switch {
	case seq == sl.seq:
		sl.s.doubt &^= 1 << sl.index
	case sl.behind && sl.state == slotSent:
		sl.behind = false
		sl.postedAt = sl.s.e.now // the server would not have taken it before
		sl.repeat()
	}
}

// readDone tells the outcome of the READ of the response.
func (sl *clientSlot) readDone(ok bool) {
	if sl.state != slotReading {
		return
	}
	s := sl.s
	if s.up {
		s.e.push(s, KindPulled, 0, sl.index, sl.seq)
	}
	switch {
	case sl.err != nil:
		sl.done(sl.err)
	case !ok:
		sl.done(ErrReadFailed)
	default:
		sl.done(sl.call.Resp.SetLen(int(sl.respLen)))
	}
}

// setResponse copies a small response into the caller's buffer.
func setResponse(buf msgbuf.Buf, body []byte) error {
	if len(body) > buf.Cap() {
		return &ResponseTooLargeError{Need: len(body), Cap: buf.Cap()}
	}
	if buf == (msgbuf.Buf{}) {
		return nil
	}
	if len(body) > 0 && !buf.Mapped() {
		return ErrUnmapped
	}
	if err := buf.SetLen(len(body)); err != nil {
		return ErrBuffer
	}
	copy(buf.Bytes(), body)
	return nil
}

// decodeError makes the error that a KindError datagram stands for.
func decodeError(code Code, body []byte) error {
	switch code {
	case CodeNoHandler:
		return ErrNoHandler
	case CodeNoMemory:
		return ErrServerMemory
	case CodeTooLarge:
		return ErrTooLarge
	case CodeReadFailed:
		return ErrReadFailed
	case CodeBadResponse:
		return ErrBadResponse
	case CodeHandler, CodePanic:
		if len(body) == 0 {
			return &HandlerError{Panic: code == CodePanic}
		}
		if len(body) < 4 || len(body) > 4+MaxErrorText {
			return ErrProtocol
		}
		return &HandlerError{Code: binary.LittleEndian.Uint32(body), Message: string(body[4:]), Panic: code == CodePanic}
	}
	return ErrProtocol
}
