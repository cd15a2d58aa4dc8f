package mlx5sim

import (
	"fmt"
	"syscall"
	"testing"
)

// TestDestroyIsRefusedWhileInUse tries every order of destroying a dependant
// and what it depends on.
func TestDestroyIsRefusedWhileInUse(t *testing.T) {
	u := newUser(t)
	u.getContext()
	uarh, index := u.allocUAR()
	pdh := u.allocPD()
	cqh := u.createCQ(index)
	qph := u.createQP(qpUD, pdh, cqh, index)
	mrh := u.regMR(pdh, u.alloc(pageSize), pageSize, accessLocalWrite)
	ahh := u.createAH(pdh)

	u.want(syscall.EBUSY, destroyCmd(u, objPD, pdh))
	u.want(syscall.EBUSY, destroyCmd(u, objCQ, cqh))
	u.want(syscall.EBUSY, destroyCmd(u, objUAR, uarh))
	u.must(destroyCmd(u, objAH, ahh))
	u.want(syscall.EBUSY, destroyCmd(u, objPD, pdh))
	u.must(destroyCmd(u, objMR, mrh))
	u.want(syscall.EBUSY, destroyCmd(u, objPD, pdh))
	u.must(destroyCmd(u, objQP, qph))
	u.want(syscall.EBUSY, destroyCmd(u, objUAR, uarh)) // the CQ names it
	u.must(destroyCmd(u, objPD, pdh))
	u.must(destroyCmd(u, objCQ, cqh))
	u.must(destroyCmd(u, objUAR, uarh))
	for object, h := range map[uint16]uint32{objPD: pdh, objCQ: cqh, objQP: qph, objMR: mrh, objAH: ahh, objUAR: uarh} {
		u.want(syscall.ENOENT, destroyCmd(u, object, h)) // twice
	}
	if s := u.snapshot(); s != ([9]int{}) {
		t.Errorf("left %v", s)
	}
}

func ahCore(pd uint32, dgid string, sgidIndex uint8) []byte {
	b := make([]byte, 56)
	le.PutUint32(b[16:], pd)
	gid := gidOf(dgid)
	copy(b[24:], gid[:])
	b[44], b[45], b[53], b[54] = sgidIndex, 64, 1, 1
	return b
}

func (u *user) createAH(pd uint32) uint32 {
	u.t.Helper()
	core := u.out(attrCoreOut, 4)
	u.must(writeCommand(5, u.in(attrCoreIn, ahCore(pd, "10.0.0.2", 3)), core, u.out(attrUHWOut, 16)))
	return le.Uint32(u.at(core.data, 4))
}

func TestHandlesAreOneSpaceFromZero(t *testing.T) {
	u := newUser(t)
	u.getContext()
	a, b := u.allocPD(), u.allocPD()
	if a != 0 || b != 1 {
		t.Errorf("handles %d and %d, want 0 and 1", a, b)
	}
	u.want(syscall.EINVAL, destroyCmd(u, objMR, a)) // of another type
	u.want(syscall.ENOENT, destroyCmd(u, objPD, 2))
	big := obj(0, 0)
	big.data = 1 << 32
	u.want(syscall.ENOENT, command(objPD, 0, big))
	withLen := obj(0, a)
	withLen.len = 4
	u.want(syscall.EINVAL, command(objPD, 0, withLen))
	u.must(destroyCmd(u, objPD, a))
	if c := u.allocPD(); c != 0 {
		t.Errorf("handle %d, want the free 0 again", c)
	}
	other := openUser(t, u.d, 1<<16)
	other.getContext()
	other.want(syscall.ENOENT, destroyCmd(other, objPD, b)) // handles are per file
}

func TestRegMRChecksWhatTheKernelChecks(t *testing.T) {
	u := newUser(t)
	u.getContext()
	pdh := u.allocPD()
	mem := u.alloc(2 * pageSize)
	end := userBase + uint64(len(u.arena.mem))
	for _, tt := range []struct {
		name                string
		start, length, iova uint64
		pd, access          uint32
		errno               syscall.Errno
	}{
		{"length 0", mem, 0, mem, pdh, 0, syscall.EINVAL},
		{"page offsets differ", mem, 4096, mem + 8, pdh, 0, syscall.EINVAL},
		{"remote write without local write", mem, 4096, mem, pdh, accessRemoteWrite, syscall.EINVAL},
		{"remote atomic without local write", mem, 4096, mem, pdh, accessRemoteAtomic, syscall.EINVAL},
		{"unknown access", mem, 4096, mem, pdh, 1 << 9, syscall.EINVAL},
		{"on demand, remote write without local write", mem, 4096, mem, pdh, accessRemoteWrite | accessOnDemand, syscall.EINVAL},
		{"on demand, wraps around", ^uint64(0) - 4095, 8192, ^uint64(0) - 4095, pdh, accessOnDemand, syscall.EINVAL},
		{"zero based", mem, 4096, mem, pdh, accessZeroBased, syscall.EOPNOTSUPP},
		{"unmapped", 0x7000, 4096, 0x7000, pdh, 0, syscall.EFAULT},
		{"runs beyond the mapping", end - 4096, 4097, end - 4096, pdh, 0, syscall.EFAULT},
		{"wraps around", ^uint64(0) - 4095, 8192, ^uint64(0) - 4095, pdh, 0, syscall.EINVAL},
		{"all memory", mem, ^uint64(0), mem, pdh, 0, syscall.EINVAL},
		{"ends in the last page", ^uint64(0) - 8191, 4097, ^uint64(0) - 8191, pdh, 0, syscall.EINVAL},
		{"iova wraps around", mem, 8192, ^uint64(0) - 4095, pdh, 0, syscall.EINVAL},
		{"no such PD", mem, 4096, mem, 77, 0, syscall.ENOENT},
	} {
		core := u.in(attrCoreIn, regMRCore(tt.start, tt.length, tt.iova, tt.pd, tt.access))
		if err := u.f.Ioctl(writeCommand(9, core, u.out(attrCoreOut, 12))); err != tt.errno {
			t.Errorf("%s: %v, want %v", tt.name, err, tt.errno)
		}
	}
	if len(u.d.mrs) != 0 {
		t.Fatalf("%d MRs are left", len(u.d.mrs))
	}
	keys := map[uint32]bool{}
	for _, access := range []uint32{0, accessRemoteRead, accessLocalWrite | accessRemoteWrite | accessRemoteAtomic, accessMWBind,
		accessHugeTLB, accessRelaxedOrdering} {
		core := u.out(attrCoreOut, 12)
		u.must(writeCommand(9, u.in(attrCoreIn, regMRCore(mem+8, 100, 0x5000008, pdh, access)), core))
		got := u.at(core.data, 12)
		h, lkey, rkey := le.Uint32(got), le.Uint32(got[4:]), le.Uint32(got[8:])
		m := u.d.mrs[lkey]
		if lkey != rkey || keys[lkey] || m == nil || m.iova != 0x5000008 || m.start != mem+8 || m.length != 100 || m.access != access {
			t.Errorf("access %#x: lkey %#x, rkey %#x, %+v", access, lkey, rkey, m)
		}
		keys[lkey] = true
		q := [4]tattr{u.out(attrQueryMRLKey, 4), u.out(attrQueryMRRKey, 4), u.out(attrQueryMRLength, 8), u.out(attrQueryMRIOVA, 8)}
		u.must(command(objMR, 3, obj(0, h), q[0], q[1], q[2], q[3]))
		if le.Uint32(u.at(q[0].data, 4)) != lkey || le.Uint64(u.at(q[2].data, 8)) != 100 || le.Uint64(u.at(q[3].data, 8)) != 0x5000008 {
			t.Error("QUERY_MR disagrees")
		}
		u.must(destroyCmd(u, objMR, h))
		if u.d.mrs[lkey] != nil {
			t.Error("a destroyed MR's key still works")
		}
	}
}

func TestCreateCQChecksWhatTheDriverChecks(t *testing.T) {
	u := newUser(t)
	u.getContext()
	_, index := u.allocUAR()
	buf, db := u.alloc(64<<10), u.alloc(64)
	end := userBase + uint64(len(u.arena.mem))
	good := func() []byte { return cqUHW(buf, db, 64, cqUHWFlagUAR, index) }
	edit := func(f func(b []byte)) []byte { b := good(); f(b); return b }
	ch := u.compChannel()
	async := uint32(dataWord(u.must(command(objAsync, 0, newID(attrAsyncFD))), 0))
	flags := func(v uint32) tattr { return in32(attrCQFlags, v) }
	for _, tt := range []struct {
		name  string
		cqe   uint32
		uhw   []byte
		more  []tattr
		errno syscall.Errno
	}{
		{"cqe 0", 0, good(), nil, syscall.EINVAL},
		{"cqe beyond the limit", maxCQESlots, good(), nil, syscall.EINVAL},
		{"cqe -1", ^uint32(0), good(), nil, syscall.EINVAL},
		{"buffer too small", 1 << 20, good(), nil, syscall.EFAULT},
		{"buffer not aligned", 15, edit(func(b []byte) { b[0] += 8 }), nil, syscall.EINVAL},
		{"buffer unmapped", 15, cqUHW(64, db, 64, cqUHWFlagUAR, index), nil, syscall.EFAULT},
		{"doorbell record not aligned", 15, edit(func(b []byte) { b[8] += 4 }), nil, syscall.EINVAL},
		{"doorbell record unmapped", 15, cqUHW(buf, end, 64, cqUHWFlagUAR, index), nil, syscall.EFAULT},
		{"CQE size 32", 15, cqUHW(buf, db, 32, cqUHWFlagUAR, index), nil, syscall.EINVAL},
		{"reserved1", 15, edit(func(b []byte) { b[28] = 1 }), nil, syscall.EINVAL},
		{"unknown flag", 15, cqUHW(buf, db, 64, 1<<5|cqUHWFlagUAR, index), nil, syscall.EINVAL},
		{"padding", 15, cqUHW(buf, db, 128, cqUHWFlagPad128|cqUHWFlagUAR, index), nil, syscall.EOPNOTSUPP},
		{"compression", 15, edit(func(b []byte) { b[20] = 1 }), nil, syscall.EOPNOTSUPP},
		{"no such UAR", 15, cqUHW(buf, db, 64, cqUHWFlagUAR, index+1), nil, syscall.EINVAL},
		{"no UAR flag with dynamic UARs", 15, cqUHW(buf, db, 64, 0, index), nil, syscall.EINVAL},
		{"no driver half", 15, good()[:20], nil, syscall.EINVAL},
		{"unknown CQ flag", 15, good(), []tattr{flags(4)}, syscall.EINVAL},
		{"channel that is none", 15, good(), []tattr{obj(attrCQChannel, 3)}, syscall.EBADF},
		{"async file as channel", 15, good(), []tattr{obj(attrCQChannel, async)}, syscall.EBADF},
		{"channel as async file", 15, good(), []tattr{obj(attrCQEventFD, ch)}, syscall.EBADF},
	} {
		if err := u.f.Ioctl(u.createCQCmd(tt.cqe, tt.uhw, tt.more...)); err != tt.errno {
			t.Errorf("%s: %v, want %v", tt.name, err, tt.errno)
		}
	}
	vector := u.createCQCmd(15, good())
	le.PutUint64(vector[hdrBytes+4*attrBytes+8:], numCompVectors)
	u.want(syscall.EINVAL, vector)
	if len(u.d.cqs) != 0 {
		t.Fatalf("%d CQs are left", len(u.d.cqs))
	}
	for _, tt := range []struct {
		cqe, size uint32
		cqeSize   int
	}{{1, 2, 64}, {2, 4, 64}, {3, 4, 64}, {4, 8, 128}, {255, 256, 128}, {256, 512, 64}} {
		cmd := u.must(u.createCQCmd(tt.cqe, cqUHW(buf, db, uint32(tt.cqeSize), cqUHWFlagUAR, index), obj(attrCQChannel, ch), obj(attrCQEventFD, async)))
		c := u.f.handles[uint32(dataWord(cmd, 0))].(*cq)
		if resp := le.Uint32(u.at(dataWord(cmd, 1), 4)); resp != tt.size-1 || c.size != tt.size || c.cqeSize != tt.cqeSize || u.d.cqs[c.cqn] != c {
			t.Errorf("asked %d: got %d, %+v", tt.cqe, resp, c)
		}
	}
}

func (u *user) compChannel() uint32 {
	u.t.Helper()
	core := u.out(attrCoreOut, 4)
	u.must(writeCommand(17, u.in(attrCoreIn, make([]byte, 8)), core))
	return le.Uint32(u.at(core.data, 4))
}

func TestCreateQPChecksWhatTheDriverChecks(t *testing.T) {
	u := newUser(t)
	u.getContext()
	_, index := u.allocUAR()
	pdh := u.allocPD()
	cqh := u.createCQ(index)
	buf, db := u.alloc(64<<10), u.alloc(64)
	good := func() []byte { return qpUHW(buf, db, 16, 8, 4, 0, index) }
	uhw32 := func(off int, v uint32) []byte { b := good(); le.PutUint32(b[off:], v); return b }
	caps := qpCaps(8, 8, 1, 1, 0)
	before := u.snapshot()
	for _, tt := range []struct {
		name  string
		caps  []byte
		uhw   []byte
		more  []tattr
		errno syscall.Errno
	}{
		{"sq not a power of two", caps, uhw32(16, 15), nil, syscall.EINVAL},
		{"sq too long", caps, uhw32(16, 1<<16), nil, syscall.EINVAL},
		{"rq not a power of two", caps, uhw32(20, 7), nil, syscall.EINVAL},
		{"rq too long", caps, uhw32(20, 1<<16), nil, syscall.EINVAL},
		{"rq missing", caps, uhw32(20, 0), nil, syscall.EINVAL},
		{"rq without receives", qpCaps(8, 0, 1, 0, 0), good(), nil, syscall.EINVAL},
		{"rq stride below a segment", caps, uhw32(24, 3), nil, syscall.EINVAL},
		{"rq stride beyond the limit", caps, uhw32(24, 10), nil, syscall.EINVAL},
		{"rq shift that overflows", caps, uhw32(24, 64), nil, syscall.EINVAL},
		{"unknown flag", caps, uhw32(28, 0x402|1<<20), nil, syscall.EINVAL},
		{"signatures", caps, uhw32(28, 0x403), nil, syscall.EINVAL},
		{"no UAR flag with dynamic UARs", caps, uhw32(28, 2), nil, syscall.EINVAL},
		{"uidx of more than 24 bits", caps, uhw32(32, 1<<24), nil, syscall.EINVAL},
		{"no such UAR", caps, uhw32(36, index+9), nil, syscall.EINVAL},
		{"buffer not aligned", caps, qpUHW(buf+16, db, 16, 8, 4, 0, index), nil, syscall.EINVAL},
		{"buffer unmapped", caps, qpUHW(1<<40, db, 16, 8, 4, 0, index), nil, syscall.EFAULT},
		{"doorbell record unmapped", caps, qpUHW(buf, 1<<40, 16, 8, 4, 0, index), nil, syscall.EFAULT},
		{"doorbell record not aligned", caps, qpUHW(buf, db+4, 16, 8, 4, 0, index), nil, syscall.EINVAL},
		{"too many sends", qpCaps(1<<16, 8, 1, 1, 0), good(), nil, syscall.EINVAL},
		{"too many receives", qpCaps(8, 1<<16, 1, 1, 0), good(), nil, syscall.EINVAL},
		{"short driver half", caps, good()[:28], nil, syscall.EINVAL},
		{"driver half without uidx", caps, good()[:32], nil, syscall.EINVAL},
		{"longer driver half, not zero", caps, append(good(), 1), nil, syscall.EINVAL},
		{"unknown create flag", caps, good(), []tattr{in32(attrQPFlags, 4)}, syscall.EINVAL},
		{"source QPN", caps, good(), []tattr{in32(attrQPSource, 5)}, syscall.EINVAL},
		{"on an SRQ that is none", caps, good(), []tattr{obj(attrQPSRQ, 99)}, syscall.ENOENT},
		{"on an SRQ that is a PD", caps, good(), []tattr{obj(attrQPSRQ, pdh)}, syscall.EINVAL},
		{"event file that is none", caps, good(), []tattr{obj(attrQPEventFD, 3)}, syscall.EBADF},
	} {
		if err := u.f.Ioctl(u.createQPCmd(qpRC, pdh, cqh, tt.caps, tt.uhw, tt.more...)); err != tt.errno {
			t.Errorf("%s: %v, want %v", tt.name, err, tt.errno)
		}
	}
	for typ, errno := range map[uint8]syscall.Errno{qpRawPacket: syscall.EOPNOTSUPP, qpXRCIni: syscall.EOPNOTSUPP,
		qpXRCTgt: syscall.EOPNOTSUPP, qpDriver: syscall.EOPNOTSUPP, 1: syscall.EINVAL, 77: syscall.EINVAL} {
		u.want(errno, u.createQPCmd(typ, pdh, cqh, caps, good()))
	}
	u.want(syscall.ENOENT, u.createQPCmd(qpUD, 77, cqh, caps, good()))
	u.want(syscall.EINVAL, u.createQPCmd(qpUD, cqh, cqh, caps, good()))
	u.want(syscall.EINVAL, u.createQPCmd(qpUD, pdh, pdh, caps, good()))
	if after := u.snapshot(); after != before {
		t.Fatalf("refused QPs left %v, was %v", after, before)
	}

	cmd := u.must(u.createQPCmd(qpRC, pdh, cqh, caps, append(qpUHW(buf, db, 16, 8, 5, 0xabcdef, index), 0, 0), in32(attrQPFlags, qpCreateSigAll)))
	q := u.f.handles[uint32(dataWord(cmd, 0))].(*qp)
	want := fmt.Sprint(wq{buf: buf, size: 8, stride: 32}, wq{buf: buf + 8*32, size: 16, stride: 64})
	if got := fmt.Sprint(q.rq, q.sq); got != want || q.uidx != 0xabcdef || !q.sigAll || q.dbrec != db || u.d.qps[q.qpn] != q || q.attr.state != stateReset {
		t.Errorf("QP is %s, %+v; want %s", got, q, want)
	}
	u.must(u.createQPCmd(qpUD, pdh, cqh, qpCaps(8, 0, 1, 0, 0), qpUHW(buf, db, 16, 0, 0, 1, index)))
}

// TestStaticUARsAreSharedAsTheKernelShares checks the choice of BlueFlame
// registers where the library does not know UAR objects.
func TestStaticUARsAreSharedAsTheKernelShares(t *testing.T) {
	u := newUser(t)
	u.must(command(objDevice, 3, u.in(attrUHWIn, uctxReq(6, 2, 0, 1, 0)), u.out(attrUHWOut, 72)))
	u.want(syscall.EOPNOTSUPP, command(objUAR, 0x1000, newID(attrUARHandle), in64(attrUARType, 0), u.out(attrUAROffset, 8),
		u.out(attrUARLength, 4), u.out(attrUARPageID, 4)))
	pdh := u.allocPD()
	cqh := uint32(dataWord(u.must(u.createCQCmd(15, cqUHW(u.alloc(16*64), u.alloc(8), 64, 0, 0))), 0))
	// Registers 4 and 5 are for one QP each; then 1, 2 and 3 in turn. In user
	// space's count a page has four registers, of which two are used.
	var handles []uint32
	for i, want := range []uint32{8, 9, 1, 4, 5, 1} {
		uhw := qpUHW(u.alloc(16*64+8*16), u.alloc(8), 16, 8, 4, uint32(i), 0)
		le.PutUint32(uhw[28:], qpFlagScatterCQE)
		cmd := u.must(u.createQPCmd(qpUD, pdh, cqh, qpCaps(8, 8, 1, 1, 0), uhw))
		if got := le.Uint32(u.at(dataWord(cmd, 10), 4)); got != want {
			t.Errorf("QP %d got register %d, want %d", i, got, want)
		}
		handles = append(handles, uint32(dataWord(cmd, 0)))
	}
	u.must(destroyCmd(u, objQP, handles[1]))
	uhw := qpUHW(u.alloc(16*64+8*16), u.alloc(8), 16, 8, 4, 0, 0)
	le.PutUint32(uhw[28:], 0)
	cmd := u.must(u.createQPCmd(qpUD, pdh, cqh, qpCaps(8, 8, 1, 1, 0), uhw))
	if got := le.Uint32(u.at(dataWord(cmd, 10), 4)); got != 9 {
		t.Errorf("got register %d, want the free low-latency 9", got)
	}
}

func TestCreateAHAnswersTheMAC(t *testing.T) {
	u := newUser(t)
	u.getContext()
	pdh := u.allocPD()
	for _, tt := range []struct {
		name  string
		core  []byte
		uhw   int
		errno syscall.Errno
		mac   string
	}{
		{"golden", ahCore(pdh, "10.0.0.2", 3), 16, 0, "025a0a000002"},
		{"short driver half", ahCore(pdh, "10.0.0.2", 3), 12, 0, "025a0a000002"},
		{"no driver half", ahCore(pdh, "10.0.0.2", 3), 0, 0, ""},
		{"driver half without room for a MAC", ahCore(pdh, "10.0.0.2", 3), 8, syscall.EINVAL, ""},
		{"itself", ahCore(pdh, "10.0.0.1", 3), 16, 0, "025a0a000001"},
		{"RoCE v1 within the fabric", ahCore(pdh, "10.0.0.2", 2), 16, 0, "025a0a000002"},
		{"link-local", ahCore(pdh, "fe80::5a:aff:fe00:2", 1), 16, 0, "025a0a000002"},
		{"nobody", ahCore(pdh, "10.0.0.9", 3), 16, syscall.ETIMEDOUT, ""},
		{"v6 from v4", ahCore(pdh, "2001:db8::1", 3), 16, syscall.EINVAL, ""},
		{"v4 from link-local", ahCore(pdh, "10.0.0.2", 1), 16, syscall.EINVAL, ""},
		{"empty sgid", ahCore(pdh, "10.0.0.2", 9), 16, syscall.ENODATA, ""},
		{"no PD", ahCore(99, "10.0.0.2", 3), 16, syscall.ENOENT, ""},
	} {
		attrs := []tattr{u.in(attrCoreIn, tt.core), u.out(attrCoreOut, 4)}
		if tt.uhw > 0 {
			attrs = append(attrs, u.out(attrUHWOut, tt.uhw))
		}
		err := u.f.Ioctl(writeCommand(5, attrs...))
		if tt.errno != 0 {
			if err != tt.errno {
				t.Errorf("%s: %v, want %v", tt.name, err, tt.errno)
			}
			continue
		}
		if err != nil {
			t.Errorf("%s: %v", tt.name, err)
			continue
		}
		if tt.uhw > 0 {
			got := u.at(attrs[2].data, tt.uhw)
			if n, mac := le.Uint32(got), fmt.Sprintf("%x", got[4:10]); int(n) != tt.uhw || mac != tt.mac {
				t.Errorf("%s: length %d, MAC %s", tt.name, n, mac)
			}
		}
	}
}

func TestUARMappingOutlivesItsObjectUntilMunmap(t *testing.T) {
	u := newUser(t)
	u.getContext()
	h, _ := u.allocUAR()
	mem, err := u.f.Mmap(0x900000, pageSize, 2)
	if err != nil {
		t.Fatal(err)
	}
	again, err := u.f.Mmap(0x900000, pageSize, 3)
	if err != nil || &again[0] != &mem[0] {
		t.Fatalf("second mapping: %v", err)
	}
	for _, bad := range []int64{0x901000, 0x900001, -4096, 0, 0x500000, 0x700000, 1 << 60} {
		if _, err := u.f.Mmap(bad, pageSize, 2); err != syscall.EINVAL {
			t.Errorf("mmap %#x: %v", bad, err)
		}
	}
	for _, length := range []int{0, -1, 8, 2 * pageSize} {
		if _, err := u.f.Mmap(0x900000, length, 2); err != syscall.EINVAL {
			t.Errorf("mmap of %d bytes: %v", length, err)
		}
	}
	u.must(destroyCmd(u, objUAR, h))
	if _, err := u.f.Mmap(0x900000, pageSize, 2); err != syscall.EINVAL {
		t.Errorf("mmap of a destroyed UAR: %v", err)
	}
	mem[0x800] = 1 // still memory
	if err := u.f.Munmap(mem); err != nil {
		t.Fatal(err)
	}
	if err := u.f.Close(); err != nil {
		t.Fatal(err)
	}
	mem[0x800] = 2
	if err := u.f.Munmap(mem); err != nil {
		t.Fatal(err)
	}
	if len(u.f.uars) != 0 {
		t.Errorf("%d UARs are left", len(u.f.uars))
	}
	if err := u.f.Munmap(mem); err != syscall.EINVAL {
		t.Errorf("third Munmap: %v", err)
	}
}

func TestUARSlotsAreReused(t *testing.T) {
	u := newUser(t)
	u.getContext()
	var mapped []byte
	for i := range maxUARs + 10 {
		u.top = userBase
		h, _ := u.allocUAR()
		if i == 3 {
			var err error
			if mapped, err = u.f.Mmap(0x900000, pageSize, 2); err != nil {
				t.Fatal(err)
			}
		}
		u.must(destroyCmd(u, objUAR, h))
	}
	offset := u.out(attrUAROffset, 8)
	u.must(command(objUAR, 0x1000, newID(attrUARHandle), in64(attrUARType, uarTypeNC), offset, u.out(attrUARLength, 4), u.out(attrUARPageID, 4)))
	if got := le.Uint64(u.at(offset.data, 8)); got != 0x901000 {
		t.Errorf("offset %#x, want the slot behind the one that is still mapped", got)
	}
	if err := u.f.Munmap(mapped); err != nil {
		t.Fatal(err)
	}
	f := &file{dynUAR: true}
	if got := f.slotOffset(0x123); got != (1<<16|9<<8|0x23)*pageSize {
		t.Errorf("slot 0x123 has offset %#x", got)
	}
}

// TestWriteStyleCommandsAgreeWithMethods runs the write-style forms of what
// also has a method or an extended command.
func TestWriteStyleCommandsAgreeWithMethods(t *testing.T) {
	u := newUser(t)
	u.getContext()
	pdh := u.allocPD()
	mrh := u.regMR(pdh, u.alloc(pageSize), pageSize, accessLocalWrite)
	ahh := u.createAH(pdh)
	h := func(v uint32) tattr { return in32(attrCoreIn, v) }
	long := func(v uint32) tattr { return u.in(attrCoreIn, append(qpCaps(v), make([]byte, 12)...)) }
	u.want(syscall.EBUSY, writeCommand(4, h(pdh)))
	u.want(syscall.EINVAL, writeCommand(4, h(mrh))) // an MR is no PD
	u.must(writeCommand(13, long(mrh)))             // by pointer
	u.want(syscall.ENOENT, writeCommand(13, h(mrh)))
	u.must(writeCommand(8, h(ahh)))
	u.must(writeCommand(4, h(pdh)))
	u.want(syscall.ENOENT, writeCommand(4, h(pdh)))
	u.want(syscall.ENOSPC, writeCommand(4))

	old, ex := u.out(attrCoreOut, 176), u.out(attrCoreOut, 304)
	u.must(writeCommand(1, u.in(attrCoreIn, make([]byte, 8)), old))
	u.must(writeCommand(1|cmdExtended, u.in(attrCoreIn, make([]byte, 8)), ex))
	if a, b := u.at(old.data, 176), u.at(ex.data, 176); string(a) != string(b) {
		t.Errorf("QUERY_DEVICE % x, extended % x", a, b)
	}
	req := make([]byte, 16)
	req[8] = 1
	port, portEx := u.out(attrCoreOut, 40), u.out(attrPortResp, 48)
	u.must(writeCommand(2, u.in(attrCoreIn, req), port))
	u.must(command(objDevice, 2, in64(attrPortNum, 1), portEx))
	if a, b := u.at(port.data, 40), u.at(portEx.data, 40); string(a) != string(b) {
		t.Errorf("QUERY_PORT % x, method % x", a, b)
	}
	req[8] = 2
	u.want(syscall.EINVAL, writeCommand(2, u.in(attrCoreIn, req), port))
}
