package nexus

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// The attacker of these tests reads every datagram, sends what it likes under any
// address, and is faster than the network. It has no key, and cannot hold
// datagrams back.

type recorded struct {
	from, to netip.AddrPort
	b        []byte
}

type recorder struct {
	mu   sync.Mutex
	list []recorded
}

// record adds to the recorder all that is sent.
func (m *memNet) record(r *recorder) {
	m.set(func() {
		m.filter = func(from, to netip.AddrPort, b []byte) bool {
			r.mu.Lock()
			defer r.mu.Unlock()
			r.list = append(r.list, recorded{from, to, append([]byte(nil), b...)})
			return true
		}
	})
}

func (r *recorder) all() []recorded {
	r.mu.Lock()
	defer r.mu.Unlock()
	return append([]recorded(nil), r.list...)
}

// inject delivers a datagram at once. The caller holds m.mu.
func (m *memNet) inject(from, to netip.AddrPort, b []byte) {
	if dst := m.ports[to]; dst != nil {
		select {
		case dst.in <- packet{from, append([]byte(nil), b...)}:
		default:
		}
	}
}

// replay injects datagrams, and waits until all is quiet.
func (m *memNet) replay(list []recorded) {
	for _, r := range list {
		m.set(func() { m.inject(r.from, r.to, r.b) })
	}
	time.Sleep(time.Millisecond)
	synctest.Wait()
}

// kinds counts the kinds of the recorded messages.
func (r *recorder) kinds() map[kind]int {
	got := make(map[kind]int)
	for _, r := range r.all() {
		got[kind(r.b[5])]++
	}
	return got
}

// session has two processes connect to each other, ping, close one connection of
// two, be refused, and one of them give up.
func session(t *testing.T, a, b *Nexus, d *downs) {
	t.Helper()
	c := connect(t, a, addrB, 7, d)
	connect(t, a, addrB, 7, d)
	connect(t, b, addrA, 7, d)
	time.Sleep(3 * defaultInterval)
	if err := c.Close(t.Context()); err != nil {
		t.Error(err)
	}
	var refused *RefusedError
	if _, _, err := a.Connect(t.Context(), addrB, 8, nil, nil); !errors.As(err, &refused) || refused.Reason != ReasonNoSuchEndpoint {
		t.Error(err)
	}
	time.Sleep(3 * defaultInterval)
}

func TestKeyReplayedDatagramsDoNothing(t *testing.T) {
	keyed(t, func(t *testing.T, m *memNet) {
		var r recorder
		m.record(&r)
		a, b := start(t, m, addrA), start(t, m, addrB)
		sa, sb := serve(t, a, 7), serve(t, b, 7)
		var d downs
		session(t, a, b, &d)
		// A restart, so that there is a Reset among them.
		crash(t, m, b)
		b = start(t, m, addrB)
		sb2 := serve(t, b, 7)
		time.Sleep(m.restartNoticed() + 3*defaultInterval)
		if n := len(d.all()) + len(sa.ended()); n != 2+1 {
			t.Fatalf("the test's restart ended %d", n)
		}
		connect(t, a, addrB, 7, &d)
		time.Sleep(time.Second)
		for k := kindConnect; k <= kindChallenge; k++ {
			if r.kinds()[k] == 0 {
				t.Errorf("no message of kind %d recorded", k)
			}
		}
		state := func() string {
			return fmt.Sprintf("%s; %s; accepted %d %d %d, down %d %d %d %d", live(a), live(b), sa.accepted(), sb.accepted(), sb2.accepted(),
				len(d.all()), len(sa.ended()), len(sb.ended()), len(sb2.ended()))
		}
		same := func(when string, replay func()) {
			t.Helper()
			before := state()
			replay()
			time.Sleep(defaultDeadline + time.Second)
			if after := state(); !sameButPings(before, after) {
				t.Errorf("%s:\n%s\n%s", when, before, after)
			}
		}
		same("while the session lives", func() { m.replay(r.all()) })
		same("reversed", func() {
			list := r.all()
			for i := range list {
				m.replay(list[len(list)-1-i:][:1])
			}
		})
		same("from another address", func() {
			list := r.all()
			for i := range list {
				list[i].from = netip.MustParseAddrPort("10.6.6.6:6")
			}
			m.replay(list)
		})
		same("to the other", func() {
			list := r.all()
			for i := range list {
				list[i].from, list[i].to = list[i].to, list[i].from
			}
			m.replay(list)
		})

		crash(t, m, b)
		b = start(t, m, addrB)
		serve(t, b, 7)
		time.Sleep(m.restartNoticed() + 3*defaultInterval)
		same("after the server's restart", func() { m.replay(r.all()) })
		crash(t, m, a)
		same("while the client is away", func() { m.replay(r.all()) })
		a = start(t, m, addrA)
		serve(t, a, 7)
		same("after both's restart", func() { m.replay(r.all()) })
		connect(t, a, addrB, 7, &d)
		same("with a new session", func() { m.replay(r.all()) })
		// And when what was remembered is forgotten.
		time.Sleep(idleTime + tombstoneTime + time.Minute)
		same("after a long time", func() { m.replay(r.all()) })
		if s := b.Stats(); s.Replayed == 0 || s.Conns != 1 {
			t.Errorf("%+v", s)
		}
	})
}

// sameButPings compares what live and the counts say, less the Pings on the way.
func sameButPings(a, b string) bool {
	strip := func(s string) string {
		var out []string
		for _, f := range strings.Split(s, ", ") {
			if i := strings.Index(f, " pings"); i >= 0 {
				f = f[i:]
			}
			out = append(out, f)
		}
		return strings.Join(out, ", ")
	}
	return strip(a) == strip(b)
}

// TestKeyReplaysAfterTheSenderWasForgottenOpenNothing has the same incarnation
// come back when its counters are not remembered any more.
func TestKeyReplaysAfterTheSenderWasForgottenOpenNothing(t *testing.T) {
	keyed(t, func(t *testing.T, m *memNet) {
		var r recorder
		m.record(&r)
		a, b := start(t, m, addrA), start(t, m, addrB)
		s := serve(t, b, 7)
		for range 20 {
			if err := connect(t, a, addrB, 7, nil).Close(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		old := r.all()
		time.Sleep(max(idleTime, tombstoneTime) + time.Second)
		b.mu.Lock()
		if len(b.senders)+len(b.idle)+len(b.servers) != 0 {
			t.Errorf("%d senders, %d idle, %d connections remembered", len(b.senders), len(b.idle), len(b.servers))
		}
		b.mu.Unlock()
		m.replay(old)
		if s.accepted() != 20 {
			t.Errorf("while nobody is there: %d accepted", s.accepted())
		}
		var d downs
		connect(t, a, addrB, 7, &d)
		m.replay(old)
		time.Sleep(time.Minute)
		if s.accepted() != 21 || b.Stats().Conns != 1 || len(d.all()) != 0 {
			t.Errorf("%d accepted, %s, %v", s.accepted(), live(b), d.all())
		}
	})
}

func TestKeyReplaysDoNotKeepADeadPeerAlive(t *testing.T) {
	for name, source := range map[string]string{"at its address": addrB, "that answers from another address": "10.0.0.3:3000"} {
		t.Run(name, func(t *testing.T) {
			keyed(t, func(t *testing.T, m *memNet) {
				var r recorder
				m.record(&r)
				a := start(t, m, addrA)
				in := m.listen(addrB)
				out := in
				if source != addrB {
					out = m.listen(source)
					defer out.Close()
				}
				b := start(t, m, addrB, WithConn(twoFaced{in, out}))
				m.set(func() { m.ports[in.addr], m.ports[out.addr] = in, in })
				serve(t, b, 7)
				var d downs
				connect(t, a, addrB, 7, &d)
				time.Sleep(10 * time.Second)
				m.set(func() { m.loss = 1 })
				cut := time.Now()
				list := r.all()
				for time.Since(cut) < defaultDeadline+2*defaultInterval {
					m.replay(list)
				}
				if errs := d.all(); len(errs) != 1 || !errors.Is(errs[0], ErrPeerDead) {
					t.Fatal(errs)
				}
				if took := d.when[0].Sub(cut); took > defaultDeadline+defaultInterval {
					t.Errorf("noticed after %v", took)
				}
			})
		})
	}
}

// TestKeyForgeriesDoNothing sends messages of every kind with the right ids,
// which are no secret, in clear and sealed with another key.
func TestKeyForgeriesDoNothing(t *testing.T) {
	keyed(t, func(t *testing.T, m *memNet) {
		var r recorder
		m.record(&r)
		a, b := start(t, m, addrA), start(t, m, addrB)
		s := serve(t, b, 7)
		var d downs
		c := connect(t, a, addrB, 7, &d)
		time.Sleep(time.Second)
		var nonce uint64
		for _, r := range r.all() {
			if kind(r.b[5]) == kindPing && r.from == a.Addr() {
				nonce = binary.BigEndian.Uint64(r.b[24:])
			}
		}
		id := binary.BigEndian.AppendUint64(nil, c.ID())
		sent := uint64(0)
		for _, k := range []kind{kindConnect, kindAccept, kindRefuse, kindDisconnect, kindDisconnectAck, kindPing, kindPong, kindReset, kindChallenge} {
			for _, to := range []*Nexus{a, b} {
				peer, other := b, testKey(t, []byte("this is another secret"), b.incarnation)
				if to == b {
					peer, other = a, testKey(t, []byte("this is another secret"), a.incarnation)
				}
				for _, from := range []uint64{peer.incarnation, to.incarnation, 99} {
					for _, target := range []uint64{to.incarnation, 0, 98} {
						for _, mid := range []uint64{c.ID(), nonce, 42} {
							for _, acceptor := range []bool{false, true} {
								msg := message{version: version, kind: k, acceptor: acceptor, from: from, to: target, id: mid}
								switch k {
								case kindConnect:
									msg.endpoint = 7
									msg.payload = make([]byte, cookieBytes)
								case kindChallenge:
									msg.payload = make([]byte, cookieBytes)
								case kindRefuse:
									msg.reason = ReasonShuttingDown
								case kindPing, kindPong:
									msg.payload = id
								}
								to.receive(peer.Addr(), msg.encode())
								to.receive(peer.Addr(), other.seal(msg.encode()))
								sent += 2
							}
						}
					}
				}
			}
		}
		time.Sleep(10 * time.Second)
		if len(d.all())+len(s.ended()) != 0 || s.accepted() != 1 || a.Stats().Conns != 1 || b.Stats().Conns != 1 {
			t.Errorf("%v %v; %s; %s", d.all(), s.ended(), live(a), live(b))
		}
		sa, sb := a.Stats(), b.Stats()
		// The refusals that the Connects caused are among the unsealed ones, so
		// there are more.
		if n := sa.Unsealed + sa.Forged + sa.Malformed + sb.Unsealed + sb.Forged + sb.Malformed; n < sent || sa.Challenges+sb.Challenges != 1 {
			t.Errorf("%d forgeries, %d counted; %+v, %+v", sent, n, sa, sb)
		}
	})
}

func TestKeyDamagedDatagramsDoNothing(t *testing.T) {
	keyed(t, func(t *testing.T, m *memNet) {
		var r recorder
		m.record(&r)
		a, b := start(t, m, addrA), start(t, m, addrB)
		sa, sb := serve(t, a, 7), serve(t, b, 7)
		var d downs
		session(t, a, b, &d)
		m.set(func() { m.filter = nil })
		before := fmt.Sprint(sa.accepted(), sb.accepted())
		list := r.all()
		tried := make(map[kind]int)
		var sent uint64
		drops := func() (n uint64) {
			for _, x := range []*Nexus{a, b} {
				s := x.Stats()
				n += s.Foreign + s.Malformed + s.Version + s.Unsealed + s.Forged
			}
			return n
		}
		start := drops()
		for _, rec := range list {
			k := kind(rec.b[5])
			if tried[k]++; tried[k] > 2 {
				continue
			}
			to := a
			if rec.to == b.Addr() {
				to = b
			}
			for i := range rec.b {
				to.receive(rec.from, rec.b[:i])
				to.receive(rec.from, with(rec.b, i, rec.b[i]^1<<(i%8)))
				sent += 2
			}
		}
		if got := drops() - start; got != sent {
			t.Errorf("%d of %d damaged datagrams were dropped as such", got, sent)
		}
		time.Sleep(time.Minute)
		if after := fmt.Sprint(sa.accepted(), sb.accepted()); after != before || len(d.all()) != 0 || a.Stats().Conns != 2 || b.Stats().Conns != 2 {
			t.Errorf("accepted %s, then %s; %v; %s; %s", before, after, d.all(), live(a), live(b))
		}
	})
}

func TestKeyReflectedDatagramsDoNothing(t *testing.T) {
	keyed(t, func(t *testing.T, m *memNet) {
		a, b := start(t, m, addrA), start(t, m, addrB)
		// Both serve, and at the same endpoint; and a has a connection to itself.
		sa, sb := serve(t, a, 7), serve(t, b, 7)
		var d downs
		connect(t, a, addrA, 7, &d)
		m.set(func() {
			m.filter = func(from, to netip.AddrPort, b []byte) bool {
				m.inject(to, from, b)
				return true
			}
		})
		for range 5 {
			connect(t, a, addrB, 7, &d)
			connect(t, b, addrA, 7, &d)
		}
		time.Sleep(time.Minute)
		if sa.accepted() != 1+5 || sb.accepted() != 5 || len(d.all()) != 0 || a.Stats().Conns != 12 || b.Stats().Conns != 10 {
			t.Errorf("%d and %d accepted, %v, %s, %s", sa.accepted(), sb.accepted(), d.all(), live(a), live(b))
		}
		for _, n := range []*Nexus{a, b} {
			n.mu.Lock()
			for p := range n.peers {
				if p.incarnation == n.incarnation && p.addr != n.addr {
					t.Errorf("%v has itself for a peer at %v", n.addr, p.addr)
				}
			}
			n.mu.Unlock()
		}
	})
}

// TestKeyFasterCopiesFromElsewhereDoNothing has every datagram be overtaken by a
// copy of it under another source address, where nobody answers.
func TestKeyFasterCopiesFromElsewhereDoNothing(t *testing.T) {
	keyed(t, func(t *testing.T, m *memNet) {
		elsewhere := netip.MustParseAddrPort("10.6.6.6:6")
		a, b := start(t, m, addrA), start(t, m, addrB)
		s := serve(t, b, 7)
		m.set(func() {
			m.filter = func(from, to netip.AddrPort, b []byte) bool {
				m.inject(elsewhere, to, b)
				return true
			}
		})
		var d downs
		c := connect(t, a, addrB, 7, &d)
		connect(t, a, addrB, 7, &d)
		time.Sleep(time.Minute)
		if len(d.all())+len(s.ended()) != 0 || b.Stats().Peers != 1 {
			t.Errorf("%v %v %s", d.all(), s.ended(), live(b))
		}
		if p := s.conns[0].Peer(); p.Addr() != a.Addr() {
			t.Errorf("the peer is taken to be at %v", p.Addr())
		}
		begin := time.Now()
		if err := c.Close(t.Context()); err != nil || time.Since(begin) > time.Millisecond {
			t.Errorf("close: %v after %v", err, time.Since(begin))
		}
	})
}

// TestKeyPingsLedElsewhereDoNotEndConnections shows Pings to a third process that
// has the key, which says truly that it is not the one meant.
func TestKeyPingsLedElsewhereDoNotEndConnections(t *testing.T) {
	keyed(t, func(t *testing.T, m *memNet) {
		third := netip.MustParseAddrPort("10.0.0.3:3000")
		a, b := start(t, m, addrA), start(t, m, addrB)
		start(t, m, third.String())
		s := serve(t, b, 7)
		var d downs
		resets := 0
		m.set(func() {
			m.filter = func(from, to netip.AddrPort, p []byte) bool {
				if kind(p[5]) == kindPing {
					m.inject(from, third, p)
				}
				if from == third {
					resets++
					m.inject(b.Addr(), a.Addr(), p)
				}
				return true
			}
		})
		connect(t, a, addrB, 7, &d)
		time.Sleep(time.Minute)
		m.set(func() {
			if len(d.all())+len(s.ended()) != 0 || resets < 100 {
				t.Errorf("%v %v, %d Resets", d.all(), s.ended(), resets)
			}
			if n := m.sent[kindPing]; n > 2*int(time.Minute/defaultInterval)+2 {
				t.Errorf("%d Pings in a minute", n)
			}
		})
	})
}

func TestKeyFirstConnectsLeaveNothingAtTheServer(t *testing.T) {
	keyed(t, func(t *testing.T, m *memNet) {
		var r recorder
		m.record(&r)
		a, b := start(t, m, addrA), start(t, m, addrB)
		serve(t, b, 7)
		if _, _, err := a.Connect(t.Context(), addrB, 7, make([]byte, 1000), nil); err != nil {
			t.Fatal(err)
		}
		first := r.all()[0]
		crash(t, m, b)
		b = start(t, m, addrB)
		s := serve(t, b, 7)
		r.mu.Lock()
		r.list = nil
		r.mu.Unlock()
		for range 1000 {
			b.receive(a.Addr(), first.b)
		}
		b.mu.Lock()
		if len(b.servers)+len(b.senders)+len(b.peers)+len(b.tombs)+len(b.idle) != 0 {
			t.Error("something is kept")
		}
		b.mu.Unlock()
		answers := r.all()
		if len(answers) != 1000 || s.accepted() != 0 {
			t.Errorf("%d answers, %d accepted", len(answers), s.accepted())
		}
		for _, answer := range answers {
			if len(answer.b) > len(first.b) {
				t.Fatalf("%d bytes are answered with %d", len(first.b), len(answer.b))
			}
		}
	})
}
