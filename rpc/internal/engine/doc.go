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
// # Messages in parts
//
// A message of a few datagrams goes in parts, each with a Part block that tells
// the length of the whole and which part it is: a request into a buffer that the
// server allocates when the first one comes, whichever it is, a response to its
// place in the caller's buffer. A bitmap says which parts have come, so their
// order does not matter, nor that one comes twice.
//
// A session's credits are shared out among its slots once and for all: a message
// has at most as many parts as each receive ring has buffers for the slot, less
// one for what is not a message (see PartsFor). So nothing is counted while
// messages flow, and the rings have room for all that is sent a first time. What
// is repeated comes on top, but it is little, and later: where an answer is
// overdue the client sends one short KindMissing instead of the request, and
// learns which parts did not come, of the request or of the response; only those
// are sent again. The same is sent ahead of a request in parts whose slot had one
// before that was given up, and may still have parts in the ring.
//
//	client                                   server
//	  | REQUEST_PART 0, 1, 2             -->   |  1 is lost
//	  | MISSING(all of the response)     -->   |
//	  |       <--  MISSING(1 of the request)   |
//	  | REQUEST_PART 1                   -->   |  handler runs
//	  |           <--  RESPONSE_PART 0, 1, 2   |  2 is lost
//	  | MISSING(2 of the response)       -->   |
//	  |           <--  RESPONSE_PART 2         |
//
// Once a part of the response has come, the request is not sent again, for both
// may have one buffer. A request of which parts are missing and whose client is
// silent is forgotten after a while (partsKept) as if it had never come: its
// handler has not run. The memory of such requests counts like that of large
// ones, and is no more than the session's part of the ring.
//
// # Large messages
//
// A message that is too long for that stays where it is: the control
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
// With Config.Offers, such a message, unless its region has a key of its own, is first made readable for this one peer
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
// # Congestion
//
// With Config.Congestion a client's session has a flow. It asks for the time that
// the server has each request (byte 3 of the header), tells the session's
// controller what the network's part of the round trip was, and holds calls in the
// backlog until their turn, for which the session has a place in a timing wheel
// of its own. When requests are posted, and answers, is what Stamp says; when they
// arrived, no later than the last Receive with a burst that was not full.
//
// # Ownership of buffers
//
// A request's buffers belong to the engine from Start to the callback, which
// comes only when neither NIC can touch them any more: an aborted request whose
// READ is in flight waits for it; one that the peer may be about to pull is
// cancelled first, and with Config.Offers taken from a peer that does not let go. A response buffer belongs to the engine from the moment that
// the handler gives it; the engine frees it.
package engine
