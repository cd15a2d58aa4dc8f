// Package abi holds the structures that rdma_rxe shares with user space, in
// the kernel's own spelling. The source is the UAPI header rdma_user_rxe.h; a
// test compares every size and offset with the installed one.
package abi
