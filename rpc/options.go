package rpc

import (
	"fmt"
	"log/slog"
	"math/bits"
	"time"

	"github.com/rrppcc-go/rrppcc/msgbuf"
	"github.com/rrppcc-go/rrppcc/rpc/congestion"
)

type options struct {
	port       uint8
	gidIndex   int
	log        *slog.Logger
	window     int
	credits    int
	ringDepth  int
	sendDepth  int
	maxReads   int
	maxMessage int
	threshold  int
	requestMem int64
	timeout    time.Duration
	spin       time.Duration
	workers    int
	nesting    int
	laneIdle   time.Duration
	faults     *Faults
	trace      func(*Trace)
	regionKeys bool
	congestion congestion.Control
	staleTime  time.Duration // of a pull whose message must be offered anew

	initialRTO, minRTO, maxRTO time.Duration // of the engine
}

func defaultOptions() options {
	return options{
		port:       1,
		gidIndex:   -1,
		log:        slog.New(slog.DiscardHandler),
		window:     8,
		ringDepth:  2048,
		sendDepth:  512,
		maxReads:   256,
		maxMessage: msgbuf.MaxSize,
		requestMem: 4 << 30,
		timeout:    30 * time.Second,
		spin:       50 * time.Microsecond,
		workers:    8,
		staleTime:  repairTime,
		nesting:    16,
		laneIdle:   10 * time.Second,

		initialRTO: 20 * time.Millisecond,
		minRTO:     5 * time.Millisecond,
		maxRTO:     500 * time.Millisecond,
	}
}

// Option sets a property of an Endpoint.
type Option func(*options)

// WithPort chooses the device's port; the first is 1, the default.
func WithPort(port uint8) Option { return func(o *options) { o.port = port } }

// WithGIDIndex chooses the port's GID by its index. Without it, or with a
// negative one, the endpoint chooses by itself and logs which and why.
func WithGIDIndex(index int) Option { return func(o *options) { o.gidIndex = index } }

// WithLogger sets where the endpoint logs what happens on its control plane and
// which handlers panic. The default is silence.
func WithLogger(l *slog.Logger) Option {
	return func(o *options) {
		if l != nil {
			o.log = l
		}
	}
}

// WithWindow sets how many requests of one session may be under way, 1 to 64; 8
// by default. Both ends must agree.
func WithWindow(n int) Option { return func(o *options) { o.window = n } }

// WithRingDepth sets the number of receive buffers, of one MTU each; 2048 by
// default, at most 32768 on ConnectX and 16384 on Soft-RoCE. It is rounded up to
// a power of two, and with WithCredits bounds how many sessions the endpoint can
// have.
func WithRingDepth(n int) Option { return func(o *options) { o.ringDepth = n } }

// WithCredits sets how many receive buffers of this endpoint's ring every
// session takes, at least the window; 32 by default, or twice the window if that
// is more. The two ends need not agree. An endpoint has room for ring depth /
// credits sessions: 64 by default, 32768 at most, with a window and a credit
// of 1. With fewer than twice the window, datagrams that are no requests
// (confirmations of large messages, retransmissions) have no buffers of their
// own: when all sessions are busy at once some are lost, and sent again. With
// three times the window or more, messages may go in several datagrams, see
// WithLargeThreshold.
func WithCredits(n int) Option { return func(o *options) { o.credits = max(n, 1) } }

// WithWorkers sets how many goroutines are kept ready for the handlers of
// HandleBackground; 8 by default. It is no limit: a request that finds none
// ready gets a goroutine of its own, so background handlers never wait for each
// other, however their calls nest.
func WithWorkers(n int) Option { return func(o *options) { o.workers = max(n, 0) } }

// WithNesting sets how many lanes a session may have, 0 to 64; 16 by default.
// HandleBackground says what they are for. A lane is made when nested calls find
// no slot, takes twice the window of the receive ring at both ends, and goes when
// it was not needed for ten seconds. With 0, nested calls wait for slots as others
// do.
func WithNesting(n int) Option { return func(o *options) { o.nesting = n } }

// WithMaxMessage sets the longest request that is sent or taken and the longest
// response, in bytes; 1 GiB by default, which is also the most.
func WithMaxMessage(n int) Option { return func(o *options) { o.maxMessage = n } }

// WithRequestMemory sets how many bytes the requests of more than one datagram may
// take together that a server receives or whose handlers are at work; 4 GiB by
// default. A request that finds no room ends with ErrServerMemory at its caller. The memory is taken when
// a client has told the length, and it may lie.
func WithRequestMemory(n int64) Option { return func(o *options) { o.requestMem = n } }

// WithRequestTimeout sets the deadline of requests that have none from a
// context; 30 s by default.
func WithRequestTimeout(d time.Duration) Option { return func(o *options) { o.timeout = d } }

// WithSpin sets how long Run polls without finding anything before it sleeps on
// the completion channel; 50 us by default. 0 sleeps at once, a negative
// duration never sleeps.
func WithSpin(d time.Duration) Option { return func(o *options) { o.spin = d } }

func (o *options) check() error {
	switch {
	case o.window < 1 || o.window > 64:
		return fmt.Errorf("rpc: window of %d slots; 1 to 64 are possible", o.window)
	case o.credits != 0 && o.credits < o.window:
		return fmt.Errorf("rpc: %d credits; at least the window of %d is needed", o.credits, o.window)
	case o.credits > 1<<16-1:
		return fmt.Errorf("rpc: %d credits; %d are possible", o.credits, 1<<16-1)
	}
	if o.credits == 0 {
		o.credits = max(32, 2*o.window)
	}
	switch {
	case o.ringDepth < o.credits || o.ringDepth > 1<<16:
		return fmt.Errorf("rpc: receive ring of %d buffers; %d to %d are possible", o.ringDepth, o.credits, 1<<16)
	case o.maxMessage < 1 || o.maxMessage > msgbuf.MaxSize:
		return fmt.Errorf("rpc: longest message of %d bytes; 1 to %d are possible", o.maxMessage, msgbuf.MaxSize)
	case o.nesting < 0 || o.nesting > maxLanes:
		return fmt.Errorf("rpc: %d lanes for nested calls; 0 to %d are possible", o.nesting, maxLanes)
	case o.requestMem <= 0:
		return fmt.Errorf("rpc: memory for requests of %d bytes", o.requestMem)
	case o.timeout <= 0:
		return fmt.Errorf("rpc: request timeout of %v", o.timeout)
	}
	o.ringDepth = 1 << bits.Len(uint(o.ringDepth-1))
	return nil
}
