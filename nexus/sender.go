package nexus

import (
	"crypto/cipher"
	"time"
)

// idleTime is how long a sender without connections is remembered. Of one that
// is not remembered only a Connect with a good cookie has an effect, and a cookie
// is good for a shorter time than this.
const idleTime = tombstoneTime

// maxIdle bounds the senders that are remembered without having connections.
// Only holders of the key get that far, and beyond it they wait.
const maxIdle = 8192

// sender is an incarnation whose sealed messages we take, and which of them we
// had. All but the first three is guarded by Nexus.mu.
type sender struct {
	incarnation uint64
	salt        uint32
	aead        cipher.AEAD

	window  window
	peers   int // Peers of this incarnation
	expires time.Time
	due     time.Time // to be looked at, while queued
	queued  bool      // in Nexus.idle
}

// admit enters the sender of a message that has an effect on somebody not known
// before, and marks the message as used.
func (n *Nexus) admit(m *message) {
	s := m.sender
	if s == nil { // there is no key
		return
	}
	if n.senders[s.incarnation] == nil {
		// It may have been known before, and forgotten; so what is older than
		// this message has been used.
		s.window = windowAfter(m.counter)
		n.senders[s.incarnation] = s
	}
	s.window.mark(m.counter)
	if s.peers == 0 {
		n.rest(s)
	}
}

// crowded reports whether there is no room to remember the sender of a message.
func (n *Nexus) crowded(m *message) bool {
	return m.sender != nil && len(n.idle) >= maxIdle && n.senders[m.from] == nil
}

// rest starts the time after which a sender without Peers is forgotten.
func (n *Nexus) rest(s *sender) {
	s.expires = time.Now().Add(idleTime)
	if !s.queued {
		n.queue(s)
		n.wakeTimer()
	}
}

func (n *Nexus) queue(s *sender) {
	s.queued, s.due = true, s.expires
	n.idle = append(n.idle, s)
}

// expireSenders forgets the senders that have rested for long enough.
func (n *Nexus) expireSenders(now time.Time) {
	for len(n.idle) > 0 && !n.idle[0].due.After(now) {
		s := n.idle[0]
		n.idle[0] = nil
		n.idle = n.idle[1:]
		s.queued = false
		switch {
		case s.peers > 0:
		case s.expires.After(now): // it was busy meanwhile
			n.queue(s)
		default:
			delete(n.senders, s.incarnation)
		}
	}
	if len(n.idle) == 0 {
		n.idle = nil
	}
}
