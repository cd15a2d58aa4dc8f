package mlx5sim

import (
	"encoding/binary"
	"syscall"
	"testing"
)

// hostile is a program that does to its device whatever a string of bytes says.
// It has two QPs of each type, connected to each other and to those of another
// program, an SRQ, an armed CQ with a channel, and an async event file.
type hostile struct {
	*guest
	n      *node
	qps    []*qp
	cqs    []*cq
	srq    *srq
	m      *mr
	pd     uint32
	script []byte
}

func newHostile(t testing.TB, d *Device) *hostile {
	h := &hostile{guest: openGuestOf(t, d, 128<<10)}
	h.n = h.node()
	index, pd := h.setUp()
	h.pd = pd
	h.asyncEvents()
	ch := h.channel()
	ch.room = 3
	for range 2 {
		h.cqs = append(h.cqs, h.cq(index, obj(attrCQChannel, uint32(ch.fd))))
	}
	h.m = h.mr(pd, 8192, accessLocalWrite|accessRemoteWrite|accessRemoteRead|accessRemoteAtomic|accessMWBind)
	uhw := make(writer, 0, createSRQUHW)
	uhw.u64(h.alloc(8*64), h.alloc(8), 0, 0)
	h.srq = h.f.handles[uint32(dataWord(h.must(h.createSRQCmd(srqBasic, pd, 7, 2, uhw)), 0))].(*srq)
	for i, typ := range []uint8{qpRC, qpRC, qpUD, qpUD, qpUC, qpUC} {
		h.qps = append(h.qps, h.qp(typ, pd, h.cqs[i%2], index))
	}
	h.qps[1].srq = h.srq
	h.srq.refs++
	return h
}

// next takes n bytes of the script; what is missing is 0.
func (h *hostile) next(n int) []byte {
	b := make([]byte, n)
	h.script = h.script[copy(b, h.script):]
	return b
}

func (h *hostile) byte() int      { return int(h.next(1)[0]) }
func (h *hostile) word() uint32   { return be.Uint32(h.next(4)) }
func (h *hostile) anyQP() *qp     { return h.qps[h.byte()%len(h.qps)] }
func (h *hostile) page() []byte   { return h.pages[9<<8*pageSize] }
func (h *hostile) inside() uint64 { return userBase + uint64(h.word())%uint64(len(h.arena.mem)) }

// put copies script bytes to memory of the program, as far as it is its own.
func (h *hostile) put(addr uint64, n int) {
	if p := h.arena.at(addr, uint64(n)); p != nil {
		copy(p, h.next(n))
	}
}

// step does one thing. Every other program of the fabric is locked out only
// where the program itself would not see the device at work.
func (h *hostile) step() {
	switch op := h.byte() % 16; op {
	case 0: // a doorbell, for a QP or for anybody
		reg := uarRegisters[h.byte()%len(uarRegisters)]
		v := binary.BigEndian.Uint64(h.next(8))
		if q := h.anyQP(); reg != uarArm && v&1 == 0 {
			v = 1<<32 | uint64(q.qpn)<<8
		}
		be.PutUint64(h.page()[reg:], v)
		h.fo.Poll()
	case 1: // an arming
		c := h.cqs[h.byte()%2]
		be.PutUint64(h.page()[uarArm:], uint64(h.word())<<32|uint64(c.cqn))
		h.put(c.dbrec, 8)
		h.fo.Poll()
	case 2: // a doorbell record
		q := h.anyQP()
		be.PutUint32(h.at(q.dbrec, 4), uint32(h.byte()))
		be.PutUint32(h.at(q.dbrec+4, 4), h.word())
	case 3: // a WQE that is nearly right
		q := h.anyQP()
		pi := be.Uint32(h.at(q.dbrec+4, 4)) & 0xffff
		h.put(q.sq.buf+uint64(pi&(q.sq.size-1))*wqebbBytes, wqebbBytes)
		w := h.at(q.sq.buf+uint64(pi&(q.sq.size-1))*wqebbBytes, wqebbBytes)
		w[0], w[1], w[2] = 0, byte(pi>>8), byte(pi)
		be.PutUint32(w[4:], q.qpn<<8|uint32(w[7]&3+1))
		for _, at := range []int{16, 32, 48} {
			if w[at] == 0 {
				be.PutUint64(w[at+8:], h.m.iova+uint64(w[at+15])<<4)
				be.PutUint32(w[at+4:], h.m.key)
				be.PutUint16(w[at:], 0)
			}
		}
		be.PutUint32(h.at(q.dbrec+4, 4), pi+1)
		h.bell(q.uar.index, uarBlueFlame0, q.qpn)
		h.fo.Poll()
	case 4: // a receive that is nearly right
		q := h.anyQP()
		if q.rq.size == 0 {
			return
		}
		pi := be.Uint32(h.at(q.dbrec, 4))
		copy(h.at(q.rq.slot(pi), 16), h.m.sge(uint32(h.byte()), h.word()&0xffff))
		be.PutUint32(h.at(q.dbrec, 4), pi+1)
	case 5: // anything into a queue
		q := h.anyQP()
		h.put(q.sq.buf+uint64(h.byte()), 100)
	case 6:
		h.put(h.inside(), h.byte())
	case 7:
		h.locked(func() { h.mem.punch(h.inside(), uint64(h.word()&0xfff)) })
	case 8:
		h.locked(func() { h.mem.holes = nil })
	case 9: // a state
		q := h.anyQP()
		h.fo.Ioctl(h.modify(q.handle, h.word(), byte(h.byte()%8), func(core []byte) { core[105], core[107] = 0, 0 }))
	case 10: // any command
		cmd := h.next(hdrBytes + h.byte()%8*attrBytes)
		le.PutUint16(cmd, uint16(len(cmd)))
		le.PutUint16(cmd[2:], le.Uint16(cmd[2:])&0x100f)
		le.PutUint16(cmd[6:], uint16((len(cmd)-hdrBytes)/attrBytes))
		clear(cmd[8:hdrBytes])
		le.PutUint32(cmd[16:], driverMLX5)
		h.fo.Ioctl(cmd)
	case 11:
		h.fo.Ioctl(h.next(h.byte()))
	case 12: // the end of an object
		h.fo.Ioctl(destroyCmd(h.user, uint16(h.byte()%8), uint32(h.byte()%16)))
	case 13: // the SRQ
		h.put(h.srq.dbrec, 4)
		h.put(h.srq.rq.buf+uint64(h.byte()), 32)
	case 14:
		h.fo.CloseEvents(int32(100 + h.byte()%4))
	case 15: // a consumer
		c := h.cqs[h.byte()%2]
		be.PutUint32(h.at(c.dbrec, 4), c.pi)
		for _, s := range h.sinks {
			s.recs = nil
		}
	}
	h.top = min(h.top, userBase+96<<10) // commands' buffers are used again
}

// check checks what must hold whatever the program does.
func (h *hostile) check() {
	h.locked(func() {
		for _, q := range h.d.qps {
			if q.sq.pi-q.sq.ci > q.sq.size || q.sq.next-q.sq.ci > q.sq.pi-q.sq.ci || q.rq.pi-q.rq.ci > q.rq.size {
				h.t.Fatalf("QP %#x: sq %+v, rq %+v", q.qpn, q.sq, q.rq)
			}
		}
		for _, e := range h.f.events {
			if len(e.queue)-e.head > maxEvents {
				h.t.Fatal("too many events wait")
			}
		}
		if len(h.f.uars) > maxUARs || h.maps > maxUARs || len(h.fo.yielded) > len(h.d.qps)+len(h.qps) {
			h.t.Fatalf("%d UARs, %d mapped, %d QPs have yielded", len(h.f.uars), h.maps, len(h.fo.yielded))
		}
	})
}

// FuzzForeign has two programs of one fabric do anything, the second one what
// the first left of the script, and then end. Nothing may panic, hang, or stay.
func FuzzForeign(f *testing.F) {
	post := func(q byte, op byte, ds byte) []byte {
		b := append([]byte{3, q}, make([]byte, wqebbBytes)...)
		b[2+3], b[2+7], b[2+11] = op, ds, ce
		b[2+16+15], b[2+32+3] = 1, 64
		return b
	}
	recv := func(q byte) []byte { return []byte{4, q, 1, 0, 0, 0x10, 0} }
	join := func(parts ...[]byte) (all []byte) {
		for _, p := range parts {
			all = append(all, p...)
		}
		return all
	}
	f.Add(join(post(0, opWrite, 2), post(0, opRead, 2), post(0, opCmpSwap, 3), post(1, opSend, 1)), uint8(10))
	f.Add(join(recv(0), recv(2), recv(4), post(1, opSend, 1), post(3, opSendImm, 3), post(5, opWriteImm, 2)), uint8(10))
	f.Add(join([]byte{2, 0, 9, 0, 0, 0xff, 0xff}, []byte{0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0}), uint8(3)) // beyond the ring
	f.Add(join(post(0, opRead, 2), []byte{7, 0, 0, 0, 0, 0, 0, 0x0f, 0xff}, post(0, opSend, 1), []byte{8}), uint8(6))
	f.Add(join([]byte{1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}, post(0, opNOP, 0), []byte{14, 0}, []byte{14, 1}, post(0, opNOP, 0)), uint8(7))
	f.Add(join([]byte{13, 0, 0, 0, 3, 16, 0, 1}, post(0, opSend, 1), []byte{12, 4, 6}, []byte{12, 3, 3}), uint8(8))
	f.Add(join([]byte{9, 0, 0, 0, 0, 1, 6}, post(0, opSend, 1), []byte{9, 0, 0, 0, 0, 1, 0}, recv(0)), uint8(8))
	f.Add(join([]byte{10, 2, 16, 0, 0, 0}, make([]byte, hdrBytes), []byte{11, 40}), uint8(3))
	f.Fuzz(func(t *testing.T, script []byte, steps uint8) {
		fab := NewFabric()
		one, two := newHostile(t, testDevice(t, fab, "10.0.0.1")), newHostile(t, testDevice(t, fab, "10.0.0.2"))
		connectHostile(one, two)
		one.script = script
		for i := range int(steps) {
			h := one
			if i%4 == 3 {
				h = two
			}
			h.step()
			h.check()
			two.script, one.script = h.script, h.script
		}
		d := one.d
		for _, h := range []*hostile{one, two} {
			h.fo.Close()
			if err := h.fo.Ioctl(h.next(0)); err != syscall.EBADF {
				t.Errorf("a command after Close: %v", err)
			}
			if h.maps != 0 {
				t.Errorf("%d pages are left", h.maps)
			}
		}
		if len(d.files)+len(d.qps)+len(d.cqs)+len(d.mrs)+len(d.mws)+len(d.srqs) != 0 {
			t.Errorf("left: %d files, %d QPs, %d CQs, %d MRs, %d MWs, %d SRQs", len(d.files), len(d.qps), len(d.cqs), len(d.mrs), len(d.mws), len(d.srqs))
		}
	})
}

// connectHostile connects the first QP of a type to the other program's second,
// and back. No timer runs: RC does not wait for anything.
func connectHostile(one, two *hostile) {
	for _, p := range [][2]*hostile{{one, two}, {two, one}} {
		for i, q := range p[0].qps {
			peer := p[1].qps[i^1]
			q.attr = qpAttr{pathMTU: 3, maxRdAtomic: 4, maxDestRd: 4, qkey: 0x11111111, access: allAccess | accessRemoteAtomic,
				destQPN: peer.qpn, dest: addressVector{dgid: peer.file.dev.gids[3].gid, sgidIndex: 3, hopLimit: 64}}
			q.to(stateInit, stateRTR, stateRTS)
		}
	}
}
