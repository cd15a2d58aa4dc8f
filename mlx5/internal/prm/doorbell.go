package prm

import (
	"sync/atomic"
	"unsafe"
)

// DBRec is a doorbell record: two big-endian words in host memory that the
// device reads.
//
// Of a QP: word 0 counts receive WQEs (16 bits), word 1 WQEBBs of the send
// queue (16 bits). Of a CQ: word 0 is the consumer index (24 bits), word 1 the
// arm word; see CQArm.
type DBRec [2]atomic.Uint32

// Words of a DBRec.
const (
	QPRecv = 0 // MLX5_RCV_DBR
	QPSend = 1 // MLX5_SND_DBR
	CQCI   = 0 // MLX5_CQ_SET_CI
	CQArmW = 1 // MLX5_CQ_ARM_DB
)

// Fields of the arm word: sequence number 29:28, solicited only 24, consumer
// index 23:0. The CQ doorbell register takes the arm word and the CQN.
const (
	ArmSNShift   = 28
	ArmSNMask    = 3
	ArmSolicited = 1 << 24
	CIMask       = 1<<24 - 1
)

// Offsets in a UAR page, bytes.
const (
	UARCQDoorbell = 0x20
	UARBlueFlame  = 0x800 // the first BlueFlame register; the next follows at its size
)

var _ [8]byte = [unsafe.Sizeof(DBRec{})]byte{}

// Record returns the doorbell record at p.
func Record(p *byte) *DBRec { return (*DBRec)(unsafe.Pointer(p)) }

// Load returns word w in host order.
func (r *DBRec) Load(w int) uint32 { return uint32(ToBE32(r[w].Load())) }

// Store stores word w, given in host order.
func (r *DBRec) Store(w int, v uint32) { r[w].Store(uint32(ToBE32(v))) }

// Addr returns the address of p as the kernel takes it.
func Addr(p *byte) uint64 { return uint64(uintptr(unsafe.Pointer(p))) }

// CQDoorbell returns the 8 bytes, as they lie in memory, that arm CQ cqn.
func CQDoorbell(arm, cqn uint32) uint64 { return uint64(ToBE64(uint64(arm)<<32 | uint64(cqn))) }

// Word returns the address of word w, for the doorbell stubs.
func (r *DBRec) Word(w int) *uint32 { return (*uint32)(unsafe.Pointer(&r[w])) }
