package engine

import "github.com/rrppcc-go/rrppcc/msgbuf"

// Offer is a large message that peer Dest is to read, and nobody else, and only
// while it is offered. The transport grants it, by a memory window, and answers
// OfferDone(Token); again with another key if that works no more, because the
// connection that it was for has been replaced.
//
// The offer ends when Token turns up in Engine.Withdrawn. The transport then
// takes the right away, whatever it has done by then, and answers TxDone(Token)
// once the peer cannot read any more.
type Offer struct {
	Dest  uint32
	Token uint32
	LKey  uint32
	Addr  uint64
	Len   uint64
}

// offerResult is an offer that was granted, or cannot be.
type offerResult struct {
	token, rkey, conn uint32
	ok                bool
}

// pushOffer offers buf to the peer of s, on behalf of one of the slots.
func (e *Engine) pushOffer(s *Session, buf msgbuf.Buf, cl *clientSlot, sv *serverSlot) uint32 {
	token := e.newRef()
	e.refs[token] = ref{count: 1, client: cl, server: sv, offer: true}
	e.Offers = append(e.Offers, Offer{Dest: s.dest, Token: token, LKey: buf.LKey(), Addr: buf.Addr(), Len: uint64(buf.Len())})
	return token
}

// withdraw ends the offer, if token is one that has not ended.
func (e *Engine) withdraw(token uint32) {
	if r := &e.refs[token]; r.offer && !r.withdrawn {
		r.withdrawn = true
		e.Withdrawn = append(e.Withdrawn, token)
	}
}

// OfferDone tells that an offer can be read with rkey, by the connection of the
// number conn; or, without ok, that it never will. What follows from it follows
// in the next Receive or Flushed, so OfferDone may be called while Tx and Offers
// are posted.
func (e *Engine) OfferDone(now int64, token, rkey, conn uint32, ok bool) {
	e.now = now
	e.offersDone = append(e.offersDone, offerResult{token, rkey, conn, ok})
}

// endOffers lets the slots go on whose offers were granted. It only adds to Tx
// and to finishing.
func (e *Engine) endOffers() {
	for _, d := range e.offersDone {
		if d.token == 0 || int(d.token) >= len(e.refs) {
			continue
		}
		r := &e.refs[d.token]
		if !r.offer || r.withdrawn {
			continue
		}
		r.key = Control{RKey: d.rkey, Conn: d.conn}
		if r.client != nil {
			r.client.offered(d.ok)
		} else {
			r.server.offered(d.ok)
		}
	}
	e.offersDone = e.offersDone[:0]
}

// offered tells that the request can be read, and with which key.
func (sl *clientSlot) offered(ok bool) {
	e := sl.s.e
	switch {
	case !ok && (sl.state == slotOffering || sl.state == slotSent):
		sl.end(ErrReadFailed)
	case sl.state == slotOffering:
		sl.state = slotSent
		sl.sentAt = e.now
		sl.resend = e.now + sl.backoff
		sl.send()
		sl.arm()
	case sl.state == slotSent:
		// It may have been sent again in the meantime, and answered; then this
		// is one more duplicate.
		sl.resent = true
		sl.send()
	}
}

// offered tells that the response can be read, and with which key.
func (sl *serverSlot) offered(ok bool) {
	if sl.state != serverResponded || sl.respKind != KindLargeResponse {
		return
	}
	if !ok {
		sl.releaseResponse()
		sl.respondCode(CodeBadResponse)
		return
	}
	sl.sendLarge()
}

// offers reports whether buf is to be offered to be read.
func (e *Engine) offers(buf msgbuf.Buf) bool { return e.cfg.Offers && buf.RKey() == 0 }

// control adds to tx a control block for buf, which is offered as token, or if it
// is not, by the key of its region.
func (e *Engine) control(tx *Tx, buf msgbuf.Buf, token uint32) {
	c := Control{RKey: buf.RKey()}
	if r := &e.refs[token]; r.offer {
		c = r.key
	}
	c.Addr, c.Len = buf.Addr(), uint64(buf.Len())
	c.Put((*[ControlBytes]byte)(tx.Head[HeaderBytes:]))
	tx.HeadLen = HeaderBytes + ControlBytes
}

// Key returns the key of the message that a Read is of, and the number of the
// connection that the key is for, 0 for any. They change when the peer had to
// offer the message anew.
func (e *Engine) Key(token uint32) (rkey, conn uint32) {
	if int(token) >= len(e.refs) || !e.refs[token].read {
		return 0, 0
	}
	k := &e.refs[token].key
	return k.RKey, k.Conn
}

// rekey takes the control block of a message that is being read: the peer
// repeats itself, or has offered the message anew.
func (e *Engine) rekey(token uint32, body []byte) {
	r := &e.refs[token]
	c, ok := ParseControl(body)
	if !ok || !r.read || c.Addr != r.key.Addr || c.Len != r.key.Len || c.Conn == 0 || r.key.Conn == 0 || int32(c.Conn-r.key.Conn) <= 0 {
		return
	}
	r.key = c
}
