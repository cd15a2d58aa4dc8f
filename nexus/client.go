package nexus

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"
)

// Connect opens a connection to an endpoint of the process at uri, sends it
// payload (at most MaxPayload bytes) and returns its reply. The Connect is sent
// again until answered or ctx ends; without a deadline in ctx, for 5 s.
//
// onDown, which may be nil, is as for [Conn.OnDown]. It may be called as soon as
// Connect is about to return.
//
// The errors are *RefusedError, *TimeoutError, the context's (wrapped),
// ErrDisconnected (the server accepted and changed its mind) and ErrClosed. With a
// key, a refusal for want of a common key or version is not believed at once: it
// is the error if no better answer comes within 2 s.
func (n *Nexus) Connect(ctx context.Context, uri string, endpoint uint16, payload []byte, onDown func(error)) (*Conn, []byte, error) {
	if len(payload) > MaxPayload {
		return nil, nil, fmt.Errorf("nexus: connect to %s: payload of %d bytes, at most %d fit", uri, len(payload), MaxPayload)
	}
	host, port, err := splitURI(uri)
	if err != nil {
		return nil, nil, err
	}
	if host == "" || port == 0 {
		return nil, nil, fmt.Errorf("nexus: URI %q: connecting needs a host and a port", uri)
	}
	if _, ok := ctx.Deadline(); !ok {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, connectTimeout)
		defer cancel()
	}
	start := time.Now()
	ips, err := resolve(ctx, uri, host)
	if err != nil {
		return nil, nil, err
	}
	if ips = reachable(n.addr.Addr(), ips); len(ips) == 0 {
		return nil, nil, fmt.Errorf("nexus: connect to %s: this process listens at %v, which has no way to that address family; listen at another host", uri, n.addr)
	}

	c := &Conn{n: n, id: random(), role: roleClient, endpoint: endpoint, answered: make(chan struct{})}
	for _, ip := range ips {
		c.tried = append(c.tried, netip.AddrPortFrom(ip, port))
	}
	n.mu.Lock()
	if n.closing {
		n.mu.Unlock()
		return nil, nil, ErrClosed
	}
	n.clients[c.id] = c
	if n.key != nil {
		c.attempt = n.newAttempt(c.tried, payload)
	}
	n.mu.Unlock()

	n.ask(ctx, c, payload)

	var out actions
	n.mu.Lock()
	a := c.attempt
	c.attempt = nil
	if a != nil && a.patience != nil {
		a.patience.Stop()
	}
	switch {
	case c.state == stateLive:
		// Only now: a connection that ends earlier is an error of Connect.
		c.onDown = onDown
	case c.state == stateConnecting:
		// A server that has heard us and whose answer is late or lost is told;
		// if that is lost too, its first Ping finds out.
		n.bury(c)
		for _, to := range c.tried {
			d := &message{version: version, kind: kindDisconnect, from: n.incarnation, id: c.id}
			if a != nil {
				if d.to = a.server; d.to == 0 || to != a.via {
					continue // it knows nothing of us
				}
			}
			out.send(to, d)
		}
		if a != nil && !a.proved && a.doubtful != nil && errors.Is(ctx.Err(), context.DeadlineExceeded) {
			c.refused = a.doubtful // rather than that the time is over
		}
	}
	state, err := c.state, c.err
	n.mu.Unlock()
	out.run(n)
	switch {
	case state == stateLive:
		return c, c.reply, nil
	case c.refused != nil:
		return nil, nil, c.refused
	case err != nil:
		return nil, nil, fmt.Errorf("nexus: connect to %s: %w", uri, err)
	}
	if errors.Is(ctx.Err(), context.DeadlineExceeded) {
		return nil, nil, &TimeoutError{URI: uri, After: time.Since(start), Err: ctx.Err()}
	}
	return nil, nil, fmt.Errorf("nexus: connect to %s: %w", uri, ctx.Err())
}

// ask sends a Connect, to each address in turn, until c is answered or ctx ends.
func (n *Nexus) ask(ctx context.Context, c *Conn, payload []byte) {
	for i, pause := 0, n.retryFirst; ctx.Err() == nil; i++ {
		to := c.tried[i%len(c.tried)]
		n.mu.Lock()
		b := n.connectMessage(c, to, payload).encode()
		n.mu.Unlock()
		n.write(to, b)
		t := time.NewTimer(pause)
		select {
		case <-c.answered:
			t.Stop()
			return
		case <-ctx.Done():
			t.Stop()
			return
		case <-t.C:
		}
		if (i+1)%len(c.tried) == 0 {
			pause = min(2*pause, n.retryMax)
		}
	}
}

func (n *Nexus) onAccept(from addrPort, m *message, out *actions) {
	if m.to != n.incarnation {
		n.stats.Stale++
		return
	}
	c := n.clients[m.id]
	if c != nil && c.state == stateConnecting {
		if !slices.Contains(c.tried, from) {
			from = c.tried[0] // a host of several addresses; this one is known to work
		}
		c.peer = n.peer(from, m, out)
		c.peer.heard = time.Now()
		c.state = stateLive
		c.peer.add(c)
		c.reply = slices.Clone(m.payload)
		close(c.answered)
		return
	}
	if c != nil && c.peer.incarnation == m.from {
		return // a duplicate
	}
	// Given up meanwhile, or a second server behind the same name.
	out.send(from, &message{version: version, kind: kindDisconnect, from: n.incarnation, to: m.from, id: m.id})
}

func (n *Nexus) onRefuse(m *message) {
	if m.to != n.incarnation {
		n.stats.Stale++
		return
	}
	c := n.clients[m.id]
	if c == nil || c.state != stateConnecting {
		return
	}
	text := string(m.payload)
	switch {
	case text != "":
	case m.version != version:
		text = fmt.Sprintf("the server speaks version %d, we %d", m.version, version)
	case m.reason == ReasonKey:
		text = "the process there has a key, and we have none"
	}
	c.refused = &RefusedError{Reason: m.reason, Text: text}
	n.bury(c)
	close(c.answered)
}
