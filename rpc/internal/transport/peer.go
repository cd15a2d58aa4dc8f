package transport

import (
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"

	"github.com/rrppcc-go/rrppcc/rpc/internal/engine"
	"github.com/rrppcc-go/rrppcc/uverbs"
)

// Address is what a peer must know of an endpoint, and of one RC queue pair,
// to reach them.
type Address struct {
	GID   uverbs.GID
	LID   uint16 // on InfiniBand; else 0
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
	conn   *Conn // of the owner, once attached
	local  Address
	ah     *uverbs.AH
	av     uverbs.AHAttr
	remote Address

	// User is the owner's, untouched by the transport.
	User any

	// Of the transport's owner, once attached.
	index    uint32
	count    int       // pulls that have not ended
	pulls    pullList  // for which a chunk may be posted
	parked   offerList // that wait for the connection
	next     *Peer     // in Transport.activeHead
	active   bool      // in that list
	detached bool
	broken   error   // why conn does not work; pulls wait for a new one
	old      []*Conn // what conn was before, until nothing is in flight there
}

// NewPeer creates the RC queue pair for a peer whose address is not known yet.
// Any goroutine may call it.
func (t *Transport) NewPeer() (*Peer, error) {
	c, err := t.NewConn()
	if err != nil {
		return nil, err
	}
	p := &Peer{t: t, conn: c, local: t.Local()}
	p.local.RCQPN, p.local.RCPSN = c.QPN(), c.PSN()
	return p, nil
}

// Local returns what the peer must know of this end, as it was at first: a
// later connection has another RC queue pair.
func (p *Peer) Local() Address { return p.local }

// Remote returns the address that the peer was connected to at first.
func (p *Peer) Remote() Address { return p.remote }

// Connect connects the RC queue pair to remote and makes the address handle.
// It may wait for address resolution. Any goroutine may call it, once.
func (p *Peer) Connect(remote Address) error {
	t := p.t
	if remote.MTU.Bytes() == 0 {
		return fmt.Errorf("peer's MTU %d is unknown", remote.MTU)
	}
	if err := t.pathTo(&remote); err != nil {
		return err
	}
	p.remote = remote
	p.av = uverbs.AHAttr{DGID: remote.GID, SGIDIndex: uint8(t.cfg.GID.Index), HopLimit: hopLimit, IsGlobal: t.cfg.Global, DLID: remote.LID, Port: t.cfg.Port}
	ah, err := t.cfg.PD.CreateAH(&p.av)
	if err != nil {
		return err
	}
	p.ah = ah
	return p.ConnectAgain(p.conn, remote.RCQPN, remote.RCPSN)
}

// lastUnicastLID: LIDs above are multicast groups, and the permissive LID.
const lastUnicastLID = 0xbfff

// pathTo refuses a peer that the port's address vectors cannot lead to. Nobody else
// would: an InfiniBand port's GID looks like an address of RoCE, and a LID means
// something in its own subnet alone, where another port may have it here.
func (t *Transport) pathTo(remote *Address) error {
	own := &t.cfg.GID.GID
	switch {
	case t.cfg.Global && remote.LID != 0:
		return errors.New("the peer's port is InfiniBand, and ours is Ethernet")
	case t.cfg.Global:
		return nil
	case remote.LID == 0:
		return errors.New("the peer's port is not InfiniBand, and ours is")
	case remote.LID > lastUnicastLID:
		return fmt.Errorf("the peer's LID %#x is no port's", remote.LID)
	case [8]byte(remote.GID[:8]) != [8]byte(own[:8]):
		return fmt.Errorf("the peer is in InfiniBand subnet %x and we are in %x; there are no paths between subnets", remote.GID[:8], own[:8])
	}
	return nil
}

// ConnectAgain connects c, which is to replace the connection of p, to the
// peer's new queue pair. Any goroutine may call it.
func (p *Peer) ConnectAgain(c *Conn, qpn, psn uint32) error {
	return c.connect(p.av, min(p.t.cfg.MTU, p.remote.MTU), qpn, psn)
}

// MaxSmall returns the payload bytes of a datagram that both ends take.
func (p *Peer) MaxSmall() int {
	return min(p.t.cfg.MTU, p.remote.MTU).Bytes() - engine.HeaderBytes
}

// RemoteQPN returns the QP that the peer's datagrams come from.
func (p *Peer) RemoteQPN() uint32 { return p.remote.QPN }

// Index returns the number by which the engine knows an attached peer.
func (p *Peer) Index() uint32 { return p.index }

// Broken returns why the RC connection does not work, or nil.
func (p *Peer) Broken() error { return p.broken }

// ready says whether a chunk can be posted.
func (p *Peer) ready() bool {
	return p.broken == nil && !p.detached && p.conn.flying < rcDepth
}

// Close destroys a peer that is not attached.
func (p *Peer) Close() error {
	var err error
	for _, c := range append(p.old, p.conn) {
		err = errors.Join(err, c.Close())
	}
	p.old = nil
	if p.ah != nil {
		err = errors.Join(err, p.ah.Close())
	}
	return err
}

// breakConn notes that the connection c of p does not work any more. What is
// posted to it comes back; the peer gets no answer to its READs.
func (t *Transport) breakConn(p *Peer, c *Conn, err error) {
	if p.broken != nil || p.detached || c != p.conn {
		return
	}
	if serr := c.stop(); serr != nil {
		err = errors.Join(err, serr)
	}
	p.broken = err
	t.broken = append(t.broken, p)
	t.win.lost = append(t.win.lost, c)
	t.care = true
}

// errReplaced: the peer asked for a new connection.
var errReplaced = errors.New("the peer gave up the connection")

// Replace makes c, which is connected, the connection of p, of that number. Pulls
// and offers wait for Resume, which must not come before the peer has connected
// its end.
func (t *Transport) Replace(p *Peer, c *Conn, number uint32) {
	t.breakConn(p, p.conn, errReplaced)
	_ = p.conn.stop() // may be one that was never resumed
	p.old = append(p.old, p.conn)
	p.conn, c.number = c, number
	t.care = true
}

// Resume lets p's pulls and offers go on, on the connection that Replace gave it.
func (t *Transport) Resume(p *Peer) {
	if p.detached || p.broken == nil {
		return
	}
	p.broken = nil
	t.broken = slices.DeleteFunc(t.broken, func(q *Peer) bool { return q == p })
	t.activate(p)
	t.unpark(p)
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
	err := p.conn.stop()
	t.broken = slices.DeleteFunc(t.broken, func(q *Peer) bool { return q == p })
	for x := p.pulls.pop(); x != nil; x = p.pulls.pop() {
		if x.flying == 0 {
			t.endPull(e, now, x, false)
		}
	}
	t.disown(e, now, p)
	return err
}

// Reap destroys disconnected peers and replaced connections that have nothing
// in flight.
func (t *Transport) Reap() error {
	err := t.win.closeErr
	t.win.closeErr = nil
	t.care = false
	for i, p := range t.peers {
		if p == nil {
			continue
		}
		if p.detached && p.count == 0 && p.conn.idle() && !slices.ContainsFunc(p.old, func(c *Conn) bool { return !c.idle() }) {
			t.peers[i] = nil
			err = errors.Join(err, p.Close())
			continue
		}
		p.old = slices.DeleteFunc(p.old, func(c *Conn) bool {
			if !c.idle() {
				return false
			}
			err = errors.Join(err, c.Close())
			return true
		})
		if p.detached || len(p.old) > 0 {
			t.care = true
		}
	}
	return err
}

// BrokenPeers calls fn for every attached peer whose RC connection is broken.
func (t *Transport) BrokenPeers(fn func(*Peer)) {
	for _, p := range slices.Clone(t.broken) {
		if p.broken != nil && !p.detached {
			fn(p)
		}
	}
}

// PeerUser returns the User of the attached peer with that index, or nil.
func (t *Transport) PeerUser(index uint32) any {
	if p := t.peer(index); p != nil {
		return p.User
	}
	return nil
}

// Close destroys everything. What is in flight is dropped.
func (t *Transport) Close() error {
	errs := []error{t.win.close()}
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

// NeedsCare reports that a peer broke, or that something waits to be destroyed.
func (t *Transport) NeedsCare() bool { return t.care }

// errToldBroken: the peer cannot read from us.
var errToldBroken = errors.New("the peer cannot read on the connection")

// Break gives up p's connection: it has to be replaced.
func (t *Transport) Break(p *Peer) { t.breakConn(p, p.conn, errToldBroken) }

// Sabotage breaks the connection without the transport's knowledge, for tests.
func (p *Peer) Sabotage() error { return p.conn.stop() }
