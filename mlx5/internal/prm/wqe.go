package prm

import "unsafe"

// Sizes in bytes.
const (
	SegBytes   = 16 // unit of CtrlSeg.QPNDS's ds, and of most segments
	WQEBBBytes = 64 // WQE basic block: the unit of a send queue's index
)

// Opcodes of a send WQE, MLX5_OPCODE_*.
const (
	OpcodeNop          = 0x00
	OpcodeSendInval    = 0x01
	OpcodeRDMAWrite    = 0x08
	OpcodeRDMAWriteImm = 0x09
	OpcodeSend         = 0x0a
	OpcodeSendImm      = 0x0b
	OpcodeRDMARead     = 0x10
	OpcodeAtomicCS     = 0x11
	OpcodeAtomicFA     = 0x12
)

// Bits of CtrlSeg.FmCeSe.
const (
	CtrlFence     = 0x80 // fm = 4: wait for all earlier READs and atomics
	CtrlCQUpdate  = 0x08 // ce = 2: write a CQE on success
	CtrlSolicited = 0x02 // se
)

// CtrlSeg is struct mlx5_wqe_ctrl_seg, the first segment of every send WQE.
type CtrlSeg struct {
	OpmodIdxOpcode BE32 // opmod 31:24, WQE index in WQEBBs 23:8, opcode 7:0
	QPNDS          BE32 // QPN 31:8, ds 5:0: size of the WQE in units of 16 bytes
	FmCeSe         BE32 // signature 31:24, DCI stream 23:8, fm 7:5, ce 3:2, se 1
	Imm            BE32 // immediate, invalidated rkey, or umr mkey
}

// AV is struct mlx5_wqe_av: where a datagram goes. It is the UD WQE's
// datagram segment as a whole.
type AV struct {
	QKey      BE32
	_         BE32
	DQPN      BE32 // bit 31: the extended address vector follows; QPN 23:0
	StatSLLID BE32 // static rate 31:28, SL 27:24 (RoCE: SL 27:25), source path bits 22:16, remote LID or UDP source port 15:0
	_         BE32
	RMACHi    BE32 // remote MAC, bytes 0 to 3
	RMACLoHop BE32 // remote MAC bytes 4, 5 in 31:16, traffic class 15:8, hop limit 7:0
	GRHGIDFL  BE32 // bit 30: GRH (InfiniBand only), source GID index 27:20, flow label 19:0
	RGID      [2]BE64
}

// AVExtended in AV.DQPN says that the address vector is of 48 bytes.
const AVExtended = 1 << 31

// AVGRH in AV.GRHGIDFL asks for a GRH on an InfiniBand link; reserved on RoCE.
const AVGRH = 1 << 30

// RAddrSeg is struct mlx5_wqe_raddr_seg: the remote side of RDMA.
type RAddrSeg struct {
	RAddr BE64
	RKey  BE32
	_     BE32
}

// DataSeg is struct mlx5_wqe_data_seg, of send and of receive WQEs.
type DataSeg struct {
	ByteCount BE32 // bit 31 must be 0 here: it marks inline data
	LKey      BE32
	Addr      BE64
}

// InvalidLKey in a DataSeg of length 0 ends the list of a receive WQE that is
// not full (MLX5_INVALID_LKEY).
const InvalidLKey = 0x100

// InlineSeg is struct mlx5_wqe_inl_data_seg. The data follow it directly and
// are padded to 16 bytes, this header included.
type InlineSeg struct {
	ByteCount BE32 // InlineFlag | bytes
}

// InlineFlag marks an InlineSeg (MLX5_INLINE_SEG).
const InlineFlag = 1 << 31

var (
	_ [16]byte = [unsafe.Sizeof(CtrlSeg{})]byte{}
	_ [8]byte  = [unsafe.Offsetof(CtrlSeg{}.FmCeSe)]byte{}
	_ [12]byte = [unsafe.Offsetof(CtrlSeg{}.Imm)]byte{}
	_ [48]byte = [unsafe.Sizeof(AV{})]byte{}
	_ [8]byte  = [unsafe.Offsetof(AV{}.DQPN)]byte{}
	_ [12]byte = [unsafe.Offsetof(AV{}.StatSLLID)]byte{}
	_ [20]byte = [unsafe.Offsetof(AV{}.RMACHi)]byte{}
	_ [24]byte = [unsafe.Offsetof(AV{}.RMACLoHop)]byte{}
	_ [28]byte = [unsafe.Offsetof(AV{}.GRHGIDFL)]byte{}
	_ [32]byte = [unsafe.Offsetof(AV{}.RGID)]byte{}
	_ [16]byte = [unsafe.Sizeof(RAddrSeg{})]byte{}
	_ [8]byte  = [unsafe.Offsetof(RAddrSeg{}.RKey)]byte{}
	_ [16]byte = [unsafe.Sizeof(DataSeg{})]byte{}
	_ [8]byte  = [unsafe.Offsetof(DataSeg{}.Addr)]byte{}
	_ [4]byte  = [unsafe.Sizeof(InlineSeg{})]byte{}
)

// Add returns the address n bytes after p.
func Add(p *byte, n uint32) *byte { return (*byte)(unsafe.Add(unsafe.Pointer(p), n)) }

// Distance returns how many bytes q lies after p, in the same queue.
func Distance(p, q *byte) uint32 {
	return uint32(uintptr(unsafe.Pointer(q)) - uintptr(unsafe.Pointer(p)))
}

// Ctrl returns the control segment at p.
func Ctrl(p *byte) *CtrlSeg { return (*CtrlSeg)(unsafe.Pointer(p)) }

// Datagram returns the datagram segment at p.
func Datagram(p *byte) *AV { return (*AV)(unsafe.Pointer(p)) }

// RAddr returns the remote address segment at p.
func RAddr(p *byte) *RAddrSeg { return (*RAddrSeg)(unsafe.Pointer(p)) }

// Data returns the data segment at p.
func Data(p *byte) *DataSeg { return (*DataSeg)(unsafe.Pointer(p)) }

// Inline returns the inline segment's header at p.
func Inline(p *byte) *InlineSeg { return (*InlineSeg)(unsafe.Pointer(p)) }

// DoorbellWord returns the first 8 bytes of the WQE at p as they lie in memory:
// what a send doorbell register takes.
func DoorbellWord(p *byte) uint64 { return *(*uint64)(unsafe.Pointer(p)) }

// Bytes returns the n bytes at p.
func Bytes(p *byte, n uint32) []byte { return unsafe.Slice(p, n) }

// Memory returns the n bytes at the virtual address addr of this process.
// The caller vouches for them, as with every address in a work request.
func Memory(addr uint64, n uint32) []byte {
	a := uintptr(addr)
	return unsafe.Slice(*(**byte)(unsafe.Pointer(&a)), n)
}
