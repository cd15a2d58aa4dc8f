package nexus

import (
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"time"
)

// Defaults of the options.
const (
	// A dead peer holds its sessions' memory and blocks callers until their own
	// deadlines, so it should be noticed soon; but a false alarm breaks working
	// sessions. Half a second is enough because a peer that leaves one Ping without
	// an answer is asked urgentPings times within the timeout, because the answers
	// come from a goroutine that does nothing else, and because time in which this
	// process itself did not run does not count.
	defaultInterval = 100 * time.Millisecond
	defaultDeadline = 500 * time.Millisecond
	urgentPings     = 20

	// Data centre round trips are well below the first; the last bounds the load
	// on a server that is starting up with thousands of clients waiting.
	defaultRetryFirst = 50 * time.Millisecond
	defaultRetryMax   = time.Second

	// How long a client with a key goes on asking when all that it gets is a
	// refusal that anybody may have sent. A true answer would be there by then.
	doubtfulTimeout = 2 * time.Second

	// For how many intervals a peer with a key that is said to have restarted may
	// prove the opposite.
	doubtIntervals = 3

	connectTimeout    = 5 * time.Second  // where the context has no deadline
	disconnectTimeout = 2 * time.Second  // likewise
	acceptTimeout     = 10 * time.Second // given to acceptors
	maxAccepting      = 64               // Accept calls at a time
	closeTimeout      = 2 * time.Second  // of Nexus.Close, for each of its two waits

	// A duplicate of a Connect may come after its connection has ended, for as
	// long as networks hold packets back.
	tombstoneTime = 30 * time.Second
	maxTombstones = 8192
)

// PacketConn is what a Nexus needs of a UDP socket; *net.UDPConn is one.
// ReadFromUDPAddrPort must return an error that matches net.ErrClosed once Close
// has been called.
type PacketConn interface {
	ReadFromUDPAddrPort(b []byte) (n int, from netip.AddrPort, err error)
	WriteToUDPAddrPort(b []byte, to netip.AddrPort) (int, error)
	LocalAddr() net.Addr
	Close() error
}

// Option sets a property of a Nexus.
type Option func(*Nexus)

// WithLogger sets where the Nexus says what users should know. The default is
// silence.
func WithLogger(l *slog.Logger) Option {
	return func(n *Nexus) {
		if l != nil {
			n.log = l
		}
	}
}

// WithKey makes the Nexus talk only to processes that have the same secret:
// session management is encrypted and authenticated, and what somebody has
// recorded cannot be used again. The secret must have at least 16 bytes, and must
// be random (say, 32 bytes of /dev/urandom): it is not strengthened against
// guessing, as a password would have to be. The package comment says what it
// protects from. The first connection to a process takes a round trip more.
func WithKey(secret []byte) Option {
	secret = slices.Clone(secret)
	return func(n *Nexus) { n.secret, n.wantKey = secret, true }
}

// WithConn makes the Nexus use c and not open a socket of its own. The Nexus
// closes it, also when New fails.
func WithConn(c PacketConn) Option { return func(n *Nexus) { n.conn = c } }

// WithHeartbeat sets how often a silent peer is pinged, and after how long a
// silence it is declared dead: by default 100 ms and 500 ms. A peer that leaves a
// Ping without an answer is pinged every twentieth of the timeout, if that is more
// often. Where processes may be stopped for longer and should live on (machines
// that are suspended, moved or overcommitted, debuggers), the timeout should be
// seconds.
func WithHeartbeat(interval, timeout time.Duration) Option {
	return func(n *Nexus) {
		if interval > 0 {
			n.interval = interval
		}
		if timeout > 0 {
			n.timeout = timeout
		}
	}
}

// WithRetry sets the pause before a message is sent for the second time, and the
// longest pause; each is twice the one before. By default 50 ms and 1 s.
func WithRetry(first, longest time.Duration) Option {
	return func(n *Nexus) {
		if first > 0 {
			n.retryFirst = first
		}
		n.retryMax = max(n.retryFirst, longest)
	}
}
