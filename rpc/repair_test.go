package rpc

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"testing"

	"github.com/rrppcc-go/rrppcc/msgbuf"
)

// breakPair breaks the RC connection of ep's only pair behind the endpoint's
// back.
func breakPair(r *rig, ep *Endpoint) {
	r.Helper()
	var p *pair
	ep.mu.Lock()
	for s := range ep.sessions {
		p = s.pair
	}
	ep.mu.Unlock()
	if err := p.peer.Sabotage(); err != nil {
		r.Fatal(err)
	}
}

func fill(b msgbuf.Buf, seed uint64) {
	rng := rand.New(rand.NewPCG(seed, 1))
	mem := b.Bytes()
	for i := 0; i+8 <= len(mem); i += 8 {
		v := rng.Uint64()
		for k := range 8 {
			mem[i+k] = byte(v >> (8 * k))
		}
	}
}

func TestBrokenConnectionIsReplacedAndTheReadRetried(t *testing.T) {
	for _, who := range []string{"client", "server"} {
		for _, large := range []string{"request", "both"} {
			t.Run(who+"'s queue pair, large "+large, func(t *testing.T) {
				r := newRig(t)
				if large == "request" {
					r.srv.Handle(rigEcho, func(h *RequestHandle) (msgbuf.Buf, error) {
						buf, err := h.Response(64)
						if err == nil {
							copy(buf.Bytes(), h.Bytes()[len(h.Bytes())-64:])
						}
						return buf, err
					})
				}
				s := r.connect()
				const n = 3<<20 + 64
				req, resp := r.buf(r.cli, n), r.buf(r.cli, n)
				for round := range 3 {
					fill(req, uint64(round))
					breakPair(r, map[string]*Endpoint{"client": r.cli, "server": r.srv}[who])
					if err := r.call(s, rigEcho, req, resp); err != nil {
						t.Fatal(err)
					}
					want := req.Bytes()
					if large == "request" {
						want = want[n-64:]
					}
					if !bytes.Equal(want, resp.Bytes()) {
						t.Fatal("response differs")
					}
				}
				if s.Err() != nil {
					t.Errorf("session ended: %v", s.Err())
				}
				if r.srv.e.Stats.Handled != 3 {
					t.Errorf("%d executions of 3 requests", r.srv.e.Stats.Handled)
				}
				if r.cli.repairs < 3 || r.srv.repairs < 3 {
					t.Errorf("%d and %d repairs", r.cli.repairs, r.srv.repairs)
				}
				r.closeSession(s)
			})
		}
	}
}

// closeSession closes s while the server runs.
func (r *rig) closeSession(s *Session) {
	r.Helper()
	defer r.run(r.srv)()
	if err := s.Close(); err != nil {
		r.Error(err)
	}
}

func TestBrokenConnectionSparesWhatDoesNotUseIt(t *testing.T) {
	r := newRig(t)
	s := r.connect()
	req, resp := r.buf(r.cli, 64), r.buf(r.cli, 64)
	breakPair(r, r.cli)
	breakPair(r, r.srv)
	if err := r.call(s, rigEcho, req, resp); err != nil {
		t.Error(err)
	}
	if r.cli.repairs+r.srv.repairs != 0 {
		t.Error("repaired without need")
	}
	r.closeSession(s)
}

func TestRequestIsGivenUpWhileItsConnectionIsBroken(t *testing.T) {
	r := newRig(t)
	s := r.connect()
	// No repair comes: the server refuses it.
	r.srv.mu.Lock()
	saved := r.srv.incoming
	r.srv.incoming = map[uint64]*pair{}
	r.srv.mu.Unlock()
	defer func() {
		r.srv.mu.Lock()
		r.srv.incoming = saved
		r.srv.mu.Unlock()
	}()
	req, resp := r.buf(r.cli, 1<<20), r.buf(r.cli, 1<<20)
	breakPair(r, r.srv)
	err := r.call(s, rigEcho, req, resp)
	if !errors.Is(err, ErrPeerDead) {
		t.Errorf("call ended with %v", err)
	}
	<-s.Done()
	if s.Err() == nil || r.srv.e.Stats.Handled != 0 {
		t.Errorf("session: %v; %d executions", s.Err(), r.srv.e.Stats.Handled)
	}
	// Another Connect works at once.
	s = r.connect()
	fill(req, 9)
	if err := r.call(s, rigEcho, req, resp); err != nil || !bytes.Equal(req.Bytes(), resp.Bytes()) {
		t.Error(err)
	}
	r.closeSession(s)
}
