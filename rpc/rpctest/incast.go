package rpctest

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/rrppcc-go/rrppcc/msgbuf"
	"github.com/rrppcc-go/rrppcc/rpc/congestion"
	"github.com/rrppcc-go/rrppcc/rpc/internal/engine"
)

// Incast is an experiment in virtual time: many clients send requests to one
// server at once, through one switch whose port to the server is the bottleneck.
// Clients and server are the engines of package rpc; links, switch and the loops
// that drive the engines are simulated. Equal experiments have equal results.
//
// It is for trying out congestion control: package congestion's, or one's own.
// What is modelled: the time that datagrams take on links, through the switch and
// in its queue, which drops what does not fit, and that loops take for them. What
// is not: other traffic, pause frames, and what a NIC takes. The zero value of a
// field stands for the default.
type Incast struct {
	Clients  int                // 100 by default
	Control  congestion.Control // of the clients; nil is none
	Window   int                // requests under way of each client at most: 8
	Request  int                // bytes of a request: 4000
	Response int                // bytes of an answer: 32
	Gbps     float64            // of every link: 25
	Buffer   int                // bytes of the switch's port to the server: 1 MiB
	Delay    time.Duration      // through an idle network, one way, without the links' own: 2 us
	Duration time.Duration      // of the experiment: 100 ms
	Warmup   time.Duration      // of that, not measured: half of Duration
	Seed     uint64

	// Rounds makes the clients wait for each other: all of them send a window of
	// requests, and the next ones when all are answered, as who shuffles data or
	// collects shards does. Otherwise each keeps its window full.
	Rounds bool
	// Handler is how long the server takes to answer a request, in the background.
	Handler time.Duration
}

// IncastResult is what an Incast measured after its warm-up.
type IncastResult struct {
	Requests    int     // answered
	Goodput     float64 // payload of answered requests as a share of the bottleneck's capacity
	Rounds      int     // completed, where there are rounds
	QueueMedian int     // bytes in the bottleneck's queue, sampled every microsecond
	Queue99     int     // its 99th percentile
	QueueMax    int
	Drops       uint64 // datagrams lost for want of buffer
	Retransmits uint64
	Paced       uint64        // requests that congestion control paced, warm-up included
	Median      time.Duration // from the start of a request to its answer
	Latency99   time.Duration
	Fairness    float64 // Jain's index over the clients' requests: 1 is equal shares

	// EarlyDrops, EarlyRetransmits and EarlyQueueMax are those of the warm-up, when sessions do
	// not know the network yet.
	EarlyDrops       uint64
	EarlyRetransmits uint64
	EarlyQueueMax    int
}

func (r IncastResult) String() string {
	return fmt.Sprintf("%d requests, goodput %.1f %%, queue %d / %d / %d KiB (median, p99, max), %d drops, %d sent again, latency %v / %v (median, p99), fairness %.3f, %d rounds; warm-up: %d drops, queue up to %d KiB",
		r.Requests, 100*r.Goodput, r.QueueMedian>>10, r.Queue99>>10, r.QueueMax>>10, r.Drops, r.Retransmits,
		r.Median, r.Latency99, r.Fairness, r.Rounds, r.EarlyDrops, r.EarlyQueueMax>>10)
}

// What a datagram takes on the wire beside its headers of ours: Ethernet with
// preamble and gap, IPv4, UDP, BTH, DETH, ICRC.
const wireOverhead = 38 + 20 + 8 + 12 + 8 + 4

// What a loop takes for a datagram, and how often it looks when nothing comes.
const (
	datagramCost = 100 // ns
	pollEvery    = 100 // ns
)

const incastType = 1

// incast is an Incast under way.
type incast struct {
	Incast
	vtime
	pool    *msgbuf.Pool
	reg     incastMemory
	server  *incastNode
	clients []*incastNode
	burst   [64]engine.Rx
	scratch [64][]byte // what the datagrams of a burst are in

	measuring bool
	begun     int64
	latencies []int64
	queues    []int
	rounds    int
	left      int // requests of this round that are not answered
	err       error
}

// incastNode is an engine, the loop that drives it, its NIC's link to the switch,
// and the switch's port to it.
type incastNode struct {
	in      *incast
	e       *engine.Engine
	session *engine.Session
	up      port
	down    port
	ring    []frame
	busy    int64 // until then the loop is at work
	wakeAt  int64 // 0 = none planned
	calls   []incastCall
	done    int // requests answered while measuring
}

type incastCall struct {
	engine.Call
	started int64
}

// frame is a datagram on its way. What it carries has no meaning: its length has.
type frame struct {
	from uint32
	head [engine.HeaderBytes + engine.ControlBytes]byte
	n    int // of head
	data int // bytes behind
}

// Run runs the experiment.
func (c Incast) Run() (IncastResult, error) {
	def := func(v *int, preset int) {
		if *v <= 0 {
			*v = preset
		}
	}
	def(&c.Clients, 100)
	def(&c.Window, 8)
	def(&c.Request, 4000)
	def(&c.Response, 32)
	def(&c.Buffer, 1<<20)
	if c.Gbps <= 0 {
		c.Gbps = 25
	}
	if c.Delay <= 0 {
		c.Delay = 2 * time.Microsecond
	}
	if c.Duration <= 0 {
		c.Duration = 100 * time.Millisecond
	}
	if c.Warmup <= 0 || c.Warmup >= c.Duration {
		c.Warmup = c.Duration / 2
	}
	in := &incast{Incast: c, vtime: vtime{now: int64(time.Second), rng: rand.New(rand.NewPCG(c.Seed, 1))}}
	in.pool = msgbuf.NewPool(&in.reg, msgbuf.Local)
	if err := in.build(); err != nil {
		return IncastResult{}, err
	}
	return in.run(), in.err
}

// incastMemory registers memory with nobody: no device touches it.
type incastMemory struct{}

func (*incastMemory) Register([]byte, msgbuf.Access) (msgbuf.Registration, error) {
	return incastMemory{}, nil
}
func (incastMemory) LKey() uint32 { return 1 }
func (incastMemory) RKey() uint32 { return 0 }
func (incastMemory) Close() error { return nil }

func (in *incast) node(control congestion.Control) *incastNode {
	n := &incastNode{in: in}
	n.e = engine.New(engine.Config{
		Window: in.Window, MaxInline: 128, MaxSmall: max(in.Request, in.Response), MaxMsg: max(in.Request, in.Response),
		InitialRTO: int64(20 * time.Millisecond), MinRTO: int64(5 * time.Millisecond), MaxRTO: int64(500 * time.Millisecond),
		CancelGrace: int64(2 * time.Second),
		Small:       in.pool, Large: in.pool, Registrar: &in.reg,
		PeerStuck:  func(uint32) {},
		Congestion: control, Burst: len(in.burst),
	}, in.now)
	rate := 8 / in.Gbps
	n.up = port{v: &in.vtime, rate: rate}
	n.down = port{v: &in.vtime, rate: rate, buffer: in.Buffer}
	return n
}

func (in *incast) build() error {
	for i := range in.scratch {
		in.scratch[i] = make([]byte, engine.HeaderBytes+max(in.Request, in.Response))
	}
	in.server = in.node(nil)
	in.server.e.Handle(incastType, in.handle)
	for i := range in.Clients {
		n := in.node(in.Control)
		n.session = n.e.NewSession(true, uint32(1000+i))
		s := in.server.e.NewSession(false, uint32(2000+i))
		limit := max(in.Request, in.Response)
		s.Connect(in.now, engine.Peer{Dest: uint32(i), Session: n.session.Index(), Token: n.session.Token(), QPN: uint32(i), MaxSmall: limit})
		n.session.Connect(in.now, engine.Peer{Session: s.Index(), Token: s.Token(), QPN: serverQPN, MaxSmall: limit})
		n.calls = make([]incastCall, in.Window)
		for k := range n.calls {
			c := &n.calls[k]
			var err error
			if c.Req, err = in.pool.Alloc(in.Request); err != nil {
				return err
			}
			if c.Resp, err = in.pool.Alloc(in.Response); err != nil {
				return err
			}
			c.Type = incastType
			c.Fn = func(*engine.Call) { n.answered(c) }
		}
		in.clients = append(in.clients, n)
	}
	return nil
}

const serverQPN = 1 << 20

// handle is the server's handler.
func (in *incast) handle(h *engine.Handle) (msgbuf.Buf, error) {
	if in.Handler <= 0 {
		return h.Response(in.Response)
	}
	// Its bytes are gone when the handler returns; nobody looks at them.
	in.at(in.now+int64(in.Handler), func() {
		buf, err := in.pool.Alloc(in.Response)
		h.Take()
		in.server.e.Respond(in.now, h, buf, err)
		in.server.wake(in.now)
	})
	return h.Defer()
}

// answered is called when one of the client's requests has ended.
func (n *incastNode) answered(c *incastCall) {
	in := n.in
	if c.Err != nil {
		in.err = fmt.Errorf("rpctest: incast: %w", c.Err)
		return
	}
	if in.measuring {
		n.done++
		in.latencies = append(in.latencies, in.now-c.started)
	}
	if !in.Rounds {
		n.start(c)
		return
	}
	if in.left--; in.left == 0 {
		if in.measuring {
			in.rounds++
		}
		in.at(in.now+int64(in.Delay), in.round)
	}
}

func (n *incastNode) start(c *incastCall) {
	c.started = n.in.now
	n.session.Start(n.in.now, &c.Call)
}

// round lets all clients send, within a microsecond or so.
func (in *incast) round() {
	in.left = in.Clients * in.Window
	for _, n := range in.clients {
		in.at(in.now+in.jitter(2000), func() {
			for i := range n.calls {
				n.start(&n.calls[i])
			}
			n.wake(in.now)
		})
	}
}

func (in *incast) run() (r IncastResult) {
	end := in.now + int64(in.Duration)
	in.round()
	in.at(in.now+int64(in.Warmup), func() {
		in.measuring, in.begun = true, in.now
		r.EarlyQueueMax, r.EarlyDrops = slices.Max(in.queues), in.drops()
		in.queues = in.queues[:0]
		r.EarlyRetransmits = in.retransmits()
	})
	var sample func()
	sample = func() {
		in.queues = append(in.queues, in.server.down.queued())
		in.at(in.now+1000, sample)
	}
	sample()
	for t := in.now; t < end && in.err == nil; t += 1_000_000 {
		in.until(t)
	}
	r.Retransmits = in.retransmits() - r.EarlyRetransmits
	r.Drops = in.drops() - r.EarlyDrops
	for _, n := range in.clients {
		r.Paced += n.e.Stats.Paced
	}
	r.Requests, r.Rounds = len(in.latencies), in.rounds
	seconds := float64(in.now-in.begun) / 1e9
	r.Goodput = float64(r.Requests) * float64(in.Request) * 8 / (seconds * in.Gbps * 1e9)
	slices.Sort(in.queues)
	r.QueueMedian, r.Queue99, r.QueueMax = in.queues[len(in.queues)/2], in.queues[len(in.queues)*99/100], in.queues[len(in.queues)-1]
	if k := len(in.latencies); k > 0 {
		slices.Sort(in.latencies)
		r.Median, r.Latency99 = time.Duration(in.latencies[k/2]), time.Duration(in.latencies[k*99/100])
	}
	var sum, squares float64
	for _, n := range in.clients {
		sum += float64(n.done)
		squares += float64(n.done) * float64(n.done)
	}
	if squares > 0 {
		r.Fairness = sum * sum / (float64(in.Clients) * squares)
	}
	return r
}

func (in *incast) drops() uint64 {
	d := in.server.down.drops
	for _, n := range in.clients {
		d += n.down.drops
	}
	return d
}

func (in *incast) retransmits() (k uint64) {
	for _, n := range in.clients {
		k += n.e.Stats.Retransmits
	}
	return k
}

// wake plans a turn of the node's loop.
func (n *incastNode) wake(t int64) {
	t = max(t, n.busy)
	if n.wakeAt != 0 && n.wakeAt <= t {
		return
	}
	n.wakeAt = t
	n.in.at(t, func() {
		if n.wakeAt == t {
			n.wakeAt = 0
			n.poll()
		}
	})
}

// poll is a turn of the loop. A loop that is not at work has found its ring
// empty a moment ago.
func (n *incastNode) poll() {
	in := n.in
	if n.busy < in.now-pollEvery {
		n.e.Receive(in.now-pollEvery, nil)
	}
	k := min(len(n.ring), len(in.burst))
	burst := in.burst[:k]
	for i := range n.ring[:k] {
		f := &n.ring[i]
		b := in.scratch[i]
		copy(b, f.head[:f.n])
		burst[i] = engine.Rx{Data: b[:f.n+f.data], Slot: uint32(i), SrcQPN: f.from}
	}
	n.e.Receive(in.now, burst)
	n.ring = n.ring[:copy(n.ring, n.ring[k:])]
	n.e.Tick(in.now)
	sent := 0
	for range 4 {
		if n.e.Unstamped() {
			n.e.Stamp(in.now)
		}
		sent += len(n.e.Tx)
		for i := range n.e.Tx {
			n.post(&n.e.Tx[i])
		}
		n.e.Flushed()
		if n.e.Idle() {
			break
		}
	}
	n.e.Released = n.e.Released[:0]
	n.busy = in.now + int64(k+sent)*datagramCost
	if len(n.ring) > 0 || !n.e.Idle() {
		n.wake(n.busy)
	} else if at, ok := n.e.NextTimer(); ok {
		n.wake(max(at, in.now+pollEvery))
	}
}

// post sends a datagram: over the node's own link, through the switch, and over
// the other's.
func (n *incastNode) post(tx *engine.Tx) {
	in := n.in
	f := frame{from: serverQPN, n: int(tx.HeadLen), data: int(tx.Data.Len)}
	copy(f.head[:], tx.Head[:tx.HeadLen])
	to := in.server
	if n == in.server {
		to = in.clients[tx.Dest]
	} else {
		f.from = uint32(n.session.Token() - 1000)
	}
	size := f.n + f.data + wireOverhead
	half := int64(in.Delay) / 2
	n.up.send(size, half+in.jitter(100), func() {
		to.down.send(size, half+in.jitter(100), func() {
			to.ring = append(to.ring, f)
			to.wake(in.now)
		})
	})
	n.e.TxDone(tx.Token)
}
