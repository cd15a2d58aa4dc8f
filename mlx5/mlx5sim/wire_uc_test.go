package mlx5sim

import (
	"bytes"
	"fmt"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/rrppcc-go/rrppcc/internal/roce"
)

// ucPackets are the packets of one message of the stranger's, from psn on.
func (s *stranger) ucPackets(psn uint32, first roce.Opcode, ext []byte, data []byte, imm []byte) (pkts [][]byte) {
	const mtu = 1024
	n := max(1, (len(data)+mtu-1)/mtu)
	for i := range n {
		op := first + 1
		switch {
		case n == 1:
			op = first + 4
		case i == 0:
			op = first
		case i == n-1:
			op = first + 2
		}
		var h []byte
		if i == 0 {
			h = append(h, ext...)
		}
		if i == n-1 && imm != nil {
			op++
			h = append(h, imm...)
		}
		pkts = append(pkts, s.packet(roce.BTH{Opcode: op, PSN: psn + uint32(i)}, h, data[i*mtu:min(len(data), (i+1)*mtu)]))
	}
	return pkts
}

func pattern(n int, seed byte) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = seed + byte(i) + byte(i>>8)*3
	}
	return b
}

// TestUCResponderDropsBrokenMessages gives a responder messages of three packets
// with something amiss, each followed by a good one: it gets that, in the receive
// that the broken one had taken.
func TestUCResponderDropsBrokenMessages(t *testing.T) {
	const first = roce.UCSendFirst
	drop := func(i int) func([][]byte) [][]byte {
		return func(p [][]byte) [][]byte { return slices.Delete(p, i, i+1) }
	}
	for _, c := range []struct {
		name  string
		spoil func(p [][]byte) [][]byte
		want  Drops
	}{
		{"no first", drop(0), Drops{OutOfOrder: 1}},
		{"no middle", drop(1), Drops{OutOfOrder: 1, Incomplete: 1}},
		{"no last", drop(2), Drops{OutOfOrder: 1, Incomplete: 1}},
		{"first alone", func(p [][]byte) [][]byte { return p[:1] }, Drops{OutOfOrder: 1, Incomplete: 1}},
		{"middle twice", func(p [][]byte) [][]byte { return [][]byte{p[0], p[1], p[1], p[2]} }, Drops{OutOfOrder: 1, Incomplete: 1}},
		{"swapped", func(p [][]byte) [][]byte { return [][]byte{p[0], p[2], p[1]} }, Drops{OutOfOrder: 3, Incomplete: 1}},
		{"last before first", func(p [][]byte) [][]byte { return [][]byte{p[2], p[0], p[1]} }, Drops{OutOfOrder: 3, Incomplete: 1}},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := newStrangerOf(t, "UC", nil)
			m := s.mr(8192, accessLocalWrite)
			s.recv(s.q, m.sge(0, 4096))
			s.recv(s.q, m.sge(4096, 4096))
			good, imm := pattern(2500, 9), []byte{1, 2, 3, 4}
			s.give(append(c.spoil(s.ucPackets(0x200, first, nil, pattern(2500, 77), nil)), s.ucPackets(0x203, first, nil, good, imm)...)...)
			raw, ok := s.poll(s.q.recvCQ)
			if !ok || raw[63]>>4 != cqeRespSendImm || be.Uint16(raw[60:]) != 0 || be.Uint32(raw[44:]) != 2500 || be.Uint32(raw[36:]) != 0x01020304 {
				t.Fatalf("completion % x", raw)
			}
			if !bytes.Equal(s.bytes(m)[:2500], good) {
				t.Error("the good message is not what was sent")
			}
			if s.d.stats.Drops != c.want {
				t.Errorf("drops %+v, want %+v", s.d.stats.Drops, c.want)
			}
			s.give(s.ucPackets(0x206, first, nil, good[:10], nil)...)
			if got := s.pollAll(s.q.recvCQ); len(got) != 1 || got[0].index != 1 || got[0].bytes != 10 || got[0].syn != synOK {
				t.Errorf("the next one: %+v", got)
			}
			if len(s.link.pkts) != 0 {
				t.Errorf("%d answers of an unreliable QP", len(s.link.pkts))
			}
		})
	}
}

// TestUCResponderChecksLengths: packets whose length is not that of their place
// end their message.
func TestUCResponderChecksLengths(t *testing.T) {
	s := newStrangerOf(t, "UC", nil)
	m := s.mr(8192, accessLocalWrite|accessRemoteWrite)
	s.recv(s.q, m.sge(0, 4096))
	clear(s.bytes(m))
	psn := uint32(0x200)
	give := func(op roce.Opcode, ext []byte, n int) {
		s.give(s.packet(roce.BTH{Opcode: op, PSN: psn}, ext, make([]byte, n)))
		psn++
	}
	give(roce.UCSendFirst, nil, 1000)                                                   // not full
	give(roce.UCSendLast, nil, 10)                                                      // and so nobody's
	give(roce.UCSendOnly, nil, 2048)                                                    // beyond the MTU
	give(roce.UCSendFirst, nil, 1024)                                                   //
	give(roce.UCSendLast, nil, 0)                                                       // a last one has data
	give(roce.UCSendFirst, nil, 1024)                                                   //
	give(roce.UCWriteLast, nil, 8)                                                      // of another kind
	give(roce.UCWriteOnly, reth(m.iova, m.key, 100), 99)                                // shorter than it says
	give(roce.UCWriteFirst, reth(m.iova, m.key, 1025), 1024)                            //
	give(roce.UCWriteLast, nil, 2)                                                      // longer than it said
	give(roce.UCWriteOnly, reth(m.iova+8192-4, m.key, 8), 8)                            // over the end
	give(roce.UCWriteOnly, reth(m.iova, m.key^0xff, 8), 8)                              // wrong key
	s.give(s.packet(roce.BTH{Opcode: roce.RCSendOnly, PSN: psn}, nil, make([]byte, 8))) // another transport
	if want := (Drops{Malformed: 5, Incomplete: 1, Refused: 2, NoQP: 1}); s.d.stats.Drops != want {
		t.Errorf("drops %+v, want %+v", s.d.stats.Drops, want)
	}
	if got := s.pollAll(s.q.recvCQ); len(got) != 0 || s.q.attr.state != stateRTS || len(events(s.f.async)) != 0 {
		t.Errorf("%+v, state %d", got, s.q.attr.state)
	}
	give(roce.UCSendOnly, nil, 100)
	if got := s.pollAll(s.q.recvCQ); len(got) != 1 || got[0].bytes != 100 || got[0].syn != synOK {
		t.Errorf("%+v", got)
	}
}

// TestUCReceiveTooSmallFailsTheReceiver: as with datagrams, and the sender knows
// nothing.
func TestUCReceiveTooSmallFailsTheReceiver(t *testing.T) {
	s := newStrangerOf(t, "UC", nil)
	m := s.mr(4096, accessLocalWrite)
	s.recv(s.q, m.sge(0, 1500))
	s.recv(s.q, m.sge(0, 1500))
	s.give(s.ucPackets(0x200, roce.UCSendFirst, nil, pattern(2000, 1), nil)...)
	want := []got{{op: cqeRespErr, syn: synLocalLen}, {op: cqeRespErr, index: 1, syn: synFlush}}
	if all := s.pollAll(s.q.recvCQ); !slices.Equal(all, want) {
		t.Errorf("%+v, want %+v", all, want)
	}
	if s.q.attr.state != stateErr || len(s.link.pkts) != 0 {
		t.Errorf("state %d, %d answers", s.q.attr.state, len(s.link.pkts))
	}
}

// TestUCRequesterCutsMessagesAndExpectsNothing reads its packets off the wire.
func TestUCRequesterCutsMessagesAndExpectsNothing(t *testing.T) {
	s := newStrangerOf(t, "UC", func(q *qp) { q.attr.retryCnt, q.attr.timeout = 0, 1 })
	m := s.mr(8192, accessLocalWrite)
	s.fill(m, 3)
	s.put(s.q, ctrl{op: opSend, flags: ce}, m.sge(0, 2500))
	s.put(s.q, ctrl{op: opWriteImm, flags: ce | ctrlSolicited, imm: 77}, segRAddr(0x123456, 99), m.sge(100, 1025))
	s.put(s.q, ctrl{op: opSendImm, flags: ce, imm: 78})
	s.ring(s.q)
	type line struct {
		op        roce.Opcode
		psn       uint32
		n         int
		imm       uint32
		solicited bool
	}
	want := []line{
		{roce.UCSendFirst, 0x100, 1024, 0, false}, {roce.UCSendMiddle, 0x101, 1024, 0, false}, {roce.UCSendLast, 0x102, 452, 0, false},
		{roce.UCWriteFirst, 0x103, 1024, 0, false}, {roce.UCWriteLastImm, 0x104, 1, 77, true}, {roce.UCSendOnlyImm, 0x105, 0, 78, false},
	}
	var all []line
	var data []byte
	for _, p := range s.link.take(t) {
		if p.AckReq || p.DestQPN != 0x77 || p.PKey != defaultPKey {
			t.Errorf("%+v", p.BTH)
		}
		if h := p.RETH(); p.Opcode == roce.UCWriteFirst && h != (roce.RETH{VA: 0x123456, RKey: 99, Length: 1025}) {
			t.Errorf("RETH %+v", h)
		}
		all = append(all, line{p.Opcode, p.PSN, len(p.Payload), p.Imm(), p.Solicited})
		data = append(data, p.Payload...)
	}
	if !slices.Equal(all, want) {
		t.Errorf("sent %+v\nwant %+v", all, want)
	}
	if b := s.bytes(m); !bytes.Equal(data, append(bytes.Clone(b[:2500]), b[100:1125]...)) {
		t.Error("other data were sent")
	}
	if got := s.pollAll(s.q.sendCQ); len(got) != 3 || got[0].syn|got[1].syn|got[2].syn != synOK {
		t.Errorf("completions %+v", got)
	}
}

// TestUCRequesterPausesBetweenBursts: a long message leaves in pieces, and ends
// with its last packet.
func TestUCRequesterPausesBetweenBursts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newStrangerOf(t, "UC", nil)
		m := s.mr(200*1024, accessLocalWrite)
		s.send(s.q, ctrl{op: opSend, flags: ce}, m.sge(0, 200*1024))
		var sent []int
		for range 5 {
			s.locked(func() { sent = append(sent, len(s.link.take(t))+len(s.pollAll(s.q.sendCQ))*1000) })
			time.Sleep(ucPause)
			synctest.Wait()
		}
		if want := []int{64, 64, 64, 1008, 0}; !slices.Equal(sent, want) {
			t.Errorf("packets, and a thousand for the completion: %v, want %v", sent, want)
		}
		s.send(s.q, ctrl{op: opSend, flags: ce}, m.sge(0, 64*1024))
		s.locked(func() {
			if n := len(s.link.take(t)); n != 64 {
				t.Errorf("%d packets after a pause", n)
			}
		})
		// ERR in the middle of a message flushes it.
		s.send(s.q, ctrl{op: opSend, flags: ce}, m.sge(0, 200*1024))
		s.q.to(stateErr)
		s.locked(func() {
			s.link.take(t)
			if got := s.pollAll(s.q.sendCQ); len(got) != 2 || got[0].syn != synOK || got[1].syn != synFlush {
				t.Errorf("%+v", got)
			}
		})
		time.Sleep(10 * ucPause)
		synctest.Wait()
		s.locked(func() {
			if n := len(s.link.take(t)); n != 0 {
				t.Errorf("%d packets in ERR", n)
			}
		})
	})
}

// TestUCLosesWholeMessagesAlone sends numbered messages of many sizes over a bad
// link: what arrives is whole, was sent, and is in order where the link keeps it.
func TestUCLosesWholeMessagesAlone(t *testing.T) {
	for _, f := range []Faults{{}, {Loss: 0.05}, {Corrupt: 0.05}, {Reorder: 0.05}, {Duplicate: 0.05}} {
		t.Run(fmt.Sprintf("%+v", f), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p := lossyPair(t, 5, f)
				qa, qb := p.connectOf("UC", qpOpts{rqSize: 64}, nil)
				const messages, most = 400, 5000
				src, dst := p.a.mr(most, accessLocalWrite), p.b.mr(64*most, accessLocalWrite)
				for i := range uint32(64) {
					p.b.recv(qb, dst.sge(i*most, most))
				}
				got := 0
				last := -1
				for i := range messages {
					n := uint32(i*37)%most + 1
					p.a.fill(src, byte(i))
					p.a.locked(func() { p.a.pollAll(qa.sendCQ) })
					p.a.send(qa, ctrl{op: opSendImm, flags: ce, imm: uint32(i)}, src.sge(0, n))
					time.Sleep(time.Millisecond)
					synctest.Wait()
					p.b.locked(func() {
						for raw, ok := p.b.poll(qb.recvCQ); ok; raw, ok = p.b.poll(qb.recvCQ) {
							k, slot := int(be.Uint32(raw[36:])), be.Uint16(raw[60:])%64
							if raw[63]>>4 != cqeRespSendImm || be.Uint32(raw[44:]) != uint32(k*37)%most+1 {
								t.Fatalf("completion % x", raw)
							}
							want := make([]byte, be.Uint32(raw[44:]))
							for j := range want {
								want[j] = byte(k) + byte(j) + byte(j>>8)*7
							}
							if b := p.b.bytes(dst)[uint32(slot)*most:][:len(want)]; !bytes.Equal(b, want) {
								t.Fatalf("message %d is mixed", k)
							}
							if k < last && f.Reorder == 0 || k == last && f.Duplicate == 0 {
								t.Errorf("message %d behind %d", k, last)
							}
							last = k
							got++
							p.b.recv(qb, dst.sge(uint32(slot)*most, most))
						}
					})
				}
				s := p.b.statsNow()
				t.Logf("%d of %d messages, %+v", got, messages, s.Drops)
				if f == (Faults{}) && got != messages || got < messages/2 || f.Loss > 0 && got == messages {
					t.Errorf("%d of %d messages arrived", got, messages)
				}
				if s.TxPackets != 0 {
					t.Errorf("the responder sent %d packets", s.TxPackets)
				}
			})
		})
	}
}

// TestUCWithinAFabric: the same rules between devices of one process.
func TestUCWithinAFabric(t *testing.T) {
	r := newRig(t)
	a, b := r.node(r.device("10.0.0.1")), r.node(r.device("10.0.0.2"))
	qa, qb := a.qp("UC", qpOpts{}), b.qp("UC", qpOpts{})
	connect(qa, qb)
	src, dst := a.mr(4096, accessLocalWrite), b.mr(4096, accessLocalWrite|accessRemoteWrite)
	local := b.mr(4096, accessLocalWrite)
	want := bytes.Clone(a.fill(src, 5))
	ok := []got{{op: cqeReq}}
	send := func(what string, c ctrl, drops Drops, segs ...[]byte) {
		t.Helper()
		c.flags |= ce
		b.d.stats.Drops = Drops{}
		a.send(qa, c, segs...)
		if all := a.pollAll(qa.sendCQ); len(all) != 1 || all[0].op != cqeReq {
			t.Errorf("%s: sender sees %+v, want %+v", what, all, ok)
		}
		if b.d.stats.Drops != drops {
			t.Errorf("%s: drops %+v, want %+v", what, b.d.stats.Drops, drops)
		}
	}
	send("SEND without a receive", ctrl{op: opSend}, Drops{NoReceive: 1}, src.sge(0, 100))
	send("WRITE with immediate without a receive", ctrl{op: opWriteImm}, Drops{NoReceive: 1}, segRAddr(dst.iova, dst.key), src.sge(0, 8))
	send("WRITE with a wrong key", ctrl{op: opWrite}, Drops{Refused: 1}, segRAddr(dst.iova, dst.key^1), src.sge(0, 8))
	send("WRITE over the end", ctrl{op: opWrite}, Drops{Refused: 1}, segRAddr(dst.iova+4090, dst.key), src.sge(0, 8))
	send("WRITE to local memory", ctrl{op: opWrite}, Drops{Refused: 1}, segRAddr(local.iova, local.key), src.sge(0, 8))
	qb.attr.access &^= accessRemoteWrite
	send("WRITE to a QP that takes none", ctrl{op: opWrite}, Drops{Refused: 1}, segRAddr(dst.iova, dst.key), src.sge(0, 8))
	qb.attr.access |= accessRemoteWrite
	if len(events(b.f.async)) != 0 || qb.attr.state != stateRTS {
		t.Errorf("responder in state %d", qb.attr.state)
	}
	send("WRITE", ctrl{op: opWrite}, Drops{}, segRAddr(dst.iova+1, dst.key), src.sge(0, 3000))
	if !bytes.Equal(b.bytes(dst)[1:3001], want[:3000]) {
		t.Error("WRITE brought other data")
	}
	b.recv(qb, local.sge(0, 4000))
	send("SEND", ctrl{op: opSendImm, imm: 9}, Drops{}, src.sge(0, 4000))
	if raw, _ := b.poll(qb.recvCQ); raw[63]>>4 != cqeRespSendImm || be.Uint32(raw[44:]) != 4000 || be.Uint32(raw[24:])&0xffffff != qa.qpn ||
		!bytes.Equal(b.bytes(local)[:4000], want[:4000]) {
		t.Errorf("received % x", raw)
	}
	// What UC has not, and memory of others, fail at the sender: receives go on.
	for i, w := range [][][]byte{{src.sge(0, 4097)}, {segRAddr(dst.iova, dst.key), src.sge(0, 8)}, {src.sge(0, 8)}} {
		c := ctrl{op: []uint8{opSend, opRead, opSendInv}[i], flags: ce}
		a.send(qa, c, w...)
		if all := a.pollAll(qa.sendCQ); len(all) != 1 || all[0].syn != []syndrome{synLocalProt, synLocalQPOp, synLocalQPOp}[i] {
			t.Errorf("%d: %+v", i, all)
		}
		if qa.attr.state != stateSQE {
			t.Fatalf("%d: state %d, want SQE", i, qa.attr.state)
		}
		qa.to(stateRTS)
	}
	a.recv(qa, src.sge(0, 100))
	b.send(qb, ctrl{op: opSend}, dst.sge(0, 50))
	if all := a.pollAll(qa.recvCQ); len(all) != 1 || all[0].bytes != 50 {
		t.Errorf("%+v", all)
	}
}

func TestUCDoesNotAllocate(t *testing.T) {
	s := newStrangerOf(t, "UC", func(q *qp) { q.attr.pathMTU = 5 })
	s.link.quiet = true
	m := s.mr(64<<10, accessRemoteWrite|accessLocalWrite)
	pkt := s.packet(roce.BTH{Opcode: roce.UCWriteOnly}, reth(m.iova, m.key, 4096), make([]byte, 4096))
	in := []burst{{from: s.addr, size: len(pkt), b: pkt}}
	if n := testing.AllocsPerRun(200, func() { s.d.deliver(in) }); n != 0 {
		t.Errorf("%v allocations per packet received", n)
	}
	for range s.q.sq.size {
		s.put(s.q, ctrl{op: opSend}, m.sge(0, 8192))
	}
	i := uint32(0)
	be.PutUint32(s.page[uarBlueFlame0+4:], s.q.qpn<<8|1)
	if n := testing.AllocsPerRun(200, func() {
		be.PutUint16(s.at(s.q.sq.buf+uint64(i%s.q.sq.size)*wqebbBytes+1, 2), uint16(i))
		i++
		be.PutUint32(s.at(s.q.dbrec+4, 4), i)
		s.f.kick(&s.page[0], uarBlueFlame0)
		s.locked(func() { s.q.req.burst = 0 })
	}); n != 0 {
		t.Errorf("%v allocations per message sent", n)
	}
	if s.link.n != int(2*i) {
		t.Errorf("%d packets of %d messages", s.link.n, i)
	}
}
