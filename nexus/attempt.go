package nexus

import (
	"fmt"
	"slices"
	"time"
)

// attempt is what a Connect with a key knows of the server. Guarded by Nexus.mu.
type attempt struct {
	payload []byte
	self    bool // the server is this process

	server  uint64   // its incarnation; 0: not known
	via     addrPort // where it is
	cookie  []byte   // its latest, all zero if it is believed to know us
	counter uint64   // of the Challenge with that
	proved  bool     // the server has the key and has heard this Connect

	doubtful *RefusedError // what somebody says, who may be anybody
	patience *time.Timer
}

// newAttempt starts with the server being known if there are connections to it.
func (n *Nexus) newAttempt(tried []addrPort, payload []byte) *attempt {
	a := &attempt{payload: payload, self: slices.ContainsFunc(tried, n.isLocal), cookie: make([]byte, cookieBytes)}
	var best *Peer
	for _, p := range n.peers {
		if slices.Contains(tried, p.addr) && (best == nil || p.heard.After(best.heard)) {
			best = p
		}
	}
	if best != nil {
		a.server, a.via = best.incarnation, best.addr
	}
	return a
}

// connectMessage returns the Connect for one of the addresses. With a key, the
// payload is only for who has proved to be there now; until then there are as
// many bytes as the Challenge will have.
func (n *Nexus) connectMessage(c *Conn, to addrPort, payload []byte) *message {
	m := &message{version: version, kind: kindConnect, from: n.incarnation, id: c.id, endpoint: c.endpoint, payload: payload}
	if a := c.attempt; a != nil {
		m.payload = make([]byte, cookieBytes)
		if a.server != 0 && to == a.via {
			m.to = a.server
			m.payload = slices.Concat(a.cookie, payload)
		}
	}
	return m
}

// onChallenge sends the Connect again at once, with the cookie.
func (n *Nexus) onChallenge(from addrPort, m *message, out *actions) {
	c := n.clients[m.id]
	if c == nil || c.state != stateConnecting {
		n.stats.Stale++
		return
	}
	a := c.attempt
	if a.server == m.from && m.counter <= a.counter {
		n.stats.Replayed++
		return
	}
	a.server, a.counter, a.via = m.from, m.counter, from
	if !slices.Contains(c.tried, from) {
		a.via = c.tried[0] // a host of several addresses; this one is known to work
	}
	a.cookie = m.payload
	a.proved = true
	out.send(a.via, n.connectMessage(c, a.via, a.payload))
}

// onDoubtfulRefuse takes a refusal in clear for a hint: anybody who has seen the
// Connect can have sent it. If no better answer comes soon, it is believed.
func (n *Nexus) onDoubtfulRefuse(m *message) {
	c := n.clients[m.id]
	if m.to != n.incarnation || c == nil || c.state != stateConnecting {
		n.stats.Stale++
		return
	}
	a := c.attempt
	if a.doubtful != nil {
		return
	}
	a.doubtful = &RefusedError{Reason: m.reason}
	if m.reason == ReasonKey {
		a.doubtful.Text = "the process there has another key or none"
	} else {
		a.doubtful.Text = fmt.Sprintf("the server speaks version %d, we %d", m.version, version)
	}
	a.doubtful.Text += " (it cannot prove that it is the one that said so)"
	a.patience = time.AfterFunc(doubtfulTimeout, func() {
		n.mu.Lock()
		defer n.mu.Unlock()
		if c.state == stateConnecting && !a.proved {
			c.refused = a.doubtful
			n.bury(c)
			close(c.answered)
		}
	})
}
