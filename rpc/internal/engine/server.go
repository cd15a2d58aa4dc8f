package engine

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/rrppcc-go/rrppcc/msgbuf"
)

type serverState uint8

const (
	serverIdle       serverState = iota // nothing kept: no request yet, or its large response was pulled
	serverReading                       // our READ of the request is in flight
	serverAssembling                    // parts of the request have come
	serverHandling                      // the handler runs, or will reply later
	serverResponded                     // the response is kept for duplicates, or until it is pulled
)

// serverSlot is the server's side of one place in a client's window.
type serverSlot struct {
	s      *Session
	spare  *Handle // for the next request
	handle *Handle // of the request under way, nil when it has been answered
	req    msgbuf.Buf
	resp   msgbuf.Buf
	cache  msgbuf.Buf // preallocated small response, kept from request to request
	timer  timer
	parts  assembly // of the request

	backoff int64
	heard   int64  // when the client last sent something for an incomplete request
	came    int64  // the request came after that, where asked
	sent    uint64 // Engine.flushes when the slot last put something into Tx
	seq     uint32 // newest request accepted
	skip    uint32 // requests up to here are over, or were cancelled before they came
	ref     uint32 // NIC's use of resp, or the peer's by an offer
	read    uint32 // token, in serverReading
	rxSlot  uint32

	index     uint8
	typ       uint8
	state     serverState
	respKind  Kind
	respCode  Code
	rxHeld    bool
	large     bool  // the request was pulled
	asked     bool  // the answer is to say how long we had the request
	hold      uint8 // what it says; 0 = not answered yet
	cancelled bool  // the client gave the request up while it was read
}

// fromClient takes a datagram of the client.
func (s *Session) fromClient(h *Header, body []byte, rx *Rx) {
	e := s.e
	sl := &s.server[h.Slot]
	d := int32(h.Seq - sl.seq)
	switch h.Kind {
	case KindRequest, KindLargeRequest, KindRequestPart:
		switch {
		case h.Seq == 0:
			e.Stats.DropMalformed++
		case d == 0 && sl.state == serverAssembling && h.Kind == KindRequestPart:
			if p, data, ok := ParsePart(body); ok {
				sl.requestPart(p, data)
			} else {
				e.Stats.DropMalformed++
			}
		case d == 0:
			e.Stats.Duplicates++
			sl.duplicate(h, body)
		case int32(h.Seq-sl.skip) <= 0:
			e.Stats.DropStale++
		case sl.state == serverReading || sl.state == serverHandling:
			e.Stats.DropBusy++
		default:
			sl.accept(h, body, rx)
		}
	case KindMissing:
		sl.missing(h, body)
	case KindPulled:
		if len(body) != 0 {
			e.Stats.DropMalformed++
			return
		}
		if d == 0 && sl.state == serverResponded && sl.respKind == KindLargeResponse {
			sl.releaseResponse()
			sl.state = serverIdle
		}
	case KindCancel:
		if len(body) != 0 {
			e.Stats.DropMalformed++
			return
		}
		if d == 0 && sl.state == serverReading {
			sl.cancelled = true
			return
		}
		if d == 0 && sl.state == serverAssembling {
			sl.releaseRequest()
			sl.state = serverIdle
		}
		if int32(h.Seq-sl.skip) > 0 {
			sl.skip = h.Seq
		}
		e.push(s, KindPulled, 0, h.Slot, h.Seq)
	default:
		e.Stats.DropMalformed++
	}
}

// duplicate answers a request that was accepted before. A part of one is only
// late, or doubled by the network: a client that misses the answer asks for it.
func (sl *serverSlot) duplicate(h *Header, body []byte) {
	if h.Kind == KindRequestPart {
		return
	}
	switch sl.state {
	case serverReading:
		if h.Kind == KindLargeRequest {
			sl.s.e.rekey(sl.read, body)
		}
		if sl.s.broken {
			sl.s.tellBroken()
		}
	case serverResponded:
		sl.sendResponse()
	case serverHandling:
		if h.Kind == KindLargeRequest {
			sl.s.e.push(sl.s, KindPulled, 0, sl.index, sl.seq)
		}
	}
}

// accept starts on a new request. It implies that the client is through with
// the response before.
func (sl *serverSlot) accept(h *Header, body []byte, rx *Rx) {
	s := sl.s
	e := s.e
	if h.Kind == KindRequest {
		sl.begin(h)
		sl.large = false
		sl.rxSlot = rx.Slot
		sl.run(body)
		if sl.pending(h.Seq) {
			sl.rxHeld, rx.Held = true, true
		}
		return
	}
	if h.Kind == KindRequestPart {
		sl.acceptPart(h, body)
		return
	}
	c, ok := ParseControl(body)
	if !ok || c.Len == 0 {
		e.Stats.DropMalformed++
		return
	}
	sl.begin(h)
	if !sl.takeMemory(c.Len, e.places[h.Type]) {
		return
	}
	sl.large = true
	sl.cancelled = false
	sl.state = serverReading
	sl.read = e.pushRead(s, &c, sl.req, nil, sl)
}

// takeMemory allocates the buffer of a request of n bytes, by place unless that is
// nil, or answers it with why it does not get one.
func (sl *serverSlot) takeMemory(n uint64, place func(int) (msgbuf.Buf, error)) bool {
	e := sl.s.e
	if n > uint64(e.cfg.MaxMsg) {
		sl.respondCode(CodeTooLarge)
		return false
	}
	if e.cfg.MaxPulled != 0 && e.pulled+int64(n) > e.cfg.MaxPulled {
		sl.respondCode(CodeNoMemory)
		return false
	}
	if place == nil {
		place = e.cfg.Small.Alloc
	}
	buf, err := place(int(n))
	if err == nil && (buf.Registrar() != e.cfg.Registrar || buf.SetLen(int(n)) != nil) {
		buf.Free()
		err = ErrBuffer
	}
	if err != nil {
		sl.respondCode(CodeNoMemory)
		return false
	}
	sl.req = buf
	e.pulled += int64(n)
	return true
}

func (sl *serverSlot) begin(h *Header) {
	if sl.state == serverAssembling { // the client has given it up
		sl.releaseRequest()
	}
	sl.releaseResponse()
	sl.state = serverIdle
	sl.seq, sl.skip, sl.typ = h.Seq, h.Seq, h.Type
	if t := sl.traced(); t != nil {
		*t = serverTrace{begun: sl.s.e.now}
	}
	if sl.asked = h.Hold != 0; sl.asked {
		sl.came, sl.hold = sl.s.e.arrived, 0
	}
}

// readDone tells the outcome of the READ of the request.
func (sl *serverSlot) readDone(ok bool) {
	if sl.state != serverReading {
		return
	}
	s := sl.s
	switch {
	case s.err != nil:
		sl.releaseRequest()
		sl.state = serverIdle
	case sl.cancelled:
		sl.releaseRequest()
		sl.state = serverIdle
		s.e.push(s, KindPulled, 0, sl.index, sl.seq)
	case !ok:
		sl.releaseRequest()
		sl.respondCode(CodeReadFailed)
	default:
		seq := sl.seq
		sl.run(sl.req.Bytes())
		if sl.pending(seq) {
			s.e.push(s, KindPulled, 0, sl.index, sl.seq)
		}
	}
}

// run calls the handler.
func (sl *serverSlot) run(data []byte) {
	e := sl.s.e
	fn := e.handlers[sl.typ]
	if fn == nil {
		sl.releaseRequest()
		sl.respondCode(CodeNoHandler)
		return
	}
	h := sl.spare
	if h == nil {
		h = &Handle{sl: sl}
		sl.spare = h
	}
	sl.handle = h
	h.data = data
	h.over = false
	sl.state = serverHandling
	e.Stats.Handled++
	if t := sl.traced(); t != nil {
		t.called, t.bytes = e.now, len(data)
	}
	buf, err := e.invoke(fn, h)
	if err == ErrDeferred || sl.handle != h || h.taken() {
		// Somebody has the Handle, or took the reply while the handler ran. The
		// next request gets a Handle of its own.
		sl.discard(buf)
		if sl.spare == h {
			sl.spare = nil
		}
		return
	}
	sl.respond(buf, err)
}

// pending reports, after run, that request seq will be answered later. While
// its handler ran, it may even have been answered and another one accepted.
func (sl *serverSlot) pending(seq uint32) bool {
	return sl.state == serverHandling && sl.seq == seq
}

func (e *Engine) invoke(fn Handler, h *Handle) (buf msgbuf.Buf, err error) {
	defer func() {
		if v := recover(); v != nil {
			if e.cfg.Panicked != nil {
				e.cfg.Panicked(h.sl.typ, v)
			}
			buf, err = msgbuf.Buf{}, &HandlerError{Message: fmt.Sprint(v), Panic: true}
		}
	}()
	return fn(h)
}

// respond ends the handling with the handler's outcome.
func (sl *serverSlot) respond(buf msgbuf.Buf, err error) {
	s := sl.s
	e := s.e
	sl.handle = nil
	sl.releaseRequest()
	if s.err != nil {
		sl.state = serverIdle
		sl.discard(buf)
		sl.dropCache()
		return
	}
	if err != nil {
		sl.discard(buf)
		sl.respondError(err)
		return
	}
	n := buf.Len()
	switch {
	case buf == (msgbuf.Buf{}):
		sl.respKind = KindResponse
	case buf.Registrar() != e.cfg.Registrar, n > e.cfg.MaxMsg:
		sl.discard(buf)
		sl.respondCode(CodeBadResponse)
		return
	case n <= s.maxSmall:
		sl.respKind = KindResponse
	case n <= s.maxUD:
		sl.respKind = KindResponsePart
	default:
		if buf.Access() != msgbuf.RemoteRead {
			old := buf
			buf, err = e.readable(old)
			sl.discard(old)
		}
		if err != nil {
			code := CodeNoMemory
			if err == ErrBuffer || err == ErrUnmapped {
				code = CodeBadResponse
			}
			sl.respondCode(code)
			return
		}
		sl.respKind = KindLargeResponse
	}
	sl.resp = buf
	sl.start()
}

// discard frees a buffer that a handler gave and that will not be sent.
func (sl *serverSlot) discard(buf msgbuf.Buf) {
	if buf != sl.cache {
		sl.s.e.freeLater(buf)
	}
}

// start sends the response for the first time.
func (sl *serverSlot) start() {
	sl.state = serverResponded
	if t := sl.traced(); t != nil {
		sl.traceAnswer(t)
	}
	switch e := sl.s.e; {
	case sl.respKind != KindLargeResponse:
		sl.sendResponse()
	case e.offers(sl.resp):
		sl.ref = e.pushOffer(sl.s, sl.resp, nil, sl)
		if sl.s.broken {
			sl.s.tellBroken()
		}
	default:
		sl.sendLarge()
	}
}

// sendLarge sends a large response, and again until it was pulled.
func (sl *serverSlot) sendLarge() {
	e := sl.s.e
	sl.sendResponse()
	sl.backoff = e.cfg.InitialRTO
	e.wheel.set(&sl.timer, e.now+sl.backoff)
}

// respondError answers with what a handler's error says.
func (sl *serverSlot) respondError(err error) {
	he := asHandlerError(err)
	code := CodeHandler
	if he.Panic {
		code = CodePanic
	}
	text := he.Message[:min(len(he.Message), MaxErrorText, max(sl.s.maxSmall-4, 0))]
	if buf, err := sl.s.e.cfg.Small.Alloc(4 + len(text)); err == nil {
		b := buf.Bytes()
		binary.LittleEndian.PutUint32(b, he.Code)
		copy(b[4:], text)
		sl.resp = buf
	}
	sl.respKind, sl.respCode = KindError, code
	sl.start()
}

// asHandlerError says what err tells the caller. err is the application's: its
// methods may panic, and it may be a nil *HandlerError.
func asHandlerError(err error) (he *HandlerError) {
	defer func() {
		if v := recover(); v != nil {
			he = &HandlerError{Message: fmt.Sprintf("the handler's error panicked: %v", v), Panic: true}
		}
	}()
	if !errors.As(err, &he) {
		return &HandlerError{Message: err.Error()}
	}
	if he == nil {
		return &HandlerError{Message: "nil *HandlerError"}
	}
	return he
}

func (sl *serverSlot) respondCode(code Code) {
	sl.respKind, sl.respCode = KindError, code
	sl.start()
}

// sendResponse transmits the kept response.
func (sl *serverSlot) sendResponse() {
	s := sl.s
	if sl.respKind == KindLargeResponse && s.broken {
		s.tellBroken()
	}
	if sl.offering() {
		return
	}
	typ := uint8(0)
	if sl.respKind == KindError {
		typ = uint8(sl.respCode)
	}
	if sl.respKind == KindResponsePart {
		sl.sendParts(everyPart)
		return
	}
	sl.sent = s.e.flushes
	tx := s.e.push(s, sl.respKind, typ, sl.index, sl.seq)
	if sl.asked {
		sl.tell(1)
	}
	if sl.respKind == KindLargeResponse {
		s.e.control(tx, sl.resp, sl.ref)
		return
	}
	sl.ref = s.e.data(tx, sl.resp, sl.ref)
}

// offering reports that the large response cannot be read yet.
func (sl *serverSlot) offering() bool {
	r := &sl.s.e.refs[sl.ref]
	return sl.respKind == KindLargeResponse && r.offer && r.key == Control{}
}

// expired is the timer: a large response whose PULLED did not come, or a request
// of which parts did not.
func (sl *serverSlot) expired(now int64) {
	if sl.state == serverAssembling {
		sl.stale(now)
		return
	}
	if sl.state != serverResponded || sl.respKind != KindLargeResponse {
		return
	}
	e := sl.s.e
	e.Stats.Retransmits++
	sl.sendResponse()
	sl.backoff = min(2*sl.backoff, e.cfg.MaxRTO)
	e.wheel.set(&sl.timer, now+sl.backoff)
}

// releaseRequest lets go of the request's memory.
func (sl *serverSlot) releaseRequest() {
	e := sl.s.e
	if sl.req.Valid() {
		e.pulled -= int64(sl.req.Len())
		e.freeLater(sl.req)
	}
	sl.req = msgbuf.Buf{}
	if sl.rxHeld {
		sl.rxHeld = false
		e.Released = append(e.Released, sl.rxSlot)
	}
}

// releaseResponse lets go of the response's memory as soon as the NIC has.
func (sl *serverSlot) releaseResponse() {
	e := sl.s.e
	buf, cached := sl.resp, sl.resp != msgbuf.Buf{} && sl.resp == sl.cache
	sl.resp = msgbuf.Buf{}
	if sl.ref != 0 {
		r := &e.refs[sl.ref]
		if r.count > 0 {
			r.released, r.buf = true, buf
			e.withdraw(sl.ref)
			if cached {
				sl.cache = msgbuf.Buf{}
			}
			sl.ref = 0
			return
		}
		e.dropRef(sl.ref)
		sl.ref = 0
	}
	if cached && sl.sent == e.flushes {
		sl.cache, cached = msgbuf.Buf{}, false // the last answer waits to be posted
	}
	if !cached {
		e.freeLater(buf)
	}
}

func (sl *serverSlot) dropCache() {
	sl.s.e.freeLater(sl.cache)
	sl.cache = msgbuf.Buf{}
}

// sessionFailed lets go of everything; a READ in flight and a handler that has
// not replied do so later.
func (sl *serverSlot) sessionFailed() {
	sl.s.e.wheel.stop(&sl.timer)
	switch sl.state {
	case serverIdle, serverResponded:
		sl.releaseResponse()
		sl.state = serverIdle
		sl.dropCache()
	case serverReading:
		sl.dropCache()
	case serverAssembling:
		sl.releaseRequest()
		sl.state = serverIdle
		sl.dropCache()
	}
}
