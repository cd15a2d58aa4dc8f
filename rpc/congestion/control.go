package congestion

import "time"

// Control makes the controllers of an endpoint.
type Control interface {
	// NewController returns the controller of a new session of a client, which
	// has at most window requests under way.
	NewController(window int) Controller
}

// Controller decides how fast one session sends. Its methods are called for
// every request that is answered, which costs an interface call each; a
// *SwiftController is called directly.
type Controller interface {
	// Answered takes in an answer, and returns the time to leave between two
	// datagrams of requests; 0 or less sends at once.
	Answered(s Sample) (gap time.Duration)
	// TimedOut tells that a request, sent last at sent, was not answered in time,
	// and that nothing else has come from the server since. The handler may be
	// slow, or the network lost something: the answer will tell. It returns the
	// gap, as Answered does.
	TimedOut(now, sent time.Duration) (gap time.Duration)
}

// Sample is what an answer says about the network.
type Sample struct {
	// Now is when the answer was received, Sent when the request was, at first.
	Now, Sent time.Duration
	// Delay is how long request and answer were under way, at least; 0 if
	// nothing is known, since the server had the request for too long, or if
	// Lost.
	Delay time.Duration
	// Bytes is what request and answer carried in datagrams behind the header.
	Bytes int
	// Resent is set where the request was sent more than once.
	Resent bool
	// Lost is set where that was necessary: the first request, or the answer to
	// it, was lost or delayed beyond the shortest timeout.
	Lost bool
}
