package mlx5sim

import (
	"os"
	"syscall"
	"testing"
)

func reregCore(h, flags uint32, start, length, iova uint64, pd, access uint32) []byte {
	w := make(writer, 0, 48)
	w.u64(0)
	w.u32(h, flags)
	w.u64(start, length, iova)
	w.u32(pd, access)
	return w
}

func TestReregMRChangesWhatItSaysAndNothingElse(t *testing.T) {
	u := newUser(t)
	u.getContext()
	pd1, pd2 := u.allocPD(), u.allocPD()
	one, two := u.alloc(pageSize), u.alloc(2*pageSize)
	h := u.regMR(pd1, one, pageSize, accessLocalWrite)
	m := u.f.handles[h].(*mr)
	key := m.key
	rereg := func(flags uint32, start, length, iova uint64, pd, access uint32) error {
		out := u.out(attrCoreOut, 8)
		err := u.f.Ioctl(writeCommand(11, u.in(attrCoreIn, reregCore(h, flags, start, length, iova, pd, access)), out))
		if b := u.at(out.data, 8); err == nil && (le.Uint32(b) != key || le.Uint32(b[4:]) != key || u.d.mrs[key] != m) {
			t.Errorf("keys % x", b)
		}
		return err
	}
	before := *m
	for _, tt := range []struct {
		name                string
		flags               uint32
		start, length, iova uint64
		pd, access          uint32
		errno               syscall.Errno
	}{
		{"nothing", 0, one, pageSize, one, pd1, 0, syscall.EINVAL},
		{"unknown", 8, one, pageSize, one, pd1, 0, syscall.EOPNOTSUPP},
		{"unmapped", reregTrans, 0x7000, pageSize, 0x7000, pd1, 0, syscall.EFAULT},
		{"length 0", reregTrans, two, 0, two, pd1, 0, syscall.EINVAL},
		{"page offsets differ", reregTrans, two, 8, two + 8, pd1, 0, syscall.EINVAL},
		{"wraps around", reregTrans, ^uint64(0) - 4095, 8192, ^uint64(0) - 4095, pd1, 0, syscall.EINVAL},
		{"bad access", reregAccess, 0, 0, 0, 0, accessRemoteWrite, syscall.EINVAL},
		{"on demand", reregAccess, 0, 0, 0, 0, accessOnDemand, syscall.EOPNOTSUPP},
		{"no such PD", reregPD, 0, 0, 0, 99, 0, syscall.ENOENT},
		{"no such PD, with the rest", reregKnown, two, pageSize, two, 99, accessLocalWrite, syscall.ENOENT},
	} {
		if err := rereg(tt.flags, tt.start, tt.length, tt.iova, tt.pd, tt.access); err != tt.errno {
			t.Errorf("%s: %v, want %v", tt.name, err, tt.errno)
		}
	}
	u.want(syscall.ENOENT, writeCommand(11, u.in(attrCoreIn, reregCore(999, reregAccess, 0, 0, 0, 0, 0)), u.out(attrCoreOut, 8)))
	u.want(syscall.EFAULT, writeCommand(11, u.in(attrCoreIn, reregCore(h, reregAccess, 0, 0, 0, 0, 0)), tattr{id: attrCoreOut, len: 8, flags: 1, data: 8}))
	if *m != before {
		t.Fatalf("refused changes made %+v of %+v", *m, before)
	}
	check := func(err error, what string, want mr) {
		t.Helper()
		if err != nil || *m != want {
			t.Errorf("%s: %v, %+v", what, err, *m)
		}
	}
	want := before
	want.access = accessLocalWrite | accessRemoteAtomic | accessRelaxedOrdering
	check(rereg(reregAccess, 1, 2, 3, 99, want.access), "access", want)
	want.start, want.length, want.iova = two+8, pageSize, 0x123008
	check(rereg(reregTrans, two+8, pageSize, 0x123008, 99, 1<<30), "translation", want)
	want.pd = u.f.handles[pd2].(*pd)
	check(rereg(reregPD, 1, 2, 3, pd2, 1<<30), "PD", want)
	u.must(destroyCmd(u, objPD, pd1))
	u.want(syscall.EBUSY, destroyCmd(u, objPD, pd2))
	u.must(destroyCmd(u, objMR, h))
	u.must(destroyCmd(u, objPD, pd2))
}

// TestDMABufCommandChecks: what works is in uverbs/verbstest.
func TestDMABufCommandChecks(t *testing.T) {
	if faultable() == nil {
		t.Skip("this system does not check the accesses of a process to itself")
	}
	u := newUser(t)
	u.getContext()
	pdh := u.allocPD()
	before := u.snapshot()
	attrs := func() []tattr {
		return []tattr{newID(attrDMABufHandle), obj(attrDMABufPD, pdh), in64(attrDMABufOffset, 0), in64(attrDMABufLength, 4096),
			in64(attrDMABufIOVA, 0), in32(attrDMABufFD, 1<<20), in32(attrDMABufAccess, accessLocalWrite), u.out(attrDMABufLKey, 4), u.out(attrDMABufRKey, 4)}
	}
	u.want(syscall.EBADF, command(objMR, 4, attrs()...))
	u.want(syscall.EINVAL, command(objMR, 4, attrs()[:8]...))
	for i, bad := range map[int]tattr{
		3: in64(attrDMABufLength, 0), 4: in64(attrDMABufIOVA, 1), 6: in32(attrDMABufAccess, accessLocalWrite|accessMWBind),
	} {
		a := attrs()
		a[i] = bad
		u.want(syscall.EINVAL, command(objMR, 4, a...))
	}
	a := attrs()
	a[5].len = 0
	u.want(syscall.EINVAL, command(objMR, 4, a...))
	f, err := os.Open(os.DevNull) // not to be shared, and of no size
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	a = attrs()
	a[5].data = uint64(f.Fd())
	u.want(syscall.EINVAL, command(objMR, 4, a...))
	if after := u.snapshot(); after != before {
		t.Errorf("refused regions left %v, was %v", after, before)
	}
}

// TestImplicitOnDemandRegionIsAllOfMemory: one of the largest length, from 0 on.
func TestImplicitOnDemandRegionIsAllOfMemory(t *testing.T) {
	if faultable() == nil {
		t.Skip("this system does not check the accesses of a process to itself")
	}
	u := newUser(t)
	u.getContext()
	pdh := u.allocPD()
	const all = 1<<64 - 1
	reg := func(start, length, iova uint64, access uint32) []byte {
		b := make([]byte, 40)
		le.PutUint64(b[8:], start)
		le.PutUint64(b[16:], length)
		le.PutUint64(b[24:], iova)
		le.PutUint32(b[32:], pdh)
		le.PutUint32(b[36:], access)
		return writeCommand(9, u.in(attrCoreIn, b), u.out(attrCoreOut, 12))
	}
	u.want(syscall.EINVAL, reg(0, all, 4096, accessLocalWrite|accessOnDemand))
	u.want(syscall.EINVAL, reg(4096, all, 4096, accessLocalWrite|accessOnDemand))
	u.want(syscall.EINVAL, reg(0, all, 0, accessLocalWrite))
	u.want(syscall.EINVAL, reg(0, 4096, 0, accessRemoteWrite|accessOnDemand))
	u.must(reg(0, all, 0, accessLocalWrite|accessRemoteWrite|accessOnDemand))
	var m *mr
	for _, x := range u.d.mrs {
		m = x
	}
	p, addr := testPage(t)
	for _, a := range []uint64{addr, addr + 4000} {
		if got := u.d.find(m.pd, m.key, a, 96, accessRemoteWrite); got != m {
			t.Fatalf("no access at %#x", a)
		}
		if err := m.write(a, []byte("somewhere")); err != nil || string(p[a-addr:][:9]) != "somewhere" {
			t.Errorf("write at %#x: %v", a, err)
		}
	}
	for _, a := range []uint64{8, 1 << 63, all - 100, addr &^ (1<<47 - 1)} {
		if err := m.read(a, make([]byte, 96)); err == nil {
			t.Errorf("there is memory at %#x", a)
		}
	}
}

// TestRegMRMethodTakesDescriptors: the newer way to register a dma-buf.
func TestRegMRMethodTakesDescriptors(t *testing.T) {
	if faultable() == nil {
		t.Skip("this system does not check the accesses of a process to itself")
	}
	u := newUser(t)
	u.getContext()
	pdh := u.allocPD()
	f, err := os.CreateTemp(t.TempDir(), "") // any file that can be shared
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := f.Truncate(8192); err != nil {
		t.Fatal(err)
	}
	fd := obj(attrRegMRFD, uint32(f.Fd()))
	before := u.snapshot()
	cmd := func(more ...tattr) []byte {
		return command(objMR, 5, append([]tattr{newID(attrRegMRHandle), obj(attrRegMRPD, pdh), in64(attrRegMRLength, 4096),
			in32(attrRegMRAccess, accessLocalWrite), u.out(attrRegMRLKey, 4), u.out(attrRegMRRKey, 4)}, more...)...)
	}
	u.want(syscall.EINVAL, cmd())
	u.want(syscall.EINVAL, cmd(fd))
	u.want(syscall.EINVAL, cmd(fd, in64(attrRegMRFDOffset, 0)))
	u.want(syscall.EINVAL, cmd(fd, in64(attrRegMRFDOffset, 0), in64(attrRegMRIOVA, 0), in64(attrRegMRAddr, 0)))
	u.want(syscall.EINVAL, cmd(fd, in64(attrRegMRFDOffset, 4097), in64(attrRegMRIOVA, 1)))
	if after := u.snapshot(); after != before {
		t.Errorf("refused regions left %v, was %v", after, before)
	}
	u.must(cmd(fd, in64(attrRegMRFDOffset, 4000), in64(attrRegMRIOVA, 1<<40+4000)))
	var m *mr
	for _, x := range u.d.mrs {
		m = x
	}
	if m.iova != 1<<40+4000 || m.write(m.iova+5, []byte("shared")) != nil {
		t.Fatalf("%+v", m)
	}
	got := make([]byte, 6)
	if _, err := f.ReadAt(got, 4005); err != nil || string(got) != "shared" {
		t.Errorf("the file has %q: %v", got, err)
	}
	// What is cut off the file is an error, and nothing worse.
	if err := f.Truncate(4096); err != nil {
		t.Fatal(err)
	}
	if m.write(m.iova+200, []byte("gone")) == nil || m.read(m.iova+200, got) == nil {
		t.Error("there is memory behind the end of the file")
	}
}
