package nexus

import (
	"context"
	"errors"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

func TestDeadPeerIsNoticedInTime(t *testing.T) {
	virtual(t, func(t *testing.T, m *memNet) {
		a, b := start(t, m, addrA), start(t, m, addrB)
		s := serve(t, b, 7)
		var d downs
		for range 3 {
			connect(t, a, addrB, 7, &d)
		}
		time.Sleep(time.Minute)
		synctest.Wait()
		if len(d.all())+len(s.ended()) != 0 {
			t.Fatalf("down without cause: %v %v", d.all(), s.ended())
		}
		m.set(func() { m.loss = 1 })
		cut := time.Now()
		asked := m.count(kindPing)
		time.Sleep(defaultDeadline + 2*defaultInterval)
		// Neither side gave up after a Ping or two that may have been lost.
		if n := m.count(kindPing) - asked; n < 2*urgentPings/2 || n > 2*urgentPings {
			t.Errorf("%d Pings to silent peers", n)
		}
		for name, errs := range map[string][]error{"client": d.all(), "server": s.ended()} {
			if len(errs) != 3 || !errors.Is(errs[0], ErrPeerDead) {
				t.Errorf("%s: %v", name, errs)
			}
		}
		for _, when := range d.when {
			if took := when.Sub(cut); took < defaultDeadline-defaultInterval || took > defaultDeadline+defaultInterval {
				t.Errorf("noticed after %v", took)
			}
		}
		if live(a) != nothing || live(b) != nothing {
			t.Errorf("left: %s; %s", live(a), live(b))
		}
		// Nobody is pinged any more.
		before := m.count(kindPing)
		time.Sleep(time.Minute)
		if n := m.count(kindPing); n != before {
			t.Errorf("%d Pings to nobody", n-before)
		}
	})
}

func TestLossyNetworkDoesNotKillPeers(t *testing.T) {
	virtual(t, func(t *testing.T, m *memNet) {
		a, b := start(t, m, addrA), start(t, m, addrB)
		s := serve(t, b, 7)
		var d downs
		connect(t, a, addrB, 7, &d)
		m.set(func() { m.loss, m.double, m.reorder = 0.3, 0.2, 0.3 })
		time.Sleep(5 * time.Minute)
		if len(d.all())+len(s.ended()) != 0 {
			t.Errorf("down: %v %v", d.all(), s.ended())
		}
	})
}

// A peer that answers slowly but surely is pinged often, and lives; the others are
// pinged as ever.
func TestUrgentPingsAreForTheSilent(t *testing.T) {
	virtual(t, func(t *testing.T, m *memNet) {
		third := "10.0.0.3:3000"
		a, b, c := start(t, m, addrA), start(t, m, addrB), start(t, m, third)
		serve(t, b, 7)
		serve(t, c, 7)
		var d downs
		connect(t, a, addrB, 7, &d)
		connect(t, a, third, 7, &d)
		lost := map[netip.AddrPort]int{}
		m.set(func() {
			m.filter = func(from, to netip.AddrPort, p []byte) bool {
				if kind(p[5]) != kindPing || from != a.Addr() {
					return true
				}
				lost[to]++
				return to != b.Addr() || lost[to]%10 == 0
			}
		})
		time.Sleep(time.Minute)
		m.set(func() {
			if len(d.all()) != 0 {
				t.Error(d.all())
			}
			normal := int(time.Minute / defaultInterval)
			if n := lost[b.Addr()]; n < 2*normal || n > normal*int(defaultInterval/a.urgent) {
				t.Errorf("%d Pings to the silent", n)
			}
			if n := lost[c.Addr()]; n > normal+1 {
				t.Errorf("%d Pings to the other", n)
			}
		})
	})
}

func TestTouchReplacesPingsAndItsEndIsNoticed(t *testing.T) {
	virtual(t, func(t *testing.T, m *memNet) {
		a, b := start(t, m, addrA), start(t, m, addrB)
		s := serve(t, b, 7)
		var d downs
		c := connect(t, a, addrB, 7, &d)
		stop := time.Now().Add(time.Minute)
		// Pings are lost: only the data path speaks for the peers.
		m.set(func() {
			m.filter = func(_, _ netip.AddrPort, p []byte) bool { return kind(p[5]) != kindPing }
		})
		for time.Now().Before(stop) {
			c.Peer().Touch()
			s.conns[0].Peer().Touch()
			time.Sleep(defaultInterval / 2)
		}
		if len(d.all())+len(s.ended()) != 0 {
			t.Fatalf("down while data flows: %v %v", d.all(), s.ended())
		}
		const intervals = int(time.Minute / defaultInterval) // on each side
		if n := m.count(kindPing); n < 2*intervals/quietTicks-2 || n > 2*intervals/quietTicks+2 {
			t.Errorf("%d Pings while data flows", n)
		}
		time.Sleep(defaultDeadline + 2*defaultInterval)
		if errs := d.all(); len(errs) != 1 || !errors.Is(errs[0], ErrPeerDead) {
			t.Errorf("silence not noticed: %v", errs)
		}
	})
}

func TestTouchDoesNotAllocate(t *testing.T) {
	p := new(Peer)
	if n := testing.AllocsPerRun(100, p.Touch); n != 0 || !p.touched.Load() {
		t.Errorf("%v allocations", n)
	}
}

func BenchmarkTouch(b *testing.B) {
	p := new(Peer)
	for b.Loop() {
		p.Touch()
	}
}

// restartNoticed is how long it takes to believe a Reset.
func (m *memNet) restartNoticed() time.Duration {
	if m.keyed {
		return (doubtIntervals + 1) * defaultInterval
	}
	return 0
}

// crash ends a Nexus at once, without a word to its peers.
func crash(t *testing.T, m *memNet, n *Nexus) {
	t.Helper()
	n.conn.(*memConn).kill()
	go func() {
		if err := n.Close(); err != nil {
			t.Error(err)
		}
	}()
}

func TestRestartedServerIsNoticedAtTheNextHeartbeat(t *testing.T) {
	virtual(t, func(t *testing.T, m *memNet) {
		a, b := start(t, m, addrA), start(t, m, addrB)
		serve(t, b, 7)
		var d downs
		connect(t, a, addrB, 7, &d)
		crash(t, m, b)
		begin := time.Now()
		b = start(t, m, addrB)
		serve(t, b, 7)
		time.Sleep(2*defaultInterval + m.restartNoticed())
		if errs := d.all(); len(errs) != 1 || !errors.Is(errs[0], ErrPeerDead) || !strings.Contains(errs[0].Error(), "restarted") {
			t.Fatal(errs)
		}
		if took := d.when[0].Sub(begin); took > defaultInterval+m.restartNoticed()+time.Millisecond {
			t.Errorf("after %v", took)
		}
		connect(t, a, addrB, 7, nil)
	})
}

func TestRestartedClientIsNoticedWhenItConnects(t *testing.T) {
	virtual(t, func(t *testing.T, m *memNet) {
		a, b := start(t, m, addrA), start(t, m, addrB)
		s := serve(t, b, 7)
		connect(t, a, addrB, 7, nil)
		crash(t, m, a)
		if n := len(s.ended()); n != 0 {
			t.Fatalf("%d ends before the restart", n)
		}
		a = start(t, m, addrA)
		var d downs
		connect(t, a, addrB, 7, &d)
		time.Sleep(m.restartNoticed() + time.Millisecond)
		if errs := s.ended(); len(errs) != 1 || !errors.Is(errs[0], ErrPeerDead) || !strings.Contains(errs[0].Error(), "restarted") {
			t.Error(errs)
		}
		time.Sleep(time.Minute)
		if len(d.all()) != 0 || b.Stats().Conns != 1 {
			t.Errorf("the new connection: %v, %s", d.all(), live(b))
		}
	})
}

func TestManyConnectionsShareOnePeer(t *testing.T) {
	virtual(t, func(t *testing.T, m *memNet) {
		const conns = 3000
		a, b := start(t, m, addrA), start(t, m, addrB)
		s := serve(t, b, 7)
		var d downs
		var wg sync.WaitGroup
		for range conns {
			wg.Go(func() {
				if _, _, err := a.Connect(t.Context(), addrB, 7, nil, d.call); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		if a.Stats().Peers != 1 || b.Stats().Peers != 1 || a.Stats().Conns != conns {
			t.Fatalf("%s; %s", live(a), live(b))
		}
		before := m.count(kindPing)
		time.Sleep(10 * time.Second)
		if n := m.count(kindPing) - before; n != 2*int(10*time.Second/defaultInterval) {
			t.Errorf("%d Pings in 10 s", n)
		}
		if len(d.all())+len(s.ended()) != 0 {
			t.Fatal("down without cause")
		}
		// The halves of all but a few have vanished at the server: the Pings, a
		// few names each, find them all.
		b.mu.Lock()
		for i, c := range s.conns {
			if i >= 10 {
				b.bury(c)
			}
		}
		b.mu.Unlock()
		time.Sleep(defaultInterval * (conns/maxPingIDs + 2))
		if n := len(d.all()); n != conns-10 {
			t.Errorf("%d of %d lost connections noticed", n, conns-10)
		}
	})
}

func TestBothWaysAtOnceIsOnePeer(t *testing.T) {
	virtual(t, func(t *testing.T, m *memNet) {
		a, b := start(t, m, addrA), start(t, m, addrB)
		sa, sb := serve(t, a, 7), serve(t, b, 7)
		var d downs
		var wg sync.WaitGroup
		for range 20 {
			wg.Go(func() { connect(t, a, addrB, 7, &d) })
			wg.Go(func() { connect(t, b, addrA, 7, &d) })
		}
		wg.Wait()
		if a.Stats().Peers != 1 || b.Stats().Peers != 1 || a.Stats().Conns != 40 || b.Stats().Conns != 40 {
			t.Errorf("%s; %s", live(a), live(b))
		}
		time.Sleep(10 * time.Second)
		if len(d.all())+len(sa.ended())+len(sb.ended()) != 0 {
			t.Error("down without cause")
		}
		// Pings name the connections of both directions.
		b.mu.Lock()
		b.bury(sb.conns[0])
		for _, c := range b.clients {
			b.bury(c)
			break
		}
		b.mu.Unlock()
		time.Sleep(3 * defaultInterval)
		if len(d.all()) != 1 || len(sa.ended()) != 1 {
			t.Errorf("lost halves noticed: client's %v, server's %v", d.all(), sa.ended())
		}
	})
}

func TestServerLearnsOfAClientThatGaveUpUnheard(t *testing.T) {
	virtual(t, func(t *testing.T, m *memNet) {
		a, b := start(t, m, addrA), start(t, m, addrB)
		s := serve(t, b, 7)
		m.filter = func(_, _ netip.AddrPort, p []byte) bool {
			return kind(p[5]) != kindAccept && kind(p[5]) != kindDisconnect
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		var timeout *TimeoutError
		if _, _, err := a.Connect(ctx, addrB, 7, nil, nil); !errors.As(err, &timeout) {
			t.Fatal(err)
		}
		time.Sleep(2 * defaultInterval)
		if errs := s.ended(); s.accepted() != 1 || len(errs) != 1 || !errors.Is(errs[0], ErrDisconnected) {
			t.Errorf("%d accepted, ended %v", s.accepted(), errs)
		}
	})
}

func TestOwnStallIsNotHeldAgainstPeers(t *testing.T) {
	virtual(t, func(t *testing.T, m *memNet) {
		a, b := start(t, m, addrA), start(t, m, addrB)
		serve(t, b, 7)
		var d downs
		connect(t, a, addrB, 7, &d)
		var out actions
		a.mu.Lock()
		for i := range 10 {
			a.tick(time.Now().Add(time.Duration(i+1)*10*defaultDeadline), &out) // each came that late
		}
		a.mu.Unlock()
		out.run(a)
		if len(d.all()) != 0 {
			t.Error(d.all())
		}
	})
}

// TestForgeriesEndNothing sends what a stranger who knows every address and
// incarnation, but has seen no connection id and no Ping, can send.
func TestForgeriesEndNothing(t *testing.T) {
	virtual(t, func(t *testing.T, m *memNet) {
		a, b := start(t, m, addrA), start(t, m, addrB)
		s := serve(t, b, 7)
		var d downs
		connect(t, a, addrB, 7, &d)
		time.Sleep(time.Second)
		ids := []byte{0, 0, 0, 0, 0, 0, 0, 42}
		for _, k := range []kind{kindConnect, kindAccept, kindRefuse, kindDisconnect, kindDisconnectAck, kindPing, kindPong, kindReset} {
			for _, from := range []uint64{b.incarnation, 99} {
				for _, to := range []uint64{a.incarnation, 0, 98} {
					for _, id := range []uint64{0, 42} {
						for _, acceptor := range []bool{false, true} {
							msg := message{version: version, kind: k, acceptor: acceptor, from: from, to: to, id: id}
							switch k {
							case kindRefuse:
								msg.reason = ReasonShuttingDown
							case kindPing, kindPong:
								msg.payload = ids
							}
							a.receive(b.Addr(), msg.encode())
						}
					}
				}
			}
		}
		time.Sleep(10 * time.Second)
		if len(d.all())+len(s.ended()) != 0 || a.Stats().Conns != 1 || b.Stats().Conns != 1 {
			t.Errorf("%v %v; %s; %s", d.all(), s.ended(), live(a), live(b))
		}
	})
}

func TestForgedPongsDoNotKeepADeadPeerAlive(t *testing.T) {
	virtual(t, func(t *testing.T, m *memNet) {
		a, b := start(t, m, addrA), start(t, m, addrB)
		serve(t, b, 7)
		var d downs
		connect(t, a, addrB, 7, &d)
		m.set(func() { m.loss = 1 })
		for i := range 40 {
			time.Sleep(100 * time.Millisecond)
			for _, k := range []kind{kindPong, kindPing} {
				a.receive(b.Addr(), (&message{version: version, kind: k, from: b.incarnation, to: a.incarnation, id: uint64(i)}).encode())
			}
		}
		if errs := d.all(); len(errs) != 1 || !errors.Is(errs[0], ErrPeerDead) {
			t.Error(errs)
		}
	})
}

func TestForgedConnectsCauseFewPings(t *testing.T) {
	unkeyed(t, func(t *testing.T, m *memNet) {
		a, b := start(t, m, addrA), start(t, m, addrB)
		s := serve(t, b, 7)
		var d downs
		connect(t, a, addrB, 7, &d)
		m.set(func() { // so that they stay for the while
			m.filter = func(_, _ netip.AddrPort, p []byte) bool { return kind(p[5]) != kindReset }
		})
		for i := range uint64(100) {
			b.receive(a.Addr(), (&message{version: version, kind: kindConnect, from: i + 1, id: i + 1, endpoint: 7}).encode())
			time.Sleep(time.Millisecond)
		}
		if n := m.count(kindPing); n > 100*(maxChallenges+1) {
			t.Errorf("%d Pings", n)
		}
		m.set(func() { m.filter = nil })
		// The real process says that it is none of these; they go, it stays.
		time.Sleep(2 * defaultInterval)
		if len(d.all()) != 0 || b.Stats().Conns != 1 || len(s.ended()) != 100 {
			t.Errorf("%v, %d ended, %s", d.all(), len(s.ended()), live(b))
		}
	})
}
