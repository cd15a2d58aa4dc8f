package mlx5

import (
	"github.com/rrppcc-go/rrppcc/mlx5/internal/prm"
	"github.com/rrppcc-go/rrppcc/uverbs"
)

// srqChain is what a CQ's owner has retired of one SRQ and not yet given back:
// WQEs linked by their slots, the newest first.
type srqChain struct {
	srq         *srq
	first, last uint32
}

// giveBack adds WQE i to the chain. The WQE is no longer posted.
func (c *cq) giveBack(s *srq, i uint32) {
	if c.freed.srq == s {
		s.slot(i).link = c.freed.first + 1
		c.freed.first = i
		return
	}
	c.flushFreed()
	s.slot(i).link = 0
	c.freed = srqChain{srq: s, first: i, last: i}
}

// flushFreed gives the chain back to its SRQ.
func (c *cq) flushFreed() {
	if f := &c.freed; f.srq != nil {
		f.srq.push(&f.srq.freed, f.first, f.last)
		f.srq = nil
	}
}

// receivedShared completes a receive of a QP on an SRQ. It returns false where
// the entry is none that the user sees: it cannot be (an error), or its WQE is
// posted again.
func (c *cq) receivedShared(q *qp, wc *uverbs.WC, e *prm.CQE64, last uint32) (bool, error) {
	s, i := q.srq, last>>16
	if q.recvCQ != c || !s.posted(i) {
		return false, uverbs.ErrCQCorrupt
	}
	op := last >> 4 & 0xf
	if op == prm.CQERespErr {
		if v := e.TimestampLow.Host(); v&0xff == prm.SyndromeRemoteAborted && v>>8&0xff == prm.VendorODPFault {
			s.fault(i)
			return false, nil
		}
	}
	*wc = uverbs.WC{WRID: s.slot(i).wrid, QPN: q.qpn}
	if op == prm.CQERespErr {
		fail(wc, e)
	} else {
		received(wc, e, op)
		if format := last & prm.CQEFormatMask; format != 0 {
			q.scattered(wc, e, format, prm.Add(s.wqe(i), prm.SegBytes), s.maxSGE)
		}
	}
	c.giveBack(s, i)
	return true, nil
}
