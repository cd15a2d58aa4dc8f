// Package mlx5 is the uverbs provider for NVIDIA ConnectX NICs (kernel driver
// mlx5_ib, driver id 1). It maps the NIC's doorbell pages into the process and
// drives send, receive and completion queues directly: posting work and polling
// completions makes no system call.
//
// Import it for its side effect; uverbs finds it by the device's driver id:
//
//	import _ "github.com/rrppcc-go/rrppcc/mlx5"
//
// # Requirements
//
// A kernel with RDMA_VERBS_IOCTL and UVERBS_METHOD_GET_CONTEXT (5.7 or later).
// Queues work on every GOARCH, but only amd64 and arm64 have the stores and
// barriers that a device across PCIe needs; elsewhere OpenContext refuses a
// device that is not simulated.
//
// # Ownership and concurrency
//
// A send queue, a receive queue and a completion queue each belong to one
// goroutine at a time; these may be different goroutines. Different queues of
// one context need no synchronization with each other. Closing a QP is safe
// while another goroutine polls its CQs, but not while another goroutine posts
// to that QP; after Close, posting answers uverbs.ErrQPState. Completions of a
// closed QP that its CQs still hold are dropped at the next Poll. Moving a QP to
// RESET needs a quiet QP: nobody may post to it or poll its CQs meanwhile.
//
// A shared receive queue has one poster, too, and any number of QPs whose CQs
// belong to any number of goroutines: each Poll gives what it retired back by one
// compare-and-swap, and nobody waits. What a QP took that was closed or reset
// comes back when its CQ is polled next, or closed. A receive that met a page
// fault (on-demand paging) is posted again by whoever polls its completion.
//
// Nobody polls or arms a CQ while it is resized.
//
// On hardware no call of the data path takes a lock: a QP has a doorbell register
// of its own, and where registers are shared (static UARs that ran out,
// MLX5_SHUT_UP_BF, the arming of CQs) it is used by single 8-byte stores, which
// the device takes one by one. A simulated device looks at a register only when
// it is told to, so that shared registers have a mutex there.
//
// Queues, doorbell records and the tables of work request ids lie in memory
// mapped outside the Go heap, because the device (or the simulator) writes it
// behind the collector's back. A queue of 2 MiB or more lies in huge pages if the
// system has some to spare (MAP_HUGETLB).
//
// Memory regions are the kernel's business alone: on-demand paging, dma-buf and
// relaxed ordering need nothing of this package.
//
// # Doorbells
//
// A single work request goes to the NIC by BlueFlame: the whole WQE (up to half
// a BlueFlame register, 256 bytes) is copied to the register and the NIC need
// not fetch it. A burst rings an 8-byte doorbell once. Each QP has its own
// register; the two halves are used in turn. Two environment variables of
// libmlx5 are honoured, read when a device is opened:
//
//	MLX5_SHUT_UP_BF=1          never BlueFlame; all QPs use one doorbell page
//	MLX5_POST_SEND_PREFER_BF=0 BlueFlame for inline work requests alone
//
// # Completions
//
// Two more variables of libmlx5, read when a device is opened, change what a CQE
// is:
//
//	MLX5_CQE_SIZE=128       CQEs of 128 bytes, not 64
//	MLX5_SCATTER_TO_CQE=1   the device may put the data of small RC receives, and
//	                        of READs and atomics of a QP whose sends are all
//	                        signaled, into the CQE: up to 32 bytes, or 64
//
// With scatter-to-CQE, Poll copies the data to the addresses of the work request.
// These must therefore be addresses of this process: no dma-buf, no zero-based
// region; and a QP must not be closed while another goroutine polls its CQs. Nor
// does anybody check the keys of memory that the device does not write itself. It
// saves the device one write per small message; this module's RPC sends those as
// datagrams, for which it does not exist. So it is off unless asked for.
//
// Compression of CQEs is never asked for. An entry that is compressed, or holds
// data that were not asked for, or makes no sense in another way, is consumed and
// answered with uverbs.ErrCQCorrupt.
//
// # Changes of memory keys
//
// LOCAL_INV takes two basic blocks of the send queue and BIND_MW three, which can
// be more than the capacities asked for reckon with: then it counts as several
// work requests against MaxSendWR. The request after one of them waits for it by
// itself (small fence).
//
// # Unreliable connections
//
// A QP of UC takes SENDs and RDMA WRITEs, with immediate, and the binding of memory
// windows. A READ, an atomic or a SEND with invalidate is uverbs.ErrBadOpcode;
// libmlx5 would post the last one, for which UC has no packet.
//
// # Differences from libmlx5
//
// They are deliberate, and the golden tests name them:
//   - No DEVX context is asked for (flags 0 in alloc_ucontext).
//   - An RC send queue reserves no 192 bytes per work request for LOCAL_INV and
//     BIND_MW: a 2-SGE WQE takes one basic block, not four.
//   - Scatter-to-CQE is off by default. Where 32 bytes of data lie over the
//     sender's QP, LID and service level, these are 0 in the completion.
//   - An atomic wants exactly one element, of 8 bytes or more; the device writes 8.
//   - WQEs that an SRQ gets back are linked into its list when it runs out, not at
//     once; they are used in the same order as by libmlx5 44.
//   - Capacities that would wrap around to an inline size of 4294967292 are EINVAL.
//   - When a work request in the middle of a list is refused, the doorbell
//     carries the last accepted one; libmlx5 copies the unfinished WQE.
//   - Inline data too long and too many SGEs are EINVAL, as ibv_post_send(3)
//     documents, not ENOMEM.
//
// # Left out
//
// On purpose; the golden tests skip the recordings of these, by name, and run
// all others:
//   - the probe for the write(2) form of commands: a kernel with RDMA_VERBS_IOCTL is
//     required, so that there is nothing to choose
//   - DEVX, and QUERY_HCA_CAP by way of it: it takes a firmware interface that other
//     kernels and devices do not have, and nothing here needs what it tells
//   - mapping the device's clock, two pages: completions carry no timestamps
//
// These run with a difference: libmlx5's session by write(2), whose contents are
// compared with those of our ioctls; the ibv_wr interface, which takes a whole batch
// back when one request of it is refused, where PostSend posts what precedes the
// bad request; and querying the device, which uverbs does when it is asked to and
// not while it is opened.
//
// And, with no recording: XRC, DC and raw QPs, resizing of SRQs (the device
// cannot), tag matching, signatures.
package mlx5
