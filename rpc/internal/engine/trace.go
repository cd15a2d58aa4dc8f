package engine

// Trace is how one request went, as one end of the session saw it. Times are of
// the engine's clock, as of the turn of the loop in which things happened.
type Trace struct {
	Session *Session
	Server  bool // this end answered
	Type    uint8
	Slot    uint8
	Seq     uint32 // number of the request in its slot, 0 if it never had one

	Begun int64 // when it was started; at the server, when it arrived
	Sent  int64 // when it left the backlog; at the server, when the handler was called; 0: never
	Ended int64 // when it ended; at the server, when the answer was there

	ReqBytes, RespBytes int  // RespBytes is 0 where Err is not nil
	ReqLarge, RespLarge bool // went by RDMA READ
	Resent              int  // how often the client repeated itself, at most 255
	Err                 error

	User any // of the Call
}

// serverTrace is what a server notes of a slot's request while somebody traces.
type serverTrace struct {
	begun, called int64
	bytes         int
}

// traceCall reports a call that has ended. Its slot, if it had one, is still known.
func (e *Engine) traceCall(c *Call) {
	t := &e.trace
	*t = Trace{Session: c.s, Type: c.Type, Begun: c.begun, Sent: c.sent, Ended: e.now,
		ReqBytes: c.Req.Len(), ReqLarge: c.ReqLarge, RespLarge: c.RespLarge, Err: c.Err, User: c.User}
	if sl := c.slot; sl != nil {
		t.Slot, t.Seq, t.Resent = sl.index, sl.seq, int(sl.resends)
	}
	if c.Err == nil {
		t.RespBytes = c.Resp.Len()
	}
	e.cfg.Trace(t)
}

// traced returns what is noted of the slot's request, nil if nobody traces.
func (sl *serverSlot) traced() *serverTrace {
	s := sl.s
	if s.e.cfg.Trace == nil {
		return nil
	}
	if s.traces == nil {
		s.traces = make([]serverTrace, len(s.server))
	}
	return &s.traces[sl.index]
}

// traceAnswer reports a request that is about to be answered for the first time.
func (sl *serverSlot) traceAnswer(n *serverTrace) {
	e := sl.s.e
	t := &e.trace
	*t = Trace{Session: sl.s, Server: true, Type: sl.typ, Slot: sl.index, Seq: sl.seq, Begun: n.begun, Sent: n.called, Ended: e.now,
		ReqBytes: n.bytes, ReqLarge: sl.large, RespLarge: sl.respKind == KindLargeResponse}
	if sl.respKind == KindError {
		t.Err = decodeError(sl.respCode, sl.resp.Bytes())
	} else {
		t.RespBytes = sl.resp.Len()
	}
	e.cfg.Trace(t)
}
