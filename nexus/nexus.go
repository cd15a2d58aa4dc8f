package nexus

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"syscall"
	"time"
)

type addrPort = netip.AddrPort

// serverKey names an accepted connection: ids are the clients' choice.
type serverKey struct {
	incarnation uint64
	id          uint64
}

// Nexus is a process' session management: the socket, the endpoints that accept
// connections, the connections and the peers.
type Nexus struct {
	conn        PacketConn
	uri         string
	addr        addrPort
	incarnation uint64
	log         *slog.Logger
	interval    time.Duration // between Pings to a peer that answers
	urgent      time.Duration // to one that has not answered the last
	timeout     time.Duration
	retryFirst  time.Duration
	retryMax    time.Duration
	started     time.Time
	secret      []byte // only until the key is made
	wantKey     bool
	key         *key // nil: messages go in clear

	loops sync.WaitGroup
	wake  chan struct{} // one token: the timer loop has something to wait for
	done  chan struct{} // closed last, with the socket

	mu        sync.Mutex
	acceptors map[uint16]*registration
	clients   map[uint64]*Conn
	servers   map[serverKey]*Conn
	tombs     []tombstone // the oldest first
	peers     map[peerKey]*Peer
	pinged    map[uint64]*Peer   // by the random numbers of Pings
	senders   map[uint64]*sender // with a key, by incarnation
	idle      []*sender          // without Peers, about the oldest first
	lastTick  time.Time
	period    time.Duration // until the next tick
	accepting int
	closing   bool
	accepted  chan struct{} // while closing: closed when no Accept runs
	closed    chan struct{} // closed when Close has ended
	closeErr  error
	stats     Stats
}

// Stats counts what a Nexus has dropped and done since it started, and what it
// has now.
type Stats struct {
	Foreign    uint64 // datagrams that are not ours
	Malformed  uint64 // datagrams cut or contradicting themselves
	Version    uint64 // messages of another version
	Stale      uint64 // messages for another incarnation, or with a wrong random number
	Busy       uint64 // Connects dropped because too many were being accepted
	Duplicates uint64 // Connects that were answered, or were being answered, already
	SendErrors uint64
	Unsealed   uint64 // messages in clear to a Nexus with a key, or sealed to one without
	Forged     uint64 // sealed with another key, or altered
	Replayed   uint64 // sealed, and had before or too old to tell
	Challenges uint64 // Connects that have to come again with a cookie
	Pings      uint64 // sent

	Peers int
	Conns int // live
}

// New opens the socket at uri, "host:port". An empty host means every address
// of this host, port 0 any free port; see [Nexus.URI].
func New(uri string, opts ...Option) (*Nexus, error) {
	n := &Nexus{
		incarnation: random(),
		log:         slog.New(slog.DiscardHandler),
		interval:    defaultInterval,
		timeout:     defaultDeadline,
		retryFirst:  defaultRetryFirst,
		retryMax:    defaultRetryMax,
		wake:        make(chan struct{}, 1),
		done:        make(chan struct{}),
		acceptors:   make(map[uint16]*registration),
		clients:     make(map[uint64]*Conn),
		servers:     make(map[serverKey]*Conn),
		peers:       make(map[peerKey]*Peer),
		pinged:      make(map[uint64]*Peer),
		senders:     make(map[uint64]*sender),
		accepted:    make(chan struct{}),
		started:     time.Now(),
		closed:      make(chan struct{}),
	}
	for _, o := range opts {
		o(n)
	}
	n.urgent = max(min(n.interval, n.timeout/urgentPings), time.Millisecond)
	n.period = n.interval
	host, port, err := splitURI(uri)
	if err == nil && n.wantKey {
		n.key, err = newKey(n.secret, n.incarnation)
		n.secret = nil
	}
	if err != nil {
		if n.conn != nil {
			n.conn.Close()
		}
		return nil, err
	}
	if n.conn == nil {
		c, err := listen(uri, host, port)
		if err != nil {
			return nil, err
		}
		n.conn = c
	}
	n.addr, err = netip.ParseAddrPort(n.conn.LocalAddr().String())
	if err != nil {
		n.conn.Close()
		return nil, fmt.Errorf("nexus: listen on %s: local address: %w", uri, err)
	}
	n.addr = unmap(n.addr)
	n.uri = net.JoinHostPort(host, fmt.Sprint(n.addr.Port()))
	if n.key == nil {
		n.log.Info("nexus: listening; there is no key, so anybody who can reach the port can open sessions", "uri", n.uri)
	}
	n.loops.Go(n.receiveLoop)
	n.loops.Go(n.timerLoop)
	return n, nil
}

func listen(uri, host string, port uint16) (PacketConn, error) {
	var ip netip.Addr // the zero Addr: every address
	if host != "" {
		ctx, cancel := context.WithTimeout(context.Background(), connectTimeout)
		defer cancel()
		ips, err := resolve(ctx, uri, host)
		if err != nil {
			return nil, err
		}
		ip = ips[0]
	}
	addr := &net.UDPAddr{Port: int(port)}
	if ip.IsValid() {
		addr.IP, addr.Zone = ip.AsSlice(), ip.Zone()
	}
	c, err := net.ListenUDP("udp", addr)
	if err != nil {
		hint := ""
		switch {
		case errors.Is(err, syscall.EADDRINUSE):
			hint = "; another process has this port: stop it, or choose another port (0 for any)"
		case errors.Is(err, syscall.EADDRNOTAVAIL):
			hint = "; this host does not have that address"
		case errors.Is(err, syscall.EACCES):
			hint = "; ports below 1024 need privileges"
		}
		return nil, fmt.Errorf("nexus: listen on %s: %w%s", uri, err, hint)
	}
	// Thousands of clients may connect at once. What the system does not grant,
	// retransmission replaces.
	_ = c.SetReadBuffer(1 << 20)
	return c, nil
}

func random() uint64 {
	var b [8]byte
	for {
		rand.Read(b[:]) // never fails
		if v := binary.BigEndian.Uint64(b[:]); v != 0 {
			return v
		}
	}
}

func unmap(a addrPort) addrPort { return netip.AddrPortFrom(a.Addr().Unmap(), a.Port()) }

// URI returns the "host:port" at which the Nexus listens, with the real port.
// The host is the one given to New.
func (n *Nexus) URI() string { return n.uri }

// Addr returns the socket's address.
func (n *Nexus) Addr() netip.AddrPort { return n.addr }

// Incarnation returns the random number by which peers tell this Nexus from
// earlier ones at the same address.
func (n *Nexus) Incarnation() uint64 { return n.incarnation }

// Stats returns the counters.
func (n *Nexus) Stats() Stats {
	n.mu.Lock()
	defer n.mu.Unlock()
	s := n.stats
	s.Peers = len(n.peers)
	for _, p := range n.peers {
		s.Conns += len(p.conns[roleClient]) + len(p.conns[roleServer])
	}
	return s
}

// age is the time since the Nexus was made.
func (n *Nexus) age() time.Duration { return time.Since(n.started) }

// actions are what a message handler wants done once the lock is released:
// datagrams to send, callbacks to call.
type actions struct {
	data  []datagram
	calls []func()
}

type datagram struct {
	to    addrPort
	b     []byte // as encoded
	clear bool   // not to be sealed, even if there is a key
}

func (a *actions) send(to addrPort, m *message) { a.sendEncoded(to, m.encode()) }

func (a *actions) sendEncoded(to addrPort, b []byte) {
	a.data = append(a.data, datagram{to: to, b: b})
}

func (a *actions) sendClear(to addrPort, m *message) {
	a.data = append(a.data, datagram{to: to, b: m.encode(), clear: true})
}

func (a *actions) call(f func()) { a.calls = append(a.calls, f) }

// run makes the calls first: a peer that is told that its Disconnect was done
// may count on it that the connection's owner knows.
func (a *actions) run(n *Nexus) {
	for _, f := range a.calls {
		f()
	}
	for _, d := range a.data {
		if d.clear {
			n.writeRaw(d.to, d.b)
		} else {
			n.write(d.to, d.b)
		}
	}
}

// write sends an encoded message, sealed if there is a key.
func (n *Nexus) write(to addrPort, b []byte) {
	if n.key != nil {
		b = n.key.seal(b)
	}
	n.writeRaw(to, b)
}

func (n *Nexus) writeRaw(to addrPort, b []byte) {
	if _, err := n.conn.WriteToUDPAddrPort(b, to); err != nil {
		// As good as lost on the way; whoever needs an answer tries again.
		n.mu.Lock()
		n.stats.SendErrors++
		n.mu.Unlock()
	}
}

func (n *Nexus) receiveLoop() {
	buf := make([]byte, maxSealed+1) // one more, to notice what is too long
	for pause := time.Duration(0); ; {
		size, from, err := n.conn.ReadFromUDPAddrPort(buf)
		if err == nil {
			pause = 0
			n.receive(unmap(from), buf[:size])
			continue
		}
		if errors.Is(err, net.ErrClosed) {
			return
		}
		// Some systems report a peer's ICMP errors here. They say nothing that
		// can be believed; but do not spin if they do not end.
		t := time.NewTimer(pause)
		select {
		case <-n.done:
			t.Stop()
			return
		case <-t.C:
			pause = min(2*pause+time.Millisecond, 100*time.Millisecond)
		}
	}
}

func (n *Nexus) receive(from addrPort, b []byte) {
	m, err := decode(b)
	if err == nil && m.sealed && n.key != nil {
		err = n.open(&m, b)
	}
	var out actions
	n.mu.Lock()
	switch {
	case errors.Is(err, errForeign):
		n.stats.Foreign++
	case errors.Is(err, errForged):
		n.stats.Forged++
		n.refuseKey(from, &m, &out)
	case err != nil:
		n.stats.Malformed++
	case m.version != version:
		n.stats.Version++
		n.onOtherVersion(from, &m, &out)
	case m.sealed != (n.key != nil):
		n.stats.Unsealed++
		if n.key != nil && m.kind == kindRefuse && m.reason == ReasonKey {
			n.onDoubtfulRefuse(&m)
		}
		n.refuseKey(from, &m, &out)
	case m.sealed:
		n.onSealed(from, &m, &out)
	default:
		n.dispatch(from, &m, &out)
	}
	n.mu.Unlock()
	out.run(n)
}

func (n *Nexus) dispatch(from addrPort, m *message, out *actions) {
	switch m.kind {
	case kindConnect:
		n.onConnect(from, m, out)
	case kindAccept:
		n.onAccept(from, m, out)
	case kindRefuse:
		n.onRefuse(m)
	case kindDisconnect:
		n.onDisconnect(from, m, out)
	case kindDisconnectAck:
		n.onDisconnectAck(m)
	case kindPing:
		n.onPing(from, m, out)
	case kindPong:
		n.onPong(m, out)
	case kindReset:
		n.onReset(m, out)
	}
}

// onOtherVersion answers a Connect and reads a refusal; the rest would not be
// understood.
func (n *Nexus) onOtherVersion(from addrPort, m *message, out *actions) {
	switch {
	case m.kind == kindConnect:
		// Without a text: the header says it, and the answer is no longer than the
		// question.
		out.sendClear(from, &message{version: version, kind: kindRefuse, acceptor: true, from: n.incarnation, to: m.from, id: m.id,
			reason: ReasonVersion})
	case m.kind == kindRefuse && m.reason == ReasonVersion && n.key != nil:
		n.onDoubtfulRefuse(m)
	case m.kind == kindRefuse && m.reason == ReasonVersion:
		n.onRefuse(m)
	}
}

// wakeTimer makes the timer loop look again whether there is something to do.
func (n *Nexus) wakeTimer() {
	select {
	case n.wake <- struct{}{}:
	default:
	}
}

// timerLoop ticks while there are peers, and waits for the next tombstone or
// sender to expire while there are only those.
func (n *Nexus) timerLoop() {
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	var due time.Time // zero: not waiting
	for {
		n.mu.Lock()
		now := time.Now()
		next := due
		switch {
		case len(n.peers) > 0:
			if tick := now.Add(n.period); due.IsZero() || due.After(tick) {
				next = tick
				n.lastTick = now
			}
		case len(n.tombs) > 0:
			next = n.tombs[0].expires
		case len(n.idle) > 0:
			next = n.idle[0].due
		default:
			next = time.Time{}
		}
		n.mu.Unlock()
		due = next
		var fire <-chan time.Time
		if !due.IsZero() {
			timer.Reset(due.Sub(now))
			fire = timer.C
		}
		select {
		case <-n.done:
			return
		case <-n.wake:
		case <-fire:
			due = time.Time{}
			var out actions
			n.mu.Lock()
			n.tick(time.Now(), &out)
			n.expireTombstones(time.Now())
			n.expireSenders(time.Now())
			n.mu.Unlock()
			out.run(n)
		}
	}
}

// Close ends every connection (the functions registered for that are called
// with [ErrClosed]) and tells the peers, for half a second at most if they do not
// acknowledge; ends Connect and Accept calls, and the socket. It waits for
// running Accepts, but not for ever: an error says how many have ignored their
// context. It must not be called from a callback.
func (n *Nexus) Close() error {
	n.mu.Lock()
	if n.closing {
		n.mu.Unlock()
		<-n.closed
		return n.closeErr
	}
	n.closing = true
	var out actions
	var leaving []*Conn
	all := make([]*Conn, 0, len(n.clients)+len(n.servers))
	for _, c := range n.clients {
		all = append(all, c)
	}
	for _, c := range n.servers {
		all = append(all, c)
	}
	for _, c := range all {
		switch c.state {
		case stateConnecting:
			c.err = ErrClosed
			n.bury(c)
			close(c.answered)
		case stateAccepting:
			c.cancel()
		case stateLive:
			n.startClosing(c)
			c.err = ErrClosed
			leaving = append(leaving, c)
			n.callDown(c, &out)
		}
	}
	if n.accepting == 0 {
		close(n.accepted)
	}
	n.mu.Unlock()
	out.run(n)

	n.leave(leaving)
	var errs []error
	t := time.NewTimer(closeTimeout)
	defer t.Stop()
	select {
	case <-n.accepted:
	case <-t.C:
		n.mu.Lock()
		errs = append(errs, fmt.Errorf("nexus: close: %d Accept calls ignore their context", n.accepting))
		n.mu.Unlock()
	}
	close(n.done)
	if err := n.conn.Close(); err != nil {
		errs = append(errs, fmt.Errorf("nexus: close: %w", err))
	}
	n.loops.Wait()
	n.closeErr = errors.Join(errs...)
	close(n.closed)
	return n.closeErr
}

// leave sends Disconnects for half a second or until all are acknowledged.
func (n *Nexus) leave(conns []*Conn) {
	deadline := time.NewTimer(closeTimeout / 4)
	defer deadline.Stop()
	// Evenly, without backing off: there are only a few tries.
	pause := min(n.retryFirst, closeTimeout/40)
	over := false
	for len(conns) > 0 && !over {
		for _, c := range conns {
			n.write(c.peer.addr, n.disconnectMessage(c).encode())
		}
		again := time.NewTimer(pause)
		for expired := false; len(conns) > 0 && !expired && !over; {
			select {
			case <-conns[0].acked:
				conns = conns[1:]
			case <-again.C:
				expired = true
			case <-deadline.C:
				over = true
			}
		}
		again.Stop()
		left := conns[:0]
		for _, c := range conns {
			select {
			case <-c.acked:
			default:
				left = append(left, c)
			}
		}
		conns = left
	}
	n.mu.Lock()
	for _, c := range conns {
		if c.state == stateClosing {
			n.bury(c)
		}
	}
	n.mu.Unlock()
}
