package abi

import "unsafe"

// The kernel's sizes; test abi_test.go compares every field with the headers.
var (
	_ [32]byte = [unsafe.Sizeof(Mlx5_ib_alloc_ucontext_req_v2{})]byte{}
	_ [72]byte = [unsafe.Sizeof(Mlx5_ib_alloc_ucontext_resp{})]byte{}
	_ [32]byte = [unsafe.Sizeof(Mlx5_ib_create_cq{})]byte{}
	_ [8]byte  = [unsafe.Sizeof(Mlx5_ib_create_cq_resp{})]byte{}
	_ [16]byte = [unsafe.Sizeof(Mlx5_ib_resize_cq{})]byte{}
	_ [32]byte = [unsafe.Sizeof(Mlx5_ib_create_srq{})]byte{}
	_ [8]byte  = [unsafe.Sizeof(Mlx5_ib_create_srq_resp{})]byte{}
	_ [56]byte = [unsafe.Sizeof(Mlx5_ib_create_qp{})]byte{}
	_ [40]byte = [unsafe.Sizeof(Mlx5_ib_create_qp_resp{})]byte{}
	_ [16]byte = [unsafe.Sizeof(Mlx5_ib_create_ah_resp{})]byte{}
)
