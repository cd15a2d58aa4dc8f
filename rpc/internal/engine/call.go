package engine

import "github.com/rrppcc-go/rrppcc/msgbuf"

// Call is one request of a client. The owner of the engine fills in the first
// part and hands it to Start; it is the engine's until Fn is called.
type Call struct {
	Type     uint8
	Req      msgbuf.Buf  // the request; the zero Buf is an empty one
	Resp     msgbuf.Buf  // room for the response; the zero Buf has none
	Deadline int64       // engine's clock; 0 = none
	Fn       func(*Call) // called once, on the owner's goroutine
	User     any         // the owner's

	// Result, valid in Fn.
	Err       error
	ReqLarge  bool // the request was pulled by RDMA READ
	RespLarge bool // the response was pulled by RDMA READ

	s     *Session
	slot  *clientSlot // nil in the backlog
	next  *Call
	prev  *Call
	state callState

	begun, sent int64 // as in Trace
}

type callState uint8

const (
	callNew     callState = iota
	callQueued            // in the backlog
	callActive            // in a slot
	callExpired           // taken out of the backlog, about to end
	callEnded             // Fn was called
)

// callList is the backlog of a session.
type callList struct {
	head, tail *Call
	n          int
}

func (l *callList) push(c *Call) {
	c.prev, c.next = l.tail, nil
	if l.tail != nil {
		l.tail.next = c
	} else {
		l.head = c
	}
	l.tail = c
	l.n++
}

func (l *callList) remove(c *Call) {
	l.n--
	if c.prev != nil {
		c.prev.next = c.next
	} else {
		l.head = c.next
	}
	if c.next != nil {
		c.next.prev = c.prev
	} else {
		l.tail = c.prev
	}
	c.next, c.prev = nil, nil
}

func (l *callList) pop() *Call {
	c := l.head
	if c != nil {
		l.remove(c)
	}
	return c
}

// Start sends c, or queues it while the session's window is full or the
// session is not connected yet. Fn may be called before Start returns. To start
// a call that has not ended panics.
func (s *Session) Start(now int64, c *Call) {
	if c.state != callNew && c.state != callEnded {
		panic("rpc: call started again before it ended")
	}
	e := s.e
	e.now = now
	e.Stats.Requests++
	c.s, c.slot, c.Err, c.ReqLarge, c.RespLarge = s, nil, nil, false, false
	c.begun, c.sent = now, 0
	if err := s.check(c); err != nil {
		e.endCall(c, err)
		return
	}
	if s.up && s.freeMask != 0 && s.backlog.head == nil && (s.flow == nil || s.flow.gap == 0) {
		s.launch(c)
		return
	}
	c.state = callQueued
	s.backlog.push(c)
	if c.Deadline != 0 {
		if s.waiting.next == nil || c.Deadline < s.waiting.when {
			e.wheel.set(&s.waiting, c.Deadline)
		}
	}
	if s.flow != nil {
		s.pump()
	}
}

// Refuse ends a call, which nobody has started, with err.
func (e *Engine) Refuse(c *Call, err error) {
	if c.state != callNew && c.state != callEnded {
		panic("rpc: call started again before it ended")
	}
	e.Stats.Requests++
	c.s, c.slot, c.begun, c.sent = nil, nil, e.now, 0
	e.endCall(c, err)
}

func (s *Session) check(c *Call) error {
	e := s.e
	switch {
	case s.err != nil:
		return s.err
	case !s.client, s.closed:
		return ErrSessionClosed
	case c.Req.Len() > e.cfg.MaxMsg:
		return ErrTooLarge
	case c.Req != (msgbuf.Buf{}) && c.Req.Registrar() != e.cfg.Registrar:
		return ErrBuffer
	case c.Resp != (msgbuf.Buf{}) && c.Resp.Registrar() != e.cfg.Registrar:
		return ErrBuffer
	case c.Deadline != 0 && c.Deadline <= e.now:
		return ErrTimeout
	}
	return nil
}

// pump moves calls from the backlog into free slots.
func (s *Session) pump() {
	if s.flow != nil && !s.flow.pump() {
		return
	}
	for s.up && s.freeMask != 0 {
		c := s.backlog.pop()
		if c == nil {
			return
		}
		s.launch(c)
	}
}

// Open reports that the session takes calls.
func (s *Session) Open() bool { return s.err == nil && !s.closed && s.client }

// Vacant reports that a call which is started now takes a slot at once, or as
// soon as the session is up, without waiting for another call to end.
func (s *Session) Vacant() bool {
	return s.Open() && s.active+s.backlog.n < len(s.slots)
}

// HandOver starts everything in the backlog of s again at another session of the
// engine.
func (s *Session) HandOver(now int64, to *Session) {
	for c := s.backlog.pop(); c != nil; c = s.backlog.pop() {
		c.state = callNew
		s.e.Stats.Requests-- // Start counts it again
		to.Start(now, c)
	}
}

// backlogExpired ends the queued calls whose deadline has come. It takes them
// all out before the first callback, which may change the backlog.
func (s *Session) backlogExpired(now int64) {
	var over callList
	earliest := int64(0)
	for c := s.backlog.head; c != nil; {
		next := c.next
		switch {
		case c.Deadline == 0:
		case c.Deadline <= now:
			s.backlog.remove(c)
			c.state = callExpired // out of reach of Abort
			over.push(c)
		case earliest == 0 || c.Deadline < earliest:
			earliest = c.Deadline
		}
		c = next
	}
	if earliest != 0 {
		s.e.wheel.set(&s.waiting, earliest)
	}
	for c := over.pop(); c != nil; c = over.pop() {
		s.e.endCall(c, ErrTimeout)
	}
}

// Abort ends c with ErrAborted, as soon as no NIC can touch its buffers. A
// call that has ended is left alone.
func (c *Call) Abort(now int64) {
	switch c.state {
	case callQueued:
		c.s.e.now = now
		c.s.backlog.remove(c)
		c.s.e.endCall(c, ErrAborted)
	case callActive:
		c.s.e.now = now
		c.slot.abort(ErrAborted)
	}
}

// endCall reports c's outcome.
func (e *Engine) endCall(c *Call, err error) {
	c.state = callEnded
	c.Err = err
	if e.cfg.Trace != nil {
		e.traceCall(c)
	}
	c.slot = nil
	if err != nil {
		e.Stats.Failed++
	} else {
		e.Stats.Responses++
	}
	c.Fn(c)
}
