package rpc

import (
	"bytes"
	"context"
	"time"

	"github.com/rrppcc-go/rrppcc/msgbuf"
	"github.com/rrppcc-go/rrppcc/nexus"
	"github.com/rrppcc-go/rrppcc/rpc/internal/engine"
	"github.com/rrppcc-go/rrppcc/rpc/internal/transport"
	"github.com/rrppcc-go/rrppcc/uverbs"
)

// thief is a process with software of its own, which is let in as everybody is:
// it has a session with an endpoint of the rig, as its client or as its server,
// and an RC connection. What it reads by that is up to it.
type thief struct {
	*rig
	nx   *nexus.Nexus
	pool *msgbuf.Pool
	pd   *uverbs.PD
	cq   *uverbs.CQ
	ud   *uverbs.QP
	rc   *uverbs.QP
	ah   *uverbs.AH
	ring msgbuf.Buf
	loot msgbuf.Buf // what it has read

	own   transport.Address
	gid   uverbs.GIDEntry
	them  hello
	ready chan struct{} // closed once somebody has connected
	got   []datagram
	done  []uverbs.WC
}

// datagram is one that the thief was sent.
type datagram struct {
	engine.Header
	body []byte
}

func (d *datagram) control(r *rig) engine.Control {
	r.Helper()
	c, ok := engine.ParseControl(d.body)
	if !ok {
		r.Fatalf("%v without a control block: % x", d.Kind, d.body)
	}
	return c
}

const (
	thiefToken = 0x7e1e7e1e
	thiefSlots = 32
	thiefSlot  = 4160 // bytes: GRH, header and payload
	thiefReads = 1 << 32
	thiefSends = 2 << 32
)

func newThief(r *rig) *thief {
	r.Helper()
	f := &thief{rig: r, ready: make(chan struct{})}
	must := func(err error) {
		r.Helper()
		if err != nil {
			r.Fatal(err)
		}
	}
	var err error
	c := r.device()
	f.pd, err = c.AllocPD()
	must(err)
	f.pool = msgbuf.NewPool(&registrar{pd: f.pd}, msgbuf.Local)
	r.Cleanup(func() { f.pool.Close() })
	for buf, n := range map[*msgbuf.Buf]int{&f.ring: thiefSlots * thiefSlot, &f.loot: 1 << 20} {
		*buf, err = f.pool.Alloc(n)
		must(err)
	}
	f.cq, err = c.CreateCQ(&uverbs.CQInitAttr{Depth: 256})
	must(err)
	qp := func(typ uverbs.QPType) *uverbs.QP {
		qp, err := f.pd.CreateQP(&uverbs.QPInitAttr{Type: typ, SendCQ: f.cq, RecvCQ: f.cq,
			Cap: uverbs.QPCap{MaxSendWR: 16, MaxRecvWR: thiefSlots, MaxSendSGE: 1, MaxRecvSGE: 1}})
		must(err)
		r.Cleanup(func() { qp.Close() })
		return qp
	}
	f.ud, f.rc = qp(uverbs.QPTypeUD), qp(uverbs.QPTypeRC)
	f.gid, _, err = c.ChooseGID(1, -1)
	must(err)
	port, err := c.QueryPort(1)
	must(err)
	f.own = transport.Address{GID: f.gid.GID, QPN: f.ud.QPN(), QKey: 7, RCQPN: f.rc.QPN(), RCPSN: 11, MTU: port.ActiveMTU}
	must(f.ud.Modify(&uverbs.QPAttr{State: uverbs.QPStateInit, Port: 1, QKey: f.own.QKey}, uverbs.AttrState|uverbs.AttrPKeyIndex|uverbs.AttrPort|uverbs.AttrQKey))
	must(f.ud.Modify(&uverbs.QPAttr{State: uverbs.QPStateRTR}, uverbs.AttrState))
	must(f.ud.Modify(&uverbs.QPAttr{State: uverbs.QPStateRTS}, uverbs.AttrState|uverbs.AttrSQPSN))
	for slot := range thiefSlots {
		f.repost(slot)
	}
	f.nx, err = nexus.New("127.0.0.1:0", nexus.WithHeartbeat(time.Hour, 3*time.Hour))
	must(err)
	r.Cleanup(func() { f.nx.Close() })
	return f
}

func (f *thief) repost(slot int) {
	wr := []uverbs.RecvWR{{WRID: uint64(slot), SGList: []uverbs.SGE{{Addr: f.ring.Addr() + uint64(slot*thiefSlot), Length: thiefSlot, LKey: f.ring.LKey()}}}}
	if _, err := f.ud.PostRecv(wr); err != nil {
		f.Fatal(err)
	}
}

func (f *thief) hello(pair uint64) *hello {
	return &hello{window: 8, credits: 32, pair: pair, addr: f.own, session: 5, token: thiefToken, maxMessage: 1 << 30}
}

// reach connects the thief's queue pairs to them.
func (f *thief) reach(them hello) (err error) {
	f.them = them
	av := uverbs.AHAttr{DGID: them.addr.GID, SGIDIndex: uint8(f.gid.Index), HopLimit: 64, IsGlobal: true, Port: 1}
	if f.ah, err = f.pd.CreateAH(&av); err != nil {
		return err
	}
	for _, step := range []struct {
		attr uverbs.QPAttr
		mask uverbs.QPAttrMask
	}{
		{uverbs.QPAttr{State: uverbs.QPStateInit, Port: 1}, uverbs.AttrState | uverbs.AttrPKeyIndex | uverbs.AttrPort | uverbs.AttrAccessFlags},
		{uverbs.QPAttr{State: uverbs.QPStateRTR, AV: av, PathMTU: them.addr.MTU, DestQPN: them.addr.RCQPN, RQPSN: them.addr.RCPSN, MaxDestRdAtomic: 1, MinRNRTimer: 12},
			uverbs.AttrState | uverbs.AttrAV | uverbs.AttrPathMTU | uverbs.AttrDestQPN | uverbs.AttrRQPSN | uverbs.AttrMaxDestRdAtomic | uverbs.AttrMinRNRTimer},
		{uverbs.QPAttr{State: uverbs.QPStateRTS, Timeout: 14, RetryCnt: 7, RNRRetry: 7, SQPSN: f.own.RCPSN, MaxRdAtomic: 1},
			uverbs.AttrState | uverbs.AttrTimeout | uverbs.AttrRetryCnt | uverbs.AttrRNRRetry | uverbs.AttrSQPSN | uverbs.AttrMaxRdAtomic},
	} {
		if err := f.rc.Modify(&step.attr, step.mask); err != nil {
			return err
		}
	}
	return nil
}

// join opens a session as a client of the rig's server.
func (f *thief) join() {
	f.Helper()
	stop := f.run(f.srv)
	defer stop()
	_, reply, err := f.nx.Connect(f.ctx, f.srv.URI(), f.srv.ID(), f.hello(random64()).encode(), nil)
	if err != nil {
		f.Fatal(err)
	}
	them, err := decodeHello(reply)
	if err == nil {
		err = f.reach(them)
	}
	if err != nil {
		f.Fatal(err)
	}
}

// lure has the rig's client open a session to the thief.
func (f *thief) lure() *Session {
	f.Helper()
	leave, err := f.nx.Register(9, f)
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(leave)
	s, err := f.cli.Connect(f.ctx, f.nx.URI(), 9)
	if err != nil {
		f.Fatal(err)
	}
	<-f.ready
	return s
}

// Accept lets a client in.
func (f *thief) Accept(_ context.Context, _ *nexus.Conn, payload []byte) ([]byte, error) {
	h, err := decodeHello(payload)
	if err != nil {
		return nil, err
	}
	if h.generation != 0 {
		return nil, &nexus.RefusedError{Reason: nexus.ReasonNoResources}
	}
	if f.ah == nil { // the first session
		if err := f.reach(h); err != nil {
			return nil, err
		}
		defer close(f.ready)
	}
	return f.hello(h.pair).encode(), nil
}

// look takes the thief's completions, after a turn of everybody else.
func (f *thief) look() {
	f.cli.Poll()
	f.srv.Poll()
	f.lookAlone()
}

func (f *thief) lookAlone() {
	var wcs [16]uverbs.WC
	n, err := f.cq.Poll(wcs[:])
	if err != nil {
		f.Fatal(err)
	}
	for i := range wcs[:n] {
		wc := &wcs[i]
		if wc.WRID >= thiefReads {
			f.done = append(f.done, *wc)
			continue
		}
		slot := int(wc.WRID)
		data := f.ring.Bytes()[slot*thiefSlot+40:][:wc.ByteLen-40]
		h, ok := engine.ParseHeader(data)
		if wc.Status != uverbs.WCSuccess || !ok || h.Token != thiefToken {
			f.Fatalf("the thief was sent % x", data)
		}
		f.got = append(f.got, datagram{h, bytes.Clone(data[engine.HeaderBytes:])})
		f.repost(slot)
	}
}

// next returns the next datagram of that kind about that request; others, such as
// what is sent again, are passed over.
func (f *thief) next(kind engine.Kind, slot uint8, seq uint32) datagram {
	f.Helper()
	for {
		for i, d := range f.got {
			if d.Kind == kind && d.Slot == slot && d.Seq == seq {
				f.got = f.got[i+1:]
				return d
			}
		}
		f.got = f.got[:0]
		f.look()
		if f.ctx.Err() != nil {
			f.Fatalf("no %v comes", kind)
		}
	}
}

// say sends a datagram to the other end of the session.
func (f *thief) say(kind engine.Kind, typ, slot uint8, seq uint32, body []byte) {
	f.Helper()
	h := engine.Header{Kind: kind, Type: typ, Slot: slot, Session: f.them.session, Token: f.them.token, Seq: seq}
	b := f.loot.Full()[f.loot.Cap()-8192:]
	h.Put((*[engine.HeaderBytes]byte)(b))
	n := engine.HeaderBytes + copy(b[engine.HeaderBytes:], body)
	f.post(f.ud, uverbs.SendWR{WRID: thiefSends, Opcode: uverbs.WRSend, Flags: uverbs.SendSignaled, AH: f.ah, RemoteQPN: f.them.addr.QPN, RemoteQKey: f.them.addr.QKey,
		SGList: []uverbs.SGE{{Addr: f.loot.Addr() + uint64(f.loot.Cap()-8192), Length: uint32(n), LKey: f.loot.LKey()}}})
}

// post does a work request and returns how it ended.
func (f *thief) post(qp *uverbs.QP, wr uverbs.SendWR) uverbs.WCStatus {
	f.Helper()
	if _, err := qp.PostSend([]uverbs.SendWR{wr}); err != nil {
		f.Fatal(err)
	}
	for len(f.done) == 0 {
		f.look()
		if f.ctx.Err() != nil {
			f.Fatal("a work request does not end")
		}
	}
	status := f.done[0].Status
	f.done = f.done[1:]
	return status
}

// read reads n bytes at addr over the RC connection.
func (f *thief) read(addr, n uint64, rkey uint32) uverbs.WCStatus {
	f.Helper()
	return f.rdma(uverbs.WRRDMARead, addr, n, rkey)
}

func (f *thief) rdma(opcode uverbs.WROpcode, addr, n uint64, rkey uint32) uverbs.WCStatus {
	f.Helper()
	clear(f.loot.Full()[:n])
	return f.post(f.rc, uverbs.SendWR{WRID: thiefReads, Opcode: opcode, Flags: uverbs.SendSignaled, RemoteAddr: addr, RKey: rkey,
		SGList: []uverbs.SGE{{Addr: f.loot.Addr(), Length: uint32(n), LKey: f.loot.LKey()}}})
}
