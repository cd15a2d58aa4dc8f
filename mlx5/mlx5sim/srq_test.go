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

// sharedRQ is an SRQ with the program's half of it: the free list that libmlx5
// keeps in the WQEs.
type sharedRQ struct {
	*srq
	n          *node
	next, tail uint32
	count      uint16
}

func (n *node) srqOf(size, stride uint32, qps ...*qp) *sharedRQ {
	s := &srq{pd: n.pd, user: 0x5a5a, srqn: firstSRQN + uint32(len(n.d.srqs)), dbrec: n.alloc(8)}
	s.rq = wq{size: size, stride: stride, buf: n.alloc(uint64(size * stride))}
	for i := range size {
		be.PutUint16(n.at(s.rq.buf+uint64(i*stride)+2, 2), uint16((i+1)%size))
	}
	n.d.srqs[s.srqn] = s
	for _, q := range qps {
		q.srq, q.rq = s, wq{}
		s.refs++
	}
	return &sharedRQ{srq: s, n: n, tail: size - 1}
}

func (s *sharedRQ) wqe(i uint32) []byte { return s.n.at(s.rq.buf+uint64(i*s.rq.stride), s.rq.stride) }

// post posts one receive and returns its WQE index.
func (s *sharedRQ) post(segs ...[]byte) uint32 {
	s.n.t.Helper()
	if s.next == s.tail {
		s.n.t.Fatal("the SRQ is full")
	}
	i := s.next
	w := s.wqe(i)
	b := append(w[:srqNextBytes:srqNextBytes], bytes.Join(segs, nil)...)
	if len(b) < len(w) {
		b = append(b, segData(0, 0, terminatorLKey)...)
	}
	copy(w[srqNextBytes:], b[srqNextBytes:])
	s.next = uint32(be.Uint16(w[2:]))
	s.count++
	be.PutUint32(s.n.at(s.dbrec, 4), uint32(s.count))
	return i
}

// free gives WQE i back, as after its completion.
func (s *sharedRQ) free(i uint32) {
	be.PutUint16(s.wqe(s.tail)[2:], uint16(i))
	s.tail = i
}

func TestSharedReceivesFollowTheListOfLibmlx5(t *testing.T) {
	for _, noView := range []bool{false, true} {
		g := loadGolden(t, "srq_recv")
		seen := 0
		for _, gs := range g.SRQs {
			r := newRig(t)
			r.arena.noView = noView
			n := r.node(r.device("10.0.0.1"))
			q := n.qp("RC", qpOpts{})
			s := n.srqOf(gs.WQECount, gs.Stride, q)
			for i, next := range gs.Next {
				be.PutUint16(s.wqe(uint32(i))[2:], next)
			}
			q.attr.state = stateRTS
			at := uint32(0) // WQEs before the first recorded one were posted unrecorded
			for _, v := range g.Vectors {
				if v.SRQ != gs.Name || len(v.WQEs) == 0 && v.Name != "srq_complete" {
					continue
				}
				if v.Name == "srq_complete" {
					break // from here on the list has another order
				}
				for ; at < v.WQEs[0].SRQIndex; at++ {
					be.PutUint32(n.at(s.dbrec, 4), at+1)
					if w, st := q.takeRecv(); st != recvOK || uint32(w.index) != at {
						t.Fatalf("%s: unrecorded receive %d: %v", v.Name, at, st)
					}
				}
				for i := range v.WQEs {
					copy(s.wqe(v.WQEs[i].SRQIndex), v.WQEs[i].junk())
				}
				copy(n.at(s.dbrec, 4), v.After.DBRec)
				for i := range v.WQEs {
					w, st := q.takeRecv()
					if st != recvOK || uint32(w.index) != v.WQEs[i].SRQIndex {
						t.Fatalf("%s: %v, %+v", v.Name, st, w)
					}
					var want []dataSeg
					for _, x := range v.WRs[i].SGEs {
						if x.Length != 0 {
							want = append(want, dataSeg{addr: uint64(x.Addr), n: x.Length, lkey: x.LKey})
						}
					}
					if fmt.Sprint(want) != fmt.Sprint(append([]dataSeg(nil), w.sges...)) {
						t.Errorf("%s: %+v, want %+v", v.Name, w.sges, want)
					}
					seen++
					at++
				}
			}
			if _, st := q.takeRecv(); st != recvEmpty {
				t.Errorf("%s: one more receive: %v", gs.Name, st)
			}
		}
		if seen < 15 {
			t.Errorf("%d receives seen", seen)
		}
	}
}

// twoSenders is a device with two QPs on one SRQ, and a device that sends to
// both.
func twoSenders(t testing.TB, size uint32) (p *duo, s *sharedRQ, qa2, qb2 *qp) {
	p = newDuo(t, "RC")
	qa2, qb2 = p.a.qp("RC", qpOpts{}), p.b.qp("RC", qpOpts{recvCQ: p.qb.recvCQ})
	connect(qa2, qb2)
	return p, p.b.srqOf(size, 64, p.qb, qb2), qa2, qb2
}

func TestQPsShareTheReceivesOfAnSRQ(t *testing.T) {
	p, s, qa2, qb2 := twoSenders(t, 8)
	dst := p.b.mr(4096, accessLocalWrite)
	slot := map[uint32]uint32{} // WQE index: slot of dst
	for i := range uint32(7) {
		slot[s.post(dst.sge(i*64, 20), dst.sge(i*64+32, 20))] = i
	}
	rng := rand.New(rand.NewPCG(1, 2))
	for round := range uint32(100) {
		q, peer := p.qa, p.qb
		if rng.IntN(2) == 0 {
			q, peer = qa2, qb2
		}
		text := fmt.Sprintf("message %d of QP %#x", round, q.qpn)
		p.a.send(q, ctrl{op: opSendImm, flags: ce, imm: round}, segInline([]byte(text)))
		wantCQEs(t, "sender", p.a.pollAll(q.sendCQ), got{op: cqeReq, index: uint16(q.sq.ci - 1), bytes: uint32(len(text))})
		raw, ok := p.b.poll(p.qb.recvCQ)
		if !ok {
			t.Fatal("nothing received")
		}
		index := uint32(be.Uint16(raw[60:]))
		if be.Uint32(raw[56:])&0xffffff != peer.qpn || be.Uint32(raw[32:]) != peer.uidx || be.Uint32(raw[36:]) != round {
			t.Fatalf("round %d: CQE %x", round, raw)
		}
		i := slot[index]
		b := p.b.bytes(dst)[i*64:]
		if have := string(b[:20]) + string(b[32:][:len(text)-20]); have != text {
			t.Fatalf("round %d: %q", round, have)
		}
		delete(slot, index)
		s.free(index)
		slot[s.post(dst.sge(i*64, 20), dst.sge(i*64+32, 20))] = i
	}
}

func TestCQEVersion0NamesTheSRQ(t *testing.T) {
	p, s, _, _ := twoSenders(t, 8)
	dst := p.b.mr(64, accessLocalWrite)
	p.b.f.cqeVersion = 0
	s.post(dst.sge(0, 64))
	p.a.send(p.qa, ctrl{op: opSend}, segInline([]byte("x")))
	if raw, ok := p.b.poll(p.qb.recvCQ); !ok || be.Uint32(raw[32:]) != s.srqn {
		t.Errorf("%x, want SRQ %#x", raw, s.srqn)
	}
}

func TestSRQsPDChecksItsReceives(t *testing.T) {
	p, s, _, _ := twoSenders(t, 8)
	other := &pd{file: p.b.f}
	s.pd = other
	own := p.b.mr(64, accessLocalWrite)
	foreign := p.b.mr(64, accessLocalWrite)
	own.pd = other
	s.post(own.sge(0, 64))
	s.post(foreign.sge(0, 64))
	p.a.put(p.qa, ctrl{op: opSend, flags: ce}, segInline([]byte("good")))
	p.a.send(p.qa, ctrl{op: opSend, flags: ce}, segInline([]byte("bad!")))
	wantCQEs(t, "sender", p.sent(), got{op: cqeReq, bytes: 4}, got{op: cqeReqErr, index: 1, syn: synRemOp})
	wantCQEs(t, "receiver", p.b.pollAll(p.qb.recvCQ), got{op: cqeRespSend, bytes: 4}, got{op: cqeRespErr, index: 1, syn: synLocalProt})
	if string(p.b.bytes(own)[:4]) != "good" || p.b.bytes(foreign)[0] != 0 {
		t.Error("data are in the wrong place")
	}
}

// asyncs are the types of the async events that n's file has not read.
func (n *node) asyncs() (types []uint32) {
	for _, rec := range events(n.f.async) {
		types = append(types, le.Uint32(rec[8:]))
	}
	return types
}

func wantAsyncs(t *testing.T, what string, got []uint32, want ...uint32) {
	t.Helper()
	if fmt.Sprint(got) != fmt.Sprint(append([]uint32{}, want...)) {
		t.Errorf("%s: async events %v, want %v", what, got, want)
	}
}

func TestErrorLeavesTheSRQToOthers(t *testing.T) {
	p, s, qa2, qb2 := twoSenders(t, 8)
	dst := p.b.mr(256, accessLocalWrite)
	for i := range uint32(3) {
		s.post(dst.sge(i*64, 64))
	}
	p.qb.to(stateErr)
	wantCQEs(t, "nothing is flushed from the SRQ", p.b.pollAll(p.qb.recvCQ))
	wantAsyncs(t, "ERR", p.b.asyncs(), eventLastWQEReached)
	p.qb.to(stateErr)
	p.b.ring(p.qb)
	wantAsyncs(t, "ERR again", p.b.asyncs())
	p.a.send(qa2, ctrl{op: opSend}, segInline([]byte("for the other")))
	wantCQEs(t, "the other QP", p.b.pollAll(qb2.recvCQ), got{op: cqeRespSend, bytes: 13})
	p.a.send(qa2, ctrl{op: opSend}, segInline(make([]byte, 65))) // too long: consumes a WQE
	wantCQEs(t, "an error of the other QP", p.b.pollAll(qb2.recvCQ), got{op: cqeRespErr, index: 1, syn: synLocalLen})
	wantAsyncs(t, "its end", p.b.asyncs(), eventLastWQEReached)
	if left := s.rq.pi - s.rq.ci; left != 1 {
		t.Errorf("%d receives are left, want 1", left)
	}
}

func TestSRQLimitFiresOnceBelowIt(t *testing.T) {
	p, s, _, _ := twoSenders(t, 16)
	dst := p.b.mr(64, accessLocalWrite)
	for range 10 {
		s.post(dst.sge(0, 64))
	}
	arm := func(limit uint32) {
		s.limit = limit
		if s.sync() {
			s.checkLimit()
		}
	}
	arm(8)
	for i := range 5 {
		p.a.send(p.qa, ctrl{op: opSend}, segInline([]byte("x")))
		want := []uint32{}
		if i == 2 { // 7 are left
			want = append(want, eventSRQLimitReached)
		}
		wantAsyncs(t, fmt.Sprint("message ", i), p.b.asyncs(), want...)
	}
	if s.limit != 0 {
		t.Error("the limit is still armed")
	}
	arm(5)
	wantAsyncs(t, "5 are left", p.b.asyncs())
	s.post(dst.sge(0, 64)) // seen, though nothing rings
	p.a.send(p.qa, ctrl{op: opSend}, segInline([]byte("x")))
	wantAsyncs(t, "still 5", p.b.asyncs())
	arm(6)
	wantAsyncs(t, "armed too late", p.b.asyncs(), eventSRQLimitReached)
}

func TestEmptySRQIsNotReady(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p, s, _, _ := twoSenders(t, 8)
		dst := p.b.mr(64, accessLocalWrite)
		p.a.send(p.qa, ctrl{op: opSend, flags: ce}, segInline([]byte("x")))
		if p.b.d.Stats().RNRNaks != 1 {
			t.Error("no RNR NAK")
		}
		p.b.locked(func() { s.post(dst.sge(0, 64)) })
		time.Sleep(rnrDelay(p.qb.attr.minRNRTimer))
		synctest.Wait()
		wantCQEs(t, "sender", p.sent(), got{op: cqeReq, bytes: 1})
	})
}

func TestBrokenSRQStopsItsQPs(t *testing.T) {
	for name, spoil := range map[string]func(n *node, s *sharedRQ){
		"next WQE beyond the queue":  func(n *node, s *sharedRQ) { be.PutUint16(s.wqe(0)[2:], 8) },
		"more WQEs than there are":   func(n *node, s *sharedRQ) { be.PutUint32(n.at(s.dbrec, 4), 9) },
		"record that cannot be read": func(n *node, s *sharedRQ) { s.dbrec = 0x7000 },
		"WQE that cannot be read":    func(n *node, s *sharedRQ) { s.post(); s.rq.buf = 0x7000 },
	} {
		t.Run(name, func(t *testing.T) {
			p, s, _, qb2 := twoSenders(t, 8)
			dst := p.b.mr(64, accessLocalWrite)
			if name == "next WQE beyond the queue" {
				s.post(dst.sge(0, 64))
			}
			spoil(p.b, s)
			p.a.send(p.qa, ctrl{op: opSend, flags: ce}, segInline([]byte("x")))
			wantCQEs(t, "sender", p.sent(), got{op: cqeReqErr, syn: synRemOp})
			wantAsyncs(t, "receiver", p.b.asyncs(), eventSRQErr, eventLastWQEReached)
			if p.qb.attr.state != stateErr || qb2.attr.state != stateRTS {
				t.Errorf("QPs in states %d and %d", p.qb.attr.state, qb2.attr.state)
			}
		})
	}
}

func TestUDReceivesFromAnSRQ(t *testing.T) {
	p := newDuo(t, "UD")
	s := p.b.srqOf(8, 32, p.qb)
	dst := p.b.mr(128, accessLocalWrite)
	s.post(dst.sge(0, 128))
	p.a.send(p.qa, ctrl{op: opSend}, p.av(p.qb.attr.qkey), segInline([]byte("datagram")))
	wantCQEs(t, "receiver", p.b.pollAll(p.qb.recvCQ), got{op: cqeRespSend, bytes: 48})
	if string(p.b.bytes(dst)[40:48]) != "datagram" {
		t.Error("data differ")
	}
	p.a.send(p.qa, ctrl{op: opSend}, p.av(p.qb.attr.qkey), segInline([]byte("datagram")))
	if n := p.b.d.Stats().Drops.NoReceive; n != 1 {
		t.Errorf("%d dropped for want of a receive", n)
	}
}

func TestSRQServesTheWire(t *testing.T) {
	s := newStranger(t, nil)
	m := s.mr(8192, accessLocalWrite|accessRemoteWrite)
	rq := s.srqOf(8, 32, s.q)
	for i := range uint32(3) {
		rq.post(m.sge(i*2048, 2048))
	}
	s.give(
		s.packet(roce.BTH{Opcode: roce.RCSendFirst, PSN: 0x200}, nil, bytes.Repeat([]byte{1}, 1024)),
		s.packet(roce.BTH{Opcode: roce.RCSendLast, PSN: 0x201, AckReq: true}, nil, []byte("end")),
		s.packet(roce.BTH{Opcode: roce.RCWriteOnlyImm, PSN: 0x202, AckReq: true}, append(reth(m.iova, m.key, 0), 0, 0, 0, 7), nil),
		s.packet(roce.BTH{Opcode: roce.RCSendFirst, PSN: 0x203}, nil, bytes.Repeat([]byte{2}, 1024)))
	s.wantAnswers("messages", answer{0x203, roce.Ack, 2})
	wantCQEs(t, "messages", s.take(s.q.recvCQ), got{op: cqeRespSend, bytes: 1027}, got{op: cqeRespWrImm, index: 1})
	s.q.to(stateErr) // in the middle of a message: its WQE is this QP's
	wantCQEs(t, "flush", s.take(s.q.recvCQ), got{op: cqeRespErr, index: 2, syn: synFlush})
	wantAsyncs(t, "flush", s.asyncs(), eventLastWQEReached)
}

func TestTakingFromAnSRQDoesNotAllocate(t *testing.T) {
	p, s, _, _ := twoSenders(t, 64)
	dst := p.b.mr(64, accessLocalWrite)
	p.a.put(p.qa, ctrl{op: opSend}, segInline([]byte("x")))
	send := bytes.Clone(p.at(p.qa.sq.buf, wqebbBytes))
	i := uint32(0)
	if n := testing.AllocsPerRun(500, func() {
		s.free(s.post(dst.sge(0, 64)))
		w := p.at(p.qa.sq.buf+uint64(i&(p.qa.sq.size-1))*wqebbBytes, wqebbBytes)
		copy(w, send)
		be.PutUint16(w[1:], uint16(i))
		be.PutUint16(p.at(p.qa.dbrec+6, 2), uint16(i+1))
		be.PutUint32(p.at(p.qb.recvCQ.dbrec, 4), i&ciMask)
		p.a.ring(p.qa)
		i++
	}); n > 4 { // the test's own segments
		t.Errorf("%v allocations", n)
	}
	if s.rq.ci != i {
		t.Errorf("%d of %d received", s.rq.ci, i)
	}
}

func srqUHW(buf, db uint64, flags uint32) []byte {
	b := make([]byte, 32)
	le.PutUint64(b[0:], buf)
	le.PutUint64(b[8:], db)
	le.PutUint32(b[16:], flags)
	return b
}

func (u *user) createSRQCmd(typ uint64, pd, maxWR, maxSGE uint32, uhw []byte, more ...tattr) []byte {
	return command(objSRQ, 0, append([]tattr{newID(attrSRQHandle), u.out(attrSRQRespMaxWR, 4), u.out(attrSRQRespMaxSGE, 4), u.out(attrSRQRespNum, 4),
		u.out(attrUHWOut, 8), in64(attrSRQType, typ), in64(attrSRQUser, 0x77), obj(attrSRQPD, pd), in32(attrSRQMaxWR, maxWR),
		in32(attrSRQMaxSGE, maxSGE), in32(attrSRQLimit, 3), u.in(attrUHWIn, uhw)}, more...)...)
}

func TestCreateSRQChecksWhatTheDriverChecks(t *testing.T) {
	u := newUser(t)
	u.getContext()
	pdh := u.allocPD()
	buf, db := u.alloc(64<<10), u.alloc(64)
	good := srqUHW(buf, db, 0)
	edit := func(off int) []byte { b := bytes.Clone(good); b[off] = 1; return b }
	before := u.snapshot()
	for _, tt := range []struct {
		name   string
		typ    uint64
		wr, sg uint32
		uhw    []byte
		more   []tattr
		errno  syscall.Errno
	}{
		{"XRC", 1, 15, 1, good, nil, syscall.EOPNOTSUPP},
		{"tag matching", 2, 15, 1, good, nil, syscall.EOPNOTSUPP},
		{"too many receives", 0, maxSRQWR, 1, good, nil, syscall.EINVAL},
		{"too many segments", 0, 15, 32, good, nil, syscall.EINVAL},
		{"segments that overflow", 0, 15, 1 << 28, good, nil, syscall.EINVAL},
		{"reserved0", 0, 15, 1, edit(20), nil, syscall.EINVAL},
		{"reserved1", 0, 15, 1, edit(28), nil, syscall.EINVAL},
		{"signatures", 0, 15, 1, edit(16), nil, syscall.EOPNOTSUPP},
		{"longer driver half, not zero", 0, 15, 1, append(bytes.Clone(good), 1), nil, syscall.EINVAL},
		{"no driver half", 0, 15, 1, nil, nil, syscall.EFAULT},
		{"buffer unmapped", 0, 15, 1, srqUHW(1<<40, db, 0), nil, syscall.EFAULT},
		{"buffer too small", 0, 32767, 31, good, nil, syscall.EFAULT},
		{"record unmapped", 0, 15, 1, srqUHW(buf, 1<<40, 0), nil, syscall.EFAULT},
		{"event file that is none", 0, 15, 1, good, []tattr{obj(attrSRQEventFD, 3)}, syscall.EBADF},
		{"XRC domain", 0, 15, 1, good, []tattr{obj(attrSRQXRCD, pdh)}, syscall.ENOENT},
	} {
		if err := u.f.Ioctl(u.createSRQCmd(tt.typ, pdh, tt.wr, tt.sg, tt.uhw, tt.more...)); err != tt.errno {
			t.Errorf("%s: %v, want %v", tt.name, err, tt.errno)
		}
	}
	u.want(syscall.ENOENT, u.createSRQCmd(0, 99, 15, 1, good))
	if after := u.snapshot(); after != before {
		t.Fatalf("refused SRQs left %v, was %v", after, before)
	}
	// What libmlx5 asked for, and the sizes of the buffers that it made for it.
	g := loadGolden(t, "create_srq")
	made := 0
	u.arena.mem = append(u.arena.mem, make([]byte, 8<<20)...)
	for i, v := range g.Vectors {
		if v.KernelMaxWR.Value == 0 {
			continue
		}
		mem := u.alloc(int(v.BufAllocSize))
		cmd := u.createSRQCmd(0, pdh, v.KernelMaxWR.Value, v.KernelMaxSGE.Value, srqUHW(mem, db, 0))
		if err := u.f.Ioctl(cmd); err != nil {
			t.Fatalf("vector %d: %v", i, err)
		}
		s := u.f.handles[uint32(dataWord(cmd, 0))].(*srq)
		if s.rq.size != v.WQECount || s.rq.stride != v.Stride || s.limit != 0 || s.user != 0x77 {
			t.Errorf("vector %d: %d WQEs of %d bytes, want %d of %d", i, s.rq.size, s.rq.stride, v.WQECount, v.Stride)
		}
		for k, want := range []uint32{v.WQECount - 1, v.KernelMaxSGE.Value, s.srqn, s.srqn} {
			if have := le.Uint32(u.at(dataWord(cmd, k+1), 4)); have != want {
				t.Errorf("vector %d: answer %d is %d, want %d", i, k, have, want)
			}
		}
		u.must(destroyCmd(u, objSRQ, s.handle))
		made++
	}
	if made < 15 {
		t.Errorf("%d SRQs made", made)
	}
}

func TestWriteStyleSRQCommands(t *testing.T) {
	u := newUser(t)
	u.getContext()
	async := uint32(dataWord(u.must(command(objAsync, 0, newID(attrAsyncFD))), 0))
	pdh := u.allocPD()
	core := make([]byte, 32)
	le.PutUint64(core[8:], 0xbeef)
	le.PutUint32(core[16:], pdh)
	le.PutUint32(core[20:], 20)
	le.PutUint32(core[24:], 2)
	out, uhw := u.out(attrCoreOut, 16), u.out(attrUHWOut, 8)
	u.must(writeCommand(32, u.in(attrCoreIn, core), out, u.in(attrUHWIn, srqUHW(u.alloc(32*64), u.alloc(8), 0)), uhw))
	h := le.Uint32(u.at(out.data, 4))
	s := u.f.handles[h].(*srq)
	if le.Uint32(u.at(uhw.data, 4)) != s.srqn || s.rq.size != 32 || s.rq.stride != 64 || s.user != 0xbeef {
		t.Errorf("%+v", s)
	}
	modify := func(mask, wr, limit uint32) tattr { return u.in(attrCoreIn, qpCaps(h, mask, wr, limit)) }
	query := func() string {
		in := make([]byte, 16)
		le.PutUint32(in[8:], h)
		out := u.out(attrCoreOut, 16)
		u.must(writeCommand(34, u.in(attrCoreIn, in), out))
		b := u.at(out.data, 16)
		return fmt.Sprint(le.Uint32(b), le.Uint32(b[4:]), le.Uint32(b[8:]))
	}
	if q := query(); q != "31 2 0" {
		t.Error(q)
	}
	u.want(syscall.EINVAL, writeCommand(33, modify(srqAttrMaxWR, 64, 0)))
	u.want(syscall.EINVAL, writeCommand(33, modify(srqAttrLimit, 0, 32)))
	be.PutUint32(u.at(s.dbrec, 4), 10)
	u.must(writeCommand(33, modify(srqAttrLimit, 0, 10)))
	if q := query(); q != "31 2 10" {
		t.Error(q)
	}
	u.must(writeCommand(33, modify(srqAttrLimit, 0, 11))) // fewer are there already
	if q := query(); q != "31 2 0" {
		t.Error(q)
	}
	recs := events(u.f.events[int32(async)])
	if len(recs) != 1 || le.Uint64(recs[0][:]) != 0xbeef || le.Uint32(recs[0][8:]) != eventSRQLimitReached {
		t.Errorf("events %x", recs)
	}
	in := make([]byte, 16)
	le.PutUint32(in[8:], h)
	u.want(syscall.EFAULT, writeCommand(35, u.in(attrCoreIn, in), tattr{id: attrCoreOut, len: 4, flags: 1, data: 8}))
	out = u.out(attrCoreOut, 4)
	u.must(writeCommand(35, u.in(attrCoreIn, in), out))
	if n := le.Uint32(u.at(out.data, 4)); n != 1 {
		t.Errorf("%d events reported, want the one that was read", n)
	}
	u.want(syscall.ENOENT, writeCommand(34, u.in(attrCoreIn, in), u.out(attrCoreOut, 16)))
}

func TestSRQIsBusyWhileAQPUsesIt(t *testing.T) {
	u := newUser(t)
	u.getContext()
	_, index := u.allocUAR()
	pdh := u.allocPD()
	cqh := u.createCQ(index)
	cmd := u.must(u.createSRQCmd(0, pdh, 15, 1, srqUHW(u.alloc(16*32), u.alloc(8), 0)))
	sh := uint32(dataWord(cmd, 0))
	u.want(syscall.EBUSY, destroyCmd(u, objPD, pdh))
	cmd = u.must(u.createQPCmd(qpRC, pdh, cqh, qpCaps(8, 8, 1, 1, 0), qpUHW(u.alloc(16*64), u.alloc(8), 16, 8, 4, 1, index), obj(attrQPSRQ, sh)))
	q := u.f.handles[uint32(dataWord(cmd, 0))].(*qp)
	if q.srq == nil || q.rq.size != 0 || q.cap.recvWR != 0 || q.sq.buf == 0 {
		t.Errorf("%+v", q)
	}
	u.want(syscall.EBUSY, destroyCmd(u, objSRQ, sh))
	u.must(destroyCmd(u, objQP, q.handle))
	u.must(destroyCmd(u, objSRQ, sh))
	u.must(destroyCmd(u, objPD, pdh))
}
