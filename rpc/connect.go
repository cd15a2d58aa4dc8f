package rpc

import (
	"context"
	"errors"
	"fmt"
	"runtime/debug"
	"sync/atomic"
	"time"

	"github.com/rrppcc-go/rrppcc/nexus"
	"github.com/rrppcc-go/rrppcc/rpc/internal/engine"
	"github.com/rrppcc-go/rrppcc/rpc/internal/transport"
)

// connectTimeout is the deadline of Connect where the context has none.
const connectTimeout = 10 * time.Second

// pairKey says where a client's pair leads.
type pairKey struct {
	uri string
	id  uint16
}

// pair is what all sessions between two endpoints in one direction share: the
// RC queue pair and the address handle. The client of the first session makes
// it and gives it a random id.
type pair struct {
	key   pairKey // client's side
	id    uint64
	owner *nexus.Peer   // server's side: the client's process
	ready chan struct{} // closed when connected or failed
	err   error         // valid once ready is closed

	peer *transport.Peer

	// Of the loop.
	attached bool
	handed   bool // was attached once: the transport destroys the peer
	repair   repair

	refs int  // sessions, under Endpoint.mu
	gone bool // not in the tables any more, under Endpoint.mu
}

// Connect opens a session to endpoint id of the process at uri ("host:port").
// If ctx has no deadline, 10 s is it. An endpoint that has no room answers with
// an error that is ErrRingExhausted; other refusals are *nexus.RefusedError, a
// server that does not answer is *nexus.TimeoutError.
func (ep *Endpoint) Connect(ctx context.Context, uri string, id uint16) (*Session, error) {
	if _, ok := ctx.Deadline(); !ok {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, connectTimeout)
		defer cancel()
	}
	s := &Session{ep: ep, remote: uri, id: id, credits: ep.opt.credits, ended: make(chan struct{})}
	if err := ep.newSession(s); err != nil {
		return nil, s.connectError(err)
	}
	defer ep.connecting.Done()
	if err := ep.connect(ctx, s); err != nil {
		return nil, err
	}
	return s, nil
}

// Open is Connect that does not wait: requests may be sent at once, and are
// queued until the session is up. If it does not come up within 10 s, the
// session ends with the error that Connect would have returned, and so do its
// requests, if not at their own deadlines. Session.Ready tells.
//
// As everything, it needs the loop: the session comes up while somebody drives
// the endpoint.
func (ep *Endpoint) Open(uri string, id uint16) *Session {
	s := &Session{ep: ep, remote: uri, id: id, passive: true, credits: ep.opt.credits, ended: make(chan struct{}), opening: make(chan struct{})}
	if err := ep.newSession(s); err != nil {
		s.err = s.connectError(err)
		close(s.ended)
		s.opened.Store(true)
		close(s.opening)
		ep.submit(op{kind: opFunc, fn: s.begin})
		return s
	}
	ep.submit(op{kind: opFunc, fn: s.begin}) // ahead of the session's first request
	ep.bringUp(s)
	return s
}

// bringUp connects a session that somebody opened, in the background.
func (ep *Endpoint) bringUp(s *Session) {
	ctx, cancel := context.WithTimeout(context.Background(), connectTimeout)
	ctx, s.cancel = context.WithCancelCause(ctx)
	go func() {
		defer ep.connecting.Done()
		defer cancel()
		if s.main != nil && s.main.opening != nil { // a lane follows the session that it is of
			select {
			case <-s.main.opening:
			case <-ctx.Done():
			}
		}
		ep.connect(ctx, s) // the session has the error
		s.opened.Store(true)
		close(s.opening)
		ep.wakeUp() // whoever drives the loop until now
	}()
}

// connectError says what did not come up, and why.
func (s *Session) connectError(err error) error {
	var refused *nexus.RefusedError
	if errors.As(err, &refused) && refused.Reason == nexus.ReasonRingExhausted {
		err = fmt.Errorf("%w: %w", ErrRingExhausted, err)
	}
	return fmt.Errorf("rpc: connect to endpoint %d at %s: %w", s.id, s.remote, err)
}

// begin makes the engine's half of a client's session. It runs in the loop.
func (s *Session) begin() {
	if s.es != nil {
		return
	}
	s.es = s.ep.e.NewSession(true, random32())
	s.es.User = s
	if err := s.Err(); err != nil { // it never had a chance
		s.es.Fail(s.ep.now, err)
	}
}

// on runs fn in the loop: for a session that somebody waits for, by driving it
// if need be.
func (s *Session) on(ctx context.Context, fn func()) error {
	if s.passive {
		return s.ep.inLoop(ctx, fn)
	}
	return s.ep.onOwner(ctx, fn)
}

// errStalePair: the pair that the session was to share is gone: the server does
// not know it any more, because its other sessions were just closed, or the
// Connect that made it was given up. The next try makes a pair of its own.
var errStalePair = errors.New("the connection to share has ended")

// maxStale bounds how often a Connect starts again for that.
const maxStale = 3

// newSession takes ring credits for a session and enters it.
func (ep *Endpoint) newSession(s *Session) error {
	ep.mu.Lock()
	defer ep.mu.Unlock()
	if ep.closing {
		return ErrClosed
	}
	if err := ep.failed.Load(); err != nil {
		return *err
	}
	if ep.ringFree < s.credits {
		return ErrRingExhausted
	}
	ep.ringFree -= s.credits
	ep.sessions[s] = true
	ep.connecting.Add(1)
	return nil
}

// freeCredits gives back what newSession took of the ring. The caller holds
// ep.mu, and the peer sends nothing any more.
func (ep *Endpoint) freeCredits(s *Session) {
	if ep.sessions[s] && !s.creditsFree {
		s.creditsFree = true
		ep.ringFree += s.credits
	}
}

// forget undoes newSession and gives up the session's share of its pair.
func (ep *Endpoint) forget(s *Session) {
	ep.mu.Lock()
	ep.freeCredits(s)
	delete(ep.sessions, s)
	ep.mu.Unlock()
	ep.leavePair(s)
}

// leavePair gives up the session's share of its pair. It runs in the loop.
func (ep *Endpoint) leavePair(s *Session) {
	p := s.pair
	if p == nil {
		return
	}
	ep.mu.Lock()
	p.refs--
	last := p.refs == 0
	if last {
		ep.dropPair(p)
	}
	ep.mu.Unlock()
	switch {
	case !last || p.peer == nil:
	case p.handed:
		ep.disconnectPair(p, ErrSessionClosed)
	default: // never attached, and nobody else knows it any more
		if err := p.peer.Close(); err != nil {
			ep.log.Warn("rpc: destroy RC queue pair", "endpoint", ep.id, "error", err)
		}
	}
}

// dropPair takes p out of the tables. The caller holds ep.mu.
func (ep *Endpoint) dropPair(p *pair) {
	if p.gone {
		return
	}
	p.gone = true
	if ep.outgoing[p.key] == p {
		delete(ep.outgoing, p.key)
	}
	if ep.incoming[p.id] == p {
		delete(ep.incoming, p.id)
	}
}

// disconnectPair takes the peer's access to our memory away, and ends all
// sessions of the pair that still live. It runs in the loop.
func (ep *Endpoint) disconnectPair(p *pair, err error) {
	ep.mu.Lock()
	ep.dropPair(p)
	ep.mu.Unlock()
	if !p.attached {
		return
	}
	p.attached = false
	index := p.peer.Index()
	if derr := ep.t.Disconnect(ep.e, ep.now, p.peer); derr != nil {
		ep.log.Warn("rpc: disconnect RC queue pair", "endpoint", ep.id, "error", derr)
	}
	ep.e.FailDest(ep.now, index, err)
}

// acquirePair returns the pair to key, a new one if fresh, with a share for the
// caller. lead says that the caller must connect it and then close ready.
func (ep *Endpoint) acquirePair(ctx context.Context, key pairKey, fresh bool) (p *pair, lead bool, err error) {
	ep.mu.Lock()
	p = ep.outgoing[key]
	if p == nil || fresh {
		p = &pair{key: key, id: random64(), ready: make(chan struct{}), refs: 1}
		ep.outgoing[key] = p
		ep.mu.Unlock()
		return p, true, nil
	}
	p.refs++
	ep.mu.Unlock()
	select {
	case <-p.ready:
	case <-ctx.Done():
		err = ctx.Err()
	}
	if err == nil && p.err != nil {
		err = p.err
		if errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
			err = errStalePair // its maker's patience, not ours
		}
	}
	return p, false, err
}

// connect brings up a session that newSession has entered. If it fails, it
// takes the session back, which has then ended with the error.
func (ep *Endpoint) connect(ctx context.Context, s *Session) (err error) {
	ctx, cancel := ep.until(ctx)
	defer cancel()
	err = s.on(ctx, s.begin)
	for try := 0; err == nil; try++ {
		err = ep.attempt(ctx, s, try > 0)
		if !errors.Is(err, errStalePair) || try == maxStale {
			break
		}
		if s.conn != nil {
			closeSoon(s.conn)
			s.conn = nil
		}
		err = s.on(ctx, func() {
			ep.leavePair(s)
			s.pair = nil
		})
	}
	if err != nil {
		if cause := context.Cause(ctx); cause == ErrClosed || cause == ErrSessionClosed {
			err = cause
		}
		err = s.connectError(err)
		ep.abandon(s, err)
		return err
	}
	s.conn.OnDown(func(err error) { ep.connDown(s, err) })
	return nil
}

// attempt tries once to bring up s, over the pair that other sessions have or
// over a fresh one.
func (ep *Endpoint) attempt(ctx context.Context, s *Session, fresh bool) (err error) {
	p, lead, err := ep.acquirePair(ctx, pairKey{s.remote, s.id}, fresh)
	s.pair = p
	if err != nil {
		return err
	}
	if lead {
		defer func() {
			p.err = err
			if err != nil {
				ep.mu.Lock()
				ep.dropPair(p)
				ep.mu.Unlock()
			}
			close(p.ready)
		}()
		if p.peer, err = ep.t.NewPeer(); err != nil {
			return err
		}
	}
	conn, h, err := ep.shake(ctx, s, p)
	if err != nil {
		return err
	}
	s.conn = conn
	if lead {
		if err := ep.reach(p, h.addr); err != nil {
			return err
		}
	} else if p.peer.Remote() != h.addr {
		ep.mu.Lock()
		ep.dropPair(p)
		ep.mu.Unlock()
		return errStalePair
	}
	up := false
	if err := s.on(ctx, func() { up = ep.install(s, &h) }); err != nil {
		return err
	}
	if !up {
		return ErrPeerDead
	}
	return nil
}

// reach connects a pair's queue pair, which may take an address resolution.
func (ep *Endpoint) reach(p *pair, addr transport.Address) error {
	if err := ep.opt.faults.resolution(); err != nil {
		return err
	}
	return p.peer.Connect(addr)
}

// until returns a context that ends with ctx or when Close begins.
func (ep *Endpoint) until(ctx context.Context) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancelCause(ctx)
	stop := context.AfterFunc(ep.life, func() { cancel(ErrClosed) })
	return ctx, func() {
		stop()
		cancel(nil)
	}
}

// shake exchanges hellos with the server.
func (ep *Endpoint) shake(ctx context.Context, s *Session, p *pair) (*nexus.Conn, hello, error) {
	mine := ep.hello(s, p).encode()
	var conn *nexus.Conn
	var reply []byte
	var err error
	if s.passive {
		conn, reply, err = ep.nx.Connect(ctx, s.remote, s.id, mine, nil)
	} else { // the server may need this loop: it may be this endpoint, or connect to it
		done, over := make(chan struct{}), new(atomic.Bool)
		go func() {
			conn, reply, err = ep.nx.Connect(ctx, s.remote, s.id, mine, nil)
			over.Store(true)
			close(done)
			ep.wakeUp()
		}()
		ep.wait(ctx, done, over)
		<-done
	}
	if err != nil {
		return nil, hello{}, err
	}
	h, err := decodeHello(reply)
	if err == nil && (h.pair != p.id || h.generation != 0 || int(h.window) != ep.opt.window) {
		err = errHello
	}
	if err != nil {
		closeSoon(conn)
		return nil, hello{}, err
	}
	return conn, h, nil
}

func (ep *Endpoint) hello(s *Session, p *pair) *hello {
	h := &hello{
		window: uint8(ep.opt.window), credits: uint16(s.credits), pair: p.id, addr: p.peer.Local(),
		session: s.es.Index(), token: s.es.Token(), maxMessage: uint64(ep.opt.maxMessage),
	}
	if s.main != nil && s.es.Client() { // the answer says nothing of lanes
		h.lane, h.main = s.lane, s.main.es.Remote()
	}
	return h
}

// install brings the session up in the loop. It reports false if the pair has
// ended meanwhile.
func (ep *Endpoint) install(s *Session, h *hello) bool {
	p := s.pair
	ep.mu.Lock()
	gone := p.gone
	ep.mu.Unlock()
	if gone || s.es.Err() != nil || ep.failed.Load() != nil {
		return false
	}
	if !p.attached {
		p.peer.User = p
		ep.t.Attach(p.peer)
		p.attached, p.handed = true, true
	}
	s.up = true
	s.es.Connect(ep.now, engine.Peer{Dest: p.peer.Index(), Session: h.session, Token: h.token, QPN: h.addr.QPN, MaxSmall: p.peer.MaxSmall(),
		Parts: engine.PartsFor(min(s.credits, int(h.credits)), ep.opt.window)})
	s.threshold.Store(int64(s.es.MaxUD()))
	if p.repair.underWay {
		ep.e.Broken(ep.now, p.peer.Index(), p.repair.generation)
	}
	ep.log.Info("rpc: session is up", s.attrs()...)
	return true
}

// abandon takes back a session that did not come up.
func (ep *Endpoint) abandon(s *Session, err error) {
	if s.conn != nil {
		closeSoon(s.conn)
	}
	cleanup := func() {
		if s.es != nil {
			s.laneFailed(err)
			s.es.Fail(ep.now, err)
		}
		s.endOnce.Do(func() {
			s.err = err
			s.endLanes()
			ep.forget(s)
			ep.log.Info("rpc: session did not come up", append(s.attrs(), "error", err)...)
			close(s.ended)
		})
	}
	ctx, cancel := context.WithTimeout(context.Background(), closeTimeout)
	defer cancel()
	s.on(ctx, cleanup)
}

// closeSoon tells the peer that a connection is not wanted, without waiting.
func closeSoon(conn *nexus.Conn) {
	go func() {
		ctx, cancel := context.WithTimeout(context.Background(), closeTimeout)
		defer cancel()
		conn.Close(ctx)
	}()
}

// connDown ends a session whose connection the session manager has lost.
func (ep *Endpoint) connDown(s *Session, cause error) {
	err := ErrPeerDead
	switch {
	case errors.Is(cause, nexus.ErrDisconnected):
		err = ErrSessionClosed
		// The peer, which has ended everything before it said so, may count on
		// the room as soon as it hears that we know.
		ep.mu.Lock()
		ep.freeCredits(s)
		ep.mu.Unlock()
	case errors.Is(cause, nexus.ErrClosed):
		err = ErrClosed
	}
	ep.submit(op{kind: opFunc, fn: func() {
		if err != ErrSessionClosed {
			ep.disconnectPair(s.pair, err)
		}
		s.end(err)
	}})
}

// acceptor is the endpoint as the session manager sees it.
type acceptor struct{ ep *Endpoint }

// Accept makes the server's end of a session.
func (a acceptor) Accept(ctx context.Context, conn *nexus.Conn, payload []byte) (reply []byte, err error) {
	ep := a.ep
	h, err := decodeHello(payload)
	if err != nil {
		return nil, &nexus.RefusedError{Reason: nexus.ReasonBadRequest, Text: err.Error()}
	}
	if h.generation != 0 {
		return ep.acceptRepair(ctx, conn, &h)
	}
	if int(h.window) != ep.opt.window {
		return nil, &nexus.RefusedError{Reason: nexus.ReasonBadRequest, Text: fmt.Sprintf("window is %d here, %d there", ep.opt.window, h.window)}
	}
	s := &Session{ep: ep, remote: conn.Peer().Addr().String(), conn: conn, passive: true, credits: ep.creditsOf(h.lane), lane: h.lane, ended: make(chan struct{})}
	switch err := ep.newSession(s); {
	case errors.Is(err, ErrRingExhausted):
		return nil, &nexus.RefusedError{Reason: nexus.ReasonRingExhausted, Text: err.Error()}
	case err != nil:
		return nil, &nexus.RefusedError{Reason: nexus.ReasonShuttingDown, Text: err.Error()}
	}
	defer ep.connecting.Done()
	ctx, cancel := ep.until(ctx)
	defer cancel()
	reply, err = ep.accept(ctx, s, &h)
	if err != nil {
		s.conn = nil // refused, not closed
		ep.abandon(s, err)
		return nil, &nexus.RefusedError{Reason: nexus.ReasonNoResources, Text: err.Error()}
	}
	conn.OnDown(func(err error) { ep.connDown(s, err) })
	return reply, nil
}

func (ep *Endpoint) accept(ctx context.Context, s *Session, h *hello) (reply []byte, err error) {
	ep.mu.Lock()
	p := ep.incoming[h.pair]
	lead := p == nil
	if lead {
		p = &pair{id: h.pair, owner: s.conn.Peer(), ready: make(chan struct{})}
		ep.incoming[h.pair] = p
	}
	p.refs++
	ep.mu.Unlock()
	s.pair = p
	if lead {
		if p.peer, err = ep.t.NewPeer(); err == nil {
			err = ep.reach(p, h.addr)
		}
		p.err = err
		if err != nil {
			ep.mu.Lock()
			ep.dropPair(p)
			ep.mu.Unlock()
		}
		close(p.ready)
	} else {
		select {
		case <-p.ready:
			err = p.err
		case <-ctx.Done():
			err = ctx.Err()
		}
		if err == nil && p.peer.Remote() != h.addr {
			err = errHello
		}
	}
	if err != nil {
		return nil, err
	}
	up := false
	err = s.on(ctx, func() {
		if h.lane != 0 {
			if s.main = ep.laneMain(h.main, s.pair); s.main == nil {
				return
			}
		}
		s.es = ep.e.NewSession(false, random32())
		s.es.User = s
		if up = ep.install(s, h); up && s.main != nil {
			s.main.addLane(s)
		}
	})
	if err == nil && !up {
		err = ErrPeerDead
	}
	if err != nil {
		return nil, err
	}
	return ep.hello(s, p).encode(), nil
}

// carePeers has broken RC connections re-established, and destroys the queue
// pairs that nobody needs any more. It runs in the loop.
func (ep *Endpoint) carePeers() {
	ep.t.BrokenPeers(func(p *transport.Peer) { ep.pairBroke(p.User.(*pair)) })
	if err := ep.t.Reap(); err != nil {
		ep.log.Warn("rpc: destroy RC queue pair", "endpoint", ep.id, "error", err)
	}
	if n := ep.t.WantWindows(); n > 0 {
		ep.growWindows(n)
	}
	if ep.t.Staled() {
		time.AfterFunc(ep.opt.staleTime+time.Millisecond, ep.wakeUp)
	}
}

// touchPeers tells the session manager from whom datagrams have come since the
// last time. It runs in the loop.
func (ep *Endpoint) touchPeers() {
	ep.e.Sessions(func(es *engine.Session) {
		s, ok := es.User.(*Session)
		if n := es.Received(); ok && n != s.heard && s.conn != nil {
			s.heard = n
			s.conn.Peer().Touch()
		}
	})
}

// peerStuck is the engine's word that a peer holds a cancelled request.
func (ep *Endpoint) peerStuck(dest uint32) {
	ep.log.Warn("rpc: peer does not let go of a cancelled request", "endpoint", ep.id)
	ep.dropPeer(dest, fmt.Errorf("%w: it does not let go of a cancelled request", ErrPeerDead))
}

// dropPeer ends all sessions that lead to the transport's peer dest, and tells
// the other side.
func (ep *Endpoint) dropPeer(dest uint32, err error) {
	var lost []*Session
	ep.mu.Lock()
	for s := range ep.sessions {
		if s.up && s.pair.attached && s.pair.peer.Index() == dest {
			lost = append(lost, s)
		}
	}
	ep.mu.Unlock()
	for _, s := range lost {
		ep.disconnectPair(s.pair, err)
		s.end(err)
		if s.conn != nil {
			closeSoon(s.conn)
		}
	}
}

// failAll ends all sessions.
func (ep *Endpoint) failAll(err error) {
	var all []*Session
	ep.mu.Lock()
	for s := range ep.sessions {
		all = append(all, s)
	}
	ep.mu.Unlock()
	for _, s := range all {
		if !s.up {
			continue // still connecting; its Connect fails by itself
		}
		ep.disconnectPair(s.pair, err)
		s.end(err)
		if s.conn != nil {
			closeSoon(s.conn)
		}
	}
}

func stack() string { return string(debug.Stack()) }
