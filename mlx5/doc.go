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
// Queues, doorbell records and the tables of work request ids lie in memory
// mapped outside the Go heap, because the device (or the simulator) writes it
// behind the collector's back.
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
// # Differences from libmlx5
//
// They are deliberate, and the golden tests name them:
//   - No DEVX context is asked for (flags 0 in alloc_ucontext).
//   - An RC send queue reserves no 192 bytes per work request for LOCAL_INV and
//     BIND_MW, which are not offered: a 2-SGE WQE takes one basic block, not four.
//   - Scatter-to-CQE is not asked for: received data are always in the posted
//     buffer, and completions keep their source address.
//   - Capacities that would wrap around to an inline size of 4294967292 are EINVAL.
//   - When a work request in the middle of a list is refused, the doorbell
//     carries the last accepted one; libmlx5 copies the unfinished WQE.
//   - Inline data too long and too many SGEs are EINVAL, as ibv_post_send(3)
//     documents, not ENOMEM.
package mlx5
