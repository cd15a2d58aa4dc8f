package uverbs

import (
	"errors"
	"math/rand/v2"
	"net/netip"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/rrppcc-go/rrppcc/internal/abi"
)

func addr(s string) netip.Addr { return netip.MustParseAddr(s) }

// ownNetdevs is the network namespace of the tests.
func ownNetdevs() ([]netdev, error) {
	return []netdev{
		{index: 1, name: "lo", up: true, loopback: true, addrs: []netip.Addr{addr("127.0.0.1"), addr("::1")}},
		{index: 7, name: "eth7", up: true, addrs: []netip.Addr{addr("10.0.0.5"), addr("10.0.0.6"), addr("2001:db8::5"), addr("fe80::5")}},
		{index: 8, name: "eth8", addrs: []netip.Addr{addr("10.0.0.8")}},
	}, nil
}

func open(t testing.TB, k *fakeKernel) *Context {
	t.Helper()
	c, err := NewDevice(k).Open()
	if err != nil {
		t.Fatal(err)
	}
	c.netdevs = ownNetdevs
	return c
}

// objects are one of each, in the order of their creation. Nil ones could not
// be created.
type objects struct {
	pd  *PD
	mr  *MR
	buf *MR // a dma-buf
	mw  *MW
	ch  *CompChannel
	cq  *CQ
	srq *SRQ
	qp  *QP
	ah  *AH
}

var mrMemory = make([]byte, 4096) // no device ever touches it

// use makes every call of the control path once, going on after errors, and
// returns the objects and all errors.
func use(c *Context) (o objects, errs error) {
	var err error
	note := func(e error) { errs = errors.Join(errs, e) }
	_, err = c.QueryDevice()
	note(err)
	_, err = c.QueryPort(1)
	note(err)
	_, _, err = c.ChooseGID(1, -1)
	note(err)
	_, err = c.QueryGID(1, 0)
	note(err)
	if o.pd, err = c.AllocPD(); err != nil {
		return o, errors.Join(errs, err)
	}
	o.mr, err = o.pd.RegisterMR(mrMemory, AccessLocalWrite)
	note(err)
	o.buf, err = o.pd.RegisterDMABuf(44, 4096, 8192, AccessLocalWrite)
	note(err)
	if o.mr != nil {
		note(o.mr.Rereg(ReregAccess, nil, nil, AccessRemoteRead))
	}
	o.mw, err = o.pd.AllocMW(MWType2)
	note(err)
	o.ch, err = c.CreateCompChannel()
	note(err)
	if o.cq, err = c.CreateCQ(&CQInitAttr{Depth: 16, Channel: o.ch}); err != nil {
		return o, errors.Join(errs, err)
	}
	note(o.cq.Resize(16))
	if o.srq, err = o.pd.CreateSRQ(&SRQInitAttr{SRQAttr{MaxWR: 10, MaxSGE: 1}}); err == nil {
		note(o.srq.Modify(&SRQAttr{Limit: 3}, SRQLimit))
		_, err = o.srq.Query()
	}
	note(err)
	o.ah, err = o.pd.CreateAH(&AHAttr{DGID: GIDFromAddr(addr("10.0.0.9")), IsGlobal: true, Port: 1})
	note(err)
	if o.qp, err = o.pd.CreateQP(&QPInitAttr{Type: QPTypeUD, SendCQ: o.cq, RecvCQ: o.cq, SRQ: o.srq, Cap: QPCap{MaxSendWR: 4}}); err != nil {
		return o, errors.Join(errs, err)
	}
	note(o.qp.AttachMulticast(GID{0: 0xff}, 0))
	note(o.qp.DetachMulticast(GID{0: 0xff}, 0))
	note(o.qp.Modify(&QPAttr{State: QPStateInit, Port: 1}, AttrState|AttrPort))
	_, err = o.qp.Query()
	note(err)
	return o, errs
}

// close closes what there is, in the right order.
func (o *objects) close() (errs error) {
	if o.qp != nil {
		errs = errors.Join(errs, o.qp.Close())
	}
	if o.srq != nil {
		errs = errors.Join(errs, o.srq.Close())
	}
	if o.ah != nil {
		errs = errors.Join(errs, o.ah.Close())
	}
	if o.cq != nil {
		errs = errors.Join(errs, o.cq.Close())
	}
	if o.ch != nil {
		errs = errors.Join(errs, o.ch.Close())
	}
	if o.mw != nil {
		errs = errors.Join(errs, o.mw.Close())
	}
	for _, mr := range []*MR{o.mr, o.buf} {
		if mr != nil {
			errs = errors.Join(errs, mr.Close())
		}
	}
	if o.pd != nil {
		errs = errors.Join(errs, o.pd.Close())
	}
	return errs
}

func checkNothingLeft(t testing.TB, k *fakeKernel) {
	t.Helper()
	if files, objects, events := k.leaks(); files+objects+events != 0 {
		t.Errorf("left in the kernel: %d files, %d objects, %d event files", files, objects, events)
	}
	if n := fakes.total(); n != 0 {
		t.Errorf("left in the driver: %v", fakes.live)
	}
}

func TestFullLifeLeavesNothing(t *testing.T) {
	k := newFakeKernel()
	c := open(t, k)
	o, err := use(c)
	if err != nil {
		t.Fatal(err)
	}
	if c.NumCompVectors() != 2 || o.cq.Depth() != 16 || o.qp.QPN() != 0x100+o.qp.Handle() || o.mr.LKey() != 0x5555 || o.mr.RKey() != 0x6666 {
		t.Errorf("vectors %d, depth %d, QPN %#x, keys %#x %#x", c.NumCompVectors(), o.cq.Depth(), o.qp.QPN(), o.mr.LKey(), o.mr.RKey())
	}
	if o.pd.handle != 0 {
		t.Errorf("the first handle is %d, and 0 should have been tried", o.pd.handle)
	}
	if err := o.close(); err != nil {
		t.Error(err)
	}
	if _, n, _ := k.leaks(); n != 0 {
		t.Errorf("%d objects left before the context's close", n)
	}
	if err := c.Close(); err != nil {
		t.Error(err)
	}
	checkNothingLeft(t, k)
}

func TestEveryFailingCommandIsReportedAndLeaksNothing(t *testing.T) {
	run := func(k *fakeKernel) error {
		c, err := NewDevice(k).Open()
		if err != nil {
			return err
		}
		c.netdevs = ownNetdevs
		o, err := use(c)
		return errors.Join(err, o.close(), c.Close())
	}
	k := newFakeKernel()
	if err := run(k); err != nil {
		t.Fatal(err)
	}
	total := k.n
	for _, errno := range []syscall.Errno{syscall.EINVAL, syscall.EIO, syscall.ENOMEM, syscall.EPROTONOSUPPORT, syscall.EBUSY} {
		for at := range total {
			k := newFakeKernel()
			other := false
			k.fail = func(n int, c *fakeCommand) syscall.Errno {
				if n != at {
					return 0
				}
				other = hasFallback(c, errno)
				return errno
			}
			err := run(k)
			if other && err != nil || !other && !errors.Is(err, errno) {
				t.Errorf("command %d of %d answers %v: error is %v", at, total, errno, err)
			}
			checkNothingLeft(t, k)
		}
	}
}

// hasFallback tells commands whose errno means "ask in another way".
func hasFallback(c *fakeCommand, errno syscall.Errno) bool {
	if c.object != abi.UVERBS_OBJECT_DEVICE {
		return false
	}
	switch c.method {
	case abi.UVERBS_METHOD_QUERY_GID_TABLE:
		return errno == syscall.EPROTONOSUPPORT || errno == syscall.EINVAL
	case abi.UVERBS_METHOD_QUERY_GID_ENTRY:
		return errno == syscall.EPROTONOSUPPORT
	}
	return false
}

func TestDeviceThatVanishesLeavesNothing(t *testing.T) {
	k := newFakeKernel()
	c := open(t, k)
	o, err := use(c)
	if err != nil {
		t.Fatal(err)
	}
	k.fail = func(int, *fakeCommand) syscall.Errno { return syscall.EIO }
	for what, err := range map[string]error{"modify": o.qp.Modify(&QPAttr{}, AttrState), "query": second(o.qp.Query()), "pd": second(c.AllocPD()),
		"mr": second(o.pd.RegisterMR(mrMemory, 0)), "port": second(c.QueryPort(1)), "device": second(c.QueryDevice())} {
		if !errors.Is(err, ErrDeviceRemoved) || !errors.Is(err, syscall.EIO) {
			t.Errorf("%s: %v, want ErrDeviceRemoved", what, err)
		}
	}
	if err := o.qp.Close(); err != nil {
		t.Errorf("QP: %v", err)
	}
	if err := c.Close(); err != nil {
		t.Errorf("context: %v", err)
	}
	checkNothingLeft(t, k)
	if err := o.qp.Close(); !errors.Is(err, ErrClosed) {
		t.Errorf("QP after the context: %v", err)
	}
	if err := o.cq.Close(); !errors.Is(err, ErrClosed) {
		t.Errorf("CQ after the context: %v", err)
	}
}

// A driver may answer EIO for its firmware while the device is there.
func TestFirmwareErrorIsNoRemoval(t *testing.T) {
	k := newFakeKernel()
	c := open(t, k)
	o, err := use(c)
	if err != nil {
		t.Fatal(err)
	}
	k.fail = func(_ int, cmd *fakeCommand) syscall.Errno {
		if cmd.method == abi.UVERBS_METHOD_QUERY_GID_ENTRY && cmd.object == abi.UVERBS_OBJECT_DEVICE {
			return 0
		}
		return syscall.EIO
	}
	if err := o.qp.Close(); !errors.Is(err, syscall.EIO) || errors.Is(err, ErrDeviceRemoved) || !strings.Contains(err.Error(), "dmesg") {
		t.Errorf("QP: %v", err)
	}
	k.fail = nil
	if err := o.close(); err != nil {
		t.Errorf("later: %v", err)
	}
	if err := c.Close(); err != nil {
		t.Error(err)
	}
	checkNothingLeft(t, k)
}

func second[T any](_ T, err error) error { return err }

func TestContextCloseTakesWhatIsStillOpen(t *testing.T) {
	k := newFakeKernel()
	c := open(t, k)
	o, err := use(c)
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Close(); err != nil {
		t.Error(err)
	}
	checkNothingLeft(t, k)
	for what, err := range map[string]error{"context": c.Close(), "qp": o.qp.Close(), "cq": o.cq.Close(), "channel": o.ch.Close(),
		"modify": o.qp.Modify(&QPAttr{}, AttrState)} {
		if !errors.Is(err, ErrClosed) {
			t.Errorf("%s: %v, want ErrClosed", what, err)
		}
	}
	if _, err := c.AllocPD(); !errors.Is(err, syscall.EBADF) {
		t.Errorf("alloc PD: %v", err)
	}
}

func TestProviderThatFailsAfterTheKernelLeaksNothing(t *testing.T) {
	defer func() { fakes.broken = "" }()
	for _, at := range []string{"context", "cq", "srq", "qp", "ah"} {
		k := newFakeKernel()
		fakes.broken = at
		c, err := NewDevice(k).Open()
		if at == "context" {
			if !errors.Is(err, errBroken) {
				t.Errorf("context: %v", err)
			}
			checkNothingLeft(t, k)
			continue
		}
		c.netdevs = ownNetdevs
		o, err := use(c)
		if !errors.Is(err, errBroken) {
			t.Errorf("%s: %v", at, err)
		}
		if err := o.close(); err != nil {
			t.Errorf("%s: %v", at, err)
		}
		if _, n, _ := k.leaks(); n != 0 {
			t.Errorf("%s: %d objects are left", at, n)
		}
		if err := c.Close(); err != nil {
			t.Error(err)
		}
		checkNothingLeft(t, k)
	}
}

func TestObjectsInUseAreBusyAndStayUsable(t *testing.T) {
	k := newFakeKernel()
	c := open(t, k)
	o, err := use(c)
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := o.cq.Close(); !errors.Is(err, syscall.EBUSY) {
			t.Errorf("CQ: %v", err)
		}
		if err := o.pd.Close(); !errors.Is(err, syscall.EBUSY) {
			t.Errorf("PD: %v", err)
		}
	}
	qp, err := o.pd.CreateQP(&QPInitAttr{Type: QPTypeRC, SendCQ: o.cq, RecvCQ: o.cq})
	if err != nil {
		t.Fatalf("after EBUSY: %v", err)
	}
	if err := errors.Join(qp.Close(), o.close(), c.Close()); err != nil {
		t.Error(err)
	}
	checkNothingLeft(t, k)
}

func TestClosedObjectIsRefusedBeforeTheKernelIsAsked(t *testing.T) {
	k := newFakeKernel()
	c := open(t, k)
	defer c.Close()
	other := open(t, newFakeKernel())
	defer other.Close()
	o, err := use(c)
	if err != nil {
		t.Fatal(err)
	}
	foreign, err := use(other)
	if err != nil {
		t.Fatal(err)
	}
	asked := k.n
	check := func(what string, err error, want error) {
		t.Helper()
		if !errors.Is(err, want) || k.n != asked {
			t.Errorf("%s: %v (%d commands), want %v", what, err, k.n-asked, want)
		}
	}
	_, err = c.CreateCQ(&CQInitAttr{Depth: 1, Channel: foreign.ch})
	check("CQ on a foreign channel", err, syscall.EINVAL)
	_, err = c.CreateCQ(&CQInitAttr{Depth: 0})
	check("CQ of depth 0", err, syscall.EINVAL)
	_, err = o.pd.CreateQP(&QPInitAttr{SendCQ: o.cq, RecvCQ: foreign.cq})
	check("QP on a foreign CQ", err, syscall.EINVAL)
	_, err = o.pd.CreateQP(&QPInitAttr{SendCQ: o.cq})
	check("QP without a CQ", err, syscall.EINVAL)
	_, err = o.pd.RegisterMR(nil, 0)
	check("empty MR", err, syscall.EINVAL)
	_, err = c.QueryGID(1, -1)
	check("GID -1", err, syscall.EINVAL)

	if err := o.close(); err != nil {
		t.Fatal(err)
	}
	asked = k.n
	_, err = c.CreateCQ(&CQInitAttr{Depth: 1, Channel: o.ch})
	check("CQ on a closed channel", err, ErrClosed)
	_, err = o.pd.RegisterMR(mrMemory, 0)
	check("MR in a closed PD", err, ErrClosed)
	_, err = o.pd.CreateAH(&AHAttr{})
	check("AH in a closed PD", err, ErrClosed)
	_, err = o.pd.CreateQP(&QPInitAttr{SendCQ: o.cq, RecvCQ: o.cq})
	check("QP in a closed PD", err, ErrClosed)
	_, err = o.qp.Query()
	check("query of a closed QP", err, ErrClosed)
	check("second close", o.ah.Close(), ErrClosed)
	check("second close", o.mr.Close(), ErrClosed)
}

func TestConcurrentUseAndClose(t *testing.T) {
	k := newFakeKernel()
	c := open(t, k)
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for {
				o, err := use(c)
				o.close()
				if errors.Is(err, syscall.EBADF) || errors.Is(err, ErrClosed) {
					return
				}
			}
		})
	}
	wg.Go(func() {
		for range 50 {
			c.QueryDevice()
		}
		c.Close()
	})
	wg.Wait()
	checkNothingLeft(t, k)
}

func TestQueryDeviceFallsBackToTheFirstForm(t *testing.T) {
	k := newFakeKernel()
	c := open(t, k)
	defer c.Close()
	k.fail = func(_ int, cmd *fakeCommand) syscall.Errno {
		if cmd.write == abi.IB_USER_VERBS_EX_CMD_QUERY_DEVICE {
			return syscall.EOPNOTSUPP
		}
		return 0
	}
	got, err := c.QueryDevice()
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(&DeviceAttr{FirmwareVersion: "22.43.1014", MaxQP: 1000, Ports: 1}, got); diff != "" {
		t.Error(diff)
	}
}

func TestQueryPKeyReadsSysfs(t *testing.T) {
	k := newFakeKernel()
	c := open(t, k)
	defer c.Close()
	if v, err := c.QueryPKey(1, 0); v != 0xffff || err != nil {
		t.Errorf("%#x, %v", v, err)
	}
	k.attrs["ports/1/pkeys/0"] = "ffff"
	if _, err := c.QueryPKey(1, 0); !errors.Is(err, ErrBadAnswer) {
		t.Error(err)
	}
}

func TestStateFollowsModify(t *testing.T) {
	k := newFakeKernel()
	c := open(t, k)
	defer c.Close()
	o, err := use(c)
	if err != nil {
		t.Fatal(err)
	}
	k.fail = func(int, *fakeCommand) syscall.Errno { return syscall.EINVAL }
	err = o.qp.Modify(&QPAttr{State: QPStateRTS}, AttrState)
	if !errors.Is(err, syscall.EINVAL) || !strings.Contains(err.Error(), "INIT to RTS") || o.qp.State() != QPStateInit {
		t.Errorf("%v, state %v", err, o.qp.State())
	}
	k.fail = nil
	if err := o.qp.Modify(&QPAttr{State: QPStateReset}, AttrState); err != nil || o.qp.State() != QPStateReset {
		t.Errorf("%v, state %v", err, o.qp.State())
	}
	if diff := cmp.Diff([]QPState{QPStateInit, QPStateReset}, o.qp.drv.(*fakeQP).states); diff != "" {
		t.Error(diff)
	}
}

func TestModifySpellsEveryAttribute(t *testing.T) {
	k := newFakeKernel()
	c := open(t, k)
	defer c.Close()
	o, err := use(c)
	if err != nil {
		t.Fatal(err)
	}
	var got []byte
	k.fail = func(_ int, cmd *fakeCommand) syscall.Errno {
		got = append([]byte(nil), cmd.in(abi.UVERBS_ATTR_CORE_IN)...)
		return 0
	}
	attr := &QPAttr{State: 1, CurState: 2, PathMTU: 3, QKey: 0x04040404, RQPSN: 0x05, SQPSN: 0x06, DestQPN: 0x07, AccessFlags: 0x08, PKeyIndex: 0x0909,
		AV:          AHAttr{DGID: GID{15: 0x0a}, FlowLabel: 0x0b, SGIDIndex: 0x0c, HopLimit: 0x0d, TrafficClass: 0x0e, IsGlobal: true, DLID: 0x0f0f, SL: 0x10, SrcPathBits: 0x11, StaticRate: 0x12, Port: 0x13},
		MaxRdAtomic: 0x14, MaxDestRdAtomic: 0x15, MinRNRTimer: 0x16, Port: 0x17, Timeout: 0x18, RetryCnt: 0x19, RNRRetry: 0x1a}
	if err := o.qp.Modify(attr, AttrState|AttrAV|AttrQKey); err != nil {
		t.Fatal(err)
	}
	// Offsets as a real kernel took them.
	want := make([]byte, 112)
	want[15], want[16], want[20], want[21], want[24], want[25], want[26], want[27] = 0x0a, 0x0b, 0x0f, 0x0f, 0x0c, 0x0d, 0x0e, 0x10
	want[28], want[29], want[30], want[31] = 0x11, 0x12, 1, 0x13
	want[64], want[68] = byte(o.qp.Handle()), 0xc1
	copy(want[72:], []byte{4, 4, 4, 4, 5, 0, 0, 0, 6, 0, 0, 0, 7, 0, 0, 0, 8, 0, 0, 0, 9, 9})
	want[96], want[97], want[98], want[101], want[102], want[103], want[104], want[105], want[106], want[107] = 1, 2, 3, 0x14, 0x15, 0x16, 0x17, 0x18, 0x19, 0x1a
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

// FuzzKernelAnswers has the kernel answer with errnos and garbage: no call may
// panic, hang or leak, and what succeeds must make sense.
func FuzzKernelAnswers(f *testing.F) {
	for seed := range uint64(20) {
		f.Add(seed, uint8(seed*13))
	}
	f.Fuzz(func(t *testing.T, seed uint64, rate uint8) {
		rnd := rand.New(rand.NewPCG(seed, 0))
		k := newFakeKernel()
		k.garble = func(p []byte) {
			if uint8(rnd.Uint32()) >= rate {
				return
			}
			for i := range p {
				if rnd.Uint32()%4 == 0 {
					p[i] = byte(rnd.Uint32())
				}
			}
		}
		k.fail = func(int, *fakeCommand) syscall.Errno {
			if uint8(rnd.Uint32()) < rate/8 {
				return syscall.Errno(1 + rnd.Uint32()%133)
			}
			return 0
		}
		c, err := NewDevice(k).Open()
		if err == nil {
			c.netdevs = ownNetdevs
			o, _ := use(c)
			if o.qp != nil && o.qp.QPN() > maxQPN {
				t.Errorf("QPN %#x", o.qp.QPN())
			}
			if gids, err := c.QueryGIDTable(); err == nil {
				for _, g := range gids {
					if g.Port == 0 || g.Index < 0 || g.IfIndex < 0 {
						t.Errorf("GID entry %+v", g)
					}
				}
			}
			if e, reason, err := c.ChooseGID(1, -1); err == nil && (e.Type != GIDTypeRoCEv2 && e.Type != GIDTypeIB && reason == "") {
				t.Errorf("chose %+v without a reason", e)
			}
			o.close()
			c.Close()
		}
		// A descriptor whose number was garbled on its way cannot be closed.
		k.mu.Lock()
		clear(k.events)
		k.mu.Unlock()
		checkNothingLeft(t, k)
	})
}
