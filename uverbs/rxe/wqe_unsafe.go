package rxe

import (
	"math"
	"math/bits"
	"unsafe"

	kabi "github.com/rrppcc-go/rrppcc/internal/abi"
	"github.com/rrppcc-go/rrppcc/uverbs"
	"github.com/rrppcc-go/rrppcc/uverbs/rxe/internal/abi"
)

const (
	sendHeadBytes = uint32(unsafe.Sizeof(abi.Rxe_send_wqe{})) // before SGEs or inline data
	recvHeadBytes = uint32(unsafe.Sizeof(abi.Rxe_recv_wqe{}))
	sgeBytes      = uint32(unsafe.Sizeof(abi.Rxe_sge{}))
	cqeBytes      = uint32(unsafe.Sizeof(kabi.Ib_uverbs_wc{}))
)

// The kernel's sizes are what the rings' entries are computed from.
var (
	_ [208]byte = [sendHeadBytes]byte{}
	_ [40]byte  = [recvHeadBytes]byte{}
	_ [48]byte  = [cqeBytes]byte{}
)

// opKind says which operands of a send work request count.
type opKind uint8

const (
	kindNone   opKind = iota // no such opcode
	kindSend                 // data; UD: the destination
	kindRDMA                 // data and a remote address
	kindRead                 // the same, but the data cannot be inline
	kindAtomic               // 8 bytes of data and a remote address
	kindLocal                // no data: LOCAL_INV
	kindBind                 // no data: BIND_MW
)

var kinds = [256]opKind{
	uverbs.WRRDMAWrite:         kindRDMA,
	uverbs.WRRDMAWriteWithImm:  kindRDMA,
	uverbs.WRSend:              kindSend,
	uverbs.WRSendWithImm:       kindSend,
	uverbs.WRSendWithInv:       kindSend,
	uverbs.WRRDMARead:          kindRead,
	uverbs.WRAtomicCmpAndSwp:   kindAtomic,
	uverbs.WRAtomicFetchAndAdd: kindAtomic,
	uverbs.WRLocalInv:          kindLocal,
	uverbs.WRBindMW:            kindBind,
}

// writeSend writes a send work request into an entry of the send queue. Every
// byte of the head is written: what the kernel left there from the last lap
// would be taken for progress.
func (q *qp) writeSend(slot unsafe.Pointer, wr *uverbs.SendWR) error {
	kind := kinds[wr.Opcode]
	flags := wr.Flags & (uverbs.SendFence | uverbs.SendSignaled | uverbs.SendSolicited | uverbs.SendInline)
	switch {
	case kind == kindNone, q.typ == uverbs.QPTypeUD && wr.Opcode != uverbs.WRSend && wr.Opcode != uverbs.WRSendWithImm,
		q.typ == uverbs.QPTypeUC && (kind == kindRead || kind == kindAtomic):
		return uverbs.ErrBadOpcode
	case flags&uverbs.SendInline != 0 && kind != kindSend && kind != kindRDMA:
		return uverbs.ErrBadOpcode
	case uint64(len(wr.SGList)) > uint64(q.sq.maxSGE):
		return uverbs.ErrTooManySGEs
	case kind >= kindLocal && len(wr.SGList) != 0:
		return uverbs.ErrTooManySGEs
	case kind == kindBind && wr.Bind == nil:
		return uverbs.ErrBadOpcode
	}
	var ah *addressHandle
	if q.typ == uverbs.QPTypeUD {
		var ok bool
		if wr.AH == nil {
			return uverbs.ErrBadAH
		}
		if ah, ok = wr.AH.Driver().(*addressHandle); !ok || ah.ctx != q.ctx {
			return uverbs.ErrBadAH
		}
	}
	var total uint64
	for i := range wr.SGList {
		total += uint64(wr.SGList[i].Length)
	}
	switch {
	case flags&uverbs.SendInline != 0 && total > uint64(q.sq.maxInline):
		return uverbs.ErrInlineTooLong
	case total > math.MaxInt32: // the wire's limit of a message
		return errTooLong
	}

	var ex uint32
	switch wr.Opcode {
	case uverbs.WRSendWithImm, uverbs.WRRDMAWriteWithImm:
		ex = bigEndian(wr.ImmData)
	case uverbs.WRSendWithInv, uverbs.WRLocalInv:
		ex = wr.InvalidateRKey
	}
	w := (*abi.Rxe_send_wqe)(slot)
	*w = abi.Rxe_send_wqe{
		Wr:  abi.Rxe_send_wr{Wr_id: wr.WRID, Opcode: uint32(wr.Opcode), Send_flags: uint32(flags), Ex: ex},
		Dma: abi.Rxe_dma_info{Length: uint32(total), Resid: uint32(total)},
	}
	switch kind {
	case kindSend:
		if ah == nil {
			break
		}
		u := (*abi.Rxe_wr_ud)(unsafe.Pointer(&w.Wr.Wr))
		u.Remote_qpn, u.Remote_qkey, u.Av = wr.RemoteQPN, wr.RemoteQKey, ah.av
	case kindRDMA, kindRead:
		w.Iova = wr.RemoteAddr
		*(*abi.Rxe_wr_rdma)(unsafe.Pointer(&w.Wr.Wr)) = abi.Rxe_wr_rdma{Remote_addr: wr.RemoteAddr, Rkey: wr.RKey}
	case kindAtomic:
		w.Iova = wr.RemoteAddr
		*(*abi.Rxe_wr_atomic)(unsafe.Pointer(&w.Wr.Wr)) = abi.Rxe_wr_atomic{Remote_addr: wr.RemoteAddr,
			Compare_add: wr.CompareAdd, Swap: wr.Swap, Rkey: wr.RKey}
	case kindBind:
		b := wr.Bind
		*(*abi.Rxe_wr_mw)(unsafe.Pointer(&w.Wr.Wr)) = abi.Rxe_wr_mw{Addr: b.Addr, Length: b.Length, Mr_lkey: b.LKey,
			Mw_rkey: b.OldRKey, Rkey: b.NewRKey, Access: uint32(b.Access)}
	}
	payload := unsafe.Add(slot, sendHeadBytes)
	if flags&uverbs.SendInline == 0 {
		w.Dma.Num_sge = writeSGEs(payload, wr.SGList)
		return nil
	}
	for i := range wr.SGList {
		s := &wr.SGList[i]
		copy(unsafe.Slice((*byte)(payload), s.Length), inlineData(s))
		payload = unsafe.Add(payload, s.Length)
	}
	return nil
}

// writeRecv writes a receive work request into an entry of a receive queue.
func writeRecv(slot unsafe.Pointer, wr *uverbs.RecvWR, maxSGE uint32) error {
	if uint64(len(wr.SGList)) > uint64(maxSGE) {
		return uverbs.ErrTooManySGEs
	}
	var total uint64
	for i := range wr.SGList {
		total += uint64(wr.SGList[i].Length)
	}
	if total > math.MaxUint32 {
		return errTooLong
	}
	n := writeSGEs(unsafe.Add(slot, recvHeadBytes), wr.SGList)
	*(*abi.Rxe_recv_wqe)(slot) = abi.Rxe_recv_wqe{
		Wr_id: wr.WRID,
		Dma:   abi.Rxe_dma_info{Length: uint32(total), Resid: uint32(total), Num_sge: n},
	}
	return nil
}

// writeSGEs writes the elements that are not empty, and returns how many.
func writeSGEs(p unsafe.Pointer, list []uverbs.SGE) (n uint32) {
	for i := range list {
		s := &list[i]
		if s.Length == 0 {
			continue
		}
		*(*abi.Rxe_sge)(p) = abi.Rxe_sge{Addr: s.Addr, Length: s.Length, Lkey: s.LKey}
		p = unsafe.Add(p, sgeBytes)
		n++
	}
	return n
}

// inlineData is the memory at an element's address.
func inlineData(s *uverbs.SGE) []byte {
	addr := s.Addr
	return unsafe.Slice(*(**byte)(unsafe.Pointer(&addr)), s.Length)
}

func bigEndian(v uint32) uint32 {
	if littleEndian {
		return bits.ReverseBytes32(v)
	}
	return v
}

var littleEndian = func() bool {
	v := uint16(1)
	return *(*byte)(unsafe.Pointer(&v)) == 1
}()

// ibWCWithInvalidate is the kernel's own IB_WC_WITH_INVALIDATE (rdma/ib_verbs.h).
// rdma_rxe writes it into the CQE as it is, although the flag of libibverbs is
// another bit (1<<3, which for the kernel says that a checksum is right).
const ibWCWithInvalidate = 1 << 2

// readCQE converts an entry of a completion queue. It reports whether the
// entry can be: the kernel writes no other.
func readCQE(wc *uverbs.WC, slot unsafe.Pointer) bool {
	e := (*kabi.Ib_uverbs_wc)(slot)
	status, opcode := e.Status, e.Opcode
	flags := uverbs.WCFlags(e.Wc_flags) & (uverbs.WCGRH | uverbs.WCWithImm)
	imm := e.Ex
	if flags&uverbs.WCWithImm != 0 {
		imm = bigEndian(imm)
	}
	if e.Wc_flags&ibWCWithInvalidate != 0 {
		flags |= uverbs.WCWithInv
	}
	*wc = uverbs.WC{
		WRID:         e.Wr_id,
		Status:       uverbs.WCStatus(status),
		Opcode:       uverbs.WCOpcode(opcode),
		Flags:        flags,
		SL:           e.Sl,
		DLIDPathBits: e.Dlid_path_bits,
		PKeyIndex:    e.Pkey_index,
		SLID:         e.Slid,
		VendorErr:    e.Vendor_err,
		ByteLen:      e.Byte_len,
		ImmData:      imm,
		QPN:          e.Qp_num,
		SrcQP:        e.Src_qp,
	}
	return status <= uint32(uverbs.WCGeneralErr) && (status != 0 || opcode <= math.MaxUint8)
}
