package main

import (
	"fmt"
	"slices"

	"github.com/rrppcc-go/rrppcc/uverbs"
)

// failing has the active half post wr on a pair of its own, where it must end
// with one of the statuses. At the passive half the receive that is posted must
// end with one of its statuses. All of them are given where the specification
// allows several, or Soft-RoCE does not follow it.
func (p *party) failing(active bool, change func(l *link), recvBytes int, wr uverbs.SendWR, want, wantRecv []uverbs.WCStatus) error {
	qp, err := p.pair(change)
	if err != nil {
		return err
	}
	if !active {
		if err := recv(qp, 50, p.sge(inAt, recvBytes)); err != nil {
			return err
		}
	}
	if err := p.meet("posted"); err != nil {
		return err
	}
	if active {
		wr.WRID, wr.Flags = 51, uverbs.SendSignaled
		if err := post(qp, wr); err != nil {
			return err
		}
		wc, err := p.sendCQ.take(1)
		if err != nil {
			return err
		}
		if wc[0].WRID != 51 || !slices.Contains(want, wc[0].Status) {
			return fmt.Errorf("completion %+v (%v), want one of %v", wc[0], wc[0].Status, want)
		}
	} else if len(wantRecv) > 0 {
		wc, err := p.recvCQ.take(1)
		if err != nil {
			return err
		}
		if wc[0].WRID != 50 || !slices.Contains(wantRecv, wc[0].Status) {
			return fmt.Errorf("receive %+v (%v), want one of %v", wc[0], wc[0].Status, wantRecv)
		}
	}
	return p.meet("failed")
}

func asUsual(*link) {}

func stepWrongRKey(p *party, active bool) error {
	return p.failing(active, asUsual, 100, uverbs.SendWR{Opcode: uverbs.WRRDMAWrite, SGList: []uverbs.SGE{p.sge(outAt, 5000)},
		RemoteAddr: p.remote(inAt), RKey: p.peer.RKey ^ 0xff},
		[]uverbs.WCStatus{uverbs.WCRemAccessErr}, []uverbs.WCStatus{uverbs.WCWRFlushErr})
}

func stepOutOfBounds(p *party, active bool) error {
	return p.failing(active, asUsual, 100, uverbs.SendWR{Opcode: uverbs.WRRDMARead, SGList: []uverbs.SGE{p.sge(inAt, 5000)},
		RemoteAddr: p.remote(memory - 4999), RKey: p.peer.RKey},
		[]uverbs.WCStatus{uverbs.WCRemAccessErr}, []uverbs.WCStatus{uverbs.WCWRFlushErr})
}

func stepTooLong(p *party, active bool) error {
	return p.failing(active, asUsual, 99, uverbs.SendWR{Opcode: uverbs.WRSend, SGList: []uverbs.SGE{p.sge(outAt, 100)}},
		// Soft-RoCE has one status for all that its responder cannot do.
		[]uverbs.WCStatus{uverbs.WCRemInvReqErr, uverbs.WCRemOpErr}, []uverbs.WCStatus{uverbs.WCLocLenErr, uverbs.WCLocQPOpErr})
}

func stepNobody(p *party, active bool) error {
	return p.failing(active, func(l *link) {
		if active {
			l.qpn ^= 0x800000
			l.timeout, l.retries = 10, 2
		}
	}, 100, uverbs.SendWR{Opcode: uverbs.WRSend, SGList: []uverbs.SGE{p.sge(outAt, 100)}}, []uverbs.WCStatus{uverbs.WCRetryExcErr}, nil)
}
