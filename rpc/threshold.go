package rpc

import "github.com/rrppcc-go/rrppcc/rpc/internal/engine"

// WithLargeThreshold sets how long a message may be to go in UD datagrams;
// longer ones go by RDMA READ. 0, the default, is 3 datagrams: the package's
// documentation has what was measured ("Messages of a few datagrams"). The limit
// applies to what this endpoint sends, requests and responses; the two ends need
// not agree.
//
// What fits into one datagram always goes in one: a threshold below
// Endpoint.MaxSmall, as 1, means RDMA READ for all that does not. The most is
// what the receive rings hold: of the credits that either end has for a slot of
// the session's window, see WithCredits, one is kept for confirmations, and each
// other takes one datagram of MaxSmall - 8 bytes; and 64 datagrams. A longer
// threshold is cut to that, and Endpoint.LargeThreshold and
// Session.LargeThreshold say what came of it. With the default of 32 credits for
// 8 slots, messages of up to 3 datagrams are possible, with 136 credits such of 16.
func WithLargeThreshold(n int) Option { return func(o *options) { o.threshold = n } }

// defaultParts is up to how many datagrams a message goes by UD unless somebody
// has said otherwise. See "Messages of a few datagrams" in the package's
// documentation for what was measured.
const defaultParts = 3

// largeThreshold returns the endpoint's threshold, where a datagram takes
// maxSmall bytes.
func (o *options) largeThreshold(maxSmall int) int {
	n := o.threshold
	if n == 0 {
		n = defaultParts * (maxSmall - engine.PartBytes)
	}
	if parts := engine.PartsFor(o.credits, o.window); parts > 1 {
		n = min(n, parts*(maxSmall-engine.PartBytes))
	} else {
		n = maxSmall
	}
	return max(n, maxSmall)
}

// LargeThreshold returns the longest message that this endpoint sends in UD
// datagrams, one or several; longer ones go by RDMA READ. A session whose peer
// has a smaller MTU or fewer credits has a smaller limit.
func (ep *Endpoint) LargeThreshold() int { return ep.threshold }

// LargeThreshold returns the longest message that this end of the session sends
// in UD datagrams, one or several; longer ones go by RDMA READ. Before the
// session is up it is the endpoint's.
func (s *Session) LargeThreshold() int {
	if n := s.threshold.Load(); n != 0 {
		return int(n)
	}
	return s.ep.threshold
}
