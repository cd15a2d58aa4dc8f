package rpc

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/rrppcc-go/rrppcc/nexus"
	"github.com/rrppcc-go/rrppcc/rpc/internal/transport"
)

// A pair's RC connection breaks when a READ fails: because packets are lost for
// too long, because the device gave up the queue pair, or because the memory
// that a message names is not the peer's to offer. Datagrams go on meanwhile,
// and the READs that are not to blame wait for a new connection:
//
//	client                                        server
//	  | a READ fails                                |
//	  |        <-- BROKEN (generation)              |  or one fails here
//	  | hello(generation+1, new RC QP)  ==>         |  by the session manager
//	  |        <== hello(generation+1, new RC QP)   |  old QP to the error state
//	  | connects; READs go on                       |
//	  | closes the session manager's connection ==> |  READs go on
const (
	// repairTime is how long a broken connection may take to be replaced.
	repairTime = 5 * time.Second
	// maxRepairs is how many connections of a pair may break within
	// repairWindow. A peer that offers memory which cannot be read breaks one
	// with every such message.
	maxRepairs   = 8
	repairWindow = 10 * time.Second
)

var errUnrepaired = errors.New("the RC connection broke and was not re-established in time")

// repair is the state of a pair's RC connection, of the loop.
type repair struct {
	generation uint32 // of the connection in use; the first is 0
	underWay   bool   // broken was noted, and is not repaired
	count      int    // repairs since
	since      int64
	timer      *time.Timer
}

// pairBroke begins to replace p's connection. It runs in the loop, as long as
// the connection is broken.
func (ep *Endpoint) pairBroke(p *pair) {
	r := &p.repair
	if r.underWay || !p.attached {
		return
	}
	if ep.now-r.since > int64(repairWindow) {
		r.count, r.since = 0, ep.now
	}
	index, cause := p.peer.Index(), p.peer.Broken()
	if r.count++; r.count > maxRepairs {
		ep.dropPeer(index, fmt.Errorf("%w: the RC connection breaks again and again: %w", ErrPeerDead, cause))
		return
	}
	ep.log.Warn("rpc: RC connection broke", "endpoint", ep.id, "error", cause)
	ep.beginRepair(p)
	if p.key.uri == "" {
		ep.e.Broken(ep.now, index, r.generation)
		return
	}
	ep.mu.Lock()
	defer ep.mu.Unlock()
	if ep.closing || p.gone {
		return
	}
	ep.connecting.Add(1)
	go func() {
		defer ep.connecting.Done()
		if err := ep.reconnect(p, r.generation+1); err != nil {
			ep.submit(op{kind: opFunc, fn: func() { ep.unrepaired(p, err) }})
		}
	}()
}

// beginRepair gives the repair its time.
func (ep *Endpoint) beginRepair(p *pair) {
	r := &p.repair
	r.underWay = true
	generation := r.generation
	r.timer = time.AfterFunc(repairTime, func() {
		ep.submit(op{kind: opFunc, fn: func() {
			if r.underWay && r.generation == generation {
				ep.unrepaired(p, errUnrepaired)
			}
		}})
	})
}

// unrepaired gives a pair up.
func (ep *Endpoint) unrepaired(p *pair, err error) {
	p.repair.end()
	if p.attached {
		ep.dropPeer(p.peer.Index(), fmt.Errorf("%w: %w", ErrPeerDead, err))
	}
}

func (r *repair) end() {
	r.underWay = false
	if r.timer != nil {
		r.timer.Stop()
		r.timer = nil
	}
}

// resume lets READs go on, on the connection of that generation.
func (ep *Endpoint) resume(p *pair, generation uint32) {
	r := &p.repair
	if !p.attached || r.generation != generation || !r.underWay {
		return
	}
	r.end()
	ep.repairs++
	ep.e.Repaired(p.peer.Index())
	ep.t.Resume(p.peer)
	ep.log.Info("rpc: RC connection re-established", "endpoint", ep.id, "generation", generation)
}

// peerBroken is the engine's word that a server cannot read from us on the
// connection of that generation.
func (ep *Endpoint) peerBroken(dest, generation uint32) {
	p, ok := ep.t.PeerUser(dest).(*pair)
	if ok && p.key.uri != "" && !p.repair.underWay && p.repair.generation == generation {
		ep.t.Break(p.peer)
	}
}

// reconnect is the client's side of a repair.
func (ep *Endpoint) reconnect(p *pair, generation uint32) error {
	ctx, cancel := context.WithTimeout(context.Background(), repairTime)
	defer cancel()
	ctx, cancel = ep.until(ctx)
	defer cancel()
	c, err := ep.t.NewConn()
	if err != nil {
		return err
	}
	given := false
	defer func() {
		if !given {
			c.Close()
		}
	}()
	conn, reply, err := ep.nx.Connect(ctx, p.key.uri, p.key.id, ep.repairHello(p, c, generation).encode(), nil)
	if err != nil {
		return err
	}
	defer closeSoon(conn) // which lets the server's READs go on
	h, err := decodeHello(reply)
	if err == nil && (h.pair != p.id || h.generation != generation || !sameEndpoint(&h.addr, p)) {
		err = errHello
	}
	if err != nil {
		return err
	}
	if err := p.peer.ConnectAgain(c, h.addr.RCQPN, h.addr.RCPSN); err != nil {
		return err
	}
	given = true
	return ep.giveConn(ctx, c, func() bool {
		if !p.attached || !p.repair.underWay || p.repair.generation != generation-1 {
			return false
		}
		p.repair.generation = generation
		ep.t.Replace(p.peer, c, generation+1)
		ep.resume(p, generation)
		return true
	})
}

// giveConn runs take in the loop, which says whether it took c. If it did not,
// or never came to run, c is destroyed.
func (ep *Endpoint) giveConn(ctx context.Context, c *transport.Conn, take func() bool) error {
	var claimed atomic.Bool
	taken := false
	err := ep.inLoop(ctx, func() { // whoever polls by hand must not find the loop taken
		if claimed.CompareAndSwap(false, true) {
			if taken = take(); !taken {
				c.Close()
			}
		}
	})
	switch {
	case err == nil && !taken:
		return errStalePair
	case err != nil && claimed.CompareAndSwap(false, true):
		return errors.Join(err, c.Close())
	}
	return err
}

func (ep *Endpoint) repairHello(p *pair, c *transport.Conn, generation uint32) *hello {
	addr := p.peer.Local()
	addr.RCQPN, addr.RCPSN = c.QPN(), c.PSN()
	return &hello{window: uint8(ep.opt.window), credits: uint16(ep.opt.credits), pair: p.id, addr: addr,
		maxMessage: uint64(ep.opt.maxMessage), generation: generation}
}

// sameEndpoint says whether addr differs from that of p's peer by the RC queue
// pair alone.
func sameEndpoint(addr *transport.Address, p *pair) bool {
	was := p.peer.Remote()
	was.RCQPN, was.RCPSN = addr.RCQPN, addr.RCPSN
	return was == *addr
}

// acceptRepair is the server's side of a repair.
func (ep *Endpoint) acceptRepair(ctx context.Context, conn *nexus.Conn, h *hello) (reply []byte, err error) {
	ep.mu.Lock()
	p := ep.incoming[h.pair]
	if ep.closing || p == nil {
		ep.mu.Unlock()
		return nil, &nexus.RefusedError{Reason: nexus.ReasonNoResources, Text: "no such pair of endpoints"}
	}
	ep.connecting.Add(1)
	ep.mu.Unlock()
	defer ep.connecting.Done()
	ctx, cancel := ep.until(ctx)
	defer cancel()
	if reply, err = ep.repairPair(ctx, conn, p, h); err != nil {
		return nil, &nexus.RefusedError{Reason: nexus.ReasonNoResources, Text: err.Error()}
	}
	conn.OnDown(func(error) {
		ep.submit(op{kind: opFunc, fn: func() { ep.resume(p, h.generation) }})
	})
	return reply, nil
}

func (ep *Endpoint) repairPair(ctx context.Context, conn *nexus.Conn, p *pair, h *hello) ([]byte, error) {
	select {
	case <-p.ready:
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	if p.err != nil || !sameEndpoint(&h.addr, p) || conn.Peer() != p.owner {
		return nil, errHello
	}
	c, err := ep.t.NewConn()
	if err != nil {
		return nil, err
	}
	if err = p.peer.ConnectAgain(c, h.addr.RCQPN, h.addr.RCPSN); err != nil {
		return nil, errors.Join(err, c.Close())
	}
	mine := ep.repairHello(p, c, h.generation)
	return mine.encode(), ep.giveConn(ctx, c, func() bool {
		r := &p.repair
		if !p.attached || int32(h.generation-r.generation) <= 0 {
			return false
		}
		ep.t.Replace(p.peer, c, h.generation+1)
		r.end()
		r.generation = h.generation
		ep.beginRepair(p)
		return true
	})
}
