package engine

import "encoding/binary"

// Session is one end of a session: of the client, who sends requests, or of
// the server, who answers them.
type Session struct {
	e      *Engine
	index  uint32
	token  uint32 // what the peer must put into its datagrams
	client bool
	up     bool  // connected
	closed bool  // no new calls
	err    error // why it ended; nil while it lives

	dest        uint32 // transport's index of the peer
	remote      uint32 // peer's session index
	remoteToken uint32
	peerQPN     uint32
	maxSmall    int // payload bytes of a datagram to this peer
	partBytes   int // payload bytes of a datagram that is part of a message
	maxParts    int // bytes of the longest message that either ring takes in parts, 0 = none
	maxUD       int // bytes of the longest message that we send in datagrams
	received    uint64

	slots      []clientSlot // of a client
	freeMask   uint64
	doubt      uint64 // slots whose last request the server has not answered, as far as we know
	backlog    callList
	waiting    timer // earliest deadline in the backlog
	srtt       int64
	rttvar     int64
	rto        int64
	unmeasured int // answers since the last that told the round trip
	active     int // client slots in use
	flow       *flow

	server []serverSlot // of a server
	traces []serverTrace
	broken bool   // of a server: READs from the client wait for a new connection
	gen    uint32 // of the broken connection

	// User is the owner's, untouched by the engine.
	User any
}

// Peer says where a session leads.
type Peer struct {
	Dest     uint32 // transport's index
	Session  uint32 // the peer's session index
	Token    uint32 // the peer's session token
	QPN      uint32 // the QP that the peer sends from
	MaxSmall int    // payload bytes of a datagram, agreed by both
	Parts    int    // datagrams of one message that both receive rings have room for, per slot
}

// NewSession makes a session that is not connected. token must be random: it
// is what keeps others from speaking in the peer's name.
func (e *Engine) NewSession(client bool, token uint32) *Session {
	s := &Session{e: e, token: token, client: client, rto: e.cfg.InitialRTO, maxSmall: e.cfg.MaxSmall, maxUD: e.cfg.MaxSmall}
	if client {
		s.slots = make([]clientSlot, e.cfg.Window)
		for i := range s.slots {
			sl := &s.slots[i]
			sl.s, sl.index = s, uint8(i)
			sl.timer.fire = sl.expired
		}
		s.freeMask = 1<<e.cfg.Window - 1
		s.waiting.fire = s.backlogExpired
		if e.cfg.Congestion != nil {
			s.flow = newFlow(s, e.cfg.Congestion)
		}
	} else {
		s.server = make([]serverSlot, e.cfg.Window)
		for i := range s.server {
			sl := &s.server[i]
			sl.s, sl.index = s, uint8(i)
			sl.timer.fire = sl.expired
		}
	}
	if n := len(e.free); n > 0 {
		s.index = e.free[n-1]
		e.free = e.free[:n-1]
		e.sessions[s.index] = s
	} else {
		s.index = uint32(len(e.sessions))
		e.sessions = append(e.sessions, s)
	}
	return s
}

// Index returns the number by which the peer addresses this session.
func (s *Session) Index() uint32 { return s.index }

// Token returns the number that the peer must show.
func (s *Session) Token() uint32 { return s.token }

// Remote returns the number by which we address the peer's end of a session that
// is connected.
func (s *Session) Remote() uint32 { return s.remote }

// Received counts the datagrams of the peer that were its and well-formed.
func (s *Session) Received() uint64 { return s.received }

// Err returns why the session ended, nil while it lives.
func (s *Session) Err() error { return s.err }

// Client reports whether this end sends the requests.
func (s *Session) Client() bool { return s.client }

// Connect tells the session where its peer is, and starts its backlog.
func (s *Session) Connect(now int64, p Peer) {
	if s.err != nil || s.up {
		return
	}
	s.e.now = now
	s.up = true
	s.dest, s.remote, s.remoteToken, s.peerQPN = p.Dest, p.Session, p.Token, p.QPN
	s.maxSmall = max(0, min(p.MaxSmall, s.e.cfg.MaxSmall))
	s.setParts(p.Parts)
	s.pump()
}

// Fail ends the session: its calls end with err, as soon as no NIC can touch
// their buffers. The peer must not be able to read memory any more, or must
// have promised not to. Fail on an ended session does nothing.
func (s *Session) Fail(now int64, err error) {
	if s.err != nil {
		return
	}
	if err == nil {
		err = ErrSessionClosed
	}
	e := s.e
	e.now = now
	s.err = err
	s.up = false
	e.sessions[s.index] = nil
	e.free = append(e.free, s.index)
	if s.client {
		e.wheel.stop(&s.waiting)
		if s.flow != nil {
			s.flow.stop()
		}
		for c := s.backlog.pop(); c != nil; c = s.backlog.pop() {
			e.endCall(c, err)
		}
		for i := range s.slots {
			s.slots[i].sessionFailed(err)
		}
		return
	}
	for i := range s.server {
		s.server[i].sessionFailed()
	}
}

// Closing starts to end a client's session in peace: no new request is
// accepted, and everything under way is aborted with err. Quiet tells when
// nothing is left.
func (s *Session) Closing(now int64, err error) {
	s.e.now = now
	s.closed = true
	for c := s.backlog.pop(); c != nil; c = s.backlog.pop() {
		s.e.endCall(c, err)
	}
	for i := range s.slots {
		if sl := &s.slots[i]; sl.call != nil {
			sl.abort(err)
		}
	}
}

// Quiet reports that no call is under way.
func (s *Session) Quiet() bool { return s.active == 0 && s.backlog.head == nil }

// FailDest fails all sessions whose peer the transport knows as dest.
func (e *Engine) FailDest(now int64, dest uint32, err error) {
	for _, s := range e.sessions {
		if s != nil && s.up && s.dest == dest {
			s.Fail(now, err)
		}
	}
}

// Broken tells that READs and offers of the transport's peer dest have to wait:
// the connection of that generation broke. Its clients hear of it now, and again
// whenever a message that waits for it is repeated, until Repaired.
func (e *Engine) Broken(now int64, dest, generation uint32) {
	e.now = now
	for _, s := range e.sessions {
		if s != nil && s.up && !s.client && s.dest == dest {
			s.broken, s.gen = true, generation
			if s.needsConn() {
				s.tellBroken()
			}
		}
	}
}

// Repaired ends what Broken began.
func (e *Engine) Repaired(dest uint32) {
	for _, s := range e.sessions {
		if s != nil && s.dest == dest {
			s.broken = false
		}
	}
}

// needsConn reports that a request is being pulled, or a response is to be.
func (s *Session) needsConn() bool {
	for i := range s.server {
		if sl := &s.server[i]; sl.state == serverReading || sl.state == serverResponded && sl.respKind == KindLargeResponse {
			return true
		}
	}
	return false
}

func (s *Session) tellBroken() {
	tx := s.e.push(s, KindBroken, 0, 0, 0)
	binary.LittleEndian.PutUint32(tx.Head[HeaderBytes:], s.gen)
	tx.HeadLen = HeaderBytes + 4
}

// Session returns the living session with that index, or nil.
func (e *Engine) Session(index uint32) *Session {
	if int64(index) >= int64(len(e.sessions)) {
		return nil
	}
	return e.sessions[index]
}

// Sessions calls fn for every living session.
func (e *Engine) Sessions(fn func(*Session)) {
	for _, s := range e.sessions {
		if s != nil {
			fn(s)
		}
	}
}

// sampleRTT follows RFC 6298, with one difference: a full window measures so often
// that the variance of a steady round trip goes to nothing, and then any stall of a
// machine would have everything sent again. So a quarter of the round trip and the
// shortest timeout are allowed for in any case.
func (s *Session) sampleRTT(rtt int64) {
	if rtt < 0 {
		return
	}
	if s.srtt == 0 {
		s.srtt, s.rttvar = rtt, rtt/2
	} else {
		d := s.srtt - rtt
		if d < 0 {
			d = -d
		}
		s.rttvar += (d - s.rttvar) / 4
		s.srtt += (rtt - s.srtt) / 8
	}
	s.rto = min(s.srtt+max(4*s.rttvar, s.srtt/4, s.e.cfg.MinRTO), s.e.cfg.MaxRTO)
}
