package nexus

import (
	"net"
	"net/netip"
)

// open decrypts a message that decode has read from b, with what its sender
// seals with.
func (n *Nexus) open(m *message, b []byte) error {
	n.mu.Lock()
	s := n.senders[m.from]
	n.mu.Unlock()
	if s != nil {
		m.sender = s
		return m.open(s.aead, b)
	}
	aead, err := n.key.of(m.from)
	if err != nil {
		return errForged // it cannot fail: it has not for our own
	}
	err = m.open(aead, b)
	m.sender = &sender{incarnation: m.from, salt: m.salt, aead: aead}
	return err
}

// onSealed handles a message of a holder of the key. It may have been sent for
// somebody else, or have been recorded, or come from anywhere.
func (n *Nexus) onSealed(from addrPort, m *message, out *actions) {
	if m.from == n.incarnation && n.reflected(m) {
		n.stats.Stale++
		return
	}
	if m.to != n.incarnation {
		// Nothing that follows from these is remembered here, and no answer is
		// longer than the message.
		switch m.kind {
		case kindConnect:
			n.challenge(from, m, out)
		case kindPing:
			n.onPing(from, m, out)
		default:
			n.stats.Stale++
		}
		return
	}
	there := n.peers[peerKey{from, m.from}] != nil
	if s := n.senders[m.from]; s != nil {
		m.sender = s
		if s.salt != m.salt || !s.window.fresh(m.counter) {
			n.stats.Replayed++
			return
		}
		// A question that comes from elsewhere than its sender may be a copy
		// that has overtaken it. It is answered there, but the sender's own is
		// to be answered too.
		if there || !m.asks() {
			s.window.mark(m.counter)
		}
	}
	switch m.kind {
	case kindConnect:
		if !there && !n.key.validCookie(n.age(), from, m) {
			n.challenge(from, m, out)
			return
		}
	case kindChallenge:
		n.onChallenge(from, m, out)
		return
	}
	n.dispatch(from, m, out)
}

// asks reports whether a message's effect is mostly its answer.
func (m *message) asks() bool {
	return m.kind == kindConnect || m.kind == kindPing || m.kind == kindDisconnect
}

// challenge has a client prove that it is there now, and gets its messages at
// the address from. Nothing is kept.
func (n *Nexus) challenge(from addrPort, m *message, out *actions) {
	n.stats.Challenges++
	out.send(from, &message{version: version, kind: kindChallenge, acceptor: true, from: n.incarnation, to: m.from, id: m.id,
		payload: n.key.cookie(n.age(), from, m)})
}

// refuseKey answers a Connect of somebody who has no key, or not ours, or ours
// when we have none. The answer is in clear, for want of a common key, and as
// short as the shortest Connect. It says no more than that a Nexus is here.
func (n *Nexus) refuseKey(from addrPort, m *message, out *actions) {
	if m.kind == kindConnect {
		out.sendClear(from, &message{version: version, kind: kindRefuse, acceptor: true, from: n.incarnation, to: m.from, id: m.id,
			reason: ReasonKey})
	}
}

// reflected reports whether a message of our own has been led back to us, and not
// by our connecting to ourselves.
func (n *Nexus) reflected(m *message) bool {
	switch m.kind {
	case kindConnect, kindChallenge:
		c := n.clients[m.id]
		return c == nil || c.attempt == nil || !c.attempt.self
	}
	return m.to != n.incarnation
}

// isLocal reports whether a is an address of this Nexus.
func (n *Nexus) isLocal(a addrPort) bool {
	if a.Port() != n.addr.Port() {
		return false
	}
	ip := a.Addr().WithZone("")
	if !n.addr.Addr().IsUnspecified() {
		return ip == n.addr.Addr().WithZone("")
	}
	if ip.IsLoopback() || ip.IsUnspecified() {
		return true
	}
	own, err := net.InterfaceAddrs()
	if err != nil {
		return false
	}
	for _, o := range own {
		if p, err := netip.ParsePrefix(o.String()); err == nil && p.Addr().Unmap() == ip {
			return true
		}
	}
	return false
}
