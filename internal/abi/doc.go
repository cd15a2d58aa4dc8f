// Package abi holds the constants and structures of the kernel's uverbs
// interface, in the kernel's own spelling.
//
// The sources are the UAPI headers rdma_user_ioctl_cmds.h,
// ib_user_ioctl_cmds.h, ib_user_ioctl_verbs.h and ib_user_verbs.h. Names keep
// the kernel's case and underscores so that a reader can search for them
// there; everything above this package uses Go names. A test compiles a C
// program against the installed headers and compares every size and offset.
//
// All fields are host-endian unless a comment says otherwise.
package abi
