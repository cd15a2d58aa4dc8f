package uverbs

import "fmt"

// DeviceCaps is enum ibv_device_cap_flags, with the extended ones above bit 31.
type DeviceCaps uint64

const (
	CapResizeMaxWR      DeviceCaps = 1 << 0
	CapCurrQPStateMod   DeviceCaps = 1 << 7
	CapPortActiveEvent  DeviceCaps = 1 << 10
	CapRCRNRNAKGen      DeviceCaps = 1 << 12
	CapSRQResize        DeviceCaps = 1 << 13
	CapMemWindow        DeviceCaps = 1 << 17 // type 1
	CapMemMgtExtensions DeviceCaps = 1 << 21 // LOCAL_INV and SEND_WITH_INV
	CapMemWindowType2A  DeviceCaps = 1 << 23
	CapMemWindowType2B  DeviceCaps = 1 << 24
)

// ODPCaps is struct ibv_odp_caps: what on-demand paging can do. General's bit 0
// says that there is any, bit 1 that AccessOnDemand may cover all memory.
type ODPCaps struct {
	General uint64
	// Per transport: bit 0 send, 1 receive, 2 RDMA write, 3 RDMA read, 4
	// atomic, 5 SRQ receive.
	RC, UC, UD uint32
}

// DeviceAttr is struct ibv_device_attr_ex without what is left out here. What
// is behind Ports reads 0 on kernels without the extended query.
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
	MaxSRQSGE         int
	MaxMW             int
	MaxMcastGroups    int
	MaxMcastQPAttach  int // QPs in one group
	Caps              DeviceCaps
	LocalCAAckDelay   uint8 // the device takes up to 4.096 us << LocalCAAckDelay to acknowledge
	MaxQPRdAtomic     int   // READs and atomics that a QP serves at once
	MaxQPInitRdAtomic int   // READs and atomics that a QP has outstanding at once
	AtomicCap         uint32
	MaxPKeys          int
	Ports             int

	ODP           ODPCaps
	TimestampMask uint64
	CoreClockKHz  uint64
	MaxDMBytes    uint64 // device memory
	MaxCQModCount int    // CQ moderation: completions
	MaxCQModUs    int    // CQ moderation: microseconds
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

	CapFlags      uint32 // enum ibv_port_cap_flags
	CapFlags2     uint16
	Flags         uint8 // IBV_QPF_*
	LMC           uint8
	MaxVLNum      uint8
	SMSL          uint8
	SubnetTimeout uint8
	InitTypeReply uint8
	BadPKeys      uint32 // packets with a wrong P_Key
	BadQKeys      uint32 // packets with a wrong QKey
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
