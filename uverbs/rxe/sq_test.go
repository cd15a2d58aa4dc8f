package rxe

import (
	"encoding/binary"
	"errors"
	"slices"
	"syscall"
	"testing"

	kabi "github.com/rrppcc-go/rrppcc/internal/abi"
	"github.com/rrppcc-go/rrppcc/uverbs"
)

// image is a WQE by the offsets that a real kernel was seen to read.
type image struct{ p []byte }

func (w image) u32(off int, v uint32) image {
	binary.NativeEndian.PutUint32(w.p[off:], v)
	return w
}
func (w image) u64(off int, v uint64) image {
	binary.NativeEndian.PutUint64(w.p[off:], v)
	return w
}

// head is a WQE without operands.
func head(id uint64, opcode, flags, length, numSGE uint32) image {
	w := image{make([]byte, 208)}
	return w.u64(0, id).u32(12, opcode).u32(16, flags).u32(184, length).u32(188, length).u32(196, numSGE)
}

func sgeImage(list ...uverbs.SGE) []byte {
	p := make([]byte, 16*len(list))
	for i, s := range list {
		image{p[16*i:]}.u64(0, s.Addr).u32(8, s.Length).u32(12, s.LKey)
	}
	return p
}

func TestPostSendWritesWhatTheKernelReads(t *testing.T) {
	two := []uverbs.SGE{{Addr: 0x1000, Length: 100, LKey: 7}, {Addr: 0x5000, Length: 23, LKey: 8}}
	text := []byte("inline data, 29 bytes of them")
	pieces := []uverbs.SGE{{Addr: addrOf(text), Length: 10}, {Addr: 1, Length: 0}, {Addr: addrOf(text[10:]), Length: 19}}
	be := func(v uint32) uint32 { return binary.NativeEndian.Uint32(binary.BigEndian.AppendUint32(nil, v)) }
	for _, tt := range []struct {
		name string
		wr   uverbs.SendWR
		want image
		tail []byte
	}{
		{"send", uverbs.SendWR{WRID: 1 << 60, Opcode: uverbs.WRSend, Flags: uverbs.SendSignaled, SGList: two}, head(1<<60, 2, 2, 123, 2), sgeImage(two...)},
		{"send of nothing", uverbs.SendWR{Opcode: uverbs.WRSend}, head(0, 2, 0, 0, 0), nil},
		{"empty elements", uverbs.SendWR{Opcode: uverbs.WRSend, SGList: []uverbs.SGE{{}, two[1]}}, head(0, 2, 0, 23, 1), sgeImage(two[1])},
		{"all flags", uverbs.SendWR{WRID: 2, Opcode: uverbs.WRSendWithImm, Flags: 7, ImmData: 0x01020304, SGList: two}, head(2, 3, 7, 123, 2).u32(20, be(0x01020304)), nil},
		{"send with invalidate", uverbs.SendWR{Opcode: uverbs.WRSendWithInv, InvalidateRKey: 0x99}, head(0, 9, 0, 0, 0).u32(20, 0x99), nil},
		{"inline", uverbs.SendWR{Opcode: uverbs.WRSend, Flags: uverbs.SendInline, SGList: pieces[:1]}, head(0, 2, 8, 10, 0), text[:10]},
		{"write", uverbs.SendWR{Opcode: uverbs.WRRDMAWrite, SGList: two, RemoteAddr: 0x123456789a, RKey: 0x77, ImmData: 5},
			head(0, 0, 0, 123, 2).u64(24, 0x123456789a).u32(32, 0x77).u64(152, 0x123456789a), sgeImage(two...)},
		{"write with immediate", uverbs.SendWR{Opcode: uverbs.WRRDMAWriteWithImm, ImmData: 5, RemoteAddr: 9, RKey: 0x77},
			head(0, 1, 0, 0, 0).u32(20, be(5)).u64(24, 9).u32(32, 0x77).u64(152, 9), nil},
		{"read", uverbs.SendWR{Opcode: uverbs.WRRDMARead, SGList: two[:1], RemoteAddr: 64, RKey: 0x77}, head(0, 4, 0, 100, 1).u64(24, 64).u32(32, 0x77).u64(152, 64), nil},
		{"compare and swap", uverbs.SendWR{Opcode: uverbs.WRAtomicCmpAndSwp, SGList: []uverbs.SGE{{Addr: 8, Length: 8, LKey: 1}}, RemoteAddr: 64, RKey: 0x77, CompareAdd: 1 << 50, Swap: 1 << 51},
			head(0, 5, 0, 8, 1).u64(24, 64).u64(32, 1<<50).u64(40, 1<<51).u32(48, 0x77).u64(152, 64), nil},
		{"fetch and add", uverbs.SendWR{Opcode: uverbs.WRAtomicFetchAndAdd, SGList: []uverbs.SGE{{Addr: 8, Length: 8, LKey: 1}}, RemoteAddr: 64, RKey: 0x77, CompareAdd: 3},
			head(0, 6, 0, 8, 1).u64(24, 64).u64(32, 3).u32(48, 0x77).u64(152, 64), nil},
		{"local invalidate", uverbs.SendWR{Opcode: uverbs.WRLocalInv, InvalidateRKey: 0x98}, head(0, 7, 0, 0, 0).u32(20, 0x98), nil},
		{"bind", uverbs.SendWR{Opcode: uverbs.WRBindMW, Bind: &uverbs.MWBind{OldRKey: 1, NewRKey: 2, LKey: 3, Addr: 4, Length: 5, Access: uverbs.AccessRemoteRead}},
			head(0, 8, 0, 0, 0).u64(24, 4).u64(32, 5).u32(40, 3).u32(44, 1).u32(48, 2).u32(52, 4), nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			b := newBench(t, uverbs.QPTypeRC)
			if n, err := b.qp.PostSend([]uverbs.SendWR{tt.wr}); n != 1 || err != nil {
				t.Fatalf("%d, %v", n, err)
			}
			e := b.sqRing.entry(0)
			if !slices.Equal(e[:208], tt.want.p) {
				t.Errorf("head\n%x, want\n%x", e[:208], tt.want.p)
			}
			if got := e[208:][:len(tt.tail)]; !slices.Equal(got, tt.tail) {
				t.Errorf("tail\n%x, want\n%x", got, tt.tail)
			}
			if b.sqRing.prod() != 1 || !slices.Equal(b.k.doorbells, []uint32{b.qp.Handle()}) {
				t.Errorf("producer %d, doorbells %v", b.sqRing.prod(), b.k.doorbells)
			}
		})
	}
	t.Run("inline in pieces", func(t *testing.T) {
		b := newBench(t, uverbs.QPTypeRC)
		wr := uverbs.SendWR{Opcode: uverbs.WRSend, Flags: uverbs.SendInline, SGList: pieces}
		if n, err := b.qp.PostSend([]uverbs.SendWR{wr}); n != 1 || err != nil || string(b.sqRing.entry(0)[208:][:29]) != string(text) {
			t.Errorf("%d, %v, %q", n, err, b.sqRing.entry(0)[208:][:29])
		}
	})
}

func TestPostSendHoldsTheAddress(t *testing.T) {
	b := newBench(t, uverbs.QPTypeUD)
	attr := &uverbs.AHAttr{DGID: uverbs.GID{10: 0xff, 11: 0xff, 12: 10, 15: 9}, SGIDIndex: 1, HopLimit: 64, TrafficClass: 3, FlowLabel: 4, IsGlobal: true, Port: 1}
	ah := must(b.pd.CreateAH(attr))(t)
	wr := uverbs.SendWR{WRID: 3, Opcode: uverbs.WRSendWithImm, AH: ah, RemoteQPN: 0x123, RemoteQKey: 0x456}
	if n, err := b.qp.PostSend([]uverbs.SendWR{wr}); n != 1 || err != nil {
		t.Fatal(n, err)
	}
	want := head(3, 3, 0, 0, 0).u32(24, 0x123).u32(28, 0x456)
	if got := b.sqRing.entry(0)[:208]; got[56] != 1 || got[57] != 1 || !slices.Equal(got[64:80], attr.DGID[:]) ||
		got[84] != 1 || got[85] != 64 || got[86] != 3 || binary.NativeEndian.Uint32(got[80:]) != 4 ||
		binary.NativeEndian.Uint16(got[88:]) != 2 || !slices.Equal(got[92:96], []byte{10, 0, 0, 5}) || !slices.Equal(got[120:124], []byte{10, 0, 0, 9}) {
		t.Errorf("address vector\n%x", got[56:144])
	}
	clear(b.sqRing.entry(0)[56:144])
	if got := b.sqRing.entry(0)[:208]; !slices.Equal(got, want.p) {
		t.Errorf("but for that\n%x, want\n%x", got, want.p)
	}
	for _, wr := range []uverbs.SendWR{{Opcode: uverbs.WRSend}} {
		if n, err := b.qp.PostSend([]uverbs.SendWR{wr}); n != 0 || err != uverbs.ErrBadAH {
			t.Errorf("%d, %v", n, err)
		}
	}
}

func TestPostSendWrapsRingAndStopsWhereItIsFull(t *testing.T) {
	b := newBench(t, uverbs.QPTypeRC)
	if c := b.qp.Cap(); c.MaxSendWR != 7 || c.MaxRecvWR != 7 || c.MaxInline != 64 || c.MaxSendSGE != 4 {
		t.Fatalf("capacities %+v", c)
	}
	wrs := make([]uverbs.SendWR, 10)
	for i := range wrs {
		wrs[i] = uverbs.SendWR{WRID: uint64(i), Opcode: uverbs.WRSend}
	}
	total := uint32(0)
	for lap := range uint32(20) {
		if n, err := b.qp.PostSend(wrs); n != 7 || err != uverbs.ErrQueueFull {
			t.Fatalf("%d, %v", n, err)
		}
		if n, err := b.qp.PostSend(wrs); n != 0 || err != uverbs.ErrQueueFull {
			t.Fatalf("full: %d, %v", n, err)
		}
		if got := len(b.k.doorbells); got != int(lap)+1 {
			t.Fatalf("%d doorbells after %d bursts", got, lap+1)
		}
		for i := range uint32(7) {
			if id := binary.NativeEndian.Uint64(b.sqRing.entry((total + i) & 7)); id != uint64(i) {
				t.Fatalf("lap %d: entry %d has id %d", lap, i, id)
			}
		}
		total += 7
		if b.sqRing.prod() != total&7 {
			t.Fatalf("producer %d, want %d", b.sqRing.prod(), total&7)
		}
		b.sqRing.setCons(total & 7)
	}
}

func TestPostSendRefusesWhatCannotBe(t *testing.T) {
	sge := func(n int, bytes uint32) []uverbs.SGE {
		return slices.Repeat([]uverbs.SGE{{Addr: 4096, Length: bytes}}, n)
	}
	rc, ud := newBench(t, uverbs.QPTypeRC), newBench(t, uverbs.QPTypeUD)
	for _, tt := range []struct {
		b    *bench
		wr   uverbs.SendWR
		want error
	}{
		{rc, uverbs.SendWR{Opcode: 10}, uverbs.ErrBadOpcode},
		{rc, uverbs.SendWR{Opcode: 255}, uverbs.ErrBadOpcode},
		{rc, uverbs.SendWR{Opcode: uverbs.WRSend, SGList: sge(5, 1)}, uverbs.ErrTooManySGEs},
		{rc, uverbs.SendWR{Opcode: uverbs.WRSend, Flags: uverbs.SendInline, SGList: sge(1, 65)}, uverbs.ErrInlineTooLong},
		{rc, uverbs.SendWR{Opcode: uverbs.WRSend, Flags: uverbs.SendInline, SGList: sge(2, 1<<31)}, uverbs.ErrInlineTooLong},
		{rc, uverbs.SendWR{Opcode: uverbs.WRSend, SGList: sge(4, 1<<30)}, syscall.EINVAL},
		{rc, uverbs.SendWR{Opcode: uverbs.WRRDMARead, Flags: uverbs.SendInline, SGList: sge(1, 1)}, uverbs.ErrBadOpcode},
		{rc, uverbs.SendWR{Opcode: uverbs.WRAtomicFetchAndAdd, Flags: uverbs.SendInline, SGList: sge(1, 8)}, uverbs.ErrBadOpcode},
		{rc, uverbs.SendWR{Opcode: uverbs.WRLocalInv, SGList: sge(1, 8)}, uverbs.ErrTooManySGEs},
		{rc, uverbs.SendWR{Opcode: uverbs.WRBindMW}, uverbs.ErrBadOpcode},
		{ud, uverbs.SendWR{Opcode: uverbs.WRSend}, uverbs.ErrBadAH},
		{ud, uverbs.SendWR{Opcode: uverbs.WRRDMAWrite}, uverbs.ErrBadOpcode},
		{ud, uverbs.SendWR{Opcode: uverbs.WRSendWithInv}, uverbs.ErrBadOpcode},
	} {
		good := uverbs.SendWR{Opcode: uverbs.WRSend}
		wrs := []uverbs.SendWR{good, tt.wr}
		if tt.b == ud {
			wrs = wrs[1:]
		}
		before, bells := tt.b.sqRing.prod(), len(tt.b.k.doorbells)
		n, err := tt.b.qp.PostSend(wrs)
		if n != len(wrs)-1 || !errors.Is(err, tt.want) {
			t.Errorf("%+v: %d, %v, want %v", tt.wr, n, err, tt.want)
		}
		if got := int(tt.b.sqRing.prod()-before) & 7; got != n || len(tt.b.k.doorbells) != bells+n {
			t.Errorf("%+v: %d in the ring, %d doorbells", tt.wr, got, len(tt.b.k.doorbells)-bells)
		}
		tt.b.sqRing.setCons(tt.b.sqRing.prod())
	}
}

func TestPostSendNeedsRTS(t *testing.T) {
	b := newBench(t, uverbs.QPTypeRC)
	for state := range uverbs.QPStateErr + 1 {
		check(t, b.qp.Modify(&uverbs.QPAttr{State: state}, uverbs.AttrState))
		n, err := b.qp.PostSend([]uverbs.SendWR{{Opcode: uverbs.WRSend}})
		if ok := n == 1 && err == nil; ok != (state >= uverbs.QPStateRTS) || !ok && err != uverbs.ErrQPState {
			t.Errorf("%v: %d, %v", state, n, err)
		}
		b.sqRing.setCons(b.sqRing.prod())
	}
}

func TestFailedDoorbellTakesTheRequestsBack(t *testing.T) {
	b := newBench(t, uverbs.QPTypeRC)
	wrs := []uverbs.SendWR{{Opcode: uverbs.WRSend}, {Opcode: uverbs.WRSend}}
	must(b.qp.PostSend(wrs))(t)
	var answer syscall.Errno
	b.k.fail = func(object, method uint16, write uint32) syscall.Errno {
		if write == kabi.IB_USER_VERBS_CMD_POST_SEND {
			return answer
		}
		return 0
	}
	for errno, want := range map[syscall.Errno]error{syscall.EINVAL: uverbs.ErrQPState, syscall.EBADF: syscall.EBADF, syscall.EIO: syscall.EIO} {
		answer = errno
		if n, err := b.qp.PostSend(wrs); n != 0 || !errors.Is(err, want) || errors.Is(err, uverbs.ErrDeviceRemoved) || b.sqRing.prod() != 2 {
			t.Errorf("%v: %d, %v, producer %d", errno, n, err, b.sqRing.prod())
		}
	}
	answer = 0
	if n, err := b.qp.PostSend(wrs); n != 2 || err != nil || b.sqRing.prod() != 4 {
		t.Errorf("%d, %v", n, err)
	}
	b.k.fail = func(uint16, uint16, uint32) syscall.Errno { return syscall.EIO } // the core, too
	if n, err := b.qp.PostSend(wrs); n != 0 || !errors.Is(err, uverbs.ErrDeviceRemoved) || !errors.Is(err, syscall.EIO) {
		t.Errorf("removed: %d, %v", n, err)
	}
	if err := b.cq.Arm(false); !errors.Is(err, uverbs.ErrDeviceRemoved) {
		t.Errorf("removed: %v", err)
	}
}

func TestClosedQueuesAreNotTouched(t *testing.T) {
	b := newBench(t, uverbs.QPTypeRC)
	check(t, b.qp.Close())
	check(t, b.cq.Close())
	if n, err := b.qp.PostSend([]uverbs.SendWR{{Opcode: uverbs.WRSend}}); n != 0 || err == nil {
		t.Errorf("PostSend: %d, %v", n, err)
	}
	if n, err := b.qp.PostRecv([]uverbs.RecvWR{{}}); n != 0 || err == nil {
		t.Errorf("PostRecv: %d, %v", n, err)
	}
	if n, err := b.cq.Poll(make([]uverbs.WC, 1)); n != 0 || err == nil {
		t.Errorf("Poll: %d, %v", n, err)
	}
	if err := b.cq.Arm(false); err == nil {
		t.Error("armed")
	}
}
