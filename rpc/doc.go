// Package rpc is the RPC engine's public face: endpoints that send and answer
// requests over RDMA, sessions between them, and handlers bound to an endpoint
// by request type.
//
// Small messages travel in one RDMA UD datagram and are handled where they were
// received; large ones stay where they are until the other side pulls them by
// RDMA READ over an RC queue pair, straight into their final buffer; and those
// between, of a few datagrams, may go in several of them (WithLargeThreshold).
// Which way a message goes follows from its length alone.
//
// # Driving an endpoint
//
// An endpoint does nothing by itself: one goroutine drives it. Run does until its
// context ends, sleeping when nothing happens; Poll does one round, for loops of
// one's own; and where neither is used, the goroutines that block in Call, Wait,
// Ready, Connect or Close drive it while they wait. Callbacks run on the driving
// goroutine and must not block.
//
// # Handlers
//
// How a handler is bound says where it runs and how it may wait:
//
//	Handle            on the loop; must not block. What it cannot answer at once it
//	                  defers, and anybody replies later.
//	HandleCoroutine   on the loop, on a stack of its own; waits for nested calls by
//	                  h.Call, or h.Begin and Wait, while the loop goes on. No
//	                  other handler of the endpoint runs at the same time.
//	HandleBackground  on a goroutine of its own; may block in any way.
//
// A request whose handler makes one nested call to its own endpoint took, on two
// busy cores, 1.2 us without the nested call, 4.0 us in a coroutine, 5.2 us with
// Enqueue, a callback and Defer, and 25 us on a background goroutine, where each
// way between the loop and the handler wakes somebody up. So coroutines are for
// handlers that call, background handlers for those that compute or block.
//
// Nested calls that a handler makes by its RequestHandle (Call, Begin, Enqueue)
// never end up waiting for each other in a circle, however they nest: see
// HandleBackground and WithNesting.
//
// # Buffers
//
// Messages live in registered memory, [msgbuf.Buf], from Endpoint.Alloc,
// RequestHandle.Response, or a Region of Endpoint.Register, or of RegisterDMABuf
// for that of a GPU. A request's buffers belong to the endpoint until the request
// is done; a response's buffer belongs to it from the moment that the handler
// returns it. Peers can write nowhere; what they can read is below.
//
// # Guarantees
//
// A request is executed at most once, and ends exactly once: with its response
// or with an error, at its deadline at the latest plus the time that it takes to
// get its buffers back from the NICs. Lost datagrams are sent again.
//
// A peer that does not answer for 500 ms is dead (nexus.WithHeartbeat): its
// sessions and their requests end with ErrPeerDead. Link opens them again.
//
// # Limits
//
// Every session takes buffers of the receive ring at both ends, so that what the
// peer may send has a place: WithCredits of the WithRingDepth that the endpoint
// has, by default 32 of 2048. A ConnectX takes rings of 32,768 buffers, of one
// MTU each (130 MiB at 4 KiB), which is 1,024 sessions with the default credits,
// 4,096 with 8, and 32,768 with a window and a credit of 1. More need more
// endpoints. A session without credits to take is refused (ErrRingExhausted).
// All sessions between two endpoints share one RC queue pair; idle ones cost
// their memory, some kilobytes with a window of 8, and no time.
//
// # Messages of a few datagrams
//
// A message of up to LargeThreshold bytes that does not fit into one datagram
// goes in several, which the receiver copies together: a request into memory of
// the server's, a response into the caller's buffer. By default that is up to 3
// datagrams (12,216 bytes at an MTU of 4096); WithLargeThreshold chooses.
//
// What speaks for datagrams: the message is there after half a round trip. By
// RDMA READ the receiver first learns where it lies, and fetches it, which is
// another whole one; before that, where messages are offered by memory windows,
// the sender's device makes a window and says so, and afterwards takes it back;
// and a response is confirmed. What speaks against: each datagram of 4 KiB costs
// a send, a receive, two completions and a copy, a READ costs about the same for 4
// KiB as for 64, and is copied by the device alone. The table has what datagrams
// take as a share of what READ does, for requests of 2, 3, 4, 8 and 16 datagrams
// with answers of 8 bytes:
//
//	                                             2     3     4     8    16
//	mlx5sim, one goroutine, processor time,
//	  one under way                             0.92  1.01  1.18  1.69  2.33
//	  eight under way                           0.96  1.20  1.44  2.14  3.24
//	the same, answers of that size to 8 bytes,
//	  one under way                             0.76  0.93  1.06  1.54  2.55
//	  eight under way                           0.85  1.04  1.29  2.05  3.01
//	mlx5sim, two processes, one under way,
//	  round trip                                0.57  0.61  0.57  0.54  1.00
//
//	Soft-RoCE in an emulated machine, two processes,
//	  one under way, round trip                 0.84  0.90  0.99  0.95  0.96
//	  eight under way, time of each             0.79  0.90  0.93  0.90  1.06
//
// (BenchmarkCrossing, BenchmarkTwoProcessesCrossing and scripts/kerneltest.sh
// --crossing. The simulator's network is the processor's work, too, and has no
// distance. Of the emulated machine these are medians of five rounds on an
// otherwise idle host; on a busy one the rounds differ by more than the two ways
// do.) So processor time is even at 2 to 3 datagrams, the time until the answer is
// shorter by datagrams at the same sizes, and on Soft-RoCE, whose RDMA is the
// processor's work as well, beyond them: hence the default, which is
// also what 32 credits for a window of 8 have room for. No ConnectX was measured.
// There the device does the copying and the sending, a round trip takes 2 us or
// so and READ has two of them more than datagrams if there are windows; what a
// datagram costs the processor of each side is a fraction of that. The crossing
// should lie higher for single requests, and where it does today if the processor
// is what all wait for. Who knows the load should measure.
//
// A session's credits are shared out among its slots, and a message has at most
// as many datagrams as a slot has credits at either end, less one for
// confirmations; so the receive rings have room for whatever is sent a first
// time. Where an answer is overdue, the client asks with one short datagram which
// ones did not come, in either direction, and only those are sent again: with a
// fifth of all datagrams lost, messages of 16 cost 1.25 times their bytes. The
// memory of a request counts for WithRequestMemory from its first datagram; if the
// rest never comes it is freed after a few seconds. A response's is kept, as that
// of smaller ones, until the slot's next request. Buffers for such messages are in
// memory that no peer can read. To a session with fewer credits or a smaller MTU
// at the other end, and on the lanes of WithNesting, they are copied to memory
// that it can.
//
// # Large messages
//
// A message longer than that, up to 1 GiB, is pulled in chunks of at most
// 1 MiB, or what the port takes if that is less, four of them at once. Messages
// take turns chunk by chunk, so a short one does not wait for a long one, and the
// pull of a request that was given up stops at the next chunk. The server's
// buffer of a request is free when the handler returns or calls Release, that of
// a response when the client has said that it has it: half a round trip after
// the pull.
//
// Where the RC connection of two endpoints breaks, datagrams go on, and a new
// connection is made by way of the session manager; the pulls go on behind what
// had arrived. Sessions live on, and no handler runs twice. If that takes longer
// than 5 s, if the connections of a pair break more than 8 times within 10 s, or
// three under one message, then the sessions of the pair end with ErrPeerDead at
// the side that gives up and ErrSessionClosed at the other, in the last case only
// the message, with ErrReadFailed. Connect works again at once.
//
// # Congestion
//
// A session has at most a window of requests in the network, 8 by default. Where
// many clients send to one server at once, that may still be more than switches
// buffer; WithCongestionControl makes each session slow down by the delays that it
// sees: [congestion.Swift], or a controller of one's own. It is off by default.
// What clients send as requests is paced; answers follow them, and RDMA READs are
// asked for by whoever receives them, a bounded number at a time. Requests that
// wait for their turn are in the session's backlog, so that deadlines, Abort and
// Close end them as any other. Slow handlers and busy loops are no congestion: the
// server says how long it had a request. Session.Stats tells a session's pace,
// Stats how many requests were paced; rpctest.Incast tries a controller out.
//
// # What peers can read
//
// A process that has a session with an endpoint, and whose software need not be
// this package, has an RC connection to read by. On ConnectX, and on the
// simulated one, each large message is offered to its peer by a memory window of
// type 2, with a key of its own. The peer can read, as often as it likes,
//
//   - the bytes of large requests that this endpoint sends it and of large
//     responses that it is sent, from the moment that the message is offered
//     until the offer ends.
//
// It can read nothing else: no byte before or behind the message, no message
// that is offered to another peer, even with the right key, because a window is
// for one connection; no buffer of other use, sent or not, large or small, no
// Region beyond the parts that are offered; no received message, and nothing of
// other endpoints of the process. No region's own key grants anything, so that
// guessing keys finds at most what is offered to the same peer at that moment; each
// wrong one breaks the connection. It can write nowhere: no memory is registered
// for remote writing or atomics. Who has no session has no connection to read by.
//
// The offer of a request ends when the peer says that it has pulled it, answers,
// or lets it go after an abort or a deadline; if it does not let go within half a
// second, it is taken from it. The offer of a response ends when the peer says
// that it has it, or sends the next request in its place, and every offer with
// its session. Whatever ends it, the buffer is used for nothing else, and is not
// the caller's again, before the device has said that the window is invalid, or
// the kernel that there is no window any more.
//
// Windows come from the endpoint: 16 at first, more as they are needed, up to its
// ring depth. While there is none for a message, it waits. Where a connection is
// replaced, what was offered by the old one is offered anew by the next.
//
// There is one exception: the kernel binds no windows to dma-bufs. A Region of
// RegisterDMABuf with msgbuf.RemoteRead can be read as a whole, by each peer that one
// of its large messages has shown its key, or that has guessed it.
//
// With WithRegionKeys, and on devices without such windows (MemoryWindows tells),
// the key of a large message is that of the region that it lies in. Soft-RoCE is
// one of these: it has windows, but does not check their bounds (Linux 6.1 and
// 6.12). There, a peer that a large message has shown a region's key, or that has
// guessed its 32 bits, can read
//
//   - all of the regions (2 to 64 MiB) that hold or held buffers for large
//     messages: those that Endpoint.Alloc and RequestHandle.Response give for more
//     than LargeThreshold bytes, also such as were offered to other peers, and what is
//     left of messages in buffers that were freed
//   - all of a Region that was registered with msgbuf.RemoteRead
//
// until its last session ends; not the receive ring, the headers, buffers of up
// to LargeThreshold bytes, received requests of any size, responses that were pulled
// into Regions of msgbuf.Local, nor other endpoints of the process, whose
// protection domains are their own. Whoever shares an endpoint among tenants that
// must not see each other's large messages gives each an endpoint of its own.
//
// What a peer says about its own messages is not believed: a control block that
// names memory which cannot be read fails that request or call with
// ErrReadFailed and costs a new connection; a length beyond WithMaxMessage fails
// with ErrTooLarge, and beyond the caller's buffer with a ResponseTooLargeError,
// before any memory is taken. The memory that requests take is bounded by
// WithRequestMemory. A peer whose blocks break the connection again and again
// loses its sessions.
package rpc
