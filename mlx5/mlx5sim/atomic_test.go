package mlx5sim

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/rrppcc-go/rrppcc/internal/roce"
)

const allAccess = accessLocalWrite | accessRemoteWrite | accessRemoteRead | accessRemoteAtomic

func segAtomic(swapAdd, compare uint64) []byte {
	b := make([]byte, 16)
	be.PutUint64(b, swapAdd)
	be.PutUint64(b[8:], compare)
	return b
}

// word8 is the 8 bytes at off of m in the host's order.
func (n *node) word8(m *mr, off uint32) uint64 { return hostOrder.Uint64(n.bytes(m)[off:]) }

func (n *node) setWord8(m *mr, off uint32, v uint64) { hostOrder.PutUint64(n.bytes(m)[off:], v) }

func TestAtomicsAnswerWhatWasThere(t *testing.T) {
	both(t, func(t *testing.T, noView bool) {
		p := newDuo(t, "RC")
		p.arena.noView = noView
		p.qb.attr.access |= accessRemoteAtomic
		src, dst := p.a.mr(64, accessLocalWrite), p.b.mr(64, allAccess)
		p.b.setWord8(dst, 8, 100)
		p.b.setWord8(dst, 16, ^uint64(0))
		for i, op := range []struct {
			op               uint8
			off              uint32
			operand, compare uint64
			old, now         uint64
		}{
			{opFetchAdd, 8, 5, 0, 100, 105},
			{opFetchAdd, 16, 3, 0, ^uint64(0), 2}, // wraps
			{opCmpSwap, 8, 7, 105, 105, 7},
			{opCmpSwap, 8, 9, 105, 7, 7}, // does not compare
			{opFetchAdd, 8, ^uint64(0), 77, 7, 6},
		} {
			p.a.setWord8(src, 0, 0x1111)
			p.a.send(p.qa, ctrl{op: op.op, flags: ce}, segRAddr(dst.iova+uint64(op.off), dst.key), segAtomic(op.operand, op.compare), src.sge(0, 4), src.sge(32, 12))
			raw, ok := p.a.poll(p.qa.sendCQ)
			if !ok || raw[63]>>4 != cqeReq || raw[56] != op.op || be.Uint32(raw[44:]) != 8 {
				t.Fatalf("op %d: CQE %x", i, raw)
			}
			b := p.a.bytes(src)
			if old := hostOrder.Uint64(append(slices.Clone(b[:4]), b[32:36]...)); old != op.old || p.b.word8(dst, op.off) != op.now {
				t.Errorf("op %d: answered %d, left %d; want %d and %d", i, old, p.b.word8(dst, op.off), op.old, op.now)
			}
		}
		if p.qa.eng.sqPSN != p.qb.eng.rqPSN || p.a.d.stats.LocalMsgs != 5 {
			t.Errorf("PSNs %d and %d, %d messages", p.qa.eng.sqPSN, p.qb.eng.rqPSN, p.a.d.stats.LocalMsgs)
		}
	})
}

var atomicFaults = []rcFault{
	{name: "atomic on a QP without the right", op: ctrl{op: opFetchAdd}, sendSyn: synRemInvReq, event: eventQPReqErr,
		prepare: func(p *duo) { p.qb.attr.access &^= accessRemoteAtomic }, segs: atomicAt(0, 0)},
	{name: "atomic on an MR without the right", op: ctrl{op: opCmpSwap}, sendSyn: synRemAccess, event: eventQPAccessErr,
		prepare: func(p *duo) {
			for _, m := range p.b.d.mrs {
				m.access &^= accessRemoteAtomic
			}
		}, segs: atomicAt(0, 0)},
	{name: "atomic with a wrong key", op: ctrl{op: opCmpSwap}, sendSyn: synRemAccess, event: eventQPAccessErr, segs: atomicAt(0, 1)},
	{name: "atomic beyond the MR", op: ctrl{op: opFetchAdd}, sendSyn: synRemAccess, event: eventQPAccessErr, segs: atomicAt(4096, 0)},
	{name: "atomic not aligned", op: ctrl{op: opFetchAdd}, sendSyn: synRemInvReq, event: eventQPReqErr, segs: atomicAt(4, 0)},
	{name: "atomic without responder resources", op: ctrl{op: opFetchAdd}, sendSyn: synRemInvReq, event: eventQPReqErr,
		prepare: func(p *duo) { p.qb.attr.maxDestRd = 0 }, segs: atomicAt(0, 0)},
	{name: "atomic without requester resources", op: ctrl{op: opFetchAdd}, sendSyn: synLocalQPOp, event: -1, peerLive: true,
		prepare: func(p *duo) { p.qa.attr.maxRdAtomic = 0 }, segs: atomicAt(0, 0)},
	{name: "atomic with 7 bytes for its answer", op: ctrl{op: opFetchAdd}, sendSyn: synLocalLen, event: -1, peerLive: true,
		segs: func(p *duo, src, dst *mr) [][]byte {
			return [][]byte{segRAddr(dst.iova, dst.key), segAtomic(1, 0), src.sge(0, 7)}
		}},
	{name: "atomic with inline data", op: ctrl{op: opFetchAdd}, sendSyn: synLocalQPOp, event: -1, peerLive: true,
		segs: func(p *duo, src, dst *mr) [][]byte {
			return [][]byte{segRAddr(dst.iova, dst.key), segAtomic(1, 0), segInline(make([]byte, 8))}
		}},
	{name: "atomic without operands", op: ctrl{op: opFetchAdd}, sendSyn: synLocalQPOp, event: -1, peerLive: true,
		segs: func(p *duo, src, dst *mr) [][]byte { return [][]byte{segRAddr(dst.iova, dst.key)} }},
	{name: "atomic with a bad local key", op: ctrl{op: opCmpSwap}, sendSyn: synLocalProt, event: -1, peerLive: true,
		segs: func(p *duo, src, dst *mr) [][]byte {
			return [][]byte{segRAddr(dst.iova, dst.key), segAtomic(1, 0), segData(src.iova, 8, src.key+1)}
		}},
	{name: "masked compare and swap", op: ctrl{op: 0x14}, sendSyn: synLocalQPOp, event: -1, peerLive: true,
		segs: func(p *duo, src, dst *mr) [][]byte {
			return [][]byte{segRAddr(dst.iova, dst.key), segAtomic(1, 0), segAtomic(1, 0), src.sge(0, 8)}
		}},
	{name: "masked fetch and add", op: ctrl{op: 0x15}, sendSyn: synLocalQPOp, event: -1, peerLive: true, segs: atomicAt(0, 0)},
	{name: "SEND with invalidate of an MR's key", op: ctrl{op: opSendInv}, sendSyn: synRemAccess, recvSyn: synLocalAccess, event: -1, segs: inlineX, writes: true},
	{name: "LOCAL_INV of an MR's key", op: ctrl{op: opUMR}, sendSyn: synBind, event: -1, peerLive: true,
		segs: func(p *duo, src, dst *mr) [][]byte { return umrFree(0) }},
	{name: "UMR that is too short", op: ctrl{op: opUMR}, sendSyn: synLocalQPOp, event: -1, peerLive: true,
		segs: func(p *duo, src, dst *mr) [][]byte { return umrFree(0)[:1] }},
}

func atomicAt(off uint64, key uint32) func(*duo, *mr, *mr) [][]byte {
	return func(p *duo, src, dst *mr) [][]byte {
		return [][]byte{segRAddr(dst.iova+off, dst.key+key), segAtomic(1, 0), src.sge(0, 8)}
	}
}

// TestAtomicsRunExactlyOnceOverALossyLink mixes atomics with READs, WRITEs and
// SENDs, so that answers of all kinds go lost between them. Every FETCH & ADD
// must answer another number, in order.
func TestAtomicsRunExactlyOnceOverALossyLink(t *testing.T) {
	for name, f := range map[string]Faults{
		"lossless": {},
		"lossy":    {Loss: 0.05, Duplicate: 0.05, Reorder: 0.02, Delay: 10 * time.Microsecond},
		"awful":    {Loss: 0.1, Duplicate: 0.2, Reorder: 0.2, Delay: 10 * time.Microsecond},
	} {
		for seed := range uint64(6) {
			t.Run(fmt.Sprint(name, seed), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) { atomicsOverLink(t, seed, f) })
			})
		}
	}
}

func atomicsOverLink(t *testing.T, seed uint64, f Faults) {
	p := lossyPair(t, seed, f)
	rng := rand.New(rand.NewPCG(seed, 99))
	a, b := p.connect(qpOpts{sqSize: 64, rqSize: 64}, func(q *qp) {
		q.attr.access |= accessRemoteAtomic
		q.attr.maxRdAtomic, q.attr.maxDestRd = uint8(1+rng.IntN(4)), 4
		q.attr.timeout = 10
	})
	src, dst := p.a.mr(64<<10, accessLocalWrite), p.b.mr(64<<10, allAccess)
	p.b.fill(dst, 3)
	p.b.setWord8(dst, 8, 1000)
	p.b.setWord8(dst, 16, 0)
	adds, swaps := uint64(0), uint64(0)
	const rounds = 60
	for range rounds {
		var want []uint8
		p.a.locked(func() {
			for k := range uint32(8) {
				var w uint8
				slot := src.sge(k*4096, 8)
				switch rng.IntN(5) {
				case 0:
					w = opRead
					p.a.put(a, ctrl{op: w, flags: ce}, segRAddr(dst.iova+4096, dst.key), src.sge(k*4096, 2500))
				case 1:
					w = opSend
					p.b.recv(b)
					p.a.put(a, ctrl{op: w, flags: ce})
				case 2:
					w = opWrite
					p.a.put(a, ctrl{op: w, flags: ce}, segRAddr(dst.iova+32<<10, dst.key), src.sge(32<<10, 3000))
				case 3:
					w = opFetchAdd
					p.a.put(a, ctrl{op: w, flags: ce}, segRAddr(dst.iova+8, dst.key), segAtomic(1, 0), slot)
				default:
					w = opCmpSwap // counts up by comparing with what must be there
					p.a.put(a, ctrl{op: w, flags: ce}, segRAddr(dst.iova+16, dst.key), segAtomic(swaps+1, swaps), slot)
					swaps++
				}
				want = append(want, w)
			}
		})
		p.a.ring(a)
		time.Sleep(20 * time.Second)
		synctest.Wait()
		swap := swaps
		for _, w := range want {
			if w == opCmpSwap {
				swap--
			}
		}
		p.a.locked(func() {
			for k, w := range want {
				raw, ok := p.a.poll(a.sendCQ)
				if !ok || raw[63]>>4 != cqeReq || raw[56] != w {
					t.Fatalf("op %#x: CQE %x, QP in state %d, %+v", w, raw, a.attr.state, p.a.d.stats)
				}
				have := p.a.word8(src, uint32(k)*4096)
				switch w {
				case opFetchAdd:
					if have != 1000+adds {
						t.Fatalf("FETCH & ADD answered %d, want %d", have, 1000+adds)
					}
					adds++
				case opCmpSwap:
					if have != swap {
						t.Fatalf("COMPARE & SWAP answered %d, want %d", have, swap)
					}
					swap++
				}
			}
		})
		p.b.take(b.recvCQ)
	}
	p.b.locked(func() {
		if have := p.b.word8(dst, 8); have != 1000+adds {
			t.Errorf("counter %d after %d additions", have, adds)
		}
		if have := p.b.word8(dst, 16); have != swaps {
			t.Errorf("swapped to %d, want %d", have, swaps)
		}
	})
}

func atomicETH(va uint64, rkey uint32, swapAdd, compare uint64) []byte {
	b := make([]byte, roce.AtomicETHSize)
	roce.AtomicETH{VA: va, RKey: rkey, SwapAdd: swapAdd, Compare: compare}.Put(b)
	return b
}

func TestRepeatedAtomicIsAnsweredFromMemoryOfTheLast(t *testing.T) {
	s := newStranger(t, func(q *qp) { q.attr.access |= accessRemoteAtomic; q.attr.maxDestRd = 2 })
	m := s.mr(4096, allAccess)
	add := func(psn uint32) []byte {
		return s.packet(roce.BTH{Opcode: roce.RCFetchAdd, PSN: psn, AckReq: true}, atomicETH(m.iova, m.key, 10, 0), nil)
	}
	type ack struct {
		psn   uint32
		value uint64
		msn   uint32
	}
	want := func(what string, want ...ack) {
		t.Helper()
		var have []ack
		for _, p := range s.link.take(t) {
			if p.Opcode != roce.RCAtomicAck || p.AETH().Syndrome != roce.Ack {
				t.Fatalf("%s: %v", what, p.Opcode)
			}
			have = append(have, ack{p.PSN, p.AtomicAck(), p.AETH().MSN})
		}
		if !slices.Equal(want, have) {
			t.Errorf("%s: %v, want %v", what, have, want)
		}
	}
	s.give(add(0x200), add(0x201))
	want("first", ack{0x200, 0, 1}, ack{0x201, 10, 2})
	s.give(add(0x200), add(0x201))
	want("again", ack{0x200, 0, 2}, ack{0x201, 10, 2})
	s.give(add(0x202))
	want("next", ack{0x202, 20, 3})
	s.give(add(0x201), add(0x200), add(0x202))
	want("the last two", ack{0x201, 10, 3}, ack{0x202, 20, 3})
	if v := s.word8(m, 0); v != 30 {
		t.Errorf("counter %d, want 30", v)
	}
	// Behind a READ that has not been answered yet, in the order of PSNs.
	read := s.packet(roce.BTH{Opcode: roce.RCReadRequest, PSN: 0x203, AckReq: true}, reth(m.iova, m.key, 1500), nil)
	s.give(read, add(0x205), s.packet(roce.BTH{Opcode: roce.RCWriteOnly, PSN: 0x206, AckReq: true}, reth(m.iova, m.key, 0), nil))
	var ops []roce.Opcode
	for _, p := range s.link.take(t) {
		ops = append(ops, p.Opcode)
	}
	if !slices.Equal(ops, []roce.Opcode{roce.RCReadRespFirst, roce.RCReadRespLast, roce.RCAtomicAck, roce.RCAck}) {
		t.Errorf("answers %v", ops)
	}
	if st := s.d.Stats(); st.Drops.Duplicate != 5 {
		t.Errorf("%d duplicates", st.Drops.Duplicate)
	}
}

func TestAtomicResultsKeepTheLastOnes(t *testing.T) {
	for limit := uint8(1); limit <= 16; limit++ {
		var r atomicResults
		if _, ok := r.find(0); ok {
			t.Fatal("found in nothing")
		}
		for psn := range uint32(40) {
			r.add(psn, uint64(psn)*3, limit)
			for old := range psn + 1 {
				v, ok := r.find(old)
				if kept := psn-old < uint32(limit); ok != kept || ok && v != uint64(old)*3 {
					t.Fatalf("limit %d, after %d: %d is kept %v, value %d", limit, psn, old, ok, v)
				}
			}
		}
	}
}

func TestAtomicsOfManyQPsAreSerialised(t *testing.T) {
	r := newRig(t)
	target := r.node(r.device("10.0.0.9"))
	dst := target.mr(64, allAccess)
	type end struct {
		n   *node
		q   *qp
		src *mr
	}
	var ends []end
	for i := range 4 {
		n := r.node(r.device(fmt.Sprintf("10.0.0.%d", i+1)))
		q, peer := n.qp("RC", qpOpts{sqSize: 256, sendCQ: n.cq(256)}), target.qp("RC", qpOpts{})
		peer.attr.access |= accessRemoteAtomic
		connect(q, peer)
		ends = append(ends, end{n, q, n.mr(4096, accessLocalWrite)})
	}
	const each = 200
	done := make(chan bool)
	for _, e := range ends {
		for i := range uint32(each) {
			e.n.put(e.q, ctrl{op: opFetchAdd, flags: ce}, segRAddr(dst.iova, dst.key), segAtomic(1, 0), e.src.sge(i*8, 8))
		}
	}
	for _, e := range ends {
		go func() {
			e.n.ring(e.q)
			done <- true
		}()
	}
	seen := map[uint64]bool{}
	for range ends {
		<-done
	}
	for _, e := range ends {
		for i := range uint32(each) {
			seen[e.n.word8(e.src, i*8)] = true
		}
	}
	if len(seen) != len(ends)*each || target.word8(dst, 0) != uint64(len(ends)*each) {
		t.Errorf("%d different answers, counter %d, want %d", len(seen), target.word8(dst, 0), len(ends)*each)
	}
}

func TestAtomicsDoNotAllocate(t *testing.T) {
	p := newDuo(t, "RC")
	p.qb.attr.access |= accessRemoteAtomic
	src, dst := p.a.mr(64, accessLocalWrite), p.b.mr(64, allAccess)
	for range p.qa.sq.size {
		p.a.put(p.qa, ctrl{op: opFetchAdd, flags: ce}, segRAddr(dst.iova, dst.key), segAtomic(1, 0), src.sge(0, 8))
	}
	be.PutUint32(p.a.page[uarBlueFlame0+4:], p.qa.qpn<<8|1)
	i := uint32(0)
	step := func() {
		be.PutUint16(p.at(p.qa.sq.buf+uint64(i&(p.qa.sq.size-1))*wqebbBytes+1, 2), uint16(i))
		be.PutUint16(p.at(p.qa.dbrec+6, 2), uint16(i+1))
		be.PutUint32(p.at(p.qa.sendCQ.dbrec, 4), i&ciMask)
		p.a.f.kick(&p.a.page[0], uarBlueFlame0)
		i++
	}
	if n := testing.AllocsPerRun(500, step); n != 0 {
		t.Errorf("in process: %v allocations", n)
	}
	if v := p.b.word8(dst, 0); v != uint64(i) {
		t.Errorf("counter %d after %d additions", v, i)
	}

	s := newStranger(t, func(q *qp) { q.attr.access |= accessRemoteAtomic })
	s.link.quiet = true
	m := s.mr(64, allAccess)
	pkt := s.packet(roce.BTH{Opcode: roce.RCFetchAdd, AckReq: true}, atomicETH(m.iova, m.key, 1, 0), nil)
	in := []burst{{from: s.addr, size: len(pkt), b: pkt}, {from: s.addr, size: len(pkt), b: pkt}}
	psn := uint32(0x200)
	if n := testing.AllocsPerRun(500, func() {
		h := roce.BTH{Opcode: roce.RCFetchAdd, AckReq: true, PKey: defaultPKey, DestQPN: s.q.qpn, PSN: psn}
		h.Put(pkt)
		s.flow.Seal(pkt)
		s.d.deliver(in) // the second is a duplicate
		psn++
	}); n != 0 {
		t.Errorf("responder: %v allocations", n)
	}
	if v := s.word8(m, 0); v != uint64(psn-0x200) || s.link.n != 501 {
		t.Errorf("counter %d after %d additions, %d answers", v, psn-0x200, s.link.n)
	}
}

func BenchmarkFetchAdd(b *testing.B) {
	p := newDuo(b, "RC")
	p.qb.attr.access |= accessRemoteAtomic
	src, dst := p.a.mr(64, accessLocalWrite), p.b.mr(64, allAccess)
	for range p.qa.sq.size {
		p.a.put(p.qa, ctrl{op: opFetchAdd, flags: ce}, segRAddr(dst.iova, dst.key), segAtomic(1, 0), src.sge(0, 8))
	}
	be.PutUint32(p.a.page[uarBlueFlame0+4:], p.qa.qpn<<8|1)
	at := func(addr uint64) []byte { return p.arena.mem[addr-p.arena.base:] }
	b.ReportAllocs()
	for i := uint32(0); b.Loop(); i++ {
		be.PutUint16(at(p.qa.sq.buf+uint64(i&(p.qa.sq.size-1))*wqebbBytes+1), uint16(i))
		be.PutUint16(at(p.qa.dbrec+6), uint16(i+1))
		be.PutUint32(at(p.qa.sendCQ.dbrec), i&ciMask)
		p.a.f.kick(&p.a.page[0], uarBlueFlame0)
	}
}
