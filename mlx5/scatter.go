package mlx5

import (
	"github.com/rrppcc-go/rrppcc/mlx5/internal/prm"
	"github.com/rrppcc-go/rrppcc/uverbs"
)

// Scatter-to-CQE: the device puts data of up to 32 bytes (64 with CQEs of 128
// bytes) into the completion, and the poller copies them to where the work
// request wanted them.

// inlines tells whether e, which says that it holds data, may: such data were
// asked for, and they fit. A compressed entry, which never is asked for, does not.
func (q *qp) inlines(c *cq, e *prm.CQE64, last uint32) bool {
	room := uint32(32)
	switch last & prm.CQEFormatMask {
	case prm.CQEScatter32:
	case prm.CQEScatter64:
		room = 64
		if c.stride == prm.CQEBytes {
			return false
		}
	default:
		return false
	}
	if last>>4&0xf == prm.CQEReq {
		switch e.SOPDropQPN.Host() >> 24 {
		case prm.OpcodeAtomicCS, prm.OpcodeAtomicFA: // always 8 bytes, whatever ByteCnt says
			return q.inline
		}
	}
	return q.inline && e.ByteCnt.Host() <= room
}

// scatter copies data to the elements of a WQE, at most n of them from seg on,
// which wrap around at end to start. It tells whether they all had room.
func scatter(data []byte, seg *byte, n int, start, end *byte) bool {
	for range n {
		if seg == end {
			seg = start
		}
		d := prm.Data(seg)
		if room := d.ByteCount.Host(); room > 0 {
			k := min(room, uint32(len(data)))
			copy(prm.Memory(d.Addr.Host(), k), data[:k])
			data = data[k:]
		}
		if len(data) == 0 {
			return true
		}
		seg = prm.Add(seg, prm.SegBytes)
	}
	return len(data) == 0
}

// scattered completes a receive whose data are in e; wqe has n elements.
func (q *qp) scattered(wc *uverbs.WC, e *prm.CQE64, format uint32, seg *byte, n int) {
	// 32 bytes of data lie over what else the entry would say of the sender.
	if format == prm.CQEScatter32 {
		wc.Flags &^= uverbs.WCGRH
		wc.SrcQP, wc.SL, wc.SLID, wc.DLIDPathBits = 0, 0, 0, 0
	}
	if !scatter(e.Data(format, wc.ByteLen), seg, n, nil, nil) {
		wc.Status = uverbs.WCLocLenErr
	}
}

// scattered completes a READ or an atomic whose data are in e.
func (s *sendQueue) scattered(wc *uverbs.WC, e *prm.CQE64, format, counter uint32) {
	var first uint32
	switch wc.Opcode {
	case uverbs.WCRDMARead:
		first = 2
	case uverbs.WCCompSwap, uverbs.WCFetchAdd:
		first = 3
	default:
		return
	}
	at := s.wqebb(counter)
	units := prm.Ctrl(at).QPNDS.Host() & 0x3f
	if units < first || !scatter(e.Data(format, wc.ByteLen), prm.Add(at, first*prm.SegBytes), int(units-first), s.start, s.end) {
		wc.Status = uverbs.WCLocLenErr
	}
}
