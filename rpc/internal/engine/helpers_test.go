package engine

import (
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"sort"
	"testing"
	"unsafe"

	"github.com/rrppcc-go/rrppcc/msgbuf"
)

// memory is a registrar that can also read and write what is registered, by
// address and key, as a NIC does. It is shared by the endpoints of a test, so
// that no key is used twice.
type memory struct {
	regions []*region // by address
	keys    uint32
	grants  map[uint32]*grant // by key
}

// grant is what a memory window is: a key for a piece of memory that works by
// one connection, as long as it is live.
type grant struct {
	owner   *endpoint
	addr, n uint64
	link    uint32
	conn    uint32
	live    bool
	forced  bool // was taken back from a peer that had not let go
}

// grant makes a key for an offer.
func (m *memory) grant(owner *endpoint, o *Offer, conn uint32) (uint32, *grant) {
	if m.raw(o.Addr, o.Len) == nil || m.at(o.Addr, o.Len, o.LKey) == nil {
		owner.tb.Fatalf("offer of memory that is not registered: %+v", *o)
	}
	if m.grants == nil {
		m.grants = map[uint32]*grant{}
	}
	m.keys++
	g := &grant{owner: owner, addr: o.Addr, n: o.Len, link: o.Dest, conn: conn, live: true}
	m.grants[m.keys] = g
	return m.keys, g
}

// remote returns what a READ finds that comes by the connection conn.
func (m *memory) remote(addr, n uint64, key, conn uint32) []byte {
	if g := m.grants[key]; g != nil {
		if !g.live || g.conn != conn || addr < g.addr || n > g.n || addr-g.addr > g.n-n {
			return nil
		}
		return m.raw(addr, n)
	}
	if key>>31 == 0 {
		return nil
	}
	return m.at(addr, n, key)
}

// offered reports whether any of buf can be read by a key of its own.
func (m *memory) offered(buf msgbuf.Buf) bool {
	for _, g := range m.grants {
		if g.live && g.addr < buf.Addr()+uint64(buf.Cap()) && buf.Addr() < g.addr+g.n {
			return true
		}
	}
	return false
}

type region struct {
	m        *memory
	mem      []byte
	addr     uint64
	key      uint32
	remote   bool
	bindable bool // by windows alone
}

// registrar is one endpoint's view of memory.
type registrar struct {
	m       *memory
	windows bool // the regions' own keys grant nothing
}

func (r *registrar) Register(mem []byte, access msgbuf.Access) (msgbuf.Registration, error) {
	r.m.keys++
	g := &region{m: r.m, mem: mem, addr: uint64(uintptr(unsafe.Pointer(&mem[0]))), key: r.m.keys, remote: access == msgbuf.RemoteRead && !r.windows, bindable: r.windows}
	r.m.regions = append(r.m.regions, g)
	sort.Slice(r.m.regions, func(i, j int) bool { return r.m.regions[i].addr < r.m.regions[j].addr })
	return g, nil
}

func (g *region) LKey() uint32 { return g.key }
func (g *region) RKey() uint32 {
	if g.bindable {
		return 0
	}
	return g.key | 1<<31
}

func (g *region) Close() error {
	for i, o := range g.m.regions {
		if o == g {
			g.m.regions = append(g.m.regions[:i], g.m.regions[i+1:]...)
			return nil
		}
	}
	return errors.New("deregistered twice")
}

// at returns the n bytes at addr, nil if key does not allow it.
func (m *memory) at(addr, n uint64, key uint32) []byte {
	g := m.region(addr, n)
	if g == nil || key&^(1<<31) != g.key || key>>31 == 1 && !g.remote {
		return nil
	}
	return m.raw(addr, n)
}

// raw returns the n bytes at addr, nil if they are not registered.
func (m *memory) raw(addr, n uint64) []byte {
	g := m.region(addr, n)
	if g == nil {
		return nil
	}
	off := addr - g.addr
	return g.mem[off : off+n : off+n]
}

func (m *memory) region(addr, n uint64) *region {
	i := sort.Search(len(m.regions), func(i int) bool { return m.regions[i].addr > addr })
	if i == 0 {
		return nil
	}
	g := m.regions[i-1]
	if addr-g.addr+n > uint64(len(g.mem)) {
		return nil
	}
	return g
}

// packet is a datagram on its way.
type packet struct {
	dest uint32
	data []byte
}

func (p packet) header() Header {
	h, ok := ParseHeader(p.data)
	if !ok {
		panic("engine sent a bad header")
	}
	return h
}

func (p packet) String() string {
	h := p.header()
	return fmt.Sprintf("%v slot %d seq %d", h.Kind, h.Slot, h.Seq)
}

// endpoint is an engine and the least of what its owner does, by hand.
type endpoint struct {
	tb     testing.TB
	e      *Engine
	mem    *memory
	reg    *registrar
	small  *msgbuf.Pool
	large  *msgbuf.Pool
	qpn    uint32
	out    []packet // posted datagrams
	tokens []uint32 // TxDone owed
	reads  []Read   // posted READs
	offers []Offer  // not granted yet
	over   []uint32 // offers that were withdrawn
	open   map[uint32]*grant
	stuck  []uint32 // calls of PeerStuck
	panics []any
}

const (
	testWindow    = 4
	testMaxSmall  = 1000
	testMaxInline = 100
	testMaxMsg    = 1 << 20

	ms = int64(1_000_000)
)

func testConfig() Config {
	return Config{
		Window: testWindow, MaxInline: testMaxInline, MaxSmall: testMaxSmall, MaxMsg: testMaxMsg,
		InitialRTO: 10 * ms, MinRTO: 5 * ms, MaxRTO: 80 * ms, CancelGrace: 500 * ms, OfferGrace: 500 * ms,
	}
}

func newEndpoint(tb testing.TB, m *memory, qpn uint32, now int64, change func(*Config), opts ...msgbuf.Option) *endpoint {
	ep := &endpoint{tb: tb, mem: m, reg: &registrar{m: m}, qpn: qpn, open: map[uint32]*grant{}}
	ep.small = msgbuf.NewPool(ep.reg, msgbuf.Local, opts...)
	ep.large = msgbuf.NewPool(ep.reg, msgbuf.RemoteRead)
	cfg := testConfig()
	cfg.Small, cfg.Large, cfg.Registrar = ep.small, ep.large, ep.reg
	cfg.PeerStuck = func(dest uint32) { ep.stuck = append(ep.stuck, dest) }
	cfg.Panicked = func(_ uint8, v any) { ep.panics = append(ep.panics, v) }
	if change != nil {
		change(&cfg)
	}
	ep.reg.windows = cfg.Offers
	ep.e = New(cfg, now)
	return ep
}

// post does what the owner does with Tx, Reads and Released.
func (ep *endpoint) post() {
	for i := range ep.e.Tx {
		tx := &ep.e.Tx[i]
		data := append([]byte(nil), tx.Head[:tx.HeadLen]...)
		if tx.Data.Len > 0 {
			b := ep.mem.at(tx.Data.Addr, uint64(tx.Data.Len), tx.Data.LKey)
			if b == nil {
				ep.tb.Fatalf("engine sends memory that is not registered: %+v", tx.Data)
			}
			data = append(data, b...)
		}
		if tx.Token != 0 {
			ep.tokens = append(ep.tokens, tx.Token)
		} else if tx.Data.Len > 0 && len(data) > ep.e.cfg.MaxInline {
			ep.tb.Fatalf("%d bytes to copy, MaxInline is %d", len(data), ep.e.cfg.MaxInline)
		}
		ep.out = append(ep.out, packet{tx.Dest, data})
	}
	ep.reads = append(ep.reads, ep.e.Reads...)
	ep.e.Reads = ep.e.Reads[:0]
	ep.offers = append(ep.offers, ep.e.Offers...)
	ep.e.Offers = ep.e.Offers[:0]
	ep.over = append(ep.over, ep.e.Withdrawn...)
	ep.e.Withdrawn = ep.e.Withdrawn[:0]
}

// grant makes everything readable that is offered, by the connection conn.
func (ep *endpoint) grant(now int64, conn uint32) {
	ep.flush()
	offers := ep.offers
	ep.offers = nil
	for i := range offers {
		key, g := ep.mem.grant(ep, &offers[i], conn)
		ep.open[offers[i].Token] = g
		ep.e.OfferDone(now, offers[i].Token, key, conn, true)
	}
	ep.flush()
}

// revoke ends what was withdrawn.
func (ep *endpoint) revoke() {
	ep.flush()
	over := ep.over
	ep.over = nil
	for _, token := range over {
		if g := ep.open[token]; g != nil {
			g.live = false
			delete(ep.open, token)
		}
		ep.offers = slices.DeleteFunc(ep.offers, func(o Offer) bool { return o.Token == token })
		ep.e.TxDone(token)
	}
	ep.flush()
}

// flush posts and tells the engine, until it wants no more.
func (ep *endpoint) flush() {
	for first := true; first || !ep.e.Idle(); first = false {
		ep.post()
		ep.e.Flushed()
	}
}

// sent returns and forgets what was posted.
func (ep *endpoint) sent() []packet {
	ep.flush()
	out := ep.out
	ep.out = nil
	return out
}

// txDone completes everything posted with a token.
func (ep *endpoint) txDone() {
	ep.flush()
	for _, t := range ep.tokens {
		ep.e.TxDone(t)
	}
	ep.tokens = ep.tokens[:0]
	ep.flush()
}

// read does the first posted READ, or fails it.
func (ep *endpoint) read(now int64, ok bool) {
	ep.tb.Helper()
	ep.flush()
	if len(ep.reads) == 0 {
		ep.tb.Fatal("no READ was posted")
	}
	r := ep.reads[0]
	ep.reads = ep.reads[1:]
	if ok {
		rkey, conn := ep.e.Key(r.Token)
		src, dst := ep.mem.remote(r.Remote, r.Len, rkey, conn), ep.mem.at(r.Local, r.Len, r.LKey)
		if src == nil || dst == nil {
			ep.tb.Fatalf("READ without access: %+v", r)
		}
		copy(dst, src)
	}
	ep.e.ReadDone(now, r.Token, ok)
	ep.flush()
}

// expect posts what the engine wants sent and requires it to be of these kinds.
func (ep *endpoint) expect(kinds ...Kind) []packet {
	ep.tb.Helper()
	ps := ep.sent()
	got := make([]Kind, len(ps))
	for i := range ps {
		got[i] = ps[i].header().Kind
	}
	if len(got) != len(kinds) {
		ep.tb.Fatalf("sent %v, want %v", got, kinds)
	}
	for i := range got {
		if got[i] != kinds[i] {
			ep.tb.Fatalf("sent %v, want %v", got, kinds)
		}
	}
	return ps
}

// pair is a client and a server with one session.
type pair struct {
	testing.TB
	now    int64
	mem    *memory
	c, s   *endpoint
	cs, ss *Session
	parts  int // Peer.Parts of both
	ended  []*Call
}

func newPair(tb testing.TB, changes ...func(*Config)) *pair {
	return newPairOfParts(tb, 1, changes...)
}

// newPairOfParts is newPair with a session whose messages go in up to so many
// datagrams.
func newPairOfParts(tb testing.TB, parts int, changes ...func(*Config)) *pair {
	p := &pair{TB: tb, now: 1000 * ms, mem: &memory{}, parts: parts}
	change := func(c *Config) {
		if parts > 1 {
			c.Threshold = testMaxMsg // what the parts allow
		}
		for _, f := range changes {
			f(c)
		}
	}
	p.c = newEndpoint(tb, p.mem, 11, p.now, change)
	p.s = newEndpoint(tb, p.mem, 22, p.now, change)
	p.cs = p.c.e.NewSession(true, 0xc1c1c1c1)
	p.ss = p.s.e.NewSession(false, 0x51515151)
	p.connect(testMaxSmall)
	return p
}

func (p *pair) connect(maxSmall int) {
	p.cs.Connect(p.now, Peer{Dest: 7, Session: p.ss.Index(), Token: p.ss.Token(), QPN: p.s.qpn, MaxSmall: maxSmall, Parts: p.parts})
	p.ss.Connect(p.now, Peer{Dest: 9, Session: p.cs.Index(), Token: p.cs.Token(), QPN: p.c.qpn, MaxSmall: maxSmall, Parts: p.parts})
}

// to delivers packets in one burst, each in a slot of its own, and returns the
// burst as the engine left it.
func (p *pair) to(ep *endpoint, ps ...packet) []Rx {
	qpn := p.c.qpn
	if ep == p.c {
		qpn = p.s.qpn
	}
	burst := make([]Rx, len(ps))
	for i := range ps {
		burst[i] = Rx{Data: append([]byte(nil), ps[i].data...), Slot: uint32(100 + i), SrcQPN: qpn}
	}
	ep.e.Receive(p.now, burst)
	return burst
}

// run lets both sides work until nothing is under way, without loss.
func (p *pair) run() {
	for range 1000 {
		busy := false
		for _, ep := range []*endpoint{p.c, p.s} {
			other := p.s
			if ep == p.s {
				other = p.c
			}
			if ps := ep.sent(); len(ps) > 0 {
				p.to(other, ps...)
				busy = true
			}
			for len(ep.reads) > 0 {
				ep.read(p.now, true)
				busy = true
			}
			if len(ep.tokens) > 0 {
				ep.txDone()
				busy = true
			}
			if len(ep.offers)+len(ep.over) > 0 {
				ep.revoke()
				ep.grant(p.now, 1)
				busy = true
			}
		}
		if !busy {
			return
		}
	}
	p.Fatal("the two sides do not come to rest")
}

// wait lets time pass for both sides, without delivering anything.
func (p *pair) wait(d int64) {
	p.now += d
	p.c.e.Tick(p.now)
	p.s.e.Tick(p.now)
}

func (ep *endpoint) alloc(n int) msgbuf.Buf {
	ep.tb.Helper()
	b, err := ep.e.Alloc(n)
	if err != nil {
		ep.tb.Fatal(err)
	}
	return b
}

// message returns a buffer of ep with n bytes made from seed.
func (ep *endpoint) message(n int, seed uint64) msgbuf.Buf {
	b := ep.alloc(n)
	stream(seed, b.Bytes())
	return b
}

// call starts a call with a request of n bytes and room for room bytes.
func (p *pair) call(typ uint8, n, room int) *Call {
	c := &Call{Type: typ, Req: p.c.message(n, uint64(n)), Resp: p.c.alloc(room)}
	c.Fn = func(c *Call) { p.ended = append(p.ended, c) }
	p.cs.Start(p.now, c)
	return c
}

// over reports whether c has ended, and requires it to have ended once.
func (p *pair) over(c *Call) bool {
	p.Helper()
	n := 0
	for _, e := range p.ended {
		if e == c {
			n++
		}
	}
	if n > 1 {
		p.Fatalf("call ended %d times", n)
	}
	return n == 1
}

// want requires c to have ended with err.
func (p *pair) want(c *Call, err error) {
	p.Helper()
	if !p.over(c) {
		p.Fatalf("call has not ended, want %v", err)
	}
	if !errors.Is(c.Err, err) {
		p.Fatalf("call ended with %v, want %v", c.Err, err)
	}
}

func (p *pair) wantOpen(c *Call) {
	p.Helper()
	if p.over(c) {
		p.Fatalf("call has ended already (%v)", c.Err)
	}
}

// finish ends everything and requires that nothing is left over.
func (p *pair) finish() {
	p.Helper()
	p.run()
	for _, c := range p.ended {
		c.Req.Free()
		c.Resp.Free()
		c.Req, c.Resp = msgbuf.Buf{}, msgbuf.Buf{}
	}
	gone := errors.New("gone")
	p.cs.Fail(p.now, gone)
	p.ss.Fail(p.now, gone)
	p.run()
	for _, ep := range []*endpoint{p.c, p.s} {
		ep.wantClean(p.now)
	}
}

// wantClean requires that an engine without sessions holds nothing.
func (ep *endpoint) wantClean(now int64) {
	ep.tb.Helper()
	for _, pool := range []*msgbuf.Pool{ep.small, ep.large} {
		if err := pool.Close(); err != nil {
			ep.tb.Errorf("endpoint %d: %v", ep.qpn, err)
		}
	}
	for key, g := range ep.mem.grants {
		if g.owner == ep && g.live {
			ep.tb.Errorf("endpoint %d: %d bytes are still offered by key %#x", ep.qpn, g.n, key)
		}
	}
	if n := len(ep.e.refs) - 1 - len(ep.e.freeRefs); n != 0 {
		ep.tb.Errorf("endpoint %d: %d tokens in use", ep.qpn, n)
	}
	for range 1000 {
		at, ok := ep.e.NextTimer()
		if !ok {
			break
		}
		now = max(now, at)
		ep.e.Tick(now)
	}
	if at, ok := ep.e.NextTimer(); ok {
		ep.tb.Errorf("endpoint %d: a timer is still set, for %d ms later", ep.qpn, (at-now)/ms)
	}
	if !ep.e.Idle() {
		ep.tb.Errorf("endpoint %d is not idle", ep.qpn)
	}
}

// stream fills b with bytes that depend on seed.
func stream(seed uint64, b []byte) {
	x := seed*0x9e3779b97f4a7c15 + 0x1234567
	for len(b) >= 8 {
		x = next(x)
		binary.LittleEndian.PutUint64(b, x)
		b = b[8:]
	}
	for i := range b {
		x = next(x)
		b[i] = byte(x >> 56)
	}
}

func next(x uint64) uint64 {
	x ^= x >> 30
	x *= 0xbf58476d1ce4e5b9
	x ^= x >> 27
	x *= 0x94d049bb133111eb
	return x ^ x>>31 + 0x9e3779b97f4a7c15
}

// sum is a checksum of b.
func sum(b []byte) uint64 {
	x := uint64(len(b)) + 0xabcdef
	for len(b) >= 8 {
		x = next(x ^ binary.LittleEndian.Uint64(b))
		b = b[8:]
	}
	for _, c := range b {
		x = next(x ^ uint64(c))
	}
	return x
}
