package engine

import (
	"math/rand/v2"
	"testing"
)

// simOffer is an offer and the window that the NIC has bound for it.
type simOffer struct {
	Offer
	n     *simNode
	grant *grant // nil while there is none
	over  bool
}

// postOffers hands the engine's offers and withdrawals to the NIC, which gets
// to them when it likes.
func (n *simNode) postOffers() {
	s := n.s
	for _, o := range n.e.Offers {
		so := &simOffer{Offer: o, n: n}
		if n.granted[o.Token] != nil {
			s.tb.Fatalf("node %d: token %d is offered twice", n.id, o.Token)
		}
		n.granted[o.Token] = so
		so.bind()
	}
	n.e.Offers = n.e.Offers[:0]
	for _, token := range n.e.Withdrawn {
		so := n.granted[token]
		if so == nil {
			s.tb.Fatalf("node %d: token %d is withdrawn, and was not offered", n.id, token)
		}
		delete(n.granted, token)
		so.withdraw()
	}
	n.e.Withdrawn = n.e.Withdrawn[:0]
}

// bind grants the offer by the link's connection.
func (so *simOffer) bind() {
	n, s := so.n, so.n.s
	s.after(s.upTo(30_000), func() {
		l := s.links[so.Dest]
		switch {
		case so.over || l.broken || n.dead:
			return
		case l.down:
			l.waiting = append(l.waiting, so)
			return
		}
		key, g := s.mem.grant(n.endpoint, &so.Offer, l.number)
		so.grant = g
		number := l.number
		s.after(s.upTo(20_000), func() { // the completion is seen
			n.done = append(n.done, func(now int64) {
				if !so.over {
					n.e.OfferDone(now, so.Token, key, number, true)
				}
			})
			n.wake(s.upTo(5000))
		})
	})
}

// withdraw takes back what the offer has granted.
func (so *simOffer) withdraw() {
	n, s := so.n, so.n.s
	so.over = true
	delay := int64(1)
	if g := so.grant; g != nil {
		if cl := n.e.refs[so.Token].client; cl != nil && cl.err != nil && !cl.pulled && cl.s.doubt>>cl.index&1 != 0 {
			g.forced = true
			s.taken++
		}
		delay = s.upTo(30_000)
		s.after(delay, func() { g.live = false })
	}
	s.after(delay+s.upTo(20_000), func() {
		n.done = append(n.done, func(int64) { n.e.TxDone(so.Token) })
		n.wake(s.upTo(5000))
	})
}

// loseGrants ends what was granted by a link's connection, and returns the
// offers that nobody has withdrawn.
func (s *sim) loseGrants(l *simLink) (lost []*simOffer) {
	for _, n := range l.ends {
		for token := range uint32(len(n.e.refs)) { // in an order that the seed decides
			so := n.granted[token]
			if so == nil || so.Dest != l.id || so.grant == nil {
				continue
			}
			so.grant.live = false
			so.grant = nil
			lost = append(lost, so)
		}
	}
	for _, g := range s.mem.grants { // those that are being withdrawn
		if g.live && g.conn == l.number && (g.owner == l.ends[0].endpoint || g.owner == l.ends[1].endpoint) && g.link == l.id {
			g.live = false
		}
	}
	return lost
}

// replaceConn breaks the connection of a link under a READ of n. What was
// offered by it is offered anew by the next one.
func (n *simNode) replaceConn(l *simLink) {
	s := n.s
	if l.down {
		return
	}
	l.waiting = s.loseGrants(l)
	l.down = true
	l.number++
	n.ask(func(now int64) { n.e.Broken(now, l.id, 7) })
	s.after(s.upTo(100*ms), func() {
		n.ask(func(int64) { n.e.Repaired(l.id) })
		l.down = false
		waiting := l.waiting
		l.waiting = nil
		for _, so := range waiting {
			s.renewed++
			so.bind()
		}
	})
}

// renewed reports whether a READ can go on by the connection in use, with the
// key that it has, or a new one.
func (n *simNode) renewed(l *simLink, r *Read) bool {
	if l.down {
		return false
	}
	if r.Conn != l.number {
		r.RKey, r.Conn = n.e.Key(r.Token)
	}
	return r.Conn == l.number
}

// A READ by an honest engine never falls outside of an offer, and no caller has
// a buffer back that can be read, whatever the network does.
func TestSimulatedOffers(t *testing.T) {
	taken, renewed := 0, 0
	simulate(t, 150, func(r *rand.Rand) simConfig {
		bad := func(p float64) float64 { return p * float64(r.IntN(3)) }
		return simConfig{
			nodes: 2 + r.IntN(3), sessions: 1 + r.IntN(5), calls: 150, ring: 16 + r.IntN(100),
			offers: []float64{1, 1, 0.5}[r.IntN(3)],
			loss:   bad(0.1), dup: bad(0.1), late: bad(0.1), readFails: bad(0.05), stalls: bad(0.05),
			abort: bad(0.1), deadline: bad(0.1), churn: bad(0.02),
			slowHandlers: int64(1+r.IntN(40)) * ms, tinyMemory: r.IntN(5) == 0, death: r.IntN(4) == 0, blocking: r.IntN(2) == 0,
		}
	}, func(s *sim) {
		taken += s.taken
		renewed += s.renewed
		for key, g := range s.mem.grants {
			if g.live && !s.dead(g) {
				s.tb.Errorf("%d bytes are still offered by key %#x", g.n, key)
			}
		}
	})
	t.Logf("%d offers were taken back, %d made anew", taken, renewed)
}

// dead reports whether the node whose memory it is has vanished.
func (s *sim) dead(g *grant) bool {
	for _, n := range s.nodes {
		if n.endpoint == g.owner {
			return n.dead
		}
	}
	return false
}

func TestSimulatedOffersWithoutLossNeverRetransmit(t *testing.T) {
	simulate(t, 20, func(r *rand.Rand) simConfig {
		return simConfig{nodes: 2, sessions: 2, calls: 300, ring: 1024, patient: true, slowHandlers: 200_000, offers: 1}
	}, func(s *sim) {
		for _, n := range s.nodes {
			st := &n.e.Stats
			if st.Retransmits+st.DropBusy+st.DropMalformed+st.DropStale != 0 {
				s.tb.Errorf("node %d: %+v", n.id, *st)
			}
		}
		if s.taken != 0 {
			s.tb.Errorf("%d messages were taken from peers that had not let go", s.taken)
		}
	})
}
