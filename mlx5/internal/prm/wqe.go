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
	OpcodeUMR          = 0x25 // changes an mkey: LOCAL_INV, BIND_MW
)

// Bits of CtrlSeg.FmCeSe.
const (
	CtrlFence      = 0x80 // fm = 4: wait for all earlier READs and atomics
	CtrlSmallFence = 0x20 // fm = 1: wait for earlier changes of mkeys
	CtrlCQUpdate   = 0x08 // ce = 2: write a CQE on success
	CtrlSolicited  = 0x02 // se
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

// AtomicSeg is struct mlx5_wqe_atomic_seg: the operands of an atomic.
type AtomicSeg struct {
	SwapAdd BE64 // compare and swap: the new value; fetch and add: what is added
	Compare BE64
}

// UMRCtrlSeg is struct mlx5_wqe_umr_ctrl_seg: which fields of an mkey change.
type UMRCtrlSeg struct {
	Flags    BE32 // inline 31, check that the mkey is free 29, translation offset 28, check its QPN 27
	KLM      BE32 // klm_octowords 31:16, translation offset 15:0
	MKeyMask BE64
	_        [4]BE64
}

// Bits of UMRCtrlSeg.Flags.
const (
	UMRInline            = 0x80 << 24
	UMRCheckFree         = 0x20 << 24
	UMRTranslationOffset = 0x10 << 24
	UMRCheckQPN          = 0x08 << 24
)

// Bits of UMRCtrlSeg.MKeyMask: the fields of an MKeySeg that are taken over.
const (
	UMRMaskLen          = 1 << 0
	UMRMaskStart        = 1 << 6
	UMRMaskMKey         = 1 << 13
	UMRMaskQPN          = 1 << 14
	UMRMaskLocalWrite   = 1 << 18
	UMRMaskRemoteRead   = 1 << 19
	UMRMaskRemoteWrite  = 1 << 20
	UMRMaskRemoteAtomic = 1 << 21
	UMRMaskFree         = 1 << 29
)

// MKeySeg is struct mlx5_wqe_mkey_context_seg: an mkey's new contents.
type MKeySeg struct {
	Access  BE32 // free 30; access: atomic 14, remote write 13, remote read 12, local write 11, local read 10
	QPNMKey BE32 // QPN 31:8 (all ones: any), variable part of the key 7:0
	_       [2]BE32
	Start   BE64
	Len     BE64
	_       [4]BE64
}

// Bits of MKeySeg.Access.
const (
	MKeyFree         = 1 << 30
	MKeyRemoteAtomic = 1 << 14
	MKeyRemoteWrite  = 1 << 13
	MKeyRemoteRead   = 1 << 12
)

// MKeyAnyQPN in MKeySeg.QPNMKey binds the mkey to no QP.
const MKeyAnyQPN = 0xffffff00

// KLMSeg is struct mlx5_wqe_umr_klm_seg, padded to a WQEBB as in a WQE: the
// memory that an mkey maps.
type KLMSeg struct {
	DataSeg
	_ [6]BE64
}

// NextSeg is struct mlx5_wqe_srq_next_seg, the first segment of an SRQ's WQE:
// the list that the device follows.
type NextSeg struct {
	Next BE32 // index of the next WQE 15:0
	_    [3]BE32
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
	_ [16]byte = [unsafe.Sizeof(AtomicSeg{})]byte{}
	_ [48]byte = [unsafe.Sizeof(UMRCtrlSeg{})]byte{}
	_ [8]byte  = [unsafe.Offsetof(UMRCtrlSeg{}.MKeyMask)]byte{}
	_ [64]byte = [unsafe.Sizeof(MKeySeg{})]byte{}
	_ [16]byte = [unsafe.Offsetof(MKeySeg{}.Start)]byte{}
	_ [64]byte = [unsafe.Sizeof(KLMSeg{})]byte{}
	_ [16]byte = [unsafe.Sizeof(NextSeg{})]byte{}
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

// Atomic returns the atomic segment at p.
func Atomic(p *byte) *AtomicSeg { return (*AtomicSeg)(unsafe.Pointer(p)) }

// UMRCtrl returns the UMR control segment at p.
func UMRCtrl(p *byte) *UMRCtrlSeg { return (*UMRCtrlSeg)(unsafe.Pointer(p)) }

// MKey returns the mkey context segment at p.
func MKey(p *byte) *MKeySeg { return (*MKeySeg)(unsafe.Pointer(p)) }

// KLM returns the KLM segment at p.
func KLM(p *byte) *KLMSeg { return (*KLMSeg)(unsafe.Pointer(p)) }

// NextWQE returns the next segment at p.
func NextWQE(p *byte) *NextSeg { return (*NextSeg)(unsafe.Pointer(p)) }

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
