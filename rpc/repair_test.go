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
				for round := range 2 {
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
				if r.srv.e.Stats.Handled != 2 {
					t.Errorf("%d executions of 2 requests", r.srv.e.Stats.Handled)
				}
				if r.cli.repairs < 2 || r.srv.repairs < 2 {
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

func TestPullGoesOnBehindWhatHasArrived(t *testing.T) {
	r := newSumRig(t)
	s := r.connect()
	const n = 64 << 20
	req, resp := r.buf(r.cli, n), r.buf(r.cli, 8)
	fill(req, 5)
	over := false
	s.Enqueue(rigEcho, req, resp, 0, func(q *Request) {
		if over = true; q.Err() != nil {
			t.Error(q.Err())
		}
	})
	for _, at := range []uint64{8, 30} {
		r.poll(func() bool { return r.srv.t.Chunks >= at })
		breakPair(r, r.srv)
	}
	r.poll(func() bool { return over })
	if !bytes.Equal(resp.Bytes(), checksum(req.Bytes())) {
		t.Error("the message is not what was sent")
	}
	if c := r.srv.t.Chunks; c < 64 || c > 64+2*8 || r.srv.repairs != 2 {
		t.Errorf("%d chunks posted for 64, %d repairs", c, r.srv.repairs)
	}
	r.closeSession(s)
}

func TestConnectionThatBreaksAgainAndAgainIsGivenUp(t *testing.T) {
	r := newSumRig(t)
	s := r.connect()
	req, resp := r.buf(r.cli, 1<<20), r.buf(r.cli, 8)
	var err error
	for i := 0; err == nil; i++ {
		if i > 2*maxRepairs {
			t.Fatal("no end of repairs")
		}
		breakPair(r, r.srv)
		err = r.call(s, rigEcho, req, resp)
	}
	// Whoever gives up first tells the other that the session is closed.
	if !errors.Is(err, ErrPeerDead) && !errors.Is(err, ErrSessionClosed) || r.srv.repairs < maxRepairs/2 {
		t.Errorf("%v after %d repairs", err, r.srv.repairs)
	}
	next := r.connect()
	if err := r.call(next, rigEcho, req, resp); err != nil {
		t.Error(err)
	}
	r.closeSession(next)
}

func TestOldWordOfABrokenConnectionIsIgnored(t *testing.T) {
	r := newSumRig(t)
	s := r.connect()
	req, resp := r.buf(r.cli, 1<<20), r.buf(r.cli, 8)
	breakPair(r, r.srv)
	if err := r.call(s, rigEcho, req, resp); err != nil {
		t.Fatal(err)
	}
	repairs := r.cli.repairs
	dest := s.pair.peer.Index()
	for _, generation := range []uint32{0, 2, 1 << 31} { // in use is 1
		r.cli.peerBroken(dest, generation)
	}
	r.cli.peerBroken(dest+100, 1)
	if err := r.call(s, rigEcho, req, resp); err != nil || r.cli.repairs != repairs {
		t.Errorf("%v, %d repairs", err, r.cli.repairs-repairs)
	}
	r.closeSession(s)
}

func TestStrangersCannotReplaceAConnection(t *testing.T) {
	r := newSumRig(t)
	s := r.connect()
	thief := r.endpoint(6) // another process, which even knows the pair's id
	c, err := thief.t.NewConn()
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	stop := r.run(r.srv)
	for name, h := range map[string]*hello{
		"as itself":     {addr: thief.t.Local()},
		"as the client": {addr: s.pair.peer.Local()},
		"old":           {addr: s.pair.peer.Local(), generation: 1<<32 - 1},
	} {
		h.window, h.credits, h.maxMessage, h.pair = 8, 32, 1<<20, s.pair.id
		h.generation = max(h.generation, 1)
		h.addr.RCQPN, h.addr.RCPSN = c.QPN(), c.PSN()
		if conn, _, err := thief.nx.Connect(r.ctx, r.srv.URI(), r.srv.ID(), h.encode(), nil); err == nil {
			t.Errorf("%s: accepted", name)
			conn.Close(r.ctx)
		}
	}
	stop()
	req, resp := r.buf(r.cli, 1<<20), r.buf(r.cli, 8)
	if err := r.call(s, rigEcho, req, resp); err != nil || r.srv.repairs != 0 {
		t.Error(err)
	}
	r.closeSession(s)
}

func TestWordOfABrokenConnectionIsRepeated(t *testing.T) {
	r := newSumRig(t)
	faults := new(Faults)
	r.cli = r.endpoint(7, WithFaults(faults))
	s := r.connect()
	req, resp := r.buf(r.cli, 1<<20), r.buf(r.cli, 8)
	breakPair(r, r.srv)
	faults.Drop(2)
	if err := r.call(s, rigEcho, req, resp); err != nil || r.srv.repairs != 1 || faults.Dropping() != 0 {
		t.Errorf("%v after %d repairs", err, r.srv.repairs)
	}
	r.closeSession(s)
}
