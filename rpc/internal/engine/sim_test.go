package engine

import (
	"container/heap"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"testing"

	"github.com/rrppcc-go/rrppcc/msgbuf"
)

const simMaxSmall = 500

// simConfig says what happens in a simulated network. Shares are of 1.
type simConfig struct {
	nodes, sessions, calls int
	ring                   int     // receive buffers; what finds none is lost
	loss, dup, late        float64 // of datagrams; late ones take up to 40 ms
	readFails              float64
	stalls                 float64 // of READs, which wait for a new connection
	offers                 float64 // of nodes, that grant their messages one by one
	tinyMemory             bool
	abort, deadline        float64 // of calls
	churn                  float64 // chance, per call, that a session is closed, failed, or gets stuck
	death                  bool    // a node vanishes
	patient                bool    // no timeout is shorter than a handler takes
	blocking               bool    // some handlers wait for calls of their own
	slowHandlers           int64   // deferred replies take up to this long, ns
	credits                int     // receive buffers of a session, per slot; 0: any number, and ring is what there is
	congestion             int     // control of it, see controlOf
}

// sim runs engines against each other in virtual time. Everything random comes
// from one seed.
type sim struct {
	tb     testing.TB
	cfg    simConfig
	rng    *rand.Rand
	now    int64
	limit  int64 // of now
	events eventQueue
	order  uint64
	mem    *memory
	nodes  []*simNode
	links  []*simLink // of all times; the transport's dest is an index into it
	pairs  []*simSession

	started, ended, alive int // calls; alive ones wait for an end
	oks                   int
	ran                   map[uint64]int // handler runs by request id
	readFailed            bool
	overflows             int  // datagrams that found no receive buffer
	taken                 int  // messages that were taken back from a peer that had not let go
	renewed               int  // offers that were made anew
	quiet                 bool // no new trouble: everything is to come to an end
}

type event struct {
	at    int64
	order uint64
	fn    func()
}

type eventQueue []event

func (q eventQueue) Len() int { return len(q) }
func (q eventQueue) Less(i, j int) bool {
	return q[i].at < q[j].at || q[i].at == q[j].at && q[i].order < q[j].order
}
func (q eventQueue) Swap(i, j int) { q[i], q[j] = q[j], q[i] }
func (q *eventQueue) Push(x any)   { *q = append(*q, x.(event)) }
func (q *eventQueue) Pop() any {
	old := *q
	e := old[len(old)-1]
	*q = old[:len(old)-1]
	return e
}

func (s *sim) after(d int64, fn func()) {
	s.order++
	heap.Push(&s.events, event{s.now + d, s.order, fn})
}

func (s *sim) chance(p float64) bool { return p > 0 && s.rng.Float64() < p }

// upTo returns a duration of at least 1 ns and at most d.
func (s *sim) upTo(d int64) int64 { return 1 + s.rng.Int64N(d) }

// simLink is the pair of RC QPs between two nodes. Broken, it lets no READ
// through, in either direction.
type simLink struct {
	id     uint32
	ends   [2]*simNode
	broken bool

	number  uint32      // of the connection, in use or next
	down    bool        // it is being replaced
	waiting []*simOffer // for that
}

func (l *simLink) other(n *simNode) *simNode {
	if l.ends[0] == n {
		return l.ends[1]
	}
	return l.ends[0]
}

// simSession is a session with both ends.
type simSession struct {
	link           *simLink
	client, server *simNode
	cs, ss         *Session
	open           []*simCall
	closing        bool
}

// simNode is an endpoint and its NIC.
type simNode struct {
	*endpoint
	s        *sim
	id       int
	dead     bool
	ring     [][]byte
	freeRing []uint32
	arrived  []Rx
	done     []func(now int64) // completions that the owner has not polled yet
	submit   []func(now int64) // what other goroutines ask of the owner
	wakeAt   int64             // of the poll that is planned, 0 = none
	held     int
	granted  map[uint32]*simOffer // by token
	depth    int                  // handlers that block
}

func newSim(tb testing.TB, seed uint64, cfg simConfig) *sim {
	s := &sim{tb: tb, cfg: cfg, rng: rand.New(rand.NewPCG(seed, 1)), now: 5_000 * ms, mem: &memory{}, ran: map[uint64]int{}}
	window := []int{1, 4, 8, 64}[s.rng.IntN(4)]
	for i := range cfg.nodes {
		n := &simNode{s: s, id: i, granted: map[uint32]*simOffer{}}
		var opts []msgbuf.Option
		if cfg.tinyMemory && i%2 == 1 {
			opts = append(opts, msgbuf.WithMaxBytes(2<<20))
		}
		n.endpoint = newEndpoint(tb, s.mem, uint32(100+i), s.now, func(c *Config) {
			c.MaxSmall, c.MaxMsg = simMaxSmall, 40_000
			c.Threshold = []int{0, 1_500, 8_000, 40_000}[s.rng.IntN(4)]
			c.InitialRTO, c.MinRTO = 20*ms, 10*ms
			c.CancelGrace, c.OfferGrace = 300*ms, 300*ms
			c.Window = window
			c.Congestion = s.controlOf(cfg.congestion)
			c.Offers = s.chance(cfg.offers)
			if cfg.patient {
				c.InitialRTO, c.MinRTO, c.MaxRTO = 2_000*ms, 2_000*ms, 4_000*ms
			}
			if cfg.tinyMemory {
				c.MaxMsg = 300_000
			}
			c.PeerBroken = func(dest, generation uint32) {
				if generation != 7 {
					s.tb.Errorf("told of a connection that is none")
				}
			}
			c.PeerStuck = func(dest uint32) {
				// The owner takes the access away at once, the peer learns later.
				s.breakLink(s.links[dest])
				n.e.FailDest(n.e.now, dest, ErrPeerDead)
			}
		}, opts...)
		ring := cfg.ring
		if cfg.credits > 0 {
			ring = cfg.sessions * cfg.credits * window
		}
		for slot := range ring {
			n.ring = append(n.ring, make([]byte, HeaderBytes+simMaxSmall))
			n.freeRing = append(n.freeRing, uint32(slot))
		}
		n.handlers()
		s.nodes = append(s.nodes, n)
	}
	for range cfg.sessions {
		s.newSession()
	}
	return s
}

// breakLink ends a link; whoever has not failed it yet does so a little later.
func (s *sim) breakLink(l *simLink) {
	if l.broken {
		return
	}
	l.broken = true
	s.loseGrants(l)
	for _, n := range l.ends {
		s.after(s.upTo(50*ms), func() {
			n.ask(func(now int64) { n.e.FailDest(now, l.id, ErrPeerDead) })
		})
	}
	for _, p := range s.pairs {
		if p.link == l {
			p.closing = true
		}
	}
}

func (s *sim) link(a, b *simNode) *simLink {
	for _, l := range s.links {
		if !l.broken && (l.ends == [2]*simNode{a, b} || l.ends == [2]*simNode{b, a}) {
			return l
		}
	}
	l := &simLink{id: uint32(len(s.links)), number: 1, ends: [2]*simNode{a, b}}
	s.links = append(s.links, l)
	return l
}

func (s *sim) newSession() {
	a := s.nodes[s.rng.IntN(len(s.nodes))]
	b := s.nodes[s.rng.IntN(len(s.nodes))]
	if a == b || a.dead || b.dead {
		a, b = s.nodes[0], s.nodes[1]
		if a.dead || b.dead {
			return
		}
	}
	p := &simSession{link: s.link(a, b), client: a, server: b}
	p.cs = a.e.NewSession(true, s.rng.Uint32())
	p.ss = b.e.NewSession(false, s.rng.Uint32())
	s.pairs = append(s.pairs, p)
	small := simMaxSmall
	if s.chance(0.3) {
		small = 240
	}
	parts := []int{1, 2, 5, 30, 64}[s.rng.IntN(5)]
	if s.cfg.credits > 0 {
		parts = PartsFor(s.cfg.credits, 1)
	}
	p.ss.Connect(s.now, Peer{Dest: p.link.id, Session: p.cs.Index(), Token: p.cs.Token(), QPN: a.qpn, MaxSmall: small, Parts: parts})
	s.after(s.upTo(2*ms), func() {
		a.ask(func(now int64) {
			if p.link.broken { // before we knew it: FailDest passes over us
				p.cs.Fail(now, ErrPeerDead)
				return
			}
			p.cs.Connect(now, Peer{Dest: p.link.id, Session: p.ss.Index(), Token: p.ss.Token(), QPN: b.qpn, MaxSmall: small, Parts: parts})
		})
	})
}

// close ends a session in peace: abort, wait until quiet, tell the server.
func (p *simSession) close() {
	n := p.client
	if p.closing {
		return
	}
	p.closing = true
	n.ask(func(now int64) {
		p.cs.Closing(now, ErrSessionClosed)
		p.closed()
	})
}

func (p *simSession) closed() {
	n, s := p.client, p.client.s
	if !p.cs.Quiet() {
		s.after(s.upTo(ms), func() { n.ask(func(int64) { p.closed() }) })
		return
	}
	p.cs.Fail(s.now, ErrSessionClosed)
	s.after(s.upTo(ms), func() {
		p.server.ask(func(now int64) { p.ss.Fail(now, ErrSessionClosed) })
	})
}

// kill lets a node vanish: nothing of it is heard any more.
func (s *sim) kill(n *simNode) {
	n.dead = true
	for _, p := range s.pairs {
		if p.client == n {
			s.alive -= len(p.open)
			p.open = nil
		}
	}
	s.after(s.upTo(100*ms), func() { // until the others' liveness tells
		for _, l := range s.links {
			if l.ends[0] == n || l.ends[1] == n {
				s.breakLink(l)
			}
		}
	})
}

// ask is what another goroutine does: fn runs on the owner.
func (n *simNode) ask(fn func(now int64)) {
	n.submit = append(n.submit, fn)
	n.wake(n.s.upTo(5000))
}

// wake plans a poll at the latest after d.
func (n *simNode) wake(d int64) {
	at := n.s.now + d
	if n.dead || n.wakeAt != 0 && n.wakeAt <= at {
		return
	}
	n.wakeAt = at
	n.s.after(d, func() {
		if n.wakeAt == at {
			n.wakeAt = 0
			n.poll()
		}
	})
}

// poll is one turn of the owner's loop.
func (n *simNode) poll() {
	s := n.s
	if n.dead {
		return
	}
	now := s.now
	n.e.Woke(now)
	submit := n.submit
	n.submit = nil
	for _, fn := range submit {
		fn(now)
	}
	n.completions(now)
	burst := n.arrived
	n.arrived = nil
	n.e.Receive(now, burst)
	for i := range burst {
		if burst[i].Held {
			n.held++
		} else {
			n.repost(burst[i].Slot)
		}
	}
	n.e.Tick(now)
	for range 4 {
		n.post(now)
		n.e.Flushed()
		if n.e.Idle() {
			break
		}
	}
	for _, slot := range n.e.Released {
		n.held--
		n.repost(slot)
	}
	n.e.Released = n.e.Released[:0]
	if !n.e.Idle() || len(n.submit)+len(n.done)+len(n.arrived) > 0 {
		n.wake(s.upTo(5000))
	}
	if at, ok := n.e.NextTimer(); ok {
		n.wake(max(at-now, 1) + s.rng.Int64N(20_000))
	}
}

func (n *simNode) completions(now int64) {
	done := n.done
	n.done = nil
	for _, fn := range done {
		fn(now)
	}
}

// repost gives a receive buffer back to the NIC; its content is gone.
func (n *simNode) repost(slot uint32) {
	scribble(n.ring[slot])
	n.freeRing = append(n.freeRing, slot)
}

func scribble(b []byte) {
	for i := range b {
		b[i] = 0xEE
	}
}

// post hands the engine's wishes to the NIC. Now and then it finds the send
// queue full and takes completions meanwhile, as the transport does.
func (n *simNode) post(now int64) {
	s := n.s
	if n.e.Unstamped() {
		n.e.Stamp(now)
	}
	for i := 0; i < len(n.e.Tx); i++ {
		if s.chance(0.05) {
			n.completions(now)
		}
		tx := n.e.Tx[i]
		l := s.links[tx.Dest]
		if l.broken { // the peer is gone: not posted
			n.e.TxDone(tx.Token)
			continue
		}
		head := append([]byte(nil), tx.Head[:tx.HeadLen]...)
		if tx.Token == 0 {
			if int(tx.Data.Len) > n.e.cfg.MaxInline {
				s.tb.Fatalf("%d bytes without a token", tx.Data.Len)
			}
			n.send(l, append(head, n.gather(tx.Data)...))
			continue
		}
		s.after(s.upTo(30_000), func() { // the NIC gets to it
			n.checkWhole(&tx)
			n.send(l, append(head, n.gather(tx.Data)...))
			s.after(s.upTo(200_000), func() { // the completion is seen
				n.done = append(n.done, func(int64) { n.e.TxDone(tx.Token) })
				n.wake(s.upTo(5000))
			})
		})
	}
	for _, r := range n.e.Reads {
		n.startRead(r)
	}
	n.e.Reads = n.e.Reads[:0]
	n.postOffers()
}

func (n *simNode) gather(m Mem) []byte {
	if m.Len == 0 {
		return nil
	}
	b := n.mem.at(m.Addr, uint64(m.Len), m.LKey)
	if b == nil {
		n.s.tb.Fatalf("node %d sends memory that is not registered", n.id)
	}
	return b
}

// checkWhole requires that the message of which tx is a part is in its buffer.
func (n *simNode) checkWhole(tx *Tx) {
	h, _ := ParseHeader(tx.Head[:])
	if h.Kind != KindRequestPart && h.Kind != KindResponsePart {
		return
	}
	p, _, ok := ParsePart(tx.Head[HeaderBytes:tx.HeadLen])
	if !ok {
		n.s.tb.Fatalf("node %d sends a bad part", n.id)
	}
	var off uint64
	for _, q := range n.s.pairs {
		if h.Token == q.cs.token || h.Token == q.ss.token {
			off = uint64(p.Index) * uint64(min(q.cs.partBytes, q.ss.partBytes))
		}
	}
	b := n.mem.at(tx.Data.Addr-off, uint64(p.Total), tx.Data.LKey)
	if b == nil || !intact(b) {
		n.s.tb.Errorf("node %d: %v: the NIC sends a part of a buffer that is in use for something else", n.id, h.Kind)
	}
}

// send puts a datagram on the wire: it may get lost, doubled, and late.
func (n *simNode) send(l *simLink, data []byte) {
	s := n.s
	to := l.other(n)
	data = append([]byte(nil), data...)
	if n.dead {
		return
	}
	if h := (packet{data: data}).header(); (h.Kind == KindRequest || h.Kind == KindResponse) && !intact(data[HeaderBytes:]) {
		s.tb.Errorf("node %d: %v: the NIC sends a buffer that is in use for something else", n.id, h.Kind)
	}
	copies := 1
	if s.chance(s.cfg.loss) {
		copies = 0
	}
	if s.chance(s.cfg.dup) {
		copies++
	}
	for i := range copies {
		d := s.upTo(20_000)
		if s.chance(s.cfg.late) {
			d = s.upTo(40 * ms)
		}
		if i == 1 && s.chance(0.2) {
			d = s.upTo(2_000 * ms) // a ghost from long ago
		}
		s.after(d, func() { to.receive(data, n.qpn) })
	}
}

func (n *simNode) receive(data []byte, from uint32) {
	if n.dead {
		return
	}
	if len(n.freeRing) == 0 {
		n.s.overflows++
		return
	}
	i := n.s.rng.IntN(len(n.freeRing))
	slot := n.freeRing[i]
	n.freeRing[i] = n.freeRing[len(n.freeRing)-1]
	n.freeRing = n.freeRing[:len(n.freeRing)-1]
	n.arrived = append(n.arrived, Rx{Data: n.ring[slot][:copy(n.ring[slot], data)], Slot: slot, SrcQPN: from})
	n.wake(n.s.upTo(5000))
}

// startRead does an RDMA READ piece by piece, at random moments, in each of
// which the remote buffer must still hold the message and the local one must
// still be the engine's. Where nobody wants the message any more, it may stop.
func (n *simNode) startRead(r Read) {
	s := n.s
	l := s.links[r.Dest]
	pieces := uint64(1 + s.rng.IntN(4))
	fails := s.chance(s.cfg.readFails)
	stall := -1
	if s.chance(s.cfg.stalls) {
		stall = s.rng.IntN(int(pieces))
	}
	var step func(i uint64)
	step = func(i uint64) {
		ok := i == pieces
		wanted := n.e.Wanted(r.Token) || s.chance(0.5)
		if i < pieces && wanted && r.Conn != 0 && !l.broken && !n.dead {
			if int(i) == stall {
				stall = -1
				n.replaceConn(l)
			}
			if !n.renewed(l, &r) {
				s.after(s.upTo(ms), func() { step(i) })
				return
			}
		}
		if i < pieces && wanted && int(i) == stall && !l.broken && !n.dead {
			stall = -1
			n.ask(func(now int64) { n.e.Broken(now, l.id, 7) })
			s.after(s.upTo(100*ms), func() {
				n.ask(func(int64) { n.e.Repaired(l.id) })
				step(i)
			})
			return
		}
		if i < pieces && wanted && !l.broken && !n.dead {
			if l.other(n).dead {
				s.after(ms, func() { step(i) }) // retries until the link breaks
				return
			}
			from, to := r.Len*i/pieces, r.Len*(i+1)/pieces
			src := s.mem.remote(r.Remote+from, to-from, r.RKey, r.Conn)
			dst := s.mem.at(r.Local+from, to-from, r.LKey)
			g := s.mem.grants[r.RKey]
			lost := src == nil && g != nil && g.forced // the READ ends with an access error
			if (src == nil || g != nil && g.owner != l.other(n).endpoint) && !lost || dst == nil {
				s.tb.Fatalf("node %d: READ without access, outside of an offer: %+v", n.id, r)
			}
			copy(dst, src)
			if !lost && (!fails || i+1 < pieces) {
				s.after(s.upTo(100_000), func() { step(i + 1) })
				return
			}
		}
		if !ok {
			s.readFailed = s.readFailed || wanted
		} else if b := s.mem.at(r.Local, r.Len, r.LKey); !intact(b) {
			s.tb.Errorf("node %d: a READ of %d bytes met a buffer that is in use for something else", n.id, r.Len)
		}
		s.after(s.upTo(20_000), func() {
			n.done = append(n.done, func(now int64) { n.e.ReadDone(now, r.Token, ok) })
			n.wake(s.upTo(5000))
		})
	}
	s.after(s.upTo(50_000), func() { step(0) })
}

// run drives the simulation to its end and checks what is left.
func (s *sim) run() {
	s.tb.Helper()
	s.after(1, s.traffic)
	if s.cfg.death {
		victim := s.nodes[len(s.nodes)-1]
		s.after(s.upTo(int64(s.cfg.calls)*50_000), func() { s.kill(victim) })
	}
	s.limit = s.now + 300_000*ms
	for len(s.events) > 0 && (s.started < s.cfg.calls || s.alive > 0) {
		s.next()
	}
	if s.alive > 0 {
		s.tb.Fatalf("%d calls never end", s.alive)
	}
	s.quiet = true
	for _, p := range s.pairs {
		if !p.client.dead {
			p.close()
		}
	}
	for _, l := range s.links { // ends what is left on the servers of the dead
		if l.ends[0].dead || l.ends[1].dead {
			s.breakLink(l)
		}
	}
	for len(s.events) > 0 {
		s.next()
	}
	for _, n := range s.nodes {
		if n.dead {
			continue
		}
		n.e.Sessions(func(x *Session) { s.tb.Errorf("node %d: session %d still lives", n.id, x.Index()) })
		if n.held != 0 || len(n.freeRing) != len(n.ring) {
			s.tb.Errorf("node %d: %d receive slots are held, %d of %d are free", n.id, n.held, len(n.freeRing), len(n.ring))
		}
		n.wantClean(s.now)
	}
	for id, k := range s.ran {
		if k > 1 {
			s.tb.Errorf("the handler of request %#x ran %d times", id, k)
		}
	}
}

func (s *sim) next() {
	e := heap.Pop(&s.events).(event)
	if s.now = e.at; s.now > s.limit {
		s.tb.Fatalf("the simulation does not end: %d of %d calls are over", s.ended, s.started)
	}
	e.fn()
}

var errSim = errors.New("failed on purpose")

// traffic starts calls at random moments.
func (s *sim) traffic() {
	if s.started >= s.cfg.calls {
		return
	}
	s.after(s.upTo(100_000), s.traffic)
	p := s.pairs[s.rng.IntN(len(s.pairs))]
	if s.chance(s.cfg.churn) {
		switch s.rng.IntN(3) {
		case 0:
			p.close()
		case 1:
			s.breakLink(p.link)
		default: // this side only knows first
			if !p.closing && !p.link.broken {
				s.breakLink(p.link)
				p.client.ask(func(now int64) { p.cs.Fail(now, errSim) })
			}
		}
		s.newSession()
	}
	if p.client.dead {
		s.started++
		return
	}
	for range 1 + s.rng.IntN(2*testWindow) {
		s.started++
		p.client.ask(func(now int64) { p.client.call(p, now) })
	}
}

func simSeeds(t *testing.T, normal int) (first, n uint64) {
	n = uint64(normal)
	if testing.Short() {
		n = max(n/10, 1)
	}
	if v := os.Getenv("ENGINE_SIM_SEEDS"); v != "" {
		k, err := strconv.ParseUint(v, 0, 64)
		if err != nil {
			t.Fatalf("ENGINE_SIM_SEEDS: %v", err)
		}
		n = k
	}
	if v := os.Getenv("ENGINE_SIM_SEED"); v != "" {
		k, err := strconv.ParseUint(v, 0, 64)
		if err != nil {
			t.Fatalf("ENGINE_SIM_SEED: %v", err)
		}
		return k, 1
	}
	return 1, n
}

// simulate runs cfg with many seeds. ENGINE_SIM_SEED replays one,
// ENGINE_SIM_SEEDS runs that many.
func simulate(t *testing.T, seeds int, config func(r *rand.Rand) simConfig, check func(*sim)) {
	first, n := simSeeds(t, seeds)
	for seed := first; seed < first+n; seed++ {
		tb := &seedTB{T: t, seed: seed}
		s := newSim(tb, seed, config(rand.New(rand.NewPCG(seed, 2))))
		s.run()
		if check != nil {
			check(s)
		}
		if t.Failed() {
			return
		}
	}
}

// seedTB says the seed with every failure.
type seedTB struct {
	*testing.T
	seed uint64
}

func (t *seedTB) prefix() string {
	return fmt.Sprintf("seed %d (replay with ENGINE_SIM_SEED=%d): ", t.seed, t.seed)
}

func (t *seedTB) Errorf(format string, args ...any) {
	t.T.Helper()
	t.T.Errorf(t.prefix()+format, args...)
}

func (t *seedTB) Fatalf(format string, args ...any) {
	t.T.Helper()
	t.T.Fatalf(t.prefix()+format, args...)
}
