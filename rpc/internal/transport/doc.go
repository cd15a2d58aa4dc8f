// Package transport binds the RPC engine to queue pairs: one UD QP per endpoint
// for datagrams, and one RC QP per pair of endpoints for the RDMA READs of
// large messages.
//
// A [Transport] belongs to the goroutine that owns the engine; [Peer] objects
// are prepared by other goroutines, because connecting a QP enters the kernel
// and may wait for address resolution, and are then attached by the owner.
//
// A message is pulled in chunks, several at once, in turns with other messages
// and other peers. A queue pair that fails is replaced by another Conn, which
// the owner agrees on with the peer; pulls wait for it and go on behind the last
// chunk that has arrived, because an RC queue pair completes in order.
//
// What peers may read is granted message by message, by memory windows, where
// Config says so: the right is given and taken back by work requests on the peer's
// RC queue pair, and the engine hears when each is complete.
//
// Receive buffers are one ring of registered memory, local-only. Headers of
// datagrams that are too long to be inlined lie in a second piece of registered
// memory, one place per entry of the send queue.
package transport
