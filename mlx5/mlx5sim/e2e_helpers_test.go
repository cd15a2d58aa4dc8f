//go:build linux

package mlx5sim_test

import (
	"context"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	_ "github.com/rrppcc-go/rrppcc/mlx5"
	"github.com/rrppcc-go/rrppcc/mlx5/mlx5sim"
	"github.com/rrppcc-go/rrppcc/uverbs"
)

// These tests drive the device by way of the public verbs and the mlx5
// provider: what one of the two gets wrong about the other shows here.

const (
	qkey   = 0x1ee7a1
	fullMR = uverbs.AccessLocalWrite | uverbs.AccessRemoteRead | uverbs.AccessRemoteWrite
)

// end is one side: a context with a PD, CQs and one QP.
type end struct {
	t              testing.TB
	sim            *mlx5sim.Device
	ctx            *uverbs.Context
	pd             *uverbs.PD
	channel        *uverbs.CompChannel
	sendCQ, recvCQ *uverbs.CQ
	qp             *uverbs.QP
	gid            uverbs.GID
	gidIndex       uint8
	tclass, hops   uint8 // of the way to the peer
}

func check(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func newDevice(t testing.TB, fab *mlx5sim.Fabric) *mlx5sim.Device {
	d, err := mlx5sim.New(mlx5sim.WithFabric(fab), mlx5sim.InProcess())
	check(t, err)
	t.Cleanup(func() { check(t, d.Close()) })
	return d
}

// newEnd opens d and creates everything; all of it is closed, in order, when
// the test ends, and closing must not fail.
func newEnd(t testing.TB, d *mlx5sim.Device, typ uverbs.QPType, depth int) *end {
	e := &end{t: t, sim: d}
	var err error
	e.ctx, err = d.Verbs().Open()
	check(t, err)
	closeLater := func(c interface{ Close() error }) { t.Cleanup(func() { check(t, c.Close()) }) }
	closeLater(e.ctx)
	e.pd, err = e.ctx.AllocPD()
	check(t, err)
	closeLater(e.pd)
	e.channel, err = e.ctx.CreateCompChannel()
	check(t, err)
	closeLater(e.channel)
	e.sendCQ, err = e.ctx.CreateCQ(&uverbs.CQInitAttr{Depth: depth})
	check(t, err)
	closeLater(e.sendCQ)
	e.recvCQ, err = e.ctx.CreateCQ(&uverbs.CQInitAttr{Depth: depth, Channel: e.channel})
	check(t, err)
	closeLater(e.recvCQ)
	e.qp, err = e.pd.CreateQP(&uverbs.QPInitAttr{Type: typ, SendCQ: e.sendCQ, RecvCQ: e.recvCQ,
		Cap: uverbs.QPCap{MaxSendWR: 16, MaxRecvWR: 16, MaxSendSGE: 2, MaxRecvSGE: 2, MaxInline: 60}})
	check(t, err)
	closeLater(e.qp)
	addr := d.Addr()
	e.gid, e.gidIndex, e.hops = uverbs.GIDFromAddr(addr), 3, 64
	return e
}

// mr maps n bytes outside the Go heap and registers them.
func (e *end) mr(n int, access uverbs.AccessFlags) *uverbs.MR {
	e.t.Helper()
	mem, err := unix.Mmap(-1, 0, max(n, 1), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	check(e.t, err)
	mr, err := e.pd.RegisterMR(mem, access)
	check(e.t, err)
	e.t.Cleanup(func() {
		mr.Close() // a test may have closed it
		check(e.t, unix.Munmap(mem))
	})
	return mr
}

func fill(mr *uverbs.MR, seed byte) {
	for i, b := 0, mr.Bytes(); i < len(b); i++ {
		b[i] = seed + byte(i) + byte(i>>8)*5
	}
}

func (e *end) ud() {
	check(e.t, e.qp.Modify(&uverbs.QPAttr{State: uverbs.QPStateInit, Port: 1, QKey: qkey},
		uverbs.AttrState|uverbs.AttrPKeyIndex|uverbs.AttrPort|uverbs.AttrQKey))
	check(e.t, e.qp.Modify(&uverbs.QPAttr{State: uverbs.QPStateRTR}, uverbs.AttrState))
	check(e.t, e.qp.Modify(&uverbs.QPAttr{State: uverbs.QPStateRTS, SQPSN: 77}, uverbs.AttrState|uverbs.AttrSQPSN))
}

// rcInit, rcRTR and rcRTS bring e's QP up, connected to peer's.
func (e *end) rcInit() {
	e.t.Helper()
	check(e.t, e.qp.Modify(&uverbs.QPAttr{State: uverbs.QPStateInit, Port: 1, AccessFlags: fullMR},
		uverbs.AttrState|uverbs.AttrPKeyIndex|uverbs.AttrPort|uverbs.AttrAccessFlags))
}

func (e *end) rcRTR(peer *end) {
	e.t.Helper()
	check(e.t, e.qp.Modify(&uverbs.QPAttr{State: uverbs.QPStateRTR, PathMTU: uverbs.MTU1024, DestQPN: peer.qp.QPN(),
		RQPSN: peer.qp.QPN() * 7 & 0xffffff, MaxDestRdAtomic: 4, MinRNRTimer: 1,
		AV: uverbs.AHAttr{DGID: peer.gid, SGIDIndex: e.gidIndex, HopLimit: e.hops, TrafficClass: e.tclass, IsGlobal: true, Port: 1}},
		uverbs.AttrState|uverbs.AttrAV|uverbs.AttrPathMTU|uverbs.AttrDestQPN|uverbs.AttrRQPSN|uverbs.AttrMaxDestRdAtomic|uverbs.AttrMinRNRTimer))
}

func (e *end) rcRTS(rnrRetry uint8) {
	e.t.Helper()
	check(e.t, e.qp.Modify(&uverbs.QPAttr{State: uverbs.QPStateRTS, SQPSN: e.qp.QPN() * 7 & 0xffffff, MaxRdAtomic: 4, Timeout: 1, RetryCnt: 3, RNRRetry: rnrRetry},
		uverbs.AttrState|uverbs.AttrSQPSN|uverbs.AttrMaxRdAtomic|uverbs.AttrTimeout|uverbs.AttrRetryCnt|uverbs.AttrRNRRetry))
}

func rcConnect(a, b *end) {
	a.t.Helper()
	a.rcInit()
	b.rcInit()
	a.rcRTR(b)
	b.rcRTR(a)
	a.rcRTS(7)
	b.rcRTS(7)
}

// ucConnect brings two UC QPs up, connected to each other.
func ucConnect(a, b *end) {
	a.t.Helper()
	for _, p := range [][2]*end{{a, b}, {b, a}} {
		e, peer := p[0], p[1]
		e.rcInit()
		check(e.t, e.qp.Modify(&uverbs.QPAttr{State: uverbs.QPStateRTR, PathMTU: uverbs.MTU1024, DestQPN: peer.qp.QPN(), RQPSN: peer.qp.QPN() * 7 & 0xffffff,
			AV: uverbs.AHAttr{DGID: peer.gid, SGIDIndex: e.gidIndex, HopLimit: e.hops, TrafficClass: e.tclass, IsGlobal: true, Port: 1}},
			uverbs.AttrState|uverbs.AttrAV|uverbs.AttrPathMTU|uverbs.AttrDestQPN|uverbs.AttrRQPSN))
		check(e.t, e.qp.Modify(&uverbs.QPAttr{State: uverbs.QPStateRTS, SQPSN: e.qp.QPN() * 7 & 0xffffff}, uverbs.AttrState|uverbs.AttrSQPSN))
	}
}

// rcPair is two connected ends, on two devices.
func rcPair(t testing.TB) (a, b *end) {
	fab := mlx5sim.NewFabric()
	a = newEnd(t, newDevice(t, fab), uverbs.QPTypeRC, 64)
	b = newEnd(t, newDevice(t, fab), uverbs.QPTypeRC, 64)
	rcConnect(a, b)
	return a, b
}

func (e *end) ah(to *end) *uverbs.AH {
	e.t.Helper()
	ah, err := e.pd.CreateAH(&uverbs.AHAttr{DGID: to.gid, SGIDIndex: e.gidIndex, HopLimit: 33, TrafficClass: 0x68, IsGlobal: true, Port: 1})
	check(e.t, err)
	e.t.Cleanup(func() { check(e.t, ah.Close()) })
	return ah
}

func (e *end) send(wrs ...uverbs.SendWR) {
	e.t.Helper()
	n, err := e.qp.PostSend(wrs)
	check(e.t, err)
	if n != len(wrs) {
		e.t.Fatalf("posted %d of %d", n, len(wrs))
	}
}

func (e *end) recv(id uint64, sges ...uverbs.SGE) {
	e.t.Helper()
	_, err := e.qp.PostRecv([]uverbs.RecvWR{{WRID: id, SGList: sges}})
	check(e.t, err)
}

// poll takes what is in cq now.
func (e *end) poll(cq *uverbs.CQ) []uverbs.WC {
	e.t.Helper()
	wc := make([]uverbs.WC, 64)
	n, err := cq.Poll(wc)
	check(e.t, err)
	return wc[:n]
}

// wait polls cq until it has given n completions.
func (e *end) wait(cq *uverbs.CQ, n int) []uverbs.WC {
	e.t.Helper()
	var all []uverbs.WC
	for deadline := time.Now().Add(10 * time.Second); len(all) < n; {
		all = append(all, e.poll(cq)...)
		if time.Now().After(deadline) {
			e.t.Fatalf("%d completions in 10 s, want %d: %+v", len(all), n, all)
		}
	}
	return all
}

// outcome is what a completion says that a test compares.
type outcome struct {
	id     uint64
	status uverbs.WCStatus
}

func (e *end) want(cq *uverbs.CQ, want ...outcome) []uverbs.WC {
	e.t.Helper()
	wcs := e.wait(cq, len(want))
	if len(wcs) != len(want) {
		e.t.Fatalf("completions %+v, want %+v", wcs, want)
	}
	for i, w := range want {
		if wcs[i].WRID != w.id || wcs[i].Status != w.status {
			e.t.Fatalf("completion %d: id %d %v, want id %d %v", i, wcs[i].WRID, wcs[i].Status, w.id, w.status)
		}
	}
	return wcs
}

func (e *end) wantState(want uverbs.QPState) {
	e.t.Helper()
	a, err := e.qp.Query()
	check(e.t, err)
	if a.State != want {
		e.t.Errorf("QP in %v, want %v", a.State, want)
	}
}

func (e *end) wantAsync(want uverbs.EventType) {
	e.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	ev, err := e.ctx.WaitAsyncEvent(ctx)
	check(e.t, err)
	if ev.Type != want {
		e.t.Errorf("async event %v, want %v", ev.Type, want)
	}
}
