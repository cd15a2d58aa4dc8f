package transport

import (
	"errors"
	"fmt"

	"github.com/rrppcc-go/rrppcc/rpc/internal/engine"
	"github.com/rrppcc-go/rrppcc/uverbs"
)

// A large message is offered by a memory window of type 2: a key that names its
// bytes and no others, and works for reading, by one queue pair. Binding and
// invalidating it are work requests of that queue pair; the kernel has no part
// in it. Windows are the transport's, and are used again and again, each time
// with another key.
const (
	// winDepth is how many of these work requests are posted to one queue pair
	// at once.
	winDepth = 10
	// winPlaces is how many places of a send queue one may take.
	winPlaces = 3
	// winBurst is how many are posted in one go.
	winBurst = 8
	// offerBlock is by how many offers the table of them grows.
	offerBlock = 64
)

// window is a memory window and the key that it had last.
type window struct {
	mw   *uverbs.MW
	rkey uint32
}

type offerState uint8

const (
	offerNone         offerState = iota
	offerWaiting                 // to be bound: in Transport.binds or Peer.parked
	offerBinding                 // the work request is posted
	offerOpen                    // the peer can read
	offerEnding                  // to be invalidated: in Transport.ends or Peer.parked
	offerInvalidating            // the work request is posted
	offerGone                    // the peer is gone: nothing is granted, the engine does not know yet
)

// offer is an engine.Offer and what became of it.
type offer struct {
	engine.Offer
	peer *Peer
	conn *Conn // that it is bound to, or to be invalidated at
	win  window
	op   *winOp // in flight

	state     offerState
	withdrawn bool
	refused   uint8 // binds that the device refused
	list      *offerList
	prev      *offer
	next      *offer
}

// offerList is a queue of offers, from the middle of which they may be taken.
type offerList struct{ head, tail *offer }

func (l *offerList) push(o *offer) {
	o.list, o.prev, o.next = l, l.tail, nil
	if l.tail != nil {
		l.tail.next = o
	} else {
		l.head = o
	}
	l.tail = o
}

// unlink takes o out of the list that it is in, if any.
func (o *offer) unlink() {
	l := o.list
	if l == nil {
		return
	}
	if o.prev != nil {
		o.prev.next = o.next
	} else {
		l.head = o.next
	}
	if o.next != nil {
		o.next.prev = o.prev
	} else {
		l.tail = o.prev
	}
	o.list, o.prev, o.next = nil, nil, nil
}

// winOp is a work request on its way.
type winOp struct {
	offer *offer // nil if it does not matter any more
	peer  *Peer
	conn  *Conn
	index uint32
	next  *winOp // in Transport.spareOps
}

// windows is the part of a Transport that offers memory.
type windows struct {
	offers   []*offer // by the engine's token
	binds    offerList
	ends     offerList
	free     []window
	count    int     // windows, free or not
	lost     []*Conn // that broke, while offers may be bound to them
	ops      []winOp
	spareOps *winOp
	flying   int   // ops
	closeErr error // of windows, for Reap

	batch     [winBurst]uverbs.SendWR
	batchBind [winBurst]uverbs.MWBind
	batchOps  [winBurst]*winOp
	batched   int
}

// winBit marks the WRID of a bind or an invalidation: winBit | index of the
// winOp.
const winBit = 1 << 62

func (w *windows) init(ops int) {
	w.ops = make([]winOp, ops)
	for i := range w.ops {
		op := &w.ops[i]
		op.index, op.next = uint32(i), w.spareOps
		w.spareOps = op
	}
}

// NewWindows allocates n windows, or as many as the device has. Any goroutine
// may call it.
func (t *Transport) NewWindows(n int) (mws []*uverbs.MW, err error) {
	for range n {
		mw, err := t.cfg.PD.AllocMW(uverbs.MWType2)
		if err != nil {
			return mws, err
		}
		mws = append(mws, mw)
	}
	return mws, nil
}

// AddWindows gives the transport windows that NewWindows has made.
func (t *Transport) AddWindows(mws []*uverbs.MW) {
	w := &t.win
	for _, mw := range mws {
		w.free = append(w.free, window{mw, mw.RKey()})
	}
	w.count += len(mws)
}

// Windows returns how many windows there are, and how many of them nothing is
// offered by.
func (t *Transport) Windows() (all, free int) { return t.win.count, len(t.win.free) }

// WantWindows returns how many windows the transport lacks: offers wait, or
// windows were lost with connections.
func (t *Transport) WantWindows() int {
	w := &t.win
	switch {
	case w.count < t.cfg.Windows:
		return t.cfg.Windows - w.count
	case len(w.free) == 0 && w.binds.head != nil:
		return min(w.count, t.cfg.MaxWindows-w.count)
	}
	return 0
}

// postOffers takes the engine's offers and withdrawals over, and posts what the
// queues have room for.
func (t *Transport) postOffers(e *engine.Engine, now int64) {
	w := &t.win
	t.EndOffers(e)
	for _, c := range w.lost {
		t.loseOffers(e, now, c)
	}
	w.lost = w.lost[:0]
	// What ends goes first: it is the caller's memory, and gives windows back.
	for o := w.ends.head; o != nil && w.spareOps != nil; o = w.ends.head {
		t.batchOp(o)
	}
	for o := w.binds.head; o != nil && w.spareOps != nil; o = w.binds.head {
		if len(w.free) == 0 {
			if w.count < t.cfg.MaxWindows {
				t.care = true
			}
			break
		}
		t.batchOp(o)
	}
	t.postBatch()
}

// EndOffers takes the engine's offers and withdrawals over without posting
// anything. Flush does it; an owner who does not flush any more, because the device
// has failed, calls it when all peers are disconnected, and all offers end.
func (t *Transport) EndOffers(e *engine.Engine) {
	for i := range e.Offers {
		t.newOffer(&e.Offers[i])
	}
	e.Offers = e.Offers[:0]
	for _, token := range e.Withdrawn {
		t.withdraw(e, token)
	}
	e.Withdrawn = e.Withdrawn[:0]
}

func (t *Transport) newOffer(eo *engine.Offer) {
	w := &t.win
	for int(eo.Token) >= len(w.offers) {
		block := make([]offer, offerBlock)
		for i := range block {
			w.offers = append(w.offers, &block[i])
		}
	}
	o := w.offers[eo.Token]
	*o = offer{Offer: *eo, peer: t.peer(eo.Dest), state: offerWaiting}
	if o.peer == nil {
		o.state = offerGone
		return
	}
	w.binds.push(o)
}

func (t *Transport) withdraw(e *engine.Engine, token uint32) {
	o := t.win.offers[token]
	o.withdrawn = true
	switch o.state {
	case offerWaiting:
		o.unlink()
		t.endOffer(e, o)
	case offerGone:
		t.endOffer(e, o)
	case offerOpen:
		o.state = offerEnding
		t.win.ends.push(o)
	}
}

// endOffer tells the engine that an offer is over.
func (t *Transport) endOffer(e *engine.Engine, o *offer) {
	if o.win.mw != nil {
		t.win.free = append(t.win.free, o.win)
	}
	token := o.Token
	*o = offer{}
	e.TxDone(token)
}

// batchOp takes o from its queue and prepares its work request; where its
// connection has no room, o is put aside.
func (t *Transport) batchOp(o *offer) {
	w := &t.win
	o.unlink()
	p := o.peer
	if p.broken != nil || p.conn.ops >= winDepth {
		p.parked.push(o)
		return
	}
	if k := w.batched; k == winBurst || k > 0 && w.batchOps[0].conn != p.conn {
		if t.postBatch(); p.broken != nil {
			p.parked.push(o)
			return
		}
	}
	op := w.spareOps
	w.spareOps = op.next
	*op = winOp{offer: o, peer: p, conn: p.conn, index: op.index}
	p.conn.ops++
	w.flying++
	o.op, o.conn = op, p.conn
	k := w.batched
	w.batched++
	w.batchOps[k] = op
	wr := &w.batch[k]
	*wr = uverbs.SendWR{WRID: winBit | uint64(op.index), Flags: uverbs.SendSignaled}
	if o.state == offerEnding {
		o.state = offerInvalidating
		wr.Opcode, wr.InvalidateRKey = uverbs.WRLocalInv, o.win.rkey
		return
	}
	o.state = offerBinding
	n := len(w.free) - 1
	o.win, w.free = w.free[n], w.free[:n]
	b := &w.batchBind[k]
	*b = uverbs.MWBind{MW: o.win.mw, OldRKey: o.win.rkey, NewRKey: uverbs.NextRKey(o.win.rkey),
		LKey: o.LKey, Addr: o.Addr, Length: o.Len, Access: uverbs.AccessRemoteRead}
	o.win.rkey = b.NewRKey
	wr.Opcode, wr.Bind = uverbs.WRBindMW, b
}

// postBatch posts what batchOp has prepared, all for one connection.
func (t *Transport) postBatch() {
	w := &t.win
	k := w.batched
	if k == 0 {
		return
	}
	w.batched = 0
	c, p := w.batchOps[0].conn, w.batchOps[0].peer
	n, err := c.qp.PostSend(w.batch[:k])
	if err == nil {
		return
	}
	for _, op := range w.batchOps[n:k] {
		op.offer.op = nil
		t.freeOp(op)
	}
	t.breakConn(p, c, fmt.Errorf("offer memory: %w", err))
}

func (t *Transport) freeOp(op *winOp) {
	c := op.conn
	c.ops--
	t.win.flying--
	if c.ops == 0 && c != op.peer.conn || op.peer.detached {
		t.care = true // it may be waited for
	}
	*op = winOp{index: op.index, next: t.win.spareOps}
	t.win.spareOps = op
}

// opDone takes the completion of a bind or an invalidation.
func (t *Transport) opDone(e *engine.Engine, now int64, wc *uverbs.WC) {
	op := &t.win.ops[uint32(wc.WRID)]
	o, p, c := op.offer, op.peer, op.conn
	if o != nil {
		o.op = nil
	}
	t.freeOp(op)
	if wc.Status != uverbs.WCSuccess {
		t.SendErrors++
		if o != nil && wc.Status != uverbs.WCWRFlushErr {
			o.refused++
		}
		t.breakConn(p, c, fmt.Errorf("offer memory: %v (vendor error 0x%x)", wc.Status, wc.VendorErr))
		return // loseOffers sees to o
	}
	t.unpark(p)
	switch {
	case o == nil:
	case o.state == offerInvalidating:
		t.endOffer(e, o)
	case o.withdrawn:
		o.state = offerEnding
		t.win.ends.push(o)
	default:
		o.state = offerOpen
		e.OfferDone(now, o.Token, o.win.rkey, c.number, true)
	}
}

// unpark lets what waited for p's connection try again.
func (t *Transport) unpark(p *Peer) {
	for o := p.parked.head; o != nil; o = p.parked.head {
		o.unlink()
		if o.state == offerEnding {
			t.win.ends.push(o)
		} else {
			t.win.binds.push(o)
		}
	}
}

// loseOffers ends what was granted by the connection c, which does not work any
// more. The offers that nobody has withdrawn are made anew by the next one.
func (t *Transport) loseOffers(e *engine.Engine, now int64, c *Conn) {
	for _, o := range t.win.offers {
		if o.conn == c {
			t.loseOffer(e, now, o)
		}
	}
}

// loseOffer ends what o has granted, by way of the kernel: a queue pair that is
// broken invalidates nothing.
func (t *Transport) loseOffer(e *engine.Engine, now int64, o *offer) {
	o.unlink()
	if o.op != nil {
		o.op.offer, o.op = nil, nil
	}
	if o.win.mw != nil {
		t.win.closeErr = errors.Join(t.win.closeErr, o.win.mw.Close())
		t.win.count--
		t.care = true
	}
	o.win, o.conn = window{}, nil
	switch {
	case o.withdrawn:
		t.endOffer(e, o)
	case o.peer.detached:
		o.state = offerGone
	case o.refused >= maxBreaks:
		o.state = offerGone
		e.OfferDone(now, o.Token, 0, 0, false)
	case o.peer.broken != nil:
		o.state = offerWaiting
		o.peer.parked.push(o)
	default:
		o.state = offerWaiting
		t.win.binds.push(o)
	}
}

// disown ends what p was offered.
func (t *Transport) disown(e *engine.Engine, now int64, p *Peer) {
	for _, o := range t.win.offers {
		if o.peer == p {
			t.loseOffer(e, now, o)
		}
	}
}

// close frees the windows that are left.
func (w *windows) close() error {
	err := w.closeErr
	for _, o := range w.offers {
		if o.win.mw != nil {
			err = errors.Join(err, o.win.mw.Close())
		}
	}
	for _, f := range w.free {
		err = errors.Join(err, f.mw.Close())
	}
	*w = windows{}
	return err
}
