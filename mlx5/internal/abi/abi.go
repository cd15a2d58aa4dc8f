// Package abi holds what mlx5_ib adds to the uverbs commands: the
// driver-private payloads of <rdma/mlx5-abi.h> and the driver's own objects of
// <rdma/mlx5_user_ioctl_cmds.h>, in the kernel's spelling. Integers are in host
// order.
package abi

// MLX5_IB_MMAP_* are the commands of an mmap offset, which is
// (command<<8 | index) pages (enum mlx5_ib_mmap_cmd).
const (
	MLX5_IB_MMAP_REGULAR_PAGE = 0
	MLX5_IB_MMAP_CMD_SHIFT    = 8
)

// enum mlx5_lib_caps.
const (
	MLX5_LIB_CAP_4K_UAR  = 1 << 0
	MLX5_LIB_CAP_DYN_UAR = 1 << 1
)

// enum mlx5_ib_alloc_ucontext_resp_mask.
const MLX5_IB_ALLOC_UCONTEXT_RESP_MASK_ECE = 1 << 2

// enum mlx5_user_cmds_supp_uhw.
const MLX5_USER_CMDS_SUPP_UHW_CREATE_AH = 1 << 1

// Flags of Mlx5_ib_create_qp.
const (
	MLX5_QP_FLAG_SCATTER_CQE    = 1 << 1
	MLX5_QP_FLAG_UAR_PAGE_INDEX = 1 << 10
)

// enum mlx5_ib_create_cq_flags.
const MLX5_IB_CREATE_CQ_FLAGS_UAR_PAGE_INDEX = 1 << 1

// Mlx5_ib_alloc_ucontext_req_v2 is struct mlx5_ib_alloc_ucontext_req_v2.
type Mlx5_ib_alloc_ucontext_req_v2 struct {
	Total_num_bfregs       uint32
	Num_low_latency_bfregs uint32
	Flags                  uint32
	Comp_mask              uint32
	Max_cqe_version        uint8
	Reserved0              uint8
	Reserved1              uint16
	Reserved2              uint32
	Lib_caps               uint64
}

// Mlx5_ib_alloc_ucontext_resp is struct mlx5_ib_alloc_ucontext_resp. Fields
// beyond Response_length bytes are not filled.
type Mlx5_ib_alloc_ucontext_resp struct {
	Qp_tab_size           uint32
	Bf_reg_size           uint32
	Tot_bfregs            uint32 // 0: dynamic UARs only
	Cache_line_size       uint32
	Max_sq_desc_sz        uint16
	Max_rq_desc_sz        uint16
	Max_send_wqebb        uint32
	Max_recv_wr           uint32
	Max_srq_recv_wr       uint32
	Num_ports             uint16
	Flow_action_flags     uint16
	Comp_mask             uint32
	Response_length       uint32
	Cqe_version           uint8
	Cmds_supp_uhw         uint8
	Eth_min_inline        uint8
	Clock_info_versions   uint8
	Hca_core_clock_offset uint64
	Log_uar_size          uint32
	Num_uars_per_page     uint32
	Num_dyn_bfregs        uint32
	Dump_fill_mkey        uint32
}

// Mlx5_ib_create_cq is struct mlx5_ib_create_cq.
type Mlx5_ib_create_cq struct {
	Buf_addr            uint64
	Db_addr             uint64
	Cqe_size            uint32
	Cqe_comp_en         uint8
	Cqe_comp_res_format uint8
	Flags               uint16
	Uar_page_index      uint16
	Reserved0           uint16
	Reserved1           uint32
}

// Mlx5_ib_create_cq_resp is struct mlx5_ib_create_cq_resp.
type Mlx5_ib_create_cq_resp struct {
	Cqn      uint32
	Reserved uint32
}

// Mlx5_ib_resize_cq is struct mlx5_ib_resize_cq.
type Mlx5_ib_resize_cq struct {
	Buf_addr  uint64
	Cqe_size  uint16
	Reserved0 uint16
	Reserved1 uint32
}

// Mlx5_ib_create_srq is struct mlx5_ib_create_srq.
type Mlx5_ib_create_srq struct {
	Buf_addr  uint64
	Db_addr   uint64
	Flags     uint32
	Reserved0 uint32
	Uidx      uint32
	Reserved1 uint32
}

// Mlx5_ib_create_srq_resp is struct mlx5_ib_create_srq_resp.
type Mlx5_ib_create_srq_resp struct {
	Srqn     uint32
	Reserved uint32
}

// Mlx5_ib_create_qp is struct mlx5_ib_create_qp.
type Mlx5_ib_create_qp struct {
	Buf_addr     uint64
	Db_addr      uint64
	Sq_wqe_count uint32
	Rq_wqe_count uint32
	Rq_wqe_shift uint32
	Flags        uint32
	Uidx         uint32
	Bfreg_index  uint32
	Sq_buf_addr  uint64 // or access_key
	Ece_options  uint32
	Dci_streams  [2]uint8 // struct mlx5_ib_create_qp_dci_streams
	Reserved     uint16
}

// Mlx5_ib_create_qp_resp is struct mlx5_ib_create_qp_resp.
type Mlx5_ib_create_qp_resp struct {
	Bfreg_index  uint32
	Ece_options  uint32
	Comp_mask    uint32
	Tirn         uint32
	Tisn         uint32
	Rqn          uint32
	Sqn          uint32
	Reserved1    uint32
	Tir_icm_addr uint64
}

// Mlx5_ib_create_ah_resp is struct mlx5_ib_create_ah_resp.
type Mlx5_ib_create_ah_resp struct {
	Response_length uint32
	Dmac            [6]uint8
	Reserved        [6]uint8
}

// MLX5_IB_OBJECT_UAR and its methods and attributes.
const (
	MLX5_IB_OBJECT_UAR = 0x1008

	MLX5_IB_METHOD_UAR_OBJ_ALLOC   = 0x1000
	MLX5_IB_METHOD_UAR_OBJ_DESTROY = 0x1001

	MLX5_IB_ATTR_UAR_OBJ_ALLOC_HANDLE      = 0x1000
	MLX5_IB_ATTR_UAR_OBJ_ALLOC_TYPE        = 0x1001
	MLX5_IB_ATTR_UAR_OBJ_ALLOC_MMAP_OFFSET = 0x1002
	MLX5_IB_ATTR_UAR_OBJ_ALLOC_MMAP_LENGTH = 0x1003
	MLX5_IB_ATTR_UAR_OBJ_ALLOC_PAGE_ID     = 0x1004

	MLX5_IB_ATTR_UAR_OBJ_DESTROY_HANDLE = 0x1000
)

// enum mlx5_ib_uapi_uar_alloc_type.
const (
	MLX5_IB_UAPI_UAR_ALLOC_TYPE_BF = 0 // write-combining: BlueFlame
	MLX5_IB_UAPI_UAR_ALLOC_TYPE_NC = 1 // non-cached: doorbells
)
