package nexus

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"
	"sync/atomic"
	"time"
)

// Peer is a remote process, or an earlier incarnation of one: everything that
// has connections with us from one address and one incarnation.
type Peer struct {
	addr        netip.AddrPort
	incarnation uint64
	touched     atomic.Bool
	sender      *sender // nil without a key

	// Below: guarded by Nexus.mu.
	refs  int        // connections that are live or being accepted
	conns [2][]*Conn // live ones, by role; Conn.slot is the index
	next  [2]int     // where the next Ping's list of ids starts
	turn  int        // role whose connections the next Ping names
	heard time.Time  // when the peer was last known to be alive
	quiet int        // ticks without a Ping because data flowed
	due   time.Time  // of the next Ping
	mute  bool       // it has answered nothing since the last Ping of a tick
	pings [32]uint64 // random numbers of the latest Pings
	sent  int        // Pings so far
	doubt time.Time  // not zero: since when it is said to have restarted
}

type peerKey struct {
	addr        netip.AddrPort
	incarnation uint64
}

// Addr returns the address of the peer's Nexus.
func (p *Peer) Addr() netip.AddrPort { return p.addr }

// Incarnation returns the random number that the peer's Nexus chose when it
// started.
func (p *Peer) Incarnation() uint64 { return p.incarnation }

// Touch says that the data path has just received something from the peer, so
// that it need not be pinged. It is an atomic load, and a store once per
// heartbeat interval.
func (p *Peer) Touch() {
	if !p.touched.Load() {
		p.touched.Store(true)
	}
}

// While data flows, a Ping is still sent every so many intervals, because only
// Pings find connections whose other half is gone.
const quietTicks = 16

// maxChallenges bounds how many Pings one Connect, which may be forged, causes.
const maxChallenges = 4

// peer finds or makes the record of a message's sender and counts a reference.
func (n *Nexus) peer(addr netip.AddrPort, m *message, out *actions) *Peer {
	incarnation := m.from
	key := peerKey{addr, incarnation}
	n.admit(m)
	p := n.peers[key]
	if p == nil {
		p = &Peer{addr: addr, incarnation: incarnation, heard: time.Now()}
		if m.sender != nil {
			p.sender = m.sender
			p.sender.peers++
		}
		challenges := 0
		for _, old := range n.peers {
			if old.addr == addr && challenges < maxChallenges {
				n.ping(old, out) // restarted? Then the answer is Reset.
				challenges++
			}
		}
		n.peers[key] = p
		n.wakeTimer()
	}
	p.refs++
	return p
}

func (n *Nexus) unref(p *Peer) {
	if p.refs--; p.refs == 0 {
		delete(n.peers, peerKey{p.addr, p.incarnation})
		for _, nonce := range p.pings {
			delete(n.pinged, nonce)
		}
		if s := p.sender; s != nil {
			if s.peers--; s.peers == 0 {
				n.rest(s)
			}
		}
	}
}

func (p *Peer) add(c *Conn) {
	c.slot = len(p.conns[c.role])
	p.conns[c.role] = append(p.conns[c.role], c)
}

func (p *Peer) remove(c *Conn) {
	list := p.conns[c.role]
	last := len(list) - 1
	list[c.slot] = list[last]
	list[c.slot].slot = c.slot
	list[last] = nil
	p.conns[c.role] = list[:last]
}

// ping sends a Ping that names the next few connections.
func (n *Nexus) ping(p *Peer, out *actions) {
	p.turn ^= 1
	if len(p.conns[p.turn]) == 0 {
		p.turn ^= 1
	}
	list := p.conns[p.turn]
	count := min(len(list), maxPingIDs)
	payload := make([]byte, 0, count*8)
	for range count {
		i := p.next[p.turn] % len(list)
		payload = binary.BigEndian.AppendUint64(payload, list[i].id)
		p.next[p.turn] = i + 1
	}
	nonce := random()
	slot := &p.pings[p.sent%len(p.pings)]
	delete(n.pinged, *slot)
	*slot = nonce
	p.sent++
	n.pinged[nonce] = p
	n.stats.Pings++
	out.send(p.addr, &message{version: version, kind: kindPing, acceptor: p.turn == roleServer, from: n.incarnation,
		to: p.incarnation, id: nonce, payload: payload})
}

func (n *Nexus) onPing(from netip.AddrPort, m *message, out *actions) {
	if m.to != n.incarnation {
		out.send(from, &message{version: version, kind: kindReset, from: n.incarnation, to: m.from, id: m.id})
		return
	}
	var unknown []byte
	for id := range m.ids {
		known := false
		if m.acceptor {
			_, known = n.clients[id]
		} else {
			var c *Conn
			if c, known = n.servers[serverKey{m.from, id}]; known {
				known = c.state != stateGone
			}
		}
		if !known {
			unknown = binary.BigEndian.AppendUint64(unknown, id)
		}
	}
	out.send(from, &message{version: version, kind: kindPong, acceptor: !m.acceptor, from: n.incarnation, to: m.from,
		id: m.id, payload: unknown})
}

// onPong believes whoever knows the number of a recent Ping, at whatever
// address: a host may have several, and the number is as hard to guess as a
// connection id.
func (n *Nexus) onPong(m *message, out *actions) {
	p := n.pinged[m.id]
	if p == nil || m.from != p.incarnation || m.to != n.incarnation {
		n.stats.Stale++
		return
	}
	p.heard, p.doubt, p.mute = time.Now(), time.Time{}, false
	for id := range m.ids {
		var c *Conn
		if m.acceptor {
			c = n.clients[id]
		} else {
			c = n.servers[serverKey{m.from, id}]
		}
		if c != nil && c.peer == p && c.state == stateLive {
			n.down(c, ErrDisconnected, out)
		}
	}
}

func (n *Nexus) onReset(m *message, out *actions) {
	p := n.pinged[m.id]
	if p == nil || m.from == p.incarnation || m.to != n.incarnation {
		n.stats.Stale++
		return
	}
	if m.sealed {
		// Any process with the key says so of a Ping that was led to it. Unless
		// the peer answers one of the next, it is true. They come at their usual
		// pace, so that nobody makes us send faster.
		if p.doubt.IsZero() {
			p.doubt = time.Now()
		}
		return
	}
	n.restarted(p, out)
}

func (n *Nexus) restarted(p *Peer, out *actions) {
	n.peerDown(p, fmt.Errorf("%w: %v has restarted", ErrPeerDead, p.addr), out)
}

func (n *Nexus) peerDown(p *Peer, err error, out *actions) {
	for _, list := range p.conns {
		for _, c := range slices.Clone(list) {
			n.down(c, err, out)
		}
	}
}

// tick pings the silent peers and buries the dead ones.
func (n *Nexus) tick(now time.Time, out *actions) {
	// If this process itself was stopped or starved, its peers are not to blame,
	// and their answers may wait to be read: of the time since the last tick, no
	// more counts than was planned.
	stall := now.Sub(n.lastTick) - n.period
	if stall < n.period {
		stall = 0
	}
	n.lastTick = now
	n.period = n.interval
	for _, p := range n.peers {
		p.heard = p.heard.Add(stall)
		if p.heard.After(now) {
			p.heard = now
		}
		if len(p.conns[roleClient])+len(p.conns[roleServer]) == 0 {
			p.heard, p.doubt, p.mute = now, time.Time{}, false // only being accepted: nothing to lose yet
			continue
		}
		if p.due.Sub(now) > n.urgent/2 { // this tick is for others
			continue
		}
		p.due = now.Add(n.interval)
		if p.touched.Swap(false) {
			p.heard, p.doubt, p.mute = now, time.Time{}, false
			if p.quiet++; p.quiet < quietTicks {
				continue
			}
		}
		p.quiet = 0
		if silence := now.Sub(p.heard); silence >= n.timeout {
			n.peerDown(p, fmt.Errorf("%w: %v has not answered for %v", ErrPeerDead, p.addr, silence.Round(time.Millisecond)), out)
			continue
		}
		if !p.doubt.IsZero() {
			p.doubt = p.doubt.Add(stall)
			if now.Sub(p.doubt) >= doubtIntervals*n.interval {
				n.restarted(p, out)
				continue
			}
		}
		if p.mute {
			p.due = now.Add(n.urgent)
			n.period = n.urgent
		}
		p.mute = true
		n.ping(p, out)
	}
}
