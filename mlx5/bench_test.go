package mlx5

import (
	"testing"

	"github.com/rrppcc-go/rrppcc/mlx5/internal/prm"
	"github.com/rrppcc-go/rrppcc/uverbs"
)

// The benchmarks run without a device: UARs are ordinary memory, nobody is
// kicked, and CQEs are written by hand outside the clock.

// newBench returns a QP whose doorbells go to memory, and retire, which makes
// its send queue empty again.
func newBench(tb testing.TB, typ uverbs.QPType, cap uverbs.QPCap) (r *rig, q *qp, retire func()) {
	r = openRig(tb, newFakeKernel(tb))
	r.drv.uars.kick = nil
	q = r.newQP(typ, 255, cap)
	return r, q, func() {
		q.sq.tail.Store(q.sq.head)
		q.rq.tail.Store(q.rq.head)
	}
}

func benchSend(b *testing.B, typ uverbs.QPType, list int, wr func(r *rig, mem []byte) uverbs.SendWR) {
	r, q, retire := newBench(b, typ, uverbs.QPCap{MaxSendWR: 256, MaxRecvWR: 16, MaxSendSGE: 2, MaxRecvSGE: 1, MaxInline: 60})
	mem, err := allocMemory(4096)
	if err != nil {
		b.Fatal(err)
	}
	wrs := make([]uverbs.SendWR, list)
	for i := range wrs {
		wrs[i] = wr(r, mem)
	}
	b.ReportAllocs()
	posted := 0
	for b.Loop() {
		n, err := q.PostSend(wrs)
		if err != nil {
			b.Fatal(err)
		}
		if posted += n; posted > 200 {
			retire()
			posted = 0
		}
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/float64(list), "ns/WR")
}

func udInline(r *rig, mem []byte) uverbs.SendWR {
	return uverbs.SendWR{Opcode: uverbs.WRSend, Flags: uverbs.SendInline, AH: r.ah(), RemoteQPN: 7, RemoteQKey: 9,
		SGList: []uverbs.SGE{{Addr: prm.Addr(&mem[0]), Length: 16}, {Addr: prm.Addr(&mem[64]), Length: 32}}}
}

func udGather(r *rig, mem []byte) uverbs.SendWR {
	wr := udInline(r, mem)
	wr.Flags = 0
	return wr
}

func rcRead(r *rig, mem []byte) uverbs.SendWR {
	return uverbs.SendWR{Opcode: uverbs.WRRDMARead, RemoteAddr: 1 << 40, RKey: 5, SGList: []uverbs.SGE{{Addr: prm.Addr(&mem[0]), Length: 4096, LKey: 3}}}
}

func BenchmarkPostSendUDInline(b *testing.B)       { benchSend(b, uverbs.QPTypeUD, 1, udInline) }
func BenchmarkPostSendUDInlineList16(b *testing.B) { benchSend(b, uverbs.QPTypeUD, 16, udInline) }
func BenchmarkPostSendUDGather2(b *testing.B)      { benchSend(b, uverbs.QPTypeUD, 1, udGather) }
func BenchmarkPostSendUDGather2List16(b *testing.B) {
	benchSend(b, uverbs.QPTypeUD, 16, udGather)
}
func BenchmarkPostSendRCRead(b *testing.B) { benchSend(b, uverbs.QPTypeRC, 1, rcRead) }

func BenchmarkPostRecvList16(b *testing.B) {
	_, q, retire := newBench(b, uverbs.QPTypeUD, uverbs.QPCap{MaxSendWR: 16, MaxRecvWR: 256, MaxSendSGE: 1, MaxRecvSGE: 1})
	wrs := make([]uverbs.RecvWR, 16)
	for i := range wrs {
		wrs[i] = uverbs.RecvWR{WRID: uint64(i), SGList: []uverbs.SGE{{Addr: 1 << 30, Length: 4096, LKey: 3}}}
	}
	b.ReportAllocs()
	posted := 0
	for b.Loop() {
		n, err := q.PostRecv(wrs)
		if err != nil {
			b.Fatal(err)
		}
		if posted += n; posted > 200 {
			retire()
			posted = 0
		}
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/16, "ns/WR")
}

func BenchmarkPostSRQRecvList16(b *testing.B) {
	_, us, _ := srqRig(b, 255, 0, 0)
	s := shared(us)
	wrs := make([]uverbs.RecvWR, 16)
	for i := range wrs {
		wrs[i] = uverbs.RecvWR{WRID: uint64(i), SGList: []uverbs.SGE{{Addr: 1 << 30, Length: 4096, LKey: 3}}}
	}
	b.ReportAllocs()
	posted := uint32(0)
	for b.Loop() {
		n, err := us.PostRecv(wrs)
		if err != nil {
			b.Fatal(err)
		}
		if posted += uint32(n); posted > 200 {
			s.head = (s.tail + 1) & (s.mask >> 1) // all free again
			s.setNext(s.tail, s.head)
			posted = 0
		}
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/16, "ns/WR")
}

// BenchmarkSRQCycle16 posts 16 receives, and polls their completions.
func BenchmarkSRQCycle16(b *testing.B) {
	_, us, qps := srqRig(b, 63, 1, 63)
	q := qps[0]
	c, s := q.recvCQ, shared(us)
	wrs, wcs := make([]uverbs.RecvWR, 16), make([]uverbs.WC, 16)
	b.ReportAllocs()
	for b.Loop() {
		i := s.head
		if n, err := us.PostRecv(wrs); n != 16 {
			b.Fatal(err)
		}
		for k := range uint32(16) {
			e := c.at(c.ci + k)
			e.SRQNUIDX, e.SOPDropQPN = prm.ToBE32(q.key), prm.ToBE32(q.qpn)
			e.StoreLast(i<<16 | prm.CQERespSend<<4 | (c.ci+k)>>c.shift&1)
			i = s.next(i)
		}
		if n, err := c.Poll(wcs); n != 16 {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/16, "ns/WR")
}

// BenchmarkPoll16 polls bursts of 16 receive completions. The ring is written
// once: every lap flips the owner bits, which is all that changes.
func BenchmarkPoll16(b *testing.B) {
	_, q, _ := newBench(b, uverbs.QPTypeUD, uverbs.QPCap{MaxSendWR: 16, MaxRecvWR: 256, MaxSendSGE: 1, MaxRecvSGE: 1})
	c := q.recvCQ
	q.rq.head = 256
	q.db.Store(prm.QPRecv, 0x8000)
	for i := range uint32(256) {
		c.put(i, c.cqe(i, q, prm.CQERespSend, 0, uint16(i)))
	}
	wcs := make([]uverbs.WC, 16)
	b.ReportAllocs()
	for b.Loop() {
		if n, err := c.Poll(wcs); n != 16 || err != nil {
			b.Fatal(n, err)
		}
		if c.ci&c.mask == 0 { // the ring is read: the same lap again
			c.ci -= 256
			q.rq.tail.Store(0)
		}
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/16, "ns/CQE")
}

func BenchmarkPollEmpty(b *testing.B) {
	_, q, _ := newBench(b, uverbs.QPTypeUD, uverbs.QPCap{MaxSendWR: 16, MaxRecvWR: 16, MaxSendSGE: 1, MaxRecvSGE: 1})
	wcs := make([]uverbs.WC, 16)
	b.ReportAllocs()
	for b.Loop() {
		if n, err := q.recvCQ.Poll(wcs); n != 0 || err != nil {
			b.Fatal(n, err)
		}
	}
}

func BenchmarkArm(b *testing.B) {
	_, q, _ := newBench(b, uverbs.QPTypeUD, uverbs.QPCap{MaxSendWR: 16, MaxRecvWR: 16, MaxSendSGE: 1, MaxRecvSGE: 1})
	b.ReportAllocs()
	for b.Loop() {
		q.recvCQ.Arm(false)
	}
}

func TestDataPathAllocatesNothing(t *testing.T) {
	r, q, retire := newBench(t, uverbs.QPTypeUD, uverbs.QPCap{MaxSendWR: 64, MaxRecvWR: 64, MaxSendSGE: 2, MaxRecvSGE: 2, MaxInline: 60})
	_, rc, retireRC := newBench(t, uverbs.QPTypeRC, uverbs.QPCap{MaxSendWR: 64, MaxRecvWR: 64, MaxSendSGE: 2, MaxRecvSGE: 2, MaxInline: 60})
	mem, err := allocMemory(4096)
	if err != nil {
		t.Fatal(err)
	}
	defer freeMemory(mem)
	sends := []uverbs.SendWR{udInline(r, mem), udGather(r, mem)}
	reads := []uverbs.SendWR{rcRead(r, mem)}
	recvs := []uverbs.RecvWR{{SGList: sends[1].SGList}, {SGList: sends[1].SGList}}
	wcs := make([]uverbs.WC, 4)
	full := make([]uverbs.SendWR, 65)
	for i := range full {
		full[i] = sends[0]
	}
	rare := []uverbs.SendWR{
		{Opcode: uverbs.WRAtomicCmpAndSwp, SGList: reads[0].SGList}, {Opcode: uverbs.WRLocalInv}, {Opcode: uverbs.WRSendWithInv},
		{Opcode: uverbs.WRBindMW}, // refused
	}
	_, us, sharing := srqRig(t, 7, 1, 15)
	s, sc := shared(us), sharing[0].recvCQ
	r.drv.uars.kick = func(*byte, uint32) {}
	allocs := testing.AllocsPerRun(100, func() {
		for _, list := range [][]uverbs.SendWR{sends, sends[:1], full} {
			q.PostSend(list)
			retire()
		}
		rc.PostSend(reads)
		rc.PostSend(rare)
		i := s.head
		us.PostRecv(recvs)
		putShared(sc, sharing[0], prm.CQERespSend, i)
		putShared(sc, sharing[0], prm.CQERespErr, s.next(i)) // a fault: posted again
		sc.Poll(wcs)
		sc.Poll(wcs)
		q.PostRecv(recvs)
		q.sendCQ.put(0, make16(q))
		q.sendCQ.Poll(wcs)
		q.recvCQ.Poll(wcs)
		q.recvCQ.Arm(true)
		q.recvCQ.EventArrived()
		retire()
		retireRC()
	})
	if allocs != 0 {
		t.Errorf("%v allocations", allocs)
	}
}

// putShared writes a CQE of WQE i, without allocating, and polls it.
func putShared(c *cq, q *qp, op, i uint32) {
	e := c.at(c.ci)
	e.SRQNUIDX, e.SOPDropQPN = prm.ToBE32(q.key), prm.ToBE32(q.qpn)
	e.TimestampLow = prm.ToBE32(prm.VendorODPFault<<8 | prm.SyndromeRemoteAborted)
	e.StoreLast(i<<16 | op<<4 | c.ci>>c.shift&1)
	var wcs [1]uverbs.WC
	c.Poll(wcs[:])
}

var cqeBuf [prm.CQEBytes]byte

// make16 is a CQE that no QP matches, without allocating.
func make16(q *qp) []byte {
	cqeBuf[63] = prm.CQEReq<<4 | byte(q.sendCQ.ci>>q.sendCQ.shift&1)
	return cqeBuf[:]
}
