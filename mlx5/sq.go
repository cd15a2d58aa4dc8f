package mlx5

import (
	"sync/atomic"
	"syscall"

	"github.com/rrppcc-go/rrppcc/mlx5/internal/prm"
	"github.com/rrppcc-go/rrppcc/uverbs"
)

// sendQueue is the send half of a QP. All fields but tail belong to the queue's
// owner; tail belongs to the owner of the send CQ.
type sendQueue struct {
	start *byte // WQEBB 0
	end   *byte // behind the last WQEBB
	slots *byte // sendSlot per WQEBB

	entries   uint32 // WQEBBs; a power of two, or 0
	maxPost   uint32 // work requests
	maxSGE    int
	maxInline uint32 // bytes
	signal    uint32 // prm.CtrlCQUpdate if all requests are signaled
	perWR     uint32 // WQEBBs that maxPost reckons for a request
	fence     uint32 // prm.CtrlSmallFence after a change of an mkey

	pi       uint32        // WQEBBs produced, free-running
	head     uint32        // work requests posted, free-running
	seenTail uint32        // tail as the owner saw it last
	tail     atomic.Uint32 // work requests retired, free-running

	reg  *bfreg
	half uint32 // offset of the register half that is next: 0 or reg.half
}

// sendSlot is what is known of the WQE that starts at a WQEBB.
type sendSlot struct {
	wrid   uint64
	head   uint32 // sendQueue.head when it was posted
	index  uint16 // low half of sendQueue.pi, as its CQE names it
	opcode uverbs.WROpcode
	_      uint8
}

const sendSlotBytes = 16

func (s *sendQueue) init(q *qp, l *qpLayout, sigAll bool) {
	s.entries, s.maxPost, s.maxSGE, s.maxInline = l.sqEntries, l.sqMaxPost, int(l.sqMaxSGE), l.maxInline
	s.perWR = l.sqPerWR
	if sigAll {
		s.signal = prm.CtrlCQUpdate
	}
	s.slots = &q.tables[0]
	if s.entries > 0 {
		s.start = &q.mem[l.sqOffset()]
		s.end = prm.Add(&q.mem[l.bytes()-prm.WQEBBBytes], prm.WQEBBBytes)
	}
	s.reset()
}

// reset empties the queue. The slots are marked as posted just before the
// first request, which is no window of outstanding ones.
func (s *sendQueue) reset() {
	s.pi, s.head, s.seenTail, s.fence = 0, 0, 0, 0
	s.tail.Store(0)
	for i := range s.entries {
		*s.slot(i) = sendSlot{head: ^uint32(0)}
	}
}

var errSGETooLong error = &dataError{"scatter/gather element of 2 GiB or more"}

// dataError is a refusal on the data path that uverbs has no name for.
type dataError struct{ msg string }

func (e *dataError) Error() string { return "mlx5: " + e.msg }
func (e *dataError) Unwrap() error { return syscall.EINVAL }

// flagBits translates fence, signaled and solicited (bits 0 to 2 of SendFlags)
// to CtrlSeg.FmCeSe.
var flagBits = [8]uint32{
	0: 0,
	1: prm.CtrlFence,
	2: prm.CtrlCQUpdate,
	3: prm.CtrlFence | prm.CtrlCQUpdate,
	4: prm.CtrlSolicited,
	5: prm.CtrlFence | prm.CtrlSolicited,
	6: prm.CtrlCQUpdate | prm.CtrlSolicited,
	7: prm.CtrlFence | prm.CtrlCQUpdate | prm.CtrlSolicited,
}

// PostSend writes a WQE per request and rings once, for the requests that were
// accepted.
func (q *qp) PostSend(wrs []uverbs.SendWR) (n int, err error) {
	if q.closed.Load() {
		return 0, uverbs.ErrQPState
	}
	s := &q.sq
	pi := s.pi
	var wqe *byte
	var ds uint32
	for n < len(wrs) {
		if s.head-s.seenTail >= s.maxPost {
			if s.seenTail = s.tail.Load(); s.head-s.seenTail >= s.maxPost {
				err = uverbs.ErrQueueFull
				break
			}
		}
		wr := &wrs[n]
		if len(wr.SGList) > s.maxSGE {
			err = uverbs.ErrTooManySGEs
			break
		}
		at := prm.Add(s.start, pi&(s.entries-1)*prm.WQEBBBytes)
		var units uint32
		if q.ud {
			units, err = q.encodeUD(at, pi, wr)
		} else {
			units, err = q.encodeRC(at, pi, wr)
		}
		if err != nil {
			break
		}
		*s.slot(pi) = sendSlot{wrid: wr.WRID, head: s.head, index: uint16(pi), opcode: wr.Opcode}
		wqe, ds = at, units
		pi += (units + 3) / 4
		s.head++
		n++
	}
	if n > 0 {
		s.pi = pi
		q.ringSend(wqe, ds, n == 1, wrs[n-1].Flags&uverbs.SendInline != 0)
	}
	return n, err
}

// encodeUD writes a datagram's WQE and returns its size in units of 16 bytes.
// Nothing is written where it refuses.
func (q *qp) encodeUD(at *byte, pi uint32, wr *uverbs.SendWR) (uint32, error) {
	var opcode, imm uint32 = prm.OpcodeSend, 0
	switch wr.Opcode {
	case uverbs.WRSend:
	case uverbs.WRSendWithImm:
		opcode, imm = prm.OpcodeSendImm, wr.ImmData
	default:
		return 0, uverbs.ErrBadOpcode
	}
	if wr.AH == nil {
		return 0, uverbs.ErrBadAH
	}
	ah, ok := wr.AH.Driver().(*addressHandle)
	if !ok || ah.ctx != q.ctx {
		return 0, uverbs.ErrBadAH
	}
	// Control and datagram segment fill the first WQEBB: the data start at the
	// next one, which may be the queue's first.
	ds, err := q.sq.encodeData(prm.Add(at, overheadUD), 4, wr)
	if err != nil {
		return 0, err
	}
	av := prm.Datagram(prm.Add(at, prm.SegBytes))
	*av = ah.av
	av.QKey = prm.ToBE32(wr.RemoteQKey)
	av.DQPN = prm.ToBE32(wr.RemoteQPN&keyMask | prm.AVExtended)
	q.control(at, pi, opcode, ds, wr.Flags, imm)
	return ds, nil
}

// encodeRC writes a WQE for a connected QP.
func (q *qp) encodeRC(at *byte, pi uint32, wr *uverbs.SendWR) (uint32, error) {
	var opcode, imm uint32
	rdma := true
	switch wr.Opcode {
	case uverbs.WRSend:
		opcode, rdma = prm.OpcodeSend, false
	case uverbs.WRSendWithImm:
		opcode, rdma, imm = prm.OpcodeSendImm, false, wr.ImmData
	case uverbs.WRRDMAWrite:
		opcode = prm.OpcodeRDMAWrite
	case uverbs.WRRDMAWriteWithImm:
		opcode, imm = prm.OpcodeRDMAWriteImm, wr.ImmData
	case uverbs.WRRDMARead:
		if wr.Flags&uverbs.SendInline != 0 || q.uc {
			return 0, uverbs.ErrBadOpcode
		}
		opcode = prm.OpcodeRDMARead
	case uverbs.WRSendWithInv:
		if q.uc {
			return 0, uverbs.ErrBadOpcode
		}
		opcode, rdma, imm = prm.OpcodeSendInval, false, wr.InvalidateRKey
	default:
		return q.encodeRare(at, pi, wr)
	}
	first := uint32(1)
	if rdma {
		first = 2
	}
	ds, err := q.sq.encodeData(prm.Add(at, first*prm.SegBytes), first, wr)
	if err != nil {
		return 0, err
	}
	if rdma {
		*prm.RAddr(prm.Add(at, prm.SegBytes)) = prm.RAddrSeg{RAddr: prm.ToBE64(wr.RemoteAddr), RKey: prm.ToBE32(wr.RKey)}
	}
	q.control(at, pi, opcode, ds, wr.Flags, imm)
	return ds, nil
}

func (q *qp) control(at *byte, pi, opcode, ds uint32, flags uverbs.SendFlags, imm uint32) {
	fm := flagBits[flags&7] | q.sq.signal
	if q.sq.fence != 0 {
		if flags&uverbs.SendFence == 0 {
			fm |= q.sq.fence
		}
		q.sq.fence = 0
	}
	*prm.Ctrl(at) = prm.CtrlSeg{
		OpmodIdxOpcode: prm.ToBE32(pi&0xffff<<8 | opcode),
		QPNDS:          prm.ToBE32(q.qpn<<8 | ds),
		FmCeSe:         prm.ToBE32(fm),
		Imm:            prm.ToBE32(imm),
	}
}

// encodeData writes the request's data segments at p, or its data inline, and
// returns the WQE's size; units is what precedes them. An error leaves the WQE
// unused.
func (s *sendQueue) encodeData(p *byte, units uint32, wr *uverbs.SendWR) (uint32, error) {
	if wr.Flags&uverbs.SendInline != 0 {
		return s.encodeInline(p, units, wr)
	}
	for i := range wr.SGList {
		sge := &wr.SGList[i]
		if sge.Length == 0 {
			continue
		}
		if sge.Length >= prm.InlineFlag {
			return 0, errSGETooLong
		}
		if p == s.end {
			p = s.start
		}
		*prm.Data(p) = prm.DataSeg{ByteCount: prm.ToBE32(sge.Length), LKey: prm.ToBE32(sge.LKey), Addr: prm.ToBE64(sge.Addr)}
		p = prm.Add(p, prm.SegBytes)
		units++
	}
	return units, nil
}

func (s *sendQueue) encodeInline(p *byte, units uint32, wr *uverbs.SendWR) (uint32, error) {
	total := uint64(0)
	for i := range wr.SGList {
		total += uint64(wr.SGList[i].Length)
	}
	if total > uint64(s.maxInline) {
		return 0, uverbs.ErrInlineTooLong
	}
	if total == 0 {
		return units, nil
	}
	if p == s.end {
		p = s.start
	}
	*prm.Inline(p) = prm.InlineSeg{ByteCount: prm.ToBE32(uint32(total) | prm.InlineFlag)}
	p = prm.Add(p, inlineHdr)
	for i := range wr.SGList {
		data := prm.Memory(wr.SGList[i].Addr, wr.SGList[i].Length)
		if room := prm.Distance(p, s.end); uint32(len(data)) >= room {
			copy(prm.Bytes(p, room), data)
			data, p = data[room:], s.start
		}
		copy(prm.Bytes(p, uint32(len(data))), data)
		p = prm.Add(p, uint32(len(data)))
	}
	return units + (uint32(total)+inlineHdr+prm.SegBytes-1)/prm.SegBytes, nil
}

// ringSend tells the device of everything up to s.pi; wqe, of ds units, is the
// last WQE. A single one may go by BlueFlame.
func (q *qp) ringSend(wqe *byte, ds uint32, single, inline bool) {
	s := &q.sq
	reg := s.reg
	off := reg.off + s.half
	u := q.ctx.uars
	shared := reg.shared.Load()
	if shared && u.kick != nil {
		reg.kickMu.Lock()
		defer reg.kickMu.Unlock()
	}
	at := &reg.page.mem[off]
	count := uint32(prm.ToBE32(s.pi & 0xffff))
	if single && !shared && ds > 1 && ds*prm.SegBytes <= reg.half && (inline || q.ctx.preferBF) {
		ringBlueFlame(q.db.Word(prm.QPSend), count, at, wqe, (ds+3)/4, s.start, s.end)
	} else {
		ring(q.db.Word(prm.QPSend), count, at, prm.DoorbellWord(wqe))
	}
	s.half ^= reg.half
	if u.kick != nil {
		u.kick(&reg.page.mem[0], off)
	}
}
