package roce

import (
	"fmt"
	"strings"
)

// Port is RoCEv2's UDP destination port.
const Port = 4791

// Opcode is BTH.OpCode: three bits of transport, five of operation.
type Opcode uint8

const (
	RCSendFirst      Opcode = 0x00
	RCSendMiddle     Opcode = 0x01
	RCSendLast       Opcode = 0x02
	RCSendLastImm    Opcode = 0x03
	RCSendOnly       Opcode = 0x04
	RCSendOnlyImm    Opcode = 0x05
	RCWriteFirst     Opcode = 0x06
	RCWriteMiddle    Opcode = 0x07
	RCWriteLast      Opcode = 0x08
	RCWriteLastImm   Opcode = 0x09
	RCWriteOnly      Opcode = 0x0a
	RCWriteOnlyImm   Opcode = 0x0b
	RCReadRequest    Opcode = 0x0c
	RCReadRespFirst  Opcode = 0x0d
	RCReadRespMiddle Opcode = 0x0e
	RCReadRespLast   Opcode = 0x0f
	RCReadRespOnly   Opcode = 0x10
	RCAck            Opcode = 0x11
	RCAtomicAck      Opcode = 0x12
	RCCmpSwap        Opcode = 0x13
	RCFetchAdd       Opcode = 0x14
	RCSendLastInv    Opcode = 0x16
	RCSendOnlyInv    Opcode = 0x17
	UCSendFirst      Opcode = 0x20
	UCSendMiddle     Opcode = 0x21
	UCSendLast       Opcode = 0x22
	UCSendLastImm    Opcode = 0x23
	UCSendOnly       Opcode = 0x24
	UCSendOnlyImm    Opcode = 0x25
	UCWriteFirst     Opcode = 0x26
	UCWriteMiddle    Opcode = 0x27
	UCWriteLast      Opcode = 0x28
	UCWriteLastImm   Opcode = 0x29
	UCWriteOnly      Opcode = 0x2a
	UCWriteOnlyImm   Opcode = 0x2b
	UDSendOnly       Opcode = 0x64
	UDSendOnlyImm    Opcode = 0x65
)

// traits says what an opcode's packets consist of and where they stand in
// their message.
type traits uint16

const (
	known   traits = 1 << iota
	first          // begins a message
	last           // ends a message
	payload        // may carry data
	hasDETH
	hasRETH
	hasAETH
	hasImm
	hasAtomic
	hasAtomicAck
	hasIETH
	response // travels from responder to requester
)

type opInfo struct {
	traits traits
	ext    uint8 // bytes of extension headers
	name   string
}

var opcodes = func() (t [256]opInfo) {
	set := func(op Opcode, name string, tr traits) {
		ext := 0
		for _, h := range [...]struct {
			has  traits
			size int
		}{
			{hasDETH, DETHSize}, {hasRETH, RETHSize}, {hasAETH, AETHSize}, {hasImm, ImmSize},
			{hasAtomic, AtomicETHSize}, {hasAtomicAck, AtomicAckSize}, {hasIETH, IETHSize},
		} {
			if tr&h.has != 0 {
				ext += h.size
			}
		}
		t[op] = opInfo{traits: tr | known, ext: uint8(ext), name: name}
	}
	set(RCSendFirst, "RC SEND First", first|payload)
	set(RCSendMiddle, "RC SEND Middle", payload)
	set(RCSendLast, "RC SEND Last", last|payload)
	set(RCSendLastImm, "RC SEND Last with Immediate", last|payload|hasImm)
	set(RCSendOnly, "RC SEND Only", first|last|payload)
	set(RCSendOnlyImm, "RC SEND Only with Immediate", first|last|payload|hasImm)
	set(RCWriteFirst, "RC RDMA WRITE First", first|payload|hasRETH)
	set(RCWriteMiddle, "RC RDMA WRITE Middle", payload)
	set(RCWriteLast, "RC RDMA WRITE Last", last|payload)
	set(RCWriteLastImm, "RC RDMA WRITE Last with Immediate", last|payload|hasImm)
	set(RCWriteOnly, "RC RDMA WRITE Only", first|last|payload|hasRETH)
	set(RCWriteOnlyImm, "RC RDMA WRITE Only with Immediate", first|last|payload|hasRETH|hasImm)
	set(RCReadRequest, "RC RDMA READ Request", first|last|hasRETH)
	set(RCReadRespFirst, "RC RDMA READ Response First", response|first|payload|hasAETH)
	set(RCReadRespMiddle, "RC RDMA READ Response Middle", response|payload)
	set(RCReadRespLast, "RC RDMA READ Response Last", response|last|payload|hasAETH)
	set(RCReadRespOnly, "RC RDMA READ Response Only", response|first|last|payload|hasAETH)
	set(RCAck, "RC Acknowledge", response|first|last|hasAETH)
	set(RCAtomicAck, "RC ATOMIC Acknowledge", response|first|last|hasAETH|hasAtomicAck)
	set(RCCmpSwap, "RC CmpSwap", first|last|hasAtomic)
	set(RCFetchAdd, "RC FetchAdd", first|last|hasAtomic)
	set(RCSendLastInv, "RC SEND Last with Invalidate", last|payload|hasIETH)
	set(RCSendOnlyInv, "RC SEND Only with Invalidate", first|last|payload|hasIETH)
	// UC has RC's SENDs and WRITEs, at the same places of its own block.
	for op := RCSendFirst; op <= RCWriteOnlyImm; op++ {
		set(op|UCSendFirst, "UC"+strings.TrimPrefix(t[op].name, "RC"), t[op].traits)
	}
	set(UDSendOnly, "UD SEND Only", first|last|payload|hasDETH)
	set(UDSendOnlyImm, "UD SEND Only with Immediate", first|last|payload|hasDETH|hasImm)
	return t
}()

func (op Opcode) traits() traits { return opcodes[op].traits }

// Known reports whether Parse takes packets of this opcode.
func (op Opcode) Known() bool { return op.traits()&known != 0 }

// IsUD reports whether the opcode belongs to unreliable datagrams.
func (op Opcode) IsUD() bool { return op>>5 == 3 }

// IsUC reports whether the opcode belongs to the unreliable connected service.
func (op Opcode) IsUC() bool { return op>>5 == 1 }

// IsResponse reports whether a responder sends it: acknowledgements and READ
// responses.
func (op Opcode) IsResponse() bool { return op.traits()&response != 0 }

// IsFirst reports whether the packet begins its message (First or Only).
func (op Opcode) IsFirst() bool { return op.traits()&first != 0 }

// IsLast reports whether the packet ends its message (Last or Only).
func (op Opcode) IsLast() bool { return op.traits()&last != 0 }

// HasImm reports whether an immediate follows.
func (op Opcode) HasImm() bool { return op.traits()&hasImm != 0 }

// HasIETH reports whether a key to invalidate follows.
func (op Opcode) HasIETH() bool { return op.traits()&hasIETH != 0 }

// IsSend reports whether it is a packet of a SEND.
func (op Opcode) IsSend() bool {
	return op <= RCSendOnlyImm || op == RCSendLastInv || op == RCSendOnlyInv ||
		op >= UCSendFirst && op <= UCSendOnlyImm || op == UDSendOnly || op == UDSendOnlyImm
}

// IsWrite reports whether it is a packet of an RDMA WRITE.
func (op Opcode) IsWrite() bool {
	return op >= RCWriteFirst && op <= RCWriteOnlyImm || op >= UCWriteFirst && op <= UCWriteOnlyImm
}

// IsReadResponse reports whether it carries data of an RC RDMA READ.
func (op Opcode) IsReadResponse() bool { return op >= RCReadRespFirst && op <= RCReadRespOnly }

// HeaderSize is the number of bytes before the payload: BTH and extension
// headers.
func (op Opcode) HeaderSize() int { return BTHSize + int(opcodes[op].ext) }

func (op Opcode) String() string {
	if n := opcodes[op].name; n != "" {
		return n
	}
	return fmt.Sprintf("Opcode(%#02x)", uint8(op))
}
