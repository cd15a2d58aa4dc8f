package mlx5sim

import (
	"bytes"
	"fmt"
	"testing"
)

// udBench is a UD pair on direct memory of this process, with a send of n
// inline bytes and a receive prepared in every slot of both rings.
type udBench struct {
	*duo
	slots uint32
}

// repost makes one more send and one more receive visible, by the doorbell
// records alone: the rings already hold them.
func (b *udBench) step(i uint32) {
	be.PutUint16(b.mustAt(b.qb.dbrec+2), uint16(i+1))
	be.PutUint16(b.mustAt(b.qa.dbrec+6), uint16((i+1)*b.slots))
	be.PutUint32(b.mustAt(b.qb.recvCQ.dbrec), i&ciMask)
	be.PutUint32(b.mustAt(b.qa.sendCQ.dbrec), i&ciMask)
	b.a.f.kick(&b.a.page[0], uarBlueFlame0)
}

func (b *udBench) mustAt(addr uint64) []byte { return b.arena.mem[addr-b.arena.base:] }

func newUDBench(tb testing.TB, n int) *udBench {
	b := &udBench{duo: newDuo(tb, "UD")}
	dst := b.b.mr(4096, accessLocalWrite)
	for range b.qb.rq.size {
		b.b.recv(b.qb, dst.sge(0, 2048))
	}
	seg := segInline(make([]byte, n))
	b.slots = uint32(16+48+len(seg)+63) / 64
	for range b.qa.sq.size / b.slots {
		b.a.put(b.qa, ctrl{op: opSend, flags: ce}, b.av(b.qb.attr.qkey), seg)
	}
	be.PutUint32(b.a.page[uarBlueFlame0+4:], b.qa.qpn<<8|1)
	return b
}

// setIndex corrects the WQE index of ring entry i, which grows with every lap.
func (b *udBench) setIndex(i uint32) {
	at := i * b.slots
	be.PutUint16(b.mustAt(b.qa.sq.buf+uint64(at&(b.qa.sq.size-1))*wqebbBytes+1), uint16(at))
}

func BenchmarkUDSend32(b *testing.B) {
	u := newUDBench(b, 32)
	b.ReportAllocs()
	i := uint32(0)
	for b.Loop() {
		u.setIndex(i)
		u.step(i)
		i++
	}
	if u.b.d.stats.Drops != (Drops{}) || u.qa.attr.state != stateRTS || u.a.d.stats.LocalMsgs != uint64(i) {
		b.Fatalf("%d of %d sent, drops %+v", u.a.d.stats.LocalMsgs, i, u.b.d.stats.Drops)
	}
}

// newRCBench is an RC pair with one operation in every slot of the ring.
func newRCBench(tb testing.TB, op uint8, n uint32) (*duo, func(i uint32)) {
	p := newDuo(tb, "RC")
	src := p.a.mr(uint64(n), accessLocalWrite)
	dst := p.b.mr(uint64(n), accessLocalWrite|accessRemoteRead|accessRemoteWrite)
	from, to := src, dst
	if op == opRead {
		from, to = dst, src
	}
	want := bytes.Clone(p.a.fill(from, 1)) // touched pages, not the zero page
	p.a.fill(to, 99)
	tb.Cleanup(func() {
		if !bytes.Equal(p.a.bytes(to), want) {
			tb.Errorf("opcode %#x did not move the data", op)
		}
	})
	for range p.qa.sq.size {
		p.a.put(p.qa, ctrl{op: op, flags: ce}, segRAddr(dst.iova, dst.key), src.sge(0, n))
	}
	be.PutUint32(p.a.page[uarBlueFlame0+4:], p.qa.qpn<<8|1)
	at := func(addr uint64) []byte { return p.arena.mem[addr-p.arena.base:] }
	return p, func(i uint32) {
		be.PutUint16(at(p.qa.sq.buf+uint64(i&(p.qa.sq.size-1))*wqebbBytes+1), uint16(i))
		be.PutUint16(at(p.qa.dbrec+6), uint16(i+1))
		be.PutUint32(at(p.qa.sendCQ.dbrec), i&ciMask)
		p.a.f.kick(&p.a.page[0], uarBlueFlame0)
	}
}

func BenchmarkRC(b *testing.B) {
	for _, op := range []struct {
		name string
		op   uint8
	}{{"Write", opWrite}, {"Read", opRead}} {
		for _, n := range []uint32{64, 4096, 1 << 20} {
			b.Run(fmt.Sprintf("%s/%d", op.name, n), func(b *testing.B) {
				p, step := newRCBench(b, op.op, n)
				b.SetBytes(int64(n))
				b.ReportAllocs()
				i := uint32(0)
				for b.Loop() {
					step(i)
					i++
				}
				if p.qa.attr.state != stateRTS || p.a.d.stats.LocalMsgs != uint64(i) {
					b.Fatalf("%d of %d done", p.a.d.stats.LocalMsgs, i)
				}
			})
		}
	}
}

func TestExecutionDoesNotAllocate(t *testing.T) {
	u := newUDBench(t, 32)
	i := uint32(0)
	if n := testing.AllocsPerRun(1000, func() {
		u.setIndex(i)
		u.step(i)
		i++
	}); n != 0 {
		t.Errorf("UD SEND: %v allocations", n)
	}
	if u.a.d.stats.LocalMsgs != uint64(i) || u.qb.rq.ci != i {
		t.Errorf("%d of %d sent", u.a.d.stats.LocalMsgs, i)
	}
	for _, op := range []uint8{opWrite, opRead} {
		p, step := newRCBench(t, op, 4096)
		i := uint32(0)
		if n := testing.AllocsPerRun(1000, func() {
			step(i)
			i++
		}); n != 0 {
			t.Errorf("opcode %#x: %v allocations", op, n)
		}
		if p.a.d.stats.LocalMsgs != uint64(i) {
			t.Errorf("opcode %#x: %d of %d done", op, p.a.d.stats.LocalMsgs, i)
		}
	}
}

// BenchmarkCopy is the machine's own speed, to compare BenchmarkRC with.
func BenchmarkCopy(b *testing.B) {
	for _, n := range []int{4096, 1 << 20} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			x, y := bytes.Repeat([]byte{1}, n), bytes.Repeat([]byte{2}, n)
			b.SetBytes(int64(n))
			for b.Loop() {
				copy(x, y)
			}
		})
	}
}
