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
// bound is close where endpoints poll; after a sleep, at most 50 us of it count
// as the wake-up.
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
// # Times
//
// Times are time.Duration, those called Now of the endpoint's clock, which never
// runs backwards and has no meaning beyond one endpoint. A controller belongs to
// its endpoint's loop: it is called there alone, must not block, and should not
// allocate.
package congestion
