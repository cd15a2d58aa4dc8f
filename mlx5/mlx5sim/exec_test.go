package mlx5sim

import (
	"bytes"
	"fmt"
	"reflect"
	"testing"
)

// duo is two nodes on two devices with a QP each.
type duo struct {
	*rig
	a, b   *node
	qa, qb *qp
}

func newDuo(t testing.TB, typ string) *duo {
	r := newRig(t)
	return duoOn(r, typ, "10.0.0.1", "10.0.0.2")
}

func duoOn(r *rig, typ, addrA, addrB string) *duo {
	p := &duo{rig: r}
	p.a = r.node(r.device(addrA))
	p.b = r.node(r.device(addrB))
	p.qa, p.qb = p.a.qp(typ, qpOpts{}), p.b.qp(typ, qpOpts{})
	if typ == "RC" {
		connect(p.qa, p.qb)
	} else {
		p.qa.to(stateInit, stateRTR, stateRTS)
		p.qb.to(stateInit, stateRTR, stateRTS)
	}
	return p
}

// av addresses b's UD QP.
func (p *duo) av(qkey uint32) []byte { return segAV(p.b.d.gids[0].gid, p.qb.qpn, qkey) }

func wantCQEs(t *testing.T, what string, got []got, want ...got) {
	t.Helper()
	if !reflect.DeepEqual(got, append(want[:0:0], want...)) && !(len(got) == 0 && len(want) == 0) {
		t.Errorf("%s: CQEs\n got %+v\nwant %+v", what, got, want)
	}
}

// both runs f on memory that the device can view and on memory that it can
// only copy.
func both(t *testing.T, f func(t *testing.T, noView bool)) {
	for _, noView := range []bool{false, true} {
		t.Run(fmt.Sprintf("noView=%v", noView), func(t *testing.T) { f(t, noView) })
	}
}

func TestUDSendScattersGRHAndData(t *testing.T) {
	for _, v6 := range []bool{false, true} {
		both(t, func(t *testing.T, noView bool) {
			r := newRig(t)
			r.arena.noView = noView
			p := duoOn(r, "UD", "10.0.0.1", "10.0.0.2")
			if v6 {
				p = duoOn(r, "UD", "2001:db8::1", "2001:db8::2")
			}
			src, dst := p.a.mr(100, 0), p.b.mr(200, accessLocalWrite)
			data := bytes.Clone(p.a.fill(src, 1))
			copy(p.b.bytes(dst), bytes.Repeat([]byte{0xcc}, 200))
			p.b.recv(p.qb, dst.sge(0, 30), dst.sge(30, 150)) // the GRH crosses the SGEs
			p.a.send(p.qa, ctrl{op: opSendImm, flags: ce | ctrlSolicited, imm: 0xa1b2c3d4}, p.av(p.qb.attr.qkey), src.sge(0, 60), src.sge(60, 40))

			wantCQEs(t, "sender", p.a.pollAll(p.qa.sendCQ), got{op: cqeReq})
			raw, ok := p.b.poll(p.qb.recvCQ)
			if !ok {
				t.Fatal("nothing received")
			}
			if op := raw[63] >> 4; op != cqeRespSendImm || raw[63]&2 == 0 {
				t.Errorf("op_own %#x, want SEND with immediate, solicited", raw[63])
			}
			if n := be.Uint32(raw[44:]); n != 140 {
				t.Errorf("%d bytes, want 140", n)
			}
			if imm := be.Uint32(raw[36:]); imm != 0xa1b2c3d4 {
				t.Errorf("imm %#x", imm)
			}
			if f := be.Uint32(raw[24:]); f&0xffffff != p.qa.qpn || f>>28&3 == 0 {
				t.Errorf("flags_rqpn %#x, want a GRH from QP %#x", f, p.qa.qpn)
			}
			if u := be.Uint32(raw[32:]); u != p.qb.uidx {
				t.Errorf("uidx %#x, want %#x", u, p.qb.uidx)
			}
			buf := p.b.bytes(dst)
			if !bytes.Equal(buf[40:140], data) || !bytes.Equal(buf[140:], bytes.Repeat([]byte{0xcc}, 60)) {
				t.Errorf("data %x", buf[40:])
			}
			checkGRH(t, buf[:40], v6, p.a.d.addr.AsSlice(), p.b.d.addr.AsSlice(), 100, true)
		})
	}
}

func TestRoCEv1ShowsTheGRHItself(t *testing.T) {
	p := newDuo(t, "UD")
	p.a.d.gids = append(p.a.d.gids, gidSlot{gid: p.a.d.gids[0].gid, typ: gidRoCEv1})
	dst := p.b.mr(64, accessLocalWrite)
	p.b.recv(p.qb, dst.sge(0, 64))
	av := p.av(p.qb.attr.qkey)
	be.PutUint32(av[28:], 1<<20|0x12345) // GID index 1, flow label
	p.a.send(p.qa, ctrl{op: opSend}, av, segInline([]byte("abcde")))
	raw, ok := p.b.poll(p.qb.recvCQ)
	if h := p.b.bytes(dst); !ok || be.Uint32(raw[24:])>>24&3 != l3GRH || be.Uint32(h) != 6<<28|0x12345 || be.Uint16(h[4:]) != 12+8+8+4 ||
		h[6] != 0x1b || h[7] != 64 || [16]byte(h[8:24]) != p.a.d.gids[0].gid || [16]byte(h[24:40]) != p.b.d.gids[0].gid {
		t.Errorf("received %v, CQE %x, GRH %x", ok, raw, h[:40])
	}
}

func checkGRH(t *testing.T, h []byte, v6 bool, src, dst []byte, n int, imm bool) {
	t.Helper()
	payload := 8 + 12 + 8 + (n+3)/4*4 + 4
	if imm {
		payload += 4
	}
	if v6 {
		if h[0]>>4 != 6 || int(be.Uint16(h[4:])) != payload || h[6] != 17 || h[7] != 64 || !bytes.Equal(h[8:24], src) || !bytes.Equal(h[24:], dst) {
			t.Errorf("IPv6 header %x", h)
		}
		return
	}
	ip := h[20:]
	if !bytes.Equal(h[:20], make([]byte, 20)) || ip[0] != 0x45 || int(be.Uint16(ip[2:])) != 20+payload || ip[8] != 64 || ip[9] != 17 ||
		!bytes.Equal(ip[12:16], src) || !bytes.Equal(ip[16:], dst) {
		t.Errorf("IPv4 header %x", h)
	}
	sum := uint32(0)
	for i := 0; i < 20; i += 2 {
		sum += uint32(be.Uint16(ip[i:]))
	}
	if sum>>16+sum&0xffff != 0xffff {
		t.Errorf("IPv4 checksum of %x", ip)
	}
}

func TestRCMovesEverySize(t *testing.T) {
	both(t, func(t *testing.T, noView bool) {
		for _, n := range []uint32{0, 1, 4095, 4096, 4097, 200_000} {
			r := newRig(t)
			r.arena.noView = noView
			p := duoOn(r, "RC", "10.0.0.1", "10.0.0.2")
			size := uint64(n) + 16
			src, dst := p.a.mr(size, accessLocalWrite), p.b.mr(size, accessLocalWrite|accessRemoteRead|accessRemoteWrite)
			var list [][]byte
			if n > 1 {
				list = [][]byte{src.sge(8, 1), src.sge(9, n-1)}
			} else if n == 1 {
				list = [][]byte{src.sge(8, 1)}
			}
			check := func(what string, from, to *mr, nf, nt *node) {
				t.Helper()
				if !bytes.Equal(nf.bytes(from)[8:8+n], nt.bytes(to)[8:8+n]) {
					t.Errorf("%s of %d: data differ", what, n)
				}
				if e := nt.bytes(to); e[7] != 0xee || e[8+n] != 0xee {
					t.Errorf("%s of %d wrote outside", what, n)
				}
			}
			guard := func(nd *node, m *mr) { copy(nd.bytes(m), bytes.Repeat([]byte{0xee}, int(size))) }
			raddr := segRAddr(dst.iova+8, dst.key)

			p.a.fill(src, 3)
			guard(p.b, dst)
			if n == 0 {
				p.b.recv(p.qb)
			} else {
				p.b.recv(p.qb, dst.sge(8, (n+1)/2), dst.sge(8+(n+1)/2, n-(n+1)/2+8))
			}
			p.a.send(p.qa, ctrl{op: opSend, flags: ce}, list...)
			check("SEND", src, dst, p.a, p.b)
			wantCQEs(t, "SEND", p.a.pollAll(p.qa.sendCQ), got{op: cqeReq, bytes: n})
			wantCQEs(t, "receive", p.b.pollAll(p.qb.recvCQ), got{op: cqeRespSend, bytes: n})

			p.a.fill(src, 5)
			guard(p.b, dst)
			p.a.send(p.qa, ctrl{op: opWrite, flags: ce}, append([][]byte{raddr}, list...)...)
			check("WRITE", src, dst, p.a, p.b)
			p.a.fill(src, 7)
			guard(p.b, dst)
			p.b.recv(p.qb)
			p.a.send(p.qa, ctrl{op: opWriteImm, imm: 5}, append([][]byte{raddr}, list...)...)
			check("WRITE with immediate", src, dst, p.a, p.b)
			wantCQEs(t, "WRITE", p.a.pollAll(p.qa.sendCQ), got{op: cqeReq, index: 1, bytes: n})
			wantCQEs(t, "receive", p.b.pollAll(p.qb.recvCQ), got{op: cqeRespWrImm, index: 1, bytes: n})

			p.b.fill(dst, 9)
			guard(p.a, src)
			p.a.send(p.qa, ctrl{op: opRead, flags: ce}, append([][]byte{raddr}, list...)...)
			check("READ", dst, src, p.b, p.a)
			wantCQEs(t, "READ", p.a.pollAll(p.qa.sendCQ), got{op: cqeReq, index: 3, bytes: n})
		}
	})
}

func TestInlineSendWrapsRing(t *testing.T) {
	both(t, func(t *testing.T, noView bool) {
		p := newDuo(t, "RC")
		p.arena.noView = noView
		dst := p.b.mr(1024, accessLocalWrite)
		for lap := range 40 { // 3 WQEBBs each: every position of a ring of 64
			data := make([]byte, 150+lap)
			for i := range data {
				data[i] = byte(lap*3 + i)
			}
			p.b.recv(p.qb, dst.sge(0, 1024))
			p.a.send(p.qa, ctrl{op: opSend, flags: ce}, segInline(data[:70]), segInline(data[70:]))
			wantCQEs(t, "sender", p.a.pollAll(p.qa.sendCQ), got{op: cqeReq, bytes: uint32(len(data)), index: uint16(p.qa.sq.ci - p.wqebbs(len(data)))})
			wantCQEs(t, "receiver", p.b.pollAll(p.qb.recvCQ), got{op: cqeRespSend, bytes: uint32(len(data)), index: uint16(lap)})
			if !bytes.Equal(p.b.bytes(dst)[:len(data)], data) {
				t.Fatalf("lap %d: data differ", lap)
			}
		}
	})
}

func (p *duo) wqebbs(n int) uint32 {
	bytes := 16 + (4+70+15)&^15 + (4+n-70+15)&^15
	return uint32(bytes+63) / 64
}

func TestUnsignaledSuccessWritesNoCQE(t *testing.T) {
	p := newDuo(t, "RC")
	dst := p.b.mr(64, accessLocalWrite|accessRemoteWrite)
	for range 3 {
		p.a.put(p.qa, ctrl{op: opWrite}, segRAddr(dst.iova, dst.key), segInline([]byte("x")))
	}
	p.a.put(p.qa, ctrl{op: opNOP, flags: ce})
	p.a.ring(p.qa)
	wantCQEs(t, "sender", p.a.pollAll(p.qa.sendCQ), got{op: cqeReq, index: 3})
	if p.qa.sq.ci != 4 || p.qa.sq.pi != 4 {
		t.Errorf("ci %d pi %d, want 4 4", p.qa.sq.ci, p.qa.sq.pi)
	}
}

func TestDoorbellTakesAllThatTheRecordShows(t *testing.T) {
	p := newDuo(t, "RC")
	dst := p.b.mr(64, accessLocalWrite|accessRemoteWrite)
	p.qa.sq.pi, p.qa.sq.next, p.qa.sq.ci = 65530, 65530, 65530 // passes 2^16
	be.PutUint32(p.at(p.qa.dbrec+4, 4), 65530)
	for range 20 {
		p.a.put(p.qa, ctrl{op: opWrite, flags: ce}, segRAddr(dst.iova, dst.key), segInline([]byte("x")))
		p.at(p.qa.dbrec+4, 4)[0], p.at(p.qa.dbrec+4, 4)[1] = 0, 0
	}
	p.a.ring(p.qa)
	if n := len(p.a.pollAll(p.qa.sendCQ)); n != 20 {
		t.Errorf("%d CQEs, want 20", n)
	}
}

func TestRecordBeyondTheRingIsQPFatal(t *testing.T) {
	p := newDuo(t, "RC")
	be.PutUint32(p.at(p.qa.dbrec+4, 4), p.qa.sq.size+1)
	p.a.ring(p.qa)
	if p.qa.attr.state != stateErr {
		t.Errorf("state %d, want ERR", p.qa.attr.state)
	}
	recs := events(p.a.f.async)
	if len(recs) != 1 || le.Uint32(recs[0][8:]) != eventQPFatal || le.Uint64(recs[0][:]) != p.qa.user {
		t.Errorf("async events %x, want one QP_FATAL", recs)
	}
}

func TestDoorbellOfAnotherFileIsIgnored(t *testing.T) {
	p := newDuo(t, "RC")
	other := p.node(p.a.d)
	p.a.put(p.qa, ctrl{op: opNOP, flags: ce})
	other.ring(p.qa)
	if p.qa.sq.pi != 0 || p.a.d.stats.Drops.Doorbell != 1 {
		t.Errorf("pi %d, %d doorbells dropped", p.qa.sq.pi, p.a.d.stats.Drops.Doorbell)
	}
	stray := node{rig: p.rig, d: p.a.d, f: p.a.f, page: make([]byte, uarPageBytes)} // its file, not its page
	stray.ring(p.qa)
	stray.arm(p.qa.sendCQ, false)
	if p.qa.sq.pi != 0 || p.qa.sendCQ.armed || p.a.d.stats.Drops.Doorbell != 3 {
		t.Errorf("pi %d, armed %v, %d doorbells dropped", p.qa.sq.pi, p.qa.sendCQ.armed, p.a.d.stats.Drops.Doorbell)
	}
	for _, offset := range []uint32{0, 0x18, 0x801, 0x7ff, 0xc00, 0xff8, 1 << 20} {
		p.a.f.kick(&p.a.page[0], offset)
	}
	if p.qa.sq.pi != 0 {
		t.Error("an offset that is no register rang")
	}
}

func TestCQE128IsInTheUpperHalf(t *testing.T) {
	p := newDuo(t, "RC")
	c := p.a.cq(8)
	c.buf, c.cqeSize = p.alloc(8*128), 128
	p.qa.sendCQ = c
	for range 9 {
		be.PutUint32(p.at(c.dbrec, 4), c.pi) // consumed
		p.a.send(p.qa, ctrl{op: opNOP, flags: ce})
	}
	for i, own := range []byte{1, 0} {
		e := p.at(c.buf+uint64(i)*128, 128)
		if !bytes.Equal(e[:64], make([]byte, 64)) || be.Uint32(e[64+56:])&0xffffff != p.qa.qpn || e[127] != own {
			t.Errorf("entry %d: %x", i, e)
		}
	}
}

func TestQPWorksAgainAfterReset(t *testing.T) {
	p := newDuo(t, "RC")
	dst := p.b.mr(64, accessLocalWrite|accessRemoteWrite)
	p.b.recv(p.qb, dst.sge(0, 64))
	p.a.send(p.qa, ctrl{op: opWrite, flags: ce}, segRAddr(dst.iova, dst.key^1), segInline([]byte("x")))
	p.a.pollAll(p.qa.sendCQ)
	p.b.pollAll(p.qb.recvCQ)
	for _, q := range []*qp{p.qa, p.qb} {
		if q.attr.state != stateErr {
			t.Fatalf("QP %#x in state %d, want ERR", q.qpn, q.attr.state)
		}
		q.to(stateReset)
		copy(p.at(q.dbrec, 8), make([]byte, 8))
	}
	connect(p.qa, p.qb)
	p.b.recv(p.qb, dst.sge(0, 64))
	p.a.send(p.qa, ctrl{op: opSend, flags: ce}, segInline([]byte("again")))
	wantCQEs(t, "sender", p.a.pollAll(p.qa.sendCQ), got{op: cqeReq, bytes: 5})
	wantCQEs(t, "receiver", p.b.pollAll(p.qb.recvCQ), got{op: cqeRespSend, bytes: 5})
	if p.qb.recvCQ.eng.errQPs != 0 {
		t.Errorf("errQPs %d after reset", p.qb.recvCQ.eng.errQPs)
	}
}

func TestRCLoopbackToItself(t *testing.T) {
	r := newRig(t)
	n := r.node(r.device("10.0.0.1"))
	q := n.qp("RC", qpOpts{})
	connect(q, q)
	dst := n.mr(64, accessLocalWrite)
	n.recv(q, dst.sge(0, 64))
	n.send(q, ctrl{op: opSend, flags: ce}, segInline([]byte("self")))
	wantCQEs(t, "sender", n.pollAll(q.sendCQ), got{op: cqeReq, bytes: 4})
	wantCQEs(t, "receiver", n.pollAll(q.recvCQ), got{op: cqeRespSend, bytes: 4})

	// Both roles fail at once: the receive with its error, all else flushed.
	n.recv(q, dst.sge(0, 2))
	for range 3 {
		n.put(q, ctrl{op: opSend, flags: ce}, segInline([]byte("too long")))
	}
	n.ring(q)
	wantCQEs(t, "receiver", n.pollAll(q.recvCQ), got{op: cqeRespErr, index: 1, syn: synLocalLen})
	wantCQEs(t, "sender", n.pollAll(q.sendCQ), got{op: cqeReqErr, index: 1, syn: synFlush},
		got{op: cqeReqErr, index: 2, syn: synFlush}, got{op: cqeReqErr, index: 3, syn: synFlush})
	if q.attr.state != stateErr || q.sq.ci != q.sq.pi || q.sq.next != q.sq.pi {
		t.Errorf("state %d, ci %d next %d pi %d", q.attr.state, q.sq.ci, q.sq.next, q.sq.pi)
	}
}

// TestOverrunByThePeerTakesBothQPsDown lets a receive completion overrun a CQ
// that the sender uses too, in the middle of a list.
func TestOverrunByThePeerTakesBothQPsDown(t *testing.T) {
	for _, typ := range []string{"RC", "UD"} {
		r := newRig(t)
		n := r.node(r.device("10.0.0.1"))
		shared, own := n.cq(2), n.cq(64)
		qa := n.qp(typ, qpOpts{sendCQ: own, recvCQ: shared})
		qb := n.qp(typ, qpOpts{sendCQ: own, recvCQ: shared})
		segs := [][]byte{segInline([]byte("x"))}
		if typ == "UD" {
			qa.to(stateInit, stateRTR, stateRTS)
			qb.to(stateInit, stateRTR, stateRTS)
			segs = [][]byte{segAV(n.d.gids[0].gid, qb.qpn, qb.attr.qkey), segs[0]}
		} else {
			connect(qa, qb)
		}
		dst := n.mr(64, accessLocalWrite)
		for range 5 {
			n.recv(qb, dst.sge(0, 64))
			n.put(qa, ctrl{op: opSend, flags: ce}, segs...)
		}
		n.ring(qa)
		all := n.pollAll(own)
		if len(all) != 5 {
			t.Fatalf("%s: CQEs %+v, want 5", typ, all)
		}
		for i, g := range all {
			if want := map[bool]syndrome{true: synOK, false: synFlush}[i < 2]; g.syn != want {
				t.Errorf("%s: send %d: %v, want %v", typ, i, g.syn, want)
			}
		}
		for _, q := range []*qp{qa, qb} {
			if q.attr.state != stateErr || q.sq.ci != q.sq.pi || q.sq.next != q.sq.pi || q.rq.ci != q.rq.pi {
				t.Errorf("%s: QP in state %d, SQ %+v, RQ %+v", typ, q.attr.state, q.sq, q.rq)
			}
		}
	}
}

// TestGRHShowsThePathOfTheAddressVector: what the sender set is what the
// receiver sees.
func TestGRHShowsThePathOfTheAddressVector(t *testing.T) {
	for _, v6 := range []bool{false, true} {
		r := newRig(t)
		p := duoOn(r, "UD", "10.0.0.1", "10.0.0.2")
		if v6 {
			p = duoOn(r, "UD", "2001:db8::1", "2001:db8::2")
		}
		dst := p.b.mr(128, accessLocalWrite)
		p.b.recv(p.qb, dst.sge(0, 128))
		av := p.av(p.qb.attr.qkey)
		av[26], av[27] = 0xb8, 17
		be.PutUint32(av[28:], 0xabcde)
		p.a.send(p.qa, ctrl{op: opSend}, av, segInline([]byte("x")))
		g := p.b.bytes(dst)
		tc, hops := g[21], g[28]
		if v6 {
			tc, hops = uint8(be.Uint32(g)>>20), g[7]
			if flow := be.Uint32(g) & 0xfffff; flow != 0xabcde {
				t.Errorf("flow label %#x", flow)
			}
		}
		if tc != 0xb8 || hops != 17 {
			t.Errorf("v6 %v: traffic class %#x, hop limit %d", v6, tc, hops)
		}
	}
}
