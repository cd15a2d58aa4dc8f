package mlx5

import (
	"encoding/binary"
	"encoding/hex"
	"errors"
	"math/rand/v2"
	"syscall"
	"testing"

	kabi "github.com/rrppcc-go/rrppcc/internal/abi"
	"github.com/rrppcc-go/rrppcc/mlx5/internal/abi"
	"github.com/rrppcc-go/rrppcc/mlx5/internal/prm"
	"github.com/rrppcc-go/rrppcc/uverbs"
)

// session opens a device, makes one of everything, and closes it; it reports
// the first error.
func session(k *fakeKernel) error {
	ctx, err := uverbs.NewDevice(k).Open()
	if err != nil {
		return err
	}
	defer ctx.Close()
	pd, err := ctx.AllocPD()
	if err != nil {
		return err
	}
	defer pd.Close()
	cq, err := ctx.CreateCQ(&uverbs.CQInitAttr{Depth: 10})
	if err != nil {
		return err
	}
	defer cq.Close()
	srq, err := pd.CreateSRQ(&uverbs.SRQInitAttr{SRQAttr: uverbs.SRQAttr{MaxWR: 4, MaxSGE: 1}})
	if err != nil {
		return err
	}
	defer srq.Close()
	qp, err := pd.CreateQP(&uverbs.QPInitAttr{Type: uverbs.QPTypeUD, SendCQ: cq, RecvCQ: cq, SRQ: srq, Cap: uverbs.QPCap{MaxSendWR: 4, MaxSendSGE: 1}})
	if err != nil {
		return err
	}
	defer qp.Close()
	if n, err := srq.PostRecv(make([]uverbs.RecvWR, 4)); n != 4 {
		return err
	}
	if err := cq.Resize(100); err != nil && !errors.Is(err, uverbs.ErrBadAnswer) { // nobody writes the marker
		return err
	}
	ah, err := pd.CreateAH(&uverbs.AHAttr{IsGlobal: true, Port: 1, SGIDIndex: 1})
	if err != nil {
		return err
	}
	defer ah.Close()
	if n, err := qp.PostSend([]uverbs.SendWR{{Opcode: uverbs.WRSend, AH: ah}}); n != 1 {
		return err
	}
	_, err = cq.Poll(make([]uverbs.WC, 1))
	return err
}

// TestEveryCommandMayFail fails each command in turn: the errno arrives, and
// nothing is left behind.
func TestEveryCommandMayFail(t *testing.T) {
	k := newFakeKernel(t)
	if err := session(k); err != nil {
		t.Fatal(err)
	}
	total := len(k.commands)
	before := mapped.Load()
	for i := range total {
		k := newFakeKernel(t)
		seen := 0
		k.fail = func(object, method uint16) error {
			seen++
			if seen == i+1 {
				return syscall.EOVERFLOW
			}
			return nil
		}
		err := session(k)
		destroy := i >= total-7 // of AH, QP, SRQ, CQ, PD and two UARs: the session does not look
		if !destroy && !errors.Is(err, syscall.EOVERFLOW) {
			t.Errorf("command %d: %v", i, err)
		}
		if !destroy && len(k.handles) != 0 {
			t.Errorf("command %d: objects left: %v", i, k.handles)
		}
		if len(k.pages) != 0 {
			t.Errorf("command %d: %d UAR pages are still mapped", i, len(k.pages))
		}
		if n := mapped.Load() - before; n != 0 {
			t.Errorf("command %d: %d bytes are still mapped", i, n)
			before += n
		}
	}
}

// TestQueuesOutliveRemovedDevice closes everything on a device that answers EIO
// to every destroy, and is still there as far as the uverbs core knows.
func TestQueuesOutliveRemovedDevice(t *testing.T) {
	k := newFakeKernel(t)
	before := mapped.Load()
	ctx, err := uverbs.NewDevice(k).Open()
	if err != nil {
		t.Fatal(err)
	}
	r := &rig{t: t, k: k, ctx: ctx, drv: ctx.Driver().(*contextDriver)}
	if r.pd, err = ctx.AllocPD(); err != nil {
		t.Fatal(err)
	}
	cq := r.cq(7)
	srq := r.srq(4, 1)
	qp, err := r.pd.CreateQP(&uverbs.QPInitAttr{Type: uverbs.QPTypeRC, SendCQ: cq, RecvCQ: cq, SRQ: srq, Cap: uverbs.QPCap{MaxSendWR: 4, MaxSendSGE: 1}})
	if err != nil {
		t.Fatal(err)
	}
	k.fail = func(object, method uint16) error {
		if object == kabi.UVERBS_OBJECT_DEVICE && method == kabi.UVERBS_METHOD_QUERY_GID_ENTRY {
			return nil
		}
		return syscall.EIO
	}
	if err := qp.Close(); !errors.Is(err, syscall.EIO) {
		t.Errorf("%v", err)
	}
	ctx.Close()
	if n, err := qp.PostSend([]uverbs.SendWR{{Opcode: uverbs.WRSend}}); n != 0 || err == nil {
		t.Errorf("post after close: %d, %v", n, err)
	}
	if n, err := srq.PostRecv(make([]uverbs.RecvWR, 1)); n != 0 || err == nil {
		t.Errorf("receive after close: %d, %v", n, err)
	}
	if len(k.pages) != 0 {
		t.Errorf("%d UAR pages are still mapped", len(k.pages))
	}
	if q := quePair(qp); r.drv.qps.lookup(q.key) != nil {
		t.Error("the QP was not abandoned")
	}
	if n := mapped.Load() - before; n != 0 {
		t.Errorf("%d bytes are still mapped", n)
	}
}

func quePair(u *uverbs.QP) *qp { return u.Driver().(*qp) }

// FuzzUContext opens devices that answer anything to GET_CONTEXT, and uses them.
func FuzzUContext(f *testing.F) {
	for _, s := range []string{ucontextDynamic, ucontextStatic} {
		b, _ := hex.DecodeString(s)
		f.Add(b)
		for i := 0; i+4 <= len(b); i += 4 {
			for _, v := range []uint32{0, 1, 7, 1<<16 + 1, 1<<32 - 1} {
				c := append([]byte(nil), b...)
				binary.LittleEndian.PutUint32(c[i:], v)
				f.Add(c)
			}
		}
		for i := range b {
			f.Add(b[:i])
		}
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		k := newFakeKernel(t)
		k.ucontext, k.bfreg = b, 4
		before := mapped.Load()
		session(k)
		if n := mapped.Load() - before; n != 0 {
			t.Errorf("%d bytes are still mapped", n)
		}
		if len(k.pages) != 0 || len(k.handles) != 0 {
			t.Errorf("left: %d pages, objects %v", len(k.pages), k.handles)
		}
	})
}

// TestGarbageLimitsAreRefused names the field.
func TestGarbageLimitsAreRefused(t *testing.T) {
	good, _ := hex.DecodeString(ucontextDynamic)
	for off, v := range map[int]uint32{4: 513, 8: 1 << 20, 16: 0, 20: 1<<24 + 1, 24: 0, 32: 0, 44: 2} {
		k := newFakeKernel(t)
		k.ucontext = append([]byte(nil), good...)
		binary.LittleEndian.PutUint32(k.ucontext[off:], v)
		if err := session(k); !errors.Is(err, uverbs.ErrBadAnswer) {
			t.Errorf("offset %d = %d: %v", off, v, err)
		}
	}
}

// TestQPsShareUARPages checks that two QPs use the two registers of a page, a
// third one the next page, and that a closed QP's register is used again.
func TestQPsShareUARPages(t *testing.T) {
	r := openRig(t, newFakeKernel(t))
	layout := smallLayout(t, r)
	cq := r.cq(7)
	var qps []*qp
	add := func() *qp {
		q := r.qpWith(uverbs.QPTypeRC, cq, cq, layout, false, 500+uint32(len(qps)), 0)
		qps = append(qps, q)
		return q
	}
	a, b, c := add(), add(), add()
	if a.sq.reg.page != b.sq.reg.page || a.sq.reg.off != 0x800 || b.sq.reg.off != 0xa00 || c.sq.reg.page == a.sq.reg.page {
		t.Errorf("registers %+v %+v %+v", a.sq.reg, b.sq.reg, c.sq.reg)
	}
	reg := b.sq.reg
	b.Close()
	if d := add(); d.sq.reg != reg {
		t.Error("a free register was not used")
	}
	if n := len(r.drv.uars.pages); n != 3 {
		t.Errorf("%d pages", n)
	}
}

// TestSharedStaticRegisterTakesNoBlueFlame checks that QPs on one register fall
// back to doorbells, and the last one returns to BlueFlame.
func TestSharedStaticRegisterTakesNoBlueFlame(t *testing.T) {
	k := newFakeKernel(t)
	k.ucontext, _ = hex.DecodeString(ucontextStatic)
	r := openRig(t, k)
	layout := smallLayout(t, r)
	cq := r.cq(7)
	a := r.qpWith(uverbs.QPTypeRC, cq, cq, layout, false, 500, 5)
	stored := func() int {
		page, off := a.sq.reg.page.mem, a.sq.reg.off+a.sq.half
		fill(page)
		if _, err := a.PostSend([]uverbs.SendWR{{Opcode: uverbs.WRRDMARead, SGList: []uverbs.SGE{{Length: 1}}}}); err != nil {
			t.Fatal(err)
		}
		for n, b := range page[off:][:64] {
			if b == prefill {
				return n
			}
		}
		return 64
	}
	if n := stored(); n < 48 {
		t.Errorf("alone: %d bytes", n)
	}
	b := r.qpWith(uverbs.QPTypeRC, cq, cq, layout, false, 501, 5)
	if n := stored(); n != 8 {
		t.Errorf("shared: %d bytes", n)
	}
	b.Close()
	if n := stored(); n < 48 {
		t.Errorf("alone again: %d bytes", n)
	}
	if _, err := r.drv.uars.byIndex(2); !errors.Is(err, uverbs.ErrBadAnswer) {
		t.Errorf("register of the kernel's: %v", err)
	}
}

// TestDoorbellRecordsAreApart checks that no two live records share a cache
// line, and that the lowest free one comes next, zeroed.
func TestDoorbellRecordsAreApart(t *testing.T) {
	d := newDBRecs(64)
	defer d.close()
	live := make(map[*prm.DBRec]dbrec)
	rnd := rand.New(rand.NewPCG(5, 6))
	for range 2000 {
		if len(live) > 0 && rnd.IntN(5) < 2 {
			for k, r := range live {
				delete(live, k)
				d.release(r)
				break
			}
			continue
		}
		r, err := d.alloc()
		if err != nil {
			t.Fatal(err)
		}
		if _, ok := live[r.DBRec]; ok || r.addr(d.stride)%64 != 0 || r.Load(0) != 0 || r.Load(1) != 0 {
			t.Fatalf("record %+v", r)
		}
		r.Store(0, 7)
		r.Store(1, 8)
		live[r.DBRec] = r
	}
	for _, line := range []uint32{0, 3, 64, 1 << 31} {
		if d := newDBRecs(line); d.stride != 64 {
			t.Errorf("cache line %d: stride %d", line, d.stride)
		}
	}
	if d := newDBRecs(128); d.stride != 128 {
		t.Errorf("stride %d", d.stride)
	}
}

// TestLayoutKeepsItsPromises sizes QPs of arbitrary capacities.
func TestLayoutKeepsItsPromises(t *testing.T) {
	b, _ := hex.DecodeString(ucontextDynamic)
	resp := decode[abi.Mlx5_ib_alloc_ucontext_resp](b)
	lim, err := checkLimits(&resp)
	if err != nil {
		t.Fatal(err)
	}
	rnd := rand.New(rand.NewPCG(7, 8))
	pick := func(n uint32) uint32 {
		if rnd.IntN(20) == 0 {
			return rnd.Uint32()
		}
		return rnd.Uint32N(n)
	}
	accepted := 0
	for range 20000 {
		ask := uverbs.QPCap{MaxSendWR: pick(5000), MaxRecvWR: pick(40000), MaxSendSGE: pick(40), MaxRecvSGE: pick(40), MaxInline: pick(1000)}
		overhead := []uint32{overheadUD, overheadRC}[rnd.IntN(2)]
		l, err := layoutQP(&lim, ask, overhead)
		if err != nil {
			if !errors.Is(err, syscall.EINVAL) {
				t.Fatalf("%+v: %v", ask, err)
			}
			continue
		}
		accepted++
		got := l.user()
		if got.MaxSendWR < ask.MaxSendWR || got.MaxRecvWR < ask.MaxRecvWR || ask.MaxSendWR > 0 && (got.MaxSendSGE < ask.MaxSendSGE || got.MaxInline < ask.MaxInline) ||
			ask.MaxRecvWR > 0 && got.MaxRecvSGE < ask.MaxRecvSGE {
			t.Fatalf("asked %+v, got %+v", ask, got)
		}
		// The largest WQEs, as many as may be posted, fit in the ring.
		wqe := overhead + max(got.MaxSendSGE*16, roundUp(got.MaxInline+4, 16))
		if got.MaxSendWR > 0 && got.MaxSendWR*roundUp(wqe, 64) > l.sqEntries*64 {
			t.Fatalf("%d WQEs of %d bytes in %d WQEBBs", got.MaxSendWR, wqe, l.sqEntries)
		}
		if l.sqEntries&(l.sqEntries-1) != 0 || l.rqEntries&(l.rqEntries-1) != 0 || l.sqOffset()%64 != 0 || l.sqEntries > lim.maxSendWQEBBs || l.rqEntries > 1<<16 {
			t.Fatalf("layout %+v", l)
		}
	}
	if accepted < 1000 {
		t.Errorf("only %d accepted", accepted)
	}
}

// TestUDPSourcePort checks the range, and that a flow label keeps its port.
func TestUDPSourcePort(t *testing.T) {
	if got := udpSourcePort(0x12345); got != 0xe341 {
		t.Errorf("%#x", got)
	}
	seen := make(map[uint16]bool)
	for range 200 {
		p := udpSourcePort(0)
		if p < 0xc000 {
			t.Fatalf("%#x", p)
		}
		seen[p] = true
	}
	if len(seen) < 50 {
		t.Errorf("%d different ports in 200", len(seen))
	}
}

// TestRingBlueFlameWraps copies WQEs across the end of a queue.
func TestRingBlueFlameWraps(t *testing.T) {
	queue, err := allocMemory(4096)
	if err != nil {
		t.Fatal(err)
	}
	defer freeMemory(queue)
	reg, err := allocMemory(4096)
	if err != nil {
		t.Fatal(err)
	}
	defer freeMemory(reg)
	for i := range queue {
		queue[i] = byte(i>>6 ^ i*3)
	}
	const size = 512
	end := prm.Add(&queue[0], size)
	for at := 0; at < size; at += 64 {
		for blocks := 1; blocks <= 4; blocks++ {
			fill(reg)
			var rec uint32
			ringBlueFlame(&rec, 0x01020304, &reg[256], &queue[at], uint32(blocks), &queue[0], end)
			for i := range blocks * 64 {
				if want := queue[(at+i)%size]; reg[256+i] != want {
					t.Fatalf("at %d, %d blocks: byte %d is %#x, want %#x", at, blocks, i, reg[256+i], want)
				}
			}
			if rec != 0x01020304 || reg[255] != prefill || reg[256+blocks*64] != prefill {
				t.Fatalf("at %d, %d blocks: record %#x, or stored beyond", at, blocks, rec)
			}
		}
	}
	var rec uint32
	fill(reg)
	ring(&rec, 5, &reg[8], 0x1122334455667788)
	if rec != 5 || binary.NativeEndian.Uint64(reg[8:]) != 0x1122334455667788 || reg[7] != prefill || reg[16] != prefill {
		t.Errorf("record %d, register %x", rec, reg[:24])
	}
}

// TestCQsAndQPsOfAnotherDevice checks that objects of two contexts do not mix.
func TestCQsAndQPsOfAnotherDevice(t *testing.T) {
	a, b := openRig(t, newFakeKernel(t)), openRig(t, newFakeKernel(t))
	_, err := a.pd.CreateQP(&uverbs.QPInitAttr{Type: uverbs.QPTypeUD, SendCQ: a.cq(4), RecvCQ: b.cq(4), Cap: uverbs.QPCap{MaxSendWR: 1, MaxSendSGE: 1}})
	if !errors.Is(err, syscall.EINVAL) {
		t.Errorf("%v", err)
	}
	_, err = a.pd.CreateQP(&uverbs.QPInitAttr{Type: 9, SendCQ: a.cq(4), RecvCQ: a.cq(4), Cap: uverbs.QPCap{MaxSendWR: 1, MaxSendSGE: 1}})
	if !errors.Is(err, syscall.EOPNOTSUPP) {
		t.Errorf("%v", err)
	}
	if _, err := a.pd.CreateAH(&uverbs.AHAttr{Port: 2, IsGlobal: true}); !errors.Is(err, syscall.EINVAL) {
		t.Errorf("port 2: %v", err)
	}
}

// TestKeysByQPN runs a device of CQE version 0, whose CQEs name the QPN.
func TestKeysByQPN(t *testing.T) {
	k := newFakeKernel(t)
	k.ucontext[44] = 0
	r := openRig(t, k)
	q := r.newQP(uverbs.QPTypeRC, 7, uverbs.QPCap{MaxSendWR: 4, MaxSendSGE: 1})
	if q.key != q.qpn {
		t.Fatalf("key %#x, QPN %#x", q.key, q.qpn)
	}
	for i := range 2 {
		if _, err := q.PostSend([]uverbs.SendWR{{WRID: uint64(i), Opcode: uverbs.WRSend}}); err != nil {
			t.Fatal(err)
		}
	}
	c, wcs := q.sendCQ, make([]uverbs.WC, 2)
	c.put(0, c.cqe(0, q, prm.CQEReq, prm.OpcodeSend, 0))
	if n, err := c.Poll(wcs); n != 1 || err != nil || wcs[0].QPN != q.qpn {
		t.Errorf("%d, %v", n, err)
	}
	c.put(0, c.cqe(0, q, prm.CQEReq, prm.OpcodeSend, 1))
	q.Close()
	if n, err := c.Poll(wcs); n != 0 || err != nil {
		t.Errorf("after Close: %d, %v", n, err)
	}
	last := k.commands[len(k.commands)-1]
	if last.object == kabi.UVERBS_OBJECT_QP && binary.LittleEndian.Uint32(last.attrs[kabi.UVERBS_ATTR_UHW_IN].in[32:]) != noUIdx {
		t.Error("a user index was given")
	}
}

// TestCQBeyondTheDevicesLimit is refused before memory is spent on it.
func TestCQBeyondTheDevicesLimit(t *testing.T) {
	k := newFakeKernel(t)
	asked, created := 0, 0
	k.onWrite = func(cmd uint64, resp []byte) bool {
		if cmd != kabi.IB_USER_VERBS_EX_CMD_QUERY_DEVICE {
			return false
		}
		asked++
		binary.LittleEndian.PutUint32(resp[76:], 100_000) // max_cqe
		return true
	}
	k.fail = func(object, method uint16) error {
		if object == kabi.UVERBS_OBJECT_CQ && method == kabi.UVERBS_METHOD_CQ_CREATE {
			created++
		}
		return nil
	}
	r := openRig(t, k)
	for _, c := range []struct{ depth, asked, created int }{{65_000, 0, 1}, {65_536, 1, 0}, {200_000, 1, 0}, {1 << 23, 1, 0}} {
		asked, created = 0, 0
		cq, err := r.ctx.CreateCQ(&uverbs.CQInitAttr{Depth: c.depth})
		if asked != c.asked || created != c.created || (err == nil) != (c.created == 1) || err != nil && !errors.Is(err, syscall.EINVAL) {
			t.Errorf("%d entries: asked %d times, %d commands, %v", c.depth, asked, created, err)
		}
		if err == nil {
			cq.Close()
		}
	}
}
