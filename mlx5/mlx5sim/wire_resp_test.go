package mlx5sim

import (
	"bytes"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/rrppcc-go/rrppcc/internal/roce"
)

// answer is an acknowledgement as the tests of the responder compare it.
type answer struct {
	PSN uint32
	Syn roce.Syndrome
	MSN uint32
}

func (s *stranger) wantAnswers(what string, want ...answer) {
	s.t.Helper()
	var have []answer
	for _, p := range s.link.take(s.t) {
		if p.Opcode != roce.RCAck {
			s.t.Fatalf("%s: %v", what, p.Opcode)
		}
		have = append(have, answer{p.PSN, p.AETH().Syndrome, p.AETH().MSN})
	}
	if d := cmp.Diff(want, have); d != "" {
		s.t.Errorf("%s (-want +got):\n%s", what, d)
	}
}

func (s *stranger) only(psn uint32, data string) []byte {
	return s.packet(roce.BTH{Opcode: roce.RCSendOnly, PSN: psn, AckReq: true}, nil, []byte(data))
}

func TestOneACKAnswersABurst(t *testing.T) {
	s := newStranger(t, nil)
	m := s.mr(4096, accessLocalWrite)
	var in [][]byte
	for i := range uint32(10) {
		s.recv(s.q, m.sge(i*16, 16))
		in = append(in, s.only(0x200+i, fmt.Sprint("message ", i)))
	}
	s.give(in...)
	s.wantAnswers("ten messages", answer{0x209, roce.Ack, 10})
	if all := s.take(s.q.recvCQ); len(all) != 10 || all[9].bytes != 9 {
		t.Errorf("%+v", all)
	}
	if got := string(s.bytes(m)[9*16:][:9]); got != "message 9" {
		t.Errorf("%q", got)
	}
}

func TestDuplicatesAreAcknowledgedAndNotExecuted(t *testing.T) {
	s := newStranger(t, nil)
	m := s.mr(4096, accessLocalWrite)
	s.recv(s.q, m.sge(0, 16))
	s.recv(s.q, m.sge(16, 16))
	s.give(s.only(0x200, "one"))
	s.wantAnswers("first", answer{0x200, roce.Ack, 1})
	s.give(s.only(0x200, "two"), s.only(0x200, "two"), s.only(0x1ff, "old"))
	s.wantAnswers("again", answer{0x200, roce.Ack, 1})
	if all := s.take(s.q.recvCQ); len(all) != 1 || string(s.bytes(m)[:3]) != "one" {
		t.Errorf("%+v %q", all, s.bytes(m)[:3])
	}
}

// Soft-RoCE takes an acknowledgement of a READ's PSN for the end of the READ.
func TestDuplicateBehindAReadDoesNotAcknowledgeTheRead(t *testing.T) {
	s := newStranger(t, nil)
	m := s.mr(4096, accessLocalWrite|accessRemoteRead)
	s.recv(s.q, m.sge(0, 16))
	s.recv(s.q, m.sge(16, 16))
	s.give(s.only(0x200, "one"), s.packet(roce.BTH{Opcode: roce.RCReadRequest, PSN: 0x201, AckReq: true}, reth(m.iova, m.key, 8), nil))
	if got := lines(s.link.take(t)); len(got) != 1 {
		t.Fatalf("%+v, want the READ's response alone", got)
	}
	s.give(s.only(0x200, "one"))
	s.wantAnswers("duplicate", answer{0x200, roce.Ack, 2})
	s.give(s.only(0x1ff, "old"), s.only(0x202, "two"), s.only(0x200, "one"))
	s.wantAnswers("a new one, and duplicates", answer{0x202, roce.Ack, 3})
}

func TestGapIsNAKedOnceUntilItIsFilled(t *testing.T) {
	s := newStranger(t, nil)
	m := s.mr(4096, accessLocalWrite)
	for i := range uint32(4) {
		s.recv(s.q, m.sge(i*16, 16))
	}
	s.give(s.only(0x201, "b"), s.only(0x202, "c"))
	s.wantAnswers("gap", answer{0x200, roce.NAKSequence, 0})
	s.give(s.only(0x203, "d"))
	s.wantAnswers("silence")
	s.give(s.only(0x1ff, "old"))
	s.wantAnswers("a duplicate meanwhile", answer{0x1ff, roce.Ack, 0})
	s.give(s.only(0x203, "d"))
	s.wantAnswers("still silence")
	s.give(s.only(0x200, "a"), s.only(0x201, "b"))
	s.wantAnswers("filled", answer{0x201, roce.Ack, 2})
	s.give(s.only(0x203, "d"))
	s.wantAnswers("the next gap", answer{0x202, roce.NAKSequence, 2})
	if st := s.d.Stats(); st.SequenceNaks != 2 || st.Drops.OutOfOrder != 5 {
		t.Errorf("%+v", st)
	}
}

func TestNoReceiveIsAnRNRNAK(t *testing.T) {
	s := newStranger(t, func(q *qp) { q.attr.minRNRTimer = 9 })
	m := s.mr(4096, accessLocalWrite|accessRemoteWrite)
	s.give(s.only(0x200, "a"), s.only(0x201, "b"))
	s.wantAnswers("not ready", answer{0x200, roce.RNR(9), 0})
	s.recv(s.q, m.sge(0, 16))
	s.give(s.only(0x200, "a"))
	s.wantAnswers("ready", answer{0x200, roce.Ack, 1})
	// A WRITE with immediate needs its receive at its end only, and leaves
	// nothing undone when it comes again.
	first := s.packet(roce.BTH{Opcode: roce.RCWriteFirst, PSN: 0x201}, reth(m.iova, m.key, 1028), bytes.Repeat([]byte{'x'}, 1024))
	last := s.packet(roce.BTH{Opcode: roce.RCWriteLastImm, PSN: 0x202, AckReq: true}, []byte{0, 0, 0, 5}, []byte("yyyy"))
	s.give(first, last)
	s.wantAnswers("not ready", answer{0x202, roce.RNR(9), 1})
	s.recv(s.q)
	s.give(last)
	s.wantAnswers("ready", answer{0x202, roce.Ack, 2})
	if got := s.bytes(m); got[0] != 'x' || string(got[1020:1030]) != "xxxxyyyy\x00\x00" {
		t.Errorf("%q", got[1020:1030])
	}
	if all := s.take(s.q.recvCQ); len(all) != 2 || all[1].op != cqeRespWrImm || all[1].bytes != 1028 {
		t.Errorf("%+v", all)
	}
}

func TestReadIsAnsweredAgainFromTheMiddle(t *testing.T) {
	s := newStranger(t, nil)
	m := s.mr(8192, accessRemoteRead)
	data := s.fill(m, 5)
	read := func(psn, off, n uint32) []byte {
		return s.packet(roce.BTH{Opcode: roce.RCReadRequest, PSN: psn, AckReq: true}, reth(m.iova+uint64(off), m.key, n), nil)
	}
	check := func(what string, off int, want ...line) {
		t.Helper()
		pkts := s.link.take(t)
		if d := cmp.Diff(want, lines(pkts)); d != "" {
			t.Errorf("%s (-want +got):\n%s", what, d)
		}
		for _, p := range pkts {
			if !bytes.Equal(p.Payload, data[off:off+len(p.Payload)]) {
				t.Errorf("%s: PSN %#x has wrong data", what, p.PSN)
			}
			off += len(p.Payload)
		}
	}
	s.give(read(0x200, 0, 2100))
	check("READ", 0, line{roce.RCReadRespFirst, 0x200, false, 1024}, line{roce.RCReadRespMiddle, 0x201, false, 1024}, line{roce.RCReadRespLast, 0x202, false, 52})
	s.give(read(0x203, 4000, 0))
	check("READ of nothing", 4000, line{roce.RCReadRespOnly, 0x203, false, 0})
	s.give(read(0x203, 4000, 0))
	check("READ of nothing again", 4000, line{roce.RCReadRespOnly, 0x203, false, 0})
	s.give(read(0x201, 1024, 1076))
	check("the rest again", 1024, line{roce.RCReadRespFirst, 0x201, false, 1024}, line{roce.RCReadRespLast, 0x202, false, 52})
	s.give(read(0x202, 0, 4000))
	check("what was never asked for before", 0)
	s.give(read(0x204, 8191, 1))
	check("the next", 8191, line{roce.RCReadRespOnly, 0x204, false, 1})
}

func TestLongReadOfAStrangerGoesOutInBurstsAndKeepsItsPlace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newStranger(t, func(q *qp) { q.attr.pathMTU = 5 })
		m := s.mr(1<<20, accessRemoteRead|accessLocalWrite)
		data := s.fill(m, 9)
		s.recv(s.q, m.sge(0, 16))
		s.give(
			s.packet(roce.BTH{Opcode: roce.RCReadRequest, PSN: 0x200, AckReq: true}, reth(m.iova+4096, m.key, 1<<20-4096), nil),
			s.only(0x2ff, "behind"))
		var got []byte
		var last []roce.Packet
		for rounds := 0; len(last) == 0 || last[len(last)-1].Opcode != roce.RCAck; rounds++ {
			s.locked(func() { last = s.link.take(t) })
			if len(last) == 0 || len(last) > readBurst+1 || rounds > 10 {
				t.Fatalf("%d packets in round %d", len(last), rounds)
			}
			for i, p := range last {
				if p.Opcode.IsReadResponse() {
					if len(got) > 0 && p.PSN != 0x200+uint32(len(got)/4096) {
						t.Fatalf("PSN %#x after %d bytes", p.PSN, len(got))
					}
					got = append(got, p.Payload...)
				} else if i != len(last)-1 || len(got) != 1<<20-4096 || p.PSN != 0x2ff {
					t.Fatalf("%v with PSN %#x after %d bytes", p.Opcode, p.PSN, len(got))
				}
			}
			time.Sleep(readPause)
			synctest.Wait()
		}
		if !bytes.Equal(got, data[4096:]) {
			t.Error("data differ")
		}
		if all := s.take(s.q.recvCQ); len(all) != 1 {
			t.Errorf("the SEND behind the READ: %+v", all)
		}
	})
}

func TestBrokenRequestsAreRefused(t *testing.T) {
	type in struct {
		s      *stranger
		m, ro  *mr
		packet func(op roce.Opcode, ext []byte, n int) []byte
	}
	imm := []byte{0, 0, 0, 1}
	for _, tt := range []struct {
		name  string
		pkts  func(in) [][]byte
		nak   roce.Syndrome
		psn   uint32
		recv  syndrome // of the receive
		event int32    // async event, -1: none
	}{
		{"Middle without First", func(i in) [][]byte { return [][]byte{i.packet(roce.RCSendMiddle, nil, 1024)} },
			roce.NAKInvalidRequest, 0x200, synFlush, eventQPReqErr},
		{"First within a message", func(i in) [][]byte {
			return [][]byte{i.packet(roce.RCSendFirst, nil, 1024), i.packet(roce.RCSendFirst, nil, 1024)}
		}, roce.NAKInvalidRequest, 0x201, synFlush, eventQPReqErr},
		{"WRITE Last in a SEND", func(i in) [][]byte {
			return [][]byte{i.packet(roce.RCSendFirst, nil, 1024), i.packet(roce.RCWriteLast, nil, 8)}
		}, roce.NAKInvalidRequest, 0x201, synFlush, eventQPReqErr},
		{"short First", func(i in) [][]byte { return [][]byte{i.packet(roce.RCSendFirst, nil, 1020)} },
			roce.NAKInvalidRequest, 0x200, synFlush, eventQPReqErr},
		{"Only beyond the MTU", func(i in) [][]byte { return [][]byte{i.packet(roce.RCSendOnly, nil, 1025)} },
			roce.NAKInvalidRequest, 0x200, synFlush, eventQPReqErr},
		{"empty Last", func(i in) [][]byte {
			return [][]byte{i.packet(roce.RCSendFirst, nil, 1024), i.packet(roce.RCSendLast, nil, 0)}
		}, roce.NAKInvalidRequest, 0x201, synFlush, eventQPReqErr},
		{"atomic on memory without the right", func(i in) [][]byte { return [][]byte{i.packet(roce.RCFetchAdd, atomicETH(i.m.iova, i.m.key, 1, 0), 0)} },
			roce.NAKRemoteAccess, 0x200, synFlush, eventQPAccessErr},
		{"atomic with a wrong key", func(i in) [][]byte {
			return [][]byte{i.packet(roce.RCCmpSwap, atomicETH(i.m.iova, i.m.key+1, 1, 0), 0)}
		},
			roce.NAKRemoteAccess, 0x200, synFlush, eventQPAccessErr},
		{"atomic that is not aligned", func(i in) [][]byte {
			i.m.access |= accessRemoteAtomic
			return [][]byte{i.packet(roce.RCCmpSwap, atomicETH(i.m.iova+4, i.m.key, 1, 0), 0)}
		}, roce.NAKInvalidRequest, 0x200, synFlush, eventQPReqErr},
		{"atomic within a message", func(i in) [][]byte {
			return [][]byte{i.packet(roce.RCSendFirst, nil, 1024), i.packet(roce.RCFetchAdd, atomicETH(i.m.iova, i.m.key, 1, 0), 0)}
		}, roce.NAKInvalidRequest, 0x201, synFlush, eventQPReqErr},
		{"SEND longer than the receive", func(i in) [][]byte {
			return [][]byte{i.packet(roce.RCSendFirst, nil, 1024), i.packet(roce.RCSendLast, nil, 1000)}
		}, roce.NAKInvalidRequest, 0x201, synLocalLen, -1},
		{"WRITE with a wrong key", func(i in) [][]byte {
			return [][]byte{i.packet(roce.RCWriteOnly, reth(i.m.iova, i.m.key+1, 8), 8)}
		}, roce.NAKRemoteAccess, 0x200, synFlush, eventQPAccessErr},
		{"WRITE to what may be read only", func(i in) [][]byte {
			return [][]byte{i.packet(roce.RCWriteOnly, reth(i.ro.iova, i.ro.key, 8), 8)}
		}, roce.NAKRemoteAccess, 0x200, synFlush, eventQPAccessErr},
		{"WRITE that announces more than the MR has", func(i in) [][]byte {
			return [][]byte{i.packet(roce.RCWriteFirst, reth(i.m.iova+4096, i.m.key, 5000), 1024)}
		}, roce.NAKRemoteAccess, 0x200, synFlush, eventQPAccessErr},
		{"WRITE with more data than announced", func(i in) [][]byte {
			return [][]byte{i.packet(roce.RCWriteOnly, reth(i.m.iova, i.m.key, 8), 12)}
		}, roce.NAKInvalidRequest, 0x200, synFlush, eventQPReqErr},
		{"WRITE with less data than announced", func(i in) [][]byte {
			return [][]byte{i.packet(roce.RCWriteOnlyImm, append(reth(i.m.iova, i.m.key, 8), imm...), 7)}
		}, roce.NAKInvalidRequest, 0x200, synFlush, eventQPReqErr},
		{"WRITE that does not end", func(i in) [][]byte {
			return [][]byte{i.packet(roce.RCWriteFirst, reth(i.m.iova, i.m.key, 1024), 1024)}
		}, roce.NAKInvalidRequest, 0x200, synFlush, eventQPReqErr},
		{"READ past the end of memory", func(i in) [][]byte {
			return [][]byte{i.packet(roce.RCReadRequest, reth(^uint64(0)-4, i.ro.key, 8), 0)}
		}, roce.NAKRemoteAccess, 0x200, synFlush, eventQPAccessErr},
		{"READ of more than a message can be", func(i in) [][]byte {
			return [][]byte{i.packet(roce.RCReadRequest, reth(i.ro.iova, i.ro.key, 1<<30+1), 0)}
		}, roce.NAKInvalidRequest, 0x200, synFlush, eventQPReqErr},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := newStranger(t, func(q *qp) { q.attr.access |= accessRemoteAtomic })
			m, ro := s.mr(8192, accessLocalWrite|accessRemoteWrite), s.mr(8192, accessRemoteRead)
			s.recv(s.q, m.sge(0, 1500))
			psn := uint32(0x200)
			s.give(tt.pkts(in{s, m, ro, func(op roce.Opcode, ext []byte, n int) []byte {
				psn++
				return s.packet(roce.BTH{Opcode: op, PSN: psn - 1, AckReq: true}, ext, make([]byte, n))
			}})...)
			pkts := s.link.take(t)
			if len(pkts) != 1 || pkts[0].Opcode != roce.RCAck || pkts[0].PSN != tt.psn || pkts[0].AETH().Syndrome != tt.nak {
				t.Errorf("answered %+v, want NAK %#x of PSN %#x", pkts, uint8(tt.nak), tt.psn)
			}
			if s.q.attr.state != stateErr {
				t.Errorf("QP in state %d", s.q.attr.state)
			}
			if all := s.take(s.q.recvCQ); len(all) != 1 || all[0].syn != tt.recv {
				t.Errorf("receive completions %+v, want %v", all, tt.recv)
			}
			var want int
			if tt.event >= 0 {
				want = 1
			}
			recs := events(s.f.async)
			if len(recs) != want || want == 1 && le.Uint32(recs[0][8:]) != uint32(tt.event) {
				t.Errorf("async events %x, want %d", recs, tt.event)
			}
			s.give(s.only(0x201, "dead"))
			s.wantAnswers("a QP in ERR is silent")
		})
	}
}

func TestReceiveQueueThatOverflowedIsARemoteOperationError(t *testing.T) {
	s := newStranger(t, nil)
	be.PutUint32(s.at(s.q.dbrec, 4), 0x8000) // announces more than the RQ holds
	s.give(s.only(0x200, "x"))
	s.wantAnswers("broken", answer{0x200, roce.NAKRemoteOp, 0})
	if s.q.attr.state != stateErr {
		t.Errorf("QP in state %d", s.q.attr.state)
	}
}

func TestMemoryThatGoesAwayDuringAWriteIsAnAccessError(t *testing.T) {
	s := newStranger(t, nil)
	m := s.mr(8192, accessLocalWrite|accessRemoteWrite)
	s.give(s.packet(roce.BTH{Opcode: roce.RCWriteFirst, PSN: 0x200}, reth(m.iova, m.key, 2048), make([]byte, 1024)))
	delete(s.d.mrs, m.key)
	s.give(s.packet(roce.BTH{Opcode: roce.RCWriteLast, PSN: 0x201, AckReq: true}, nil, make([]byte, 1024)))
	s.wantAnswers("gone", answer{0x201, roce.NAKRemoteAccess, 0})
}

func TestStrangersPacketsAreDroppedByReason(t *testing.T) {
	s := newStranger(t, nil)
	m := s.mr(4096, accessLocalWrite)
	s.recv(s.q, m.sge(0, 64))
	good := s.only(0x200, "x")
	reseal := func(f func(b []byte)) []byte {
		b := bytes.Clone(good)
		f(b)
		s.flow.Seal(b)
		return b
	}
	want := Drops{}
	give := func(n *uint64, b []byte) {
		t.Helper()
		s.give(b)
		*n++
		if d := cmp.Diff(want, s.d.Stats().Drops); d != "" {
			t.Errorf("drops (-want +got):\n%s", d)
		}
	}
	give(&want.BadICRC, func() []byte { b := bytes.Clone(good); b[13]++; return b }())
	give(&want.Malformed, good[:len(good)-1])
	give(&want.BadPKey, reseal(func(b []byte) { b[2], b[3] = 0x12, 0x34 }))
	give(&want.NoQP, reseal(func(b []byte) { b[7]++ }))
	give(&want.NoQP, s.packet(roce.BTH{Opcode: roce.UDSendOnly}, make([]byte, 8), nil))
	addr, flow := s.addr, s.flow
	s.addr = addrPort("10.0.0.3:4791")
	s.flow = roce.NewFlow(s.addr, addrPort("10.0.0.1:4791"))
	give(&want.BadSource, s.only(0x200, "x"))
	s.addr, s.flow = addr, flow
	s.wantAnswers("nobody answers")
	s.give(good)
	s.wantAnswers("the good one", answer{0x200, roce.Ack, 1})
}

func TestResponderDoesNotAllocate(t *testing.T) {
	s := newStranger(t, func(q *qp) { q.attr.pathMTU = 5 })
	s.link.quiet = true
	m := s.mr(64<<10, accessRemoteRead|accessRemoteWrite|accessLocalWrite)
	read := s.packet(roce.BTH{Opcode: roce.RCReadRequest, PSN: 0x200, AckReq: true}, reth(m.iova, m.key, 64<<10), nil)
	write := s.packet(roce.BTH{Opcode: roce.RCWriteOnly, AckReq: true}, reth(m.iova, m.key, 4096), make([]byte, 4096))
	in := []burst{{from: s.addr, size: len(read), b: read}, {from: s.addr, size: len(write), b: write}}
	psn := uint32(0x210)
	if n := testing.AllocsPerRun(200, func() {
		h := roce.BTH{Opcode: roce.RCWriteOnly, AckReq: true, PKey: defaultPKey, DestQPN: s.q.qpn, PSN: psn}
		psn++
		h.Put(write)
		s.flow.Seal(write)
		s.d.deliver(in) // the READ is a duplicate from the second time on
	}); n != 0 {
		t.Errorf("%v allocations for a READ of 16 packets and a WRITE", n)
	}
	if s.q.resp.epsn != psn || s.link.n < 200*17 {
		t.Errorf("PSN %#x, want %#x; %d packets sent", s.q.resp.epsn, psn, s.link.n)
	}
}

// FuzzReceive gives a device packets of any kind with a valid ICRC.
func FuzzReceive(f *testing.F) {
	seed := newStranger(f, nil)
	m := seed.mr(8192, accessRemoteRead) // the same place and key as below
	for _, op := range []roce.Opcode{roce.RCSendFirst, roce.RCSendMiddle, roce.RCSendLast, roce.RCSendOnlyImm, roce.RCReadRespOnly, roce.RCReadRespFirst, roce.RCAck, roce.RCSendOnlyInv, roce.RCAtomicAck} {
		f.Add(seed.packet(roce.BTH{Opcode: op, PSN: 0x200, AckReq: true}, nil, nil), uint8(1))
		f.Add(seed.packet(roce.BTH{Opcode: op, PSN: 0x100, AckReq: true}, nil, make([]byte, 1024)), uint8(3))
	}
	for _, op := range []roce.Opcode{roce.RCWriteFirst, roce.RCWriteOnlyImm, roce.RCReadRequest} {
		f.Add(seed.packet(roce.BTH{Opcode: op, PSN: 0x200, AckReq: true}, reth(m.iova, m.key, 1024), nil), uint8(2))
	}
	for _, op := range []roce.Opcode{roce.RCCmpSwap, roce.RCFetchAdd} {
		f.Add(seed.packet(roce.BTH{Opcode: op, PSN: 0x200, AckReq: true}, atomicETH(m.iova, m.key, 1, 0), nil), uint8(3))
	}
	for _, op := range []roce.Opcode{roce.UCSendFirst, roce.UCSendMiddle, roce.UCSendLastImm, roce.UCSendOnly, roce.UCWriteMiddle} {
		f.Add(seed.packet(roce.BTH{Opcode: op, PSN: 0x200}, nil, make([]byte, 1024)), uint8(19))
	}
	f.Add(seed.packet(roce.BTH{Opcode: roce.UCWriteFirst, PSN: 0x200}, reth(m.iova, m.key, 2048), make([]byte, 1024)), uint8(18))
	f.Add(seed.packet(roce.BTH{Opcode: roce.RCSendLastInv, PSN: 0x200}, []byte{0, 1, 2, 3}, nil), uint8(1))
	f.Add(seed.packet(roce.BTH{Opcode: roce.RCAtomicAck, PSN: 0x102}, make([]byte, 12), nil), uint8(1))
	f.Fuzz(func(t *testing.T, b []byte, again uint8) {
		if len(b) < 16 || len(b) > 5000 {
			return
		}
		typ := "RC"
		if again&16 != 0 {
			typ = "UC"
		}
		s := newStrangerOf(t, typ, func(q *qp) {
			q.attr.access |= accessRemoteAtomic
			q.recvInCQE, q.answerInCQE = again&4 != 0, again&4 != 0
		})
		m := s.mr(8192, allAccess)
		s.recv(s.q, m.sge(0, 4096))
		s.put(s.q, ctrl{op: opRead, flags: ce}, segRAddr(0x1000, 0x79), m.sge(0, 2000))
		s.put(s.q, ctrl{op: opFetchAdd, flags: ce}, segRAddr(0x1000, 0x79), segAtomic(1, 0), m.sge(0, 8))
		s.put(s.q, ctrl{op: opSend, flags: ce}, m.sge(0, 2000))
		if again&8 != 0 {
			s.srqOf(4, 32, s.q).post(m.sge(0, 4096))
		}
		s.ring(s.q)
		ud := s.node.qp("UD", qpOpts{qpn: 0x55})
		ud.to(stateInit, stateRTR, stateRTS)
		s.recv(ud, m.sge(0, 4096))
		b = bytes.Clone(b)
		b[5], b[6] = 0, 0 // QPNs that exist
		for range again%4 + 1 {
			if b[7] != 0x55 {
				b[6], b[7] = byte(s.q.qpn>>8), byte(s.q.qpn)
			}
			s.flow.Seal(b)
			s.give(b)
			b[11]++ // the next PSN
		}
		s.take(s.q.sendCQ)
		s.take(s.q.recvCQ)
	})
}
