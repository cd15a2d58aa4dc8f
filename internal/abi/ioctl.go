package abi

// RDMA_VERBS_IOCTL is _IOWR(RDMA_IOCTL_MAGIC, 1, struct ib_uverbs_ioctl_hdr).
const RDMA_VERBS_IOCTL = 0xc0181b01

// IB_USER_VERBS_ABI_VERSION is the version in
// /sys/class/infiniband_verbs/abi_version that this package describes.
const IB_USER_VERBS_ABI_VERSION = 6

// Attribute flags of struct ib_uverbs_attr.
const (
	UVERBS_ATTR_F_MANDATORY    = 1 << 0
	UVERBS_ATTR_F_VALID_OUTPUT = 1 << 1
)

// Ib_uverbs_attr is struct ib_uverbs_attr. Data is an inline value (Len <= 8),
// a pointer, an object handle or a file descriptor, depending on Attr_id.
type Ib_uverbs_attr struct {
	Attr_id   uint16
	Len       uint16
	Flags     uint16
	Attr_data uint16 // enum_data.elem_id in the low byte, or reserved
	Data      uint64
}

// Ib_uverbs_ioctl_hdr is struct ib_uverbs_ioctl_hdr without its flexible
// array of attributes.
type Ib_uverbs_ioctl_hdr struct {
	Length    uint16 // of the header and all attributes, bytes
	Object_id uint16
	Method_id uint16
	Num_attrs uint16
	Reserved1 uint64
	Driver_id uint32
	Reserved2 uint32
}

// Driver ids, enum rdma_driver_id of ib_user_ioctl_verbs.h.
const (
	RDMA_DRIVER_UNKNOWN = iota
	RDMA_DRIVER_MLX5
	RDMA_DRIVER_MLX4
	RDMA_DRIVER_CXGB3
	RDMA_DRIVER_CXGB4
	RDMA_DRIVER_MTHCA
	RDMA_DRIVER_BNXT_RE
	RDMA_DRIVER_OCRDMA
	RDMA_DRIVER_NES
	RDMA_DRIVER_I40IW
	RDMA_DRIVER_VMW_PVRDMA
	RDMA_DRIVER_QEDR
	RDMA_DRIVER_HNS
	RDMA_DRIVER_USNIC
	RDMA_DRIVER_RXE
	RDMA_DRIVER_HFI1
	RDMA_DRIVER_QIB
	RDMA_DRIVER_EFA
	RDMA_DRIVER_SIW
	RDMA_DRIVER_ERDMA
)

// UVERBS_ID_DRIVER_NS is the first id of the driver's own objects, methods
// and attributes (1 << UVERBS_ID_NS_SHIFT).
const UVERBS_ID_DRIVER_NS = 1 << 12

// Driver-private payload of a command.
const (
	UVERBS_ATTR_UHW_IN  = UVERBS_ID_DRIVER_NS
	UVERBS_ATTR_UHW_OUT = UVERBS_ID_DRIVER_NS + 1
)

// Objects, enum uverbs_default_objects.
const (
	UVERBS_OBJECT_DEVICE = iota
	UVERBS_OBJECT_PD
	UVERBS_OBJECT_COMP_CHANNEL
	UVERBS_OBJECT_CQ
	UVERBS_OBJECT_QP
	UVERBS_OBJECT_SRQ
	UVERBS_OBJECT_AH
	UVERBS_OBJECT_MR
	UVERBS_OBJECT_MW
	UVERBS_OBJECT_FLOW
	UVERBS_OBJECT_XRCD
	UVERBS_OBJECT_RWQ_IND_TBL
	UVERBS_OBJECT_WQ
	UVERBS_OBJECT_FLOW_ACTION
	UVERBS_OBJECT_DM
	UVERBS_OBJECT_COUNTERS
	UVERBS_OBJECT_ASYNC_EVENT
)

// Methods of UVERBS_OBJECT_DEVICE and their attributes.
const (
	UVERBS_METHOD_INVOKE_WRITE = iota
	UVERBS_METHOD_INFO_HANDLES
	UVERBS_METHOD_QUERY_PORT
	UVERBS_METHOD_GET_CONTEXT
	UVERBS_METHOD_QUERY_CONTEXT
	UVERBS_METHOD_QUERY_GID_TABLE
	UVERBS_METHOD_QUERY_GID_ENTRY
)

const (
	UVERBS_ATTR_CORE_IN = iota
	UVERBS_ATTR_CORE_OUT
	UVERBS_ATTR_WRITE_CMD
)

const (
	UVERBS_ATTR_QUERY_PORT_PORT_NUM = iota
	UVERBS_ATTR_QUERY_PORT_RESP
)

const (
	UVERBS_ATTR_GET_CONTEXT_NUM_COMP_VECTORS = iota
	UVERBS_ATTR_GET_CONTEXT_CORE_SUPPORT
)

const (
	UVERBS_ATTR_QUERY_GID_TABLE_ENTRY_SIZE = iota
	UVERBS_ATTR_QUERY_GID_TABLE_FLAGS
	UVERBS_ATTR_QUERY_GID_TABLE_RESP_ENTRIES
	UVERBS_ATTR_QUERY_GID_TABLE_RESP_NUM_ENTRIES
)

const (
	UVERBS_ATTR_QUERY_GID_ENTRY_PORT = iota
	UVERBS_ATTR_QUERY_GID_ENTRY_GID_INDEX
	UVERBS_ATTR_QUERY_GID_ENTRY_FLAGS
	UVERBS_ATTR_QUERY_GID_ENTRY_RESP_ENTRY
)

// Methods of the other objects and their attributes.
const (
	UVERBS_METHOD_PD_DESTROY      = 0
	UVERBS_ATTR_DESTROY_PD_HANDLE = 0

	UVERBS_METHOD_AH_DESTROY      = 0
	UVERBS_ATTR_DESTROY_AH_HANDLE = 0

	UVERBS_METHOD_MR_DESTROY      = 1
	UVERBS_ATTR_DESTROY_MR_HANDLE = 0

	UVERBS_METHOD_ASYNC_EVENT_ALLOC         = 0
	UVERBS_ATTR_ASYNC_EVENT_ALLOC_FD_HANDLE = 0

	UVERBS_METHOD_CQ_CREATE  = 0
	UVERBS_METHOD_CQ_DESTROY = 1
	UVERBS_METHOD_QP_CREATE  = 0
	UVERBS_METHOD_QP_DESTROY = 1
)

const (
	UVERBS_ATTR_CREATE_CQ_HANDLE = iota
	UVERBS_ATTR_CREATE_CQ_CQE
	UVERBS_ATTR_CREATE_CQ_USER_HANDLE
	UVERBS_ATTR_CREATE_CQ_COMP_CHANNEL
	UVERBS_ATTR_CREATE_CQ_COMP_VECTOR
	UVERBS_ATTR_CREATE_CQ_FLAGS
	UVERBS_ATTR_CREATE_CQ_RESP_CQE
	UVERBS_ATTR_CREATE_CQ_EVENT_FD
)

const (
	UVERBS_ATTR_DESTROY_CQ_HANDLE = iota
	UVERBS_ATTR_DESTROY_CQ_RESP
)

const (
	UVERBS_ATTR_CREATE_QP_HANDLE = iota
	UVERBS_ATTR_CREATE_QP_XRCD_HANDLE
	UVERBS_ATTR_CREATE_QP_PD_HANDLE
	UVERBS_ATTR_CREATE_QP_SRQ_HANDLE
	UVERBS_ATTR_CREATE_QP_SEND_CQ_HANDLE
	UVERBS_ATTR_CREATE_QP_RECV_CQ_HANDLE
	UVERBS_ATTR_CREATE_QP_IND_TABLE_HANDLE
	UVERBS_ATTR_CREATE_QP_USER_HANDLE
	UVERBS_ATTR_CREATE_QP_CAP
	UVERBS_ATTR_CREATE_QP_TYPE
	UVERBS_ATTR_CREATE_QP_FLAGS
	UVERBS_ATTR_CREATE_QP_SOURCE_QPN
	UVERBS_ATTR_CREATE_QP_EVENT_FD
	UVERBS_ATTR_CREATE_QP_RESP_CAP
	UVERBS_ATTR_CREATE_QP_RESP_QP_NUM
)

const (
	UVERBS_ATTR_DESTROY_QP_HANDLE = iota
	UVERBS_ATTR_DESTROY_QP_RESP
)

// QP types, enum ib_uverbs_qp_type.
const (
	IB_UVERBS_QPT_RC = 2
	IB_UVERBS_QPT_UC = 3
	IB_UVERBS_QPT_UD = 4
)

// IB_UVERBS_QP_CREATE_SQ_SIG_ALL makes every send of the QP signaled.
const IB_UVERBS_QP_CREATE_SQ_SIG_ALL = 1 << 12

// Ib_uverbs_gid_entry is struct ib_uverbs_gid_entry.
type Ib_uverbs_gid_entry struct {
	Gid            [16]byte // struct is __aligned_u64 gid[2], network order
	Gid_index      uint32
	Port_num       uint32
	Gid_type       uint32 // enum ib_uverbs_gid_type: 0 IB, 1 RoCE v1, 2 RoCE v2
	Netdev_ifindex uint32
}

const (
	IB_UVERBS_GID_TYPE_IB      = 0
	IB_UVERBS_GID_TYPE_ROCE_V1 = 1
	IB_UVERBS_GID_TYPE_ROCE_V2 = 2
)

// Ib_uverbs_qp_cap is struct ib_uverbs_qp_cap.
type Ib_uverbs_qp_cap struct {
	Max_send_wr     uint32
	Max_recv_wr     uint32
	Max_send_sge    uint32
	Max_recv_sge    uint32
	Max_inline_data uint32
}
