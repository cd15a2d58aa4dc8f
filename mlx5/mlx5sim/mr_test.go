package mlx5sim

import (
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

func TestDMABufsAreNotSupported(t *testing.T) {
	u := newUser(t)
	u.getContext()
	pdh := u.allocPD()
	fd := obj(attrDMABufFD, 7)
	attrs := []tattr{newID(attrDMABufHandle), obj(attrDMABufPD, pdh), in64(attrDMABufOffset, 0), in64(attrDMABufLength, 4096),
		in64(attrDMABufIOVA, 0), fd, in32(attrDMABufAccess, accessLocalWrite), u.out(attrDMABufLKey, 4), u.out(attrDMABufRKey, 4)}
	u.want(syscall.EOPNOTSUPP, command(objMR, 4, attrs...))
	u.want(syscall.EINVAL, command(objMR, 4, attrs[:8]...))
	attrs[5].len = 4
	u.want(syscall.EINVAL, command(objMR, 4, attrs...))
	if len(u.f.handles) != 1 {
		t.Errorf("%d objects are left", len(u.f.handles))
	}
}
