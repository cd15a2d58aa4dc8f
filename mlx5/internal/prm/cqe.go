package prm

import (
	"sync/atomic"
	"unsafe"
)

// CQEBytes is the size of what a completion queue entry says. The entry itself
// is of that size, or of twice that: then this is its second half, and the first
// is empty or holds data (CQEScatter64).
const CQEBytes = 64

// Opcodes of a CQE, bits 7:4 of its op_own byte (MLX5_CQE_*).
const (
	CQEReq         = 0x0
	CQERespWrImm   = 0x1
	CQERespSend    = 0x2
	CQERespSendImm = 0x3
	CQERespSendInv = 0x4
	CQEResize      = 0x5 // the device goes on in the CQ's next buffer
	CQEReqErr      = 0xd
	CQERespErr     = 0xe
	CQEInvalid     = 0xf
)

// Other bits of a CQE's op_own byte.
const (
	CQEOwnerMask  = 0x01 // flips with every lap of the ring
	CQEFormatMask = 0x0c
	CQEScatter32  = 0x04 // format: the first 32 bytes are data
	CQEScatter64  = 0x08 // format: the 64 bytes before it are data; CQEs of 128 bytes
)

// VendorODPFault in an error CQE with SyndromeRemoteAborted says that an SRQ's
// WQE was taken, but its memory was not there (on-demand paging): it is to be
// posted again.
const VendorODPFault = 0x93

// Syndromes of an error CQE (MLX5_CQE_SYNDROME_*).
const (
	SyndromeLocalLength       = 0x01
	SyndromeLocalQPOp         = 0x02
	SyndromeLocalProt         = 0x04
	SyndromeWRFlush           = 0x05
	SyndromeMWBind            = 0x06
	SyndromeBadResp           = 0x10
	SyndromeLocalAccess       = 0x11
	SyndromeRemoteInvalReq    = 0x12
	SyndromeRemoteAccess      = 0x13
	SyndromeRemoteOp          = 0x14
	SyndromeTransportRetryExc = 0x15
	SyndromeRNRRetryExc       = 0x16
	SyndromeRemoteAborted     = 0x22
)

// CQE64 is struct mlx5_cqe64, and struct mlx5_err_cqe where its opcode says
// so. Last is written last by the device and decides whether the rest is valid.
type CQE64 struct {
	_            [4]BE32
	MLPath       BE32 // byte 1: bit 7 GRH of the path, bits 6:0 destination path bits
	SLID         BE32 // remote LID in 15:0
	FlagsRQPN    BE32 // GRH kind 29:28, SL 27:24, remote QPN 23:0
	_            BE32
	SRQNUIDX     BE32 // user index of the QP (or SRQ) 23:0
	ImmInvalPKey BE32 // immediate or invalidated rkey; P_Key index 15:0
	_            BE32
	ByteCnt      BE32
	_            BE32          // timestamp, high word
	TimestampLow BE32          // error CQE: vendor syndrome 15:8, syndrome 7:0
	SOPDropQPN   BE32          // requester: opcode of the WQE 31:24; local QPN 23:0
	Last         atomic.Uint32 // big-endian: wqe_counter 31:16, signature 15:8, op_own 7:0
}

var (
	_ [CQEBytes]byte = [unsafe.Sizeof(CQE64{})]byte{}
	_ [16]byte       = [unsafe.Offsetof(CQE64{}.MLPath)]byte{}
	_ [20]byte       = [unsafe.Offsetof(CQE64{}.SLID)]byte{}
	_ [24]byte       = [unsafe.Offsetof(CQE64{}.FlagsRQPN)]byte{}
	_ [32]byte       = [unsafe.Offsetof(CQE64{}.SRQNUIDX)]byte{}
	_ [36]byte       = [unsafe.Offsetof(CQE64{}.ImmInvalPKey)]byte{}
	_ [44]byte       = [unsafe.Offsetof(CQE64{}.ByteCnt)]byte{}
	_ [52]byte       = [unsafe.Offsetof(CQE64{}.TimestampLow)]byte{}
	_ [56]byte       = [unsafe.Offsetof(CQE64{}.SOPDropQPN)]byte{}
	_ [60]byte       = [unsafe.Offsetof(CQE64{}.Last)]byte{}
)

// CQE returns entry i of a ring whose first one is at p and whose entries lie
// stride bytes apart.
func CQE(p *byte, i, stride uint32) *CQE64 {
	return (*CQE64)(unsafe.Add(unsafe.Pointer(p), uintptr(i)*uintptr(stride)))
}

// Data returns the n bytes that a CQE of format CQEScatter32 or CQEScatter64
// holds. The second kind lies in the half before e, where stride is 128.
func (e *CQE64) Data(format, n uint32) []byte {
	p := unsafe.Pointer(e)
	if format == CQEScatter64 {
		p = unsafe.Add(p, -CQEBytes)
	}
	return unsafe.Slice((*byte)(p), n)
}

// LoadLast loads the CQE's last word in host order.
func (e *CQE64) LoadLast() uint32 { return uint32(ToBE32(e.Last.Load())) }

// StoreLast stores the CQE's last word, given in host order.
func (e *CQE64) StoreLast(v uint32) { e.Last.Store(uint32(ToBE32(v))) }

// CopyBody copies all of src but its last word, with the half before it if the
// entries are of stride 2*CQEBytes.
func (e *CQE64) CopyBody(src *CQE64, stride uint32) {
	*(*[15]BE32)(unsafe.Pointer(e)) = *(*[15]BE32)(unsafe.Pointer(src))
	if stride > CQEBytes {
		*(*[CQEBytes]byte)(unsafe.Add(unsafe.Pointer(e), -CQEBytes)) = *(*[CQEBytes]byte)(unsafe.Add(unsafe.Pointer(src), -CQEBytes))
	}
}
