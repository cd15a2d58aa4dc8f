package mlx5

import (
	"github.com/rrppcc-go/rrppcc/mlx5/internal/prm"
	"github.com/rrppcc-go/rrppcc/uverbs"
)

// valid tells from a CQE's last word whether the device has written the entry
// in this lap of the ring: the owner bit flips with every lap, and entries that
// were never written are marked invalid.
func valid(last, lap uint32) bool {
	return last>>4&0xf != prm.CQEInvalid && (last^lap)&prm.CQEOwnerMask == 0
}

// Poll moves completions to wcs. An entry that cannot be is consumed and
// answered with uverbs.ErrCQCorrupt, behind the completions before it.
func (c *cq) Poll(wcs []uverbs.WC) (int, error) {
	if c.pending.Load() != nil {
		c.runPurges()
	}
	var (
		n   int
		err error
		ci  = c.ci
		// Work requests of one QP that were retired by this call; published
		// when another QP turns up, and at the end.
		sqOwner, rqOwner *qp
		sqTail, rqTail   uint32
	)
	for n < len(wcs) {
		e := prm.CQE(c.ring, ci&c.mask, c.stride)
		last := e.LoadLast()
		if !valid(last, ci>>c.shift) {
			break
		}
		fromDevice()
		ci++
		q := c.qps.lookup(c.key(e))
		format := last & prm.CQEFormatMask
		if q == nil || e.SOPDropQPN.Host()&keyMask != q.qpn || format != 0 && !q.inlines(c, e, last) {
			err = uverbs.ErrCQCorrupt
			break
		}
		wc := &wcs[n]
		switch op := last >> 4 & 0xf; op {
		case prm.CQERespSend, prm.CQERespSendImm, prm.CQERespWrImm, prm.CQERespSendInv, prm.CQERespErr:
			if q.srq != nil {
				var taken bool
				if taken, err = c.receivedShared(q, wc, e, last); taken {
					n++
				}
				break
			}
			if q != rqOwner {
				if rqOwner != nil {
					rqOwner.rq.tail.Store(rqTail)
				}
				rqOwner, rqTail = q, q.rq.tail.Load()
			}
			if q.recvCQ != c || !q.rq.outstanding(last>>16, rqTail) {
				err = uverbs.ErrCQCorrupt
				break
			}
			rqTail++
			*wc = uverbs.WC{WRID: *q.rq.wrid(last >> 16), QPN: q.qpn}
			if op == prm.CQERespErr {
				fail(wc, e)
			} else {
				received(wc, e, op)
				if format != 0 {
					q.scattered(wc, e, format, q.rq.wqe(last>>16), q.rq.maxSGE)
				}
			}
			n++
		case prm.CQEReq, prm.CQEReqErr:
			if q != sqOwner {
				if sqOwner != nil {
					sqOwner.sq.tail.Store(sqTail)
				}
				sqOwner, sqTail = q, q.sq.tail.Load()
			}
			if q.sendCQ != c || q.sq.entries == 0 {
				err = uverbs.ErrCQCorrupt
				break
			}
			slot := q.sq.slot(last >> 16)
			if uint32(slot.index) != last>>16 || slot.head-sqTail >= q.sq.maxPost {
				err = uverbs.ErrCQCorrupt
				break
			}
			sqTail = slot.head + 1
			*wc = uverbs.WC{WRID: slot.wrid, QPN: q.qpn}
			if op == prm.CQEReqErr {
				fail(wc, e)
			} else if !sent(wc, e, slot.opcode) {
				err = uverbs.ErrCQCorrupt
				break
			} else if format != 0 {
				q.sq.scattered(wc, e, format, last>>16)
			}
			n++
		default:
			err = uverbs.ErrCQCorrupt
		}
		if err != nil {
			break
		}
	}
	if ci == c.ci {
		return 0, nil
	}
	if sqOwner != nil {
		sqOwner.sq.tail.Store(sqTail)
	}
	if rqOwner != nil {
		rqOwner.rq.tail.Store(rqTail)
	}
	if c.freed.srq != nil {
		c.flushFreed()
	}
	c.ci = ci
	c.db.Store(prm.CQCI, ci&prm.CIMask)
	return n, err
}

// received fills in what a responder's CQE says.
func received(wc *uverbs.WC, e *prm.CQE64, op uint32) {
	flags := e.FlagsRQPN.Host()
	imm := e.ImmInvalPKey.Host()
	wc.Opcode = uverbs.WCRecv
	switch op {
	case prm.CQERespSendImm:
		wc.Flags, wc.ImmData = uverbs.WCWithImm, imm
	case prm.CQERespWrImm:
		wc.Opcode, wc.Flags, wc.ImmData = uverbs.WCRecvRDMAWithImm, uverbs.WCWithImm, imm
	case prm.CQERespSendInv:
		wc.Flags, wc.ImmData = uverbs.WCWithInv, imm
	}
	if flags>>28&3 != 0 {
		wc.Flags |= uverbs.WCGRH
	}
	wc.ByteLen = e.ByteCnt.Host()
	wc.SrcQP = flags & keyMask
	wc.SL = uint8(flags >> 24 & 0xf)
	wc.SLID = uint16(e.SLID.Host())
	wc.DLIDPathBits = uint8(e.MLPath.Host() >> 16 & 0x7f)
	wc.PKeyIndex = uint16(imm)
}

// sent fills in what a requester's CQE says; false if it names no operation
// that can be posted. What changes an mkey is known by what was posted.
func sent(wc *uverbs.WC, e *prm.CQE64, posted uverbs.WROpcode) bool {
	switch e.SOPDropQPN.Host() >> 24 {
	case prm.OpcodeRDMAWriteImm:
		wc.Opcode, wc.Flags = uverbs.WCRDMAWrite, uverbs.WCWithImm
	case prm.OpcodeRDMAWrite:
		wc.Opcode = uverbs.WCRDMAWrite
	case prm.OpcodeSendImm:
		wc.Opcode, wc.Flags = uverbs.WCSend, uverbs.WCWithImm
	case prm.OpcodeSend, prm.OpcodeSendInval, prm.OpcodeNop:
		wc.Opcode = uverbs.WCSend
	case prm.OpcodeRDMARead:
		wc.Opcode, wc.ByteLen = uverbs.WCRDMARead, e.ByteCnt.Host()
	case prm.OpcodeAtomicCS:
		wc.Opcode, wc.ByteLen = uverbs.WCCompSwap, 8
	case prm.OpcodeAtomicFA:
		wc.Opcode, wc.ByteLen = uverbs.WCFetchAdd, 8
	case prm.OpcodeUMR:
		switch posted {
		case uverbs.WRLocalInv:
			wc.Opcode = uverbs.WCLocalInv
		case uverbs.WRBindMW:
			wc.Opcode = uverbs.WCBindMW
		default:
			return false
		}
	default:
		return false
	}
	return true
}

// fail fills in what an error CQE says.
func fail(wc *uverbs.WC, e *prm.CQE64) {
	v := e.TimestampLow.Host()
	wc.VendorErr = v >> 8 & 0xff
	wc.Status = statusOf(v & 0xff)
}

func statusOf(syndrome uint32) uverbs.WCStatus {
	switch syndrome {
	case prm.SyndromeLocalLength:
		return uverbs.WCLocLenErr
	case prm.SyndromeLocalQPOp:
		return uverbs.WCLocQPOpErr
	case prm.SyndromeLocalProt:
		return uverbs.WCLocProtErr
	case prm.SyndromeWRFlush:
		return uverbs.WCWRFlushErr
	case prm.SyndromeMWBind:
		return uverbs.WCMWBindErr
	case prm.SyndromeBadResp:
		return uverbs.WCBadRespErr
	case prm.SyndromeLocalAccess:
		return uverbs.WCLocAccessErr
	case prm.SyndromeRemoteInvalReq:
		return uverbs.WCRemInvReqErr
	case prm.SyndromeRemoteAccess:
		return uverbs.WCRemAccessErr
	case prm.SyndromeRemoteOp:
		return uverbs.WCRemOpErr
	case prm.SyndromeTransportRetryExc:
		return uverbs.WCRetryExcErr
	case prm.SyndromeRNRRetryExc:
		return uverbs.WCRNRRetryExcErr
	case prm.SyndromeRemoteAborted:
		return uverbs.WCRemAbortErr
	}
	return uverbs.WCGeneralErr
}
