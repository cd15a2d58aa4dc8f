package uverbs

import "fmt"

// SGE is a piece of registered memory: struct ibv_sge.
type SGE struct {
	Addr   uint64 // virtual address within the MR
	Length uint32 // bytes; 0 is skipped
	LKey   uint32
}

// WROpcode is the operation of a send work request: enum ibv_wr_opcode.
type WROpcode uint8

const (
	WRRDMAWrite         WROpcode = 0
	WRRDMAWriteWithImm  WROpcode = 1
	WRSend              WROpcode = 2
	WRSendWithImm       WROpcode = 3
	WRRDMARead          WROpcode = 4
	WRAtomicCmpAndSwp   WROpcode = 5
	WRAtomicFetchAndAdd WROpcode = 6
	WRLocalInv          WROpcode = 7
	WRBindMW            WROpcode = 8
	WRSendWithInv       WROpcode = 9
)

func (o WROpcode) String() string {
	names := [...]string{"RDMA_WRITE", "RDMA_WRITE_WITH_IMM", "SEND", "SEND_WITH_IMM", "RDMA_READ",
		"ATOMIC_CMP_AND_SWP", "ATOMIC_FETCH_AND_ADD", "LOCAL_INV", "BIND_MW", "SEND_WITH_INV"}
	if int(o) < len(names) {
		return names[o]
	}
	return fmt.Sprintf("WROpcode(%d)", uint8(o))
}

// SendFlags is enum ibv_send_flags.
type SendFlags uint8

const (
	SendFence     SendFlags = 1 << 0 // wait for earlier READs and atomics of this QP
	SendSignaled  SendFlags = 1 << 1 // write a completion on success
	SendSolicited SendFlags = 1 << 2 // raise the receiver's solicited event
	SendInline    SendFlags = 1 << 3 // copy the data into the WQE; LKeys are ignored
)

// SendWR is a send work request: struct ibv_send_wr.
//
// With SendInline the provider reads the bytes at SGList[i].Addr during the
// call, and the memory may be reused when PostSend returns. Without it the
// memory belongs to the device until the request completes. Either way the
// addresses must be of memory that Go does not move: mapped memory, or heap
// memory that the caller keeps alive; never a stack variable's.
type SendWR struct {
	WRID    uint64
	Opcode  WROpcode
	Flags   SendFlags
	ImmData uint32 // host order; on the wire big-endian. For the WithImm opcodes
	SGList  []SGE

	// RDMA and atomics. An atomic's RemoteAddr is aligned to 8, and its SGList
	// holds the 8 bytes that the old value goes to.
	RemoteAddr uint64
	RKey       uint32

	// Atomics, host order.
	CompareAdd uint64 // what WRAtomicCmpAndSwp compares with, or what WRAtomicFetchAndAdd adds
	Swap       uint64 // what WRAtomicCmpAndSwp stores if the old value is CompareAdd

	// InvalidateRKey is the key that WRSendWithInv has the receiver invalidate,
	// or that WRLocalInv invalidates here. On the wire it takes the place of
	// the immediate, and the receiver finds it in WC.ImmData.
	InvalidateRKey uint32

	// Bind holds the operands of WRBindMW, which reads them during the call.
	Bind *MWBind

	// UD.
	RemoteQPN  uint32
	RemoteQKey uint32
	AH         *AH
}

// RecvWR is a receive work request: struct ibv_recv_wr. On a UD QP the first
// 40 bytes of the buffers are for the GRH.
type RecvWR struct {
	WRID   uint64
	SGList []SGE
}
