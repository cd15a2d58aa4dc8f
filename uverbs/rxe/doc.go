// Package rxe is the provider for Linux Soft-RoCE (the kernel driver rdma_rxe):
// a RoCEv2 device in software over any Ethernet interface,
//
//	rdma link add rxe0 type rxe netdev eth0
//
// Import it for its side effect of registering with package uverbs.
//
// # How it works
//
// The kernel executes the queues. Each is a ring of entries that is mapped from
// the device's file and shared with the kernel (struct rxe_queue_buf): work
// requests are written into a send, receive or shared receive ring, and
// completions are read from a completion ring, without a system call. The
// kernel looks at receive rings by itself, when a packet arrives; a send ring
// needs a doorbell.
//
// # What a doorbell costs
//
// The doorbell and CQ arming are system calls (INVOKE_WRITE of POST_SEND and of
// REQ_NOTIFY_CQ), because the device is the kernel: one for each PostSend,
// however many work requests it takes. So post in bursts. The commands are built
// once, outside the Go heap; nothing is allocated or pinned per call, and the
// file's read lock is all that is taken. They go by ioctl and not by write(2),
// which the kernel refuses to threads whose credentials changed since the file
// was opened (EACCES).
//
// # What differs from a ConnectX
//
//   - A ring's capacity is a power of two less one; Cap and Depth say what there
//     is. A slot of the send ring is free again once the kernel is done with the
//     request, signaled or not, before its completion is polled: CQs must be
//     deep enough for what is posted.
//   - UD packets longer than the MTU, to an unknown QP, or with a wrong QKey
//     are sent with success and dropped.
//   - A failed send completes with [uverbs.WCLocQPOpErr] on Linux 6.1 and with
//     [uverbs.WCWRFlushErr] from 6.12 on.
//   - Receives that are posted in state ERR are flushed when the kernel next
//     looks at the QP, for example when it is moved to ERR once more.
//   - Requests posted in state SQD wait for the first doorbell in RTS.
//   - A UD receive that is too short for its packet breaks the QP on Linux 6.1,
//     and blocks the receive ring behind it from 6.12 on: make every receive
//     40 bytes longer than the MTU.
//   - Moving a QP to RESET leaves the indices of its rings where they are; the
//     kernel skips what was posted.
//   - A multicast group's packets arrive only if an IP socket of the machine has
//     joined the group on the device's interface.
//   - A memory window's bounds are not looked at, but its region's are.
//   - Removing the device while it is open hangs the remover on kernels before
//     7.x until the context is closed, and the context works meanwhile.
//
// # Ownership
//
// As in package uverbs: one owner per queue, who calls PostSend, PostRecv or
// Poll and Arm. Closing an object unmaps its ring. The kernel keeps every object
// of a context as long as one of its rings is mapped, so that a context that is
// not closed leaks them all until the process ends.
//
// # What it needs of the kernel
//
// rdma_rxe's ABI version 1 or 2: Linux 5.10 or newer on 64-bit machines. Linux
// 6.1 and 6.12 were tested.
package rxe
