// Package uverbs speaks the Linux kernel's RDMA verbs directly: it opens
// /dev/infiniband/uverbsN and issues the ioctls that libibverbs would, without
// cgo and without rdma-core.
//
// The names are those of libibverbs with Go's capitals: a [Device] opens to a
// [Context], from which come protection domains ([PD]), completion queues
// ([CQ]) and completion channels ([CompChannel]); from a PD come memory regions
// ([MR]), queue pairs ([QP]) and address handles ([AH]). Work requests
// ([SendWR], [RecvWR]) are posted in bursts and completions ([WC]) are polled in
// bursts.
//
// The kernel makes the objects; what is in their queues is between the program
// and the device. That half is a provider's ([Provider]), chosen by the
// kernel driver's id. A program imports the packages of the providers it wants,
// for example mlx5, for their side effect of registering.
//
// # Ownership
//
// Every object is closed by who created it, in the reverse order of creation.
// The kernel refuses to destroy an object that is in use (EBUSY), and it stays
// usable then. [Context.Close] takes along what was forgotten.
//
// Registered memory stays the caller's and must outlive its MR. It must be
// mapped memory: the Go collector does not know that a device still writes to
// heap memory that it gives to somebody else.
//
// # Concurrency
//
// The control path (everything that creates, queries, changes or closes) may be
// used from several goroutines at once. The data path has one owner goroutine
// per queue: PostSend one, PostRecv one, and a CQ's Poll and Arm one. It takes
// no lock, allocates nothing and never waits. [CompChannel.Wait] and
// [Context.WaitAsyncEvent] park the goroutine on Go's poller, end with their
// context.Context or with Close, and may have several callers.
//
// A control command takes as long as the kernel does, which is bounded: the
// longest is resolving an address that nobody answers for, by CreateAH or a
// Modify to RTR on RoCE, with about a second.
//
// # Errors
//
// The control path returns [*Error]: what was tried, on what, the errno or the
// condition underneath (errors.Is works with both), and what to do about it
// where that is known. The data path returns preallocated values such as
// [ErrQueueFull].
//
// # What it needs of the kernel
//
// uverbs ABI version 6 with the ioctl interface and with the methods that
// create CQs, QPs and async event files: Linux 5.10 has them all. They are
// checked by use; a missing one is EPROTONOSUPPORT with the version in the
// message. The GID table falls back to sysfs, the extended device query to the
// first form. On other operating systems the package builds, [Devices] returns
// an error that wraps [ErrNoDevice], and a simulated device can be used.
//
// # What is left out
//
//	feature                     why
//	write(2) commands           a process whose threads change credentials gets EACCES; all goes by ioctl
//	commands before Linux 5.10  no QP or CQ creation by ioctl
//	SRQ, atomics                to come; their constants stand
//	memory windows, SEND_INV    a provider may accept the opcodes; there are no MW objects
//	XRC, RD, raw packets, flow  not needed by an RPC transport
//	multicast                   not needed; RoCE networks rarely route it
//	resize CQ, rereg MR         create anew: neither can be done while the data path runs
//	alternate paths, migration  RoCE has none
//	DM, counters, DEVX, WQ      device-specific; by way of the provider and [Context.Kernel]
//	discovery by netlink        sysfs tells what is needed so far
//	P_Key query by command      the kernel has none: QueryPKey reads sysfs
//	fork                        a child must not touch the queues: Go programs start children by exec
package uverbs
