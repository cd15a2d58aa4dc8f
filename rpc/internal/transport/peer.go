package transport

import (
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"math"

	"github.com/rrppcc-go/rrppcc/rpc/internal/engine"
	"github.com/rrppcc-go/rrppcc/uverbs"
)

// Queue pair attributes of the RC connection. A READ whose peer is gone fails
// after about RetryCnt+1 times 4.096 us << timeout, that is half a second to a
// few seconds by the device.
const (
	rcTimeout     = 14 // 67 ms
	rcRetryCnt    = 7
	rcRNRRetry    = 7
	rcMinRNRTimer = 12 // 0.64 ms
	hopLimit      = 64

	// rcDepth is how many READs are posted to one peer at once.
	rcDepth = 32
)

// Address is what a peer must know of an endpoint, and of one RC queue pair,
// to reach them.
type Address struct {
	GID   uverbs.GID
	LID   uint16
	QPN   uint32 // UD
	QKey  uint32 // UD
	RCQPN uint32
	RCPSN uint32 // first PSN that this side sends
	MTU   uverbs.MTU
}

// Peer is one remote endpoint: an address handle for datagrams and a connected
// RC queue pair for READs.
type Peer struct {
	t      *Transport
	rc     *uverbs.QP
	psn    uint32
	ah     *uverbs.AH
	remote Address

	// Of the transport's owner, once attached.
	index    uint32
	reads    int           // in flight
	waiting  []engine.Read // for a place in the queue
	queued   bool          // in Transport.waitingPeers
	detached bool
	broken   error
}

// NewPeer creates the RC queue pair for a peer whose address is not known yet.
// Any goroutine may call it.
func (t *Transport) NewPeer() (*Peer, error) {
	p := &Peer{t: t, psn: random24()}
	rc, err := t.cfg.PD.CreateQP(&uverbs.QPInitAttr{Type: uverbs.QPTypeRC, SendCQ: t.sendCQ, RecvCQ: t.sendCQ,
		Cap: uverbs.QPCap{MaxSendWR: rcDepth, MaxRecvWR: 1, MaxSendSGE: 1, MaxRecvSGE: 1}})
	if err != nil {
		return nil, err
	}
	p.rc = rc
	attr := &uverbs.QPAttr{State: uverbs.QPStateInit, Port: t.cfg.Port, AccessFlags: uverbs.AccessRemoteRead}
	if err := rc.Modify(attr, uverbs.AttrState|uverbs.AttrPKeyIndex|uverbs.AttrPort|uverbs.AttrAccessFlags); err != nil {
		return nil, errors.Join(err, p.Close())
	}
	return p, nil
}

// Local returns what the peer must know of this end.
func (p *Peer) Local() Address {
	a := p.t.Local()
	a.RCQPN, a.RCPSN = p.rc.QPN(), p.psn
	return a
}

// Connect connects the RC queue pair to remote and makes the address handle.
// It may wait for address resolution. Any goroutine may call it, once.
func (p *Peer) Connect(remote Address) error {
	t := p.t
	if remote.MTU.Bytes() == 0 {
		return fmt.Errorf("peer's MTU %d is unknown", remote.MTU)
	}
	p.remote = remote
	av := uverbs.AHAttr{DGID: remote.GID, SGIDIndex: uint8(t.cfg.GID.Index), HopLimit: hopLimit, IsGlobal: t.cfg.Global, DLID: remote.LID, Port: t.cfg.Port}
	ah, err := t.cfg.PD.CreateAH(&av)
	if err != nil {
		return err
	}
	p.ah = ah
	const rtr = uverbs.AttrState | uverbs.AttrAV | uverbs.AttrPathMTU | uverbs.AttrDestQPN | uverbs.AttrRQPSN | uverbs.AttrMaxDestRdAtomic | uverbs.AttrMinRNRTimer
	attr := &uverbs.QPAttr{State: uverbs.QPStateRTR, AV: av, PathMTU: min(t.cfg.MTU, remote.MTU), DestQPN: remote.RCQPN, RQPSN: remote.RCPSN,
		MaxDestRdAtomic: t.cfg.RdAtomic, MinRNRTimer: rcMinRNRTimer}
	if err := p.rc.Modify(attr, rtr); err != nil {
		return err
	}
	const rts = uverbs.AttrState | uverbs.AttrTimeout | uverbs.AttrRetryCnt | uverbs.AttrRNRRetry | uverbs.AttrSQPSN | uverbs.AttrMaxRdAtomic
	return p.rc.Modify(&uverbs.QPAttr{State: uverbs.QPStateRTS, Timeout: rcTimeout, RetryCnt: rcRetryCnt, RNRRetry: rcRNRRetry,
		SQPSN: p.psn, MaxRdAtomic: t.cfg.RdAtomic}, rts)
}

// MaxSmall returns the payload bytes of a datagram that both ends take.
func (p *Peer) MaxSmall() int {
	return min(p.t.cfg.MTU, p.remote.MTU).Bytes() - engine.HeaderBytes
}

// RemoteQPN returns the QP that the peer's datagrams come from.
func (p *Peer) RemoteQPN() uint32 { return p.remote.QPN }

// Index returns the number by which the engine knows an attached peer.
func (p *Peer) Index() uint32 { return p.index }

// Broken returns why the RC connection does not work any more, or nil.
func (p *Peer) Broken() error { return p.broken }

// Close destroys a peer that is not attached.
func (p *Peer) Close() error {
	var err error
	if p.rc != nil {
		err = p.rc.Close()
	}
	if p.ah != nil {
		err = errors.Join(err, p.ah.Close())
	}
	return err
}

// fail notes that the RC connection is broken.
func (p *Peer) fail(err error) {
	if p.broken == nil && !p.detached {
		p.broken = err
		p.t.care = true
	}
}

// Attach gives a connected peer an index.
func (t *Transport) Attach(p *Peer) uint32 {
	for i, q := range t.peers {
		if q == nil {
			p.index = uint32(i)
			t.peers[i] = p
			return p.index
		}
	}
	p.index = uint32(len(t.peers))
	t.peers = append(t.peers, p)
	return p.index
}

// peer returns the attached peer with that index, or nil.
func (t *Transport) peer(index uint32) *Peer {
	if int(index) >= len(t.peers) || t.peers[index] == nil || t.peers[index].detached {
		return nil
	}
	return t.peers[index]
}

// Disconnect takes the peer's access away: when it returns, the device answers
// no READ of the peer any more. READs in flight end with an error. The index
// stays taken until they have.
func (t *Transport) Disconnect(e *engine.Engine, now int64, p *Peer) error {
	if p.detached {
		return nil
	}
	p.detached = true
	t.care = true
	err := p.rc.Modify(&uverbs.QPAttr{State: uverbs.QPStateErr}, uverbs.AttrState)
	for i := range p.waiting {
		e.ReadDone(now, p.waiting[i].Token, false)
	}
	p.waiting = nil
	return err
}

// Reap destroys disconnected peers that have no READ in flight.
func (t *Transport) Reap() error {
	var err error
	t.care = false
	for i, p := range t.peers {
		if p == nil || !p.detached {
			continue
		}
		if p.reads > 0 {
			t.care = true
			continue
		}
		t.peers[i] = nil
		err = errors.Join(err, p.Close())
	}
	return err
}

// BrokenPeers calls fn for every attached peer whose RC connection broke.
func (t *Transport) BrokenPeers(fn func(*Peer)) {
	for _, p := range t.peers {
		if p != nil && p.broken != nil && !p.detached {
			fn(p)
		}
	}
}

// queue puts p on the list of peers with waiting READs.
func (t *Transport) queue(p *Peer) {
	if !p.queued {
		p.queued = true
		t.waitingPeers = append(t.waitingPeers, p)
	}
}

// postReads posts waiting READs as far as the queues have room.
func (t *Transport) postReads(e *engine.Engine, now int64) {
	keep := t.waitingPeers[:0]
	for _, p := range t.waitingPeers {
		for len(p.waiting) > 0 && p.reads < rcDepth && t.reads < t.cfg.MaxReads {
			r := &p.waiting[0]
			ok := p.broken == nil && r.Len <= math.MaxInt32
			if ok {
				ok = t.postRead(p, r)
			}
			token := r.Token
			p.waiting = p.waiting[:copy(p.waiting, p.waiting[1:])]
			if !ok {
				e.ReadDone(now, token, false)
			}
		}
		if len(p.waiting) > 0 {
			keep = append(keep, p)
		} else {
			p.queued = false
		}
	}
	clear(t.waitingPeers[len(keep):])
	t.waitingPeers = keep
}

func (t *Transport) postRead(p *Peer, r *engine.Read) bool {
	t.readSGE[0] = uverbs.SGE{Addr: r.Local, Length: uint32(r.Len), LKey: r.LKey}
	t.readWR[0] = uverbs.SendWR{WRID: readBit | uint64(p.index)<<32 | uint64(r.Token), Opcode: uverbs.WRRDMARead, Flags: uverbs.SendSignaled,
		SGList: t.readSGE[:], RemoteAddr: r.Remote, RKey: r.RKey}
	if _, err := p.rc.PostSend(t.readWR[:]); err != nil {
		p.fail(fmt.Errorf("post RDMA READ: %w", err))
		return false
	}
	p.reads++
	t.reads++
	return true
}

// Close destroys everything. What is in flight is dropped.
func (t *Transport) Close() error {
	var errs []error
	for i, p := range t.peers {
		if p != nil {
			errs = append(errs, p.Close())
			t.peers[i] = nil
		}
	}
	if t.ud != nil {
		errs = append(errs, t.ud.Close())
	}
	for _, cq := range []*uverbs.CQ{t.sendCQ, t.recvCQ} {
		if cq != nil {
			errs = append(errs, cq.Close())
		}
	}
	if t.channel != nil {
		errs = append(errs, t.channel.Close())
	}
	t.ring.Free()
	t.heads.Free()
	return errors.Join(errs...)
}

func random24() uint32 {
	var b [4]byte
	rand.Read(b[:])
	return binary.LittleEndian.Uint32(b[:]) & 0xffffff
}

// Remote returns the address that the peer was connected to.
func (p *Peer) Remote() Address { return p.remote }

// NeedsCare reports that a peer broke, or waits to be destroyed.
func (t *Transport) NeedsCare() bool { return t.care }
