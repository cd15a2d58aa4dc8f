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
// # Buffers
//
// Messages live in registered memory, [msgbuf.Buf], from Endpoint.Alloc or
// RequestHandle.Response. A request's buffers belong to the endpoint until the
// request is done; a response's buffer belongs to it from the moment that the
// handler returns it. Peers can read large messages and nothing else, and can
// write nowhere.
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
package rpc
