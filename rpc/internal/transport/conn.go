package transport

import (
	"errors"

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

	// rcDepth is how many READs are posted to one queue pair at once.
	rcDepth = 32
)

// Conn is one RC queue pair to a peer. A peer has one at a time; where it
// breaks, a new one takes its place and the old one stays until the device has
// given back what was posted to it.
type Conn struct {
	t      *Transport
	qp     *uverbs.QP
	psn    uint32 // first PSN that this side sends
	number uint32 // of a peer's connections: 1 for the first
	flying int    // READs that are posted; of the owner
	ops    int    // binds and invalidations that are posted; of the owner
}

// NewConn creates a queue pair that is not connected. Any goroutine may call
// it.
func (t *Transport) NewConn() (*Conn, error) {
	depth := uint32(rcDepth)
	if t.cfg.Windows > 0 {
		depth += winDepth * winPlaces
	}
	qp, err := t.cfg.PD.CreateQP(&uverbs.QPInitAttr{Type: uverbs.QPTypeRC, SendCQ: t.sendCQ, RecvCQ: t.sendCQ,
		Cap: uverbs.QPCap{MaxSendWR: depth, MaxRecvWR: 1, MaxSendSGE: 1, MaxRecvSGE: 1}})
	if err != nil {
		return nil, err
	}
	c := &Conn{t: t, qp: qp, psn: random24(), number: 1}
	attr := &uverbs.QPAttr{State: uverbs.QPStateInit, Port: t.cfg.Port, AccessFlags: uverbs.AccessRemoteRead}
	if err := qp.Modify(attr, uverbs.AttrState|uverbs.AttrPKeyIndex|uverbs.AttrPort|uverbs.AttrAccessFlags); err != nil {
		return nil, errors.Join(err, c.Close())
	}
	return c, nil
}

// QPN and PSN are what the peer must know of this end.
func (c *Conn) QPN() uint32 { return c.qp.QPN() }
func (c *Conn) PSN() uint32 { return c.psn }

// connect connects the queue pair to the peer's, along av.
func (c *Conn) connect(av uverbs.AHAttr, mtu uverbs.MTU, qpn, psn uint32) error {
	t := c.t
	const rtr = uverbs.AttrState | uverbs.AttrAV | uverbs.AttrPathMTU | uverbs.AttrDestQPN | uverbs.AttrRQPSN | uverbs.AttrMaxDestRdAtomic | uverbs.AttrMinRNRTimer
	attr := &uverbs.QPAttr{State: uverbs.QPStateRTR, AV: av, PathMTU: mtu, DestQPN: qpn, RQPSN: psn,
		MaxDestRdAtomic: t.cfg.RdAtomic, MinRNRTimer: rcMinRNRTimer}
	if err := c.qp.Modify(attr, rtr); err != nil {
		return err
	}
	const rts = uverbs.AttrState | uverbs.AttrTimeout | uverbs.AttrRetryCnt | uverbs.AttrRNRRetry | uverbs.AttrSQPSN | uverbs.AttrMaxRdAtomic
	return c.qp.Modify(&uverbs.QPAttr{State: uverbs.QPStateRTS, Timeout: rcTimeout, RetryCnt: rcRetryCnt, RNRRetry: rcRNRRetry,
		SQPSN: c.psn, MaxRdAtomic: t.cfg.RdAtomic}, rts)
}

// stop moves the queue pair to the error state: the device answers no READ of
// the peer any more, and gives back what is posted.
func (c *Conn) stop() error {
	return c.qp.Modify(&uverbs.QPAttr{State: uverbs.QPStateErr}, uverbs.AttrState)
}

// idle reports that nothing is posted.
func (c *Conn) idle() bool { return c.flying+c.ops == 0 }

// Close destroys a queue pair with nothing posted.
func (c *Conn) Close() error { return c.qp.Close() }
