// Package transport binds the RPC engine to queue pairs: one UD QP per endpoint
// for datagrams, and one RC QP per pair of endpoints for the RDMA READs of
// large messages.
//
// A [Transport] belongs to the goroutine that owns the engine; [Peer] objects
// are prepared by other goroutines, because connecting a QP enters the kernel
// and may wait for address resolution, and are then attached by the owner.
//
// Receive buffers are one ring of registered memory, local-only. Headers of
// datagrams that are too long to be inlined lie in a second piece of registered
// memory, one place per entry of the send queue.
package transport
