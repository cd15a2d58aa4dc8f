package nexus

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"
)

// Acceptor decides about connections to an endpoint.
type Acceptor interface {
	// Accept is called on a goroutine of its own for each new connection, with
	// the client's payload (its own copy). Its reply (at most MaxPayload bytes)
	// goes to the client. A *RefusedError refuses with that reason and text, any
	// other error with ReasonInternal and the error's text. ctx ends after 10 s,
	// when the client gives up, and when the Nexus closes.
	//
	// c.Peer and c.OnDown may be used within Accept; the connection is live once
	// it has returned.
	Accept(ctx context.Context, c *Conn, payload []byte) (reply []byte, err error)
}

type registration struct{ Acceptor }

// Register makes a the acceptor of an endpoint until unregister is called.
// Unregistering leaves the endpoint's connections alone, and does not wait for
// running Accepts.
func (n *Nexus) Register(endpoint uint16, a Acceptor) (unregister func(), err error) {
	if a == nil {
		return nil, fmt.Errorf("nexus: register endpoint %d: no acceptor", endpoint)
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.closing {
		return nil, ErrClosed
	}
	if n.acceptors[endpoint] != nil {
		return nil, fmt.Errorf("nexus: register endpoint %d: the number is taken in this process", endpoint)
	}
	r := &registration{a}
	n.acceptors[endpoint] = r
	return func() {
		n.mu.Lock()
		defer n.mu.Unlock()
		if n.acceptors[endpoint] == r {
			delete(n.acceptors, endpoint)
		}
	}, nil
}

func (n *Nexus) refusal(c *Conn, reason Reason, text string) []byte {
	return (&message{version: version, kind: kindRefuse, acceptor: true, from: n.incarnation, to: c.client, id: c.id,
		reason: reason, payload: clip(text)}).encode()
}

func (n *Nexus) onConnect(from addrPort, m *message, out *actions) {
	if m.to != 0 && m.to != n.incarnation {
		n.stats.Stale++
		return
	}
	key := serverKey{m.from, m.id}
	if c := n.servers[key]; c != nil {
		n.stats.Duplicates++
		if c.answer != nil {
			out.sendEncoded(from, c.answer)
		}
		return
	}
	c := &Conn{n: n, id: m.id, role: roleServer, endpoint: m.endpoint, client: m.from}
	a := n.acceptors[m.endpoint]
	switch {
	case n.closing:
		out.sendEncoded(from, n.refusal(c, ReasonShuttingDown, ""))
		return
	case n.crowded(m):
		n.stats.Busy++
		return
	case a == nil:
		n.admit(m)
		c.answer = n.refusal(c, ReasonNoSuchEndpoint, fmt.Sprintf("endpoint %d", m.endpoint))
		n.servers[key] = c
		n.bury(c)
		out.sendEncoded(from, c.answer)
		return
	case n.accepting == maxAccepting:
		n.stats.Busy++ // the client asks again
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), acceptTimeout)
	c.cancel = cancel
	c.state = stateAccepting
	c.peer = n.peer(from, m, out)
	n.servers[key] = c
	n.accepting++
	payload := slices.Clone(m.payload)
	go n.accept(ctx, a, c, from, payload)
}

// accept asks the acceptor and answers the client.
func (n *Nexus) accept(ctx context.Context, a Acceptor, c *Conn, from addrPort, payload []byte) {
	reply, err := a.Accept(ctx, c, payload)
	if err == nil && len(reply) > MaxPayload {
		err = fmt.Errorf("the acceptor's reply of %d bytes does not fit", len(reply))
	}
	var out actions
	n.mu.Lock()
	var refused *RefusedError
	switch {
	case err == nil && n.closing:
		c.answer = n.refusal(c, ReasonShuttingDown, "")
		n.down(c, ErrClosed, &out)
	case err == nil && c.err != nil: // the client has given up
		c.answer = n.refusal(c, ReasonShuttingDown, "the connection has been closed")
		n.down(c, c.err, &out)
	case err == nil && c.closed != nil:
		c.answer = n.refusal(c, ReasonInternal, "closed while being accepted")
		n.bury(c)
	case err == nil:
		c.answer = (&message{version: version, kind: kindAccept, acceptor: true, from: n.incarnation, to: c.client, id: c.id,
			payload: reply}).encode()
		c.state = stateLive
		c.peer.heard = time.Now()
		c.peer.add(c)
	case errors.As(err, &refused):
		reason := refused.Reason
		if reason == 0 {
			reason = ReasonInternal
		}
		c.answer = n.refusal(c, reason, refused.Text)
		n.bury(c)
	default:
		c.answer = n.refusal(c, ReasonInternal, err.Error())
		n.bury(c)
	}
	if c.state == stateGone {
		c.onDown = nil // not needed for the answer, and it may hold a lot
	}
	out.sendEncoded(from, c.answer)
	n.mu.Unlock()
	c.cancel()
	out.run(n)

	n.mu.Lock()
	if n.accepting--; n.accepting == 0 && n.closing {
		close(n.accepted)
	}
	n.mu.Unlock()
}

// tombstone is the time until which a gone connection is remembered.
type tombstone struct {
	key     serverKey
	expires time.Time
}

func (n *Nexus) addTombstone(c *Conn) {
	if len(n.tombs) == maxTombstones {
		delete(n.servers, n.tombs[0].key)
		n.tombs = n.tombs[1:]
	}
	n.tombs = append(n.tombs, tombstone{serverKey{c.client, c.id}, time.Now().Add(tombstoneTime)})
	n.wakeTimer()
}

func (n *Nexus) expireTombstones(now time.Time) {
	for len(n.tombs) > 0 && !n.tombs[0].expires.After(now) {
		delete(n.servers, n.tombs[0].key)
		n.tombs = n.tombs[1:]
	}
	if len(n.tombs) == 0 {
		n.tombs = nil
	}
}
