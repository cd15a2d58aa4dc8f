package mlx5sim

import (
	"bytes"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/rrppcc-go/rrppcc/internal/roce"
)

// line is a packet as the tests of the requester compare it.
type line struct {
	Op     roce.Opcode
	PSN    uint32
	AckReq bool
	N      int
}

func lines(pkts []roce.Packet) (out []line) {
	for _, p := range pkts {
		out = append(out, line{p.Opcode, p.PSN, p.AckReq, len(p.Payload)})
	}
	return out
}

func (s *stranger) ack(psn uint32, syn roce.Syndrome) {
	s.give(s.packet(roce.BTH{Opcode: roce.RCAck, PSN: psn}, aeth(syn), nil))
}

func (s *stranger) want(what string, want ...line) {
	s.t.Helper()
	if d := cmp.Diff(want, lines(s.link.take(s.t))); d != "" {
		s.t.Errorf("%s (-want +got):\n%s", what, d)
	}
}

func (s *stranger) wantSent(what string, want ...syndrome) {
	s.t.Helper()
	var have []syndrome
	for _, g := range s.take(s.q.sendCQ) {
		have = append(have, g.syn)
	}
	if d := cmp.Diff(want, have); d != "" {
		s.t.Errorf("%s: send completions (-want +got):\n%s", what, d)
	}
}

func TestRequesterCutsMessagesAtThePathMTU(t *testing.T) {
	s := newStranger(t, nil) // MTU 1024
	m := s.mr(8192, accessLocalWrite)
	data := s.fill(m, 3)
	s.put(s.q, ctrl{op: opSend, flags: ce | ctrlSolicited}, m.sge(0, 2500))
	s.put(s.q, ctrl{op: opSendImm, imm: 0xfeed, flags: ce}, m.sge(100, 1024))
	s.put(s.q, ctrl{op: opWriteImm, imm: 0xbeef, flags: ce}, segRAddr(0x1000, 0x77), m.sge(0, 1025))
	s.put(s.q, ctrl{op: opWrite, flags: ce}, segRAddr(0x2000, 0x78))
	s.put(s.q, ctrl{op: opRead, flags: ce}, segRAddr(0x3000, 0x79), m.sge(0, 3000))
	s.ring(s.q)
	pkts := s.link.take(t)
	want := []line{
		{roce.RCSendFirst, 0x100, false, 1024}, {roce.RCSendMiddle, 0x101, false, 1024}, {roce.RCSendLast, 0x102, true, 452},
		{roce.RCSendOnlyImm, 0x103, true, 1024},
		{roce.RCWriteFirst, 0x104, false, 1024}, {roce.RCWriteLastImm, 0x105, true, 1},
		{roce.RCWriteOnly, 0x106, true, 0},
		{roce.RCReadRequest, 0x107, true, 0},
	}
	if d := cmp.Diff(want, lines(pkts)); d != "" {
		t.Fatalf("packets (-want +got):\n%s", d)
	}
	for i, p := range pkts {
		if p.DestQPN != 0x77 || p.PKey != 0xffff || p.Solicited != (i == 2) {
			t.Errorf("packet %d: %+v", i, p.BTH)
		}
	}
	var sent []byte
	for _, p := range pkts[:3] {
		sent = append(sent, p.Payload...)
	}
	if !bytes.Equal(sent, data[:2500]) || !bytes.Equal(pkts[3].Payload, data[100:1124]) {
		t.Error("payload differs from memory")
	}
	if pkts[3].Imm() != 0xfeed || pkts[5].Imm() != 0xbeef {
		t.Errorf("immediates %#x and %#x", pkts[3].Imm(), pkts[5].Imm())
	}
	if d := cmp.Diff(roce.RETH{VA: 0x1000, RKey: 0x77, Length: 1025}, pkts[4].RETH()); d != "" {
		t.Error("WRITE", d)
	}
	if d := cmp.Diff(roce.RETH{VA: 0x3000, RKey: 0x79, Length: 3000}, pkts[7].RETH()); d != "" {
		t.Error("READ", d)
	}

	s.wantSent("before any ACK")
	s.ack(0x106, roce.Ack)
	s.wantSent("one ACK for four messages", synOK, synOK, synOK, synOK)
	s.give(
		s.packet(roce.BTH{Opcode: roce.RCReadRespFirst, PSN: 0x107}, aeth(roce.Ack), bytes.Repeat([]byte{1}, 1024)),
		s.packet(roce.BTH{Opcode: roce.RCReadRespMiddle, PSN: 0x108}, nil, bytes.Repeat([]byte{2}, 1024)))
	s.wantSent("READ without its end")
	s.give(s.packet(roce.BTH{Opcode: roce.RCReadRespLast, PSN: 0x109}, aeth(roce.Ack), bytes.Repeat([]byte{3}, 952)))
	s.wantSent("READ", synOK)
	if got := s.bytes(m); got[0] != 1 || got[1024] != 2 || got[2999] != 3 || got[3000] != data[3000] {
		t.Error("the responses are not where they belong")
	}
}

func TestRequesterKeepsItsWindowAndAsksForAnACKWhereItCloses(t *testing.T) {
	s := newStranger(t, func(q *qp) { q.attr.pathMTU = 5 })
	m := s.mr(1<<20, accessLocalWrite)
	s.send(s.q, ctrl{op: opSend, flags: ce}, m.sge(0, 1<<20))
	psn, total := uint32(0x100), 0
	for total < 256 {
		pkts := s.link.take(t)
		n := len(pkts)
		if n == 0 || n*4096 > windowBytes {
			t.Fatalf("%d packets after %d", n, total)
		}
		if !pkts[n-1].AckReq {
			t.Fatal("the window closes without a request for an ACK")
		}
		total += n
		psn += uint32(n)
		s.ack(psn-1, roce.Ack)
	}
	s.wantSent("acknowledged", synOK)
	if total != 256 {
		t.Errorf("%d packets, want 256", total)
	}
}

func TestRequesterSplitsReadsAndHoldsToMaxRdAtomic(t *testing.T) {
	s := newStranger(t, func(q *qp) { q.attr.pathMTU, q.attr.maxRdAtomic = 5, 2 })
	m := s.mr(1<<20, accessLocalWrite)
	s.send(s.q, ctrl{op: opRead, flags: ce}, segRAddr(0x10000, 0x79), m.sge(0, 200<<10))
	s.send(s.q, ctrl{op: opRead, flags: ce}, segRAddr(0x90000, 0x79), m.sge(0, 1))
	var got []roce.RETH
	var psns []uint32
	for len(got) < 5 {
		pkts := s.link.take(t)
		if len(pkts) == 0 || len(pkts) > 2 {
			t.Fatalf("%d READ requests at once after %d", len(pkts), len(got))
		}
		for _, p := range pkts {
			got, psns = append(got, p.RETH()), append(psns, p.PSN)
			n := int(p.RETH().Length)
			for i := range (n + 4095) / 4096 {
				op, first, last := roce.RCReadRespMiddle, i == 0, (i+1)*4096 >= n
				switch {
				case first && last:
					op = roce.RCReadRespOnly
				case first:
					op = roce.RCReadRespFirst
				case last:
					op = roce.RCReadRespLast
				}
				var ext []byte
				if op != roce.RCReadRespMiddle {
					ext = aeth(roce.Ack)
				}
				s.give(s.packet(roce.BTH{Opcode: op, PSN: p.PSN + uint32(i)}, ext, make([]byte, min(4096, n-i*4096))))
			}
		}
	}
	want := []roce.RETH{{VA: 0x10000, RKey: 0x79, Length: 64 << 10}, {VA: 0x20000, RKey: 0x79, Length: 64 << 10},
		{VA: 0x30000, RKey: 0x79, Length: 64 << 10}, {VA: 0x40000, RKey: 0x79, Length: 8 << 10}, {VA: 0x90000, RKey: 0x79, Length: 1}}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
	if d := cmp.Diff([]uint32{0x100, 0x110, 0x120, 0x130, 0x132}, psns); d != "" {
		t.Error(d)
	}
	s.wantSent("all", synOK, synOK)
}

func TestSequenceNAKSendsAgainFromItsPSN(t *testing.T) {
	s := newStranger(t, nil)
	m := s.mr(8192, accessLocalWrite)
	s.put(s.q, ctrl{op: opSend, flags: ce}, m.sge(0, 10))
	s.put(s.q, ctrl{op: opSend, flags: ce}, m.sge(0, 3000))
	s.ring(s.q)
	s.link.take(t)
	s.ack(0x102, roce.NAKSequence)
	s.want("again", line{roce.RCSendMiddle, 0x102, false, 1024}, line{roce.RCSendLast, 0x103, true, 952})
	s.wantSent("the NAK acknowledges what is before it", synOK)
	s.ack(0x103, roce.Ack)
	s.wantSent("acknowledged", synOK)
	if st := s.d.Stats(); st.Retransmits != 2 {
		t.Errorf("%d packets counted as sent again, want 2", st.Retransmits)
	}
}

func TestLostReadResponsesAreAskedForAgain(t *testing.T) {
	s := newStranger(t, nil)
	m := s.mr(8192, accessLocalWrite)
	s.put(s.q, ctrl{op: opRead, flags: ce}, segRAddr(0x1000, 0x79), m.sge(0, 4096))
	s.put(s.q, ctrl{op: opSend, flags: ce}, m.sge(0, 10))
	s.ring(s.q)
	s.want("first", line{roce.RCReadRequest, 0x100, true, 0}, line{roce.RCSendOnly, 0x104, true, 10})
	page := make([]byte, 1024)
	s.give(s.packet(roce.BTH{Opcode: roce.RCReadRespFirst, PSN: 0x100}, aeth(roce.Ack), page))
	// 0x101 is lost; 0x102 says so, and 0x103 adds nothing.
	s.give(
		s.packet(roce.BTH{Opcode: roce.RCReadRespMiddle, PSN: 0x102}, nil, page),
		s.packet(roce.BTH{Opcode: roce.RCReadRespLast, PSN: 0x103}, aeth(roce.Ack), page))
	pkts := s.link.take(t)
	if d := cmp.Diff([]line{{roce.RCReadRequest, 0x101, true, 0}, {roce.RCSendOnly, 0x104, true, 10}}, lines(pkts)); d != "" {
		t.Fatal(d)
	}
	if r := pkts[0].RETH(); r.VA != 0x1400 || r.Length != 3072 {
		t.Errorf("asked again for %+v", r)
	}
	for i, op := range []roce.Opcode{roce.RCReadRespFirst, roce.RCReadRespMiddle} {
		ext := aeth(roce.Ack)[:op.HeaderSize()-roce.BTHSize]
		s.give(s.packet(roce.BTH{Opcode: op, PSN: 0x101 + uint32(i)}, ext, page))
	}
	// An ACK beyond the READ cannot stand for its last response.
	s.ack(0x104, roce.Ack)
	s.want("the last response", line{roce.RCReadRequest, 0x103, true, 0}, line{roce.RCSendOnly, 0x104, true, 10})
	s.wantSent("nothing yet")
	s.give(s.packet(roce.BTH{Opcode: roce.RCReadRespOnly, PSN: 0x103}, aeth(roce.Ack), page))
	s.ack(0x104, roce.Ack)
	s.wantSent("all", synOK, synOK)
}

func TestOldAcknowledgementWithinAReadIsIgnored(t *testing.T) {
	s := newStranger(t, nil)
	m := s.mr(8192, accessLocalWrite)
	s.put(s.q, ctrl{op: opSend, flags: ce}, m.sge(0, 10))
	s.put(s.q, ctrl{op: opRead, flags: ce}, segRAddr(0x1000, 0x79), m.sge(0, 2048))
	s.ring(s.q)
	s.want("first", line{roce.RCSendOnly, 0x100, true, 10}, line{roce.RCReadRequest, 0x101, true, 0})
	s.ack(0x100, roce.Ack)
	s.give(s.packet(roce.BTH{Opcode: roce.RCReadRespFirst, PSN: 0x101}, aeth(roce.Ack), bytes.Repeat([]byte{1}, 1024)))
	s.ack(0x100, roce.Ack) // of the SEND, late or again
	s.wantSent("the SEND alone", synOK)
	s.give(s.packet(roce.BTH{Opcode: roce.RCReadRespLast, PSN: 0x102}, aeth(roce.Ack), bytes.Repeat([]byte{2}, 1024)))
	s.wantSent("the READ", synOK)
	if got := s.bytes(m); got[1023] != 1 || got[1024] != 2 || got[2047] != 2 {
		t.Error("the READ's data are not all there")
	}
	s.want("nothing again")
}

func TestNAKsFailTheOperationTheyName(t *testing.T) {
	for _, tt := range []struct {
		nak roce.Syndrome
		syn syndrome
	}{{roce.NAKInvalidRequest, synRemInvReq}, {roce.NAKRemoteAccess, synRemAccess}, {roce.NAKRemoteOp, synRemOp}} {
		s := newStranger(t, nil)
		m := s.mr(8192, accessLocalWrite)
		for range 3 {
			s.put(s.q, ctrl{op: opSend}, m.sge(0, 1500)) // not signaled: errors show nevertheless
		}
		s.ring(s.q)
		s.ack(0x102, tt.nak)
		s.wantSent("NAK for the second", tt.syn, synFlush)
		if s.q.attr.state != stateErr {
			t.Errorf("state %d after %v", s.q.attr.state, tt.syn)
		}
	}
}

func TestRNRNAKWaitsAndGivesUpWhenTriesAreUsed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newStranger(t, func(q *qp) { q.attr.rnrRetry = 2 })
		m := s.mr(4096, accessLocalWrite)
		s.send(s.q, ctrl{op: opSend, flags: ce}, m.sge(0, 10))
		for i := range 2 {
			s.want("sent", line{roce.RCSendOnly, 0x100, true, 10})
			s.ack(0x100, roce.RNR(14)) // 1.28 ms
			time.Sleep(1270 * time.Microsecond)
			s.locked(func() { s.want("too early") })
			time.Sleep(20 * time.Microsecond)
			synctest.Wait()
			if i == 1 {
				s.wantSent("still trying")
			}
		}
		s.want("the last time", line{roce.RCSendOnly, 0x100, true, 10})
		s.ack(0x100, roce.RNR(14))
		s.wantSent("given up", synRNRExc)
	})
}

func TestSilenceIsRetriedAndThenFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newStranger(t, func(q *qp) { q.attr.retryCnt, q.attr.timeout = 3, 12 }) // 16.8 ms
		m := s.mr(4096, accessLocalWrite)
		start := time.Now()
		s.put(s.q, ctrl{op: opSend, flags: ce}, m.sge(0, 10))
		s.put(s.q, ctrl{op: opSend, flags: ce}, m.sge(0, 10))
		s.ring(s.q)
		time.Sleep(60 * time.Millisecond)
		s.wantSent("still trying")
		time.Sleep(10 * time.Millisecond)
		synctest.Wait()
		s.wantSent("given up", synRetryExc, synFlush)
		if n := len(s.link.take(t)); n != 8 {
			t.Errorf("%d packets in %v, want 2 once and 3 times again", n, time.Since(start))
		}
		if st := s.d.Stats(); st.Timeouts != 4 || st.Retransmits != 6 {
			t.Errorf("%+v", st)
		}
	})
}

func TestWireTimeoutZeroWaitsForEver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newStranger(t, func(q *qp) { q.attr.timeout = 0 })
		m := s.mr(4096, accessLocalWrite)
		s.send(s.q, ctrl{op: opSend, flags: ce}, m.sge(0, 10))
		time.Sleep(24 * time.Hour)
		s.want("sent once", line{roce.RCSendOnly, 0x100, true, 10})
		s.ack(0x100, roce.Ack)
		s.wantSent("acknowledged", synOK)
	})
}

func TestBrokenRequestsFailBehindTheSendsBeforeThem(t *testing.T) {
	s := newStranger(t, nil)
	m := s.mr(4096, accessLocalWrite)
	gone := s.mr(4096, accessLocalWrite)
	delete(s.d.mrs, gone.key)
	s.put(s.q, ctrl{op: opSend, flags: ce}, m.sge(0, 10))
	s.put(s.q, ctrl{op: opSend, flags: ce}, m.sge(0, 1024), gone.sge(0, 1024))
	s.ring(s.q)
	s.want("what could be sent", line{roce.RCSendOnly, 0x100, true, 10}, line{roce.RCSendFirst, 0x101, false, 1024})
	s.wantSent("the first is not acknowledged")
	s.ack(0x100, roce.Ack)
	s.wantSent("then the second fails", synOK, synLocalProt)

	s = newStranger(t, nil)
	m = s.mr(4096, accessLocalWrite)
	s.put(s.q, ctrl{op: opSend, flags: ce}, m.sge(0, 10))
	s.put(s.q, ctrl{op: opNOP, flags: ce})
	s.put(s.q, ctrl{op: 0x3f, flags: ce})
	s.ring(s.q)
	s.wantSent("NOP and rubbish wait")
	s.ack(0x100, roce.Ack)
	s.wantSent("in order", synOK, synOK, synLocalQPOp)
}

func TestFenceWaitsForReads(t *testing.T) {
	s := newStranger(t, nil)
	m := s.mr(4096, accessLocalWrite)
	s.put(s.q, ctrl{op: opRead, flags: ce}, segRAddr(0x1000, 0x79), m.sge(0, 8))
	s.put(s.q, ctrl{op: opSend, flags: ce | 0x80}, m.sge(0, 8))
	s.ring(s.q)
	s.want("the READ alone", line{roce.RCReadRequest, 0x100, true, 0})
	s.give(s.packet(roce.BTH{Opcode: roce.RCReadRespOnly, PSN: 0x100}, aeth(roce.Ack), []byte("12345678")))
	pkts := s.link.take(t)
	if len(pkts) != 1 || string(pkts[0].Payload) != "12345678" {
		t.Errorf("the fenced SEND carries what was read: %+v", pkts)
	}
}

func TestSQGoesOnWhenTheWireHasRoom(t *testing.T) {
	s := newStranger(t, nil)
	s.q.attr.pathMTU = 5
	m := s.mr(4096, accessLocalWrite)
	done := 0
	for i := range 1000 {
		s.put(s.q, ctrl{op: opWrite, flags: ce}, segRAddr(0x1000, 0x79), m.sge(0, 8))
		if i%60 == 59 || i == 999 {
			s.ring(s.q)
		}
		for _, p := range s.link.take(t) {
			s.ack(p.PSN, roce.Ack)
		}
		for _, g := range s.take(s.q.sendCQ) {
			if g.syn != synOK {
				t.Fatal(g.syn)
			}
			done++
		}
	}
	for pkts := s.link.take(t); len(pkts) > 0; pkts = s.link.take(t) {
		for _, p := range pkts {
			s.ack(p.PSN, roce.Ack)
		}
	}
	if done += len(s.take(s.q.sendCQ)); done != 1000 {
		t.Errorf("%d of 1000 completed", done)
	}
}

func TestResponsesThatNobodyAskedForAreIgnored(t *testing.T) {
	s := newStranger(t, nil)
	m := s.mr(4096, accessLocalWrite)
	s.ack(0x100, roce.Ack) // before anything was sent
	s.send(s.q, ctrl{op: opSend, flags: ce}, m.sge(0, 10))
	s.link.take(t)
	s.ack(0x101, roce.Ack)
	s.ack(0xff, roce.NAKRemoteAccess)
	s.ack(0x100, 0xe0) // reserved syndrome
	s.give(s.packet(roce.BTH{Opcode: roce.RCReadRespOnly, PSN: 0x100}, aeth(roce.Ack), []byte("1234")))
	s.want("no answer to these")
	s.wantSent("no completion")
	s.ack(0x100, roce.Ack)
	s.wantSent("the real one", synOK)
}

func TestReadResponseOfWrongLengthIsABadResponse(t *testing.T) {
	s := newStranger(t, nil)
	m := s.mr(4096, accessLocalWrite)
	s.send(s.q, ctrl{op: opRead, flags: ce}, segRAddr(0x1000, 0x79), m.sge(0, 2000))
	s.give(s.packet(roce.BTH{Opcode: roce.RCReadRespOnly, PSN: 0x100}, aeth(roce.Ack), make([]byte, 1023)))
	s.wantSent("too short", synBadResp)
}

func TestRequesterDoesNotAllocate(t *testing.T) {
	s := newStranger(t, func(q *qp) { q.attr.pathMTU = 5 })
	s.link.quiet = true
	m := s.mr(16384, accessLocalWrite)
	op := &sendOp{opcode: opWrite, sges: []dataSeg{{addr: m.iova, n: 16384, lkey: m.key}}, length: 16384, raddr: 0x1000, rkey: 1}
	ack := s.packet(roce.BTH{Opcode: roce.RCAck}, aeth(roce.Ack), nil)
	in := []burst{{from: s.addr, size: len(ack), b: ack}}
	if n := testing.AllocsPerRun(200, func() {
		s.locked(func() {
			if !s.q.wireSend(op) {
				t.Fatal("refused")
			}
			s.d.flushWire()
		})
		h := roce.BTH{Opcode: roce.RCAck, PKey: defaultPKey, DestQPN: s.q.qpn, PSN: s.q.req.next - 1}
		h.Put(ack)
		s.flow.Seal(ack)
		s.d.deliver(in)
		if s.q.req.head != s.q.req.tail {
			t.Fatal("not acknowledged")
		}
	}); n != 0 {
		t.Errorf("%v allocations per message of 4 packets", n)
	}
}
