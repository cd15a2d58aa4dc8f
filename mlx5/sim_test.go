//go:build linux

package mlx5_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/rrppcc-go/rrppcc/mlx5/mlx5sim"
	"github.com/rrppcc-go/rrppcc/uverbs"
)

// These tests drive the provider by way of the public verbs over the simulated
// device, whose decoder of queue entries was written apart from this package.

func check(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// host is a simulated device that is open.
type host struct {
	t    testing.TB
	ctx  *uverbs.Context
	pd   *uverbs.PD
	addr uverbs.GID
}

func newHost(t testing.TB, fab *mlx5sim.Fabric) *host {
	d, err := mlx5sim.New(mlx5sim.WithFabric(fab), mlx5sim.InProcess())
	check(t, err)
	t.Cleanup(func() { check(t, d.Close()) })
	h := &host{t: t, addr: uverbs.GIDFromAddr(d.Addr())}
	h.ctx, err = d.Verbs().Open()
	check(t, err)
	h.close(h.ctx)
	h.pd, err = h.ctx.AllocPD()
	check(t, err)
	h.close(h.pd)
	return h
}

// close closes c when the test ends, which must not fail.
func (h *host) close(c interface{ Close() error }) { h.t.Cleanup(func() { check(h.t, c.Close()) }) }

func (h *host) cq(depth int) *uverbs.CQ {
	c, err := h.ctx.CreateCQ(&uverbs.CQInitAttr{Depth: depth})
	check(h.t, err)
	h.close(c)
	return c
}

func (h *host) srq(maxWR, maxSGE uint32) *uverbs.SRQ {
	h.t.Helper()
	s, err := h.pd.CreateSRQ(&uverbs.SRQInitAttr{SRQAttr: uverbs.SRQAttr{MaxWR: maxWR, MaxSGE: maxSGE}})
	check(h.t, err)
	h.close(s)
	return s
}

const allAccess = uverbs.AccessLocalWrite | uverbs.AccessRemoteRead | uverbs.AccessRemoteWrite | uverbs.AccessRemoteAtomic

func (h *host) mr(n int, access uverbs.AccessFlags) *uverbs.MR {
	h.t.Helper()
	mem, err := unix.Mmap(-1, 0, n, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	check(h.t, err)
	mr, err := h.pd.RegisterMR(mem, access)
	check(h.t, err)
	h.t.Cleanup(func() {
		check(h.t, mr.Close())
		check(h.t, unix.Munmap(mem))
	})
	return mr
}

// rc is an RC QP with CQs of its own.
type rc struct {
	*host
	qp         *uverbs.QP
	send, recv *uverbs.CQ
}

func (h *host) rc(srq *uverbs.SRQ, sigAll bool) *rc {
	r := &rc{host: h, send: h.cq(63), recv: h.cq(63)}
	var err error
	r.qp, err = h.pd.CreateQP(&uverbs.QPInitAttr{Type: uverbs.QPTypeRC, SendCQ: r.send, RecvCQ: r.recv, SRQ: srq, SigAll: sigAll,
		Cap: uverbs.QPCap{MaxSendWR: 32, MaxRecvWR: 32, MaxSendSGE: 2, MaxRecvSGE: 2, MaxInline: 60}})
	check(h.t, err)
	h.close(r.qp)
	return r
}

func (r *rc) init() {
	r.t.Helper()
	check(r.t, r.qp.Modify(&uverbs.QPAttr{State: uverbs.QPStateInit, Port: 1, AccessFlags: allAccess | uverbs.AccessMWBind},
		uverbs.AttrState|uverbs.AttrPKeyIndex|uverbs.AttrPort|uverbs.AttrAccessFlags))
}

// connect brings both QPs to RTS.
func connect(a, b *rc) {
	a.t.Helper()
	for _, p := range [][2]*rc{{a, b}, {b, a}} {
		p[0].init()
		check(a.t, p[0].qp.Modify(&uverbs.QPAttr{State: uverbs.QPStateRTR, PathMTU: uverbs.MTU1024, DestQPN: p[1].qp.QPN(), RQPSN: 5, MaxDestRdAtomic: 4, MinRNRTimer: 1,
			AV: uverbs.AHAttr{DGID: p[1].addr, SGIDIndex: 3, HopLimit: 64, IsGlobal: true, Port: 1}},
			uverbs.AttrState|uverbs.AttrAV|uverbs.AttrPathMTU|uverbs.AttrDestQPN|uverbs.AttrRQPSN|uverbs.AttrMaxDestRdAtomic|uverbs.AttrMinRNRTimer))
	}
	for _, r := range []*rc{a, b} {
		check(a.t, r.qp.Modify(&uverbs.QPAttr{State: uverbs.QPStateRTS, SQPSN: 5, MaxRdAtomic: 4, Timeout: 8, RetryCnt: 7, RNRRetry: 7},
			uverbs.AttrState|uverbs.AttrSQPSN|uverbs.AttrMaxRdAtomic|uverbs.AttrTimeout|uverbs.AttrRetryCnt|uverbs.AttrRNRRetry))
	}
}

func rcPair(t testing.TB, srq func(h *host) *uverbs.SRQ, sigAll bool) (a, b *rc) {
	t.Helper()
	fab := mlx5sim.NewFabric()
	ha, hb := newHost(t, fab), newHost(t, fab)
	var s *uverbs.SRQ
	if srq != nil {
		s = srq(hb)
	}
	a, b = ha.rc(nil, sigAll), hb.rc(s, sigAll)
	connect(a, b)
	return a, b
}

func (r *rc) post(wrs ...uverbs.SendWR) {
	r.t.Helper()
	if n, err := r.qp.PostSend(wrs); n != len(wrs) {
		r.t.Fatalf("posted %d of %d: %v", n, len(wrs), err)
	}
}

func sge(mr *uverbs.MR, off, n int) []uverbs.SGE {
	return []uverbs.SGE{{Addr: mr.Addr() + uint64(off), Length: uint32(n), LKey: mr.LKey()}}
}

// wait polls until cq has given n completions.
func (h *host) wait(cq *uverbs.CQ, n int) []uverbs.WC {
	h.t.Helper()
	all := make([]uverbs.WC, n)
	got := 0
	for deadline := time.Now().Add(10 * time.Second); got < n; {
		k, err := cq.Poll(all[got:])
		check(h.t, err)
		if got += k; time.Now().After(deadline) {
			h.t.Fatalf("%d completions in 10 s, want %d: %+v", got, n, all[:got])
		}
	}
	return all
}

// one waits for one completion of that status.
func (h *host) one(cq *uverbs.CQ, status uverbs.WCStatus) uverbs.WC {
	h.t.Helper()
	wc := h.wait(cq, 1)[0]
	if wc.Status != status {
		h.t.Fatalf("completion %+v (%v), want %v", wc, wc.Status, status)
	}
	return wc
}

// TestSRQOverSim has two QPs receive from one SRQ, for many laps of it, in an
// order that is not that of posting; the QP that fails and comes back in
// between loses no receive.
func TestSRQOverSim(t *testing.T) {
	fab := mlx5sim.NewFabric()
	src, dst := newHost(t, fab), newHost(t, fab)
	const receives, size = 15, 256
	srq := dst.srq(receives, 2)
	a, b := [2]*rc{src.rc(nil, false), src.rc(nil, false)}, [2]*rc{dst.rc(srq, false), dst.rc(srq, false)}
	for i := range a {
		connect(a[i], b[i])
	}
	out, in := src.mr(4096, uverbs.AccessLocalWrite), dst.mr(receives*size, uverbs.AccessLocalWrite)
	post := func(i int) {
		t.Helper()
		_, err := srq.PostRecv([]uverbs.RecvWR{{WRID: uint64(i), SGList: sge(in, i*size, size)}})
		check(t, err)
	}
	for i := range receives {
		post(i)
	}
	if n, err := srq.PostRecv([]uverbs.RecvWR{{}}); n != 0 || err != uverbs.ErrQueueFull {
		t.Fatalf("%d, %v", n, err)
	}
	for round := range 200 {
		// The second QP's receives complete after the first one's, but were taken between them.
		var want [2][][]byte
		for i := range 6 {
			k := i % 2
			n := (round*31 + i*57) % size
			data := out.Bytes()[i*size:][:n]
			for j := range data {
				data[j] = byte(round + i + j)
			}
			want[k] = append(want[k], data)
			a[k].post(uverbs.SendWR{Opcode: uverbs.WRSendWithImm, ImmData: uint32(round), Flags: uverbs.SendSignaled, SGList: sge(out, i*size, n)})
		}
		var again []int
		for _, k := range []int{1, 0} {
			src.wait(a[k].send, 3)
			for i, wc := range dst.wait(b[k].recv, 3) {
				data := in.Bytes()[wc.WRID*size:][:wc.ByteLen]
				if wc.Status != uverbs.WCSuccess || wc.QPN != b[k].qp.QPN() || wc.ImmData != uint32(round) || !bytes.Equal(data, want[k][i]) {
					t.Fatalf("round %d, QP %d, receive %d: %+v", round, k, i, wc)
				}
				again = append(again, int(wc.WRID))
			}
		}
		for _, i := range again {
			post(i)
		}
		if round%50 == 49 {
			// Completions that nobody polled go with the reset, and their receives return.
			a[1].post(uverbs.SendWR{Opcode: uverbs.WRSend, Flags: uverbs.SendSignaled}, uverbs.SendWR{Opcode: uverbs.WRSend, Flags: uverbs.SendSignaled})
			src.wait(a[1].send, 2)
			for _, r := range []*rc{a[1], b[1]} {
				for _, s := range []uverbs.QPState{uverbs.QPStateErr, uverbs.QPStateReset} {
					check(t, r.qp.Modify(&uverbs.QPAttr{State: s}, uverbs.AttrState))
				}
			}
			connect(a[1], b[1])
			if n, err := b[1].recv.Poll(make([]uverbs.WC, 4)); n != 0 || err != nil {
				t.Fatalf("after reset: %d, %v", n, err)
			}
			// Which two they were, only their buffers' absence tells.
			taken := make(map[uint64]bool)
			for range receives - 2 {
				a[0].post(uverbs.SendWR{Opcode: uverbs.WRSend, Flags: uverbs.SendSignaled})
				src.wait(a[0].send, 1)
				taken[dst.wait(b[0].recv, 1)[0].WRID] = true
			}
			for i := range receives {
				post(i)
			}
			if len(taken) != receives-2 {
				t.Fatalf("%d different receives", len(taken))
			}
		}
	}
}

// TestSRQLimitOverSim raises the event once.
func TestSRQLimitOverSim(t *testing.T) {
	var srq *uverbs.SRQ
	a, b := rcPair(t, func(h *host) *uverbs.SRQ { srq = h.srq(15, 1); return srq }, false)
	for range 4 {
		_, err := srq.PostRecv([]uverbs.RecvWR{{}})
		check(t, err)
	}
	check(t, srq.Modify(&uverbs.SRQAttr{Limit: 3}, uverbs.SRQLimit))
	if q, err := srq.Query(); err != nil || q.Limit != 3 {
		t.Errorf("%+v, %v", q, err)
	}
	for range 3 {
		a.post(uverbs.SendWR{Opcode: uverbs.WRSend, Flags: uverbs.SendSignaled})
		a.one(a.send, uverbs.WCSuccess)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	ev, err := b.ctx.WaitAsyncEvent(ctx)
	if err != nil || ev.Type != uverbs.EventSRQLimitReached || ev.SRQ != srq {
		t.Errorf("%+v, %v", ev, err)
	}
	if q, err := srq.Query(); err != nil || q.Limit != 0 {
		t.Errorf("%+v, %v", q, err)
	}
}

// TestAtomicsOverSim checks results, and that the element's length does not count.
func TestAtomicsOverSim(t *testing.T) {
	a, b := rcPair(t, nil, false)
	local, remote := a.mr(4096, uverbs.AccessLocalWrite), b.mr(4096, allAccess)
	word := remote.Bytes()[16:24]
	binary.NativeEndian.PutUint64(word, 40)
	do := func(wr uverbs.SendWR, op uverbs.WCOpcode, old, now uint64) {
		t.Helper()
		wr.Flags, wr.RemoteAddr, wr.RKey = uverbs.SendSignaled, remote.Addr()+16, remote.RKey()
		a.post(wr)
		wc := a.one(a.send, uverbs.WCSuccess)
		if got := binary.NativeEndian.Uint64(local.Bytes()); wc.Opcode != op || wc.ByteLen != 8 || got != old || binary.NativeEndian.Uint64(word) != now {
			t.Errorf("%+v: old value %d, want %d; now %d, want %d", wc, got, old, binary.NativeEndian.Uint64(word), now)
		}
	}
	do(uverbs.SendWR{Opcode: uverbs.WRAtomicFetchAndAdd, CompareAdd: 2, SGList: sge(local, 0, 8)}, uverbs.WCFetchAdd, 40, 42)
	do(uverbs.SendWR{Opcode: uverbs.WRAtomicCmpAndSwp, CompareAdd: 42, Swap: 1 << 40, SGList: sge(local, 0, 16)}, uverbs.WCCompSwap, 42, 1<<40)
	do(uverbs.SendWR{Opcode: uverbs.WRAtomicCmpAndSwp, CompareAdd: 42, Swap: 7, SGList: sge(local, 0, 8)}, uverbs.WCCompSwap, 1<<40, 1<<40)
	do(uverbs.SendWR{Opcode: uverbs.WRAtomicFetchAndAdd, CompareAdd: 1<<64 - 1, SGList: sge(local, 0, 8)}, uverbs.WCFetchAdd, 1<<40, 1<<40-1)
	if rest := local.Bytes()[8:16]; !bytes.Equal(rest, make([]byte, 8)) {
		t.Errorf("written beyond 8 bytes: %x", rest)
	}
}

// TestResizeOverSim resizes CQs with completions in them, of both sizes.
func TestResizeOverSim(t *testing.T) {
	for _, size := range []string{"64", "128"} {
		t.Setenv("MLX5_CQE_SIZE", size)
		a, b := rcPair(t, nil, false)
		posted, seen := uint64(0), uint64(0)
		send := func(n int) {
			t.Helper()
			for range n {
				_, err := b.qp.PostRecv([]uverbs.RecvWR{{WRID: posted}})
				check(t, err)
				a.post(uverbs.SendWR{WRID: posted, Opcode: uverbs.WRSend, Flags: uverbs.SendSignaled})
				posted++
			}
		}
		poll := func(n int) {
			t.Helper()
			for _, cq := range []*uverbs.CQ{a.send, b.recv} {
				for i, wc := range a.wait(cq, n) {
					if wc.WRID != seen+uint64(i) || wc.Status != uverbs.WCSuccess {
						t.Fatalf("%+v, want %d", wc, seen+uint64(i))
					}
				}
			}
			seen += uint64(n)
		}
		depth := 63
		for i, next := range []int{127, 31, 255, 15, 15, 63} {
			send(10)
			for _, cq := range []*uverbs.CQ{a.send, b.recv} {
				if err := cq.Resize(next); err != nil {
					t.Fatalf("%d, to %d: %v", i, next, err)
				}
				if cq.Depth() != next {
					t.Errorf("depth %d, want %d", cq.Depth(), next)
				}
			}
			send(5)
			poll(15)
			for range 5 * depth {
				send(3)
				poll(3)
			}
			depth = next
		}
		send(20)
		if err := a.send.Resize(7); !errors.Is(err, unix.EINVAL) {
			t.Errorf("20 completions in 7: %v", err)
		}
		poll(20)
	}
}

// TestScatterToCQEOverSim receives and reads small messages with the option on,
// whether the device uses it or not.
func TestScatterToCQEOverSim(t *testing.T) {
	t.Setenv("MLX5_SCATTER_TO_CQE", "1")
	for _, size := range []string{"64", "128"} {
		t.Setenv("MLX5_CQE_SIZE", size)
		a, b := rcPair(t, nil, true)
		out, in := a.mr(4096, allAccess), b.mr(4096, uverbs.AccessLocalWrite)
		for n := range 70 {
			for i := range out.Bytes() {
				out.Bytes()[i] = byte(n*3 + i)
			}
			list := append(sge(in, 0, n/3), sge(in, 1024, 200)...)
			verify := func(what string, wc uverbs.WC) {
				t.Helper()
				got := append(append([]byte(nil), in.Bytes()[:n/3]...), in.Bytes()[1024:][:n-n/3]...)
				if wc.ByteLen != uint32(n) || !bytes.Equal(got, out.Bytes()[:n]) || in.Bytes()[1024+n-n/3] != 0 || in.Bytes()[n/3] != 0 {
					t.Fatalf("%s of %d bytes, entries of %s: %+v, %x", what, n, size, wc, got)
				}
				clear(in.Bytes())
			}
			_, err := b.qp.PostRecv([]uverbs.RecvWR{{SGList: list}})
			check(t, err)
			a.post(uverbs.SendWR{Opcode: uverbs.WRSend, SGList: sge(out, 0, n)})
			a.one(a.send, uverbs.WCSuccess)
			verify("receive", b.one(b.recv, uverbs.WCSuccess))
			list[1].Length = uint32(n - n/3)
			b.post(uverbs.SendWR{Opcode: uverbs.WRRDMARead, SGList: list, RemoteAddr: out.Addr(), RKey: out.RKey()})
			verify("READ", b.one(b.send, uverbs.WCSuccess))
		}
	}
}

// TestMemoryWindowsOverSim grants access by BIND_MW and takes it back by
// LOCAL_INV, and by the peer's SEND with invalidate.
func TestMemoryWindowsOverSim(t *testing.T) {
	for _, byPeer := range []bool{false, true} {
		a, b := rcPair(t, nil, false)
		out := a.mr(4096, uverbs.AccessLocalWrite)
		mr := b.mr(4096, uverbs.AccessLocalWrite|uverbs.AccessMWBind)
		mem := mr.Bytes()
		mw, err := b.pd.AllocMW(uverbs.MWType2)
		check(t, err)
		b.close(mw)
		key := uverbs.NextRKey(mw.RKey())
		b.post(uverbs.SendWR{WRID: 1, Opcode: uverbs.WRBindMW, Flags: uverbs.SendSignaled, Bind: &uverbs.MWBind{MW: mw, OldRKey: mw.RKey(), NewRKey: key,
			LKey: mr.LKey(), Addr: mr.Addr() + 64, Length: 128, Access: uverbs.AccessRemoteWrite}})
		if wc := b.one(b.send, uverbs.WCSuccess); wc.Opcode != uverbs.WCBindMW {
			t.Errorf("%+v", wc)
		}
		copy(out.Bytes(), "through the window")
		write := uverbs.SendWR{WRID: 2, Opcode: uverbs.WRRDMAWrite, Flags: uverbs.SendSignaled, SGList: sge(out, 0, 18), RemoteAddr: mr.Addr() + 100, RKey: key}
		a.post(write)
		a.one(a.send, uverbs.WCSuccess)
		if got := string(mem[100:118]); got != "through the window" {
			t.Errorf("%q", got)
		}
		if byPeer {
			_, err := b.qp.PostRecv([]uverbs.RecvWR{{WRID: 3}})
			check(t, err)
			a.post(uverbs.SendWR{Opcode: uverbs.WRSendWithInv, Flags: uverbs.SendSignaled, InvalidateRKey: key})
			a.one(a.send, uverbs.WCSuccess)
			if wc := b.one(b.recv, uverbs.WCSuccess); wc.Flags&uverbs.WCWithInv == 0 || wc.ImmData != key {
				t.Errorf("%+v, want the invalidated key %#x", wc, key)
			}
		} else {
			b.post(uverbs.SendWR{Opcode: uverbs.WRLocalInv, Flags: uverbs.SendSignaled, InvalidateRKey: key})
			if wc := b.one(b.send, uverbs.WCSuccess); wc.Opcode != uverbs.WCLocalInv {
				t.Errorf("%+v", wc)
			}
		}
		a.post(write)
		a.one(a.send, uverbs.WCRemAccessErr)
	}
}

// TestDrainOverSim posts to a QP in SQD: the sends wait until it is in RTS again.
func TestDrainOverSim(t *testing.T) {
	a, b := rcPair(t, nil, false)
	for i := range 4 {
		_, err := b.qp.PostRecv([]uverbs.RecvWR{{WRID: uint64(i)}})
		check(t, err)
	}
	a.post(uverbs.SendWR{Opcode: uverbs.WRSend, Flags: uverbs.SendSignaled})
	a.one(a.send, uverbs.WCSuccess)
	check(t, a.qp.Modify(&uverbs.QPAttr{State: uverbs.QPStateSQD}, uverbs.AttrState))
	a.post(uverbs.SendWR{WRID: 7, Opcode: uverbs.WRSend, Flags: uverbs.SendSignaled})
	if n, err := a.send.Poll(make([]uverbs.WC, 1)); n != 0 || err != nil {
		t.Fatalf("sent in SQD: %d, %v", n, err)
	}
	check(t, a.qp.Modify(&uverbs.QPAttr{State: uverbs.QPStateRTS}, uverbs.AttrState))
	if wc := a.one(a.send, uverbs.WCSuccess); wc.WRID != 7 {
		t.Errorf("%+v", wc)
	}
	a.wait(b.recv, 2)
}
