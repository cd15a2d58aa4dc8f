package uverbs

import "fmt"

// DeviceAttr is struct ibv_device_attr.
type DeviceAttr struct {
	FirmwareVersion   string
	NodeGUID          [8]byte // network order
	SysImageGUID      [8]byte // network order
	MaxMRSize         uint64  // bytes
	PageSizeCap       uint64
	VendorID          uint32
	VendorPartID      uint32
	HWVersion         uint32
	MaxQP             int
	MaxQPWR           int
	MaxSGE            int
	MaxSGERead        int
	MaxCQ             int
	MaxCQE            int
	MaxMR             int
	MaxPD             int
	MaxAH             int
	MaxSRQ            int
	MaxSRQWR          int
	MaxQPRdAtomic     int // READs and atomics that a QP serves at once
	MaxQPInitRdAtomic int // READs and atomics that a QP has outstanding at once
	AtomicCap         uint32
	MaxPKeys          int
	Ports             int
}

// PortState is enum ibv_port_state.
type PortState uint8

const (
	PortNop PortState = iota
	PortDown
	PortInit
	PortArmed
	PortActive
	PortActiveDefer
)

func (s PortState) String() string {
	names := [...]string{"NOP", "DOWN", "INIT", "ARMED", "ACTIVE", "ACTIVE_DEFER"}
	if int(s) < len(names) {
		return names[s]
	}
	return fmt.Sprintf("PortState(%d)", uint8(s))
}

// MTU is enum ibv_mtu.
type MTU uint8

const (
	MTU256 MTU = iota + 1
	MTU512
	MTU1024
	MTU2048
	MTU4096
)

// Bytes returns the payload bytes per packet, 0 for an unknown MTU.
func (m MTU) Bytes() int {
	if m < MTU256 || m > MTU4096 {
		return 0
	}
	return 128 << m
}

func (m MTU) String() string { return fmt.Sprintf("%d", m.Bytes()) }

// LinkLayer is IBV_LINK_LAYER_*.
type LinkLayer uint8

const (
	LinkLayerUnspecified LinkLayer = iota
	LinkLayerInfiniBand
	LinkLayerEthernet
)

func (l LinkLayer) String() string {
	switch l {
	case LinkLayerInfiniBand:
		return "InfiniBand"
	case LinkLayerEthernet:
		return "Ethernet"
	}
	return "Unspecified"
}

// PortAttr is struct ibv_port_attr.
type PortAttr struct {
	State       PortState
	MaxMTU      MTU
	ActiveMTU   MTU
	GIDTblLen   int
	PKeyTblLen  int
	MaxMsgSize  uint32 // bytes
	LID         uint16
	SMLID       uint16
	PhysState   uint8
	LinkLayer   LinkLayer
	ActiveWidth uint8
	ActiveSpeed uint8
}

// AccessFlags of an MR, and of the remote side of a QP: enum ibv_access_flags.
type AccessFlags uint32

const (
	AccessLocalWrite      AccessFlags = 1 << 0
	AccessRemoteWrite     AccessFlags = 1 << 1
	AccessRemoteRead      AccessFlags = 1 << 2
	AccessRemoteAtomic    AccessFlags = 1 << 3
	AccessMWBind          AccessFlags = 1 << 4
	AccessZeroBased       AccessFlags = 1 << 5
	AccessOnDemand        AccessFlags = 1 << 6
	AccessHugeTLB         AccessFlags = 1 << 7
	AccessRelaxedOrdering AccessFlags = 1 << 20
)
