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
// one's own; and where neither is used, the goroutines that block in Call, Wait
// or Connect drive it while they wait. Handlers and callbacks run on the driving
// goroutine and must not block.
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
package rpc
