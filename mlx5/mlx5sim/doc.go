// Package mlx5sim is a simulated ConnectX: a device that answers the kernel's
// uverbs ABI as mlx5_ib does and executes mlx5 work queues, so that everything
// above it runs unchanged on a machine without a NIC.
//
// It has three parts. The kernel side decodes RDMA_VERBS_IOCTL commands and
// keeps the objects, their dependencies and the QP state machine, with the
// structures and errnos of Linux 6.1 and later. The queue engine decodes work
// requests that a doorbell announces and writes completions. The wire carries
// what leaves the process as RoCEv2 packets over UDP port 4791.
//
// All decoding in this package was written apart from the driver's
// (mlx5/internal/prm, mlx5/internal/abi), so that a mistake of one does not
// hide in the other. All access to the user's memory goes through [DMA].
//
// # Use
//
//	dev, err := mlx5sim.New()
//	defer dev.Close()
//	ctx, err := dev.Verbs().Open() // needs the provider: import .../mlx5
//
// Devices of one [Fabric] reach each other directly and run to completion on
// the goroutine that rings the doorbell. Devices of different processes reach
// each other by their IP address, over UDP or, with [WithEthernet], in Ethernet
// frames; [InProcess] leaves the network out, which
// tests in virtual time need.
//
// # Ownership and concurrency
//
// A [Device] is closed by whoever created it, after the contexts opened on it;
// closing it earlier is a device removal: commands fail with EIO and the async
// event DEVICE_FATAL is raised. All methods may be called from several
// goroutines at once. One mutex per fabric guards all device state; nothing
// blocks under it.
//
// # What it is not
//
// SRQ, XRC, memory windows, DEVX, raw packets and device memory answer with the
// errno of a device that lacks them.
package mlx5sim
