package rxe

import (
	"encoding/binary"
	"errors"
	"sync"
	"syscall"
	"testing"

	kabi "github.com/rrppcc-go/rrppcc/internal/abi"
	"github.com/rrppcc-go/rrppcc/internal/kernel"
	"github.com/rrppcc-go/rrppcc/uverbs"
)

func TestPollConvertsEntriesAndGivesSlotsBack(t *testing.T) {
	b := newBench(t, uverbs.QPTypeUD)
	rc := b.newQP(t, uverbs.QPTypeRC, nil)
	be := binary.NativeEndian.Uint32([]byte{1, 2, 3, 4})
	for range 5 { // several laps
		b.cqRing.complete(kabi.Ib_uverbs_wc{Wr_id: 1 << 63, Opcode: 128, Byte_len: 140, Ex: be, Qp_num: b.qp.QPN(), Src_qp: 9, Wc_flags: 3, Pkey_index: 1, Slid: 2, Sl: 3, Dlid_path_bits: 4})
		b.cqRing.complete(kabi.Ib_uverbs_wc{Wr_id: 2, Opcode: 129, Ex: 0x77, Qp_num: rc.QPN(), Wc_flags: 1 | 4})
		b.cqRing.complete(kabi.Ib_uverbs_wc{Wr_id: 3, Opcode: 4, Qp_num: rc.QPN(), Status: 21, Vendor_err: 6})
		before := b.cqRing.cons()
		wc := make([]uverbs.WC, 2)
		if n, err := b.cq.Poll(wc); n != 2 || err != nil {
			t.Fatal(n, err)
		}
		if want := (uverbs.WC{WRID: 1 << 63, Opcode: uverbs.WCRecv, ByteLen: 140, ImmData: 0x01020304, QPN: b.qp.QPN(), SrcQP: 9,
			Flags: uverbs.WCGRH | uverbs.WCWithImm, PKeyIndex: 1, SLID: 2, SL: 3, DLIDPathBits: 4}); wc[0] != want {
			t.Errorf("%+v, want %+v", wc[0], want)
		}
		if want := (uverbs.WC{WRID: 2, Opcode: uverbs.WCRecvRDMAWithImm, ImmData: 0x77, QPN: rc.QPN(), Flags: uverbs.WCWithInv}); wc[1] != want {
			t.Errorf("RC has no GRH: %+v, want %+v", wc[1], want)
		}
		if got := b.cqRing.cons(); got != (before+2)&7 {
			t.Errorf("consumer %d, was %d", got, before)
		}
		if n, err := b.cq.Poll(wc); n != 1 || err != nil || wc[0].WRID != 3 || wc[0].Status != uverbs.WCGeneralErr || wc[0].VendorErr != 6 {
			t.Errorf("%d, %v, %+v", n, err, wc[0])
		}
		if n, err := b.cq.Poll(wc); n != 0 || err != nil {
			t.Errorf("empty: %d, %v", n, err)
		}
	}
}

func TestPollReportsGarbageAndGoesOn(t *testing.T) {
	b := newBench(t, uverbs.QPTypeRC)
	wc := make([]uverbs.WC, 8)
	b.cqRing.complete(kabi.Ib_uverbs_wc{Wr_id: 1})
	b.cqRing.complete(kabi.Ib_uverbs_wc{Wr_id: 2, Status: 22})
	b.cqRing.complete(kabi.Ib_uverbs_wc{Wr_id: 3, Opcode: 256})
	b.cqRing.complete(kabi.Ib_uverbs_wc{Wr_id: 4})
	for i, want := range []struct {
		n   int
		err error
		id  uint64
	}{{1, uverbs.ErrCQCorrupt, 1}, {0, uverbs.ErrCQCorrupt, 0}, {1, nil, 4}} {
		if n, err := b.cq.Poll(wc); n != want.n || err != want.err || n > 0 && wc[0].WRID != want.id {
			t.Errorf("poll %d: %d, %v, %+v", i, n, err, wc[0])
		}
	}
	b.cqRing.setProd(0xfffffff8 | b.cqRing.prod()) // garbage above the mask
	if n, err := b.cq.Poll(wc); n != 0 || err != nil {
		t.Errorf("producer above the mask: %d, %v", n, err)
	}
}

func TestArmNamesTheCQ(t *testing.T) {
	b := newBench(t, uverbs.QPTypeRC)
	check(t, b.cq.Arm(false))
	check(t, b.cq.Arm(true))
	check(t, b.cq.Arm(false))
	h := b.cq.Handle()
	if want := [][2]uint32{{h, 0}, {h, 1}, {h, 0}}; len(b.k.arms) != 3 || b.k.arms[0] != want[0] || b.k.arms[1] != want[1] || b.k.arms[2] != want[2] {
		t.Errorf("%v, want %v", b.k.arms, want)
	}
}

func TestResetDropsTheQPsCompletionsOnly(t *testing.T) {
	b := newBench(t, uverbs.QPTypeRC)
	other := b.newQP(t, uverbs.QPTypeRC, nil)
	wc := make([]uverbs.WC, 8)
	id := uint64(0)
	complete := func(qp *uverbs.QP) {
		id++
		b.cqRing.complete(kabi.Ib_uverbs_wc{Wr_id: id, Qp_num: qp.QPN()})
	}
	for range 10 {
		id = 0
		complete(b.qp)
		complete(other)
		complete(b.qp)
		if n, _ := b.cq.Poll(wc[:1]); n != 1 || wc[0].WRID != 1 {
			t.Fatal(n, wc[0])
		}
		check(t, b.qp.Modify(&uverbs.QPAttr{State: uverbs.QPStateReset}, uverbs.AttrState))
		check(t, other.Modify(&uverbs.QPAttr{State: uverbs.QPStateReset}, uverbs.AttrState))
		complete(b.qp) // of its new life
		complete(other)
		if n, err := b.cq.Poll(wc); n != 2 || err != nil || wc[0].WRID != 4 || wc[1].WRID != 5 {
			t.Fatalf("%d, %v, %+v", n, err, wc[:n])
		}
	}
	if drv := b.cq.Driver().(*cq); len(drv.purges) != 0 || drv.pending.Load() != nil {
		t.Errorf("%d purges are left", len(drv.purges))
	}
}

func TestResetWhileTheCQIsPolled(t *testing.T) {
	b := newBench(t, uverbs.QPTypeRC)
	stop := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() { // the kernel
		for i := uint64(0); ; i++ {
			select {
			case <-stop:
				return
			default:
			}
			if drv := b.cq.Driver().(*cq); (drv.ring.producer()+1)&drv.ring.mask != drv.ring.consumer() {
				e := kabi.Ib_uverbs_wc{Wr_id: i, Qp_num: 1}
				copy(b.cqRing.entry(drv.ring.producer()), kernel.Bytes(&e))
				drv.ring.setProducer((drv.ring.producer() + 1) & drv.ring.mask)
			} else {
				i--
			}
		}
	})
	wg.Go(func() {
		for range 2000 {
			b.qp.Driver().StateChanged(uverbs.QPStateReset)
		}
		close(stop)
	})
	wc := make([]uverbs.WC, 3)
	next := uint64(0)
	for done := false; !done; {
		select {
		case <-stop:
			done = true
		default:
		}
		n, err := b.cq.Poll(wc)
		if err != nil {
			t.Fatal(err)
		}
		for _, c := range wc[:n] {
			if c.WRID != next {
				t.Fatalf("completion %d of another QP, want %d", c.WRID, next)
			}
			next++
		}
	}
	wg.Wait()
}

func TestResizeKeepsWhatTheKernelMoved(t *testing.T) {
	b := newBench(t, uverbs.QPTypeRC)
	wc := make([]uverbs.WC, 8)
	for i := range uint64(3) {
		b.cqRing.complete(kabi.Ib_uverbs_wc{Wr_id: i, Qp_num: b.qp.QPN()})
	}
	must(b.cq.Poll(wc[:1]))(t)
	// The kernel starts the new ring anew, with the entries that were not read.
	b.k.garble = func(r fakeRing, _ *uint64, _ *uint32) {
		r.complete(kabi.Ib_uverbs_wc{Wr_id: 1, Qp_num: b.qp.QPN()})
		r.complete(kabi.Ib_uverbs_wc{Wr_id: 2, Qp_num: 5})
	}
	b.qp.Driver().StateChanged(uverbs.QPStateReset)
	if err := b.cq.Resize(100); err != nil || b.cq.Depth() != 127 {
		t.Fatalf("%v, depth %d", err, b.cq.Depth())
	}
	if len(b.k.mapped) != 3 {
		t.Errorf("%d rings are mapped", len(b.k.mapped))
	}
	if n, err := b.cq.Poll(wc); n != 1 || err != nil || wc[0].WRID != 2 {
		t.Errorf("%d, %v, %+v", n, err, wc[0])
	}
	b.k.garble = nil
	b.k.fail = func(object, _ uint16, write uint32) syscall.Errno {
		if write == kabi.IB_USER_VERBS_CMD_RESIZE_CQ {
			return syscall.EINVAL
		}
		return 0
	}
	if err := b.cq.Resize(1); !errors.Is(err, syscall.EINVAL) || b.cq.Depth() != 127 {
		t.Errorf("%v, depth %d", err, b.cq.Depth())
	}
}

func TestDataPathAllocatesNothing(t *testing.T) {
	b := newBench(t, uverbs.QPTypeRC)
	b.k.doorbells = make([]uint32, 0, 1<<16)
	b.k.arms = make([][2]uint32, 0, 1<<16)
	sends := []uverbs.SendWR{{Opcode: uverbs.WRSend, SGList: []uverbs.SGE{{Addr: 1, Length: 2}}}, {Opcode: uverbs.WRRDMAWrite}}
	recvs := []uverbs.RecvWR{{SGList: []uverbs.SGE{{Addr: 1, Length: 2}}}}
	wc := make([]uverbs.WC, 4)
	full := make([]uverbs.SendWR, 8)
	for what, f := range map[string]func() (int, error){
		"PostSend": func() (int, error) { defer b.sqRing.setCons(b.sqRing.prod()); return b.qp.PostSend(sends) },
		"PostSend that does not fit": func() (int, error) {
			defer func() { b.sqRing.setCons(b.sqRing.prod()) }()
			n, err := b.qp.PostSend(full)
			if err == uverbs.ErrQueueFull || err == nil {
				return n, nil
			}
			return n, err
		},
		"PostRecv": func() (int, error) { defer func() { b.rqRing.setCons(b.rqRing.prod()) }(); return b.qp.PostRecv(recvs) },
		"Poll": func() (int, error) {
			b.cqRing.setProd((b.cqRing.prod() + 3) & 7)
			return b.cq.Poll(wc)
		},
		"Arm": func() (int, error) { return 0, b.cq.Arm(false) },
	} {
		for i := range uint32(8) {
			clear(b.cqRing.entry(i))
		}
		if n := testing.AllocsPerRun(100, func() {
			if _, err := f(); err != nil {
				t.Fatal(what, err)
			}
		}); n != 0 {
			t.Errorf("%s: %v allocations", what, n)
		}
	}
}

func FuzzCQE(f *testing.F) {
	f.Add(kernel.Bytes(&kabi.Ib_uverbs_wc{Wr_id: 1, Opcode: 128, Wc_flags: 7, Qp_num: 0x11}))
	f.Add(kernel.Bytes(&kabi.Ib_uverbs_wc{Status: 22, Qp_num: 1 << 31, Wc_flags: 1}))
	b := newBench(f, uverbs.QPTypeUD)
	f.Fuzz(func(t *testing.T, e []byte) {
		for cut := range min(len(e), 48) + 1 {
			p := b.cqRing.prod()
			clear(b.cqRing.entry(p))
			copy(b.cqRing.entry(p), e[:cut])
			b.cqRing.setProd((p + 1) & 7)
			wc := make([]uverbs.WC, 1)
			n, err := b.cq.Poll(wc)
			if n == 1 && (err != nil || wc[0].Status > uverbs.WCGeneralErr) || n == 0 && err != uverbs.ErrCQCorrupt {
				t.Fatalf("%d, %v, %+v", n, err, wc[0])
			}
		}
	})
}

func BenchmarkPoll(bm *testing.B) {
	b := newBench(bm, uverbs.QPTypeRC)
	wc := make([]uverbs.WC, 4)
	for i := range uint32(8) {
		clear(b.cqRing.entry(i))
	}
	for bm.Loop() {
		b.cqRing.setProd((b.cqRing.prod() + 4) & 7)
		b.cq.Poll(wc)
	}
	bm.ReportMetric(float64(bm.Elapsed().Nanoseconds())/float64(4*bm.N), "ns/completion")
}

func BenchmarkWriteSend(bm *testing.B) {
	b := newBench(bm, uverbs.QPTypeRC)
	q := b.qp.Driver().(*qp)
	wr := uverbs.SendWR{Opcode: uverbs.WRRDMAWrite, SGList: []uverbs.SGE{{Addr: 1, Length: 2}}}
	for bm.Loop() {
		q.writeSend(q.sq.ring.slot(0), &wr)
	}
}
