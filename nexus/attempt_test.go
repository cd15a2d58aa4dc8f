package nexus

import (
	"context"
	"encoding/binary"
	"errors"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"
)

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

func TestOldChallengesAreNotAnswered(t *testing.T) {
	keyed(t, func(t *testing.T, m *memNet) {
		a, b := start(t, m, addrA), start(t, m, addrB)
		// The Connects that answer Challenges are lost, so the client does not
		// know the server yet.
		var challenges []recorded
		all := func() (list []recorded) {
			m.set(func() { list = append(list, challenges...) })
			return list
		}
		m.set(func() {
			m.filter = func(from, to netip.AddrPort, p []byte) bool {
				if kind(p[5]) == kindChallenge {
					challenges = append(challenges, recorded{from, to, append([]byte(nil), p...)})
				}
				return kind(p[5]) != kindConnect || binary.BigEndian.Uint64(p[16:]) == 0
			}
		})
		var wg sync.WaitGroup
		ctx, cancel := context.WithCancel(t.Context())
		wg.Go(func() { _, _, _ = a.Connect(ctx, addrB, 7, nil, nil) })
		time.Sleep(10 * time.Millisecond)
		if n := len(all()); n != 1 {
			t.Fatalf("%d Challenges", n)
		}
		// The client has answered; a first Connect of the same client again, so
		// that there is a newer one.
		first := message{version: version, kind: kindConnect, from: a.incarnation, endpoint: 7, payload: make([]byte, cookieBytes)}
		a.mu.Lock()
		for id := range a.clients {
			first.id = id
		}
		a.mu.Unlock()
		m.set(func() { m.inject(a.Addr(), b.Addr(), a.key.seal(first.encode())) })
		time.Sleep(time.Millisecond)
		before := m.count(kindConnect)
		for range 10 {
			m.replay(all())
		}
		if n := m.count(kindConnect) - before; len(all()) != 2 || before != 3 || n != 0 {
			t.Errorf("%d Challenges, %d Connects, %d for replays", len(all()), before, n)
		}
		cancel()
		wg.Wait()
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
		slow := start(t, m, "10.0.0.3:3000")
		if _, err := slow.Register(7, acceptFunc(func(context.Context, *Conn, []byte) ([]byte, error) {
			time.Sleep(2 * doubtfulTimeout)
			return []byte("re: hi"), nil
		})); err != nil {
			t.Fatal(err)
		}
		connect(t, a, slow.URI(), 7, nil)
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
