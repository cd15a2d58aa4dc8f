package mlx5sim_test

import (
	"context"
	"errors"
	"net/netip"
	"runtime"
	"syscall"
	"testing"

	"github.com/rrppcc-go/rrppcc/internal/leakcheck"
	_ "github.com/rrppcc-go/rrppcc/mlx5"
	"github.com/rrppcc-go/rrppcc/mlx5/mlx5sim"
	"github.com/rrppcc-go/rrppcc/uverbs"
)

func TestMain(m *testing.M) { leakcheck.Main(m) }

// opened is what a UD program has after its first lines.
type opened struct {
	dev *mlx5sim.Device
	ctx *uverbs.Context
	pd  *uverbs.PD
	mr  *uverbs.MR
	ch  *uverbs.CompChannel
	cq  *uverbs.CQ
	qp  *uverbs.QP
}

const smokeQKey = 0x11111111

func openUD(t *testing.T, fab *mlx5sim.Fabric, addr string) *opened {
	t.Helper()
	if runtime.GOARCH != "amd64" && runtime.GOARCH != "arm64" {
		t.Skip("the provider needs amd64 or arm64")
	}
	check := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	o := new(opened)
	var err error
	o.dev, err = mlx5sim.New(mlx5sim.InProcess(), mlx5sim.WithFabric(fab), mlx5sim.WithAddr(netip.MustParseAddr(addr)))
	check(err)
	o.ctx, err = o.dev.Verbs().Open()
	check(err)
	o.pd, err = o.ctx.AllocPD()
	check(err)
	o.mr, err = o.pd.RegisterMR(mapPages(t, 1<<16), uverbs.AccessLocalWrite|uverbs.AccessRemoteRead)
	check(err)
	o.ch, err = o.ctx.CreateCompChannel()
	check(err)
	o.cq, err = o.ctx.CreateCQ(&uverbs.CQInitAttr{Depth: 64, Channel: o.ch})
	check(err)
	o.qp, err = o.pd.CreateQP(&uverbs.QPInitAttr{Type: uverbs.QPTypeUD, SendCQ: o.cq, RecvCQ: o.cq,
		Cap: uverbs.QPCap{MaxSendWR: 16, MaxRecvWR: 16, MaxSendSGE: 1, MaxRecvSGE: 1, MaxInline: 64}})
	check(err)
	check(o.qp.Modify(&uverbs.QPAttr{State: uverbs.QPStateInit, Port: 1, QKey: smokeQKey},
		uverbs.AttrState|uverbs.AttrPKeyIndex|uverbs.AttrPort|uverbs.AttrQKey))
	check(o.qp.Modify(&uverbs.QPAttr{State: uverbs.QPStateRTR}, uverbs.AttrState))
	check(o.qp.Modify(&uverbs.QPAttr{State: uverbs.QPStateRTS, SQPSN: 0x123456}, uverbs.AttrState|uverbs.AttrSQPSN))
	return o
}

func (o *opened) close(t *testing.T) {
	t.Helper()
	for _, c := range []interface{ Close() error }{o.qp, o.cq, o.ch, o.mr, o.pd, o.ctx, o.dev} {
		if err := c.Close(); err != nil {
			t.Errorf("%T: %v", c, err)
		}
	}
}

func TestVerbsOpenUseAndCloseInOrder(t *testing.T) {
	o := openUD(t, mlx5sim.NewFabric(), "10.0.0.1")
	defer o.close(t)
	attr, err := o.ctx.QueryDevice()
	if err != nil || attr.FirmwareVersion != "20.35.1012" || attr.MaxQPWR != 32768 || attr.Ports != 1 {
		t.Errorf("device: %+v, %v", attr, err)
	}
	port, err := o.ctx.QueryPort(1)
	if err != nil || port.State != uverbs.PortActive || port.ActiveMTU != uverbs.MTU4096 || port.LinkLayer != uverbs.LinkLayerEthernet {
		t.Errorf("port: %+v, %v", port, err)
	}
	gids, err := o.ctx.QueryGIDTable()
	if err != nil || len(gids) != 4 {
		t.Fatalf("GIDs: %v, %v", gids, err)
	}
	if g := gids[3]; g.Type != uverbs.GIDTypeRoCEv2 || g.GID.Addr() != o.dev.Addr() || g.Index != 3 || g.Port != 1 {
		t.Errorf("GID 3: %+v", g)
	}
	if _, err := o.ctx.QueryGID(1, 7); !errors.Is(err, syscall.ENODATA) {
		t.Errorf("empty GID: %v", err)
	}
	if k, err := o.ctx.QueryPKey(1, 0); err != nil || k != 0xffff {
		t.Errorf("P_Key: %#x, %v", k, err)
	}
	if n := o.ctx.NumCompVectors(); n != 8 {
		t.Errorf("%d completion vectors", n)
	}
	a, err := o.qp.Query()
	if err != nil || a.State != uverbs.QPStateRTS || a.QKey != smokeQKey || a.SQPSN != 0x123456 || a.Port != 1 {
		t.Errorf("QP: %+v, %v", a, err)
	}
}

func TestVerbsCloseInWrongOrderIsBusy(t *testing.T) {
	o := openUD(t, mlx5sim.NewFabric(), "10.0.0.1")
	for _, c := range []interface{ Close() error }{o.pd, o.cq} {
		if err := c.Close(); !errors.Is(err, syscall.EBUSY) {
			t.Errorf("%T with a QP: %v, want EBUSY", c, err)
		}
	}
	if err := o.qp.Modify(&uverbs.QPAttr{State: uverbs.QPStateInit}, uverbs.AttrState); !errors.Is(err, syscall.EINVAL) {
		t.Errorf("RTS to INIT: %v, want EINVAL", err)
	}
	o.close(t) // and all of them work afterwards
}

func TestVerbsSendBetweenTwoDevices(t *testing.T) {
	fab := mlx5sim.NewFabric()
	a, b := openUD(t, fab, "10.0.0.1"), openUD(t, fab, "10.0.0.2")
	defer b.close(t)
	defer a.close(t)
	ah, err := a.pd.CreateAH(&uverbs.AHAttr{DGID: uverbs.GIDFromAddr(b.dev.Addr()), SGIDIndex: 3, HopLimit: 64, IsGlobal: true, Port: 1})
	if err != nil {
		t.Fatal(err)
	}
	defer ah.Close()
	if err := b.cq.Arm(false); err != nil {
		t.Fatal(err)
	}
	if n, err := b.qp.PostRecv([]uverbs.RecvWR{{WRID: 7, SGList: []uverbs.SGE{b.mr.SGE(0, 256)}}}); n != 1 || err != nil {
		t.Fatalf("PostRecv: %d, %v", n, err)
	}
	copy(a.mr.Bytes()[100:], "first light")
	if n, err := a.qp.PostSend([]uverbs.SendWR{{WRID: 8, Opcode: uverbs.WRSend, Flags: uverbs.SendSignaled, SGList: []uverbs.SGE{a.mr.SGE(100, 11)},
		RemoteQPN: b.qp.QPN(), RemoteQKey: smokeQKey, AH: ah}}); n != 1 || err != nil {
		t.Fatalf("PostSend: %d, %v", n, err)
	}
	if cq, err := b.ch.Wait(context.Background()); err != nil || cq != b.cq {
		t.Fatalf("event: %v, %v", cq, err)
	}
	wc := make([]uverbs.WC, 4)
	if n, err := a.cq.Poll(wc); n != 1 || err != nil || wc[0].WRID != 8 || wc[0].Status != uverbs.WCSuccess {
		t.Errorf("sender: %d, %v, %+v", n, err, wc[0])
	}
	if n, err := b.cq.Poll(wc); n != 1 || err != nil || wc[0].WRID != 7 || wc[0].ByteLen != 40+11 || wc[0].SrcQP != a.qp.QPN() {
		t.Errorf("receiver: %d, %v, %+v", n, err, wc[0])
	}
	if got := string(b.mr.Bytes()[40:51]); got != "first light" {
		t.Errorf("received %q", got)
	}
}

// TestVerbsDeviceRemoved closes the device under an open context: commands
// fail with EIO, and events tell it.
func TestVerbsDeviceRemoved(t *testing.T) {
	o := openUD(t, mlx5sim.NewFabric(), "10.0.0.1")
	if err := o.dev.Close(); err != nil {
		t.Fatal(err)
	}
	if ev, err := o.ctx.WaitAsyncEvent(t.Context()); err != nil || ev.Type != uverbs.EventDeviceFatal {
		t.Errorf("async event: %+v, %v", ev, err)
	}
	if _, err := o.ch.Wait(t.Context()); !errors.Is(err, syscall.EIO) {
		t.Errorf("completion channel: %v, want EIO", err)
	}
	if _, err := o.ctx.AllocPD(); !errors.Is(err, syscall.EIO) {
		t.Errorf("command: %v, want EIO", err)
	}
	if _, err := o.qp.Query(); !errors.Is(err, uverbs.ErrDeviceRemoved) {
		t.Errorf("command: %v, want ErrDeviceRemoved", err)
	}
	if _, err := o.ctx.WaitAsyncEvent(t.Context()); !errors.Is(err, uverbs.ErrDeviceRemoved) {
		t.Errorf("next async event: %v, want ErrDeviceRemoved", err)
	}
	if err := o.qp.Close(); err != nil {
		t.Errorf("QP: %v", err)
	}
	if err := o.ch.Close(); err != nil {
		t.Error(err)
	}
	if err := o.ctx.Close(); err != nil {
		t.Errorf("context: %v", err)
	}
}

func TestVerbsContextClosedFirst(t *testing.T) {
	o := openUD(t, mlx5sim.NewFabric(), "10.0.0.1")
	defer o.dev.Close()
	if err := o.ch.Close(); err != nil { // fine while a CQ uses it
		t.Error(err)
	}
	if err := o.ctx.Close(); err != nil {
		t.Fatal(err)
	}
	if err := o.qp.Close(); !errors.Is(err, uverbs.ErrClosed) {
		t.Errorf("QP of a closed context: %v, want ErrClosed", err)
	}
	if _, err := o.pd.RegisterMR(o.mr.Bytes(), 0); !errors.Is(err, syscall.EBADF) {
		t.Errorf("command on a closed context: %v, want EBADF", err)
	}
}
