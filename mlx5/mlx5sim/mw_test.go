package mlx5sim

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/rrppcc-go/rrppcc/internal/roce"
)

// umrFree are the segments that take the memory from a window: LOCAL_INV, and
// an unbinding. variant is the key's new low byte.
func umrFree(variant uint8) [][]byte {
	c, k := make([]byte, umrCtrlBytes), make([]byte, umrMKeyBytes)
	c[0] = 0x98
	k[0] = mkeyFree
	be.PutUint32(k[4:], 0xffffff00|uint32(variant))
	return [][]byte{c, k}
}

// umrBind are the segments that bind n bytes at addr of m to a window; the
// window begins at iova.
func umrBind(qpn uint32, variant uint8, m *mr, addr, iova, n uint64, access uint8) [][]byte {
	c, k, l := make([]byte, umrCtrlBytes), make([]byte, umrMKeyBytes), make([]byte, umrListBytes)
	c[0] = 0xb0
	k[2] = access
	be.PutUint32(k[4:], qpn<<8|uint32(variant))
	be.PutUint64(k[16:], iova)
	be.PutUint64(k[24:], n)
	be.PutUint32(l, uint32(n))
	be.PutUint32(l[4:], m.key)
	be.PutUint64(l[8:], addr)
	return [][]byte{c, k, l}
}

const mwAccess = mkeyRemoteRead | mkeyRemoteWrite | mkeyRemoteAtomic

func (n *node) mw(typ uint8) *mw {
	n.keys++
	w := &mw{pd: n.pd, typ: typ, key: n.keys<<8 | 0x11}
	n.d.mws[w.key>>8] = w
	return w
}

// bind binds all of m to w by a work request on q, which must succeed.
func (n *node) bind(q *qp, w *mw, m *mr, access uint8) {
	n.t.Helper()
	n.send(q, ctrl{op: opUMR, flags: ce, imm: w.key}, umrBind(q.qpn, uint8(w.key+1), m, m.iova, m.iova, m.length, access)...)
	if all := n.pollAll(q.sendCQ); len(all) != 1 || all[0].op != cqeReq {
		n.t.Fatalf("bind: %+v", all)
	}
}

func TestWindowGrantsWhatItWasBoundTo(t *testing.T) {
	for _, typ := range []uint8{mwType1, mwType2} {
		p := newDuo(t, "RC")
		p.qb.attr.access |= accessRemoteAtomic
		m := p.b.mr(4096, accessLocalWrite|accessMWBind) // no remote rights itself
		w := p.b.mw(typ)
		qpn := p.qb.qpn
		if typ == mwType1 {
			qpn = 0xffffff
		}
		old := w.key
		segs := umrBind(qpn, 0x12, m, m.iova+1024, 0x500000, 512, mkeyRemoteRead|mkeyRemoteWrite)
		p.b.send(p.qb, ctrl{op: opUMR, flags: ce, imm: old}, segs...)
		raw, ok := p.b.poll(p.qb.sendCQ)
		if !ok || raw[63]>>4 != cqeReq || raw[56] != opUMR {
			t.Fatalf("bind: %x", raw)
		}
		if w.key != old&^0xff|0x12 {
			t.Fatalf("key %#x after a bind of %#x", w.key, old)
		}
		src := p.a.mr(512, accessLocalWrite)
		data := bytes.Clone(p.a.fill(src, 9))
		p.a.send(p.qa, ctrl{op: opWrite, flags: ce}, segRAddr(0x500000, w.key), src.sge(0, 512))
		wantCQEs(t, "WRITE", p.a.pollAll(p.qa.sendCQ), got{op: cqeReq, bytes: 512})
		if !bytes.Equal(p.b.bytes(m)[1024:1536], data) || p.b.bytes(m)[1023] != 0 || p.b.bytes(m)[1536] != 0 {
			t.Error("data are in the wrong place")
		}
		index := uint16(p.qa.sq.pi)
		p.a.send(p.qa, ctrl{op: opRead, flags: ce}, segRAddr(0x500000+1, w.key), src.sge(0, 511))
		wantCQEs(t, "READ", p.a.pollAll(p.qa.sendCQ), got{op: cqeReq, index: index, bytes: 511})
	}
}

func TestWindowRefuses(t *testing.T) {
	for _, tt := range []struct {
		name  string
		after func(p *duo, w *mw, m *mr)
		op    uint8
		off   uint64
		n     uint32
	}{
		{"beyond its end", nil, opWrite, 4000, 97},
		{"before its beginning", nil, opWrite, ^uint64(0), 8},
		{"what it does not grant", func(p *duo, w *mw, m *mr) { w.access = accessRemoteRead }, opWrite, 0, 8},
		{"the key before", func(p *duo, w *mw, m *mr) { w.key++ }, opRead, 0, 8},
		{"another QP", func(p *duo, w *mw, m *mr) { w.qpn++ }, opRead, 0, 8},
		{"another PD", func(p *duo, w *mw, m *mr) { w.pd = &pd{file: p.b.f} }, opRead, 0, 8},
		{"when its MR is gone", func(p *duo, w *mw, m *mr) { delete(p.b.d.mrs, m.key) }, opRead, 0, 8},
		{"when it was invalidated", func(p *duo, w *mw, m *mr) { p.b.d.invalidate(p.qb, w.key) }, opRead, 0, 8},
		{"when it is freed", func(p *duo, w *mw, m *mr) { delete(p.b.d.mws, w.key>>8) }, opRead, 0, 8},
	} {
		t.Run(tt.name, func(t *testing.T) {
			p := newDuo(t, "RC")
			m := p.b.mr(4096, accessLocalWrite|accessMWBind)
			w := p.b.mw(mwType2)
			p.b.bind(p.qb, w, m, mwAccess)
			key := w.key
			if tt.after != nil {
				tt.after(p, w, m)
			}
			src := p.a.mr(4096, accessLocalWrite)
			p.a.send(p.qa, ctrl{op: tt.op, flags: ce}, segRAddr(m.iova+tt.off, key), src.sge(0, tt.n))
			wantCQEs(t, "requester", p.sent(), got{op: cqeReqErr, syn: synRemAccess})
			wantAsyncs(t, "responder", p.b.asyncs(), eventQPAccessErr)
		})
	}
}

func TestWindowIsNoLocalKey(t *testing.T) {
	p := newDuo(t, "RC")
	m := p.b.mr(4096, accessLocalWrite|accessMWBind)
	w := p.b.mw(mwType2)
	p.b.bind(p.qb, w, m, mwAccess)
	p.b.send(p.qb, ctrl{op: opSend}, segData(m.iova, 8, w.key))
	wantCQEs(t, "SEND", p.b.pollAll(p.qb.sendCQ), got{op: cqeReqErr, index: uint16(p.qb.sq.ci - 1), syn: synLocalProt})
}

func TestBindIsRefused(t *testing.T) {
	type args struct {
		key, qpn         uint32
		m                *mr
		addr, iova, size uint64
	}
	for name, spoil := range map[string]func(p *duo, w *mw, a *args){
		"no such window":       func(p *duo, w *mw, a *args) { a.key += 0x5000 },
		"an MR's key":          func(p *duo, w *mw, a *args) { a.key = a.m.key },
		"window of another PD": func(p *duo, w *mw, a *args) { w.pd = &pd{file: p.b.f} },
		"bound already":        func(p *duo, w *mw, a *args) { w.bound = true },
		"for another QP":       func(p *duo, w *mw, a *args) { a.qpn++ },
		"MR without the right": func(p *duo, w *mw, a *args) { a.m.access &^= accessMWBind },
		"read-only MR":         func(p *duo, w *mw, a *args) { a.m.access &^= accessLocalWrite },
		"MR of another PD":     func(p *duo, w *mw, a *args) { a.m.pd = &pd{file: p.b.f} },
		"beyond the MR":        func(p *duo, w *mw, a *args) { a.addr++ },
		"nothing":              func(p *duo, w *mw, a *args) { a.size = 0 },
		"past all addresses":   func(p *duo, w *mw, a *args) { a.iova = ^uint64(0) - 100 },
	} {
		t.Run(name, func(t *testing.T) {
			p := newDuo(t, "RC")
			m := p.b.mr(4096, accessLocalWrite|accessMWBind)
			w := p.b.mw(mwType2)
			a := args{w.key, p.qb.qpn, m, m.iova, m.iova, m.length}
			spoil(p, w, &a)
			p.b.send(p.qb, ctrl{op: opUMR, imm: a.key}, umrBind(a.qpn, 1, a.m, a.addr, a.iova, a.size, mwAccess)...)
			p.b.put(p.qb, ctrl{op: opNOP})
			p.b.ring(p.qb)
			all := p.b.pollAll(p.qb.sendCQ)
			if len(all) != 2 || all[0].syn != synBind || all[1].syn != synFlush || p.qb.attr.state != stateErr {
				t.Errorf("CQEs %+v, QP in state %d", all, p.qb.attr.state)
			}
		})
	}
}

func TestLocalInvalidateEndsAWindowOnce(t *testing.T) {
	p := newDuo(t, "RC")
	m := p.b.mr(4096, accessLocalWrite|accessMWBind)
	w := p.b.mw(mwType2)
	p.b.bind(p.qb, w, m, mwAccess)
	p.b.send(p.qb, ctrl{op: opUMR, flags: ce, imm: w.key}, umrFree(0)...)
	if all := p.b.pollAll(p.qb.sendCQ); len(all) != 1 || all[0].op != cqeReq || w.bound {
		t.Fatalf("%+v, bound %v", all, w.bound)
	}
	p.b.bind(p.qb, w, m, mwAccess) // and again
	p.b.send(p.qb, ctrl{op: opUMR, imm: w.key ^ 1}, umrFree(0)...)
	if all := p.b.pollAll(p.qb.sendCQ); len(all) != 1 || all[0].syn != synBind || !w.bound {
		t.Errorf("another variant of the key: %+v, bound %v", all, w.bound)
	}
	// A window of type 1 is unbound by a bind of nothing, and cannot be
	// invalidated.
	one := p.b.mw(mwType1)
	one.bound = true
	if p.b.d.invalidate(p.qb, one.key) || !one.bound {
		t.Error("a window of type 1 was invalidated")
	}
	q := p.b.qp("RC", qpOpts{})
	q.to(stateInit, stateRTR, stateRTS)
	p.b.send(q, ctrl{op: opUMR, flags: ce, imm: one.key}, umrFree(7)...)
	if all := p.b.pollAll(q.sendCQ); len(all) != 1 || all[0].op != cqeReq || one.bound || uint8(one.key) != 7 {
		t.Errorf("%+v, %+v", all, one)
	}
}

func TestSendWithInvalidateNamesTheKey(t *testing.T) {
	p := newDuo(t, "RC")
	m := p.b.mr(4096, accessLocalWrite|accessMWBind)
	w := p.b.mw(mwType2)
	p.b.bind(p.qb, w, m, mwAccess)
	p.b.recv(p.qb, m.sge(0, 64))
	p.a.send(p.qa, ctrl{op: opSendInv, flags: ce | ctrlSolicited, imm: w.key}, segInline([]byte("done")))
	raw, ok := p.a.poll(p.qa.sendCQ)
	if !ok || raw[63]>>4 != cqeReq || raw[56] != opSendInv {
		t.Fatalf("sender's CQE %x", raw)
	}
	raw, ok = p.b.poll(p.qb.recvCQ)
	if !ok || raw[63]>>4 != cqeRespSendInv || be.Uint32(raw[36:]) != w.key || be.Uint32(raw[44:]) != 4 || raw[63]&2 == 0 {
		t.Errorf("receiver's CQE %x, want key %#x", raw, w.key)
	}
	if w.bound || string(p.b.bytes(m)[:4]) != "done" {
		t.Errorf("bound %v, data %q", w.bound, p.b.bytes(m)[:4])
	}
}

// TestSendWithInvalidateRunsExactlyOnceOverALossyLink binds a window anew for
// each message. An invalidation that ran twice, or not, would show: in the next
// bind, or in the next SEND.
func TestSendWithInvalidateRunsExactlyOnceOverALossyLink(t *testing.T) {
	for seed := range uint64(6) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p := lossyPair(t, seed, Faults{Loss: 0.1, Duplicate: 0.1, Reorder: 0.1, Delay: 10 * time.Microsecond})
				rng := rand.New(rand.NewPCG(seed, 5))
				a, b := p.connect(qpOpts{sqSize: 64, rqSize: 16}, func(q *qp) { q.attr.timeout = 10 })
				src, dst := p.a.mr(16<<10, accessLocalWrite), p.b.mr(16<<10, accessLocalWrite|accessMWBind)
				w := p.b.mw(mwType2)
				for round := range 60 {
					n := uint32(rng.IntN(5000))
					p.b.locked(func() {
						if w.bound {
							t.Fatalf("round %d: the window is bound still", round)
						}
						p.b.recv(b, dst.sge(0, 8192))
					})
					p.b.send(b, ctrl{op: opUMR, imm: w.key}, umrBind(b.qpn, uint8(round), dst, dst.iova, dst.iova, dst.length, mwAccess)...)
					p.a.fill(src, byte(round))
					p.a.send(a, ctrl{op: opSendInv, flags: ce, imm: w.key}, src.sge(0, n))
					time.Sleep(5 * time.Second)
					synctest.Wait()
					if all := p.a.take(a.sendCQ); len(all) != 1 || all[0].op != cqeReq {
						t.Fatalf("round %d: %+v", round, all)
					}
					if all := p.b.take(b.recvCQ); len(all) != 1 || all[0].op != cqeRespSendInv || all[0].bytes != n {
						t.Fatalf("round %d: %+v", round, all)
					}
					p.b.locked(func() {
						if !bytes.Equal(p.b.bytes(dst)[:n], p.a.bytes(src)[:n]) {
							t.Fatalf("round %d: data differ", round)
						}
					})
				}
			})
		})
	}
}

func TestInvalidateOfAnMRsKeyIsNAKed(t *testing.T) {
	s := newStranger(t, nil)
	m := s.mr(4096, accessLocalWrite|accessRemoteWrite)
	s.recv(s.q, m.sge(0, 64))
	ieth := make([]byte, 4)
	roce.PutUint32(ieth, m.key)
	s.give(s.packet(roce.BTH{Opcode: roce.RCSendOnlyInv, PSN: 0x200, AckReq: true}, ieth, []byte("x")))
	s.wantAnswers("refused", answer{0x200, roce.NAKRemoteAccess, 0})
	wantCQEs(t, "receive", s.take(s.q.recvCQ), got{op: cqeRespErr, syn: synLocalAccess})
	if s.d.mrs[m.key] != m {
		t.Error("the MR is gone")
	}
}

func TestMemoryWindowCommands(t *testing.T) {
	u := newUser(t)
	u.getContext()
	pdh := u.allocPD()
	alloc := func(pd uint32, typ uint8, uhw ...tattr) ([]byte, uint64) {
		in := make([]byte, 16)
		le.PutUint32(in[8:], pd)
		in[12] = typ
		out := u.out(attrCoreOut, 8)
		return writeCommand(14, append([]tattr{u.in(attrCoreIn, in), out}, uhw...)...), out.data
	}
	cmd := func(pd uint32, typ uint8, uhw ...tattr) []byte { c, _ := alloc(pd, typ, uhw...); return c }
	u.want(syscall.EINVAL, cmd(pdh, 0))
	u.want(syscall.EINVAL, cmd(pdh, 3))
	u.want(syscall.ENOENT, cmd(99, 1))
	u.want(syscall.EOPNOTSUPP, cmd(pdh, 1, u.in(attrUHWIn, []byte{1, 0, 0, 0, 0, 0, 0, 0, 0})))
	var handles []uint32
	for _, typ := range []uint8{mwType1, mwType2} {
		resp := u.out(attrUHWOut, 8)
		c, out := alloc(pdh, typ, u.in(attrUHWIn, make([]byte, 8)), resp)
		u.must(c)
		h, key := le.Uint32(u.at(out, 8)), le.Uint32(u.at(out, 8)[4:])
		if w := u.d.mws[key>>8]; w == nil || w.key != key || w.typ != typ || w.bound || u.at(resp.data, 8)[4] != 8 {
			t.Errorf("type %d: %+v", typ, w)
		}
		handles = append(handles, h)
	}
	u.want(syscall.EBUSY, destroyCmd(u, objPD, pdh))
	u.must(destroyCmd(u, objMW, handles[0]))
	u.must(writeCommand(16, in32(attrCoreIn, handles[1])))
	u.want(syscall.ENOENT, writeCommand(16, in32(attrCoreIn, handles[1])))
	u.must(destroyCmd(u, objPD, pdh))
	if len(u.d.mws) != 0 {
		t.Errorf("%d windows are left", len(u.d.mws))
	}
}
