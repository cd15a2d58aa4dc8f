package mlx5sim

import (
	"encoding/hex"
	"errors"
	"net/netip"
	"slices"
	"syscall"
	"testing"
)

// user is a user-space program of the tests: one open file whose memory is an
// arena, and raw commands.
type user struct {
	t     testing.TB
	d     *Device
	f     *file
	arena *arenaDMA
	top   uint64 // next free arena address
}

const userBase = 0x10000000

// newUser opens a fresh device at 10.0.0.1, with another at 10.0.0.2 in its
// fabric.
func newUser(t testing.TB) *user {
	t.Helper()
	fab := NewFabric()
	d := testDevice(t, fab, "10.0.0.1")
	testDevice(t, fab, "10.0.0.2")
	return openUser(t, d, 1<<20)
}

func testDevice(t testing.TB, fab *Fabric, addr string) *Device {
	t.Helper()
	d, err := New(InProcess(), WithFabric(fab), WithAddr(netip.MustParseAddr(addr)))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.Close() })
	return d
}

func openUser(t testing.TB, d *Device, bytes int) *user {
	t.Helper()
	kf, err := d.Open()
	if err != nil {
		t.Fatal(err)
	}
	u := &user{t: t, d: d, f: kf.(*file), arena: &arenaDMA{base: userBase, mem: make([]byte, bytes)}, top: userBase}
	u.f.dma, u.f.watched = u.arena, false // nobody but the test may look at its memory
	t.Cleanup(func() { u.f.Close() })
	return u
}

// alloc returns n zeroed bytes at a page boundary of the arena.
func (u *user) alloc(n int) uint64 {
	u.t.Helper()
	a := (u.top + pageSize - 1) &^ (pageSize - 1)
	if u.arena.at(a, uint64(n)) == nil {
		u.t.Fatal("arena is full")
	}
	u.top = a + uint64(n)
	return a
}

// small returns n bytes of the arena at an 8-byte boundary.
func (u *user) small(p []byte) uint64 {
	u.t.Helper()
	a := (u.top + 7) &^ 7
	m := u.arena.at(a, uint64(len(p)))
	if m == nil {
		u.t.Fatal("arena is full")
	}
	copy(m, p)
	u.top = a + uint64(len(p))
	return a
}

// at is the arena's memory.
func (u *user) at(addr uint64, n int) []byte { return u.arena.at(addr, uint64(n)) }

// tattr is one attribute of a raw command.
type tattr struct {
	id, len, flags, reserved uint16
	data                     uint64
}

func (u *user) in(id uint16, p []byte) tattr {
	a := tattr{id: id, len: uint16(len(p)), flags: attrMandatory}
	if len(p) <= 8 {
		var w [8]byte
		copy(w[:], p)
		a.data = le.Uint64(w[:])
		return a
	}
	a.data = u.small(p)
	return a
}

// out adds an output buffer full of ee.
func (u *user) out(id uint16, n int) tattr {
	return tattr{id: id, len: uint16(n), flags: attrMandatory, data: u.small(slices.Repeat([]byte{0xee}, n))}
}

func in32(id uint16, v uint32) tattr {
	return tattr{id: id, len: 4, flags: attrMandatory, data: uint64(v)}
}
func in64(id uint16, v uint64) tattr { return tattr{id: id, len: 8, flags: attrMandatory, data: v} }
func obj(id uint16, h uint32) tattr  { return tattr{id: id, flags: attrMandatory, data: uint64(h)} }
func newID(id uint16) tattr          { return tattr{id: id, flags: attrMandatory} }

func command(object, method uint16, attrs ...tattr) []byte {
	w := make(writer, 0, 256)
	w.u16(uint16(hdrBytes+len(attrs)*attrBytes), object, method, uint16(len(attrs)))
	w.u64(0)
	w.u32(driverMLX5, 0)
	for _, a := range attrs {
		w.u16(a.id, a.len, a.flags, a.reserved)
		w.u64(a.data)
	}
	return w
}

func writeCommand(cmd uint32, attrs ...tattr) []byte {
	return command(objDevice, 0, append([]tattr{in64(attrWriteCmd, uint64(cmd))}, attrs...)...)
}

// word returns the data word of attribute i of a command that ran.
func dataWord(cmd []byte, i int) uint64 { return le.Uint64(cmd[hdrBytes+i*attrBytes+8:]) }

func (u *user) must(cmd []byte) []byte {
	u.t.Helper()
	if err := u.f.Ioctl(cmd); err != nil {
		u.t.Fatalf("%s: %v", hex.EncodeToString(cmd[:hdrBytes]), err)
	}
	return cmd
}

func (u *user) want(errno syscall.Errno, cmd []byte) {
	u.t.Helper()
	if err := u.f.Ioctl(cmd); !errors.Is(err, errno) {
		u.t.Errorf("object %#x method %#x: got %v, want %v", le.Uint16(cmd[2:]), le.Uint16(cmd[4:]), err, errno)
	}
}

func uctxReq(total, low, flags uint32, version uint8, caps uint64) []byte {
	w := make(writer, 0, 32)
	w.u32(total, low, flags, 0)
	w.u8(version, 0, 0, 0)
	w.u32(0)
	w.u64(caps)
	return w
}

func (u *user) getContext() {
	u.t.Helper()
	u.must(command(objDevice, 3, u.in(attrUHWIn, uctxReq(16, 4, 0, 1, 3)), u.out(attrUHWOut, 72)))
}

func (u *user) allocPD() uint32 {
	u.t.Helper()
	core := u.out(attrCoreOut, 4)
	u.must(writeCommand(3, u.in(attrCoreIn, make([]byte, 8)), core, u.out(attrUHWOut, 4)))
	return le.Uint32(u.at(core.data, 4))
}

func regMRCore(start, length, iova uint64, pd, access uint32) []byte {
	w := make(writer, 0, 40)
	w.u64(0, start, length, iova)
	w.u32(pd, access)
	return w
}

func (u *user) regMR(pd uint32, start, length uint64, access uint32) uint32 {
	u.t.Helper()
	core := u.out(attrCoreOut, 12)
	u.must(writeCommand(9, u.in(attrCoreIn, regMRCore(start, length, start, pd, access)), core))
	return le.Uint32(u.at(core.data, 4))
}

// allocUAR returns the handle and the page index.
func (u *user) allocUAR() (h, index uint32) {
	u.t.Helper()
	page := u.out(attrUARPageID, 4)
	cmd := u.must(command(objUAR, 0x1000, newID(attrUARHandle), in64(attrUARType, 0), u.out(attrUAROffset, 8), u.out(attrUARLength, 4), page))
	return uint32(dataWord(cmd, 0)), le.Uint32(u.at(page.data, 4))
}

// cqUHW is struct mlx5_ib_create_cq.
func cqUHW(buf, db uint64, cqeSize uint32, flags uint16, uar uint32) []byte {
	w := make(writer, 0, 32)
	w.u64(buf, db)
	w.u32(cqeSize)
	w.u8(0, 0)
	w.u16(flags)
	w.u32(uar, 0)
	return w
}

func (u *user) createCQCmd(cqe uint32, uhw []byte, more ...tattr) []byte {
	return command(objCQ, 0, append([]tattr{newID(attrCQHandle), u.out(attrCQRespCQE, 4), in32(attrCQCQE, cqe), in64(attrCQUser, 0xc0),
		in32(attrCQVector, 0), u.in(attrUHWIn, uhw), u.out(attrUHWOut, 8)}, more...)...)
}

func (u *user) createCQ(uar uint32, more ...tattr) uint32 {
	u.t.Helper()
	cmd := u.must(u.createCQCmd(15, cqUHW(u.alloc(16*64), u.alloc(8), 64, cqUHWFlagUAR, uar), more...))
	return uint32(dataWord(cmd, 0))
}

// qpUHW is struct mlx5_ib_create_qp with flags 0x402.
func qpUHW(buf, db uint64, sq, rq, shift, uidx, uar uint32) []byte {
	w := make(writer, 0, 56)
	w.u64(buf, db)
	w.u32(sq, rq, shift, 0x402, uidx, uar)
	w.u64(0, 0)
	return w
}

func qpCaps(v ...uint32) []byte {
	w := make(writer, 0, 20)
	w.u32(v...)
	return w
}

func (u *user) createQPCmd(typ uint8, pd, cq uint32, caps, uhw []byte, more ...tattr) []byte {
	return command(objQP, 0, append([]tattr{newID(attrQPHandle), obj(attrQPPD, pd), obj(attrQPSendCQ, cq), obj(attrQPRecvCQ, cq),
		in64(attrQPType, uint64(typ)), in64(attrQPUser, 0x9b), u.in(attrQPCap, caps), u.out(attrQPRespCap, 20), u.out(attrQPRespQPN, 4),
		u.in(attrUHWIn, uhw), u.out(attrUHWOut, 40)}, more...)...)
}

func (u *user) createQP(typ uint8, pd, cq, uar uint32) uint32 {
	u.t.Helper()
	cmd := u.must(u.createQPCmd(typ, pd, cq, qpCaps(8, 8, 1, 1, 0), qpUHW(u.alloc(8*16+16*64), u.alloc(8), 16, 8, 4, 7, uar)))
	return uint32(dataWord(cmd, 0))
}

func destroyCmd(u *user, object uint16, h uint32) []byte {
	switch object {
	case objCQ:
		return command(objCQ, 1, u.out(1, 8), obj(0, h))
	case objQP:
		return command(objQP, 1, u.out(1, 4), obj(0, h))
	case objSRQ:
		return command(objSRQ, 1, u.out(1, 4), obj(0, h))
	case objMR:
		return command(objMR, 1, obj(0, h))
	case objUAR:
		return command(objUAR, 0x1001, obj(attrUARHandle, h))
	}
	return command(object, 0, obj(0, h))
}

// modify builds MODIFY_QP with values that are right for every attribute, so
// that the mask alone decides; edit may spoil one.
func (u *user) modify(h, mask uint32, state uint8, edit func(core []byte)) []byte {
	b := make([]byte, 112)
	dgid := netip.MustParseAddr("10.0.0.2").As16()
	copy(b, dgid[:])
	b[24], b[25], b[30], b[31] = 3, 64, 1, 1
	le.PutUint32(b[64:], h)
	le.PutUint32(b[68:], mask)
	le.PutUint32(b[72:], 0x11111111)
	le.PutUint32(b[84:], 0x1a4)
	le.PutUint32(b[88:], accessRemoteRead)
	b[96], b[98] = state, 3
	b[101], b[102], b[103], b[104], b[105], b[106], b[107] = 16, 16, 12, 1, 14, 7, 7
	if edit != nil {
		edit(b)
	}
	return writeCommand(26, u.in(attrCoreIn, b))
}

func gidOf(addr string) [16]byte { return netip.MustParseAddr(addr).As16() }
