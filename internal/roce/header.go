package roce

import "encoding/binary"

// Sizes of the headers in bytes.
const (
	BTHSize       = 12
	DETHSize      = 8
	RETHSize      = 16
	AETHSize      = 4
	ImmSize       = 4
	AtomicETHSize = 28
	AtomicAckSize = 8
	IETHSize      = 4
	ICRCSize      = 4

	// MaxHeaderSize covers BTH and the extension headers of any opcode.
	MaxHeaderSize = BTHSize + AtomicETHSize
)

// PSNMask covers the 24 bits of a PSN, an MSN or a QPN.
const PSNMask = 1<<24 - 1

var be = binary.BigEndian

// BTH is the base transport header (IBTA 9.2):
//
//	0     OpCode
//	1     SE:1 M:1 PadCnt:2 TVer:4
//	2-3   P_Key
//	4     FECN:1 BECN:1 reserved:6, outside the ICRC
//	5-7   DestQP
//	8     A:1 reserved:7
//	9-11  PSN
type BTH struct {
	Opcode    Opcode
	Solicited bool
	MigReq    bool
	Pad       uint8 // bytes of pad behind the payload, 0-3
	PKey      uint16
	DestQPN   uint32
	AckReq    bool
	PSN       uint32
}

// Put writes the header to b[:12]. FECN, BECN and TVer are 0.
func (h *BTH) Put(b []byte) {
	_ = b[11]
	flags := h.Pad & 3 << 4
	if h.Solicited {
		flags |= 0x80
	}
	if h.MigReq {
		flags |= 0x40
	}
	be.PutUint32(b, uint32(h.Opcode)<<24|uint32(flags)<<16|uint32(h.PKey))
	be.PutUint32(b[4:], h.DestQPN&PSNMask)
	psn := h.PSN & PSNMask
	if h.AckReq {
		psn |= 1 << 31
	}
	be.PutUint32(b[8:], psn)
}

func parseBTH(b []byte) BTH {
	_ = b[11]
	return BTH{
		Opcode:    Opcode(b[0]),
		Solicited: b[1]&0x80 != 0,
		MigReq:    b[1]&0x40 != 0,
		Pad:       b[1] >> 4 & 3,
		PKey:      be.Uint16(b[2:]),
		DestQPN:   be.Uint32(b[4:]) & PSNMask,
		AckReq:    b[8]&0x80 != 0,
		PSN:       be.Uint32(b[8:]) & PSNMask,
	}
}

// DETH is the datagram extended header (IBTA 9.3.2):
//
//	0-3  Q_Key
//	4    reserved
//	5-7  SrcQP
type DETH struct {
	QKey   uint32
	SrcQPN uint32
}

// Put writes the header to b[:8].
func (h DETH) Put(b []byte) {
	_ = b[7]
	be.PutUint32(b, h.QKey)
	be.PutUint32(b[4:], h.SrcQPN&PSNMask)
}

// RETH is the RDMA extended header (IBTA 9.3.3): 0-7 VA, 8-11 R_Key,
// 12-15 DMALen.
type RETH struct {
	VA     uint64
	RKey   uint32
	Length uint32
}

// Put writes the header to b[:16].
func (h RETH) Put(b []byte) {
	_ = b[15]
	be.PutUint64(b, h.VA)
	be.PutUint32(b[8:], h.RKey)
	be.PutUint32(b[12:], h.Length)
}

// AETH is the acknowledge extended header (IBTA 9.3.5): 0 Syndrome, 1-3 MSN.
type AETH struct {
	Syndrome Syndrome
	MSN      uint32
}

// Put writes the header to b[:4].
func (h AETH) Put(b []byte) {
	be.PutUint32(b, uint32(h.Syndrome)<<24|h.MSN&PSNMask)
}

// AtomicETH is the atomic extended header (IBTA 9.3.4): 0-7 VA, 8-11 R_Key,
// 12-19 SwapDt (or AddDt), 20-27 CmpDt.
type AtomicETH struct {
	VA      uint64
	RKey    uint32
	SwapAdd uint64
	Compare uint64
}

// Put writes the header to b[:28].
func (h AtomicETH) Put(b []byte) {
	_ = b[27]
	be.PutUint64(b, h.VA)
	be.PutUint32(b[8:], h.RKey)
	be.PutUint64(b[12:], h.SwapAdd)
	be.PutUint64(b[20:], h.Compare)
}

// PutUint32 writes ImmDt, or the R_Key of an IETH, to b[:4].
func PutUint32(b []byte, v uint32) { be.PutUint32(b, v) }

// PutUint64 writes AtomicAckETH, the original value, to b[:8].
func PutUint64(b []byte, v uint64) { be.PutUint64(b, v) }

// Syndrome is AETH.Syndrome (IBTA 9.7.5.2.2): bits 6:5 say what it is, 4:0
// its value.
type Syndrome uint8

// Ack acknowledges. Its credit count 31 says that the responder does not
// report end-to-end credits.
const Ack Syndrome = 0x1f

// NAK codes.
const (
	NAKSequence       Syndrome = 0x60
	NAKInvalidRequest Syndrome = 0x61
	NAKRemoteAccess   Syndrome = 0x62
	NAKRemoteOp       Syndrome = 0x63
)

// RNR is the receiver-not-ready NAK that asks for a wait of code's time.
func RNR(code uint8) Syndrome { return 0x20 | Syndrome(code&0x1f) }

// IsAck reports a positive acknowledgement.
func (s Syndrome) IsAck() bool { return s&0xe0 == 0 }

// IsRNR reports a receiver-not-ready NAK; Code is then the timer's code.
func (s Syndrome) IsRNR() bool { return s&0xe0 == 0x20 }

// IsNAK reports a negative acknowledgement.
func (s Syndrome) IsNAK() bool { return s&0xe0 == 0x60 }

// Code is the value in the low five bits.
func (s Syndrome) Code() uint8 { return uint8(s & 0x1f) }
