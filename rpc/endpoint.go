package rpc

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/rrppcc-go/rrppcc/msgbuf"
	"github.com/rrppcc-go/rrppcc/nexus"
	"github.com/rrppcc-go/rrppcc/rpc/internal/engine"
	"github.com/rrppcc-go/rrppcc/rpc/internal/transport"
	"github.com/rrppcc-go/rrppcc/uverbs"
)

// Endpoint sends and answers requests. One goroutine at a time drives it: Run,
// or Poll by hand, or, where neither is used, whoever blocks in Call or Wait.
// Handlers and callbacks run on that goroutine.
//
// Handle, Enqueue and Response belong to the driving goroutine, or to any before
// the endpoint is driven; everything else may be called from anywhere.
type Endpoint struct {
	nx  *nexus.Nexus
	id  uint16
	ctx *uverbs.Context
	opt options
	log *slog.Logger

	pd  *uverbs.PD
	reg *registrar
	mem pools
	t   *transport.Transport
	e   *engine.Engine

	unregister func()
	epoch      time.Time
	maxSmall   int
	threshold  int // bytes of the longest message that goes in datagrams

	// The loop's own.
	now       int64
	fresh     bool  // now was read in this round, or since the last one
	posted    bool  // now was read when the last round posted
	collected int64 // when memory was given back last
	touched   int64 // when peers were touched last
	repairs   uint64
	growing   bool // windows are being allocated
	timer     *time.Timer
	opSpare   []op
	recycled  []*Request   // for Enqueue
	resting   []*coroutine // without a request
	idle      int          // rounds without work since the last one with
	stride    int          // how many of them share a reading of the clock
	ticked    int64        // now of the last Tick
	tickFn    func() int64 // ep.tick
	stampFn   func() int64 // ep.stamp
	out       int          // requests that are answered later

	workers workers

	lateMu sync.Mutex
	late   []op       // replies that came while Close was at work
	over   bool       // Close has ended: replies are executed under lateMu
	ring   msgbuf.Buf // the receive ring's memory, where late replies have requests in it

	owned      atomic.Bool
	runners    atomic.Int32 // Runs, waiting ones included
	waiters    atomic.Int32 // blocking calls
	handoff    chan struct{}
	runHandoff chan struct{}
	asleep     atomic.Bool
	wake       chan struct{}
	stop       atomic.Bool
	failed     atomic.Pointer[error]

	opMu     sync.Mutex
	ops      []op
	opClosed bool
	opCount  atomic.Int32

	mu         sync.Mutex
	closing    bool
	connecting sync.WaitGroup  // Connects and Accepts under way
	life       context.Context // ends when Close begins
	endLife    context.CancelFunc
	ringFree   int               // receive buffers that no session has
	sessions   map[*Session]bool // both ends, connecting ones included
	outgoing   map[pairKey]*pair // by where they lead
	incoming   map[uint64]*pair  // by the client's id
	closeOnce  sync.Once
	closeErr   error
	closed     chan struct{} // everything has ended
	watched    chan struct{}
	unwatch    context.CancelFunc
}

// NewEndpoint creates endpoint id of the process: queues on device ctx, a
// receive ring, and the entry in nx by which others find it. The endpoint must
// be closed before ctx and nx.
func NewEndpoint(nx *nexus.Nexus, id uint16, ctx *uverbs.Context, opts ...Option) (*Endpoint, error) {
	ep, err := newEndpoint(nx, id, ctx, opts)
	if err != nil {
		return nil, fmt.Errorf("rpc: endpoint %d: %w", id, err)
	}
	return ep, nil
}

func newEndpoint(nx *nexus.Nexus, id uint16, c *uverbs.Context, opts []Option) (_ *Endpoint, err error) {
	opt := defaultOptions()
	for _, o := range opts {
		o(&opt)
	}
	if err := opt.check(); err != nil {
		return nil, err
	}
	ep := &Endpoint{
		nx: nx, id: id, ctx: c, opt: opt, log: opt.log,
		epoch: time.Now(), timer: time.NewTimer(time.Hour),
		handoff: make(chan struct{}, 1), runHandoff: make(chan struct{}, 1), wake: make(chan struct{}, 1),
		closed: make(chan struct{}), watched: make(chan struct{}),
		ringFree: opt.ringDepth,
		stride:   1,
		sessions: make(map[*Session]bool), outgoing: make(map[pairKey]*pair), incoming: make(map[uint64]*pair),
	}
	ep.timer.Stop()
	ep.workers.init(opt.workers)
	ep.tickFn, ep.stampFn = ep.tick, ep.stamp
	ep.life, ep.endLife = context.WithCancel(context.Background())
	defer func() {
		if err != nil {
			ep.endLife()
			ep.release()
		}
	}()
	gid, port, err := ep.address()
	if err != nil {
		return nil, err
	}
	dev, err := c.QueryDevice()
	if err != nil {
		return nil, err
	}
	if ep.pd, err = c.AllocPD(); err != nil {
		return nil, err
	}
	ep.reg = &registrar{pd: ep.pd, windows: ep.useWindows(dev)}
	ep.mem = newPools(ep.reg, msgbuf.WithLogger(opt.log))
	ep.t, err = transport.New(transport.Config{
		PD: ep.pd, Port: opt.port, GID: gid, MTU: port.ActiveMTU, LID: port.LID, Global: port.LinkLayer == uverbs.LinkLayerEthernet,
		QKey:      random32() &^ (1 << 31), // the high bit would ask for the privileged QKey
		RingDepth: opt.ringDepth, SendDepth: opt.sendDepth, MaxReads: opt.maxReads,
		RdAtomic: uint8(max(1, min(dev.MaxQPRdAtomic, dev.MaxQPInitRdAtomic, 16))),
		MaxRead:  port.MaxMsgSize,
		Break:    opt.faults.breaker(),
		Windows:  ep.firstWindows(), MaxWindows: opt.ringDepth,
		StaleTime: opt.staleTime,
		Memory:    ep.mem.small,
	})
	if err != nil {
		return nil, err
	}
	ep.maxSmall = ep.t.MaxSmall()
	ep.threshold = opt.largeThreshold(ep.maxSmall)
	ep.e = engine.New(engine.Config{
		Window: opt.window, MaxInline: ep.t.MaxInline(), MaxSmall: ep.maxSmall, Threshold: ep.threshold, MaxMsg: opt.maxMessage, MaxPulled: opt.requestMem,
		InitialRTO: int64(opt.initialRTO), MinRTO: int64(opt.minRTO), MaxRTO: int64(opt.maxRTO),
		CancelGrace: int64(2 * time.Second), Offers: ep.reg.windows, OfferGrace: int64(500 * time.Millisecond),
		Small: ep.mem.small, Large: ep.mem.large, Registrar: ep.reg,
		PeerStuck: ep.peerStuck, PeerBroken: ep.peerBroken,
		Drop:       opt.faults.dropper(),
		Congestion: opt.congestion, Burst: ep.t.Burst(),
		Panicked: ep.panicked,
		Trace:    ep.tracer(),
	}, ep.clock())
	watchCtx, cancel := context.WithCancel(context.Background())
	ep.unwatch = cancel
	go ep.watch(watchCtx)
	if ep.unregister, err = nx.Register(id, acceptor{ep}); err != nil {
		cancel()
		<-ep.watched
		return nil, err
	}
	return ep, nil
}

// address chooses the port's GID.
func (ep *Endpoint) address() (uverbs.GIDEntry, *uverbs.PortAttr, error) {
	port, err := ep.ctx.QueryPort(ep.opt.port)
	if err != nil {
		return uverbs.GIDEntry{}, nil, err
	}
	gid, why, err := ep.ctx.ChooseGID(ep.opt.port, ep.opt.gidIndex)
	if err != nil {
		return uverbs.GIDEntry{}, nil, err
	}
	ep.log.Info("rpc: GID chosen", "endpoint", ep.id, "device", ep.ctx.Device().Name(), "port", ep.opt.port, "index", gid.Index, "gid", gid.GID.Addr(), "why", why)
	return gid, port, nil
}

// release frees what newEndpoint made, in any state.
func (ep *Endpoint) release() error {
	var errs []error
	if ep.t != nil {
		errs = append(errs, ep.t.Close())
	}
	if ep.mem.small != nil {
		// Users may still hold buffers; their regions stay mapped, and
		// registered until the context is closed.
		errs = append(errs, ep.mem.sharedSmall.Close(), ep.mem.sharedLarge.Close(), ep.mem.small.Close(), ep.mem.large.Close())
	}
	if ep.pd != nil {
		if err := ep.pd.Close(); err != nil && !errors.Is(err, syscall.EBUSY) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// ID returns the endpoint's number within its process.
func (ep *Endpoint) ID() uint16 { return ep.id }

// URI returns where the process of the endpoint is reached.
func (ep *Endpoint) URI() string { return ep.nx.URI() }

// Handle binds fn to a request type; nil unbinds it. Requests of a type without
// handler end with ErrNoHandler at their caller.
func (ep *Endpoint) Handle(reqType uint8, fn Handler) {
	if fn == nil {
		ep.e.Handle(reqType, nil)
		return
	}
	ep.e.Handle(reqType, ep.adapt(fn))
}

// MaxSmall returns the longest message that goes in one UD datagram. A session
// whose peer has a smaller MTU has a smaller limit.
func (ep *Endpoint) MaxSmall() int { return ep.maxSmall }

// Alloc returns a registered buffer of length n for requests, and for responses
// of deferred requests. Any goroutine may call it, and Free the buffer. What is
// in it is undefined. Peers can read it only if n is more than LargeThreshold.
func (ep *Endpoint) Alloc(n int) (msgbuf.Buf, error) {
	if n <= ep.threshold {
		return ep.mem.sharedSmall.Alloc(n)
	}
	return ep.mem.sharedLarge.Alloc(n)
}

// onOwner runs fn in the loop and waits for it.
func (ep *Endpoint) onOwner(ctx context.Context, fn func()) error {
	done := make(chan struct{})
	over := new(atomic.Bool)
	if !ep.submit(op{kind: opFunc, fn: func() {
		fn()
		over.Store(true)
		close(done)
	}}) {
		return ErrClosed
	}
	return ep.wait(ctx, done, over)
}

// failedLook is how often whoever waits for the loop looks whether the device
// has failed.
const failedLook = 20 * time.Millisecond

// inLoop is onOwner for goroutines of the library's own: it leaves the driving
// to those who are to do it, and so does not take the loop away from somebody
// who polls by hand.
func (ep *Endpoint) inLoop(ctx context.Context, fn func()) error {
	done := make(chan struct{})
	if !ep.submit(op{kind: opFunc, fn: func() {
		fn()
		close(done)
	}}) {
		return ErrClosed
	}
	look := time.NewTicker(failedLook)
	defer look.Stop()
	for {
		select {
		case <-done:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		case <-look.C:
			if ep.failed.Load() != nil && ep.tryOwn() { // Run has returned
				ep.settle()
				ep.disown()
			}
		}
	}
}

func (ep *Endpoint) panicked(reqType uint8, v any) {
	ep.log.Error("rpc: handler panicked", "endpoint", ep.id, "type", reqType, "panic", v, "stack", stack())
}

// closeTimeout bounds how long Close waits for peers.
const closeTimeout = 5 * time.Second

// Close ends all sessions, telling the peers, and frees the endpoint. Requests
// under way end with ErrSessionClosed. Buffers that users still hold stay
// readable, and their memory registered, until they are freed and the context
// is closed; so do requests that were deferred, until they are replied to.
// Background handlers are waited for, 5 s in all. Close must not be called from
// a handler or callback.
func (ep *Endpoint) Close() error {
	ep.closeOnce.Do(func() { ep.closeErr = ep.close() })
	<-ep.closed
	return ep.closeErr
}

func (ep *Endpoint) close() error {
	ctx, cancel := context.WithTimeout(context.Background(), closeTimeout)
	defer cancel()
	ep.unregister()
	ep.mu.Lock()
	ep.closing = true
	ep.mu.Unlock()
	ep.endLife()
	ep.waitConnecting()
	ep.mu.Lock()
	open := make([]*Session, 0, len(ep.sessions))
	for s := range ep.sessions {
		open = append(open, s)
	}
	ep.mu.Unlock()
	var wg sync.WaitGroup
	limit := make(chan struct{}, 64)
	for _, s := range open {
		wg.Add(1)
		limit <- struct{}{}
		go func() {
			defer wg.Done()
			s.close(ctx)
			<-limit
		}()
	}
	wg.Wait()
	if n := ep.workers.drain(ctx.Done()); n > 0 {
		ep.log.Warn("rpc: endpoint closed while background handlers run", "endpoint", ep.id, "handlers", n)
	}

	// From here on nobody may submit; what was submitted is executed below.
	ep.opMu.Lock()
	ep.opClosed = true
	ep.opMu.Unlock()
	ep.stop.Store(true)
	ep.wakeUp()
	for !ep.tryOwn() {
		select {
		case <-ep.runHandoff:
		case <-ep.handoff:
		}
	}
	if ep.failed.Load() == nil {
		ep.poll()
	} else {
		ep.settle()
	}
	ep.failAll(ErrClosed)
	for i := 0; i < 4 && ep.failed.Load() == nil; i++ {
		ep.poll()
	}
	ep.workers.end()
	ep.unwatch()
	<-ep.watched
	if ep.out > 0 {
		ep.ring = ep.t.TakeRing() // there are requests in it that handlers may read
	}
	if err := ep.t.Close(); err != nil {
		ep.log.Warn("rpc: destroy queues", "endpoint", ep.id, "error", err)
	}
	ep.t = nil
	ep.e.Abandon(ep.clock()) // the queues are gone, and nothing touches memory any more
	for _, c := range ep.resting {
		c.stop()
	}
	ep.resting = nil
	ep.workers.drain(ctx.Done()) // of Session.GoFunc, of requests that have just ended
	err := ep.release()
	var inUse *msgbuf.InUseError
	switch {
	case !errors.As(err, &inUse):
	case ep.out > 0:
		ep.log.Info("rpc: endpoint closed before all requests were replied to; their memory stays until they are", "endpoint", ep.id, "requests", ep.out)
		err = nil
	default:
		ep.log.Warn("rpc: endpoint closed with buffers in use", "endpoint", ep.id, "error", err)
		err = nil
	}
	ep.lateMu.Lock()
	ep.over = true
	for i := range ep.late {
		ep.respond(&ep.late[i])
	}
	if len(ep.late) > 0 {
		ep.late = nil
		ep.settleLate()
	}
	ep.lateMu.Unlock()
	close(ep.closed)
	return err
}

// waitConnecting waits for the Connects and Accepts under way, which have been
// told to end. They need the loop.
func (ep *Endpoint) waitConnecting() {
	done, over := make(chan struct{}), new(atomic.Bool)
	go func() {
		ep.connecting.Wait()
		over.Store(true)
		close(done)
		ep.wakeUp()
	}()
	ep.wait(context.Background(), done, over)
	<-done
}

func random32() uint32 {
	var b [4]byte
	rand.Read(b[:])
	return binary.LittleEndian.Uint32(b[:])
}

func random64() uint64 {
	var b [8]byte
	rand.Read(b[:])
	return binary.LittleEndian.Uint64(b[:]) | 1
}
