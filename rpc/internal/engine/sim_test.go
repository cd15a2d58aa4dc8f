package engine

import (
	"container/heap"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
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
	crashes                float64 // chance, per call, that a node crashes and comes back
	partitions             float64 // that no packet gets through between two nodes for a while
	jumps                  float64 // that a node's clock jumps, by up to 20 s, as that of a machine that slept
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
	window int
	links  []*simLink // of all times; the transport's dest is an index into it
	pairs  []*simSession

	started, ended, alive int // calls; alive ones wait for an end
	oks                   int
	ran                   map[uint64]int // handler runs by request id
	readFailed            bool
	overflows             int  // datagrams that found no receive buffer
	taken                 int  // messages that were taken back from a peer that had not let go
	crashed               int  // nodes that came back
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
	cut    int64 // until then nothing gets through

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

func newSim(tb testing.TB, seed uint64, cfg simConfig) *sim {
	s := &sim{tb: tb, cfg: cfg, rng: rand.New(rand.NewPCG(seed, 1)), now: 5_000 * ms, mem: &memory{}, ran: map[uint64]int{}}
	s.window = []int{1, 4, 8, 64}[s.rng.IntN(4)]
	for i := range cfg.nodes {
		s.nodes = append(s.nodes, s.newNode(i))
	}
	for range cfg.sessions {
		s.newSession()
	}
	return s
}

// newNode makes the node with that number, or makes it anew.
func (s *sim) newNode(i int) *simNode {
	tb, cfg, window := s.tb, s.cfg, s.window
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
	return n
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
	s.sessionOf(a, b)
}

func (s *sim) sessionOf(a, b *simNode) {
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
	a.out = append(a.out, p)
	small := simMaxSmall
	if s.chance(0.3) {
		small = 240
	}
	parts := []int{1, 2, 5, 30, 64}[s.rng.IntN(5)]
	if s.cfg.credits > 0 {
		parts = PartsFor(s.cfg.credits, 1)
	}
	p.ss.Connect(b.clock(), Peer{Dest: p.link.id, Session: p.cs.Index(), Token: p.cs.Token(), QPN: a.qpn, MaxSmall: small, Parts: parts})
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
	p.cs.Fail(n.clock(), ErrSessionClosed)
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

// crash lets a node vanish, and come back without a memory: what is still on its
// way to the old one meets the new one.
func (s *sim) crash(n *simNode) {
	s.kill(n)
	s.after(s.upTo(200*ms), func() {
		if s.quiet || s.nodes[n.id] != n {
			return
		}
		again := s.newNode(n.id)
		s.nodes[n.id] = again
		s.crashed++
		for range 1 + s.rng.IntN(3) {
			other := s.nodes[s.rng.IntN(len(s.nodes))]
			if s.chance(0.5) {
				s.sessionOf(again, other)
			} else {
				s.sessionOf(other, again)
			}
		}
	})
}

// trouble does what else networks and machines do.
func (s *sim) trouble(p *simSession) {
	if s.chance(s.cfg.crashes) {
		if n := s.nodes[s.rng.IntN(len(s.nodes))]; !n.dead && n.depth == 0 {
			s.crash(n)
		}
	}
	if s.chance(s.cfg.partitions) {
		p.link.cut = s.now + s.upTo(300*ms)
	}
	if s.chance(s.cfg.jumps) {
		n := s.nodes[s.rng.IntN(len(s.nodes))]
		n.skew += s.upTo(20_000 * ms)
		n.wake(1)
	}
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
		n.wantClean(n.clock())
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
	s.trouble(p)
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
	order := slices.Clone(failedOnce[t.Name()])
	for seed := first; seed < first+n; seed++ {
		order = append(order, seed)
	}
	for _, seed := range order {
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
