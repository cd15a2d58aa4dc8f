package nexus

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/rrppcc-go/rrppcc/internal/leakcheck"
)

func TestMain(m *testing.M) { leakcheck.Main(m) }

// memNet is a network in virtual time: packets take 0.1 to 0.2 ms, and may be
// lost, doubled and delayed.
type memNet struct {
	mu      sync.Mutex
	rng     *rand.Rand
	ports   map[netip.AddrPort]*memConn
	loss    float64
	double  float64
	reorder float64 // share of packets that take up to 300 ms longer
	// filter, if set, decides about each packet; false loses it.
	filter func(from, to netip.AddrPort, b []byte) bool
	// script, if set, decides instead of all that: after which times copies of
	// message n arrive, counted from 0 in the order of sending.
	script  func(n int) []time.Duration
	written int
	sent    map[kind]int
	keyed   bool // whether start gives a key
}

func newMemNet(seed uint64) *memNet {
	return &memNet{rng: rand.New(rand.NewPCG(seed, 0)), ports: make(map[netip.AddrPort]*memConn), sent: make(map[kind]int)}
}

type packet struct {
	from netip.AddrPort
	data []byte
}

type memConn struct {
	net  *memNet
	addr netip.AddrPort
	in   chan packet
	done chan struct{}
	once sync.Once
	dead bool // nothing comes and nothing goes; guarded by net.mu
}

func (m *memNet) listen(addr string) *memConn {
	c := &memConn{net: m, addr: netip.MustParseAddrPort(addr), in: make(chan packet, 1<<14), done: make(chan struct{})}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.ports[c.addr] = c
	return c
}

// set changes the network's behaviour.
func (m *memNet) set(f func()) {
	m.mu.Lock()
	defer m.mu.Unlock()
	f()
}

func (m *memNet) count(k kind) int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.sent[k]
}

func (c *memConn) ReadFromUDPAddrPort(b []byte) (int, netip.AddrPort, error) {
	select {
	case p := <-c.in:
		return copy(b, p.data), p.from, nil
	case <-c.done:
		return 0, netip.AddrPort{}, net.ErrClosed
	}
}

func (c *memConn) WriteToUDPAddrPort(b []byte, to netip.AddrPort) (int, error) {
	m := c.net
	m.mu.Lock()
	defer m.mu.Unlock()
	if c.dead {
		return len(b), nil
	}
	if len(b) > 5 {
		m.sent[kind(b[5])]++
	}
	if m.script != nil {
		m.written++
		for _, delay := range m.script(m.written - 1) {
			m.deliver(packet{c.addr, append([]byte(nil), b...)}, to, delay)
		}
		return len(b), nil
	}
	if m.filter != nil && !m.filter(c.addr, to, b) || m.rng.Float64() < m.loss {
		return len(b), nil
	}
	copies := 1
	if m.rng.Float64() < m.double {
		copies = 2
	}
	p := packet{c.addr, append([]byte(nil), b...)}
	for range copies {
		delay := 100*time.Microsecond + time.Duration(m.rng.IntN(100))*time.Microsecond
		if m.rng.Float64() < m.reorder {
			delay += time.Duration(m.rng.IntN(300)) * time.Millisecond
		}
		m.deliver(p, to, delay)
	}
	return len(b), nil
}

func (m *memNet) deliver(p packet, to netip.AddrPort, delay time.Duration) {
	time.AfterFunc(delay, func() {
		m.mu.Lock()
		dst := m.ports[to]
		m.mu.Unlock()
		if dst == nil {
			return
		}
		select {
		case dst.in <- p:
		default: // the receive buffer is full
		}
	})
}

// kill takes c off the network, whose user need not notice.
func (c *memConn) kill() {
	c.net.mu.Lock()
	defer c.net.mu.Unlock()
	c.dead = true
	if c.net.ports[c.addr] == c {
		delete(c.net.ports, c.addr)
	}
}

func (c *memConn) LocalAddr() net.Addr { return net.UDPAddrFromAddrPort(c.addr) }

func (c *memConn) Close() error {
	c.once.Do(func() {
		c.net.mu.Lock()
		if c.net.ports[c.addr] == c {
			delete(c.net.ports, c.addr)
		}
		c.net.mu.Unlock()
		close(c.done)
	})
	return nil
}

// The addresses of the tests.
const (
	addrA = "10.0.0.1:1000"
	addrB = "10.0.0.2:2000"
)

var testSecret = []byte("the secret of the tests: 32 byte")

// start makes a Nexus on the network, closed at the test's end.
func start(t *testing.T, m *memNet, addr string, opts ...Option) *Nexus {
	t.Helper()
	first := []Option{WithConn(m.listen(addr))}
	if m.keyed {
		first = append(first, WithKey(testSecret))
	}
	n, err := New(addr, append(first, opts...)...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { n.Close() })
	return n
}

type acceptFunc func(ctx context.Context, c *Conn, payload []byte) ([]byte, error)

func (f acceptFunc) Accept(ctx context.Context, c *Conn, payload []byte) ([]byte, error) {
	return f(ctx, c, payload)
}

// server accepts everything, answers with "re: " and the payload, and remembers.
type server struct {
	mu    sync.Mutex
	conns []*Conn
	downs map[*Conn][]error
}

func (s *server) Accept(_ context.Context, c *Conn, payload []byte) ([]byte, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.conns = append(s.conns, c)
	c.OnDown(func(err error) {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.downs[c] = append(s.downs[c], err)
	})
	return append([]byte("re: "), payload...), nil
}

func (s *server) accepted() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.conns)
}

func (s *server) ended() (errs []error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, c := range s.conns {
		errs = append(errs, s.downs[c]...)
	}
	return errs
}

func serve(t *testing.T, n *Nexus, endpoint uint16) *server {
	t.Helper()
	s := &server{downs: make(map[*Conn][]error)}
	if _, err := n.Register(endpoint, s); err != nil {
		t.Fatal(err)
	}
	return s
}

// downs counts the calls of an OnDown function.
type downs struct {
	mu   sync.Mutex
	errs []error
	when []time.Time
}

func (d *downs) call(err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.errs = append(d.errs, err)
	d.when = append(d.when, time.Now())
}

func (d *downs) all() []error {
	d.mu.Lock()
	defer d.mu.Unlock()
	return append([]error(nil), d.errs...)
}

func connect(t *testing.T, n *Nexus, uri string, endpoint uint16, d *downs) *Conn {
	t.Helper()
	if d == nil {
		d = new(downs)
	}
	c, reply, err := n.Connect(t.Context(), uri, endpoint, []byte("hi"), d.call)
	if err != nil {
		t.Fatal(err)
	}
	if string(reply) != "re: hi" {
		t.Fatalf("reply %q", reply)
	}
	return c
}

// virtual runs the test in virtual time with a network, without a key and with
// one.
func virtual(t *testing.T, f func(t *testing.T, m *memNet)) {
	t.Run("clear", func(t *testing.T) { unkeyed(t, f) })
	t.Run("sealed", func(t *testing.T) { keyed(t, f) })
}

func unkeyed(t *testing.T, f func(t *testing.T, m *memNet)) {
	synctest.Test(t, func(t *testing.T) { f(t, newMemNet(1)) })
}

func keyed(t *testing.T, f func(t *testing.T, m *memNet)) {
	synctest.Test(t, func(t *testing.T) {
		m := newMemNet(1)
		m.keyed = true
		f(t, m)
	})
}

// live is what a Nexus has, for comparison.
func live(n *Nexus) string {
	s := n.Stats()
	n.mu.Lock()
	defer n.mu.Unlock()
	return fmt.Sprintf("%d conns, %d peers, %d clients, %d pings", s.Conns, s.Peers, len(n.clients), len(n.pinged))
}

const nothing = "0 conns, 0 peers, 0 clients, 0 pings"
