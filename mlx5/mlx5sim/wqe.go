package mlx5sim

// Send WQE opcodes, PRM "WQE Ctrl Segment", enum MLX5_OPCODE_* of mlx5dv.h.
const (
	opNOP       = 0x00
	opSendInv   = 0x01
	opWrite     = 0x08
	opWriteImm  = 0x09
	opSend      = 0x0a
	opSendImm   = 0x0b
	opRead      = 0x10
	opCmpSwap   = 0x11
	opFetchAdd  = 0x12
	opUMR       = 0x25
	wqebbBytes  = 64
	segBytes    = 16
	maxDS       = 63 // ds is a 6-bit field
	maxWQEBytes = maxDS * segBytes
)

// Bits of a WQE.
const (
	ctrlFenceMask = 0xe0 // fm, the top three bits of fm_ce_se
	ctrlCEMask    = 0x0c // 0: CQE on error only; 2, 3: always
	ctrlCEAlways  = 0x08
	ctrlSolicited = 0x02

	dataInline     = 1 << 31
	inlineMask     = 0x3ff // the length field of an inline segment
	dataMaxBytes   = 1 << 31
	terminatorLKey = 0x100 // MLX5_INVALID_LKEY

	avGRH      = 1 << 30 // of grh_gid_fl: the packet has a GRH
	avExtended = 1 << 31 // of dqp_dct: the address vector has its 48-byte form
)

// dataSeg is a piece of a work request's data: of registered memory, or of
// the WQE itself.
type dataSeg struct {
	addr   uint64 // virtual address in the MR, or offset in sendOp.wqe
	n      uint32 // bytes, at most 2^31
	lkey   uint32
	inline bool
}

// udAV is the address vector of a UD WQE, struct mlx5_wqe_av.
type udAV struct {
	addressVector
	qpn   uint32
	qkey  uint32 // as in the WQE: the top bit asks for the QP's own
	sport uint16 // UDP source port
	dmac  [6]byte

	// As they stand in the WQE, for asInfiniBand.
	rateSL, pathBits uint8
	hasGRH           bool
}

// sendOp is a decoded send WQE. It is reused: decode overwrites everything
// and keeps the capacity of its slices. sges and wqe are only valid until the
// engine decodes the next WQE; who keeps an op copies it with copyFrom.
type sendOp struct {
	opcode    uint8
	index     uint32 // free-running index of its first WQEBB
	wqebbs    uint32
	signaled  bool
	solicited bool
	fence     bool
	imm       uint32 // its bytes on the wire, big-endian; SEND with invalidate, UMR: the key
	sges      []dataSeg
	length    uint64 // bytes of all sges
	raddr     uint64
	rkey      uint32
	swapAdd   uint64 // of an atomic: what to put or to add
	compare   uint64
	inline    uint8  // bytes of the answer that the CQE carries
	av        udAV   // UD only; a connected QP's address is qp.attr.dest
	wqe       []byte // ds*16 bytes, where inline sges point
	hasInline bool

	buf []byte // backs wqe where it could not be viewed in place
}

// wqeIndex is the index by which completions name the WQE.
func (op *sendOp) wqeIndex() uint16 { return uint16(op.index) }

// end is the index of the WQEBB behind the WQE.
func (op *sendOp) end() uint32 { return op.index + op.wqebbs }

// hasImm reports whether the operation carries immediate data.
func (op *sendOp) hasImm() bool { return op.opcode == opSendImm || op.opcode == opWriteImm }

// copyFrom makes op a copy of src that outlives the next decode. It keeps and
// reuses op's own memory.
func (op *sendOp) copyFrom(src *sendOp) {
	sges, buf := op.sges, op.buf
	*op = *src
	op.sges = append(sges[:0], src.sges...)
	op.buf, op.wqe = buf, nil
	if src.hasInline {
		op.buf = append(buf[:0], src.wqe...)
		op.wqe = op.buf
	}
}

// decodeCtrl reads the segment count and the WQE's size in WQEBBs. A segment
// count below the control segment's own is reported as one WQEBB, so that a
// walk over a broken queue ends.
func decodeCtrl(ctrl []byte) (ds int, wqebbs uint32) {
	ds = int(ctrl[7] & 0x3f)
	return ds, max(1, uint32(ds*segBytes+wqebbBytes-1)/wqebbBytes)
}

// decode reads the WQE wqe (all its ds segments) at op.index of a QP of type
// typ. What hardware would take for a stale or foreign entry is a local QP
// operation error.
func (op *sendOp) decode(wqe []byte, typ uint8, qpn uint32) syndrome {
	op.wqe = wqe
	op.sges = op.sges[:0]
	op.length = 0
	op.hasInline = false
	op.raddr, op.rkey = 0, 0
	op.signaled, op.solicited, op.fence = false, false, false
	op.imm, op.opcode, op.inline = 0, opNOP, 0
	if len(wqe) < segBytes {
		return synLocalQPOp
	}
	w0 := be.Uint32(wqe)
	w1 := be.Uint32(wqe[4:])
	flags := wqe[11]
	op.opcode = uint8(w0)
	op.signaled = flags&ctrlCEMask >= ctrlCEAlways
	op.solicited = flags&ctrlSolicited != 0
	op.fence = flags&ctrlFenceMask != 0
	op.imm = be.Uint32(wqe[12:])
	if w0>>24 != 0 || uint16(w0>>8) != op.wqeIndex() || w1>>8 != qpn {
		return synLocalQPOp
	}
	if ds := int(w1 & 0x3f); ds*segBytes != len(wqe) {
		return synLocalQPOp
	}
	rest := wqe[segBytes:]

	switch op.opcode {
	case opNOP:
		return synOK
	case opSend, opSendImm:
	case opWrite, opWriteImm:
		if typ == qpUD {
			return synLocalQPOp
		}
	case opSendInv, opRead, opCmpSwap, opFetchAdd:
		if typ != qpRC {
			return synLocalQPOp
		}
	case opUMR:
		if typ == qpUD || len(wqe) < umrSize(wqe) {
			return synLocalQPOp
		}
		return synOK
	default:
		return synLocalQPOp // masked atomics too: the device has none
	}
	if typ == qpUD {
		if len(rest) < avBytes || !op.av.decode(rest) {
			return synLocalQPOp
		}
		return op.decodeData(rest[avBytes:])
	}
	if op.opcode&^1 == opWrite || op.fetches() {
		if len(rest) < segBytes {
			return synLocalQPOp
		}
		op.raddr = be.Uint64(rest)
		op.rkey = be.Uint32(rest[8:])
		rest = rest[segBytes:]
	}
	if op.isAtomic() {
		if len(rest) < segBytes {
			return synLocalQPOp
		}
		op.swapAdd, op.compare = be.Uint64(rest), be.Uint64(rest[8:])
		rest = rest[segBytes:]
	}
	return op.decodeData(rest)
}

// decodeData reads the data segments, pointers and inline, to the end of the
// WQE.
func (op *sendOp) decodeData(rest []byte) syndrome {
	for len(rest) >= segBytes {
		bc := be.Uint32(rest)
		if bc&dataInline != 0 {
			n := int(bc & inlineMask)
			if op.fetches() || bc&^(dataInline|inlineMask) != 0 || 4+n > len(rest) {
				return synLocalQPOp
			}
			op.sges = append(op.sges, dataSeg{addr: uint64(len(op.wqe) - len(rest) + 4), n: uint32(n), inline: true})
			op.length += uint64(n)
			op.hasInline = true
			rest = rest[min(len(rest), (4+n+segBytes-1)&^(segBytes-1)):]
			continue
		}
		lkey := be.Uint32(rest[4:])
		if bc == 0 {
			if lkey == terminatorLKey {
				break
			}
			bc = dataMaxBytes // a byte count of 0 means 2^31
		}
		op.sges = append(op.sges, dataSeg{addr: be.Uint64(rest[8:]), n: bc, lkey: lkey})
		op.length += uint64(bc)
		rest = rest[segBytes:]
	}
	return synOK
}

const avBytes = 48

// decode reads struct mlx5_wqe_av, and reports whether it has its
// extended form, without which there is no destination GID.
func (av *udAV) decode(b []byte) bool {
	_ = b[avBytes-1]
	dqp := be.Uint32(b[8:])
	gid := be.Uint32(b[28:])
	av.qkey = be.Uint32(b)
	av.qpn = dqp & 0xffffff
	av.sl = b[12] >> 1 & 7 // RoCE: the priority, above a bit that is not its own
	av.sport = be.Uint16(b[14:])
	av.dmac = [6]byte(b[20:26])
	av.trafficClass = b[26]
	av.hopLimit = b[27]
	av.flowLabel = gid & 0xfffff
	av.sgidIndex = uint8(gid >> 20)
	av.isGlobal = true // always, on RoCE
	av.rateSL, av.pathBits, av.hasGRH = b[12], b[13], gid&avGRH != 0
	av.dgid = [16]byte(b[32:48])
	return dqp&avExtended != 0
}
