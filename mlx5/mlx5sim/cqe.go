package mlx5sim

import "encoding/binary"

// CQE opcodes, the top four bits of op_own (enum MLX5_CQE_*).
const (
	cqeReq         = 0
	cqeRespWrImm   = 1
	cqeRespSend    = 2
	cqeRespSendImm = 3
	cqeRespSendInv = 4
	cqeResize      = 5
	cqeReqErr      = 13
	cqeRespErr     = 14
)

var be = binary.BigEndian

const cqeBytes = 64 // of the entry proper; a 128-byte CQE has it in its upper half

// Type of the packet's network header in a RoCE CQE: bits 25:24 of flags_rqpn.
const (
	l3GRH  = 0 // RoCE v1
	l3IPv6 = 1
	l3IPv4 = 2
)

// cqe is a completion before it is laid out as struct mlx5_cqe64.
type cqe struct {
	opcode    uint8
	uidx      uint32 // CQE version 1: the QP's user index instead of an SRQN
	qpn       uint32
	wqeOpcode uint8  // of the send WQE, in requester completions
	counter   uint16 // index of the WQE
	byteCount uint32
	imm       uint32
	srcQPN    uint32
	grh       bool
	l3        uint8
	sl        uint8  // InfiniBand only: on RoCE its place is l3's
	slid      uint16 // InfiniBand only
	solicited bool
	syn       syndrome
	inline    uint8 // bytes of scratch.inline that the entry carries; see cqeInline32
}

// A completion may carry the data itself, in its first 32 bytes or, where the
// entry has 128, in the first 64 of those.
const (
	cqeInline32 = 1 << 2 // MLX5_INLINE_SCATTER_32
	cqeInline64 = 1 << 3 // MLX5_INLINE_SCATTER_64
)

// put lays c out. It leaves the ownership bit 0.
func (c *cqe) put(b *[cqeBytes]byte) {
	*b = [cqeBytes]byte{}
	be.PutUint32(b[32:], c.uidx&0xffffff)
	be.PutUint32(b[56:], uint32(c.wqeOpcode)<<24|c.qpn&0xffffff)
	be.PutUint16(b[60:], c.counter)
	b[63] = c.opcode << 4
	if c.solicited {
		b[63] |= 1 << 1
	}
	if c.syn != synOK {
		b[54] = c.syn.vendor()
		b[55] = uint8(c.syn)
		return
	}
	be.PutUint32(b[36:], c.imm)
	be.PutUint32(b[44:], c.byteCount)
	if c.opcode != cqeReq {
		flags := c.srcQPN&0xffffff | uint32(c.l3|c.sl)<<24
		if c.grh {
			flags |= 1 << 28
		}
		be.PutUint32(b[24:], flags)
		be.PutUint16(b[22:], c.slid)
	}
}
