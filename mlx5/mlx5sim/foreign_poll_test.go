package mlx5sim

import (
	"fmt"
	"testing"
)

// TestPollFindsDoorbellsThatWereOverwritten rings for one QP of a page, or for
// none that exists: what the others posted is executed too.
func TestPollFindsDoorbellsThatWereOverwritten(t *testing.T) {
	g := newGuest(t)
	index, pd := g.setUp()
	_, other := g.allocUAR()
	c := g.cq(index)
	n := g.node()
	var qps []*qp
	for range 5 {
		q := g.qp(qpUD, pd, c, index)
		q.to(stateInit, stateRTR, stateRTS)
		qps = append(qps, q)
	}
	stranger := g.qp(qpUD, pd, c, other)
	stranger.to(stateInit, stateRTR, stateRTS)
	for i, reg := range []uint32{uarBlueFlame0, 0x900, 0xa00, 0xb00} {
		if g.fo.Poll() {
			t.Fatal("Poll found something on idle pages")
		}
		for _, q := range append(qps, stranger) {
			n.put(q, ctrl{op: opNOP, flags: ce})
		}
		named := qps[0].qpn
		if i%2 == 1 {
			named = 0x123456
		}
		g.bell(index, reg, named)
		if !g.fo.Poll() {
			t.Errorf("register %#x was not seen", reg)
		}
		if got := n.pollAll(c); len(got) != len(qps) {
			t.Errorf("register %#x: %d completions, want %d", reg, len(got), len(qps))
		}
		if stranger.sq.pi != 0 {
			t.Error("a QP of another page was executed")
		}
	}
	g.bell(other, 0xa00, stranger.qpn)
	g.fo.Poll()
	if got := n.pollAll(c); len(got) != 4 {
		t.Errorf("the other page: %d completions", len(got))
	}
}

// TestPollReadsRecordsByThePage bounds what one doorbell costs where many QPs
// share a page.
func TestPollReadsRecordsByThePage(t *testing.T) {
	g := newGuest(t)
	index, pd := g.setUp()
	c := g.cq(index)
	records := g.alloc(pageSize)
	var qps []*qp
	for i := range uint64(60) {
		cmd := g.must(g.createQPCmd(qpUD, pd, c.handle, qpCaps(8, 0, 1, 0, 0), qpUHW(g.alloc(16*64), records+(59-i)*cacheLineBytes, 16, 0, 0, 7, index)))
		q := g.f.handles[uint32(dataWord(cmd, 0))].(*qp)
		q.to(stateInit, stateRTR, stateRTS)
		qps = append(qps, q)
	}
	n := g.node()
	n.put(qps[17], ctrl{op: opNOP})
	g.mem.reads = 0
	g.bell(index, uarBlueFlame0, qps[17].qpn)
	g.fo.Poll()
	if qps[17].sq.ci != 1 {
		t.Fatal("the send was not executed")
	}
	if g.mem.reads > 4 { // the page, the QP's record, the WQE
		t.Errorf("%d reads for one doorbell", g.mem.reads)
	}
	g.mem.reads = 0
	g.fo.Poll()
	if g.mem.reads != 0 {
		t.Errorf("%d reads of idle pages", g.mem.reads)
	}
	if allocs := testing.AllocsPerRun(100, func() {
		g.bell(index, uarBlueFlame0, qps[17].qpn)
		g.fo.Poll()
	}); allocs != 0 {
		t.Errorf("%v allocations", allocs)
	}
}

func TestPollArmsByValueAndByRecord(t *testing.T) {
	g := newGuest(t)
	index, pd := g.setUp()
	ch := g.channel()
	on := obj(attrCQChannel, uint32(ch.fd))
	a, b := g.cq(index, on), g.cq(index, on)
	a.user, b.user = 0xa, 0xb
	n := g.node()
	qa, qb := g.qp(qpUD, pd, a, index), g.qp(qpUD, pd, b, index)
	for _, q := range []*qp{qa, qb} {
		q.to(stateInit, stateRTR, stateRTS)
	}
	complete := func(qs ...*qp) {
		for _, q := range qs {
			n.put(q, ctrl{op: opNOP, flags: ce})
			g.ring(q)
		}
	}
	want := func(what string, cookies ...uint64) {
		t.Helper()
		got := ch.cookies()
		ch.recs = nil
		if len(got) != len(cookies) {
			t.Fatalf("%s: events of %x, want %x", what, got, cookies)
		}
		for i := range got {
			if got[i] != cookies[i] {
				t.Fatalf("%s: events of %x, want %x", what, got, cookies)
			}
		}
	}
	complete(qa, qb)
	want("nothing armed")
	n.pollAll(a)
	n.pollAll(b)

	// The first arm word of a CQ is 0 until something was polled; here the
	// records say 1. The doorbell of b was overwritten by that of a.
	g.arm(b, 0, true)
	g.arm(a, 0, true)
	g.fo.Poll()
	complete(qb, qa)
	want("both armed", 0xb, 0xa)
	complete(qb, qa)
	want("armed once")

	// What was seen by its record is not seen again by its doorbell.
	n.pollAll(a)
	n.pollAll(b)
	g.arm(a, 1, false)
	g.arm(b, 1, true)
	g.fo.Poll()
	complete(qa)
	want("by its record", 0xa)
	g.arm(a, 1, true)
	g.fo.Poll()
	complete(qa)
	want("the doorbell that came late")

	// A completion that is newer than the last event fires at once, one that the
	// last event was about does not.
	g.arm(a, 2, true)
	g.fo.Poll()
	want("a newer completion", 0xa)
	g.arm(a, 3, true)
	g.fo.Poll()
	want("no newer completion")
	complete(qa)
	want("the next completion", 0xa)

	// A CQ of nobody, and of another page.
	_, other := g.allocUAR()
	g.store(g.offset(index), uarArm, 0x7fffff)
	g.store(g.offset(other), uarArm, uint64(a.cqn))
	g.fo.Poll()
	want("strange CQs")
}

// TestFirstArmWordIsZero arms a CQ that nothing was ever polled of: its record
// and the word are 0, like memory that nobody wrote.
func TestFirstArmWordIsZero(t *testing.T) {
	for _, ring := range []bool{true, false} {
		g := newGuest(t)
		index, pd := g.setUp()
		ch := g.channel()
		c, other := g.cq(index, obj(attrCQChannel, uint32(ch.fd))), g.cq(index)
		q := g.qp(qpUD, pd, c, index)
		q.to(stateInit, stateRTR, stateRTS)
		g.arm(c, 0, ring)
		if !ring { // its doorbell was overwritten
			g.arm(other, 0, true)
		}
		g.fo.Poll()
		g.node().put(q, ctrl{op: opNOP, flags: ce})
		g.ring(q)
		if got := ch.cookies(); len(got) != 1 || got[0] != c.user {
			t.Errorf("ring %v: events of %x", ring, got)
		}
	}
}

// TestLongWorkIsDoneInTurns posts more than a turn's worth: others get the
// mutex in between, and nothing is lost.
func TestLongWorkIsDoneInTurns(t *testing.T) {
	p := newGuestPair(t)
	const n = 2 << 20
	src, dst := p.a.mr(p.pda, n, accessLocalWrite), p.z.mr(p.pdz, n, accessLocalWrite|accessRemoteWrite)
	for round := range 4 {
		for range 10 {
			p.na.put(p.qa, ctrl{op: opWrite, flags: ce}, segRAddr(dst.iova, dst.key), src.sge(0, n))
		}
		p.a.ring(p.qa)
		if p.qa.sq.ci == p.qa.sq.pi || p.qa.sq.ci == uint32(round*10) {
			t.Fatalf("round %d: %d of %d in the first turn", round, p.qa.sq.ci, p.qa.sq.pi)
		}
		p.a.ring(p.qa) // a doorbell in between
		for turns := 0; p.qa.sq.ci != p.qa.sq.pi; turns++ {
			if turns == 10 || !p.a.fo.Poll() {
				t.Fatalf("round %d: %d of %d after %d turns", round, p.qa.sq.ci, p.qa.sq.pi, turns)
			}
		}
		if got := p.na.pollAll(p.qa.sendCQ); len(got) != 10 {
			t.Fatalf("completions %+v", got)
		}
		for p.a.fo.Poll() {
		}
	}
	for range 10 {
		p.na.put(p.qa, ctrl{op: opWrite, flags: ce}, segRAddr(dst.iova, dst.key), src.sge(0, n))
	}
	p.a.ring(p.qa)
	p.a.must(destroyCmd(p.a.user, objQP, p.qa.handle)) // while it waits for its turn
	p.a.fo.Poll()
}

// TestReceivesOfADeadQPAreFlushedWithoutDoorbell posts to a QP in ERR, as a
// program does that drains it.
func TestReceivesOfADeadQPAreFlushedWithoutDoorbell(t *testing.T) {
	p := newGuestPair(t)
	p.qz.to(stateErr)
	p.nz.recv(p.qz, p.mz.sge(0, 8))
	for range flushEvery {
		p.z.fo.Poll()
	}
	wantCQEs(t, "receive", p.nz.pollAll(p.qz.recvCQ), got{cqeRespErr, 0, 0, synFlush})
	p.qz.to(stateReset)
	if n := p.z.fo.errQPs.Load(); n != 0 {
		t.Errorf("%d QPs in ERR", n)
	}
	p.qz.to(stateErr)
	p.z.must(destroyCmd(p.z.user, objQP, p.qz.handle))
	if n := p.z.fo.errQPs.Load(); n != 0 {
		t.Errorf("%d QPs in ERR after destroying it", n)
	}
}

// BenchmarkPollIdle is what looking at idle pages costs.
func BenchmarkPollIdle(b *testing.B) {
	for _, pages := range []int{1, 8, 512} {
		b.Run(fmt.Sprintf("pages=%d", pages), func(b *testing.B) {
			g := newGuest(b)
			g.getContext()
			for range pages {
				g.allocUAR()
			}
			for b.Loop() {
				g.fo.Poll()
			}
		})
	}
}

// BenchmarkPollDoorbell is what one doorbell costs where so many QPs share a
// page, of which one has something to do.
func BenchmarkPollDoorbell(b *testing.B) {
	for _, n := range []int{1, 60, 1000} {
		b.Run(fmt.Sprintf("QPs=%d", n), func(b *testing.B) {
			g := newGuest(b)
			index, pd := g.setUp()
			c := g.cq(index)
			records := g.alloc(n * cacheLineBytes)
			sq := g.alloc(16 * 64)
			var q *qp
			for i := range n {
				g.top = userBase + 3<<20 // commands' buffers
				cmd := g.must(g.createQPCmd(qpUD, pd, c.handle, qpCaps(8, 0, 1, 0, 0), qpUHW(sq, records+uint64(i)*cacheLineBytes, 16, 0, 0, 7, index)))
				q = g.f.handles[uint32(dataWord(cmd, 0))].(*qp)
				q.to(stateInit, stateRTR, stateRTS)
			}
			node := g.node()
			for b.Loop() {
				node.put(q, ctrl{op: opNOP})
				g.ring(q)
			}
			if q.sq.ci == 0 || q.sq.ci != q.sq.pi {
				b.Fatalf("ci %d, pi %d", q.sq.ci, q.sq.pi)
			}
		})
	}
}

// TestCommandsComeAfterTheDoorbellsBeforeThem destroys a QP right after a
// doorbell that nobody has looked for yet.
func TestCommandsComeAfterTheDoorbellsBeforeThem(t *testing.T) {
	p := newGuestPair(t)
	p.na.put(p.qa, ctrl{op: opWrite}, segRAddr(p.mz.iova, p.mz.key), segInline([]byte("hello")))
	p.a.bell(p.ia, uarBlueFlame0, p.qa.qpn)
	p.a.run(destroyCmd(p.a.user, objQP, p.qa.handle))
	if got := p.z.at(p.mz.start, 5); string(got) != "hello" {
		t.Errorf("the peer has %q", got)
	}
}
