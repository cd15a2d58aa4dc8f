package mlx5sim

import (
	"errors"
	"net/netip"
	"slices"
	"syscall"
	"testing"

	"github.com/rrppcc-go/rrppcc/internal/roce"
)

// holedDMA is an arena of which parts may go, and whose accesses are counted.
type holedDMA struct {
	arenaDMA
	holes    [][2]uint64 // address, length
	readOnly [][2]uint64
	reads    int
	writes   int
	ended    bool // the process
}

func (h *holedDMA) Gone() bool { return h.ended }

func overlap(rs [][2]uint64, addr, n uint64) bool {
	return slices.ContainsFunc(rs, func(r [2]uint64) bool { return addr < r[0]+r[1] && r[0] < addr+n })
}

func (h *holedDMA) Read(addr uint64, p []byte) error {
	h.reads++
	if overlap(h.holes, addr, uint64(len(p))) {
		return syscall.EFAULT
	}
	return h.arenaDMA.Read(addr, p)
}

func (h *holedDMA) Write(addr uint64, p []byte) error {
	h.writes++
	if overlap(h.holes, addr, uint64(len(p))) || overlap(h.readOnly, addr, uint64(len(p))) {
		return syscall.EFAULT
	}
	return h.arenaDMA.Write(addr, p)
}

func (h *holedDMA) View(uint64, int) []byte { return nil }

func (h *holedDMA) Mapped(addr, n uint64) bool {
	return !overlap(h.holes, addr, n) && h.arenaDMA.Mapped(addr, n)
}

func (h *holedDMA) Writable(addr, n uint64) bool { return !overlap(h.readOnly, addr, n) }

func (h *holedDMA) punch(addr, n uint64) { h.holes = append(h.holes, [2]uint64{addr, n}) }

// guest is a program in another process: user's commands, by way of a Foreign.
type guest struct {
	*user
	fo    *Foreign
	mem   *holedDMA
	pages map[int64][]byte
	maps  int // of pages, by the device
	sinks map[int32]*testSink
	full  bool // no more events are made
}

func newGuest(t testing.TB) *guest {
	t.Helper()
	fab := NewFabric()
	return openGuest(t, testDevice(t, fab, "10.0.0.1"))
}

func openGuest(t testing.TB, d *Device) *guest { return openGuestOf(t, d, 4<<20) }

// openGuestOf opens d for a program with n bytes of memory.
func openGuestOf(t testing.TB, d *Device, n int) *guest {
	t.Helper()
	g := &guest{mem: &holedDMA{arenaDMA: arenaDMA{base: userBase, mem: make([]byte, n), noView: true}},
		pages: make(map[int64][]byte), sinks: make(map[int32]*testSink)}
	fo, err := d.OpenForeign(ForeignConfig{Memory: g.mem, MapUAR: g.mapUAR, UnmapUAR: g.unmapUAR, NewEvents: g.newEvents})
	if err != nil {
		t.Fatal(err)
	}
	g.fo = fo
	g.user = &user{t: t, d: d, f: fo.f, arena: &g.mem.arenaDMA, top: userBase}
	t.Cleanup(func() {
		fo.Close()
		if g.maps != 0 {
			t.Errorf("%d UAR pages stay mapped", g.maps)
		}
		for _, s := range g.sinks {
			if !s.closed {
				t.Errorf("event sink %d stays open", s.fd)
			}
		}
	})
	return g
}

func (g *guest) page(offset int64) []byte {
	if g.pages[offset] == nil {
		g.pages[offset] = make([]byte, pageSize)
	}
	return g.pages[offset]
}

func (g *guest) mapUAR(offset int64, length int) ([]byte, error) {
	g.maps++
	return g.page(offset)[:length], nil
}

func (g *guest) unmapUAR([]byte) { g.maps-- }

func (g *guest) newEvents(async bool) (EventSink, error) {
	if g.full {
		return nil, syscall.EMFILE
	}
	s := &testSink{fd: int32(100 + len(g.sinks)), room: 1 << 30, async: async}
	g.sinks[s.fd] = s
	return s, nil
}

// run issues a command as the supervisor does.
func (g *guest) run(cmd []byte) []byte {
	g.t.Helper()
	if err := g.fo.Ioctl(cmd); err != nil {
		g.t.Fatalf("object %#x method %#x: %v", le.Uint16(cmd[2:]), le.Uint16(cmd[4:]), err)
	}
	return cmd
}

func (g *guest) asyncEvents() *testSink {
	g.t.Helper()
	return g.sinks[int32(dataWord(g.run(command(objAsync, 0, newID(attrAsyncFD))), 0))]
}

func (g *guest) channel() *testSink {
	g.t.Helper()
	core := g.out(attrCoreOut, 4)
	g.run(writeCommand(17, g.in(attrCoreIn, make([]byte, 8)), core))
	return g.sinks[int32(le.Uint32(g.at(core.data, 4)))]
}

// testSink is an event file of the program.
type testSink struct {
	fd     int32
	async  bool
	room   int
	recs   [][]byte
	gone   error // answers Send
	closed bool
}

func (s *testSink) FD() int32 { return s.fd }

func (s *testSink) Send(rec []byte) error {
	switch {
	case s.gone != nil:
		return s.gone
	case len(s.recs) >= s.room:
		return syscall.EAGAIN
	}
	s.recs = append(s.recs, slices.Clone(rec))
	return nil
}

func (s *testSink) TakeBack(cookie uint64) int {
	n := len(s.recs)
	s.recs = slices.DeleteFunc(s.recs, func(rec []byte) bool { return le.Uint64(rec) == cookie })
	return n - len(s.recs)
}

func (s *testSink) Close() error {
	if s.closed {
		return errors.New("closed twice")
	}
	s.closed = true
	return nil
}

// cookies are what the unread records name.
func (s *testSink) cookies() (c []uint64) {
	for _, rec := range s.recs {
		c = append(c, le.Uint64(rec))
	}
	return c
}

// store rings a register of the page at offset, as the program's store does.
func (g *guest) store(offset int64, reg uint32, v uint64) {
	be.PutUint64(g.page(offset)[reg:], v)
}

// setUp opens a context with one UAR page, and a PD.
func (g *guest) setUp() (index, pd uint32) {
	g.t.Helper()
	g.getContext()
	_, index = g.allocUAR()
	return index, g.allocPD()
}

func (g *guest) offset(index uint32) int64 { return g.f.uarByIndex(index).offset }

// cq and qp create the objects by command.
func (g *guest) cq(index uint32, more ...tattr) *cq {
	g.t.Helper()
	c := g.f.handles[g.createCQ(index, more...)].(*cq)
	for i := range c.size {
		g.at(c.buf+uint64(i)*cqeBytes, cqeBytes)[cqeBytes-1] = 0xf0
	}
	return c
}

func (g *guest) qp(typ uint8, pd uint32, c *cq, index uint32) *qp {
	g.t.Helper()
	return g.f.handles[g.createQP(typ, pd, c.handle, index)].(*qp)
}

func (g *guest) mr(pd uint32, n int, access uint32) *mr {
	g.t.Helper()
	return g.f.handles[g.regMR(pd, g.alloc(n), uint64(n), access)].(*mr)
}

// node posts and polls in the guest's memory.
func (g *guest) node() *node {
	return &node{rig: &rig{t: g.t, fab: g.d.fab, arena: &g.mem.arenaDMA}, d: g.d, f: g.f}
}

// bell rings a doorbell of the page, which names qpn.
func (g *guest) bell(index uint32, reg uint32, qpn uint32) {
	g.store(g.offset(index), reg, 1<<32|uint64(qpn)<<8|1)
}

// ring rings q's doorbell and has it polled.
func (g *guest) ring(q *qp) {
	g.bell(q.uar.index, uarBlueFlame0, q.qpn)
	g.fo.Poll()
}

// arm writes an arm record, and the doorbell if it rings.
func (g *guest) arm(c *cq, sn uint32, ring bool) {
	word := sn<<28 | be.Uint32(g.at(c.dbrec, 4))&ciMask
	be.PutUint32(g.at(c.dbrec+dbArm, 4), word)
	if ring {
		g.store(c.uar.offset, uarArm, uint64(word)<<32|uint64(c.cqn))
	}
}

// join connects two RC QPs of any guests and brings them to RTS.
func join(a, b *qp) {
	for _, p := range [][2]*qp{{a, b}, {b, a}} {
		q, peer := p[0], p[1]
		q.attr = qpAttr{pathMTU: 3, timeout: 14, retryCnt: 2, rnrRetry: 3, maxRdAtomic: 4, maxDestRd: 4, minRNRTimer: 12,
			access: allAccess | accessRemoteAtomic, destQPN: peer.qpn, dest: addressVector{dgid: peer.file.dev.gids[3].gid, sgidIndex: 3, hopLimit: 64},
			state: q.attr.state}
		q.attr.sqPSN, q.attr.rqPSN = q.qpn*3, peer.qpn*3
		q.to(stateInit, stateRTR, stateRTS)
	}
}

// guestPair is two programs with connected QPs, and 8 KiB of memory each.
type guestPair struct {
	a, z     *guest
	na, nz   *node
	qa, qz   *qp
	ma, mz   *mr
	ia, iz   uint32 // UAR pages
	pda, pdz uint32
}

func newGuestPair(t testing.TB) *guestPair {
	t.Helper()
	fab := NewFabric()
	return guestPairOn(t, testDevice(t, fab, "10.0.0.1"), testDevice(t, fab, "10.0.0.2"), 4<<20)
}

// wiredGuestPair is a pair of two fabrics, whose packets take the time of the
// test.
func wiredGuestPair(t testing.TB) *guestPair {
	t.Helper()
	a, z := testDevice(t, NewFabric(), "10.0.0.1"), testDevice(t, NewFabric(), "10.0.0.2")
	a.link = &testLink{from: netip.AddrPortFrom(a.addr, roce.Port), to: z}
	z.link = &testLink{from: netip.AddrPortFrom(z.addr, roce.Port), to: a}
	return guestPairOn(t, a, z, 4<<20)
}

func guestPairOn(t testing.TB, a, z *Device, n int) *guestPair {
	t.Helper()
	p := &guestPair{a: openGuestOf(t, a, n), z: openGuestOf(t, z, n)}
	p.na, p.nz = p.a.node(), p.z.node()
	p.ia, p.pda = p.a.setUp()
	p.iz, p.pdz = p.z.setUp()
	const access = accessLocalWrite | accessRemoteWrite | accessRemoteRead | accessRemoteAtomic
	p.ma, p.mz = p.a.mr(p.pda, 8192, access), p.z.mr(p.pdz, 8192, access)
	p.qa = p.a.qp(qpRC, p.pda, p.a.cq(p.ia), p.ia)
	p.qz = p.z.qp(qpRC, p.pdz, p.z.cq(p.iz), p.iz)
	join(p.qa, p.qz)
	return p
}

func TestForeignNeedsItsWholeConfig(t *testing.T) {
	d := testDevice(t, NewFabric(), "10.0.0.1")
	for range 4 {
		if _, err := d.OpenForeign(ForeignConfig{Memory: &arenaDMA{}}); err == nil {
			t.Error("a config without functions was taken")
		}
	}
}

func TestForeignUARPages(t *testing.T) {
	for _, dynamic := range []bool{true, false} {
		g := newGuest(t)
		caps, want := uint64(3), 0
		if !dynamic {
			caps, want = 1, 8
		}
		if err := g.fo.CheckMmap(0, pageSize); err != syscall.EINVAL {
			t.Errorf("before GET_CONTEXT: %v", err)
		}
		g.run(command(objDevice, 3, g.in(attrUHWIn, uctxReq(16, 4, 0, 1, caps)), g.out(attrUHWOut, 72)))
		if g.maps != want {
			t.Errorf("dynamic %v: %d pages, want %d", dynamic, g.maps, want)
		}
		for i := range int64(want) {
			if err := g.fo.CheckMmap(i*pageSize, pageSize); err != nil {
				t.Errorf("static page %d: %v", i, err)
			}
		}
		// Contiguous pages, the write-combining and non-cached aliases, the clock
		// pages, and what is none.
		for _, offset := range []int64{0x100000, 0x101000, 0x200000, 0x300000, 0x500000, 0x700000, 8 * pageSize, -pageSize, 1, 1 << 62} {
			if err := g.fo.CheckMmap(offset, pageSize); err != syscall.EINVAL {
				t.Errorf("offset %#x: %v", offset, err)
			}
		}
		if !dynamic {
			continue
		}
		g.store(9<<8*pageSize, uarBlueFlame0, 1<<32|0x1a300) // of whoever had the page before
		h, index := g.allocUAR()
		if g.fo.Poll() {
			t.Error("a store from before the page was allocated was taken for a doorbell")
		}
		offset := g.offset(index)
		if g.maps != 1 || g.fo.CheckMmap(offset, pageSize) != nil || g.fo.CheckMmap(offset, 2*pageSize) != syscall.EINVAL {
			t.Errorf("%d pages, offset %#x", g.maps, offset)
		}
		g.must(destroyCmd(g.user, objUAR, h))
		if g.fo.CheckMmap(offset, pageSize) != syscall.EINVAL {
			t.Error("a destroyed page can be mapped")
		}
		g.store(offset, uarBlueFlame0, 1)
		if g.fo.Poll() || g.maps != 0 {
			t.Errorf("%d pages after the last was destroyed", g.maps)
		}
	}
}

// TestUARPagesThatCannotBeMapped fails the n-th mapping of a static context.
func TestUARPagesThatCannotBeMapped(t *testing.T) {
	for fail := range 8 {
		g := newGuest(t)
		real := g.fo.cfg.MapUAR
		g.fo.cfg.MapUAR = func(offset int64, length int) ([]byte, error) {
			if g.maps == fail {
				return nil, errors.New("no room")
			}
			return real(offset, length)
		}
		cmd := func() []byte {
			return command(objDevice, 3, g.in(attrUHWIn, uctxReq(16, 4, 0, 1, 1)), g.out(attrUHWOut, 72))
		}
		g.want(syscall.ENOMEM, cmd())
		g.fo.Poll()
		if g.maps != 0 || len(g.f.uars) != 0 || g.f.ready {
			t.Errorf("failed at %d: %d pages mapped, %d known", fail, g.maps, len(g.f.uars))
		}
		g.fo.cfg.MapUAR = real
		g.must(cmd()) // and again, when there is room
	}
}

// TestForeignEventsAreCountedByWhatWasRead destroys CQs and QPs with events
// that nobody read: the command answers how many the program has seen.
func TestForeignEventsAreCountedByWhatWasRead(t *testing.T) {
	g := newGuest(t)
	index, pd := g.setUp()
	async, ch := g.asyncEvents(), g.channel()
	ch.room = 4
	on := obj(attrCQChannel, uint32(ch.fd))
	a, b := g.cq(index, on), g.cq(index, on)
	a.user, b.user = 0xa, 0xb
	q := g.qp(qpRC, pd, b, index)
	g.locked(func() {
		for range 3 {
			a.notify()
			b.notify()
		}
		a.asyncEvent(eventCQErr)
		q.asyncEvent(eventQPFatal)
		q.asyncEvent(eventCommEst)
	})
	if got := ch.cookies(); !slices.Equal(got, []uint64{0xa, 0xb, 0xa, 0xb}) {
		t.Fatalf("sent %x", got)
	}
	ch.recs, async.recs = ch.recs[1:], async.recs[:2] // the program reads an event of a, and the last one of q
	g.fo.Poll()
	if got := ch.cookies(); !slices.Equal(got, []uint64{0xb, 0xa, 0xb, 0xa}) {
		t.Fatalf("after reading: %x", got)
	}
	destroyed := func(object uint16, h uint32) []byte {
		cmd := g.must(destroyCmd(g.user, object, h))
		return g.at(dataWord(cmd, 0), 8)
	}
	if resp := destroyed(objCQ, a.handle); le.Uint32(resp) != 1 || le.Uint32(resp[4:]) != 0 {
		t.Errorf("CQ a: % x", resp)
	}
	if resp := destroyed(objQP, q.handle); le.Uint32(resp) != 1 {
		t.Errorf("QP: % x", resp[:4])
	}
	g.fo.Poll()
	if got := ch.cookies(); !slices.Equal(got, []uint64{0xb, 0xb, 0xb}) || len(async.recs) != 0 {
		t.Errorf("left: %x, %d async", got, len(async.recs))
	}
	ch.recs = nil
	if resp := destroyed(objCQ, b.handle); le.Uint32(resp) != 3 {
		t.Errorf("CQ b: % x", resp)
	}
}

func TestForeignEventFilesThatClose(t *testing.T) {
	g := newGuest(t)
	index, _ := g.setUp()
	ch, dead, async := g.channel(), g.channel(), g.asyncEvents()
	c := g.cq(index, obj(attrCQChannel, uint32(ch.fd)))
	o := g.cq(index, obj(attrCQChannel, uint32(dead.fd)))
	g.locked(func() {
		for range 5 {
			c.notify()
		}
	})
	ch.recs = ch.recs[2:] // read
	g.fo.CloseEvents(ch.fd)
	g.fo.CloseEvents(ch.fd)
	g.fo.CloseEvents(-7)
	if !ch.closed {
		t.Error("a file that the program closed stays open here")
	}
	dead.gone = syscall.EPIPE // its close was not seen
	g.locked(func() {
		for range 3 {
			c.notify()
			o.notify()
		}
	})
	if !dead.closed || len(ch.recs) != 0 {
		t.Errorf("closed %v, %d records", dead.closed, len(ch.recs))
	}
	if c.compEvents != 2 {
		t.Errorf("%d events of the closed channel count as read, want those that were", c.compEvents)
	}
	g.want(syscall.EBADF, g.createCQCmd(15, cqUHW(g.alloc(1024), g.alloc(8), 64, cqUHWFlagUAR, index), obj(attrCQChannel, uint32(ch.fd))))
	g.must(destroyCmd(g.user, objCQ, c.handle))
	g.must(destroyCmd(g.user, objCQ, o.handle))

	// The program got the number of the dead file again.
	fds := len(g.sinks)
	delete(g.sinks, dead.fd)
	g.fo.cfg.NewEvents = func(bool) (EventSink, error) {
		s := &testSink{fd: dead.fd, room: 9}
		g.sinks[s.fd] = s
		return s, nil
	}
	if again := g.channel(); again == dead || again.closed || len(g.sinks) != fds {
		t.Error("the number of a dead file was not taken")
	}
	g.fo.cfg.NewEvents = g.newEvents

	g.fo.CloseEvents(async.fd)
	g.locked(func() { g.f.raise(1, eventPortErr, nil) })
	if len(async.recs) != 0 {
		t.Error("an event for a closed async file")
	}
}

func TestForeignEventFilesThatCannotBeMade(t *testing.T) {
	g := newGuest(t)
	g.getContext()
	bad := tattr{id: attrCoreOut, len: 4, flags: attrMandatory, data: userBase - 8}
	cmd := func(out tattr) []byte { return writeCommand(17, g.in(attrCoreIn, make([]byte, 8)), out) }
	if err := g.fo.Ioctl(cmd(bad)); err != syscall.EFAULT || len(g.sinks) != 0 {
		t.Errorf("no room for the answer: %v, %d sinks", err, len(g.sinks))
	}
	g.full = true
	if err := g.fo.Ioctl(cmd(g.out(attrCoreOut, 4))); err != syscall.EMFILE || len(g.f.events) != 0 {
		t.Errorf("no descriptor: %v", err)
	}
	g.full = false
	g.mem.readOnly = [][2]uint64{{g.alloc(pageSize), pageSize}}
	bad.data = g.mem.readOnly[0][0]
	if err := g.fo.Ioctl(cmd(bad)); err != syscall.EFAULT || len(g.f.events) != 0 {
		t.Errorf("an answer that cannot be written: %v, %d event files", err, len(g.f.events))
	}
	if s := g.sinks[100]; s == nil || !s.closed {
		t.Error("the sink of a failed command stays open")
	}
}

func TestReadOnlyMemoryOfAForeignProgram(t *testing.T) {
	g := newGuest(t)
	index, pd := g.setUp()
	ro := g.alloc(2 * pageSize)
	g.mem.readOnly = [][2]uint64{{ro, 2 * pageSize}}
	g.regMR(pd, ro, pageSize, accessRemoteRead)
	core := func() tattr { return g.out(attrCoreOut, 12) }
	g.want(syscall.EFAULT, writeCommand(9, g.in(attrCoreIn, regMRCore(ro, pageSize, ro, pd, accessLocalWrite)), core()))
	g.want(syscall.EFAULT, writeCommand(9, g.in(attrCoreIn, regMRCore(ro, pageSize, ro, pd, accessMWBind)), core()))
	g.want(syscall.EFAULT, g.createCQCmd(15, cqUHW(ro, g.alloc(8), 64, cqUHWFlagUAR, index)))
	gone := g.alloc(pageSize)
	g.mem.punch(gone, 1)
	g.want(syscall.EFAULT, writeCommand(9, g.in(attrCoreIn, regMRCore(gone-8, 16, gone-8, pd, 0)), core()))
	c := g.cq(index)
	g.want(syscall.EFAULT, g.createQPCmd(qpUD, pd, c.handle, qpCaps(8, 8, 1, 1, 0), qpUHW(gone, g.alloc(8), 16, 8, 4, 7, index)))
	g.want(syscall.EFAULT, g.createQPCmd(qpUD, pd, c.handle, qpCaps(8, 8, 1, 1, 0), qpUHW(g.alloc(2048), gone, 16, 8, 4, 7, index)))
}

func TestDeviceRemovalEndsForeignEvents(t *testing.T) {
	g := newGuest(t)
	index, pd := g.setUp()
	async, ch := g.asyncEvents(), g.channel()
	q := g.qp(qpUD, pd, g.cq(index, obj(attrCQChannel, uint32(ch.fd))), index)
	q.to(stateInit, stateRTR, stateRTS)
	offset := g.offset(index)
	if err := g.d.Close(); err != nil {
		t.Fatal(err)
	}
	if len(async.recs) != 1 || le.Uint32(async.recs[0][8:]) != eventDeviceFatal || async.closed || !ch.closed {
		t.Errorf("async %x, closed %v; channel closed %v", async.recs, async.closed, ch.closed)
	}
	g.store(offset, uarBlueFlame0, 1<<32|uint64(q.qpn)<<8)
	g.fo.Poll()
	if err := g.fo.Ioctl(command(objAsync, 0, newID(attrAsyncFD))); err != syscall.EIO {
		t.Errorf("a command: %v", err)
	}
	if _, err := g.d.OpenForeign(g.fo.cfg); err != syscall.ENODEV {
		t.Errorf("opened again: %v", err)
	}
}
