package rpc

import (
	"context"
	"fmt"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/rrppcc-go/rrppcc/msgbuf"
)

// Pauses of a Link between two tries, each about twice the one before.
const (
	linkFirst   = 10 * time.Millisecond
	linkLongest = 2 * time.Second
)

// Link keeps a session to a remote endpoint: when the session ends, because the
// peer died, restarted or closed it, or did not come up, it opens another one,
// until the Link or the endpoint is closed. Its methods may be called from any
// goroutine.
//
// What was under way when a session ended is not sent again, because the peer may
// have executed it: it ends with ErrPeerDead or ErrSessionClosed, and the caller
// decides.
type Link struct {
	ep   *Endpoint
	uri  string
	id   uint16
	ctx  context.Context // ends with Close
	stop context.CancelFunc
	over chan struct{} // closed when nothing is opened any more

	mu      sync.Mutex
	s       *Session
	changed chan struct{} // closed when s is not the latest any more, or over
	ups     int
}

// Link opens a session to endpoint id of the process at uri, as Open does, and
// keeps it. Like everything, it needs the loop: sessions come up while somebody
// drives the endpoint.
func (ep *Endpoint) Link(uri string, id uint16) *Link {
	l := &Link{ep: ep, uri: uri, id: id, over: make(chan struct{})}
	l.ctx, l.stop = context.WithCancel(ep.life)
	l.open()
	go l.keep()
	return l
}

// open replaces the session by a new one.
func (l *Link) open() *Session {
	s := l.ep.Open(l.uri, l.id)
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.changed != nil {
		close(l.changed)
	}
	l.s, l.changed = s, make(chan struct{})
	return s
}

// keep opens sessions, one after the end of the other.
func (l *Link) keep() {
	defer func() {
		l.mu.Lock()
		close(l.changed)
		l.mu.Unlock()
		close(l.over)
	}()
	s, pause := l.Session(), linkFirst
	for {
		select {
		case <-s.opening:
		case <-l.ctx.Done():
			return
		}
		if s.Err() == nil { // it is up
			pause = linkFirst
			l.mu.Lock()
			l.ups++
			l.mu.Unlock()
		}
		select {
		case <-s.Done():
		case <-l.ctx.Done():
			return
		}
		timer := time.NewTimer(pause/2 + rand.N(pause)) // clients of one server do not come all at once
		select {
		case <-timer.C:
		case <-l.ctx.Done():
			timer.Stop()
			return
		}
		pause = min(2*pause, linkLongest)
		s = l.open()
	}
}

// Session returns the session of the moment, which may not be up yet, or have
// ended.
func (l *Link) Session() *Session {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.s
}

// Ups returns how many sessions of the link have been up so far: more than one
// says that the peer may have forgotten what it knew.
func (l *Link) Ups() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.ups
}

// Ready waits for a session that is up, however many have to be opened for that.
// The error is that of ctx, with why the last try failed, or ErrClosed.
func (l *Link) Ready(ctx context.Context) (*Session, error) {
	for {
		l.mu.Lock()
		s, changed := l.s, l.changed
		l.mu.Unlock()
		err := s.Ready(ctx)
		if err == nil {
			return s, nil
		}
		if ctx.Err() != nil {
			if cause := s.Err(); cause != nil {
				return nil, fmt.Errorf("%w; %w", ctx.Err(), cause)
			}
			return nil, ctx.Err()
		}
		select {
		case <-changed:
		case <-ctx.Done():
		}
		select {
		case <-l.over:
			return nil, ErrClosed
		default:
		}
	}
}

// Call is Session.Call on a session that is up, which it waits for as Ready does.
func (l *Link) Call(ctx context.Context, reqType uint8, req, resp msgbuf.Buf) error {
	s, err := l.Ready(ctx)
	if err != nil {
		return err
	}
	return s.Call(ctx, reqType, req, resp)
}

// Close ends the link and its session. It must not be called from a handler or
// callback.
func (l *Link) Close() error {
	l.stop()
	<-l.over
	return l.Session().Close()
}
