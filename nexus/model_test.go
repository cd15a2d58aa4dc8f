package nexus

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// fate is what becomes of one message: after which times its copies arrive.
type fate struct {
	name   string
	copies []time.Duration
}

const usual = 100 * time.Microsecond

var fates = []fate{
	{"lost", nil},
	{"doubled", []time.Duration{usual, usual}},
	{"doubled later", []time.Duration{usual, 120 * time.Millisecond}},
	{"overtaken", []time.Duration{3 * usual}},
	{"late", []time.Duration{120 * time.Millisecond}}, // behind what is sent again
	{"very late", []time.Duration{10 * time.Second}},  // behind everything
	{"doubled very late", []time.Duration{usual, 10 * time.Second}},
}

// life is a connection from its beginning to its end. It returns how often the
// two ends must be told of the end, and by which error.
type life struct {
	name  string
	lives func(t *testing.T, m *memNet, a, b *Nexus, s *server, d *downs) (client, server error)
}

var lives = []life{
	{"client closes", func(t *testing.T, m *memNet, a, b *Nexus, s *server, d *downs) (client, server error) {
		c := connect(t, a, addrB, 7, d)
		if err := c.Close(t.Context()); err != nil {
			t.Error(err)
		}
		return nil, ErrDisconnected
	}},
	{"server closes", func(t *testing.T, m *memNet, a, b *Nexus, s *server, d *downs) (client, server error) {
		connect(t, a, addrB, 7, d)
		if err := s.conns[0].Close(t.Context()); err != nil {
			t.Error(err)
		}
		return ErrDisconnected, nil
	}},
	{"both close", func(t *testing.T, m *memNet, a, b *Nexus, s *server, d *downs) (client, server error) {
		c := connect(t, a, addrB, 7, d)
		var wg sync.WaitGroup
		for _, c := range []*Conn{c, s.conns[0]} {
			wg.Go(func() {
				if err := c.Close(t.Context()); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		return errEither, errEither
	}},
	{"it lives a while", func(t *testing.T, m *memNet, a, b *Nexus, s *server, d *downs) (client, server error) {
		c := connect(t, a, addrB, 7, d)
		time.Sleep(250 * time.Millisecond) // some Pings
		if len(d.all())+len(s.ended()) != 0 {
			t.Errorf("down while it lives: %v %v", d.all(), s.ended())
		}
		if err := c.Close(t.Context()); err != nil {
			t.Error(err)
		}
		return nil, ErrDisconnected
	}},
	{"client gives up", func(t *testing.T, m *memNet, a, b *Nexus, s *server, d *downs) (client, server error) {
		ctx, cancel := context.WithTimeout(t.Context(), 3*usual/2) // the answer is on its way
		defer cancel()
		if c, _, err := a.Connect(ctx, addrB, 7, []byte("hi"), d.call); err == nil {
			c.Close(t.Context()) // it came sooner
		}
		return errEither, errEither
	}},
	{"server is restarted", func(t *testing.T, m *memNet, a, b *Nexus, s *server, d *downs) (client, server error) {
		connect(t, a, addrB, 7, d)
		crash(t, m, b)
		b = start(t, m, addrB)
		serve(t, b, 8)
		return ErrPeerDead, errEither
	}},
}

// errEither: told or not, but once at most.
var errEither = errors.New("either")

// TestHandshakeModel runs through every life of a connection once for each pair
// of its messages and each pair of fates of the two.
func TestHandshakeModel(t *testing.T) {
	for _, keyed := range []bool{false, true} {
		for _, l := range lives {
			t.Run(fmt.Sprintf("%s, sealed %v", l.name, keyed), func(t *testing.T) {
				n := modelRun(t, l, keyed, func(int) []time.Duration { return []time.Duration{usual} })
				// What is sent again because of the first fate may meet the second.
				n = min(n+2, 10)
				runs := 0
				step := 1
				if testing.Short() || raceBuild {
					step = 7
				}
				for i := range n {
					for j := i; j < n; j++ {
						for x, first := range fates {
							for y, second := range fates {
								if i == j && x != y || (i+j+x+y)%step != 0 {
									continue
								}
								modelRun(t, l, keyed, func(k int) []time.Duration {
									switch k {
									case i:
										return first.copies
									case j:
										return second.copies
									}
									return []time.Duration{usual}
								})
								runs++
								if t.Failed() {
									t.Fatalf("message %d is %s, message %d is %s", i, first.name, j, second.name)
								}
							}
						}
					}
				}
				t.Logf("%d messages, %d runs", n, runs)
			})
		}
	}
}

// modelRun lives a connection's life over a network with a script, checks what
// must hold, and returns how many messages were sent until it was over.
func modelRun(t *testing.T, l life, keyed bool, script func(int) []time.Duration) (messages int) {
	synctest.Test(t, func(t *testing.T) {
		m := newMemNet(1)
		m.keyed, m.script = keyed, script
		a, b := start(t, m, addrA), start(t, m, addrB)
		s := serve(t, b, 7)
		var d downs
		client, server := l.lives(t, m, a, b, s, &d)
		m.set(func() { messages = m.written })
		time.Sleep(15 * time.Second)
		synctest.Wait()
		if n := s.accepted(); n > 1 || n == 0 && client != errEither {
			t.Errorf("accepted %d times", n)
		}
		for _, end := range []struct {
			name string
			got  []error
			want error
		}{{"client", d.all(), client}, {"server", s.ended(), server}} {
			switch {
			case len(end.got) > 1, end.want == nil && len(end.got) != 0, end.want != nil && end.want != errEither && len(end.got) != 1:
				t.Errorf("the %s was told %v, should be told %v", end.name, end.got, end.want)
			case len(end.got) == 1 && end.want != errEither && !errors.Is(end.got[0], end.want):
				t.Errorf("the %s was told %v, not %v", end.name, end.got[0], end.want)
			}
		}
		// Nobody has anything left, except for the memory of a connection's id.
		if live(a) != nothing || live(b) != nothing {
			t.Errorf("left: %s; %s", live(a), live(b))
		}
	})
	return messages
}
