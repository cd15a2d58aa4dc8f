// Package uverbs speaks the Linux kernel's RDMA verbs directly: it opens
// /dev/infiniband/uverbsN and issues the ioctls that libibverbs would, without
// cgo and without rdma-core.
//
// The names are those of libibverbs with Go's capitals: a [Device] opens to a
// [Context], from which come protection domains ([PD]), completion queues
// ([CQ]) and completion channels ([CompChannel]); from a PD come memory regions
// ([MR]), memory windows ([MW]), queue pairs ([QP]), shared receive queues
// ([SRQ]) and address handles ([AH]). Work requests
// ([SendWR], [RecvWR]) are posted in bursts and completions ([WC]) are polled in
// bursts.
//
// The kernel makes the objects; what is in their queues is between the program
// and the device. That half is a provider's ([Provider]), chosen by the
// kernel driver's id. A program imports the packages of the providers it wants,
// for example mlx5 and uverbs/rxe, for their side effect of registering. What a
// provider lacks (SRQs, resizing of CQs) is [ErrNotSupported].
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
// per queue: PostSend one, PostRecv one (of an SRQ, too), and a CQ's Poll and Arm
// one. It takes
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
// A device that is removed while it is open answers everything with
// [ErrDeviceRemoved], and ends all waits with it. Close works on every object
// then, in any order, and so does [Context.Close].
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
// first form, discovery by netlink to sysfs. On other operating systems the package builds, [Devices] returns
// an error that wraps [ErrNoDevice], and a simulated device can be used.
//
// # What is left out
//
//	feature                     why
//	write(2) commands           a process whose threads change credentials gets EACCES; all goes by ioctl
//	commands before Linux 5.10  no QP or CQ creation by ioctl
//	XRC (XRCD, XRC SRQ and QP)  shares receive QPs between processes; here one process owns its QPs
//	RD, raw packets             no provider here has them
//	flow steering               for raw packets
//	WQ, RSS indirection tables  the same
//	tag matching SRQ            device-specific, and meant for MPI
//	DM (device memory)          device-specific; a provider can issue the commands by [Context.Kernel]
//	counters, DEVX              the same
//	CQ moderation, timestamps   device-specific; QueryDevice shows what there is
//	parent domains, null MR     user-space constructs of libibverbs
//	ADVISE_MR                   a hint to on-demand paging
//	alternate paths, migration  RoCE has none
//	joining multicast groups    an IP socket's matter on RoCE (IGMP); AttachMulticast filters
//	P_Key query by command      the kernel has none: QueryPKey reads sysfs
//	fork                        a child must not touch the queues: Go programs start children by exec
package uverbs
