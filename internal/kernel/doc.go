// Package kernel is the one seam between the verbs and whatever answers them:
// the Linux kernel's ib_uverbs (this package) or a simulated device
// (mlx5/mlx5sim).
//
// A [Device] can be opened; a [File] is one open /dev/infiniband/uverbsN: it
// takes RDMA_VERBS_IOCTL commands, maps device memory and hands out event
// files. Commands are built with [Command], the only code in the module that
// turns Go pointers into the 64-bit words of an ioctl.
//
// Ownership: a File owns every kernel object made through it; Close destroys
// them. Every EventFile is closed by whoever asked for it, before the File.
// Concurrency: all methods may be called from several goroutines at once.
package kernel
