// Package congestion decides how fast a session of package rpc may send its
// requests, so that the queues of the network stay short where many clients send
// to one server.
//
// A [Control] makes a [Controller] for every session of a client. The controller
// is told what each answer says about the network, a [Sample], and answers with
// the time to leave between two requests; 0 is no pacing at all, which is how a
// session begins and what it comes back to. [Swift] is the one that this package
// has; others plug in by the same two interfaces.
//
// # What is measured
//
// Sample.Delay is the time that a request and its answer were under way, both
// ways together, without what the two endpoints took of it. The server says in
// its answer how long it had the request: from when it last found its receive
// ring empty, which is before the request can have arrived, to when it posts the
// answer. That covers waiting in the ring, handlers of any kind and the READ of a
// large request. The client likewise counts from when the request is posted to
// when it last found its ring empty before the answer. So Delay is a lower bound:
// what cannot be told from work, or from a process that did not get the
// processor, is not taken for congestion, and slow handlers throttle nobody. The
// bound is close where endpoints poll, so a loop with congestion control does not
// sleep within a millisecond after a request.
//
// A timeout alone is no loss, since the handler may just be slow. When the answer
// of a request that was sent again comes, the server's word tells which it was.
//
// # What is paced
//
// Requests of clients, first transmissions and repeated ones. A datagram costs a
// gap, and a request of several datagrams as many. Answers are not paced: they
// follow the requests, and since Delay covers them, requests slow down where
// answers congest the network. RDMA READs of large messages are not paced either:
// whoever receives them asks for them, a bounded number of bounded chunks at a
// time.
//
// # Why Swift
//
// eRPC has Timely (Mittal et al., SIGCOMM 2015), which follows the gradient of the
// round trip with a rate. It must know the link's rate, which Soft-RoCE does not
// have, and has a smallest rate below which many senders cannot go; where its
// rates settle depends on where they begin (Zhu et al., CoNEXT 2016). Swift has a
// target, so sessions that share a queue come to equal shares, and scales with
// the round trip down to a small fraction of a request. Both are after RTTs of
// tens of microseconds; both need nothing of the switches.
//
// # What it does
//
// In rpctest.Incast, 100 clients with 8 requests of 4000 bytes each against one
// server at 25 Gbit/s, through a switch port with 1 MiB of buffer, after 30 ms:
//
//	                     without         with Swift's defaults
//	queue, median        1018 KiB        131-195 KiB
//	queue, longest       1023 KiB        229-368 KiB
//	lost                 27 in 30 ms     none
//	goodput              97.5 %          96-97.5 % (97.5 is all that headers leave)
//	fairness (Jain)      0.94            0.99-1.00
//
// and where all clients wait for the slowest before they send again, after 100 ms:
//
//	goodput              2 %             75 %
//	lost                 1660 in 100 ms  none
//
// The first windows of 100 sessions that begin together overflow the buffer
// either way (541 datagrams lost): nobody knows of the others yet.
//
// # What it costs
//
// An uncongested session passes by all of it: one comparison for an answer, and a
// reading of the clock per burst at either end, where the loop is driven by hand.
// With engines ring to ring on one goroutine, 32 bytes, 1 / 8 / 32 outstanding: 171
// / 107 / 101 ns for an RPC without, 229 / 128 / 120 ns with it (best of 25 on a busy
// machine; eRPC on a like one 111 / 79 / 81 and 178 / 94 / 120 ns).
//
// It was not tried on a network of hardware. Windows of 8 datagrams keep most
// networks from overflowing without it, and the target is a property of the
// network; so package rpc has it off unless it is asked for.
//
// # Times
//
// Times are time.Duration, those called Now of the endpoint's clock, which never
// runs backwards and has no meaning beyond one endpoint. A controller belongs to
// its endpoint's loop: it is called there alone, must not block, and should not
// allocate.
package congestion
