package abi

import "unsafe"

// The kernel's sizes, proved when this package is compiled.
var (
	_ [16]byte  = [unsafe.Sizeof(Ib_uverbs_attr{})]byte{}
	_ [24]byte  = [unsafe.Sizeof(Ib_uverbs_ioctl_hdr{})]byte{}
	_ [32]byte  = [unsafe.Sizeof(Ib_uverbs_gid_entry{})]byte{}
	_ [20]byte  = [unsafe.Sizeof(Ib_uverbs_qp_cap{})]byte{}
	_ [176]byte = [unsafe.Sizeof(Ib_uverbs_query_device_resp{})]byte{}
	_ [304]byte = [unsafe.Sizeof(Ib_uverbs_ex_query_device_resp{})]byte{}
	_ [40]byte  = [unsafe.Sizeof(Ib_uverbs_query_port_resp{})]byte{}
	_ [48]byte  = [unsafe.Sizeof(Ib_uverbs_query_port_resp_ex{})]byte{}
	_ [40]byte  = [unsafe.Sizeof(Ib_uverbs_reg_mr{})]byte{}
	_ [12]byte  = [unsafe.Sizeof(Ib_uverbs_reg_mr_resp{})]byte{}
	_ [8]byte   = [unsafe.Sizeof(Ib_uverbs_comp_event_desc{})]byte{}
	_ [16]byte  = [unsafe.Sizeof(Ib_uverbs_async_event_desc{})]byte{}
	_ [56]byte  = [unsafe.Sizeof(Ib_uverbs_create_ah{})]byte{}
	_ [16]byte  = [unsafe.Sizeof(Ib_uverbs_query_qp{})]byte{}
	_ [128]byte = [unsafe.Sizeof(Ib_uverbs_query_qp_resp{})]byte{}
	_ [112]byte = [unsafe.Sizeof(Ib_uverbs_modify_qp{})]byte{}
	_ [48]byte  = [unsafe.Sizeof(Ib_uverbs_rereg_mr{})]byte{}
	_ [48]byte  = [unsafe.Sizeof(Ib_uverbs_wc{})]byte{}
	_ [16]byte  = [unsafe.Sizeof(Ib_uverbs_alloc_mw{})]byte{}
	_ [16]byte  = [unsafe.Sizeof(Ib_uverbs_resize_cq{})]byte{}
	_ [24]byte  = [unsafe.Sizeof(Ib_uverbs_post_send{})]byte{}
	_ [24]byte  = [unsafe.Sizeof(Ib_uverbs_attach_mcast{})]byte{}
	_ [16]byte  = [unsafe.Sizeof(Ib_uverbs_modify_srq{})]byte{}
	_ [16]byte  = [unsafe.Sizeof(Ib_uverbs_query_srq_resp{})]byte{}
)
