package abi

// Write-style commands (enum ib_uverbs_write_cmds), which travel through
// UVERBS_METHOD_INVOKE_WRITE. An extended command is
// IB_USER_VERBS_CMD_FLAG_EXTENDED | number.
const (
	IB_USER_VERBS_CMD_GET_CONTEXT         = 0
	IB_USER_VERBS_CMD_QUERY_DEVICE        = 1
	IB_USER_VERBS_CMD_QUERY_PORT          = 2
	IB_USER_VERBS_CMD_ALLOC_PD            = 3
	IB_USER_VERBS_CMD_DEALLOC_PD          = 4
	IB_USER_VERBS_CMD_CREATE_AH           = 5
	IB_USER_VERBS_CMD_DESTROY_AH          = 8
	IB_USER_VERBS_CMD_REG_MR              = 9
	IB_USER_VERBS_CMD_REREG_MR            = 11
	IB_USER_VERBS_CMD_DEREG_MR            = 13
	IB_USER_VERBS_CMD_ALLOC_MW            = 14
	IB_USER_VERBS_CMD_CREATE_COMP_CHANNEL = 17
	IB_USER_VERBS_CMD_CREATE_CQ           = 18
	IB_USER_VERBS_CMD_RESIZE_CQ           = 19
	IB_USER_VERBS_CMD_DESTROY_CQ          = 20
	IB_USER_VERBS_CMD_REQ_NOTIFY_CQ       = 23
	IB_USER_VERBS_CMD_CREATE_QP           = 24
	IB_USER_VERBS_CMD_QUERY_QP            = 25
	IB_USER_VERBS_CMD_MODIFY_QP           = 26
	IB_USER_VERBS_CMD_DESTROY_QP          = 27
	IB_USER_VERBS_CMD_POST_SEND           = 28
	IB_USER_VERBS_CMD_ATTACH_MCAST        = 30
	IB_USER_VERBS_CMD_DETACH_MCAST        = 31
	IB_USER_VERBS_CMD_CREATE_SRQ          = 32
	IB_USER_VERBS_CMD_MODIFY_SRQ          = 33
	IB_USER_VERBS_CMD_QUERY_SRQ           = 34

	IB_USER_VERBS_CMD_FLAG_EXTENDED   = 0x80000000
	IB_USER_VERBS_EX_CMD_QUERY_DEVICE = IB_USER_VERBS_CMD_FLAG_EXTENDED | IB_USER_VERBS_CMD_QUERY_DEVICE
)

// Ib_uverbs_query_device is struct ib_uverbs_query_device.
type Ib_uverbs_query_device struct {
	Response uint64
}

// Ib_uverbs_ex_query_device is struct ib_uverbs_ex_query_device.
type Ib_uverbs_ex_query_device struct {
	Comp_mask uint32
	Reserved  uint32
}

// Ib_uverbs_query_device_resp is struct ib_uverbs_query_device_resp.
type Ib_uverbs_query_device_resp struct {
	Fw_ver                    uint64
	Node_guid                 [8]byte // __be64
	Sys_image_guid            [8]byte // __be64
	Max_mr_size               uint64
	Page_size_cap             uint64
	Vendor_id                 uint32
	Vendor_part_id            uint32
	Hw_ver                    uint32
	Max_qp                    uint32
	Max_qp_wr                 uint32
	Device_cap_flags          uint32
	Max_sge                   uint32
	Max_sge_rd                uint32
	Max_cq                    uint32
	Max_cqe                   uint32
	Max_mr                    uint32
	Max_pd                    uint32
	Max_qp_rd_atom            uint32
	Max_ee_rd_atom            uint32
	Max_res_rd_atom           uint32
	Max_qp_init_rd_atom       uint32
	Max_ee_init_rd_atom       uint32
	Atomic_cap                uint32
	Max_ee                    uint32
	Max_rdd                   uint32
	Max_mw                    uint32
	Max_raw_ipv6_qp           uint32
	Max_raw_ethy_qp           uint32
	Max_mcast_grp             uint32
	Max_mcast_qp_attach       uint32
	Max_total_mcast_qp_attach uint32
	Max_ah                    uint32
	Max_fmr                   uint32
	Max_map_per_fmr           uint32
	Max_srq                   uint32
	Max_srq_wr                uint32
	Max_srq_sge               uint32
	Max_pkeys                 uint16
	Local_ca_ack_delay        uint8
	Phys_port_cnt             uint8
	Reserved                  [4]uint8
}

// Ib_uverbs_odp_caps is struct ib_uverbs_odp_caps.
type Ib_uverbs_odp_caps struct {
	General_caps uint64
	Rc_odp_caps  uint32
	Uc_odp_caps  uint32
	Ud_odp_caps  uint32
	Reserved     uint32
}

// Ib_uverbs_rss_caps is struct ib_uverbs_rss_caps.
type Ib_uverbs_rss_caps struct {
	Supported_qpts                 uint32
	Max_rwq_indirection_tables     uint32
	Max_rwq_indirection_table_size uint32
	Reserved                       uint32
}

// Ib_uverbs_tm_caps is struct ib_uverbs_tm_caps.
type Ib_uverbs_tm_caps struct {
	Max_rndv_hdr_size uint32
	Max_num_tags      uint32
	Flags             uint32
	Max_ops           uint32
	Max_sge           uint32
	Reserved          uint32
}

// Ib_uverbs_cq_moderation_caps is struct ib_uverbs_cq_moderation_caps.
type Ib_uverbs_cq_moderation_caps struct {
	Max_cq_moderation_count  uint16
	Max_cq_moderation_period uint16
	Reserved                 uint32
}

// Ib_uverbs_ex_query_device_resp is struct ib_uverbs_ex_query_device_resp.
type Ib_uverbs_ex_query_device_resp struct {
	Base                Ib_uverbs_query_device_resp
	Comp_mask           uint32
	Response_length     uint32
	Odp_caps            Ib_uverbs_odp_caps
	Timestamp_mask      uint64
	Hca_core_clock      uint64 // kHz
	Device_cap_flags_ex uint64
	Rss_caps            Ib_uverbs_rss_caps
	Max_wq_type_rq      uint32
	Raw_packet_caps     uint32
	Tm_caps             Ib_uverbs_tm_caps
	Cq_moderation_caps  Ib_uverbs_cq_moderation_caps
	Max_dm_size         uint64
	Xrc_odp_caps        uint32
	Reserved            uint32
}

// Ib_uverbs_query_port_resp is struct ib_uverbs_query_port_resp.
type Ib_uverbs_query_port_resp struct {
	Port_cap_flags  uint32
	Max_msg_sz      uint32
	Bad_pkey_cntr   uint32
	Qkey_viol_cntr  uint32
	Gid_tbl_len     uint32
	Pkey_tbl_len    uint16
	Lid             uint16
	Sm_lid          uint16
	State           uint8
	Max_mtu         uint8
	Active_mtu      uint8
	Lmc             uint8
	Max_vl_num      uint8
	Sm_sl           uint8
	Subnet_timeout  uint8
	Init_type_reply uint8
	Active_width    uint8
	Active_speed    uint8
	Phys_state      uint8
	Link_layer      uint8
	Flags           uint8
	Reserved        uint8
}

// Ib_uverbs_query_port_resp_ex is struct ib_uverbs_query_port_resp_ex, the
// answer of UVERBS_METHOD_QUERY_PORT.
type Ib_uverbs_query_port_resp_ex struct {
	Legacy_resp     Ib_uverbs_query_port_resp
	Port_cap_flags2 uint16
	Reserved        [6]uint8
}

// Ib_uverbs_alloc_pd is struct ib_uverbs_alloc_pd.
type Ib_uverbs_alloc_pd struct {
	Response uint64
}

// Ib_uverbs_alloc_pd_resp is struct ib_uverbs_alloc_pd_resp.
type Ib_uverbs_alloc_pd_resp struct {
	Pd_handle uint32
}

// Ib_uverbs_reg_mr is struct ib_uverbs_reg_mr.
type Ib_uverbs_reg_mr struct {
	Response     uint64
	Start        uint64
	Length       uint64
	Hca_va       uint64
	Pd_handle    uint32
	Access_flags uint32
}

// Ib_uverbs_reg_mr_resp is struct ib_uverbs_reg_mr_resp.
type Ib_uverbs_reg_mr_resp struct {
	Mr_handle uint32
	Lkey      uint32
	Rkey      uint32
}

// Access flags of an MR and of a QP, enum ib_uverbs_access_flags.
const (
	IB_UVERBS_ACCESS_LOCAL_WRITE      = 1 << 0
	IB_UVERBS_ACCESS_REMOTE_WRITE     = 1 << 1
	IB_UVERBS_ACCESS_REMOTE_READ      = 1 << 2
	IB_UVERBS_ACCESS_REMOTE_ATOMIC    = 1 << 3
	IB_UVERBS_ACCESS_MW_BIND          = 1 << 4
	IB_UVERBS_ACCESS_ZERO_BASED       = 1 << 5
	IB_UVERBS_ACCESS_ON_DEMAND        = 1 << 6
	IB_UVERBS_ACCESS_HUGETLB          = 1 << 7
	IB_UVERBS_ACCESS_RELAXED_ORDERING = 1 << 20
)

// Ib_uverbs_create_comp_channel is struct ib_uverbs_create_comp_channel.
type Ib_uverbs_create_comp_channel struct {
	Response uint64
}

// Ib_uverbs_create_comp_channel_resp is struct ib_uverbs_create_comp_channel_resp.
type Ib_uverbs_create_comp_channel_resp struct {
	Fd uint32
}

// Ib_uverbs_comp_event_desc is one record read from a completion channel.
type Ib_uverbs_comp_event_desc struct {
	Cq_handle uint64 // the CQ's user_handle
}

// Ib_uverbs_async_event_desc is one record read from the async event file.
type Ib_uverbs_async_event_desc struct {
	Element    uint64 // user_handle of the CQ, QP or SRQ, or the port number
	Event_type uint32 // enum ib_event_type
	Reserved   uint32
}

// Ib_uverbs_destroy_cq_resp is struct ib_uverbs_destroy_cq_resp.
type Ib_uverbs_destroy_cq_resp struct {
	Comp_events_reported  uint32
	Async_events_reported uint32
}

// Ib_uverbs_req_notify_cq is struct ib_uverbs_req_notify_cq.
type Ib_uverbs_req_notify_cq struct {
	Cq_handle      uint32
	Solicited_only uint32
}

// Ib_uverbs_global_route is struct ib_uverbs_global_route.
type Ib_uverbs_global_route struct {
	Dgid          [16]uint8
	Flow_label    uint32
	Sgid_index    uint8
	Hop_limit     uint8
	Traffic_class uint8
	Reserved      uint8
}

// Ib_uverbs_ah_attr is struct ib_uverbs_ah_attr.
type Ib_uverbs_ah_attr struct {
	Grh           Ib_uverbs_global_route
	Dlid          uint16
	Sl            uint8
	Src_path_bits uint8
	Static_rate   uint8
	Is_global     uint8
	Port_num      uint8
	Reserved      uint8
}

// Ib_uverbs_create_ah is struct ib_uverbs_create_ah.
type Ib_uverbs_create_ah struct {
	Response    uint64
	User_handle uint64
	Pd_handle   uint32
	Reserved    uint32
	Attr        Ib_uverbs_ah_attr
}

// Ib_uverbs_create_ah_resp is struct ib_uverbs_create_ah_resp.
type Ib_uverbs_create_ah_resp struct {
	Ah_handle uint32
}

// Ib_uverbs_qp_dest is struct ib_uverbs_qp_dest.
type Ib_uverbs_qp_dest struct {
	Dgid          [16]uint8
	Flow_label    uint32
	Dlid          uint16
	Reserved      uint16
	Sgid_index    uint8
	Hop_limit     uint8
	Traffic_class uint8
	Sl            uint8
	Src_path_bits uint8
	Static_rate   uint8
	Is_global     uint8
	Port_num      uint8
}

// Ib_uverbs_query_qp is struct ib_uverbs_query_qp.
type Ib_uverbs_query_qp struct {
	Response  uint64
	Qp_handle uint32
	Attr_mask uint32
}

// Ib_uverbs_query_qp_resp is struct ib_uverbs_query_qp_resp.
type Ib_uverbs_query_qp_resp struct {
	Dest               Ib_uverbs_qp_dest
	Alt_dest           Ib_uverbs_qp_dest
	Max_send_wr        uint32
	Max_recv_wr        uint32
	Max_send_sge       uint32
	Max_recv_sge       uint32
	Max_inline_data    uint32
	Qkey               uint32
	Rq_psn             uint32
	Sq_psn             uint32
	Dest_qp_num        uint32
	Qp_access_flags    uint32
	Pkey_index         uint16
	Alt_pkey_index     uint16
	Qp_state           uint8
	Cur_qp_state       uint8
	Path_mtu           uint8
	Path_mig_state     uint8
	Sq_draining        uint8
	Max_rd_atomic      uint8
	Max_dest_rd_atomic uint8
	Min_rnr_timer      uint8
	Port_num           uint8
	Timeout            uint8
	Retry_cnt          uint8
	Rnr_retry          uint8
	Alt_port_num       uint8
	Alt_timeout        uint8
	Sq_sig_all         uint8
	Reserved           [5]uint8
}

// Ib_uverbs_modify_qp is struct ib_uverbs_modify_qp.
type Ib_uverbs_modify_qp struct {
	Dest                Ib_uverbs_qp_dest
	Alt_dest            Ib_uverbs_qp_dest
	Qp_handle           uint32
	Attr_mask           uint32
	Qkey                uint32
	Rq_psn              uint32
	Sq_psn              uint32
	Dest_qp_num         uint32
	Qp_access_flags     uint32
	Pkey_index          uint16
	Alt_pkey_index      uint16
	Qp_state            uint8
	Cur_qp_state        uint8
	Path_mtu            uint8
	Path_mig_state      uint8
	En_sqd_async_notify uint8
	Max_rd_atomic       uint8
	Max_dest_rd_atomic  uint8
	Min_rnr_timer       uint8
	Port_num            uint8
	Timeout             uint8
	Retry_cnt           uint8
	Rnr_retry           uint8
	Alt_port_num        uint8
	Alt_timeout         uint8
	Reserved            [2]uint8
}

// Attribute mask of QUERY_QP and MODIFY_QP, enum ib_qp_attr_mask.
const (
	IB_QP_STATE               = 1 << 0
	IB_QP_CUR_STATE           = 1 << 1
	IB_QP_EN_SQD_ASYNC_NOTIFY = 1 << 2
	IB_QP_ACCESS_FLAGS        = 1 << 3
	IB_QP_PKEY_INDEX          = 1 << 4
	IB_QP_PORT                = 1 << 5
	IB_QP_QKEY                = 1 << 6
	IB_QP_AV                  = 1 << 7
	IB_QP_PATH_MTU            = 1 << 8
	IB_QP_TIMEOUT             = 1 << 9
	IB_QP_RETRY_CNT           = 1 << 10
	IB_QP_RNR_RETRY           = 1 << 11
	IB_QP_RQ_PSN              = 1 << 12
	IB_QP_MAX_QP_RD_ATOMIC    = 1 << 13
	IB_QP_ALT_PATH            = 1 << 14
	IB_QP_MIN_RNR_TIMER       = 1 << 15
	IB_QP_SQ_PSN              = 1 << 16
	IB_QP_MAX_DEST_RD_ATOMIC  = 1 << 17
	IB_QP_PATH_MIG_STATE      = 1 << 18
	IB_QP_CAP                 = 1 << 19
	IB_QP_DEST_QPN            = 1 << 20
)

// Ib_uverbs_destroy_qp_resp is struct ib_uverbs_destroy_qp_resp.
type Ib_uverbs_destroy_qp_resp struct {
	Events_reported uint32
}

// Ib_uverbs_rereg_mr is struct ib_uverbs_rereg_mr.
type Ib_uverbs_rereg_mr struct {
	Response     uint64
	Mr_handle    uint32
	Flags        uint32 // IB_MR_REREG_*
	Start        uint64
	Length       uint64
	Hca_va       uint64
	Pd_handle    uint32
	Access_flags uint32
}

// Ib_uverbs_rereg_mr_resp is struct ib_uverbs_rereg_mr_resp.
type Ib_uverbs_rereg_mr_resp struct {
	Lkey uint32
	Rkey uint32
}

// What REREG_MR changes, enum ib_mr_rereg_flags.
const (
	IB_MR_REREG_TRANS  = 1 << 0
	IB_MR_REREG_PD     = 1 << 1
	IB_MR_REREG_ACCESS = 1 << 2
)

// Ib_uverbs_alloc_mw is struct ib_uverbs_alloc_mw.
type Ib_uverbs_alloc_mw struct {
	Response  uint64
	Pd_handle uint32
	Mw_type   uint8 // 1 or 2
	Reserved  [3]uint8
}

// Ib_uverbs_alloc_mw_resp is struct ib_uverbs_alloc_mw_resp.
type Ib_uverbs_alloc_mw_resp struct {
	Mw_handle uint32
	Rkey      uint32
}

// Ib_uverbs_resize_cq is struct ib_uverbs_resize_cq.
type Ib_uverbs_resize_cq struct {
	Response  uint64
	Cq_handle uint32
	Cqe       uint32
}

// Ib_uverbs_resize_cq_resp is struct ib_uverbs_resize_cq_resp.
type Ib_uverbs_resize_cq_resp struct {
	Cqe      uint32
	Reserved uint32
}

// Ib_uverbs_post_send is struct ib_uverbs_post_send. Without work requests it
// is the doorbell of a driver whose queues are shared with the kernel.
type Ib_uverbs_post_send struct {
	Response  uint64
	Qp_handle uint32
	Wr_count  uint32
	Sge_count uint32
	Wqe_size  uint32 // of a struct ib_uverbs_send_wr, at least
}

// Ib_uverbs_post_send_resp is struct ib_uverbs_post_send_resp.
type Ib_uverbs_post_send_resp struct {
	Bad_wr uint32
}

// Ib_uverbs_attach_mcast is struct ib_uverbs_attach_mcast, and has the layout
// of struct ib_uverbs_detach_mcast.
type Ib_uverbs_attach_mcast struct {
	Gid       [16]uint8
	Qp_handle uint32
	Mlid      uint16
	Reserved  uint16
}

// Ib_uverbs_modify_srq is struct ib_uverbs_modify_srq.
type Ib_uverbs_modify_srq struct {
	Srq_handle uint32
	Attr_mask  uint32 // IB_SRQ_*
	Max_wr     uint32
	Srq_limit  uint32
}

// What MODIFY_SRQ changes, enum ib_srq_attr_mask.
const (
	IB_SRQ_MAX_WR = 1 << 0
	IB_SRQ_LIMIT  = 1 << 1
)

// Ib_uverbs_query_srq is struct ib_uverbs_query_srq.
type Ib_uverbs_query_srq struct {
	Response   uint64
	Srq_handle uint32
	Reserved   uint32
}

// Ib_uverbs_query_srq_resp is struct ib_uverbs_query_srq_resp.
type Ib_uverbs_query_srq_resp struct {
	Max_wr    uint32
	Max_sge   uint32
	Srq_limit uint32
	Reserved  uint32
}

// Ib_uverbs_destroy_srq_resp is struct ib_uverbs_destroy_srq_resp.
type Ib_uverbs_destroy_srq_resp struct {
	Events_reported uint32
}

// Ib_uverbs_wc is struct ib_uverbs_wc. Drivers whose queues are shared with
// the kernel have it as CQE.
type Ib_uverbs_wc struct {
	Wr_id          uint64
	Status         uint32 // enum ib_wc_status
	Opcode         uint32 // enum ib_wc_opcode
	Vendor_err     uint32
	Byte_len       uint32
	Ex             uint32 // __be32 immediate, or the rkey that was invalidated
	Qp_num         uint32
	Src_qp         uint32
	Wc_flags       uint32
	Pkey_index     uint16
	Slid           uint16
	Sl             uint8
	Dlid_path_bits uint8
	Port_num       uint8
	Reserved       uint8
}
