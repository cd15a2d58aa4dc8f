package mlx5sim

import (
	"net/netip"
	"testing"

	"github.com/rrppcc-go/rrppcc/uverbs"
)

// rig is a fabric whose devices reach one arena of memory. Tests build queues
// and work requests in it by hand, byte by byte, so that nothing of the driver
// takes part.
type rig struct {
	t     testing.TB
	fab   *Fabric
	arena *arenaDMA
	used  uint64
	qpn   uint32
}

const arenaBase = 0x7f00_0000_0000

func newRig(t testing.TB) *rig {
	return &rig{t: t, fab: NewFabric(), arena: &arenaDMA{base: arenaBase, mem: make([]byte, 1<<20)}, qpn: 0x1a3}
}

// locked runs f as the device would: a timer may be doing so at the same time.
func (r *rig) locked(f func()) {
	r.fab.mu.Lock()
	defer r.fab.mu.Unlock()
	f()
}

// alloc returns the address of n zeroed bytes on a page of their own.
func (r *rig) alloc(n uint64) uint64 {
	r.t.Helper()
	a := r.arena.base + r.used
	r.used += (n + 4095) &^ 4095
	for r.used > uint64(len(r.arena.mem)) {
		r.arena.mem = append(r.arena.mem, make([]byte, len(r.arena.mem))...)
	}
	return a
}

// at is the memory at addr. It is stale after the next alloc.
func (r *rig) at(addr uint64, n uint32) []byte {
	r.t.Helper()
	p := r.arena.at(addr, uint64(n))
	if p == nil {
		r.t.Fatalf("test reads %d bytes at %#x outside the arena", n, addr)
	}
	return p
}

func (r *rig) device(addr string) *Device {
	a := netip.MustParseAddr(addr)
	d := &Device{
		fab: r.fab, opt: options{mtu: uverbs.MTU4096}, name: addr, addr: a, mac: macOf(a),
		gids:  []gidSlot{{gid: a.As16(), typ: gidRoCEv2}},
		files: map[*file]struct{}{}, qps: map[uint32]*qp{}, cqs: map[uint32]*cq{}, mrs: map[uint32]*mr{}, mws: map[uint32]*mw{}, srqs: map[uint32]*srq{},
	}
	if !r.fab.join(d) {
		r.t.Fatalf("address %s is taken", addr)
	}
	return d
}

// node is one open device with a PD.
type node struct {
	*rig
	d    *Device
	f    *file
	pd   *pd
	uar  *uar
	page []byte // of uar
	keys uint32
}

func (r *rig) node(d *Device) *node {
	f := &file{dev: d, dma: r.arena, handles: map[uint32]object{}, events: map[int32]*eventFile{}, ready: true, cqeVersion: 1}
	f.async = f.newEventFile(true)
	d.files[f] = struct{}{}
	page := make([]byte, uarPageBytes)
	return &node{rig: r, d: d, f: f, pd: &pd{file: f}, uar: &uar{file: f, mem: page}, page: page, keys: uint32(len(d.mrs)+len(d.files)*16) + 0x1000}
}

// mr registers n bytes.
func (n *node) mr(size uint64, access uint32) *mr {
	n.keys++
	m := &mr{pd: n.pd, key: n.keys << 8, start: n.alloc(size), length: size, access: access}
	m.iova = m.start
	n.d.mrs[m.key] = m
	return m
}

func (n *node) bytes(m *mr) []byte { return n.at(m.start, uint32(m.length)) }

// fill writes a pattern that depends on seed.
func (n *node) fill(m *mr, seed byte) []byte {
	p := n.bytes(m)
	for i := range p {
		p[i] = seed + byte(i) + byte(i>>8)*7
	}
	return p
}

func (n *node) cq(size uint32) *cq {
	c := &cq{file: n.f, uar: n.uar, cqn: 0x405 + uint32(len(n.d.cqs)), size: size, cqeSize: cqeBytes, user: uint64(len(n.d.cqs)) + 0xc0}
	c.buf, c.dbrec = n.alloc(uint64(size)*cqeBytes), n.alloc(8)
	for i := range size {
		n.at(c.buf+uint64(i+1)*cqeBytes-1, 1)[0] = 0xf0
	}
	c.channel = n.f.newEventFile(false)
	n.d.cqs[c.cqn] = c
	c.engineCreated()
	return c
}

type qpOpts struct {
	sqSize, rqSize, rqStride uint32
	qpn                      uint32
	sendCQ, recvCQ           *cq
}

func (n *node) qp(typ string, o qpOpts) *qp {
	or := func(v *uint32, def uint32) uint32 {
		if *v == 0 {
			*v = def
		}
		return *v
	}
	n.qpn++
	q := &qp{file: n.f, pd: n.pd, uar: n.uar, qpn: or(&o.qpn, n.qpn), uidx: n.qpn & 0xff, typ: map[string]uint8{"UD": qpUD, "RC": qpRC, "UC": qpUC}[typ], user: uint64(n.qpn)}
	q.sq = wq{size: or(&o.sqSize, 64), stride: wqebbBytes}
	q.rq = wq{size: or(&o.rqSize, 16), stride: or(&o.rqStride, 32)}
	q.rq.buf = n.alloc(uint64(q.rq.size * q.rq.stride))
	q.sq.buf = n.alloc(uint64(q.sq.size * wqebbBytes))
	q.dbrec = n.alloc(8)
	if q.sendCQ = o.sendCQ; q.sendCQ == nil {
		q.sendCQ = n.cq(64)
	}
	if q.recvCQ = o.recvCQ; q.recvCQ == nil {
		q.recvCQ = n.cq(64)
	}
	q.attr = qpAttr{
		pathMTU: 3, timeout: 14, retryCnt: 2, rnrRetry: 3, maxRdAtomic: 4, maxDestRd: 4, minRNRTimer: 12,
		access: accessLocalWrite | accessRemoteWrite | accessRemoteRead, qkey: 0x11111111,
		dest: addressVector{hopLimit: 64},
	}
	n.d.qps[q.qpn] = q
	return q
}

// to sets q's state, with the hook that MODIFY_QP calls.
func (q *qp) to(states ...uint8) {
	fab := q.file.dev.fab
	fab.mu.Lock()
	defer fab.mu.Unlock()
	for _, s := range states {
		old := q.attr.state
		q.attr.state = s
		q.engineStateChanged(old)
	}
}

// connect connects two RC or UC QPs and brings them to RTS.
func connect(a, b *qp) {
	for _, p := range [][2]*qp{{a, b}, {b, a}} {
		q, peer := p[0], p[1]
		q.attr.destQPN = peer.qpn
		q.attr.dest.dgid = peer.file.dev.gids[0].gid
		q.attr.sqPSN, q.attr.rqPSN = q.qpn*3, peer.qpn*3
		q.to(stateInit, stateRTR, stateRTS)
	}
}

// Segments of a WQE, laid out by hand from the PRM.

type ctrl struct {
	op    uint8
	flags uint8
	imm   uint32
}

func segAV(dst [16]byte, qpn, qkey uint32) []byte {
	b := make([]byte, 48)
	be.PutUint32(b[0:], qkey)
	be.PutUint32(b[8:], 1<<31|qpn)
	b[27] = 64 // hop limit
	copy(b[32:], dst[:])
	return b
}

func segRAddr(addr uint64, rkey uint32) []byte {
	b := make([]byte, 16)
	be.PutUint64(b, addr)
	be.PutUint32(b[8:], rkey)
	return b
}

func segData(addr uint64, n, lkey uint32) []byte {
	b := make([]byte, 16)
	be.PutUint32(b, n)
	be.PutUint32(b[4:], lkey)
	be.PutUint64(b[8:], addr)
	return b
}

func (m *mr) sge(off, n uint32) []byte { return segData(m.iova+uint64(off), n, m.key) }

func segInline(p []byte) []byte {
	b := make([]byte, (4+len(p)+15)&^15)
	be.PutUint32(b, 1<<31|uint32(len(p)))
	copy(b[4:], p)
	return b
}

const ce = 0x08 // completion wanted

// put writes one send WQE at the producer index that the doorbell record
// shows, and advances the record. It rings nothing.
func (n *node) put(q *qp, c ctrl, segs ...[]byte) {
	n.t.Helper()
	db := n.at(q.dbrec+4, 4)
	pi := be.Uint32(db)
	wqe := make([]byte, 16)
	for _, s := range segs {
		wqe = append(wqe, s...)
	}
	if len(wqe) > maxWQEBytes {
		n.t.Fatalf("WQE of %d bytes", len(wqe))
	}
	be.PutUint32(wqe, uint32(uint16(pi))<<8|uint32(c.op))
	be.PutUint32(wqe[4:], q.qpn<<8|uint32(len(wqe)/16))
	wqe[11] = c.flags
	be.PutUint32(wqe[12:], c.imm)
	for len(wqe) > 0 {
		k := min(len(wqe), wqebbBytes)
		copy(n.at(q.sq.buf+uint64(pi&(q.sq.size-1))*wqebbBytes, wqebbBytes), wqe[:k])
		wqe, pi = wqe[k:], pi+1
	}
	be.PutUint32(db, pi&0xffff)
}

// ring rings q's doorbell.
func (n *node) ring(q *qp) {
	be.PutUint32(n.page[uarBlueFlame0+4:], q.qpn<<8|1)
	n.f.kick(&n.page[0], uarBlueFlame0)
}

// send puts a WQE and rings.
func (n *node) send(q *qp, c ctrl, segs ...[]byte) {
	n.t.Helper()
	n.put(q, c, segs...)
	n.ring(q)
}

// recv posts one receive WQE.
func (n *node) recv(q *qp, segs ...[]byte) {
	n.t.Helper()
	db := n.at(q.dbrec, 4)
	pi := be.Uint32(db)
	w := make([]byte, 0, q.rq.stride)
	for _, s := range segs {
		w = append(w, s...)
	}
	if len(w) < int(q.rq.stride) {
		w = append(w, segData(0, 0, 0x100)...)
	}
	copy(n.at(q.rq.buf+uint64(pi&(q.rq.size-1))*uint64(q.rq.stride), q.rq.stride), w)
	be.PutUint32(db, (pi+1)&0xffff)
}

// arm arms c for the consumer index of its record.
func (n *node) arm(c *cq, solicited bool) {
	word := be.Uint32(n.at(c.dbrec, 4)) & ciMask
	if solicited {
		word |= armSolicited
	}
	be.PutUint32(n.at(c.dbrec+4, 4), word)
	be.PutUint32(n.page[uarArm:], word)
	be.PutUint32(n.page[uarArm+4:], c.cqn)
	n.f.kick(&n.page[0], uarArm)
}

// events drains an event file and returns how many records were there.
func events(e *eventFile) (recs [][16]byte) {
	for {
		var p [16]byte
		if _, _, ok := e.pop(p[:]); !ok {
			return recs
		}
		recs = append(recs, p)
	}
}

// got is a CQE as the test reads it.
type got struct {
	op    uint8
	index uint16
	bytes uint32
	syn   syndrome
}

// poll takes one CQE off c, if there is one.
func (n *node) poll(c *cq) (raw [cqeBytes]byte, ok bool) {
	db := n.at(c.dbrec, 4)
	ci := be.Uint32(db)
	b := n.at(c.buf+uint64(ci&(c.size-1))*cqeBytes, cqeBytes)
	own := b[63]
	if own>>4 == 0xf || uint32(own&1) != ci/c.size&1 {
		return raw, false
	}
	copy(raw[:], b)
	be.PutUint32(db, (ci+1)&ciMask)
	return raw, true
}

func (n *node) pollAll(c *cq) (all []got) {
	for {
		b, ok := n.poll(c)
		if !ok {
			return all
		}
		g := got{op: b[63] >> 4, index: be.Uint16(b[60:])}
		if g.op >= cqeReqErr {
			g.syn = syndrome(b[55])
		} else {
			g.bytes = be.Uint32(b[44:])
		}
		all = append(all, g)
	}
}
