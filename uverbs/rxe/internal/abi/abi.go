package abi

// Mminfo is struct mminfo: where a ring can be mapped.
type Mminfo struct {
	Offset uint64 // for mmap, of the device's file
	Size   uint32 // bytes
	Pad    uint32
}

// Rxe_create_cq_resp is struct rxe_create_cq_resp, and has the layout of
// struct rxe_resize_cq_resp.
type Rxe_create_cq_resp struct {
	Mi Mminfo
}

// Rxe_create_qp_resp is struct rxe_create_qp_resp.
type Rxe_create_qp_resp struct {
	Rq_mi Mminfo // zero with an SRQ
	Sq_mi Mminfo
}

// Rxe_create_srq_resp is struct rxe_create_srq_resp.
type Rxe_create_srq_resp struct {
	Mi       Mminfo
	Srq_num  uint32
	Reserved uint32
}

// Rxe_modify_srq_cmd is struct rxe_modify_srq_cmd. The kernel writes a Mminfo to
// the address when the size changes.
type Rxe_modify_srq_cmd struct {
	Mmap_info_addr uint64
}

// Rxe_queue_buf is struct rxe_queue_buf, the head of every ring; the entries
// follow. An index is that of the next entry to be written or read.
type Rxe_queue_buf struct {
	Log2_elem_size uint32
	Index_mask     uint32 // entries - 1
	Pad_1          [30]uint32
	Producer_index uint32
	Pad_2          [31]uint32
	Consumer_index uint32
	Pad_3          [31]uint32
}

// Rxe_sge is struct rxe_sge.
type Rxe_sge struct {
	Addr   uint64
	Length uint32
	Lkey   uint32
}

// Rxe_dma_info is struct rxe_dma_info. The SGEs, or the inline data, follow.
type Rxe_dma_info struct {
	Length     uint32 // bytes, of all SGEs
	Resid      uint32 // what is left of them; the kernel's to count
	Cur_sge    uint32
	Num_sge    uint32
	Sge_offset uint32
	Reserved   uint32
}

// Rxe_recv_wqe is struct rxe_recv_wqe.
type Rxe_recv_wqe struct {
	Wr_id    uint64
	Reserved uint32
	Padding  uint32
	Dma      Rxe_dma_info
}

// Rxe_send_wqe is struct rxe_send_wqe. The fields between Wr and Dma are the
// kernel's, but for Iova.
type Rxe_send_wqe struct {
	Wr            Rxe_send_wr
	Status        uint32
	State         uint32
	Iova          uint64 // the remote address
	Mask          uint32
	First_psn     uint32
	Last_psn      uint32
	Ack_length    uint32
	Ssn           uint32
	Has_rd_atomic uint32
	Dma           Rxe_dma_info
}

// Rxe_send_wr is struct rxe_send_wr.
type Rxe_send_wr struct {
	Wr_id      uint64
	Reserved   uint32
	Opcode     uint32     // enum ib_wr_opcode
	Send_flags uint32     // enum ib_send_flags
	Ex         uint32     // __be32 immediate, or the rkey to invalidate
	Wr         [15]uint64 // a Rxe_wr_*, by opcode and QP type
}

// Rxe_wr_rdma is wr.rdma of struct rxe_send_wr.
type Rxe_wr_rdma struct {
	Remote_addr uint64
	Rkey        uint32
	Reserved    uint32
}

// Rxe_wr_atomic is wr.atomic of struct rxe_send_wr.
type Rxe_wr_atomic struct {
	Remote_addr uint64
	Compare_add uint64
	Swap        uint64
	Rkey        uint32
	Reserved    uint32
}

// Rxe_wr_ud is wr.ud of struct rxe_send_wr.
type Rxe_wr_ud struct {
	Remote_qpn  uint32
	Remote_qkey uint32
	Pkey_index  uint16
	Reserved    uint16
	Ah_num      uint32 // of the kernel's address handle; 0: Av
	Pad         [4]uint32
	Av          Rxe_av
}

// Rxe_wr_mw is wr.mw of struct rxe_send_wr.
type Rxe_wr_mw struct {
	Addr    uint64
	Length  uint64
	Mr_lkey uint32
	Mw_rkey uint32 // the window's key until now
	Rkey    uint32 // its key from now on
	Access  uint32
}

// Rxe_global_route is struct rxe_global_route.
type Rxe_global_route struct {
	Dgid          [16]uint8
	Flow_label    uint32
	Sgid_index    uint8
	Hop_limit     uint8
	Traffic_class uint8
	Pad           uint8 // unnamed in C
}

// Rxe_av is struct rxe_av.
type Rxe_av struct {
	Port_num     uint8
	Network_type uint8 // RXE_NETWORK_TYPE_*
	Dmac         [6]uint8
	Grh          Rxe_global_route
	Sgid_addr    Rxe_sockaddr
	Dgid_addr    Rxe_sockaddr
}

// Rxe_sockaddr is the union of struct sockaddr_in and sockaddr_in6. Of the
// first, only the address counts.
type Rxe_sockaddr struct {
	Family    uint16
	Port      uint16
	Addr4     [4]uint8 // sin_addr; sin6_flowinfo
	Addr6     [16]uint8
	Scope_id6 uint32
}

const (
	RXE_NETWORK_TYPE_IPV4 = 1
	RXE_NETWORK_TYPE_IPV6 = 2
)
