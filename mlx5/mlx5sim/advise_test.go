package mlx5sim

import (
	"syscall"
	"testing"
)

func TestAdviseMRChecksKeysAlwaysAndMemoryWhenWaitedFor(t *testing.T) {
	if faultable() == nil {
		t.Skip("this system does not check the accesses of a process to itself")
	}
	u := newUser(t)
	u.getContext()
	pdh, other := u.allocPD(), u.allocPD()
	reg := func(addr, length uint64, access uint32) uint32 {
		b := make([]byte, 40)
		le.PutUint64(b[8:], addr)
		le.PutUint64(b[16:], length)
		le.PutUint64(b[24:], addr)
		le.PutUint32(b[32:], pdh)
		le.PutUint32(b[36:], access)
		out := u.out(attrCoreOut, 12)
		u.must(writeCommand(9, u.in(attrCoreIn, b), out))
		return le.Uint32(u.at(out.data, 12)[4:])
	}
	_, addr := testPage(t)
	const hole = 1 << 46 // behind all that is mapped here
	paged := reg(addr, 4096, accessLocalWrite|accessOnDemand)
	readOnly := reg(addr, 4096, accessOnDemand)
	nowhere := reg(hole, 4096, accessLocalWrite|accessOnDemand)
	arena := u.out(0, 64).data
	pinned := reg(arena, 64, accessLocalWrite)

	advise := func(pd uint32, advice, flags uint64, addr uint64, n, key uint32) []byte {
		sge := make([]byte, adviseSGEBytes)
		le.PutUint64(sge, addr)
		le.PutUint32(sge[8:], n)
		le.PutUint32(sge[12:], key)
		return command(objMR, 2, obj(0, pd), in64(attrAdviseAdvice, advice), in32(attrAdviseFlags, uint32(flags)), u.in(attrAdviseSGEs, sge))
	}
	for _, c := range []struct {
		name          string
		advice, flags uint64
		addr          uint64
		n, key        uint32
		want          error
	}{
		{"prefetch", advicePrefetch, 0, addr, 4096, paged, nil},
		{"prefetch and wait", advicePrefetch, adviseFlush, addr + 100, 100, paged, nil},
		{"for writing", advicePrefetchWrite, adviseFlush, addr, 4096, paged, nil},
		{"for writing what is read-only", advicePrefetchWrite, 0, addr, 1, readOnly, syscall.EPERM},
		{"of a pinned region", advicePrefetch, 0, arena, 1, pinned, syscall.ENOENT},
		{"of no region", advicePrefetch, 0, addr, 1, 0x12345600, syscall.ENOENT},
		{"beyond the end", advicePrefetch, adviseFlush, addr + 1, 4096, paged, syscall.EFAULT},
		{"before the start", advicePrefetch, adviseFlush, addr - 1, 2, paged, syscall.EFAULT},
		{"beyond the end, not waited for", advicePrefetch, 0, addr + 1, 4096, paged, nil},
		{"where nothing is", advicePrefetch, adviseFlush, hole, 1, nowhere, syscall.EFAULT},
		{"where nothing is, without faults", advicePrefetchNoFault, adviseFlush, hole, 1, nowhere, nil},
		{"unknown advice", 3, 0, addr, 1, paged, syscall.EOPNOTSUPP},
		{"unknown flag", advicePrefetch, 2, addr, 1, paged, syscall.EINVAL},
	} {
		if err := u.f.Ioctl(advise(pdh, c.advice, c.flags, c.addr, c.n, c.key)); err != c.want {
			t.Errorf("%s: %v, want %v", c.name, err, c.want)
		}
	}
	u.want(syscall.EPERM, advise(other, advicePrefetch, 0, addr, 1, paged))
	u.want(syscall.EINVAL, command(objMR, 2, obj(0, pdh), in64(attrAdviseAdvice, 0), in32(attrAdviseFlags, 0), u.in(attrAdviseSGEs, make([]byte, 24))))
}
