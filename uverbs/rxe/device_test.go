package rxe

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/rrppcc-go/rrppcc/internal/kernel"
	"github.com/rrppcc-go/rrppcc/internal/leakcheck"
	"github.com/rrppcc-go/rrppcc/uverbs"
)

func TestMain(m *testing.M) { leakcheck.Main(m) }

// The device tests run on a Soft-RoCE device of a real kernel: RRPC_DEVICE=rxe0,
// and RRPC_DEVICE2=rxe1 for another that it reaches.

const patience = 20 * time.Second

// node is one end: a context with one of each that the tests need.
type node struct {
	t   testing.TB
	ctx *uverbs.Context
	gid uverbs.GIDEntry
	pd  *uverbs.PD
	ch  *uverbs.CompChannel
	cq  *uverbs.CQ
	mem []byte
	mr  *uverbs.MR
}

const (
	nodeBytes = 4 << 20
	allAccess = uverbs.AccessLocalWrite | uverbs.AccessRemoteWrite | uverbs.AccessRemoteRead | uverbs.AccessRemoteAtomic
	testQKey  = 0x1234567
)

// devices opens the two ends, on the same device if there is but one.
func devices(t testing.TB) (a, b *node) {
	t.Helper()
	name := os.Getenv("RRPC_DEVICE")
	if !strings.HasPrefix(name, "rxe") {
		t.Skip("RRPC_DEVICE names no Soft-RoCE device")
	}
	return newNode(t, name), newNode(t, cmp.Or(os.Getenv("RRPC_DEVICE2"), name))
}

func must[T any](v T, err error) func(t testing.TB) T {
	return func(t testing.TB) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

func check(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Error(err)
	}
}

func newNode(t testing.TB, name string) *node {
	t.Helper()
	dev := must(uverbs.DeviceByName(name))(t)
	n := &node{t: t, ctx: must(dev.Open())(t)}
	t.Cleanup(func() { check(t, n.ctx.Close()) })
	var err error
	if n.gid, _, err = n.ctx.ChooseGID(1, -1); err != nil {
		t.Fatal(err)
	}
	n.pd = must(n.ctx.AllocPD())(t)
	t.Cleanup(func() { check(t, n.pd.Close()) })
	n.ch = must(n.ctx.CreateCompChannel())(t)
	t.Cleanup(func() { check(t, n.ch.Close()) })
	n.cq = must(n.ctx.CreateCQ(&uverbs.CQInitAttr{Depth: 1000, Channel: n.ch}))(t)
	t.Cleanup(func() { check(t, n.cq.Close()) })
	n.mem = must(kernel.AllocPages(nodeBytes))(t)
	n.mr = must(n.pd.RegisterMR(n.mem, allAccess))(t)
	t.Cleanup(func() {
		check(t, n.mr.Close())
		check(t, kernel.FreePages(n.mem))
	})
	return n
}

// qp creates a QP in RESET. change may ask for something else than usual.
func (n *node) qp(typ uverbs.QPType, change func(*uverbs.QPInitAttr)) *uverbs.QP {
	n.t.Helper()
	attr := &uverbs.QPInitAttr{Type: typ, SendCQ: n.cq, RecvCQ: n.cq,
		Cap: uverbs.QPCap{MaxSendWR: 30, MaxRecvWR: 30, MaxSendSGE: 4, MaxRecvSGE: 4, MaxInline: 128}}
	if change != nil {
		change(attr)
	}
	qp := must(n.pd.CreateQP(attr))(n.t)
	n.t.Cleanup(func() {
		if err := qp.Close(); err != nil && !errors.Is(err, uverbs.ErrClosed) {
			n.t.Error(err)
		}
	})
	return qp
}

func (n *node) modify(qp *uverbs.QP, attr uverbs.QPAttr, mask uverbs.QPAttrMask) {
	n.t.Helper()
	if err := qp.Modify(&attr, mask|uverbs.AttrState); err != nil {
		n.t.Fatal(err)
	}
}

// ud brings a UD QP to RTS.
func (n *node) ud(change func(*uverbs.QPInitAttr)) *uverbs.QP {
	n.t.Helper()
	qp := n.qp(uverbs.QPTypeUD, change)
	n.udUp(qp)
	return qp
}

func (n *node) udUp(qp *uverbs.QP) {
	n.t.Helper()
	n.modify(qp, uverbs.QPAttr{State: uverbs.QPStateInit, Port: 1, QKey: testQKey}, uverbs.AttrPKeyIndex|uverbs.AttrPort|uverbs.AttrQKey)
	n.modify(qp, uverbs.QPAttr{State: uverbs.QPStateRTR}, 0)
	n.modify(qp, uverbs.QPAttr{State: uverbs.QPStateRTS}, uverbs.AttrSQPSN)
}

// path leads to peer.
func (n *node) path(peer *node) uverbs.AHAttr {
	return uverbs.AHAttr{DGID: peer.gid.GID, SGIDIndex: uint8(n.gid.Index), HopLimit: 64, IsGlobal: true, Port: 1}
}

func (n *node) ah(peer *node) *uverbs.AH {
	n.t.Helper()
	attr := n.path(peer)
	ah := must(n.pd.CreateAH(&attr))(n.t)
	n.t.Cleanup(func() { check(n.t, ah.Close()) })
	return ah
}

// rcAttr is what the tests of errors change.
type rcAttr struct {
	access   uverbs.AccessFlags
	rnrRetry uint8
	retry    uint8
}

var usual = rcAttr{access: allAccess, rnrRetry: 7, retry: 7}

// rcUp brings an RC QP from RESET to RTS.
func (n *node) rcUp(qp *uverbs.QP, peer *node, remote *uverbs.QP, attr rcAttr) {
	n.t.Helper()
	n.modify(qp, uverbs.QPAttr{State: uverbs.QPStateInit, Port: 1, AccessFlags: attr.access},
		uverbs.AttrPKeyIndex|uverbs.AttrPort|uverbs.AttrAccessFlags)
	n.modify(qp, uverbs.QPAttr{State: uverbs.QPStateRTR, AV: n.path(peer), PathMTU: uverbs.MTU1024, DestQPN: remote.QPN(),
		RQPSN: remote.QPN() * 7, MaxDestRdAtomic: 4, MinRNRTimer: 1},
		uverbs.AttrAV|uverbs.AttrPathMTU|uverbs.AttrDestQPN|uverbs.AttrRQPSN|uverbs.AttrMaxDestRdAtomic|uverbs.AttrMinRNRTimer)
	n.modify(qp, uverbs.QPAttr{State: uverbs.QPStateRTS, Timeout: 14, RetryCnt: attr.retry, RNRRetry: attr.rnrRetry, SQPSN: qp.QPN() * 7, MaxRdAtomic: 4},
		uverbs.AttrTimeout|uverbs.AttrRetryCnt|uverbs.AttrRNRRetry|uverbs.AttrSQPSN|uverbs.AttrMaxRdAtomic)
}

// rcPair connects two RC QPs.
func rcPair(a, b *node, change func(*uverbs.QPInitAttr), attr rcAttr) (qa, qb *uverbs.QP) {
	a.t.Helper()
	qa, qb = a.qp(uverbs.QPTypeRC, change), b.qp(uverbs.QPTypeRC, change)
	a.rcUp(qa, b, qb, attr)
	b.rcUp(qb, a, qa, attr)
	return qa, qb
}

func (n *node) send(qp *uverbs.QP, wrs ...uverbs.SendWR) {
	n.t.Helper()
	if got, err := qp.PostSend(wrs); got != len(wrs) || err != nil {
		n.t.Fatalf("PostSend: %d of %d, %v", got, len(wrs), err)
	}
}

func (n *node) recv(qp interface {
	PostRecv([]uverbs.RecvWR) (int, error)
}, wrs ...uverbs.RecvWR) {
	n.t.Helper()
	if got, err := qp.PostRecv(wrs); got != len(wrs) || err != nil {
		n.t.Fatalf("PostRecv: %d of %d, %v", got, len(wrs), err)
	}
}

// next waits for the next completion, by an event where there is none.
func (n *node) next() uverbs.WC {
	n.t.Helper()
	wc, ok := n.nextWithin(patience)
	if !ok {
		n.t.Fatal("no completion")
	}
	return wc
}

func (n *node) nextWithin(d time.Duration) (uverbs.WC, bool) {
	n.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), d)
	defer cancel()
	wc := make([]uverbs.WC, 1)
	for {
		for range 2 { // before and after arming: arming says nothing of what is there
			if got, err := n.cq.Poll(wc); err != nil {
				n.t.Fatal(err)
			} else if got == 1 {
				return wc[0], true
			}
			check(n.t, n.cq.Arm(false))
		}
		if cq, err := n.ch.Wait(ctx); errors.Is(err, context.DeadlineExceeded) {
			return uverbs.WC{}, false
		} else if err != nil || cq != n.cq {
			n.t.Fatal(cq, err)
		}
	}
}

// want waits for a completion and checks it.
func (n *node) want(id uint64, status uverbs.WCStatus, opcode uverbs.WCOpcode) uverbs.WC {
	n.t.Helper()
	wc := n.next()
	if wc.WRID != id || wc.Status != status || status == uverbs.WCSuccess && wc.Opcode != opcode {
		n.t.Errorf("completion %+v (%v, %v), want %d with %v, %v", wc, wc.Status, wc.Opcode, id, status, opcode)
	}
	return wc
}

// fill writes a pattern that depends on seed.
func fill(p []byte, seed byte) []byte {
	for i := range p {
		p[i] = byte(i*7) ^ byte(i>>8) ^ seed
	}
	return p
}

func same(t testing.TB, what string, got, want []byte) {
	t.Helper()
	if !bytes.Equal(got, want) {
		i := 0
		for i < min(len(got), len(want)) && got[i] == want[i] {
			i++
		}
		t.Errorf("%s: %d and %d bytes, differ at %d", what, len(got), len(want), i)
	}
}

// event waits for an async event of the type, ignoring others.
func (n *node) event(typ uverbs.EventType) uverbs.AsyncEvent {
	n.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	for {
		ev, err := n.ctx.WaitAsyncEvent(ctx)
		if err != nil {
			n.t.Fatalf("waiting for %v: %v", typ, err)
		}
		if ev.Type == typ {
			return ev
		}
		n.t.Logf("async event %+v", ev)
	}
}
