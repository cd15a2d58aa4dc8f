package nexus

import (
	"bytes"
	"context"
	"errors"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

func TestConnectCarriesPayloadAndReplyAndCloseTellsThePeer(t *testing.T) {
	virtual(t, func(t *testing.T, m *memNet) {
		a, b := start(t, m, addrA), start(t, m, addrB)
		s := serve(t, b, 7)
		var d downs
		c := connect(t, a, addrB, 7, &d)
		sc := s.conns[0]
		if c.ID() != sc.ID() || c.Endpoint() != 7 || sc.Endpoint() != 7 {
			t.Errorf("ids %x %x, endpoints %d %d", c.ID(), sc.ID(), c.Endpoint(), sc.Endpoint())
		}
		if c.Peer().Addr() != b.Addr() || sc.Peer().Addr() != a.Addr() ||
			c.Peer().Incarnation() != b.Incarnation() || sc.Peer().Incarnation() != a.Incarnation() {
			t.Errorf("peers %v %v", c.Peer(), sc.Peer())
		}
		if err := c.Close(t.Context()); err != nil {
			t.Error(err)
		}
		if err := c.Close(t.Context()); err != nil {
			t.Error("again:", err)
		}
		synctest.Wait()
		if errs := s.ended(); len(errs) != 1 || !errors.Is(errs[0], ErrDisconnected) {
			t.Errorf("server's end: %v", errs)
		}
		if len(d.all()) != 0 {
			t.Errorf("own close was reported: %v", d.all())
		}
		if err := sc.Close(t.Context()); err != nil {
			t.Error("of a closed one:", err)
		}
		if live(a) != nothing || live(b) != nothing {
			t.Errorf("left: %s; %s", live(a), live(b))
		}
		// The tombstone goes too.
		time.Sleep(tombstoneTime + time.Second)
		synctest.Wait()
		b.mu.Lock()
		defer b.mu.Unlock()
		if len(b.servers)+len(b.tombs) != 0 {
			t.Errorf("%d tombstones, %d connections", len(b.tombs), len(b.servers))
		}
	})
}

func TestServerClosesAndTheClientIsTold(t *testing.T) {
	virtual(t, func(t *testing.T, m *memNet) {
		a, b := start(t, m, addrA), start(t, m, addrB)
		s := serve(t, b, 7)
		var d downs
		connect(t, a, addrB, 7, &d)
		if err := s.conns[0].Close(t.Context()); err != nil {
			t.Error(err)
		}
		if errs := d.all(); len(errs) != 1 || !errors.Is(errs[0], ErrDisconnected) {
			t.Errorf("client's end: %v", errs)
		}
		if len(s.ended()) != 0 {
			t.Errorf("own close was reported: %v", s.ended())
		}
	})
}

func TestBadNetworkCostsTimeOnly(t *testing.T) {
	for seed := range uint64(8) {
		synctest.Test(t, func(t *testing.T) {
			m := newMemNet(seed / 2)
			m.keyed = seed%2 == 1
			m.loss, m.double, m.reorder = 0.3, 0.2, 0.3
			// With the default of 3 s, one in some thousand silences of a living
			// peer at this loss is long enough to pass for death.
			patient := WithHeartbeat(250*time.Millisecond, 20*time.Second)
			a, b := start(t, m, addrA, patient), start(t, m, addrB, patient)
			s := serve(t, b, 7)
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			var wg sync.WaitGroup
			for range 200 {
				wg.Go(func() {
					c, reply, err := a.Connect(ctx, addrB, 7, []byte("hi"), func(err error) { t.Error("down:", err) })
					if err != nil || string(reply) != "re: hi" {
						t.Error(string(reply), err)
						return
					}
					time.Sleep(5 * time.Second)
					// 2 s of tries at 30 % loss both ways may be too few; the
					// server finds out all the same.
					_ = c.Close(ctx)
				})
			}
			wg.Wait()
			time.Sleep(30 * time.Second)
			if n := s.accepted(); n != 200 {
				t.Errorf("%d accepted", n)
			}
			errs := s.ended()
			for _, err := range errs {
				if !errors.Is(err, ErrDisconnected) {
					t.Error(err)
				}
			}
			if len(errs) != 200 {
				t.Errorf("%d of 200 ends reported", len(errs))
			}
			if live(a) != nothing || live(b) != nothing {
				t.Errorf("left: %s; %s", live(a), live(b))
			}
		})
	}
}

func TestRefusalsReachTheClientAndAreNotReconsidered(t *testing.T) {
	virtual(t, func(t *testing.T, m *memNet) {
		a, b := start(t, m, addrA), start(t, m, addrB)
		answer := error(nil)
		calls := 0
		if _, err := b.Register(7, acceptFunc(func(context.Context, *Conn, []byte) ([]byte, error) {
			calls++
			return nil, answer
		})); err != nil {
			t.Fatal(err)
		}
		lost := 0
		m.filter = func(_, _ netip.AddrPort, p []byte) bool {
			if kind(p[5]) == kindRefuse {
				lost++
				return lost%3 == 0 // the first two are lost
			}
			return true
		}
		for _, tc := range []struct {
			answer error
			want   RefusedError
		}{
			{&RefusedError{ReasonRingExhausted, "8 slots, 0 free"}, RefusedError{ReasonRingExhausted, "8 slots, 0 free"}},
			{&RefusedError{Text: "no reason"}, RefusedError{ReasonInternal, "no reason"}},
			{errors.New("broken"), RefusedError{ReasonInternal, "broken"}},
			{&RefusedError{ReasonBadRequest, strings.Repeat("long ", 100)}, RefusedError{ReasonBadRequest, strings.Repeat("long ", 40)}},
		} {
			answer, calls = tc.answer, 0
			_, _, err := a.Connect(t.Context(), addrB, 7, nil, nil)
			var refused *RefusedError
			if !errors.As(err, &refused) || *refused != tc.want {
				t.Errorf("%v: got %v", tc.answer, err)
			}
			if calls != 1 {
				t.Errorf("%v: %d calls of Accept", tc.answer, calls)
			}
		}
		if live(b) != nothing {
			t.Error(live(b))
		}
		_, _, err := a.Connect(t.Context(), addrB, 8, nil, nil)
		var refused *RefusedError
		if !errors.As(err, &refused) || refused.Reason != ReasonNoSuchEndpoint {
			t.Error(err)
		}
	})
}

func TestReplyThatDoesNotFitIsAnError(t *testing.T) {
	virtual(t, func(t *testing.T, m *memNet) {
		a, b := start(t, m, addrA), start(t, m, addrB)
		for i, size := range []int{MaxPayload, MaxPayload + 1} {
			if _, err := b.Register(uint16(i), acceptFunc(func(context.Context, *Conn, []byte) ([]byte, error) {
				return make([]byte, size), nil
			})); err != nil {
				t.Fatal(err)
			}
		}
		_, reply, err := a.Connect(t.Context(), addrB, 0, bytes.Repeat([]byte{1}, MaxPayload), nil)
		if err != nil || len(reply) != MaxPayload {
			t.Error(len(reply), err)
		}
		var refused *RefusedError
		if _, _, err := a.Connect(t.Context(), addrB, 1, nil, nil); !errors.As(err, &refused) || refused.Reason != ReasonInternal {
			t.Error(err)
		}
		if _, _, err := a.Connect(t.Context(), addrB, 0, make([]byte, MaxPayload+1), nil); err == nil {
			t.Error("payload too large and no error")
		}
	})
}

func TestConnectGivesUpInTime(t *testing.T) {
	virtual(t, func(t *testing.T, m *memNet) {
		a := start(t, m, addrA)
		begin := time.Now()
		_, _, err := a.Connect(t.Context(), addrB, 7, nil, nil)
		var timeout *TimeoutError
		if !errors.As(err, &timeout) || timeout.URI != addrB || !strings.Contains(err.Error(), "no answer from "+addrB) {
			t.Error(err)
		}
		if d := time.Since(begin); d != connectTimeout {
			t.Errorf("after %v", d)
		}
		// 50 ms, 100, 200, 400, 800, then every second: 8 in 5 s.
		if n := m.count(kindConnect); n < 7 || n > 9 {
			t.Errorf("%d Connects sent", n)
		}

		ctx, cancel := context.WithTimeout(t.Context(), 70*time.Millisecond)
		defer cancel()
		begin = time.Now()
		if _, _, err := a.Connect(ctx, addrB, 7, nil, nil); !errors.As(err, &timeout) || !errors.Is(err, context.DeadlineExceeded) {
			t.Error(err)
		}
		if d := time.Since(begin); d != 70*time.Millisecond {
			t.Errorf("after %v", d)
		}

		ctx, cancel = context.WithCancel(t.Context())
		time.AfterFunc(time.Second, cancel)
		if _, _, err := a.Connect(ctx, addrB, 7, nil, nil); !errors.Is(err, context.Canceled) || errors.As(err, &timeout) {
			t.Error(err)
		}
		if live(a) != nothing {
			t.Error(live(a))
		}
	})
}

func TestSlowAcceptIsAskedOnce(t *testing.T) {
	virtual(t, func(t *testing.T, m *memNet) {
		a, b := start(t, m, addrA), start(t, m, addrB)
		var calls atomic.Int32
		if _, err := b.Register(7, acceptFunc(func(context.Context, *Conn, []byte) ([]byte, error) {
			calls.Add(1)
			time.Sleep(2 * time.Second)
			return []byte("slow"), nil
		})); err != nil {
			t.Fatal(err)
		}
		_, reply, err := a.Connect(t.Context(), addrB, 7, nil, nil)
		if err != nil || string(reply) != "slow" || calls.Load() != 1 {
			t.Error(string(reply), err, calls.Load())
		}
	})
}

func TestAcceptEndsWhenTheClientGivesUp(t *testing.T) {
	virtual(t, func(t *testing.T, m *memNet) {
		a, b := start(t, m, addrA), start(t, m, addrB)
		var ended atomic.Bool
		var d downs
		if _, err := b.Register(7, acceptFunc(func(ctx context.Context, c *Conn, _ []byte) ([]byte, error) {
			c.OnDown(d.call)
			<-ctx.Done()
			ended.Store(true)
			return nil, nil // accepted too late
		})); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, _, err := a.Connect(ctx, addrB, 7, nil, nil); err == nil {
			t.Error("connected")
		}
		time.Sleep(time.Millisecond)
		synctest.Wait()
		if errs := d.all(); !ended.Load() || len(errs) != 1 || !errors.Is(errs[0], ErrDisconnected) {
			t.Errorf("ended: %v, %v", ended.Load(), errs)
		}
		if live(b) != nothing {
			t.Error(live(b))
		}
	})
}

func TestAcceptsAreBounded(t *testing.T) {
	virtual(t, func(t *testing.T, m *memNet) {
		a, b := start(t, m, addrA), start(t, m, addrB)
		var now, most atomic.Int32
		if _, err := b.Register(7, acceptFunc(func(context.Context, *Conn, []byte) ([]byte, error) {
			most.Store(max(most.Load(), now.Add(1)))
			time.Sleep(100 * time.Millisecond)
			now.Add(-1)
			return nil, nil
		})); err != nil {
			t.Fatal(err)
		}
		var wg sync.WaitGroup
		for range 500 {
			wg.Go(func() {
				if _, _, err := a.Connect(t.Context(), addrB, 7, nil, nil); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		if n := most.Load(); n != maxAccepting {
			t.Errorf("%d at a time", n)
		}
		if b.Stats().Busy == 0 {
			t.Error("nothing was dropped; the test shows nothing")
		}
	})
}

func TestLateDuplicateOfAConnectOpensNothing(t *testing.T) {
	virtual(t, func(t *testing.T, m *memNet) {
		a, b := start(t, m, addrA), start(t, m, addrB)
		s := serve(t, b, 7)
		var old []byte
		m.filter = func(_, _ netip.AddrPort, p []byte) bool {
			if kind(p[5]) == kindConnect {
				old = append([]byte(nil), p...)
			}
			return true
		}
		c := connect(t, a, addrB, 7, nil)
		for range 3 {
			b.receive(a.Addr(), old)
		}
		if err := c.Close(t.Context()); err != nil {
			t.Fatal(err)
		}
		for range 3 {
			b.receive(a.Addr(), old)
		}
		synctest.Wait()
		if s.accepted() != 1 || live(b) != nothing || live(a) != nothing {
			t.Errorf("%d accepted; %s; %s", s.accepted(), live(a), live(b))
		}
		// With a key, what was had before does not even get that far.
		if s := b.Stats(); s.Duplicates+s.Replayed != 6 || (s.Replayed == 6) != m.keyed {
			t.Errorf("%d duplicates, %d replayed", s.Duplicates, s.Replayed)
		}
	})
}

func TestOnDownAfterTheEndIsCalledOnce(t *testing.T) {
	virtual(t, func(t *testing.T, m *memNet) {
		a, b := start(t, m, addrA), start(t, m, addrB)
		s := serve(t, b, 7)
		c, _, err := a.Connect(t.Context(), addrB, 7, nil, nil)
		if err != nil {
			t.Fatal(err)
		}
		if err := s.conns[0].Close(t.Context()); err != nil {
			t.Fatal(err)
		}
		var d downs
		c.OnDown(d.call)
		c.OnDown(d.call)
		synctest.Wait()
		if errs := d.all(); len(errs) != 1 || !errors.Is(errs[0], ErrDisconnected) {
			t.Error(errs)
		}
	})
}

func TestConnCloseIsBoundedWhenThePeerIsSilent(t *testing.T) {
	virtual(t, func(t *testing.T, m *memNet) {
		a, b := start(t, m, addrA), start(t, m, addrB)
		s := serve(t, b, 7)
		c := connect(t, a, addrB, 7, nil)
		m.set(func() {
			m.filter = func(_, _ netip.AddrPort, p []byte) bool { return kind(p[5]) != kindDisconnect }
		})
		begin := time.Now()
		var timeout *TimeoutError
		if err := c.Close(t.Context()); !errors.As(err, &timeout) {
			t.Error(err)
		}
		if d := time.Since(begin); d != disconnectTimeout {
			t.Errorf("after %v", d)
		}
		// The server finds out with its next Ping.
		time.Sleep(2 * defaultInterval)
		if errs := s.ended(); len(errs) != 1 || !errors.Is(errs[0], ErrDisconnected) {
			t.Error(errs)
		}
		if live(a) != nothing || live(b) != nothing {
			t.Errorf("left: %s; %s", live(a), live(b))
		}
	})
}

func TestBothClosingAtOnceNeedsNoAcknowledgement(t *testing.T) {
	virtual(t, func(t *testing.T, m *memNet) {
		a, b := start(t, m, addrA), start(t, m, addrB)
		s := serve(t, b, 7)
		var d downs
		c := connect(t, a, addrB, 7, &d)
		m.set(func() {
			m.filter = func(_, _ netip.AddrPort, p []byte) bool { return kind(p[5]) != kindDisconnectAck }
		})
		begin := time.Now()
		var wg sync.WaitGroup
		for _, c := range []*Conn{c, s.conns[0]} {
			wg.Go(func() {
				if err := c.Close(t.Context()); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		if took := time.Since(begin); took > 10*time.Millisecond || len(d.all())+len(s.ended()) != 0 {
			t.Errorf("took %v, %v, %v", took, d.all(), s.ended())
		}
	})
}

func TestConnectionToOneself(t *testing.T) {
	virtual(t, func(t *testing.T, m *memNet) {
		a := start(t, m, addrA)
		s := serve(t, a, 7)
		var d downs
		c1 := connect(t, a, addrA, 7, &d)
		connect(t, a, addrA, 7, &d)
		time.Sleep(20 * time.Second) // heartbeats keep it
		if len(d.all())+len(s.ended()) != 0 || a.Stats().Conns != 4 {
			t.Errorf("%v %v %s", d.all(), s.ended(), live(a))
		}
		if err := c1.Close(t.Context()); err != nil {
			t.Error(err)
		}
		if errs := s.ended(); len(errs) != 1 || !errors.Is(errs[0], ErrDisconnected) {
			t.Error(errs)
		}
		if a.Stats().Conns != 2 {
			t.Error(live(a))
		}
	})
}
