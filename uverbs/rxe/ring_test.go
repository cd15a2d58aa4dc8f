package rxe

import (
	"encoding/binary"
	"errors"
	"math"
	"strings"
	"syscall"
	"testing"

	kabi "github.com/rrppcc-go/rrppcc/internal/abi"
	"github.com/rrppcc-go/rrppcc/uverbs"
)

// everything creates one of each and closes all; it returns the first error.
func everything(k *fakeKernel) (err error) {
	ctx, err := uverbs.NewDevice(k).Open()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, ctx.Close()) }()
	pd, err := ctx.AllocPD()
	if err != nil {
		return err
	}
	cq, err := ctx.CreateCQ(&uverbs.CQInitAttr{Depth: 5})
	if err != nil {
		return err
	}
	srq, err := pd.CreateSRQ(&uverbs.SRQInitAttr{SRQAttr: uverbs.SRQAttr{MaxWR: 3, MaxSGE: 1}})
	if err != nil {
		return err
	}
	qp, err := pd.CreateQP(&uverbs.QPInitAttr{Type: uverbs.QPTypeRC, SendCQ: cq, RecvCQ: cq, Cap: uverbs.QPCap{MaxSendWR: 3, MaxRecvWR: 3, MaxSendSGE: 2, MaxRecvSGE: 1}})
	if err != nil {
		return err
	}
	if err := cq.Resize(20); err != nil {
		return err
	}
	if err := srq.Modify(&uverbs.SRQAttr{MaxWR: 20}, uverbs.SRQMaxWR); err != nil {
		return err
	}
	return errors.Join(qp.Close(), srq.Close(), cq.Close(), pd.Close())
}

func TestGarbledRingsAreRefusedAndNothingStays(t *testing.T) {
	k := newFakeKernel(t)
	if err := everything(k); err != nil {
		t.Fatal(err)
	}
	rings := len(k.all)
	if rings != 6 {
		t.Fatalf("%d rings", rings)
	}
	for name, garble := range map[string]func(r fakeRing, offset *uint64, size *uint32){
		"empty":              func(_ fakeRing, _ *uint64, size *uint32) { *size = 0 },
		"no entries":         func(_ fakeRing, _ *uint64, size *uint32) { *size = 383 },
		"too few bytes":      func(_ fakeRing, _ *uint64, size *uint32) { *size = 384 + 64 },
		"too many bytes":     func(_ fakeRing, _ *uint64, size *uint32) { *size = math.MaxUint32 },
		"another offset":     func(_ fakeRing, offset *uint64, _ *uint32) { *offset += 1 << 20 },
		"unaligned offset":   func(_ fakeRing, offset *uint64, _ *uint32) { *offset++ },
		"negative offset":    func(_ fakeRing, offset *uint64, _ *uint32) { *offset = 1 << 63 },
		"mask with a hole":   func(r fakeRing, _ *uint64, _ *uint32) { r.set(4, r.mask()&^1) },
		"mask too large":     func(r fakeRing, _ *uint64, _ *uint32) { r.set(4, r.mask()<<12|0xfff) },
		"mask of all ones":   func(r fakeRing, _ *uint64, _ *uint32) { r.set(4, math.MaxUint32) },
		"mask too small":     func(r fakeRing, _ *uint64, _ *uint32) { r.set(4, 1) },
		"tiny entries":       func(r fakeRing, _ *uint64, _ *uint32) { r.set(0, 5) },
		"huge entries":       func(r fakeRing, _ *uint64, _ *uint32) { r.set(0, 15) },
		"impossible entries": func(r fakeRing, _ *uint64, _ *uint32) { r.set(0, 200) },
	} {
		for at := range rings {
			k := newFakeKernel(t)
			i := 0
			k.garble = func(r fakeRing, offset *uint64, size *uint32) {
				if i == at {
					garble(r, offset, size)
				}
				i++
			}
			if err := everything(k); !errors.Is(err, uverbs.ErrBadAnswer) && !errors.Is(err, syscall.EINVAL) {
				t.Errorf("%s, ring %d: %v", name, at, err)
			}
		}
	}
}

func TestEveryFailingCommandLeavesNothing(t *testing.T) {
	for at := 0; ; at++ {
		k := newFakeKernel(t)
		n := 0
		k.fail = func(uint16, uint16, uint32) syscall.Errno {
			n++
			if n-1 == at {
				return syscall.ENOMEM
			}
			return 0
		}
		err := everything(k)
		if n <= at {
			if err != nil {
				t.Error(err)
			}
			break
		}
		if !errors.Is(err, syscall.ENOMEM) {
			t.Errorf("command %d: %v", at, err)
		}
	}
	k := newFakeKernel(t)
	k.mmapErr = syscall.ENOMEM
	if err := everything(k); !errors.Is(err, syscall.ENOMEM) {
		t.Error(err)
	}
}

func TestGarbledCapacitiesAreRefused(t *testing.T) {
	for _, garble := range []func(*kabi.Ib_uverbs_qp_cap){
		func(c *kabi.Ib_uverbs_qp_cap) { c.Max_send_sge = 1 },
		func(c *kabi.Ib_uverbs_qp_cap) { c.Max_send_sge = 1 << 31 },
		func(c *kabi.Ib_uverbs_qp_cap) { c.Max_send_sge = 100 }, // more than an entry holds
		func(c *kabi.Ib_uverbs_qp_cap) { c.Max_recv_sge = 100 },
		func(c *kabi.Ib_uverbs_qp_cap) { c.Max_inline_data = 1 << 15 },
		func(c *kabi.Ib_uverbs_qp_cap) { c.Max_inline_data = math.MaxUint32 },
	} {
		k := newFakeKernel(t)
		k.caps = garble
		if err := everything(k); !errors.Is(err, uverbs.ErrBadAnswer) {
			t.Error(err)
		}
	}
}

func TestUnknownABIIsRefused(t *testing.T) {
	for _, v := range []int{0, 3} {
		k := newFakeKernel(t)
		k.abi = v
		if _, err := uverbs.NewDevice(k).Open(); !errors.Is(err, syscall.EOPNOTSUPP) || !strings.Contains(err.Error(), "ABI version") {
			t.Error(err)
		}
	}
}

func TestPostRecvWritesWhatTheKernelReads(t *testing.T) {
	b := newBench(t, uverbs.QPTypeRC)
	list := []uverbs.SGE{{Addr: 0x1000, Length: 100, LKey: 7}, {}, {Addr: 0x5000, Length: 23, LKey: 8}}
	if n, err := b.qp.PostRecv([]uverbs.RecvWR{{WRID: 1 << 60, SGList: list[:2]}, {WRID: 2, SGList: list}}); n != 1 || err != uverbs.ErrTooManySGEs {
		t.Fatalf("%d, %v", n, err)
	}
	e := b.rqRing.entry(0)
	u32, u64 := binary.NativeEndian.Uint32, binary.NativeEndian.Uint64
	if u64(e) != 1<<60 || u64(e[8:]) != 0 || u32(e[16:]) != 100 || u32(e[20:]) != 100 || u32(e[24:]) != 0 || u32(e[28:]) != 1 || u64(e[32:]) != 0 ||
		string(e[40:56]) != string(sgeImage(list[0])) {
		t.Errorf("% x", e[:56])
	}
	if b.rqRing.prod() != 1 || len(b.k.doorbells) != 0 {
		t.Errorf("producer %d, %d doorbells", b.rqRing.prod(), len(b.k.doorbells))
	}
	huge := []uverbs.SGE{{Length: math.MaxUint32}, {Length: 1}}
	if n, err := b.qp.PostRecv([]uverbs.RecvWR{{SGList: huge}}); n != 0 || !errors.Is(err, syscall.EINVAL) {
		t.Errorf("4 GiB: %d, %v", n, err)
	}
	for lap := range 10 {
		free := 7
		if lap == 0 {
			free = 6
		}
		if n, err := b.qp.PostRecv(make([]uverbs.RecvWR, 8)); n != free || err != uverbs.ErrQueueFull {
			t.Fatalf("lap %d: %d, %v", lap, n, err)
		}
		b.rqRing.setCons(b.rqRing.prod())
	}
}

func TestSRQTakesReceivesOfItsQPs(t *testing.T) {
	b := newBench(t, uverbs.QPTypeRC)
	attr := &uverbs.SRQInitAttr{SRQAttr: uverbs.SRQAttr{MaxWR: 10, MaxSGE: 2}}
	srq := must(b.pd.CreateSRQ(attr))(t)
	ring := b.k.all[len(b.k.all)-1]
	qp := b.newQP(t, uverbs.QPTypeRC, srq)
	if c := qp.Cap(); attr.MaxWR != 15 || c.MaxRecvWR != 0 || c.MaxRecvSGE != 0 || qp.SRQ() != srq {
		t.Errorf("%+v, %+v", attr, c)
	}
	if n, err := qp.PostRecv([]uverbs.RecvWR{{}}); n != 0 || err != uverbs.ErrQPUsesSRQ {
		t.Errorf("%d, %v", n, err)
	}
	if n, err := srq.PostRecv(make([]uverbs.RecvWR, 20)); n != 15 || err != uverbs.ErrQueueFull || ring.prod() != 15 {
		t.Errorf("%d, %v, producer %d", n, err, ring.prod())
	}
	if err := srq.Modify(&uverbs.SRQAttr{MaxWR: 14}, uverbs.SRQMaxWR); !errors.Is(err, syscall.EINVAL) || len(b.k.srqCalls) != 0 {
		t.Errorf("the kernel was asked to fit 15 receives in 14: %v", err)
	}
	ring.setCons(1)
	check(t, srq.Modify(&uverbs.SRQAttr{MaxWR: 14}, uverbs.SRQMaxWR))
	b.k.srqCalls = nil
	check(t, srq.Modify(&uverbs.SRQAttr{Limit: 3}, uverbs.SRQLimit))
	check(t, srq.Modify(&uverbs.SRQAttr{MaxWR: 40}, uverbs.SRQMaxWR))
	want := []kabi.Ib_uverbs_modify_srq{{Srq_handle: srq.Handle(), Attr_mask: 2, Srq_limit: 3}, {Srq_handle: srq.Handle(), Attr_mask: 1, Max_wr: 40}}
	if len(b.k.srqCalls) != 2 || b.k.srqCalls[0] != want[0] || b.k.srqCalls[1] != want[1] {
		t.Errorf("%+v", b.k.srqCalls)
	}
	if n, err := srq.PostRecv(make([]uverbs.RecvWR, 100)); n != 63 || err != uverbs.ErrQueueFull {
		t.Errorf("after the resize: %d, %v", n, err)
	}
	check(t, qp.Close())
	check(t, srq.Close())
	if n, err := srq.PostRecv(make([]uverbs.RecvWR, 1)); n != 0 || err == nil {
		t.Errorf("closed: %d, %v", n, err)
	}
}

func FuzzRing(f *testing.F) {
	f.Add(uint64(4096), uint32(4096), uint32(6), uint32(7), uint32(0), uint32(0), byte(0))
	f.Add(uint64(1<<63), uint32(1<<31), uint32(31), ^uint32(0), uint32(9), ^uint32(0), byte(3))
	f.Fuzz(func(t *testing.T, offset uint64, size, shift, mask, prod, cons uint32, at byte) {
		k := newFakeKernel(t)
		i := byte(0)
		k.garble = func(r fakeRing, o *uint64, s *uint32) {
			if i == at%6 {
				*o, *s = offset, size
				r.set(0, shift)
				r.set(4, mask)
				r.setProd(prod)
				r.setCons(cons)
			}
			i++
		}
		everything(k)
	})
}
