package engine

// assembly is a message that comes in parts. It is in some slot, and costs
// nothing there while it is not used.
type assembly struct {
	missing uint64 // parts that have not come
	total   uint32 // bytes of the message
}

// checkPart reports whether data can be that part of a message that comes on s.
func (s *Session) checkPart(p Part, data []byte) bool {
	total := int(p.Total)
	if total <= s.maxSmall || total > s.maxParts {
		return false
	}
	off := int(p.Index) * s.partBytes
	return off < total && len(data) == min(s.partBytes, total-off)
}

// begin starts to put a message together. The part has been checked.
func (a *assembly) begin(s *Session, p Part) {
	a.total = p.Total
	a.missing = everyPart >> (MaxParts - s.parts(int(p.Total)))
}

// take copies a part, which has been checked, to its place in dst. It reports
// false if the part is of a message of another length, or has come before.
func (a *assembly) take(s *Session, p Part, data, dst []byte) bool {
	bit := uint64(1) << p.Index
	if p.Total != a.total || a.missing&bit == 0 {
		return false
	}
	a.missing &^= bit
	copy(dst[int(p.Index)*s.partBytes:a.total], data)
	return true
}

// requestPart takes a part of the request that the slot is putting together, and
// runs the handler once it is whole.
func (sl *serverSlot) requestPart(p Part, data []byte) {
	e := sl.s.e
	if !sl.s.checkPart(p, data) || p.Total != sl.parts.total {
		e.Stats.DropMalformed++
		return
	}
	if !sl.parts.take(sl.s, p, data, sl.req.Bytes()) {
		e.Stats.Duplicates++
		return
	}
	sl.heard = e.now
	if sl.parts.missing == 0 {
		e.Stats.Assembled++
		sl.came = e.arrived
		sl.run(sl.req.Bytes())
	}
}

// acceptPart starts on a new request of which one part has come. The memory that
// it takes is no more than what the receive ring has for the slot.
func (sl *serverSlot) acceptPart(h *Header, body []byte) {
	s := sl.s
	e := s.e
	p, data, ok := ParsePart(body)
	if !ok || !s.checkPart(p, data) {
		e.Stats.DropMalformed++
		return
	}
	sl.begin(h)
	if !sl.takeMemory(uint64(p.Total), nil) {
		return
	}
	sl.large = false
	sl.parts.begin(s, p)
	sl.state = serverAssembling
	sl.heard = e.now
	e.wheel.set(&sl.timer, e.now+e.partsKept())
	sl.requestPart(p, data)
}

// partsKept is how long the server keeps parts of a request of which nothing is
// heard. A client that waits asks more often.
func (e *Engine) partsKept() int64 { return 8 * e.cfg.MaxRTO }

// stale is the timer of an incomplete request: if its client has given it up,
// the slot forgets that it has seen it. No handler has run.
func (sl *serverSlot) stale(now int64) {
	e := sl.s.e
	if until := sl.heard + e.partsKept(); now < until {
		e.wheel.set(&sl.timer, until)
		return
	}
	sl.releaseRequest()
	sl.state = serverIdle
	if sl.skip == sl.seq { // a later request may have been cancelled
		sl.skip--
	}
	sl.seq--
}

// missing takes a client's question for parts of the response, or for whatever
// stands between the request and it.
func (sl *serverSlot) missing(h *Header, body []byte) {
	s := sl.s
	e := s.e
	which, ok := parseMissing(body)
	switch {
	case !ok || h.Seq == 0:
		e.Stats.DropMalformed++
	case h.Seq == sl.seq:
		e.Stats.Duplicates++
		switch {
		case sl.state == serverAssembling:
			sl.heard = e.now
			s.pushMissing(sl.index, sl.seq, sl.parts.missing)
		case sl.state == serverResponded && sl.respKind == KindResponsePart:
			sl.sendParts(which)
		case sl.state == serverResponded:
			sl.sendResponse()
		}
	case int32(h.Seq-sl.skip) <= 0:
		e.Stats.DropStale++
	case sl.state == serverReading || sl.state == serverHandling:
		e.Stats.DropBusy++
	default: // nothing of that request has come
		s.pushMissing(h.Slot, h.Seq, everyPart)
	}
}

// sendParts transmits parts of the response.
func (sl *serverSlot) sendParts(which uint64) {
	s := sl.s
	sl.sent = s.e.flushes
	n := len(s.e.Tx)
	sl.ref = s.pushParts(KindResponsePart, 0, sl.index, sl.seq, sl.resp, which, sl.ref)
	if sl.asked {
		sl.tell(len(s.e.Tx) - n)
	}
}

// responsePart takes a part of the response, straight to its place in the
// caller's buffer.
func (sl *clientSlot) responsePart(body []byte) {
	s := sl.s
	e := s.e
	p, data, ok := ParsePart(body)
	if !ok || !s.checkPart(p, data) || sl.state == slotAssembling && p.Total != sl.parts.total {
		e.Stats.DropMalformed++
		return
	}
	resp := sl.call.Resp
	if sl.state == slotSent {
		if int(p.Total) > resp.Cap() {
			sl.done(&ResponseTooLargeError{Need: int(p.Total), Cap: resp.Cap()})
			return
		}
		if !resp.Mapped() {
			sl.done(ErrUnmapped)
			return
		}
		// From now on the request is not sent again: the response may be on its
		// way into the same buffer.
		sl.state = slotAssembling
		sl.pulled = true
		e.withdraw(sl.ref)
		sl.parts.begin(s, p)
		sl.backoff = s.rto
		sl.resend = e.now + s.rto
		sl.arm()
	}
	if !sl.parts.take(s, p, data, resp.Full()) {
		e.Stats.Duplicates++
		return
	}
	if sl.parts.missing == 0 {
		e.Stats.Assembled++
		sl.done(resp.SetLen(int(p.Total)))
	}
}

// sendParts transmits parts of the request.
func (sl *clientSlot) sendParts(which uint64) {
	s := sl.s
	sl.sent = s.e.flushes
	old, n := sl.ref, len(s.e.Tx)
	sl.ref = s.pushParts(KindRequestPart, sl.call.Type, sl.index, sl.seq, sl.call.Req, which, old)
	if sl.ref != old {
		s.e.refs[sl.ref].client = sl
	}
	if s.flow != nil {
		s.flow.sending(sl, len(s.e.Tx)-n)
	}
}

// askParts asks what the server has of the request, or for its answer: a
// datagram instead of many, where it is not known what got lost, if anything
// did.
func (sl *clientSlot) askParts() {
	sl.asked = true
	sl.s.pushMissing(sl.index, sl.seq, everyPart)
}

// inParts reports whether the request goes in several datagrams.
func (sl *clientSlot) inParts() bool {
	return !sl.call.ReqLarge && sl.call.Req.Len() > sl.s.maxSmall
}

// missing takes the server's word on what it has not got of the request. Each
// question is answered once, so that nobody can multiply what we send.
func (sl *clientSlot) missing(body []byte) {
	e := sl.s.e
	which, ok := parseMissing(body)
	if !ok || !sl.inParts() {
		e.Stats.DropMalformed++
		return
	}
	if sl.state != slotSent || !sl.asked {
		e.Stats.Duplicates++
		return
	}
	sl.asked = false
	if sl.behind {
		sl.behind = false
		sl.postedAt = e.now // nothing of it was sent before
	}
	if !sl.resent {
		sl.sentAt = e.now // the first of it
	}
	sl.sendParts(which)
	sl.resend = e.now + sl.backoff
	sl.arm()
}
