package engine

import (
	"math"

	"github.com/rrppcc-go/rrppcc/msgbuf"
	"github.com/rrppcc-go/rrppcc/rpc/congestion"
)

// Config is fixed when the engine is made. All times are nanoseconds of the
// owner's clock.
type Config struct {
	Window    int   // slots of a session, 1..64
	MaxInline int   // a datagram of at most this many bytes is copied when it is posted
	MaxSmall  int   // payload bytes of a datagram behind the header
	Threshold int   // bytes of the longest message that goes in datagrams, one or several; at least MaxSmall
	MaxMsg    int   // bytes of the longest message
	MaxPulled int64 // bytes of requests of more than a datagram that are received or handled at once; 0 is no limit

	InitialRTO, MinRTO, MaxRTO int64 // retransmission timeout
	CancelGrace                int64 // how long a peer may keep a cancelled request's buffer

	// Offers says that the transport grants peers each large message by itself,
	// and can take it back, which it does OfferGrace after a peer was asked to let
	// it go. Buffers that have a remote key are excepted: by that their peers
	// read, and what a peer may be reading only its word gives back.
	Offers     bool
	OfferGrace int64

	// Congestion makes the controllers of clients' sessions; nil is no congestion
	// control. Burst is how many datagrams the owner hands to Receive at once at
	// most: one with fewer has emptied the receive ring. 0 is no limit.
	Congestion congestion.Control
	Burst      int

	// Small allocates memory that no peer can reach, Large memory that peers
	// may read. Buffers of another registrar are refused.
	Small, Large *msgbuf.Pool
	Registrar    msgbuf.Registrar

	// PeerStuck is called when a peer kept a cancelled request for longer than
	// CancelGrace. The owner must take the peer's access away and then call
	// FailDest. For what was offered it is not called.
	PeerStuck func(dest uint32)
	// Drop, which may be nil, is asked for every datagram that is received
	// whether to throw it away.
	Drop func() bool
	// PeerBroken is called when a server tells that it cannot pull from us on
	// the connection of that generation. It may come often, and late.
	PeerBroken func(dest, generation uint32)
	// Trace, which may be nil, is called when a request ends, at the client, and
	// when it is about to be answered, at the server. It must call nothing of the
	// engine, and the Trace is only its own until it returns.
	Trace func(*Trace)
	// Panicked is called after a handler panicked, with what recover gave.
	Panicked func(reqType uint8, v any)
}

// Mem is a piece of registered memory.
type Mem struct {
	Addr uint64
	LKey uint32
	Len  uint32
}

// Tx is a datagram to send: Head[:HeadLen], and behind it Data.
//
// With Token 0 the transport copies Data while it posts (it fits
// Config.MaxInline). Otherwise it answers TxDone(Token) when the NIC no longer
// reads Data, sent or not.
type Tx struct {
	Dest    uint32
	Token   uint32
	HeadLen uint32
	Head    [HeaderBytes + ControlBytes]byte
	Data    Mem
}

// Read is a message to pull by RDMA READ, in as many pieces as the transport
// likes. It answers ReadDone(Token) when all of it has arrived, or never will,
// and no device touches Local any more. Until then Wanted(Token) tells whether
// it is worth going on.
//
// Where Conn is not 0, RKey works by the connection of that number alone; when
// that has been replaced, Key(Token) has another one, as soon as the peer has
// sent it.
type Read struct {
	Dest   uint32
	Token  uint32
	RKey   uint32
	Conn   uint32
	Remote uint64
	Local  uint64
	LKey   uint32
	Len    uint64
}

// Rx is a received datagram in slot Slot of the receive ring. If the engine
// sets Held, the slot stays in use until it is in Released.
type Rx struct {
	Data   []byte
	Slot   uint32
	SrcQPN uint32
	Held   bool
}

// Stats counts what happened. Fields only grow.
type Stats struct {
	TxDatagrams, RxDatagrams uint64
	TxBytes, RxBytes         uint64 // payload by datagram
	Reads, ReadBytes         uint64 // messages pulled
	Requests, Responses      uint64 // calls started; calls ended with a response
	Handled                  uint64 // handlers run
	Failed                   uint64 // calls ended with an error
	Assembled                uint64 // messages put together from several datagrams
	Retransmits, Duplicates  uint64
	DropShort, DropVersion   uint64 // no header; unknown version or kind
	DropSession, DropToken   uint64 // no such session; wrong token or sender
	DropStale, DropBusy      uint64 // old request number; slot still working on an older request
	DropMalformed            uint64
	DropFault                uint64 // Config.Drop said so
	Paced                    uint64 // requests that waited for their turn by congestion control
	Congested                uint64 // times that a session began to be paced
	Losses                   uint64 // requests or answers that congestion control saw lost
}

// Engine is the protocol state of one endpoint. It belongs to one goroutine.
type Engine struct {
	cfg      Config
	handlers [256]Handler
	places   [256]func(n int) (msgbuf.Buf, error) // of large requests, nil for the usual
	sessions []*Session                           // by index
	free     []uint32                             // indices without session
	wheel    wheel
	refs     []ref
	pulled   int64 // bytes of requests of more than a datagram, from accept to releaseRequest
	freeRefs []uint32
	now      int64
	drained  int64  // when the receive ring was seen empty last
	arrived  int64  // what is received came after that
	pace     *wheel // of sessions that wait for their turn; nil without congestion control
	held     []heldTx
	unposted []*clientSlot // requests in Tx that want to know when they are posted
	measured int64         // when something of that was posted last

	// Tx, Reads, Offers, Withdrawn and Released are what the owner has to do.
	// Between two calls of Flushed it posts Tx, which Flushed empties, and takes
	// over the others, which it empties itself. TxDone, ReadDone and OfferDone
	// never add to them, every other call may.
	Tx        []Tx
	Reads     []Read
	Offers    []Offer
	Withdrawn []uint32 // tokens of offers, of those in Offers too
	Released  []uint32

	trace Trace // for Config.Trace

	flushes   uint64        // calls of Flushed
	finishing []*clientSlot // calls that end once Tx is drained, oldest first
	finished  int           // how many of finishing have been served
	freeing   []msgbuf.Buf  // buffers that are freed once Tx is drained

	readsDone  []readResult // oldest first
	readsEnded int          // how many of readsDone have been served

	offersDone []offerResult // oldest first

	Stats Stats
}

// ref counts what the NIC still does with a buffer.
type ref struct {
	count    int32
	released bool        // the owner below let go
	buf      msgbuf.Buf  // freed with the last count after release
	client   *clientSlot // told when count gets to 0
	server   *serverSlot // READ into a server's request buffer
	read     bool

	offer     bool // the count is that of an offer
	withdrawn bool
	key       Control // of an offer, or of the message that a READ is of
}

// New returns an engine whose clock stands at now.
func New(cfg Config, now int64) *Engine {
	cfg.Threshold = max(cfg.Threshold, cfg.MaxSmall)
	e := &Engine{cfg: cfg, now: now}
	if cfg.Burst <= 0 {
		e.cfg.Burst = math.MaxInt
	}
	e.drained, e.measured = now, math.MinInt64/2
	e.wheel.init(now, false)
	if cfg.Congestion != nil {
		e.pace = new(wheel)
		e.pace.init(now, true)
	}
	e.refs = make([]ref, 1, 64) // token 0 means none
	return e
}

// Handle binds fn to a request type; nil unbinds it.
func (e *Engine) Handle(reqType uint8, fn Handler) { e.handlers[reqType] = fn }

// Place has large requests of a type pulled into buffers that fn gives, which the
// engine frees; nil undoes it.
func (e *Engine) Place(reqType uint8, fn func(n int) (msgbuf.Buf, error)) { e.places[reqType] = fn }

// Receive takes a burst of datagrams.
func (e *Engine) Receive(now int64, burst []Rx) {
	e.now = now
	e.endOffers()

	since := e.drained
	if len(burst) < e.cfg.Burst {
		e.drained = now
	}
	e.endReads()
	for i := range burst {
		rx := &burst[i]
		rx.Held = false
		e.arrived = since // callbacks may have run a turn of the loop
		e.Stats.RxDatagrams++
		if e.cfg.Drop != nil && e.cfg.Drop() {
			e.Stats.DropFault++
			continue
		}
		if len(rx.Data) < HeaderBytes {
			e.Stats.DropShort++
			continue
		}
		w0, w1 := headerWords(rx.Data)
		if !headerOK(w0) {
			e.Stats.DropVersion++
			continue
		}
		h := headerOf(w0, w1)
		index := uint32(w0 >> 32) // not from h, which is in memory
		if int(index) >= len(e.sessions) || e.sessions[index] == nil {
			e.Stats.DropSession++
			continue
		}
		s := e.sessions[index]
		if uint32(w1) != s.token || rx.SrcQPN != s.peerQPN || !s.up {
			e.Stats.DropToken++
			continue
		}
		if int(h.Slot) >= e.cfg.Window {
			e.Stats.DropMalformed++
			continue
		}
		s.received++
		body := rx.Data[HeaderBytes:]
		e.Stats.RxBytes += uint64(len(body))
		if s.client {
			s.fromServer(&h, body)
		} else {
			s.fromClient(&h, body, rx)
		}
	}
}

// Tick fires the timers that are due.
func (e *Engine) Tick(now int64) {
	e.now = now
	e.wheel.advance(now)
	if e.pace != nil {
		e.pace.advance(now)
	}
}

// NextTimer returns when Tick is wanted next, or false if no timer is set.
func (e *Engine) NextTimer() (int64, bool) {
	at, ok := e.wheel.next()
	if turn, paced := e.NextTurn(); paced && (!ok || turn < at) {
		return turn, true
	}
	return at, ok
}

// NextTurn is NextTimer for requests that wait for their turn alone, which want
// Tick within microseconds.
func (e *Engine) NextTurn() (int64, bool) {
	if e.pace == nil {
		return 0, false
	}
	return e.pace.next()
}

// Flushed tells that everything in Tx was posted or dropped. It resets Tx,
// frees buffers and ends calls that waited for it; their callbacks may fill Tx
// again, and may call Flushed again once that is posted.
func (e *Engine) Flushed() {
	e.flushes++
	e.Tx = e.Tx[:0]
	e.held, e.unposted = e.held[:0], e.unposted[:0]
	for i := range e.freeing {
		e.freeing[i].Free()
	}
	e.freeing = e.freeing[:0]
	// What callbacks add waits for the next flush. A Flushed within a callback
	// moves e.finished and e.flushes on, and this loop with them.
	for e.finished < len(e.finishing) {
		sl := e.finishing[e.finished]
		if sl.sent == e.flushes {
			break
		}
		e.finished++
		sl.finishing = false
		sl.tryFinish()
	}
	n := copy(e.finishing, e.finishing[e.finished:])
	clear(e.finishing[n:])
	e.finishing = e.finishing[:n]
	e.finished = 0
	e.endOffers()
	e.endReads()
}

// Idle reports that nothing waits for Flushed.
func (e *Engine) Idle() bool {
	return len(e.Tx) == 0 && len(e.Reads) == 0 && len(e.Offers) == 0 && len(e.Withdrawn) == 0 &&
		len(e.finishing) == e.finished && len(e.freeing) == 0 && len(e.readsDone) == e.readsEnded && len(e.offersDone) == 0
}

func (e *Engine) newRef() uint32 {
	if n := len(e.freeRefs); n > 0 {
		id := e.freeRefs[n-1]
		e.freeRefs = e.freeRefs[:n-1]
		return id
	}
	e.refs = append(e.refs, ref{})
	return uint32(len(e.refs) - 1)
}

func (e *Engine) dropRef(id uint32) {
	e.refs[id] = ref{}
	e.freeRefs = append(e.freeRefs, id)
}

// TxDone tells that the NIC no longer reads the data of a Tx. What follows from
// it follows in the next Flushed, so TxDone may be called while Tx is posted.
func (e *Engine) TxDone(token uint32) {
	if token == 0 || int(token) >= len(e.refs) || e.refs[token].count <= 0 || e.refs[token].read {
		return
	}
	r := &e.refs[token]
	r.count--
	if r.count > 0 {
		return
	}
	if sl := r.client; sl != nil {
		if sl.state == slotDraining {
			sl.end(sl.err)
		}
		return
	}
	if r.released {
		e.freeing = append(e.freeing, r.buf)
		e.dropRef(token)
	}
}

// readResult is a READ that has ended.
type readResult struct {
	token uint32
	ok    bool
}

// ReadDone tells the outcome of a Read. What follows from it follows in the
// next Receive or Flushed, so ReadDone may be called while Tx and Reads are
// posted.
func (e *Engine) ReadDone(now int64, token uint32, ok bool) {
	e.now = now
	if token == 0 || int(token) >= len(e.refs) || e.refs[token].count <= 0 || !e.refs[token].read {
		return
	}
	e.refs[token].count = 0
	e.readsDone = append(e.readsDone, readResult{token, ok})
}

// Wanted reports whether anybody still waits for the Read: a request that was
// given up needs no more of it.
func (e *Engine) Wanted(token uint32) bool {
	if int(token) >= len(e.refs) || !e.refs[token].read {
		return false
	}
	r := &e.refs[token]
	if r.client != nil {
		return r.client.err == nil
	}
	return r.server.s.err == nil && !r.server.cancelled
}

// endReads lets the slots go on whose READs have ended. What they call may
// call endReads.
func (e *Engine) endReads() {
	for e.readsEnded < len(e.readsDone) {
		d := e.readsDone[e.readsEnded]
		e.readsEnded++
		cl, sv := e.refs[d.token].client, e.refs[d.token].server
		e.dropRef(d.token)
		if cl != nil {
			cl.readDone(d.ok)
		} else {
			sv.readDone(d.ok)
		}
	}
	e.readsDone, e.readsEnded = e.readsDone[:0], 0
}

// Abandon tells that the queues are gone and nothing touches memory any more:
// Tx, Reads and Offers are dropped, and whatever was posted is over. Calls that waited
// for it end. All sessions must have failed.
func (e *Engine) Abandon(now int64) {
	for more := true; more || !e.Idle(); {
		more = false
		for token := range e.refs {
			switch r := &e.refs[token]; {
			case r.count <= 0:
			case r.read:
				e.ReadDone(now, uint32(token), false)
				more = true
			default:
				r.count = 1
				e.TxDone(uint32(token))
				more = true
			}
		}
		e.Reads, e.Offers, e.Withdrawn = e.Reads[:0], e.Offers[:0], e.Withdrawn[:0]
		e.Flushed()
	}
}

// push appends a Tx without data for session s with the header of kind filled
// in, and returns it.
func (e *Engine) push(s *Session, kind Kind, typ, slot uint8, seq uint32) *Tx {
	n := len(e.Tx)
	if n == cap(e.Tx) {
		e.Tx = append(e.Tx, Tx{})
	} else {
		e.Tx = e.Tx[:n+1] // what is behind HeadLen may stay from the last use
	}
	tx := &e.Tx[n]
	tx.Dest, tx.Token, tx.HeadLen, tx.Data = s.dest, 0, HeaderBytes, Mem{}
	putHeader((*[HeaderBytes]byte)(tx.Head[:]), kind, typ, slot, s.remote, s.remoteToken, seq)
	e.Stats.TxDatagrams++
	return tx
}

// data adds buf's bytes to tx. ref is the token that counts the NIC's use of
// buf, 0 if there is none yet; the token is returned.
func (e *Engine) data(tx *Tx, buf msgbuf.Buf, token uint32) uint32 {
	return e.dataAt(tx, buf, 0, buf.Len(), token)
}

// dataAt is data for n bytes of buf at off.
func (e *Engine) dataAt(tx *Tx, buf msgbuf.Buf, off, n int, token uint32) uint32 {
	if n == 0 {
		return token
	}
	tx.Data = Mem{Addr: buf.Addr() + uint64(off), LKey: buf.LKey(), Len: uint32(n)}
	e.Stats.TxBytes += uint64(n)
	if int(tx.HeadLen)+n <= e.cfg.MaxInline && buf.Mapped() {
		return token
	}
	if token == 0 {
		token = e.newRef()
	}
	e.refs[token].count++
	tx.Token = token
	return token
}

// pushRead appends a READ of c into buf, and returns its token.
func (e *Engine) pushRead(s *Session, c *Control, buf msgbuf.Buf, cl *clientSlot, sv *serverSlot) uint32 {
	token := e.newRef()
	e.refs[token] = ref{count: 1, client: cl, server: sv, read: true, key: *c}
	e.Reads = append(e.Reads, Read{Dest: s.dest, Token: token, RKey: c.RKey, Conn: c.Conn, Remote: c.Addr, Local: buf.Addr(), LKey: buf.LKey(), Len: c.Len})
	e.Stats.Reads++
	e.Stats.ReadBytes += c.Len
	return token
}

// freeLater frees buf once Tx is drained.
func (e *Engine) freeLater(buf msgbuf.Buf) {
	if buf.Valid() {
		e.freeing = append(e.freeing, buf)
	}
}

// readable copies a local-only buf that goes in datagrams by this endpoint's
// measure, yet is too long for those of the session at hand, to where the peer
// can read it.
func (e *Engine) readable(buf msgbuf.Buf) (msgbuf.Buf, error) {
	if buf.Len() > e.cfg.Threshold {
		return msgbuf.Buf{}, ErrBuffer
	}
	if !buf.Mapped() {
		return msgbuf.Buf{}, ErrUnmapped
	}
	c, err := e.cfg.Large.Alloc(buf.Len())
	if err != nil {
		return msgbuf.Buf{}, err
	}
	copy(c.Bytes(), buf.Bytes())
	return c, nil
}

// Alloc returns a buffer of n bytes that may carry a message of that size to
// any session: memory that peers can read only where n asks for it.
func (e *Engine) Alloc(n int) (msgbuf.Buf, error) {
	if n <= e.cfg.Threshold {
		return e.cfg.Small.Alloc(n)
	}
	return e.cfg.Large.Alloc(n)
}
