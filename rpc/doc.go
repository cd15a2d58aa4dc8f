// Package rpc is the RPC engine's public face: endpoints that send and answer
// requests over RDMA, sessions between them, and handlers bound to an endpoint
// by request type.
//
// Small messages travel in one RDMA UD datagram and are handled where they were
// received; large ones stay where they are until the other side pulls them by
// RDMA READ over an RC queue pair, straight into their final buffer. Which way a
// message goes follows from its length alone.
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
// RequestHandle.Response, or a Region of Endpoint.Register. A request's buffers
// belong to the endpoint until the request is done; a response's buffer belongs
// to it from the moment that the handler returns it. Peers can write nowhere;
// what they can read is below.
//
// # Guarantees
//
// A request is executed at most once, and ends exactly once: with its response
// or with an error, at its deadline at the latest plus the time that it takes to
// get its buffers back from the NICs. Lost datagrams are sent again.
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
// # Large messages
//
// A message longer than a datagram, up to 1 GiB, is pulled in chunks of at most
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
// # What peers can read
//
// The rkey of a large message is that of the memory region it lies in, not of
// the message alone. A process that has a session with an endpoint, and whose
// software is not this package, can therefore read, by RDMA READ over the RC
// connection that the session gave it, and once a large message has shown it a
// region's rkey (or with a guess at its 32 bits; each wrong one breaks the
// connection):
//
//   - all of the regions (2 to 64 MiB) that hold or held buffers for large
//     messages: those that Endpoint.Alloc and RequestHandle.Response give for more
//     than MaxSmall bytes, also such as were offered to other peers, and what is
//     left of messages in buffers that were freed
//   - all of a Region that was registered with msgbuf.RemoteRead
//
// It can read nothing else: not the receive ring, the headers, buffers of up to
// MaxSmall bytes, received requests of any size, responses that were pulled into
// Regions of msgbuf.Local, nor memory that is not registered. It can read nothing
// after its last session has ended, and nothing of other endpoints of the
// process, whose protection domains are their own. It can write nowhere: no memory
// is registered for remote writing or atomics. Who has no session has no
// connection to read by. Whoever shares an endpoint among tenants that must not
// see each other's large messages gives each an endpoint of its own.
//
// What a peer says about its own messages is not believed: a control block that
// names memory which cannot be read fails that request or call with
// ErrReadFailed and costs a new connection; a length beyond WithMaxMessage fails
// with ErrTooLarge, and beyond the caller's buffer with a ResponseTooLargeError,
// before any memory is taken. The memory that requests take is bounded by
// WithRequestMemory. A peer whose blocks break the connection again and again
// loses its sessions.
package rpc
