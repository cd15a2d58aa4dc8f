package nexus

import (
	"context"
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
	keyed(t, func(t *testing.T, m *memNet) {
		var r recorder
		m.record(&r)
		a, b := start(t, m, addrA), start(t, m, addrB)
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
		if len(d.all())+len(s.ended()) != 0 || resets < 100 {
			t.Errorf("%v %v, %d Resets", d.all(), s.ended(), resets)
		}
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

func TestCookieIsForOneConnectionAtOneAddressForAWhile(t *testing.T) {
	k := testKey(t, testSecret, 1)
	from := netip.MustParseAddrPort(addrA)
	m := &message{from: 5, id: 6}
	m.cookie = k.cookie(time.Minute, from, m)
	for name, tc := range map[string]struct {
		now  time.Duration
		from string
		m    message
		want bool
	}{
		"at once":             {time.Minute, addrA, *m, true},
		"at the end":          {time.Minute + cookieTime, addrA, *m, true},
		"too late":            {time.Minute + cookieTime + 1, addrA, *m, false},
		"before it was made":  {time.Minute - 1, addrA, *m, false},
		"other address":       {time.Minute, addrB, *m, false},
		"other port":          {time.Minute, "10.0.0.1:1001", *m, false},
		"other incarnation":   {time.Minute, addrA, message{from: 7, id: 6, cookie: m.cookie}, false},
		"other connection":    {time.Minute, addrA, message{from: 5, id: 7, cookie: m.cookie}, false},
		"other time":          {time.Minute, addrA, message{from: 5, id: 6, cookie: with(m.cookie, 7, m.cookie[7]^1)}, false},
		"other MAC":           {time.Minute, addrA, message{from: 5, id: 6, cookie: with(m.cookie, 31, m.cookie[31]^1)}, false},
		"no cookie":           {time.Minute, addrA, message{from: 5, id: 6, cookie: make([]byte, cookieBytes)}, false},
		"time beyond reason":  {time.Minute, addrA, message{from: 5, id: 6, cookie: with(m.cookie, 0, 0xff)}, false},
		"no cookie, at start": {0, addrA, message{from: 5, id: 6, cookie: make([]byte, cookieBytes)}, false},
	} {
		if got := k.validCookie(tc.now, netip.MustParseAddrPort(tc.from), &tc.m); got != tc.want {
			t.Errorf("%s: valid is %v", name, got)
		}
	}
	if other := testKey(t, testSecret, 1); other.validCookie(time.Minute, from, m) {
		t.Error("another process of the same key takes the cookie")
	}
}

func TestOnlyTheFirstConnectionIsChallenged(t *testing.T) {
	keyed(t, func(t *testing.T, m *memNet) {
		a, b := start(t, m, addrA), start(t, m, addrB)
		serve(t, a, 7)
		serve(t, b, 7)
		for range 10 {
			connect(t, a, addrB, 7, nil)
			connect(t, b, addrA, 7, nil)
		}
		if n := a.Stats().Challenges + b.Stats().Challenges; n != 1 || m.count(kindConnect) != 21 {
			t.Errorf("%d Challenges, %d Connects", n, m.count(kindConnect))
		}
		// The server that the client believes to know is another one now.
		crash(t, m, b)
		b = start(t, m, addrB)
		serve(t, b, 7)
		begin := time.Now()
		connect(t, a, addrB, 7, nil)
		if took := time.Since(begin); took > 2*time.Millisecond {
			t.Errorf("connecting to a restarted server took %v", took)
		}
	})
}

func TestSendersAreBoundedAndForgotten(t *testing.T) {
	keyed(t, func(t *testing.T, m *memNet) {
		b := start(t, m, addrB)
		s := serve(t, b, 7)
		from := netip.MustParseAddrPort(addrA)
		// first opens a connection for a new process, and ends it.
		first := func(i uint64) {
			k := testKey(t, testSecret, i)
			c := message{version: version, kind: kindConnect, from: i, to: b.incarnation, id: i, endpoint: 8}
			c.payload = b.key.cookie(b.age(), from, &c)
			b.receive(from, k.seal(c.encode()))
		}
		for i := range uint64(maxIdle + 10) {
			first(i + 1)
		}
		b.mu.Lock()
		if len(b.senders) != maxIdle || len(b.idle) != maxIdle || b.stats.Busy != 10 {
			t.Errorf("%d senders, %d idle, %d turned away", len(b.senders), len(b.idle), b.stats.Busy)
		}
		b.mu.Unlock()
		time.Sleep(idleTime + time.Second)
		b.mu.Lock()
		if len(b.senders)+len(b.idle) != 0 {
			t.Errorf("%d senders, %d idle", len(b.senders), len(b.idle))
		}
		b.mu.Unlock()
		// One with a connection stays.
		a := start(t, m, addrA)
		connect(t, a, addrB, 7, nil)
		time.Sleep(3 * idleTime)
		b.mu.Lock()
		if len(b.senders) != 1 || len(b.idle) != 0 || s.accepted() != 1 {
			t.Errorf("%d senders, %d idle, %d accepted", len(b.senders), len(b.idle), s.accepted())
		}
		b.mu.Unlock()
	})
}

func TestKeyMismatchIsSaid(t *testing.T) {
	other := WithKey([]byte("this is another secret"))
	key := WithKey(testSecret)
	none := func(*Nexus) {}
	for name, tc := range map[string]struct {
		client, server Option
		after          time.Duration
		want           string
	}{
		"server has a key":     {none, key, 0, "the process there has a key, and we have none"},
		"client has a key":     {key, none, doubtfulTimeout, "another key or none"},
		"two keys":             {key, other, doubtfulTimeout, "another key or none"},
		"two keys, impatient":  {key, other, time.Second, "another key or none"},
		"other version, keyed": {key, nil, doubtfulTimeout, "version 9, we 1"},
	} {
		t.Run(name, func(t *testing.T) {
			unkeyed(t, func(t *testing.T, m *memNet) {
				a := start(t, m, addrA, tc.client)
				var s *server
				if tc.server != nil {
					s = serve(t, start(t, m, addrB, tc.server), 7)
				} else {
					old := m.listen(addrB)
					defer old.Close()
					go func() {
						buf := make([]byte, 2000)
						for {
							n, from, err := old.ReadFromUDPAddrPort(buf)
							if err != nil {
								return
							}
							msg, _ := decode(buf[:n])
							_, _ = old.WriteToUDPAddrPort((&message{version: 9, kind: kindRefuse, acceptor: true, from: 5, to: msg.from,
								id: msg.id, reason: ReasonVersion}).encode(), from)
						}
					}()
				}
				var r recorder
				m.record(&r)
				ctx := t.Context()
				if strings.Contains(name, "impatient") {
					var cancel context.CancelFunc
					ctx, cancel = context.WithTimeout(ctx, tc.after)
					defer cancel()
				}
				begin := time.Now()
				_, _, err := a.Connect(ctx, addrB, 7, nil, nil)
				var refused *RefusedError
				if !errors.As(err, &refused) || !strings.Contains(err.Error(), tc.want) {
					t.Fatal(err)
				}
				want := ReasonKey
				if tc.server == nil {
					want = ReasonVersion
				}
				if took := time.Since(begin) - tc.after; refused.Reason != want || took < -time.Millisecond || took > time.Millisecond {
					t.Errorf("reason %v after %v", refused.Reason, took+tc.after)
				}
				for i, rec := range r.all() {
					if tc.server != nil && i > 0 && rec.from == netip.MustParseAddrPort(addrB) && len(rec.b) > len(r.all()[0].b) {
						t.Errorf("answered with %d bytes to %d", len(rec.b), len(r.all()[0].b))
					}
				}
				if s != nil && s.accepted() != 0 || live(a) != nothing {
					t.Errorf("accepted; %s", live(a))
				}
			})
		})
	}
}

// TestForgedRefusalsDoNotEndAConnectWithAKey has every Connect refused in clear,
// before the server has it.
func TestForgedRefusalsDoNotEndAConnectWithAKey(t *testing.T) {
	keyed(t, func(t *testing.T, m *memNet) {
		a := start(t, m, addrA)
		m.set(func() {
			m.filter = func(from, to netip.AddrPort, b []byte) bool {
				if kind(b[5]) != kindConnect {
					return true
				}
				connect, _ := decode(b)
				for _, r := range []Reason{ReasonKey, ReasonShuttingDown, ReasonVersion} {
					for _, v := range []uint8{version, 9} {
						m.inject(to, from, (&message{version: v, kind: kindRefuse, acceptor: true, from: 5, to: connect.from, id: connect.id,
							reason: r}).encode())
					}
				}
				return true
			}
		})
		time.AfterFunc(doubtfulTimeout-time.Second, func() { // it is not there at first
			serve(t, start(t, m, addrB), 7)
		})
		connect(t, a, addrB, 7, nil)
		m.set(func() { m.loss = 0.1 })
		for range 20 {
			connect(t, a, addrB, 7, nil)
		}
	})
}

func TestKeyGivesUpWithoutATrace(t *testing.T) {
	keyed(t, func(t *testing.T, m *memNet) {
		a, b := start(t, m, addrA), start(t, m, addrB)
		s := serve(t, b, 7)
		// The answers to the Connects with cookies are lost, and so is the word
		// that the client has given up, at first.
		m.set(func() {
			m.filter = func(_, _ netip.AddrPort, p []byte) bool { return kind(p[5]) != kindAccept }
		})
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		var timeout *TimeoutError
		if _, _, err := a.Connect(ctx, addrB, 7, nil, nil); !errors.As(err, &timeout) {
			t.Fatal(err)
		}
		time.Sleep(time.Millisecond)
		if errs := s.ended(); s.accepted() != 1 || len(errs) != 1 || !errors.Is(errs[0], ErrDisconnected) || live(a) != nothing || live(b) != nothing {
			t.Errorf("%d accepted, ended %v, %s, %s", s.accepted(), errs, live(a), live(b))
		}
	})
}

func TestLocalAddressesAreKnown(t *testing.T) {
	for _, tc := range []struct {
		listen, addr string
		want         bool
	}{
		{"10.0.0.1:5", "10.0.0.1:5", true},
		{"10.0.0.1:5", "10.0.0.1:6", false},
		{"10.0.0.1:5", "127.0.0.1:5", false},
		{"[::]:5", "127.0.0.1:5", true},
		{"[::]:5", "[::1]:5", true},
		{"[::]:5", "127.0.0.1:6", false},
		{"0.0.0.0:5", "192.0.2.77:5", false},
		{"[fe80::1%eth0]:5", "[fe80::1]:5", true},
	} {
		n := &Nexus{addr: netip.MustParseAddrPort(tc.listen)}
		if got := n.isLocal(netip.MustParseAddrPort(tc.addr)); got != tc.want {
			t.Errorf("%s at %s: %v", tc.addr, tc.listen, got)
		}
	}
}
