package mlx5sim

import (
	"bytes"
	"testing"
)

// goldenWQEs are all send WQEs of the vectors, with the type of their QP.
func goldenWQEs(t testing.TB) (wqes [][]byte, ud []bool) {
	for _, name := range []string{"ud_send", "rc_send", "rc_send_wr_api", "send_lists"} {
		g := loadGolden(t, name)
		for _, v := range g.Vectors {
			for i := range v.WQEs {
				wqes = append(wqes, v.WQEs[i].Hex[:v.WQEs[i].DS*segBytes])
				ud = append(ud, g.qp(v.QP).Type == "UD")
			}
		}
	}
	return wqes, ud
}

func wqeType(ud bool) uint8 {
	if ud {
		return qpUD
	}
	return qpRC
}

// TestDecodeRefusesCutWQEs cuts every recorded WQE at every length: the
// segment count does not fit any more, and a count that fits a cut at a segment
// must still not read beyond it.
func TestDecodeRefusesCutWQEs(t *testing.T) {
	wqes, ud := goldenWQEs(t)
	for k, w := range wqes {
		op := sendOp{index: uint32(be.Uint16(w[1:]))}
		qpn := be.Uint32(w[4:]) >> 8
		for n := range w {
			if s := op.decode(w[:n:n], wqeType(ud[k]), qpn); s == synOK {
				t.Fatalf("WQE %x cut at %d is accepted", w, n)
			}
		}
		for n := segBytes; n < len(w); n += segBytes {
			cut := append([]byte(nil), w[:n]...)
			cut[7] = byte(n / segBytes)
			op.decode(cut[:n:n], wqeType(ud[k]), qpn)
			checkDecoded(t, &op)
		}
	}
}

// checkDecoded checks what must hold of any op, whatever it was decoded from.
func checkDecoded(t *testing.T, op *sendOp) {
	var sum uint64
	for _, s := range op.sges {
		sum += uint64(s.n)
		if s.inline && s.addr+uint64(s.n) > uint64(len(op.wqe)) {
			t.Fatalf("inline segment %+v beyond the WQE of %d", s, len(op.wqe))
		}
		if s.n > dataMaxBytes {
			t.Fatalf("segment %+v is too long", s)
		}
	}
	if sum != op.length {
		t.Fatalf("length %d, segments have %d", op.length, sum)
	}
	if len(op.sges) > maxDS {
		t.Fatalf("%d segments", len(op.sges))
	}
}

func FuzzDecodeWQE(f *testing.F) {
	wqes, ud := goldenWQEs(f)
	for i, w := range wqes {
		f.Add(w, ud[i])
	}
	f.Fuzz(func(t *testing.T, w []byte, ud bool) {
		if len(w) > maxWQEBytes {
			return
		}
		op := sendOp{}
		var qpn uint32
		if len(w) >= 8 {
			op.index, qpn = uint32(be.Uint16(w[1:])), be.Uint32(w[4:])>>8
		}
		op.decode(w, wqeType(ud), qpn)
		checkDecoded(t, &op)
		var kept sendOp
		kept.copyFrom(&op)
		checkDecoded(t, &kept)
	})
}

func FuzzDecodeRecvWQE(f *testing.F) {
	for _, name := range []string{"recv", "srq_recv"} {
		for _, v := range loadGolden(f, name).Vectors {
			for i := range v.WQEs {
				f.Add([]byte(v.WQEs[i].Hex))
			}
		}
	}
	f.Add(segData(1, 1<<31, 7)) // a reserved bit is no length
	f.Fuzz(func(t *testing.T, b []byte) {
		var w recvWQE
		w.decode(b)
		var sum uint64
		for _, s := range w.sges {
			sum += uint64(s.n)
			if s.n == 0 || s.inline {
				t.Fatalf("segment %+v", s)
			}
		}
		if sum != w.length || len(w.sges) > len(b)/segBytes {
			t.Fatalf("%d bytes in %d segments, want %d", w.length, len(w.sges), sum)
		}
	})
}

// FuzzExecuteSQ lets the device run a send queue of arbitrary bytes, with
// arbitrary producer indices, against a peer whose receive queue is arbitrary
// too. Nothing may panic or leave the arena, and afterwards every WQE that the
// record announced is retired, waits, or was never started.
func FuzzExecuteSQ(f *testing.F) {
	wqes, ud := goldenWQEs(f)
	for i, w := range wqes {
		f.Add(w, []byte(nil), uint16((len(w)+63)/64), ud[i], i%2 == 0)
	}
	f.Add(make([]byte, 4096), make([]byte, 512), uint16(64), false, true)
	bind := append(make([]byte, 16), bytes.Join(umrBind(0, 1, &mr{}, 1, 1, 64, mwAccess), nil)...)
	bind[3], bind[7], bind[12], bind[umrKLMAt+7] = opUMR, 12, 0xee, 1 // an imm that becomes the window's key
	f.Add(bind, []byte(nil), uint16(4), false, false)
	f.Fuzz(func(t *testing.T, sq, rq []byte, pi uint16, ud, noView bool) {
		typ := "RC"
		if ud {
			typ = "UD"
		}
		p := newDuo(t, typ)
		p.arena.noView = noView
		p.qa.attr.timeout, p.qa.attr.rnrRetry = 0, 0 // nothing waits for a timer
		m, n := p.a.mr(4096, allAccess|accessMWBind), p.b.mr(4096, allAccess)
		win := p.a.mw(mwType2)
		p.qb.attr.access |= accessRemoteAtomic
		p.qa.answerInCQE, p.qb.recvInCQE = noView, !noView
		ring := p.at(p.qa.sq.buf, p.qa.sq.size*wqebbBytes)
		copy(ring, sq)
		copy(p.at(p.qb.rq.buf, p.qb.rq.size*p.qb.rq.stride), rq)
		if len(rq) == 0 {
			for range 3 {
				p.b.recv(p.qb, n.sge(0, 4096))
			}
		} else {
			be.PutUint32(p.at(p.qb.dbrec, 4), uint32(rq[0]))
		}
		// Give what looks like a WQE the identity that it needs to be run.
		for i := uint32(0); i < p.qa.sq.size; {
			w := ring[i*wqebbBytes:]
			ds, bbs := decodeCtrl(w)
			w[0], w[1], w[2] = 0, 0, byte(i)
			be.PutUint32(w[4:], p.qa.qpn<<8|uint32(w[7]&0x3f))
			if w[12] == 0xee && ds > umrKLMAt/segBytes && len(w) >= umrKLMAt { // a window that may be bound
				be.PutUint32(w[12:], win.key)
				w[segBytes] |= umrInline
				be.PutUint32(w[umrMKeyAt+4:], p.qa.qpn<<8|uint32(w[umrMKeyAt+7]))
			}
			av := segBytes
			if ud && ds >= 4 && len(w) >= 64 {
				copy(w[av+32:], p.b.d.gids[0].gid[:])
				be.PutUint32(w[av+8:], 1<<31|p.qb.qpn)
				be.PutUint32(w[av:], p.qb.attr.qkey)
			}
			for o := segBytes; o+segBytes <= ds*segBytes && o+segBytes <= len(w); o += segBytes {
				if key := w[o+7]; key&3 == 1 { // name a real MR now and then
					be.PutUint32(w[o+4:], m.key)
					be.PutUint64(w[o+8:], m.iova+uint64(key))
				} else if key&3 == 2 {
					be.PutUint32(w[o+8:], n.key)
					be.PutUint64(w[o:], n.iova+uint64(key))
				}
			}
			i += bbs
		}
		be.PutUint32(p.at(p.qa.dbrec+4, 4), uint32(pi))
		p.a.ring(p.qa)

		q := p.qa
		switch q.attr.state {
		case stateRTS:
			if q.sq.ci != q.sq.next || q.sq.next != q.sq.pi && !q.eng.waiting {
				t.Fatalf("in RTS: ci %d next %d pi %d, waiting %v", q.sq.ci, q.sq.next, q.sq.pi, q.eng.waiting)
			}
		default:
			if q.sq.ci != q.sq.pi || q.sq.next != q.sq.pi {
				t.Fatalf("in state %d: ci %d next %d pi %d", q.attr.state, q.sq.ci, q.sq.next, q.sq.pi)
			}
		}
		if got := uint32(uint16(pi)); got <= q.sq.size && q.sq.pi != got {
			t.Fatalf("pi %d, want %d", q.sq.pi, got)
		}
		failed := 0
		for _, e := range p.a.pollAll(q.sendCQ) {
			if e.op == cqeReqErr && e.syn != synFlush {
				failed++
			}
		}
		if failed > 1 || failed == 0 && q.attr.state == stateSQE {
			t.Fatalf("%d failures in state %d", failed, q.attr.state)
		}
	})
}

// FuzzSRQ sends to a QP whose SRQ has arbitrary bytes and an arbitrary count of
// them. Nothing may panic, and no WQE may be taken that was not announced.
func FuzzSRQ(f *testing.F) {
	for _, v := range loadGolden(f, "srq_recv").Vectors {
		var ring []byte
		for i := range v.WQEs {
			ring = append(ring, v.WQEs[i].Hex...)
		}
		if len(ring) > 0 {
			f.Add(ring, uint16(len(v.WQEs)), uint8(3), false)
		}
	}
	f.Add([]byte{2: 0, 3: 0}, uint16(4), uint8(4), true) // a list that is a circle
	f.Fuzz(func(t *testing.T, ring []byte, posted uint16, msgs uint8, noView bool) {
		p := newDuo(t, "RC")
		p.arena.noView = noView
		p.qa.attr.rnrRetry = 0
		s := p.b.srqOf(8, 64, p.qb)
		s.limit = 2
		dst := p.b.mr(4096, accessLocalWrite)
		for at := srqNextBytes; at+segBytes <= len(ring); at += segBytes {
			if ring[at+7]&1 == 1 { // name a real MR now and then
				be.PutUint32(ring[at+4:], dst.key)
				be.PutUint64(ring[at+8:], dst.iova+uint64(ring[at+15]))
			}
		}
		copy(p.at(s.rq.buf, 8*64), ring)
		be.PutUint32(p.at(s.dbrec, 4), uint32(posted))
		for range msgs % 10 {
			p.a.send(p.qa, ctrl{op: opSend}, segInline([]byte("message")))
		}
		taken := len(p.b.pollAll(p.qb.recvCQ))
		if taken > int(posted) || uint32(taken) != s.rq.ci || s.head >= s.rq.size {
			t.Fatalf("%d taken of %d posted, ci %d, head %d", taken, posted, s.rq.ci, s.head)
		}
		if posted > 8 && msgs%10 > 0 && !s.broken {
			t.Fatal("a count beyond the queue was taken")
		}
	})
}

func TestCopiedOpOutlivesTheRing(t *testing.T) {
	p := newDuo(t, "RC")
	p.a.put(p.qa, ctrl{op: opSend, flags: ce}, segInline([]byte("inline data")))
	p.qa.syncSQ()
	var op, kept sendOp
	if s := p.qa.fetch(&op); s != synOK {
		t.Fatal(s)
	}
	for range 2 { // the second time into memory that it has already
		kept.copyFrom(&op)
	}
	clear(p.at(p.qa.sq.buf, wqebbBytes))
	op.sges = append(op.sges[:0], dataSeg{n: 999})
	b := make([]byte, 11)
	if s := p.qa.gather(&kept, 0, b); s != synOK || string(b) != "inline data" {
		t.Errorf("%v %q", s, b)
	}
	if n := testing.AllocsPerRun(100, func() { kept.copyFrom(&op) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}
