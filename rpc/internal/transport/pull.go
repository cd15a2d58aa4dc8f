package transport

import (
	"fmt"
	"slices"

	"github.com/rrppcc-go/rrppcc/rpc/internal/engine"
	"github.com/rrppcc-go/rrppcc/uverbs"
)

const (
	// chunkBytes is the most that one RDMA READ fetches. It is long enough that
	// a few of them keep a fast link busy, and short enough that a message which
	// is given up, or a short message behind long ones, does not wait long.
	chunkBytes = 1 << 20

	// pullDepth is how many chunks of one message are posted at once.
	pullDepth = 4

	// maxBreaks is how many connections may break under one message before it
	// counts as failed.
	maxBreaks = 3
)

// pull is a message on its way: an engine.Read, cut into chunks.
//
// An RC queue pair completes in the order of posting, so the chunks that have
// arrived are always the first ones: where a connection breaks, the pull goes
// on behind them on the next one.
type pull struct {
	read   engine.Read
	peer   *Peer
	conn   *Conn  // where the chunks in flight are posted
	posted uint64 // bytes
	done   uint64 // bytes that have arrived
	next   *pull  // in Peer.pulls, or in Transport.sparePulls
	index  uint32 // in Transport.pulls

	flying int32 // chunks
	breaks uint8 // connections that broke under it
	queued bool  // in Peer.pulls
	since  int64 // in Transport.stale
	broke  bool  // a chunk in flight, or posted with those, was lost
	failed bool  // the peer or the device refused a chunk: no use in trying again
}

// pullList is a queue of pulls.
type pullList struct{ head, tail *pull }

func (l *pullList) push(x *pull) {
	x.queued, x.next = true, nil
	if l.tail != nil {
		l.tail.next = x
	} else {
		l.head = x
	}
	l.tail = x
}

func (l *pullList) pop() *pull {
	x := l.head
	if x == nil {
		return nil
	}
	if l.head = x.next; l.head == nil {
		l.tail = nil
	}
	x.queued, x.next = false, nil
	return x
}

// growPulls makes as many pulls as READs may be in flight.
func (t *Transport) growPulls() {
	block := make([]pull, t.cfg.MaxReads)
	for i := range block {
		x := &block[i]
		x.index, x.next = uint32(len(t.pulls)), t.sparePulls
		t.pulls = append(t.pulls, x)
		t.sparePulls = x
	}
}

// newPull makes a pull of r.
func (t *Transport) newPull(p *Peer, r *engine.Read) *pull {
	if t.sparePulls == nil {
		t.growPulls()
	}
	x := t.sparePulls
	t.sparePulls = x.next
	*x = pull{index: x.index, read: *r, peer: p}
	p.count++
	return x
}

// endPull tells the engine. Nothing of x is in flight or queued.
func (t *Transport) endPull(e *engine.Engine, now int64, x *pull, ok bool) {
	token := x.read.Token
	x.peer.count--
	*x = pull{index: x.index, next: t.sparePulls}
	t.sparePulls = x
	e.ReadDone(now, token, ok)
}

// queueReads takes the engine's READs over.
func (t *Transport) queueReads(e *engine.Engine, now int64) {
	for i := range e.Reads {
		r := &e.Reads[i]
		p := t.peer(r.Dest)
		if p == nil {
			e.ReadDone(now, r.Token, false)
			continue
		}
		p.pulls.push(t.newPull(p, r))
		t.activate(p)
	}
	e.Reads = e.Reads[:0]
}

// activate puts p on the list of peers for which a chunk can be posted, if that
// is so.
func (t *Transport) activate(p *Peer) {
	if p.active || !p.ready() || p.pulls.head == nil {
		return
	}
	p.active, p.next = true, nil
	if t.activeTail != nil {
		t.activeTail.next = p
	} else {
		t.activeHead = p
	}
	t.activeTail = p
}

func (t *Transport) popActive() *Peer {
	p := t.activeHead
	if t.activeHead = p.next; t.activeHead == nil {
		t.activeTail = nil
	}
	p.active, p.next = false, nil
	return p
}

// postReads posts chunks as far as the queues have room: one of each peer in
// turn, and of each peer one of each message in turn.
func (t *Transport) postReads(e *engine.Engine, now int64) {
	for t.reads < t.cfg.MaxReads && t.activeHead != nil {
		p := t.popActive()
		if !p.ready() {
			continue
		}
		if x := p.pulls.pop(); x != nil {
			t.postChunk(e, now, x)
		}
		t.activate(p)
	}
	for _, p := range t.broken {
		t.dropUnwanted(e, now, p)
	}
	if len(t.stale) > 0 {
		t.renewStale(e, now)
	}
}

// fresh reports whether the message is offered by the connection in use.
func (x *pull) fresh(e *engine.Engine) bool {
	r := &x.read
	if r.Conn == 0 || r.Conn == x.peer.conn.number {
		return true
	}
	r.RKey, r.Conn = e.Key(r.Token)
	return r.Conn == x.peer.conn.number
}

// renewStale looks again at the pulls that wait for a new offer.
func (t *Transport) renewStale(e *engine.Engine, now int64) {
	t.stale = slices.DeleteFunc(t.stale, func(x *pull) bool {
		switch p := x.peer; {
		case p.detached, now-x.since > int64(t.cfg.StaleTime), !e.Wanted(x.read.Token):
			t.endPull(e, now, x, false)
		case x.fresh(e):
			p.pulls.push(x)
			t.activate(p)
		default:
			return false
		}
		return true
	})
}

// Staled reports, once, that pulls have begun to wait for a new offer. The owner
// must flush after Config.StaleTime.
func (t *Transport) Staled() bool {
	s := t.staled
	t.staled = false
	return s
}

// postChunk posts the next chunk of x, unless nobody wants the message any more.
func (t *Transport) postChunk(e *engine.Engine, now int64, x *pull) {
	p := x.peer
	if !e.Wanted(x.read.Token) {
		x.failed = true
	}
	if x.broke || x.failed || x.flying > 0 && x.conn != p.conn {
		if x.flying == 0 {
			t.settle(e, now, x)
		}
		return // what is in flight comes back first
	}
	if !x.fresh(e) {
		x.since = now
		t.stale = append(t.stale, x)
		t.staled, t.care = true, true
		return
	}
	n := min(x.read.Len-x.posted, t.chunk)
	t.readSGE[0] = uverbs.SGE{Addr: x.read.Local + x.posted, Length: uint32(n), LKey: x.read.LKey}
	t.readWR[0] = uverbs.SendWR{WRID: readBit | uint64(x.index), Opcode: uverbs.WRRDMARead, Flags: uverbs.SendSignaled,
		SGList: t.readSGE[:], RemoteAddr: x.read.Remote + x.posted, RKey: x.read.RKey}
	if t.cfg.Break != nil && t.cfg.Break() {
		_ = p.conn.stop()
	}
	if _, err := p.conn.qp.PostSend(t.readWR[:]); err != nil {
		x.broke, x.conn = true, p.conn
		t.breakConn(p, p.conn, fmt.Errorf("post RDMA READ: %w", err))
		if x.flying == 0 {
			t.settle(e, now, x)
		}
		return
	}
	x.conn = p.conn
	x.posted += n
	x.flying++
	x.conn.flying++
	t.reads++
	t.Chunks++
	if x.posted < x.read.Len && x.flying < pullDepth {
		p.pulls.push(x)
	}
}

// chunkDone takes the completion of a chunk.
func (t *Transport) chunkDone(e *engine.Engine, now int64, wc *uverbs.WC) {
	x := t.pulls[uint32(wc.WRID)]
	p, c := x.peer, x.conn
	t.reads--
	x.flying--
	c.flying--
	switch wc.Status {
	case uverbs.WCSuccess:
		x.done += min(x.read.Len-x.done, t.chunk)
	case uverbs.WCWRFlushErr, uverbs.WCRetryExcErr, uverbs.WCRNRRetryExcErr, uverbs.WCRespTimeoutErr:
		x.broke = true
	default:
		x.broke, x.failed = true, true
	}
	if wc.Status != uverbs.WCSuccess {
		t.SendErrors++
		t.breakConn(p, c, fmt.Errorf("RDMA READ: %v (vendor error 0x%x)", wc.Status, wc.VendorErr))
	}
	if c.idle() && c != p.conn {
		t.care = true // it waits to be destroyed
	}
	switch {
	case x.queued: // postChunk sees to it
	case x.flying == 0 && (x.broke || x.failed || p.detached || x.done == x.read.Len):
		t.settle(e, now, x)
	case !x.broke && !x.failed && !p.detached && x.posted < x.read.Len:
		p.pulls.push(x)
	}
	t.activate(p)
}

// settle goes on with a pull that has nothing in flight: it is complete, or
// lost, or starts again behind what has arrived.
func (t *Transport) settle(e *engine.Engine, now int64, x *pull) {
	p := x.peer
	if x.broke {
		x.breaks++
	}
	switch {
	case x.done == x.read.Len:
		t.endPull(e, now, x, true)
	case x.failed, x.breaks >= maxBreaks, p.detached, !e.Wanted(x.read.Token):
		t.endPull(e, now, x, false)
	default:
		x.broke = false
		x.posted = x.done
		p.pulls.push(x)
		t.activate(p)
	}
}

// dropUnwanted ends the pulls that wait for a connection while nobody waits
// for them.
func (t *Transport) dropUnwanted(e *engine.Engine, now int64, p *Peer) {
	var keep pullList
	for x := p.pulls.pop(); x != nil; x = p.pulls.pop() {
		if x.flying > 0 || e.Wanted(x.read.Token) {
			keep.push(x)
		} else {
			t.endPull(e, now, x, false)
		}
	}
	p.pulls = keep
}
