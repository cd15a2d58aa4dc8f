package abi

import "unsafe"

// The kernel's sizes; test abi_test.go compares every field with the header.
var (
	_ [16]byte  = [unsafe.Sizeof(Mminfo{})]byte{}
	_ [16]byte  = [unsafe.Sizeof(Rxe_create_cq_resp{})]byte{}
	_ [32]byte  = [unsafe.Sizeof(Rxe_create_qp_resp{})]byte{}
	_ [24]byte  = [unsafe.Sizeof(Rxe_create_srq_resp{})]byte{}
	_ [8]byte   = [unsafe.Sizeof(Rxe_modify_srq_cmd{})]byte{}
	_ [384]byte = [unsafe.Sizeof(Rxe_queue_buf{})]byte{}
	_ [16]byte  = [unsafe.Sizeof(Rxe_sge{})]byte{}
	_ [40]byte  = [unsafe.Sizeof(Rxe_recv_wqe{})]byte{}
	_ [208]byte = [unsafe.Sizeof(Rxe_send_wqe{})]byte{}
	_ [144]byte = [unsafe.Sizeof(Rxe_send_wr{})]byte{}
	_ [120]byte = [unsafe.Sizeof(Rxe_wr_ud{})]byte{}
	_ [88]byte  = [unsafe.Sizeof(Rxe_av{})]byte{}
)
