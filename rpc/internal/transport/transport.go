package transport

import (
	"errors"
	"fmt"
	"time"

	"github.com/rrppcc-go/rrppcc/msgbuf"
	"github.com/rrppcc-go/rrppcc/rpc/internal/engine"
	"github.com/rrppcc-go/rrppcc/uverbs"
)

const (
	grhBytes = 40 // in front of every received datagram

	sendBurst   = 32 // work requests posted at once
	signalEvery = 32 // unsignaled sends between two signaled ones

	// headBytes is the place of one header in registered memory.
	headBytes = 64
)

// Config says what queues a transport needs.
type Config struct {
	PD        *uverbs.PD
	Port      uint8
	GID       uverbs.GIDEntry // our address
	MTU       uverbs.MTU      // the port's active MTU
	LID       uint16          // the port's, on InfiniBand
	Global    bool            // peers are addressed by GID: always on RoCE
	QKey      uint32          // of the UD QP, random
	RingDepth int             // receive buffers
	SendDepth int             // send queue of the UD QP, in datagrams
	MaxReads  int             // RDMA READs in flight, of all peers together
	RdAtomic  uint8           // RDMA READs in flight per QP, by the device's limit
	MaxRead   uint32          // bytes of one RDMA READ, by the port's limit; 0 is no limit
	Break     func() bool     // says whether a READ is to break its connection; may be nil

	// Large messages are offered by memory windows, if Windows is not 0: so many
	// are there from the start, and MaxWindows at most.
	Windows, MaxWindows int
	// StaleTime is how long a pull waits for the peer to offer its message anew,
	// by the connection that is in use.
	StaleTime time.Duration
	Memory    *msgbuf.Pool // local-only memory for ring and headers
}

// Transport is an endpoint's queues. All methods belong to its owner, except
// where they say otherwise.
type Transport struct {
	cfg     Config
	channel *uverbs.CompChannel
	sendCQ  *uverbs.CQ // UD sends and RC READs
	recvCQ  *uverbs.CQ // UD receives
	ud      *uverbs.QP
	inline  int // bytes

	ring      msgbuf.Buf
	slotBytes int
	slots     [][]byte // by slot, whole
	recvSGE   []uverbs.SGE
	repost    []uint32 // slots to give back to the receive queue

	heads    msgbuf.Buf
	headMask uint32
	headNext uint32
	since    int // unsignaled sends since the last signaled one
	owed     int // sends with a token that have not completed

	sendArmed bool // the last Arm armed sendCQ

	peers      []*Peer // by index; nil = free
	pulls      []*pull // by index
	sparePulls *pull
	reads      int    // chunks in flight
	chunk      uint64 // bytes of a READ, at most
	activeHead *Peer  // peers for which a chunk can be posted
	activeTail *Peer
	broken     []*Peer // peers whose pulls wait for a new connection
	stale      []*pull // that wait for a new offer
	staled     bool    // there is a new one of these
	care       bool    // a peer is broken or detached, or an old connection has ended

	win windows

	wcs     [64]uverbs.WC
	rx      [64]engine.Rx
	wrs     [sendBurst]uverbs.SendWR
	sges    [sendBurst][2]uverbs.SGE
	recvWRs [64]uverbs.RecvWR
	readWR  [1]uverbs.SendWR
	readSGE [1]uverbs.SGE

	// Stats of the transport.
	RecvErrors, SendErrors uint64
	Chunks                 uint64 // RDMA READs posted
}

// New creates the queues and fills the receive ring. On error it leaves
// nothing behind.
func New(cfg Config) (t *Transport, err error) {
	if cfg.Global {
		cfg.LID = 0
	}
	t = &Transport{cfg: cfg, chunk: chunkBytes}
	if cfg.MaxRead != 0 {
		t.chunk = min(t.chunk, uint64(cfg.MaxRead))
	}
	t.growPulls()
	ops := 0
	if cfg.Windows > 0 {
		ops = cfg.MaxReads
		t.win.init(ops)
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, t.Close())
			t = nil
		}
	}()
	c := cfg.PD.Context()
	if t.channel, err = c.CreateCompChannel(); err != nil {
		return
	}
	// Every completion has its place: the signaled sends, all READs, binds and
	// invalidations, and what a QP flushes when it dies.
	if t.sendCQ, err = c.CreateCQ(&uverbs.CQInitAttr{Depth: cfg.SendDepth + 2*cfg.MaxReads + ops, Channel: t.channel}); err != nil {
		return
	}
	if t.recvCQ, err = c.CreateCQ(&uverbs.CQInitAttr{Depth: cfg.RingDepth, Channel: t.channel}); err != nil {
		return
	}
	attr := &uverbs.QPInitAttr{Type: uverbs.QPTypeUD, SendCQ: t.sendCQ, RecvCQ: t.recvCQ, Cap: uverbs.QPCap{
		MaxSendWR: uint32(cfg.SendDepth), MaxRecvWR: uint32(cfg.RingDepth), MaxSendSGE: 2, MaxRecvSGE: 1, MaxInline: 188,
	}}
	if t.ud, err = cfg.PD.CreateQP(attr); err != nil {
		return
	}
	t.inline = int(attr.Cap.MaxInline)
	if err = t.startUD(); err != nil {
		return
	}
	if err = t.allocRing(); err != nil {
		return
	}
	if err = t.fillRing(); err != nil {
		return
	}
	mws, err := t.NewWindows(cfg.Windows)
	t.AddWindows(mws)
	return t, err
}

func (t *Transport) startUD() error {
	const init = uverbs.AttrState | uverbs.AttrPKeyIndex | uverbs.AttrPort | uverbs.AttrQKey
	if err := t.ud.Modify(&uverbs.QPAttr{State: uverbs.QPStateInit, Port: t.cfg.Port, QKey: t.cfg.QKey}, init); err != nil {
		return err
	}
	if err := t.ud.Modify(&uverbs.QPAttr{State: uverbs.QPStateRTR}, uverbs.AttrState); err != nil {
		return err
	}
	return t.ud.Modify(&uverbs.QPAttr{State: uverbs.QPStateRTS}, uverbs.AttrState|uverbs.AttrSQPSN)
}

func (t *Transport) allocRing() (err error) {
	n := t.cfg.RingDepth
	t.slotBytes = (grhBytes + t.cfg.MTU.Bytes() + 63) &^ 63
	if t.ring, err = t.cfg.Memory.Alloc(n * t.slotBytes); err != nil {
		return err
	}
	t.slots = make([][]byte, n)
	t.recvSGE = make([]uverbs.SGE, n)
	t.repost = make([]uint32, 0, n)
	mem := t.ring.Bytes()
	for i := range n {
		off := i * t.slotBytes
		t.slots[i] = mem[off : off+t.slotBytes : off+t.slotBytes]
		t.recvSGE[i] = uverbs.SGE{Addr: t.ring.Addr() + uint64(off), Length: uint32(grhBytes + t.cfg.MTU.Bytes()), LKey: t.ring.LKey()}
		t.repost = append(t.repost, uint32(i))
	}
	heads := 1
	for heads < int(t.ud.Cap().MaxSendWR) {
		heads *= 2
	}
	t.headMask = uint32(heads - 1)
	t.heads, err = t.cfg.Memory.Alloc(heads * headBytes)
	return err
}

// fillRing posts the receive buffers in repost.
func (t *Transport) fillRing() error {
	for len(t.repost) > 0 {
		n := min(len(t.repost), len(t.recvWRs))
		for i, slot := range t.repost[:n] {
			t.recvWRs[i] = uverbs.RecvWR{WRID: uint64(slot), SGList: t.recvSGE[slot : slot+1 : slot+1]}
		}
		posted, err := t.ud.PostRecv(t.recvWRs[:n])
		t.repost = t.repost[:copy(t.repost, t.repost[posted:])]
		if err != nil {
			return err
		}
	}
	return nil
}

// Burst returns how many datagrams Poll receives at once at most.
func (t *Transport) Burst() int { return len(t.rx) }

// MaxSmall returns the payload bytes that fit behind the engine's header.
func (t *Transport) MaxSmall() int { return t.cfg.MTU.Bytes() - engine.HeaderBytes }

// MaxInline returns how many bytes of a datagram are copied when it is posted.
func (t *Transport) MaxInline() int { return t.inline }

// Channel returns the completion channel, for whoever waits.
func (t *Transport) Channel() *uverbs.CompChannel { return t.channel }

// Local returns what a peer must know of this end.
func (t *Transport) Local() Address {
	return Address{GID: t.cfg.GID.GID, LID: t.cfg.LID, QPN: t.ud.QPN(), QKey: t.cfg.QKey, MTU: t.cfg.MTU}
}

// Arm asks for an event on the channel at the next completion that matters: an
// event costs a system call or two, and wakes a goroutine. What completed before
// must be polled once more, and then Unarmed be asked.
func (t *Transport) Arm() error {
	if err := t.recvCQ.Arm(false); err != nil {
		return err
	}
	t.sendArmed = t.busy()
	if !t.sendArmed {
		return nil
	}
	return t.sendCQ.Arm(false)
}

// busy reports whether something is posted whose completion somebody waits for.
// Others are looked at when the owner is awake for another reason.
func (t *Transport) busy() bool { return t.reads+t.win.flying+t.owed > 0 }

// Unarmed reports that something was posted after Arm, of whose completion no
// event will tell: the owner must not sleep.
func (t *Transport) Unarmed() bool { return !t.sendArmed && t.busy() }

// Poll moves completions into the engine and returns how many there were. An
// error means that the device does not work any more.
//
// now may be old; where there is a completion, the time is clock's.
func (t *Transport) Poll(e *engine.Engine, now int64, clock func() int64) (int, error) {
	sent, err := t.pollSend(e, now)
	if err != nil {
		return sent, err
	}
	n, err := t.recvCQ.Poll(t.wcs[:])
	k := 0
	for i := range t.wcs[:n] {
		wc := &t.wcs[i]
		slot := uint32(wc.WRID)
		if wc.Status != uverbs.WCSuccess || wc.ByteLen < grhBytes || int(wc.ByteLen) > t.slotBytes || int(slot) >= len(t.slots) {
			t.RecvErrors++
			if wc.Status != uverbs.WCSuccess && err == nil {
				err = fmt.Errorf("receive on the UD QP: %v (vendor error 0x%x)", wc.Status, wc.VendorErr)
			} else if int(slot) < len(t.slots) {
				t.repost = append(t.repost, slot)
			}
			continue
		}
		t.rx[k] = engine.Rx{Data: t.slots[slot][grhBytes:wc.ByteLen], Slot: slot, SrcQPN: wc.SrcQP}
		k++
	}
	if sent+n > 0 {
		now = clock()
	}
	e.Receive(now, t.rx[:k])
	for i := range t.rx[:k] {
		if !t.rx[i].Held {
			t.repost = append(t.repost, t.rx[i].Slot)
		}
	}
	return sent + n, err
}

// readBit marks the WRID of a READ: readBit | index of the pull. A UD send has
// the token alone.
const readBit = 1 << 63

func (t *Transport) pollSend(e *engine.Engine, now int64) (int, error) {
	n, err := t.sendCQ.Poll(t.wcs[:])
	for i := range t.wcs[:n] {
		wc := &t.wcs[i]
		switch {
		case wc.WRID&readBit != 0:
			t.chunkDone(e, now, wc)
		case wc.WRID&winBit != 0:
			t.opDone(e, now, wc)
		default:
			if wc.Status != uverbs.WCSuccess {
				t.SendErrors++
				if err == nil {
					err = fmt.Errorf("send on the UD QP: %v (vendor error 0x%x)", wc.Status, wc.VendorErr)
				}
			}
			if token := uint32(wc.WRID); token != 0 {
				t.owed--
				e.TxDone(token)
			}
		}
	}
	return n, err
}

// Flush posts everything that the engine wants posted, until it wants no more,
// and gives receive buffers back. It reports an error if the UD QP is broken.
//
// clock is asked for the time at most once per burst, and only where a datagram
// of it wants to know.
func (t *Transport) Flush(e *engine.Engine, now int64, clock func() int64) error {
	// Callbacks of ended calls may start new ones: a few rounds are enough,
	// what is left waits for the next Flush.
	for range 4 {
		if e.Unstamped() {
			e.Stamp(clock())
		}
		if len(e.Tx) > 0 {
			if err := t.postTx(e, now); err != nil {
				return err
			}
		}
		t.postOffers(e, now)
		if t.win.flying > 0 { // most are done by now, and the engine may go on
			if _, err := t.pollSend(e, now); err != nil {
				return err
			}
		}
		t.queueReads(e, now)
		t.postReads(e, now)
		e.Flushed()
		if e.Idle() {
			break
		}
	}
	if len(e.Released) > 0 {
		t.repost = append(t.repost, e.Released...)
		e.Released = e.Released[:0]
	}
	if len(t.repost) > 0 {
		return t.fillRing()
	}
	return nil
}
