package uverbs

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/rrppcc-go/rrppcc/internal/leakcheck"
)

// These tests ask a real kernel. They run in the machine of
// scripts/kerneltest.sh, where rxe0 has the address 10.7.0.1 on v0 and rxe1
// 10.7.0.2 on v1, the other end of the veth pair.

// mapped returns memory that may be registered.
func mapped(t *testing.T, n, prot int) []byte {
	t.Helper()
	mem, err := unix.Mmap(-1, 0, n, prot, unix.MAP_ANON|unix.MAP_PRIVATE)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Munmap(mem) })
	return mem
}

func sh(t *testing.T, command string) string {
	t.Helper()
	out, err := exec.Command("/bin/sh", "-c", command).CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v: %s", command, err, out)
	}
	return strings.TrimSpace(string(out))
}

func closeAll(t *testing.T, objects ...interface{ Close() error }) {
	t.Helper()
	for _, o := range objects {
		if err := o.Close(); err != nil {
			t.Error(err)
		}
	}
}

func must[T any](t *testing.T) func(v T, err error) T {
	t.Helper()
	return func(v T, err error) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

func wantErr(t *testing.T, what string, err, want error) {
	t.Helper()
	if !errors.Is(err, want) {
		t.Errorf("%s: %v, want %v", what, err, want)
	}
}

func TestGuestDevicesAreListed(t *testing.T) {
	guest(t)
	list, err := Devices()
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, d := range list {
		names = append(names, d.Name())
		if d.DriverID() != rxeDriverID || d.Driver() != "rdma_rxe" || d.NodeGUID() == [8]byte{} {
			t.Errorf("%v: driver %q, id %d, GUID %x", d, d.Driver(), d.DriverID(), d.NodeGUID())
		}
	}
	if !slices.Equal(names, []string{"rxe0", "rxe1"}) {
		t.Errorf("devices %q", names)
	}
	if _, err := DeviceByName("mlx5_0"); !errors.Is(err, ErrNoDevice) || !strings.Contains(err.Error(), "rxe1") {
		t.Errorf("a device that is not there: %v", err)
	}
}

func TestGuestDeviceAndPortAttributes(t *testing.T) {
	c := openGuest(t, "rxe0")
	d := must[*DeviceAttr](t)(c.QueryDevice())
	t.Logf("%+v", *d)
	if d.NodeGUID != c.Device().NodeGUID() {
		t.Errorf("node GUID %x by command, %x in sysfs", d.NodeGUID, c.Device().NodeGUID())
	}
	if d.Ports != 1 || d.MaxSGE != 32 || d.MaxQPWR != 1<<20 || d.MaxCQE != 32767 || d.MaxSRQ == 0 || d.MaxAH == 0 || d.MaxPD == 0 ||
		d.AtomicCap != 1 || d.VendorID != 0xffffff {
		t.Errorf("not rdma_rxe's limits: %+v", *d)
	}
	if c.NumCompVectors() < 1 {
		t.Errorf("%d completion vectors", c.NumCompVectors())
	}

	p := must[*PortAttr](t)(c.QueryPort(1))
	t.Logf("%+v", *p)
	if p.State != PortActive || p.LinkLayer != LinkLayerEthernet || p.ActiveMTU != MTU4096 || p.MaxMTU != MTU4096 || p.PhysState != 5 {
		t.Errorf("port: %+v", *p)
	}
	if n := len(must[[]os.DirEntry](t)(os.ReadDir("/sys/class/infiniband/rxe0/ports/1/gids"))); p.GIDTblLen != n {
		t.Errorf("%d GIDs by command, %d in sysfs", p.GIDTblLen, n)
	}
	if n := len(must[[]os.DirEntry](t)(os.ReadDir("/sys/class/infiniband/rxe0/ports/1/pkeys"))); p.PKeyTblLen != n {
		t.Errorf("%d P_Keys by command, %d in sysfs", p.PKeyTblLen, n)
	}
	for _, port := range []uint8{0, 2, 255} {
		_, err := c.QueryPort(port)
		wantErr(t, fmt.Sprintf("port %d", port), err, syscall.EINVAL)
	}
	if k := must[uint16](t)(c.QueryPKey(1, 0)); k != 0xffff {
		t.Errorf("P_Key %#x", k)
	}
	if _, err := c.QueryPKey(1, p.PKeyTblLen); err == nil {
		t.Error("a P_Key behind the table")
	}
}

func TestGuestGIDTableIsTheSameByEveryPath(t *testing.T) {
	c := openGuest(t, "rxe0")
	table := must[[]GIDEntry](t)(c.gidTable())
	slots := must[[]GIDEntry](t)(c.gidSlots(c.gidSlot))
	text := must[[]GIDEntry](t)(c.gidSlots(c.sysfsGID))
	if !slices.Equal(table, slots) || !slices.Equal(table, text) {
		t.Errorf("by command: %v\nby slot: %v\nin sysfs: %v", table, slots, text)
	}
	v0 := must[*net.Interface](t)(net.InterfaceByName("v0"))
	want := GIDFromAddr(netip.MustParseAddr("10.7.0.1"))
	at := slices.IndexFunc(table, func(e GIDEntry) bool { return e.GID == want })
	if at < 0 || table[at].Type != GIDTypeRoCEv2 || table[at].IfIndex != v0.Index || table[at].Port != 1 {
		t.Fatalf("%v in %v; v0 is interface %d", want, table, v0.Index)
	}
	e, why, err := c.ChooseGID(1, -1)
	if err != nil || e != table[at] {
		t.Errorf("chose %v (%s), %v", e, why, err)
	}
	_, err = c.QueryGID(1, 200)
	wantErr(t, "an empty slot", err, syscall.ENODATA)
	for _, at := range []struct {
		port  uint8
		index int
	}{{1, 1 << 20}, {0, 0}, {2, 0}} {
		if _, err := c.QueryGID(at.port, at.index); !errors.Is(err, syscall.EINVAL) && !errors.Is(err, syscall.ENODATA) {
			t.Errorf("port %d, slot %d: %v", at.port, at.index, err)
		}
	}
}

func TestGuestMemoryRegions(t *testing.T) {
	c := openGuest(t, "rxe0")
	pd := must[*PD](t)(c.AllocPD())
	mem := mapped(t, 64<<10, unix.PROT_READ|unix.PROT_WRITE)
	all := AccessLocalWrite | AccessRemoteWrite | AccessRemoteRead | AccessRemoteAtomic
	mr := must[*MR](t)(pd.RegisterMR(mem, all))
	other := must[*MR](t)(pd.RegisterMR(mem[:100], AccessLocalWrite|AccessRelaxedOrdering))
	if mr.LKey() == other.LKey() || mr.RKey() == 0 {
		t.Errorf("keys %#x/%#x and %#x/%#x", mr.LKey(), mr.RKey(), other.LKey(), other.RKey())
	}
	wantErr(t, "a PD with MRs", pd.Close(), syscall.EBUSY)

	iova := must[*MR](t)(pd.RegisterMRIova(mem, 0x10000, AccessLocalWrite))
	_, err := pd.RegisterMRIova(mem, 0x10008, AccessLocalWrite)
	wantErr(t, "another page offset", err, syscall.EINVAL)
	_, err = pd.RegisterMR(mem, AccessRemoteWrite)
	wantErr(t, "remote write alone", err, syscall.EINVAL)
	readOnly := mapped(t, 4096, unix.PROT_READ)
	_, err = pd.RegisterMR(readOnly, AccessLocalWrite)
	wantErr(t, "write to read-only memory", err, syscall.EFAULT)
	ro := must[*MR](t)(pd.RegisterMR(readOnly, AccessRemoteRead))

	// Across drivers and versions some of these are not to be had. What counts
	// is that the answer is one that a program can tell.
	odp, err := pd.RegisterMR(mem, AccessLocalWrite|AccessOnDemand)
	t.Logf("on demand: %v", err)
	if err == nil {
		closeAll(t, odp)
	} else if !errors.Is(err, syscall.EINVAL) && !errors.Is(err, syscall.EOPNOTSUPP) {
		t.Errorf("on demand: %v", err)
	}
	_, err = pd.RegisterDMABuf(0, 0, 4096, AccessLocalWrite)
	wantErr(t, "dma-buf", err, syscall.EOPNOTSUPP)
	t.Logf("dma-buf: %v", err)

	err = ro.Rereg(ReregTranslation, nil, mem, AccessLocalWrite)
	t.Logf("rereg of the memory: %v", err)
	if err != nil {
		wantErr(t, "rereg of the memory", err, syscall.EOPNOTSUPP)
	}
	pd2 := must[*PD](t)(c.AllocPD())
	if err := other.Rereg(ReregPD, pd2, nil, 0); err != nil {
		t.Logf("rereg to another PD: %v", err)
		wantErr(t, "rereg to another PD", err, syscall.EOPNOTSUPP)
	} else {
		wantErr(t, "the new PD", pd2.Close(), syscall.EBUSY)
	}
	if err := mr.Rereg(ReregAccess, nil, nil, AccessLocalWrite); err != nil {
		t.Logf("rereg of the access: %v", err)
		wantErr(t, "rereg of the access", err, syscall.EOPNOTSUPP)
	}
	closeAll(t, mr, other, iova, ro, pd2, pd)
}

func TestGuestMemoryWindows(t *testing.T) {
	c := openGuest(t, "rxe0")
	pd := must[*PD](t)(c.AllocPD())
	for _, typ := range []MWType{MWType1, MWType2} {
		mw := must[*MW](t)(pd.AllocMW(typ))
		if mw.RKey() == 0 {
			t.Errorf("type %d: rkey 0", typ)
		}
		wantErr(t, "a PD with a window", pd.Close(), syscall.EBUSY)
		closeAll(t, mw)
	}
	closeAll(t, pd)
}

func TestGuestCompletionQueues(t *testing.T) {
	c := openGuest(t, "rxe0")
	ch := must[*CompChannel](t)(c.CreateCompChannel())
	for _, bad := range []CQInitAttr{{Depth: 1 << 15}, {Depth: 16, Vector: c.NumCompVectors()}} {
		_, err := c.CreateCQ(&bad)
		wantErr(t, fmt.Sprintf("%+v", bad), err, syscall.EINVAL)
	}
	cq := must[*CQ](t)(c.CreateCQ(&CQInitAttr{Depth: 16, Channel: ch, Vector: c.NumCompVectors() - 1}))
	cq.Driver().(*guestQueue).cq = cq
	second := must[*CQ](t)(c.CreateCQ(&CQInitAttr{Depth: 1, Channel: ch}))
	if cq.Depth() < 16 || second.Depth() < 1 {
		t.Errorf("depths %d and %d", cq.Depth(), second.Depth())
	}
	for _, solicited := range []bool{false, true} {
		if err := cq.Arm(solicited); err != nil {
			t.Error(err)
		}
	}
	// Nothing completes: the waiter ends with its context, then with the channel.
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Millisecond)
	defer cancel()
	_, err := ch.Wait(ctx)
	wantErr(t, "wait", err, context.DeadlineExceeded)

	if err := cq.Resize(100); err != nil {
		t.Error(err)
	}
	if cq.Depth() < 100 {
		t.Errorf("depth %d after growing to 100", cq.Depth())
	}
	wantErr(t, "resize past the limit", cq.Resize(1<<15), syscall.EINVAL)

	done := make(chan error)
	go func() {
		_, err := ch.Wait(context.Background())
		done <- err
	}()
	closeAll(t, ch) // the CQs that use it do not mind
	wantErr(t, "a waiter of a closed channel", <-done, ErrClosed)
	closeAll(t, second, cq)
}

// guestQP creates a QP with queues of its own.
func guestQP(t *testing.T, c *Context, typ QPType) (*PD, *CQ, *QP) {
	t.Helper()
	pd := must[*PD](t)(c.AllocPD())
	cq := must[*CQ](t)(c.CreateCQ(&CQInitAttr{Depth: 64}))
	attr := &QPInitAttr{Type: typ, SendCQ: cq, RecvCQ: cq, Cap: QPCap{MaxSendWR: 16, MaxRecvWR: 16, MaxSendSGE: 2, MaxRecvSGE: 3, MaxInline: 64}}
	qp := must[*QP](t)(pd.CreateQP(attr))
	if got := qp.Cap(); got.MaxSendWR < 16 || got.MaxRecvWR < 16 || got.MaxSendSGE < 2 || got.MaxRecvSGE < 3 || got.MaxInline < 64 {
		t.Errorf("asked for %+v, got %+v", attr.Cap, got)
	}
	return pd, cq, qp
}

// peerAV addresses 10.7.0.2 from rxe0.
func peerAV(t *testing.T, c *Context) AHAttr {
	t.Helper()
	e, _, err := c.ChooseGID(1, -1)
	if err != nil {
		t.Fatal(err)
	}
	return AHAttr{DGID: GIDFromAddr(netip.MustParseAddr("10.7.0.2")), SGIDIndex: uint8(e.Index), HopLimit: 64, TrafficClass: 8, IsGlobal: true, Port: 1}
}

func TestGuestUDQPStates(t *testing.T) {
	c := openGuest(t, "rxe0")
	pd, cq, qp := guestQP(t, c, QPTypeUD)
	wantErr(t, "a CQ in use", cq.Close(), syscall.EBUSY)
	wantErr(t, "a PD in use", pd.Close(), syscall.EBUSY)
	const initMask = AttrState | AttrPKeyIndex | AttrPort | AttrQKey
	wantErr(t, "RESET to RTS", qp.Modify(&QPAttr{State: QPStateRTS}, AttrState), syscall.EINVAL)
	wantErr(t, "INIT without a QKey", qp.Modify(&QPAttr{State: QPStateInit, Port: 1}, AttrState|AttrPKeyIndex|AttrPort), syscall.EINVAL)
	for _, step := range []struct {
		attr QPAttr
		mask QPAttrMask
	}{
		{QPAttr{State: QPStateInit, Port: 1, QKey: 0x1234567}, initMask},
		{QPAttr{State: QPStateRTR}, AttrState},
		{QPAttr{State: QPStateRTS, SQPSN: 0xabcdef}, AttrState | AttrSQPSN},
	} {
		if err := qp.Modify(&step.attr, step.mask); err != nil {
			t.Fatal(err)
		}
		got := must[*QPAttr](t)(qp.Query())
		if got.State != step.attr.State || qp.State() != step.attr.State || got.QKey != 0x1234567 || got.Port != 1 {
			t.Errorf("after the move to %v: %+v", step.attr.State, *got)
		}
	}
	if got := must[*QPAttr](t)(qp.Query()); got.SQPSN != 0xabcdef {
		t.Errorf("send PSN %#x", got.SQPSN)
	}
	for _, state := range []QPState{QPStateErr, QPStateReset} {
		if err := qp.Modify(&QPAttr{State: state}, AttrState); err != nil {
			t.Error(err)
		}
		if got := must[*QPAttr](t)(qp.Query()); got.State != state {
			t.Errorf("%v after the move to %v", got.State, state)
		}
	}
	if err := qp.Modify(&QPAttr{State: QPStateInit, Port: 1, QKey: 0x80000001}, initMask); err != nil { // as root
		t.Error(err)
	}
	closeAll(t, qp, cq, pd)
}

func TestGuestRCQPStates(t *testing.T) {
	c := openGuest(t, "rxe0")
	pd, cq, qp := guestQP(t, c, QPTypeRC)
	access := AccessLocalWrite | AccessRemoteWrite | AccessRemoteRead | AccessRemoteAtomic
	av := peerAV(t, c)
	for _, step := range []struct {
		attr QPAttr
		mask QPAttrMask
	}{
		{QPAttr{State: QPStateInit, Port: 1, AccessFlags: access}, AttrState | AttrPKeyIndex | AttrPort | AttrAccessFlags},
		{QPAttr{State: QPStateRTR, AV: av, PathMTU: MTU1024, DestQPN: 0x17, RQPSN: 0x112233, MaxDestRdAtomic: 4, MinRNRTimer: 12},
			AttrState | AttrAV | AttrPathMTU | AttrDestQPN | AttrRQPSN | AttrMaxDestRdAtomic | AttrMinRNRTimer},
		{QPAttr{State: QPStateRTS, SQPSN: 0x445566, MaxRdAtomic: 3, Timeout: 14, RetryCnt: 7, RNRRetry: 6},
			AttrState | AttrSQPSN | AttrMaxRdAtomic | AttrTimeout | AttrRetryCnt | AttrRNRRetry},
	} {
		if err := qp.Modify(&step.attr, step.mask); err != nil {
			t.Fatal(err)
		}
	}
	got := must[*QPAttr](t)(qp.Query())
	t.Logf("%+v", *got)
	if got.State != QPStateRTS || got.PathMTU != MTU1024 || got.DestQPN != 0x17 || got.RQPSN != 0x112233 || got.SQPSN != 0x445566 ||
		got.MinRNRTimer != 12 || got.Timeout != 14 || got.RetryCnt != 7 || got.RNRRetry != 6 || got.AccessFlags != access || got.Port != 1 ||
		got.AV.DGID != av.DGID || !got.AV.IsGlobal || got.AV.HopLimit != 64 || got.AV.TrafficClass != 8 || got.AV.SGIDIndex != av.SGIDIndex {
		t.Errorf("query: %+v", *got)
	}
	if err := qp.Modify(&QPAttr{State: QPStateSQD}, AttrState); err != nil {
		t.Fatal(err)
	}
	// While the send queue drains, nothing but ERR is allowed.
	for deadline := time.Now().Add(5 * time.Second); ; {
		got := must[*QPAttr](t)(qp.Query())
		if got.State != QPStateSQD {
			t.Fatalf("%v after the move to SQD", got.State)
		}
		if !got.SQDraining {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("an empty send queue never drains")
		}
	}
	if err := qp.Modify(&QPAttr{State: QPStateRTS}, AttrState); err != nil {
		t.Error(err)
	}
	if err := qp.Modify(&QPAttr{State: QPStateReset}, AttrState); err != nil {
		t.Error(err)
	}
	closeAll(t, qp, cq, pd)
}

func TestGuestUnresolvableAddressTimesOut(t *testing.T) {
	c := openGuest(t, "rxe0")
	pd := must[*PD](t)(c.AllocPD())
	av := peerAV(t, c)
	ah := must[*AH](t)(pd.CreateAH(&av))
	if n, ok := ah.Driver().(uint32); !ok || n == 0 {
		t.Errorf("AH number %v", ah.Driver())
	}
	wantErr(t, "a PD with an AH", pd.Close(), syscall.EBUSY)

	nobody := av
	nobody.DGID = GIDFromAddr(netip.MustParseAddr("10.7.0.99"))
	start := time.Now()
	_, err := pd.CreateAH(&nobody)
	wantErr(t, "nobody's address", err, syscall.ETIMEDOUT)
	if took := time.Since(start); took > 5*time.Second {
		t.Errorf("took %v", took)
	}
	t.Log(err)
	local := av
	local.IsGlobal = false
	_, err = pd.CreateAH(&local)
	wantErr(t, "without a GRH", err, syscall.EINVAL)
	empty := av
	empty.SGIDIndex = 200
	if _, err = pd.CreateAH(&empty); !errors.Is(err, syscall.ENODATA) && !errors.Is(err, syscall.EINVAL) {
		t.Errorf("from an empty GID slot: %v", err)
	}
	closeAll(t, ah, pd)
}

func TestGuestSharedReceiveQueues(t *testing.T) {
	c := openGuest(t, "rxe0")
	pd := must[*PD](t)(c.AllocPD())
	cq := must[*CQ](t)(c.CreateCQ(&CQInitAttr{Depth: 64}))
	attr := &SRQInitAttr{SRQAttr{MaxWR: 32, MaxSGE: 2}}
	srq := must[*SRQ](t)(pd.CreateSRQ(attr))
	if attr.MaxWR < 32 || attr.MaxSGE < 2 {
		t.Errorf("got %+v", *attr)
	}
	qp := must[*QP](t)(pd.CreateQP(&QPInitAttr{Type: QPTypeRC, SendCQ: cq, RecvCQ: cq, SRQ: srq, Cap: QPCap{MaxSendWR: 4, MaxSendSGE: 1}}))
	wantErr(t, "an SRQ in use", srq.Close(), syscall.EBUSY)
	if err := srq.Modify(&SRQAttr{Limit: 7}, SRQLimit); err != nil {
		t.Error(err)
	}
	got := must[*SRQAttr](t)(srq.Query())
	if got.Limit != 7 || got.MaxWR < 32 || got.MaxSGE < 2 {
		t.Errorf("query: %+v", *got)
	}
	wantErr(t, "a limit above the size", srq.Modify(&SRQAttr{Limit: 1 << 16}, SRQLimit), syscall.EINVAL)
	_, err := pd.CreateSRQ(&SRQInitAttr{SRQAttr{MaxWR: 1 << 24, MaxSGE: 1}})
	wantErr(t, "an SRQ past the limit", err, syscall.EINVAL)
	closeAll(t, qp, srq, cq, pd)
}

func TestGuestMulticast(t *testing.T) {
	c := openGuest(t, "rxe0")
	pd, cq, qp := guestQP(t, c, QPTypeUD)
	if err := qp.Modify(&QPAttr{State: QPStateInit, Port: 1, QKey: 1}, AttrState|AttrPKeyIndex|AttrPort|AttrQKey); err != nil {
		t.Fatal(err)
	}
	group := GIDFromAddr(netip.MustParseAddr("ff0e::ffff:e000:1234"))
	for range 2 { // attached twice is attached
		if err := qp.AttachMulticast(group, 0); err != nil {
			t.Fatal(err)
		}
	}
	wantErr(t, "an attached QP", qp.Close(), syscall.EBUSY)
	if err := qp.DetachMulticast(group, 0); err != nil {
		t.Error(err)
	}
	wantErr(t, "detached twice", qp.DetachMulticast(group, 0), syscall.EINVAL)
	wantErr(t, "no multicast GID", qp.AttachMulticast(peerAV(t, c).DGID, 0), syscall.EINVAL)
	closeAll(t, qp, cq, pd)
}

func TestGuestCloseTakesEverythingAlong(t *testing.T) {
	leakcheck.Check(t)
	c := openGuest(t, "rxe1")
	before := sh(t, "rdma resource show rxe1")
	pd, _, qp := guestQP(t, c, QPTypeRC)
	must[*CompChannel](t)(c.CreateCompChannel())
	must[*SRQ](t)(pd.CreateSRQ(&SRQInitAttr{SRQAttr{MaxWR: 8, MaxSGE: 1}}))
	must[*MR](t)(pd.RegisterMR(mapped(t, 4096, unix.PROT_READ|unix.PROT_WRITE), AccessLocalWrite))
	if during := sh(t, "rdma resource show rxe1"); during == before {
		t.Errorf("the kernel counts nothing: %s", during)
	}
	closeAll(t, c)
	wantErr(t, "a QP of a closed context", qp.Close(), ErrClosed)
	// The context itself was there before.
	was := strings.NewReplacer("ctx 1", "ctx 0").Replace(before)
	if after := sh(t, "rdma resource show rxe1"); after != was {
		t.Errorf("left behind: %s, was %s", after, was)
	}
}

func TestGuestDescriptorsDoNotReachChildren(t *testing.T) {
	c := openGuest(t, "rxe0")
	must[*CompChannel](t)(c.CreateCompChannel())
	if fds := sh(t, "ls -l /proc/self/fd"); strings.Contains(fds, "infiniband") {
		t.Errorf("a child has\n%s", fds)
	}
}

// spare makes a device that a test may take away.
func spare(t *testing.T) {
	t.Helper()
	guest(t)
	sh(t, "ip link add d9 type dummy && ip link set d9 up && ip addr add 10.9.0.1/24 dev d9 && rdma link add rxe9 type rxe netdev d9")
	t.Cleanup(func() { exec.Command("/bin/sh", "-c", "rdma link delete rxe9; ip link del d9").Run() })
}

func TestGuestAsyncEventsOfThePort(t *testing.T) {
	spare(t)
	c := openGuest(t, "rxe9")
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	wait := func(want EventType) {
		t.Helper()
		for {
			ev, err := c.WaitAsyncEvent(ctx)
			if err != nil {
				t.Fatalf("waiting for %v: %v", want, err)
			}
			t.Logf("%v, port %d", ev.Type, ev.Port)
			if ev.Port != 1 {
				t.Errorf("%v of port %d", ev.Type, ev.Port)
			}
			if ev.Type == want {
				return
			}
		}
	}
	sh(t, "ip link set d9 down")
	wait(EventPortErr)
	if p := must[*PortAttr](t)(c.QueryPort(1)); p.State == PortActive {
		t.Errorf("the port is %v", p.State)
	}
	if _, _, err := c.ChooseGID(1, -1); !errors.Is(err, ErrPortDown) {
		t.Errorf("a GID of a port that is down: %v", err)
	}
	sh(t, "ip link set d9 up")
	wait(EventPortActive)

	done := make(chan error)
	go func() {
		_, err := c.WaitAsyncEvent(context.Background())
		done <- err
	}()
	closeAll(t, c)
	wantErr(t, "a waiter of a closed context", <-done, ErrClosed)
}

// A kernel either takes the device away at once, and everything answers
// ErrDeviceRemoved; or, as rdma_rxe before 7.0, it waits until the last user
// has closed it, and until then everything works.
func TestGuestDeviceRemovedWhileOpen(t *testing.T) {
	spare(t)
	c := openGuest(t, "rxe9")
	pd, cq, qp := guestQP(t, c, QPTypeUD)
	ch := must[*CompChannel](t)(c.CreateCompChannel())
	// Waiters that are parked when it happens.
	woken, fatal := make(chan error, 1), make(chan error, 1)
	go func() {
		_, err := ch.Wait(context.Background())
		woken <- err
	}()
	go func() {
		for {
			ev, err := c.WaitAsyncEvent(context.Background())
			if err != nil || ev.Type == EventDeviceFatal {
				fatal <- err
				return
			}
		}
	}()
	deleted := make(chan error, 1)
	cmd := exec.Command("/bin/rdma", "link", "delete", "rxe9")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() { deleted <- cmd.Wait() }()

	// The node goes first in both cases.
	node := c.Device().info.Node
	for deadline := time.Now().Add(10 * time.Second); ; {
		if _, err := os.Stat(node); err != nil {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s is still there", node)
		}
		time.Sleep(time.Millisecond)
	}
	gone := false
	select {
	case err := <-deleted:
		gone = true
		if err != nil {
			t.Error(err)
		}
	case <-time.After(300 * time.Millisecond):
	}
	t.Logf("the device went at once: %v", gone)
	_, err := c.QueryPort(1)
	mod := qp.Modify(&QPAttr{State: QPStateInit, Port: 1, QKey: 1}, AttrState|AttrPKeyIndex|AttrPort|AttrQKey)
	if gone {
		wantErr(t, "query", err, ErrDeviceRemoved)
		wantErr(t, "modify", mod, ErrDeviceRemoved)
		_, err = ch.Wait(context.Background())
		wantErr(t, "wait", err, ErrDeviceRemoved)
		wantErr(t, "a waiter that was parked", <-woken, ErrDeviceRemoved)
		if err := <-fatal; err != nil {
			t.Errorf("no device fatal event: %v", err)
		}
		_, err = c.WaitAsyncEvent(context.Background())
		wantErr(t, "an event after the last one", err, ErrDeviceRemoved)
		_, err = qp.Query()
		wantErr(t, "query qp", err, ErrDeviceRemoved)
		_, err = c.AllocPD()
		wantErr(t, "alloc pd", err, ErrDeviceRemoved)
	} else if err != nil || mod != nil {
		t.Errorf("query: %v, modify: %v", err, mod)
	}
	closeAll(t, qp, cq, ch, pd, c)
	if !gone {
		wantErr(t, "a waiter of a closed channel", <-woken, ErrClosed)
		wantErr(t, "a waiter of a closed context", <-fatal, ErrClosed)
		select {
		case err := <-deleted:
			if err != nil {
				t.Error(err)
			}
		case <-time.After(10 * time.Second):
			t.Error("the device is still there after everything was closed")
		}
	}
	if d, err := DeviceByName("rxe9"); err == nil {
		t.Errorf("%v is still listed", d)
	}
}
