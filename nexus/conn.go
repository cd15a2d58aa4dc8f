package nexus

import (
	"context"
	"time"
)

// roles of this process in a connection; they index Peer.conns.
const (
	roleClient = 0
	roleServer = 1
)

type state uint8

// A connection's states. Client: connecting, live, closing, gone. Server:
// accepting, live, closing, gone. No state leads back; a connecting or
// accepting one may go straight to gone. On the server, gone connections stay in
// the table for a while as tombstones, with the answer to a late Connect.
const (
	stateConnecting state = iota
	stateAccepting
	stateLive
	stateClosing // Disconnect sent, not acknowledged
	stateGone
)

// Conn is one end of a connection between two endpoints.
type Conn struct {
	n        *Nexus
	id       uint64
	role     int
	endpoint uint16

	// Below: guarded by Nexus.mu.
	state  state
	peer   *Peer // set from accepting (server) or live (client) on
	slot   int   // in Peer.conns, while live
	onDown func(error)
	err    error // why it went down
	told   bool  // onDown was called

	// Client: closed when answered or ended.
	answered chan struct{}
	reply    []byte
	refused  *RefusedError
	tried    []addrPort
	attempt  *attempt // while connecting with a key

	// Server: the client's incarnation (immutable), what a Connect is answered
	// with, and the running Accept's context.
	client uint64
	answer []byte
	cancel context.CancelFunc

	// Closing: closed when the peer has acknowledged or is gone; and when Close
	// has ended, with what result.
	acked     chan struct{}
	closed    chan struct{}
	closedErr error
}

// ID returns the connection's random id, the same on both ends.
func (c *Conn) ID() uint64 { return c.id }

// Endpoint returns the number of the accepting endpoint.
func (c *Conn) Endpoint() uint16 { return c.endpoint }

// Peer returns the process at the other end.
func (c *Conn) Peer() *Peer {
	c.n.mu.Lock()
	defer c.n.mu.Unlock()
	return c.peer
}

// OnDown sets what to call when the connection goes down other than by this
// side's Close: with [ErrDisconnected], [ErrPeerDead] or [ErrClosed], which may
// be wrapped. f is called once, and not before a server's Accept has returned;
// if the connection is down already, it is called on a goroutine of its own. f must not block.
// A second OnDown replaces the first one's function.
func (c *Conn) OnDown(f func(error)) {
	c.n.mu.Lock()
	defer c.n.mu.Unlock()
	if c.err == nil || c.state == stateAccepting {
		c.onDown = f
		return
	}
	if f != nil && !c.told {
		c.told = true
		go f(c.err)
	}
}

// down ends a live connection that the peer, its death or our Nexus has ended.
func (n *Nexus) down(c *Conn, err error, out *actions) {
	n.bury(c)
	c.err = err
	n.callDown(c, out)
}

// callDown has the registered function called with c.err, which is set.
func (n *Nexus) callDown(c *Conn, out *actions) {
	if f, err := c.onDown, c.err; f != nil {
		c.onDown, c.told = nil, true
		out.call(func() { f(err) })
	}
}

// bury moves a connection of any state to gone.
func (n *Nexus) bury(c *Conn) {
	was := c.state
	c.state = stateGone
	if was == stateLive {
		c.peer.remove(c)
	}
	if was == stateClosing {
		close(c.acked)
	}
	if c.peer != nil {
		n.unref(c.peer)
	}
	if c.role == roleClient {
		delete(n.clients, c.id)
		return
	}
	n.addTombstone(c)
}

// Close ends the connection: the peer is told until it has acknowledged, or the
// context ends, or 2 s have passed. In any case the connection is closed when
// Close returns, and the function registered for its end is not called for
// that; a peer that heard nothing notices by the next heartbeats. Closing again
// waits for the first Close and returns the same.
func (c *Conn) Close(ctx context.Context) error {
	n := c.n
	n.mu.Lock()
	if c.closed != nil { // closed or closing by an earlier Close
		done := c.closed
		n.mu.Unlock()
		select {
		case <-done:
			return c.closedErr
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	c.closed = make(chan struct{})
	if c.state == stateAccepting { // called from within Accept: it will be refused
		c.cancel()
		close(c.closed)
		n.mu.Unlock()
		return nil
	}
	if c.state != stateLive { // gone, or the Nexus is closing
		close(c.closed)
		n.mu.Unlock()
		return nil
	}
	n.startClosing(c)
	c.onDown = nil
	if c.role == roleServer {
		c.answer = n.refusal(c, ReasonShuttingDown, "the connection has been closed")
	}
	n.mu.Unlock()

	c.closedErr = n.disconnect(ctx, c)

	n.mu.Lock()
	if c.state == stateClosing {
		n.bury(c)
	}
	n.mu.Unlock()
	close(c.closed)
	return c.closedErr
}

// startClosing takes a live connection out of the peer's care.
func (n *Nexus) startClosing(c *Conn) {
	c.peer.remove(c)
	c.state = stateClosing
	c.acked = make(chan struct{})
}

func (n *Nexus) disconnectMessage(c *Conn) *message {
	return &message{version: version, kind: kindDisconnect, acceptor: c.role == roleServer, from: n.incarnation,
		to: c.peer.incarnation, id: c.id}
}

// disconnect sends Disconnect until it is acknowledged.
func (n *Nexus) disconnect(ctx context.Context, c *Conn) error {
	ctx, cancel := context.WithTimeout(ctx, disconnectTimeout)
	defer cancel()
	start := time.Now()
	b := n.disconnectMessage(c).encode()
	for pause := n.retryFirst; ; pause = min(2*pause, n.retryMax) {
		n.write(c.peer.addr, b)
		t := time.NewTimer(pause)
		select {
		case <-c.acked:
			t.Stop()
			return nil
		case <-n.done:
			t.Stop()
			return ErrClosed
		case <-ctx.Done():
			t.Stop()
			return &TimeoutError{URI: c.peer.addr.String(), After: time.Since(start), Err: ctx.Err()}
		case <-t.C:
		}
	}
}

// find returns the connection that a message names, if its sender is the other
// end of it.
func (n *Nexus) find(m *message) *Conn {
	var c *Conn
	if m.acceptor {
		c = n.clients[m.id]
	} else {
		c = n.servers[serverKey{m.from, m.id}]
	}
	if c == nil || c.peer != nil && c.peer.incarnation != m.from {
		return nil
	}
	return c
}

func (n *Nexus) onDisconnect(from addrPort, m *message, out *actions) {
	// A client without a key that gave up before any answer does not know our
	// incarnation.
	if m.to != 0 && m.to != n.incarnation {
		n.stats.Stale++
		return
	}
	// Also for a connection that is unknown (any more): the acknowledgement may
	// have been lost.
	out.send(from, &message{version: version, kind: kindDisconnectAck, acceptor: !m.acceptor, from: n.incarnation,
		to: m.from, id: m.id})
	c := n.find(m)
	if c == nil {
		return
	}
	switch c.state {
	case stateConnecting: // it has overtaken the Accept
		c.err = ErrDisconnected
		n.bury(c)
		close(c.answered)
	case stateAccepting:
		c.cancel()
		c.err = ErrDisconnected
	case stateLive:
		if c.role == roleServer {
			c.answer = n.refusal(c, ReasonShuttingDown, "the connection has been closed")
		}
		n.down(c, ErrDisconnected, out)
	case stateClosing: // both at once
		n.bury(c)
	}
}

func (n *Nexus) onDisconnectAck(m *message) {
	if c := n.find(m); c != nil && c.state == stateClosing && m.to == n.incarnation {
		n.bury(c)
	}
}
