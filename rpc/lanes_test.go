package rpc

import (
	"context"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"github.com/rrppcc-go/rrppcc/msgbuf"
)

// mesh is endpoints with a session from each to each, itself included, and a
// handler that goes on to a random one of them until its number is 0.
type mesh struct {
	*rig
	eps []*Endpoint
	to  [][]*Session

	mu  sync.Mutex
	rng *rand.Rand
}

func newMesh(r *rig, n int, opts ...Option) *mesh {
	m := &mesh{rig: r, rng: rand.New(rand.NewPCG(7, 7))}
	for i := range n {
		ep := r.endpoint(uint16(10+i), opts...)
		next := func(h *RequestHandle) (msgbuf.Buf, error) {
			left := h.Bytes()[0]
			if left == 0 {
				return msgbuf.Buf{}, nil
			}
			req, err := ep.Alloc(len(h.Bytes()))
			if err != nil {
				return msgbuf.Buf{}, err
			}
			defer req.Free()
			copy(req.Bytes(), h.Bytes())
			req.Bytes()[0] = left - 1
			s, typ := m.random(i)
			return msgbuf.Buf{}, h.Call(s, typ, req, msgbuf.Buf{})
		}
		ep.HandleBackground(1, next)
		ep.HandleCoroutine(2, next)
		r.Cleanup(r.run(ep))
		m.eps = append(m.eps, ep)
	}
	for _, from := range m.eps {
		var out []*Session
		for _, ep := range m.eps {
			s, err := from.Connect(r.ctx, ep.URI(), ep.ID())
			if err != nil {
				r.Fatal(err)
			}
			out = append(out, s)
		}
		m.to = append(m.to, out)
	}
	return m
}

// random returns a session from endpoint i, and one of the two handlers.
func (m *mesh) random(i int) (*Session, uint8) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.to[i][m.rng.IntN(len(m.eps))], uint8(1 + m.rng.IntN(2))
}

// free is the room in each endpoint's ring.
func (m *mesh) free() string {
	s := ""
	for _, ep := range m.eps {
		ep.mu.Lock()
		s += fmt.Sprint(ep.ringFree, " of ", len(ep.sessions), " sessions; ")
		ep.mu.Unlock()
	}
	return s
}

// Chains of sixteen calls wander about four endpoints with windows of two, many
// at a time, and need far more slots than there are. None waits for another for
// ever, and when it is over the lanes go.
func TestChainsThatWanderNeverStall(t *testing.T) {
	r := newRig(t)
	const depth, chains, rounds = 16, 24, 4
	m := newMesh(r, 4, WithWindow(2), WithCredits(4), WithRingDepth(2048), WithRequestTimeout(patience),
		func(o *options) { o.laneIdle = 50 * time.Millisecond })
	before := m.free()
	var wg sync.WaitGroup
	for c := range chains {
		wg.Go(func() {
			ep := m.eps[c%len(m.eps)]
			for range rounds {
				size := []int{8, 6000}[c%2]
				req, err := ep.Alloc(size)
				if err != nil {
					t.Error(err)
					return
				}
				req.Bytes()[0] = depth
				s, typ := m.random(c % len(m.eps))
				if err := s.Call(r.ctx, typ, req, msgbuf.Buf{}); err != nil {
					t.Errorf("chain %d: %v", c, err)
				}
				req.Free()
			}
		})
	}
	wg.Wait()
	if after := m.free(); after == before {
		t.Error("no lane was needed")
	}
	for m.free() != before {
		select {
		case <-time.After(10 * time.Millisecond):
		case <-r.ctx.Done():
			t.Fatalf("lanes stay: %s, before: %s", m.free(), before)
		}
	}
}

// A nested call on a session that is not up yet gets its lane when that is, and
// the error of the session if it does not come up.
func TestNestedCallsOnASessionThatOpens(t *testing.T) {
	r := newRig(t, WithWindow(2))
	defer r.run(r.srv)()
	defer r.run(r.cli)()
	for _, id := range []uint16{r.srv.ID(), 999} {
		s := r.cli.Open(r.srv.URI(), id)
		var wg sync.WaitGroup
		for range 20 {
			wg.Go(func() {
				err := s.call(context.Background(), rigEcho, msgbuf.Buf{}, msgbuf.Buf{}, 0)
				if (err == nil) != (id == r.srv.ID()) {
					t.Errorf("nested call to endpoint %d: %v", id, err)
				}
			})
		}
		wg.Wait()
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	}
	r.cli.mu.Lock()
	defer r.cli.mu.Unlock()
	if n := len(r.cli.sessions); n != 0 {
		t.Errorf("%d sessions are left", n)
	}
}

// The server believes no lane of a session that is not there, or not the client's.
func TestLaneOfAnotherSessionIsRefused(t *testing.T) {
	r := newRig(t)
	defer r.run(r.srv)()
	defer r.run(r.cli)()
	other := r.endpoint(3)
	defer r.run(other)()
	s, err := r.cli.Connect(r.ctx, r.srv.URI(), r.srv.ID())
	if err != nil {
		t.Fatal(err)
	}
	theirs, err := other.Connect(r.ctx, r.srv.URI(), r.srv.ID())
	if err != nil {
		t.Fatal(err)
	}
	for _, index := range []uint32{theirs.es.Remote(), 77, 1<<32 - 1} {
		h := r.cli.hello(s, s.pair)
		h.lane, h.main = 1, index
		conn, _, err := r.cli.nx.Connect(r.ctx, s.remote, s.id, h.encode(), nil)
		if err == nil {
			t.Errorf("a lane of session %d was accepted", index)
			conn.Close(r.ctx)
		}
	}
	for _, s := range []*Session{s, theirs} {
		if err := s.Call(r.ctx, rigEcho, msgbuf.Buf{}, msgbuf.Buf{}); err != nil {
			t.Error(err)
		}
	}
}
