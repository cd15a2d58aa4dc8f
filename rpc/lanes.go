package rpc

import (
	"context"
	"errors"
	"time"

	"github.com/rrppcc-go/rrppcc/rpc/internal/engine"
)

// Nested calls take slots for as long as they take, and chains of calls that go
// to and fro between two endpoints may take all slots of their sessions and then
// wait for one more, each for the others. So that this cannot happen, a session
// has lanes: more sessions to the same endpoint, numbered from 1, that nobody
// sees. The rule is that of virtual channels in networks:
//
//	A handler whose request came by lane k starts a nested call on lane k if
//	there is a slot free at this moment, and otherwise on lane k+1, where it may
//	have to wait.
//
// Along a chain the lanes never go down, and who holds a slot of lane k waits for
// slots of higher lanes alone; so waiting has no cycles, and with the slots of the
// highest lane, where nobody waits, all others come free. On the last lane a call
// that finds no slot ends with ErrNesting at once. A chain needs one lane more per
// call at the worst, so the default of 16 is enough for a depth of 16 however many
// chains there are.
//
// Lane 0 is the session itself, which all other calls use.

// maxLanes bounds WithNesting, and what a hello may say.
const maxLanes = 64

// laneRetry is for how long no lane is opened after one could not be.
const laneRetry = time.Second

// lanes are the lanes of a session. The client's end chooses among them, the
// server's only has to end them.
type lanes struct {
	all    map[uint8]*Session
	closed bool
	retry  int64 // no lane is opened before
	timer  *time.Timer
}

// creditsOf is how many receive buffers a session with that lane number takes.
// A lane has its window's requests and what belongs to them; it is not needed
// for more.
func (ep *Endpoint) creditsOf(lane uint8) int {
	if lane == 0 {
		return ep.opt.credits
	}
	return min(ep.opt.credits, 2*ep.opt.window)
}

// startNested starts a request that a handler waits for. It runs in the loop.
func (s *Session) startNested(r *Request) {
	ep := s.ep
	es := s.nestedOn(uint8(r.lane))
	if es == nil {
		ep.e.Refuse(&r.call, ErrNesting)
		return
	}
	es.Start(ep.now, &r.call)
}

// nestedOn chooses the lane for a nested call of a request that came by lane k.
// It returns nil where there is none.
func (s *Session) nestedOn(k uint8) *engine.Session {
	most := s.ep.opt.nesting
	switch {
	case most == 0, !s.es.Open():
		return s.es
	case k == 0 && s.es.Vacant():
		return s.es
	}
	if k > 0 {
		if l := s.openLane(min(k, uint8(most))); l == nil {
			return s.es // without a lane there is no promise
		} else if l.es.Vacant() {
			l.used()
			return l.es
		}
	}
	if int(k) >= most {
		return nil
	}
	l := s.openLane(k + 1)
	if l == nil {
		return s.es
	}
	l.used()
	return l.es
}

// openLane returns lane k, which may not be up yet, or nil if it cannot be had.
func (s *Session) openLane(k uint8) *Session {
	ep := s.ep
	if s.lanes == nil {
		s.lanes = &lanes{all: make(map[uint8]*Session)}
	}
	if l := s.lanes.all[k]; l != nil {
		return l
	}
	if s.lanes.retry > ep.now {
		return nil
	}
	l := &Session{ep: ep, remote: s.remote, id: s.id, passive: true, credits: ep.creditsOf(k), lane: k, main: s,
		ended: make(chan struct{}), opening: make(chan struct{})}
	if err := ep.newSession(l); err != nil {
		s.noLane(k, err)
		return nil
	}
	l.begin()
	s.lanes.all[k] = l
	s.laned.Store(true)
	ep.bringUp(l)
	return l
}

// noLane notes that a lane could not be opened: nested calls wait like all others
// for a while.
func (s *Session) noLane(k uint8, err error) {
	s.lanes.retry = s.ep.now + int64(laneRetry)
	if errors.Is(err, ErrClosed) {
		return
	}
	s.ep.log.Warn("rpc: no lane for nested calls: they wait for slots of the session, and may wait for each other until their deadlines",
		"endpoint", s.ep.id, "remote", s.remote, "lane", k, "error", err)
}

// laneFailed gives what waits for a lane that does not come up to the session
// that it is of. It runs in the loop.
func (s *Session) laneFailed(err error) {
	m := s.main
	if m == nil || !s.es.Client() || m.lanes.all[s.lane] != s {
		return
	}
	delete(m.lanes.all, s.lane)
	if m.es.Open() {
		m.noLane(s.lane, err)
	}
	s.es.HandOver(s.ep.now, m.es)
}

// used puts off the end of a lane.
func (s *Session) used() {
	s.lastUsed = s.ep.now
	if m := s.main.lanes; m.timer == nil {
		main := s.main
		m.timer = time.AfterFunc(main.ep.opt.laneIdle, func() { main.ep.submit(op{kind: opFunc, fn: main.restLanes}) })
	}
}

// restLanes closes the lanes that nobody needs. It runs in the loop.
func (s *Session) restLanes() {
	m := s.lanes
	for k, l := range m.all {
		if l.up && l.es.Quiet() && s.ep.now-l.lastUsed >= int64(s.ep.opt.laneIdle) {
			delete(m.all, k)
			go l.Close()
		}
	}
	if len(m.all) == 0 {
		m.timer = nil
		return
	}
	m.timer.Reset(s.ep.opt.laneIdle)
}

// laneMain returns the server's end of the session with that index, if a lane of
// the pair p may be of it. It runs in the loop.
func (ep *Endpoint) laneMain(index uint32, p *pair) *Session {
	es := ep.e.Session(index)
	if es == nil || es.Client() {
		return nil
	}
	if s, ok := es.User.(*Session); ok && s.pair == p && s.main == nil && s.up {
		return s
	}
	return nil
}

// addLane notes the server's end of a lane.
func (s *Session) addLane(l *Session) {
	if s.lanes == nil {
		s.lanes = &lanes{all: make(map[uint8]*Session)}
	}
	if s.lanes.closed {
		go l.Close()
		return
	}
	if old := s.lanes.all[l.lane]; old != nil { // which the client has given up
		go old.Close()
	}
	s.lanes.all[l.lane] = l
	s.laned.Store(true)
}

// takeLanes empties the lanes of s for good. It runs in the loop.
func (s *Session) takeLanes() (open []*Session) {
	if s.lanes == nil {
		s.lanes = &lanes{}
	}
	if s.lanes.timer != nil {
		s.lanes.timer.Stop()
		s.lanes.timer = nil
	}
	for _, l := range s.lanes.all {
		open = append(open, l)
	}
	s.lanes.all, s.lanes.closed = nil, true
	return open
}

// closeLanes closes the lanes ahead of the session, which opens no more.
func (s *Session) closeLanes(ctx context.Context) {
	if !s.laned.Load() {
		return
	}
	var open []*Session
	s.ep.onOwner(ctx, func() { open = s.takeLanes() })
	for _, l := range open {
		l.close(ctx)
	}
}

// endLanes has the lanes follow a session that has ended. It runs in the loop.
func (s *Session) endLanes() {
	if s.main != nil {
		if m := s.main.lanes; m != nil && m.all[s.lane] == s {
			delete(m.all, s.lane)
		}
		return
	}
	if s.lanes == nil {
		return
	}
	for _, l := range s.takeLanes() {
		go l.Close()
	}
}
