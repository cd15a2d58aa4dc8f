// Package engine is the RPC protocol without its surroundings: it opens no
// socket, starts no goroutine and reads no clock.
//
// Its owner, one goroutine, feeds it received datagrams, completions of its
// sends, READs and offers, and the time, and drains what it wants done:
// [Engine.Tx], [Engine.Reads], [Engine.Offers], [Engine.Withdrawn] and
// [Engine.Released]. Everything runs inside the calls of the
// owner: handlers, completion callbacks, retransmission.
//
// One turn of the owner's loop is: completions ([Engine.TxDone],
// [Engine.ReadDone], [Engine.OfferDone]), [Engine.Receive], [Engine.Tick], posting, and
// [Engine.Flushed]; the last two again until [Engine.Idle]. Handlers and
// callbacks run in Start, Abort, Closing, Fail, FailDest, Respond, Receive, Tick
// and Flushed, never in TxDone, ReadDone and OfferDone, so completions may be taken while
// posting. They may call anything, and may even run turns of the loop
// themselves, to wait for a call: an inner turn does what the outer one has not
// got to.
//
// # Slots
//
// A session has a window of slots, each with at most one request at a time,
// numbered by the slot. A request that finds no free slot waits in the
// session's backlog, first in first out. The server keeps, per slot, the number
// it has seen last and the response to it, so a request that arrives twice is
// executed once and answered twice. Numbers start at 1 and wrap around without
// 0. A slot whose last request is still with its handler, because the client
// gave it up, takes no new one until that has been answered.
//
// # Large messages
//
// A message that does not fit into one datagram stays where it is: the control
// block of a datagram names address, length and rkey, and the other side pulls
// it by RDMA READ and says so with KindPulled.
//
//	client                                   server
//	  | LARGE_REQUEST(addr, len, rkey)  -->    |
//	  |                        <== RDMA READ ==|
//	  |    <--                       PULLED    |  handler runs
//	  |    <--  LARGE_RESPONSE(addr,len,rkey)  |
//	  |== RDMA READ ==>                        |
//	  | PULLED                          -->    |  response buffer is free
//
// With Config.Offers, such a message is first made readable for this one peer
// ([Offer]): only when the transport says that it is, the control block is sent,
// and only when the transport says that it is no more, the buffer is let go. A key
// works by one connection; where that is replaced, the message is offered anew, and
// its control block sent again, with the number of the connection in it, for which
// the pull waits.
//
// The transport pulls in pieces, and over a new connection where one breaks; it
// asks Wanted whether to go on. Only the client can make a new connection, so a
// server that finds one broken says so with KindBroken, at once and again
// whenever a request that waits for it is repeated.
//
// # Ownership of buffers
//
// A request's buffers belong to the engine from Start to the callback, which
// comes only when neither NIC can touch them any more: an aborted request whose
// READ is in flight waits for it; one that the peer may be about to pull is
// cancelled first, and with Config.Offers taken from a peer that does not let go. A response buffer belongs to the engine from the moment that
// the handler gives it; the engine frees it.
package engine
