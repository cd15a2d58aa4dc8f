package rpc

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"testing"

	"github.com/rrppcc-go/rrppcc/msgbuf"
	"github.com/rrppcc-go/rrppcc/rpc/internal/engine"
	"github.com/rrppcc-go/rrppcc/rpc/internal/transport"
	"github.com/rrppcc-go/rrppcc/uverbs"
)

// forger is a stranger with a UD QP of its own on the same network.
type forger struct {
	*rig
	pd   *uverbs.PD
	pool *msgbuf.Pool
	buf  msgbuf.Buf
	cq   *uverbs.CQ
	ud   *uverbs.QP
}

// newForger makes a stranger whose UD QP has the number qpn, 0 for any other
// than those that the rig uses.
func newForger(r *rig, qpn uint32) *forger {
	r.Helper()
	f := &forger{rig: r}
	c := r.device()
	must := func(err error) {
		r.Helper()
		if err != nil {
			r.Fatal(err)
		}
	}
	var err error
	f.pd, err = c.AllocPD()
	must(err)
	f.pool = msgbuf.NewPool(&registrar{pd: f.pd}, msgbuf.Local)
	r.Cleanup(func() { f.pool.Close() })
	f.buf, err = f.pool.Alloc(4096)
	must(err)
	r.Cleanup(func() { f.buf.Free() })
	f.cq, err = c.CreateCQ(&uverbs.CQInitAttr{Depth: 64})
	must(err)
	for {
		f.ud, err = f.pd.CreateQP(&uverbs.QPInitAttr{Type: uverbs.QPTypeUD, SendCQ: f.cq, RecvCQ: f.cq,
			Cap: uverbs.QPCap{MaxSendWR: 16, MaxRecvWR: 1, MaxSendSGE: 1, MaxRecvSGE: 1}})
		must(err)
		n := f.ud.QPN()
		if n == qpn || qpn == 0 && n != r.cli.t.Local().QPN && n != r.srv.t.Local().QPN {
			break
		}
		if qpn != 0 && n > qpn {
			r.Fatalf("QP numbers are past %#x", qpn)
		}
	}
	const init = uverbs.AttrState | uverbs.AttrPKeyIndex | uverbs.AttrPort | uverbs.AttrQKey
	must(f.ud.Modify(&uverbs.QPAttr{State: uverbs.QPStateInit, Port: 1, QKey: 1}, init))
	must(f.ud.Modify(&uverbs.QPAttr{State: uverbs.QPStateRTR}, uverbs.AttrState))
	must(f.ud.Modify(&uverbs.QPAttr{State: uverbs.QPStateRTS}, uverbs.AttrState|uverbs.AttrSQPSN))
	return f
}

// target is how a datagram gets to an endpoint.
type target struct {
	addr transport.Address
	ah   *uverbs.AH
}

func (f *forger) target(ep *Endpoint) target {
	f.Helper()
	addr := ep.t.Local()
	gid, _, err := f.pd.Context().ChooseGID(1, -1)
	if err != nil {
		f.Fatal(err)
	}
	ah, err := f.pd.CreateAH(&uverbs.AHAttr{DGID: addr.GID, SGIDIndex: uint8(gid.Index), HopLimit: 64, IsGlobal: true, Port: 1})
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(func() { ah.Close() })
	return target{addr, ah}
}

// send delivers one datagram and waits until it has left.
func (f *forger) send(to target, data []byte) {
	f.Helper()
	n := copy(f.buf.Full(), data)
	wr := []uverbs.SendWR{{Opcode: uverbs.WRSend, Flags: uverbs.SendSignaled, AH: to.ah, RemoteQPN: to.addr.QPN, RemoteQKey: to.addr.QKey,
		SGList: []uverbs.SGE{{Addr: f.buf.Addr(), Length: uint32(n), LKey: f.buf.LKey()}}}}
	if _, err := f.ud.PostSend(wr); err != nil {
		f.Fatal(err)
	}
	wc := make([]uverbs.WC, 1)
	for {
		n, err := f.cq.Poll(wc)
		if err != nil {
			f.Fatal(err)
		}
		if n == 1 {
			break
		}
	}
	if wc[0].Status != uverbs.WCSuccess {
		f.Fatalf("forged datagram was not sent: %v", wc[0].Status)
	}
}

// drops is how many datagrams the endpoint has not believed.
func drops(ep *Endpoint) uint64 {
	s := &ep.e.Stats
	return s.DropShort + s.DropVersion + s.DropSession + s.DropToken
}

// header makes a datagram for the endpoint's end of a session.
func header(kind engine.Kind, s *engine.Session, token uint32, slot uint8, seq uint32, body []byte) []byte {
	h := engine.Header{Kind: kind, Type: rigEcho, Slot: slot, Session: s.Index(), Token: token, Seq: seq}
	var b [engine.HeaderBytes]byte
	h.Put(&b)
	return append(b[:], body...)
}

// serversEnd finds the other end of the rig's only session.
func (r *rig) serversEnd() (s *engine.Session) {
	r.srv.e.Sessions(func(found *engine.Session) { s = found })
	return s
}

func TestForgedDatagramsAreDropped(t *testing.T) {
	r := newRig(t)
	s := r.connect()
	other := r.serversEnd()
	// A request that the server keeps: forged answers must not end it.
	held := false
	heldReq, heldResp := r.buf(r.cli, 16), r.buf(r.cli, 16)
	s.Enqueue(rigHold, heldReq, heldResp, 0, func(q *Request) {
		held = true
		if !errors.Is(q.Err(), ErrSessionClosed) {
			t.Errorf("the held request ended with %v", q.Err())
		}
	})
	r.poll(func() bool { return r.srv.e.Stats.Handled == 1 })
	req, resp := r.buf(r.cli, 64), r.buf(r.cli, 64)
	rng := rand.New(rand.NewPCG(1, 2))
	kinds := []engine.Kind{engine.KindRequest, engine.KindResponse, engine.KindLargeRequest, engine.KindLargeResponse, engine.KindError, engine.KindPulled, engine.KindCancel, engine.KindBroken,
		engine.KindRequestPart, engine.KindResponsePart, engine.KindMissing}

	for name, f := range map[string]*forger{
		"another QP number":           newForger(r, 0),
		"the client's QP number":      newForger(r, r.cli.t.Local().QPN),
		"the server's own QP number":  newForger(r, r.srv.t.Local().QPN),
		"the client's number, no key": newForger(r, r.cli.t.Local().QPN),
	} {
		knowsQKey := name != "the client's number, no key"
		for _, end := range []struct {
			ep   *Endpoint
			sess *engine.Session
		}{{r.srv, other}, {r.cli, s.es}} {
			to := f.target(end.ep)
			if !knowsQKey {
				to.addr.QKey ^= 1 << 7
			}
			before, executed, sent := drops(end.ep), r.srv.e.Stats.Handled, uint64(0)
			forge := func(data []byte) {
				f.send(to, data)
				sent++
				r.cli.Poll()
				r.srv.Poll()
			}
			for n := range 300 {
				junk := make([]byte, []int{n % 20, rng.IntN(4097)}[n%2])
				for i := range junk {
					junk[i] = byte(rng.Uint32())
				}
				if len(junk) >= 4 {
					junk[3] = 1 // never a good header by chance
				}
				forge(junk)
			}
			token := end.sess.Token()
			for _, kind := range kinds {
				for slot := range uint8(8) {
					body := make([]byte, []int{0, 24, 100}[slot%3])
					forge(header(kind, end.sess, token^1<<(slot*4), slot, uint32(slot%3), body))
					if name == "another QP number" { // even who knows the token
						forge(header(kind, end.sess, token, slot, uint32(slot%3), body))
					}
					wrong := header(kind, end.sess, token, slot, 1, body)
					wrong[5] = 0xee // another session
					forge(wrong)
				}
			}
			executed = r.srv.e.Stats.Handled - executed
			if executed != 0 {
				t.Errorf("%s: %d handlers ran", name, executed)
			}
			want := sent
			if !knowsQKey {
				want = 0 // the device has dropped them
			}
			if got := drops(end.ep) - before; got != want {
				t.Errorf("%s: %d datagrams sent, %d dropped by the endpoint, want %d", name, sent, got, want)
			}
			if held {
				t.Fatalf("%s: the held request ended", name)
			}
			// The session works as if nothing had been.
			for i := range req.Bytes() {
				req.Bytes()[i] = byte(rng.Uint32())
			}
			if err := r.call(s, rigEcho, req, resp); err != nil || !bytes.Equal(req.Bytes(), resp.Bytes()) {
				t.Errorf("%s: a true request: %v", name, err)
			}
		}
	}
	for _, ep := range []*Endpoint{r.srv, r.cli} {
		// The held request itself may be sent again meanwhile.
		if ep.e.Stats.DropMalformed != 0 || ep.e.Stats.Duplicates > r.cli.e.Stats.Retransmits || ep.t.RecvErrors != 0 {
			t.Errorf("%+v", ep.e.Stats)
		}
	}
	stop := r.run(r.srv)
	defer stop()
	if err := s.Close(); err != nil {
		t.Error(err)
	}
}

// FuzzForgedDatagrams sends anything to a living endpoint: as it is, or with
// the part of the header made good that nobody else can know. In the latter case
// the session may end, and the endpoint must not.
func FuzzForgedDatagrams(f *testing.F) {
	for kind := range byte(13) {
		f.Add(uint8(kind), true, append([]byte{engine.Version<<4 | kind, rigEcho, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0}, make([]byte, 24)...))
		f.Add(uint8(kind), false, []byte{engine.Version<<4 | kind, rigEcho, 7, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2})
	}
	r := newRig(f)
	forgers := []*forger{newForger(r, r.cli.t.Local().QPN), newForger(r, r.srv.t.Local().QPN)}
	var s *Session
	req, resp := r.buf(r.cli, 32), r.buf(r.cli, 32)
	toServer, toClient := forgers[0].target(r.srv), forgers[1].target(r.cli)
	f.Fuzz(func(t *testing.T, slot uint8, good bool, data []byte) {
		r.TB = t
		defer func() { r.TB = f }()
		if s == nil || s.Err() != nil {
			s = r.connect()
		}
		other := r.serversEnd()
		pending := 1
		s.Enqueue(rigHold, req, msgbuf.Buf{}, 0, func(q *Request) { pending-- })
		for i, end := range []*engine.Session{other, s.es} {
			d := bytes.Clone(data[:min(len(data), 4096)])
			if good && len(d) >= engine.HeaderBytes {
				h, ok := engine.ParseHeader(d)
				if ok && end != nil {
					h.Session, h.Token, h.Slot, h.Seq = end.Index(), end.Token(), slot%8, h.Seq%4
					h.Put((*[engine.HeaderBytes]byte)(d))
				}
			}
			forgers[i].send([]target{toServer, toClient}[i], d)
			for range 3 {
				r.cli.Poll()
				r.srv.Poll()
			}
		}
		// A new session always works, whatever became of the old one.
		stop := r.run(r.srv)
		s.Close()
		s = nil
		stop()
		if pending != 0 {
			t.Fatal("a request outlived its session")
		}
		s = r.connect()
		copy(req.Bytes(), data)
		if err := r.call(s, rigEcho, req, resp); err != nil || !bytes.Equal(req.Bytes(), resp.Bytes()) {
			t.Fatalf("a new session after a forged datagram: %v", err)
		}
	})
}
