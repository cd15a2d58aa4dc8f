package mlx5sim

import (
	"bytes"
	"testing"
	"testing/synctest"
	"time"

	"github.com/rrppcc-go/rrppcc/internal/roce"
)

// inlineCQE checks the data that an entry of c carries.
func (n *node) inlineCQE(c *cq, want []byte) {
	n.t.Helper()
	db := n.at(c.dbrec, 4)
	ci := be.Uint32(db)
	b := n.at(c.buf+uint64(ci&(c.size-1))*uint64(c.cqeSize), uint32(c.cqeSize))
	flag := byte(cqeInline32)
	if c.cqeSize == 128 {
		flag = cqeInline64
	}
	if len(want) > len(b)/2 {
		n.t.Fatalf("%d bytes cannot be in an entry", len(want))
	}
	if b[len(b)-1]&0xc != flag || !bytes.Equal(b[:len(want)], want) || be.Uint32(b[len(b)-20:]) != uint32(len(want)) {
		n.t.Errorf("entry %x\nwant the data %x", b, want)
	}
	be.PutUint32(db, ci+1)
}

// plainCQE checks that an entry of c carries no data, only their number.
func (n *node) plainCQE(c *cq, size uint32) {
	n.t.Helper()
	db := n.at(c.dbrec, 4)
	ci := be.Uint32(db)
	b := n.at(c.buf+uint64(ci&(c.size-1))*uint64(c.cqeSize), uint32(c.cqeSize))
	if b[len(b)-1]&0xc != 0 || b[len(b)-1]>>4 >= cqeReqErr || be.Uint32(b[len(b)-20:]) != size {
		n.t.Errorf("entry %x, want %d bytes in memory", b, size)
	}
	be.PutUint32(db, ci+1)
}

func (n *node) cqOf(size uint32, cqeSize int) *cq {
	c := n.cq(size)
	c.buf, c.cqeSize = n.alloc(uint64(size)*uint64(cqeSize)), cqeSize
	for i := range size {
		n.at(c.buf+uint64(i+1)*uint64(cqeSize)-1, 1)[0] = 0xf0
	}
	return c
}

func TestShortMessagesGoIntoTheCQE(t *testing.T) {
	for _, cqeSize := range []int{64, 128} {
		for _, shared := range []bool{false, true} {
			p := newDuo(t, "RC")
			p.qb.recvCQ = p.b.cqOf(64, cqeSize)
			p.qb.recvInCQE = true
			dst := p.b.mr(4096, accessLocalWrite|accessRemoteWrite)
			copy(p.b.bytes(dst), bytes.Repeat([]byte{0xcc}, 4096))
			limit := cqeSize / 2
			var s *sharedRQ
			if shared {
				s = p.b.srqOf(16, 64, p.qb)
			}
			recv := func() {
				if shared {
					s.post(dst.sge(0, 100))
				} else {
					p.b.recv(p.qb, dst.sge(0, 100))
				}
			}
			data := bytes.Repeat([]byte("0123456789"), 10)
			for _, n := range []int{1, limit - 1, limit} {
				recv()
				p.a.send(p.qa, ctrl{op: opSend}, segInline(data[:n]))
				p.b.inlineCQE(p.qb.recvCQ, data[:n])
			}
			if b := p.b.bytes(dst); bytes.Count(b, []byte{0xcc}) != len(b) {
				t.Errorf("data are in memory too: %x", b[:100])
			}
			for _, n := range []int{0, limit + 1} {
				recv()
				p.a.send(p.qa, ctrl{op: opSend}, segInline(data[:n]))
				p.b.plainCQE(p.qb.recvCQ, uint32(n))
			}
			recv()
			p.a.send(p.qa, ctrl{op: opWriteImm}, segRAddr(dst.iova+200, dst.key), segInline(data[:5]))
			p.b.plainCQE(p.qb.recvCQ, 5)
			if b := p.b.bytes(dst); !bytes.Equal(b[:limit+1], data[:limit+1]) || !bytes.Equal(b[200:205], data[:5]) {
				t.Error("long messages and WRITEs go to memory")
			}
		}
	}
}

// TestIntoCQENeedsNoMemoryButRoom: the keys of the receive are not looked at,
// its length is.
func TestIntoCQENeedsNoMemoryButRoom(t *testing.T) {
	p := newDuo(t, "RC")
	p.qb.recvInCQE = true
	p.b.recv(p.qb, segData(0x1234, 8, 0xbad))
	p.b.recv(p.qb, segData(0x1234, 8, 0xbad))
	p.a.send(p.qa, ctrl{op: opSend}, segInline([]byte("12345678")))
	p.b.inlineCQE(p.qb.recvCQ, []byte("12345678"))
	p.a.send(p.qa, ctrl{op: opSend}, segInline([]byte("123456789")))
	wantCQEs(t, "too long", p.b.pollAll(p.qb.recvCQ), got{op: cqeRespErr, index: 1, syn: synLocalLen})
}

func TestShortAnswersGoIntoTheCQE(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		// In process, and by the wire.
		r := newDuo(t, "RC")
		w := lossyPair(t, 1, Faults{})
		wa, wb := w.connect(qpOpts{}, nil)
		for _, p := range []struct {
			a, b   *node
			qa, qb *qp
		}{{r.a, r.b, r.qa, r.qb}, {w.a, w.b, wa, wb}} {
			p.qa.answerInCQE = true
			p.qb.attr.access |= accessRemoteAtomic
			src, dst := p.a.mr(4096, accessLocalWrite), p.b.mr(4096, allAccess)
			data := bytes.Clone(p.b.fill(dst, 40))
			send := func(c ctrl, segs ...[]byte) {
				p.a.send(p.qa, c, segs...)
				time.Sleep(time.Second)
				synctest.Wait()
			}
			send(ctrl{op: opRead, flags: ce}, segRAddr(dst.iova+64, dst.key), src.sge(0, 12), src.sge(100, 20))
			p.a.inlineCQE(p.qa.sendCQ, data[64:96])
			send(ctrl{op: opFetchAdd, flags: ce}, segRAddr(dst.iova+8, dst.key), segAtomic(1, 0), src.sge(0, 8))
			p.a.inlineCQE(p.qa.sendCQ, data[8:16])
			if b := p.a.bytes(src); bytes.Count(b, []byte{0}) != len(b) {
				t.Error("data are in memory too")
			}
			send(ctrl{op: opRead}, segRAddr(dst.iova, dst.key), src.sge(0, 8)) // no completion to put it in
			send(ctrl{op: opRead, flags: ce}, segRAddr(dst.iova, dst.key), src.sge(64, 33))
			p.a.plainCQE(p.qa.sendCQ, 33)
			want := data // the addition was to bytes 8 to 15
			hostOrder.PutUint64(want[8:], hostOrder.Uint64(want[8:])+1)
			if b := p.a.bytes(src); !bytes.Equal(b[:8], want[:8]) || !bytes.Equal(b[64:97], want[:33]) {
				t.Errorf("%x", b[:100])
			}
			send(ctrl{op: opSend, flags: ce}) // nothing of an answer is left over
			if raw, ok := p.a.poll(p.qa.sendCQ); ok && raw[63]&0xc != 0 {
				t.Errorf("%x", raw)
			}
		}
	})
}

func TestShortPacketsGoIntoTheCQE(t *testing.T) {
	s := newStranger(t, func(q *qp) { q.recvInCQE = true })
	m := s.mr(4096, accessLocalWrite)
	for i := range uint32(3) {
		s.recv(s.q, m.sge(i*1200, 1200))
	}
	s.give(s.only(0x200, "short"),
		s.packet(roce.BTH{Opcode: roce.RCSendFirst, PSN: 0x201}, nil, bytes.Repeat([]byte{1}, 1024)),
		s.packet(roce.BTH{Opcode: roce.RCSendLast, PSN: 0x202}, nil, []byte("end")),
		s.only(0x203, "of a length beyond 32 of the CQE's"))
	s.inlineCQE(s.q.recvCQ, []byte("short"))
	s.plainCQE(s.q.recvCQ, 1027)
	s.plainCQE(s.q.recvCQ, 34)
	if b := s.bytes(m); b[0] != 0 || string(b[1200+1024:][:3]) != "end" {
		t.Error("data are in the wrong place")
	}
}

func TestScatterToCQEFollowsTheFlags(t *testing.T) {
	u := newUser(t)
	u.getContext()
	_, index := u.allocUAR()
	pdh := u.allocPD()
	cqh := u.createCQ(index)
	for _, tt := range []struct {
		typ        uint8
		flags      uint32
		sigAll     uint32
		recv, send bool
	}{
		{qpRC, 0, qpCreateSigAll, false, false},
		{qpRC, qpFlagScatterCQE, 0, true, false},
		{qpRC, qpFlagScatterCQE, qpCreateSigAll, true, true},
		{qpRC, qpFlagScatterCQE | qpFlagAllowScatterCQE, 0, true, true},
		{qpRC, qpFlagAllowScatterCQE, qpCreateSigAll, false, false},
		{qpUC, qpFlagScatterCQE, qpCreateSigAll, true, true}, // it fetches nothing
		{qpUC, 0, qpCreateSigAll, false, false},
		{qpUD, qpFlagScatterCQE, qpCreateSigAll, false, false},
	} {
		uhw := qpUHW(u.alloc(16*64+8*16), u.alloc(8), 16, 8, 4, 1, index)
		le.PutUint32(uhw[28:], qpFlagUARPageIndex|tt.flags)
		cmd := u.must(u.createQPCmd(tt.typ, pdh, cqh, qpCaps(8, 8, 1, 1, 0), uhw, in32(attrQPFlags, tt.sigAll)))
		q := u.f.handles[uint32(dataWord(cmd, 0))].(*qp)
		if q.recvInCQE != tt.recv || q.answerInCQE != tt.send {
			t.Errorf("type %d, flags %#x, signal all %#x: receives %v, answers %v", tt.typ, tt.flags, tt.sigAll, q.recvInCQE, q.answerInCQE)
		}
	}
}
