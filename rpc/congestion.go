package rpc

import (
	"context"
	"time"

	"github.com/rrppcc-go/rrppcc/rpc/congestion"
)

// WithCongestionControl sets how the requests of this endpoint's sessions are
// kept from filling the network's queues: by congestion.Swift with its
// parameters, or a Control of one's own; nil, the default, is no control.
//
// It is the client's choice, session by session: servers answer what they are
// asked, whatever their own setting. A session that meets no congestion is not
// paced; it costs a reading of the clock per burst at either end. One that does
// leaves its requests in the backlog until it is their turn, where deadlines and
// Abort reach them. The loop does not sleep within a millisecond after a request
// and before a paced one's turn.
func WithCongestionControl(c congestion.Control) Option {
	return func(o *options) { o.congestion = c }
}

// SessionStats is how a client's session finds the network.
type SessionStats struct {
	// RTT is the smoothed time from a request to its answer, with the handler's;
	// 0 without any yet. Timeout is what follows from it.
	RTT, Timeout time.Duration
	// Delay is the smoothed time that request and answer are under way in the
	// network, at least; 0 without congestion control.
	Delay time.Duration
	// Gap is the time between two requests of a paced session, 0 if it is not
	// paced. Window is congestion.Swift's, in requests, 0 with another control.
	Gap    time.Duration
	Window float64
	// Active requests are under way, Waiting ones in the backlog: for a place in
	// the window, for their turn, or for the session to be up.
	Active, Waiting int
}

// Stats returns how a client's session finds the network. It waits for the loop,
// at most until ctx ends.
func (s *Session) Stats(ctx context.Context) (SessionStats, error) {
	var st SessionStats
	err := s.ep.onOwner(ctx, func() {
		if s.es == nil { // not up yet
			return
		}
		e := s.es.Stats()
		st = SessionStats{
			RTT: time.Duration(e.RTT), Timeout: time.Duration(e.RTO), Delay: time.Duration(e.Delay), Gap: time.Duration(e.Gap),
			Window: e.Window, Active: e.Active, Waiting: e.Waiting,
		}
	})
	return st, err
}
