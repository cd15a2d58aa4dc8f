package verbstest

import (
	"bytes"
	"fmt"

	"github.com/rrppcc-go/rrppcc/uverbs"
)

const (
	qkey = 0x1ee7a1

	localOnly = uverbs.AccessLocalWrite
	remoteRW  = uverbs.AccessLocalWrite | uverbs.AccessRemoteRead | uverbs.AccessRemoteWrite
)

// pd, channel, cq, mr, ah and qp make objects that are closed with the test.

func (h *host) pd() *uverbs.PD {
	h.e.Helper()
	pd, err := h.ctx.AllocPD()
	h.e.must(err)
	h.e.closeLater(pd)
	return pd
}

func (h *host) channel() *uverbs.CompChannel {
	h.e.Helper()
	ch, err := h.ctx.CreateCompChannel()
	h.e.must(err)
	h.e.closeLater(ch)
	return ch
}

func (h *host) cq(depth int, ch *uverbs.CompChannel) *uverbs.CQ {
	h.e.Helper()
	cq, err := h.ctx.CreateCQ(&uverbs.CQInitAttr{Depth: depth, Channel: ch})
	h.e.must(err)
	h.e.closeLater(cq)
	return cq
}

func (h *host) qp(pd *uverbs.PD, attr uverbs.QPInitAttr) *uverbs.QP {
	h.e.Helper()
	qp, err := pd.CreateQP(&attr)
	h.e.must(err)
	h.e.closeLater(qp)
	return qp
}

// pages maps n bytes, rounded up to pages, until the test ends.
func (e *env) pages(n int) []byte {
	e.Helper()
	n = (max(n, 1) + pageBytes - 1) &^ (pageBytes - 1)
	mem, unmap, err := mapPages(n)
	e.must(err)
	e.Cleanup(func() { e.must(unmap()) })
	return mem
}

// mr maps and registers n bytes.
func (e *env) mr(pd *uverbs.PD, n int, access uverbs.AccessFlags) *uverbs.MR {
	e.Helper()
	mr, err := pd.RegisterMR(e.pages(n)[:n], access)
	e.must(err)
	e.closeLater(mr)
	return mr
}

// av is the way from h to another host.
func (h *host) av(to *host) uverbs.AHAttr {
	if h.ib && !h.e.b.GRH {
		return uverbs.AHAttr{DLID: to.lid, Port: port}
	}
	return h.globalAV(to)
}

// globalAV is the way from h to another host, with a GRH.
func (h *host) globalAV(to *host) uverbs.AHAttr {
	return uverbs.AHAttr{DLID: to.lid, DGID: to.gid, SGIDIndex: h.gidIndex, HopLimit: 64, IsGlobal: true, Port: port}
}

func (h *host) ah(pd *uverbs.PD, to *host) *uverbs.AH {
	h.e.Helper()
	av := h.av(to)
	ah, err := pd.CreateAH(&av)
	h.e.must(err)
	h.e.closeLater(ah)
	return ah
}

// end is a QP with all that it needs: a PD, and two CQs on a channel each.
type end struct {
	*host
	prot           *uverbs.PD
	sendCh, recvCh *uverbs.CompChannel
	sendCQ, recvCQ *uverbs.CQ
	qp             *uverbs.QP
	life           uint32 // how often the QP was reset
}

// shape says what an end is like. The zero value is a usual RC QP.
type shape struct {
	typ       uverbs.QPType // 0 is RC
	wrs       int           // send and receive queue, 0 is 32
	recvDepth int           // of the receive CQ, 0 is enough
	sges      int           // 0 is 4
	inline    int           // 0 is 64
	sigAll    bool
	srq       func(*uverbs.PD) *uverbs.SRQ
}

func (h *host) end(s shape) *end {
	h.e.Helper()
	for _, f := range []struct {
		v *int
		d int
	}{{&s.wrs, 32}, {&s.recvDepth, 2 * max(s.wrs, 32)}, {&s.sges, 4}, {&s.inline, 64}} {
		if *f.v == 0 {
			*f.v = f.d
		}
	}
	if s.typ == 0 {
		s.typ = uverbs.QPTypeRC
	}
	d := &end{host: h, prot: h.pd(), sendCh: h.channel(), recvCh: h.channel()}
	d.sendCQ, d.recvCQ = h.cq(2*s.wrs, d.sendCh), h.cq(s.recvDepth, d.recvCh)
	attr := uverbs.QPInitAttr{Type: s.typ, SendCQ: d.sendCQ, RecvCQ: d.recvCQ, SigAll: s.sigAll,
		Cap: uverbs.QPCap{MaxSendWR: uint32(s.wrs), MaxRecvWR: uint32(s.wrs), MaxSendSGE: uint32(s.sges), MaxRecvSGE: uint32(s.sges), MaxInline: uint32(s.inline)}}
	if s.srq != nil {
		attr.SRQ = s.srq(d.prot)
	}
	d.qp = h.qp(d.prot, attr)
	return d
}

// rc says how RC QPs are connected. The zero value waits long and retries
// often.
type rc struct {
	mtu      uverbs.MTU         // 0 is 1024
	access   uverbs.AccessFlags // of the QPs, 0 is all
	noAccess bool               // nothing, then
	timeout  uint8              // 0 is 17: half a second
	retries  uint8              // 0 is 7; noRetry for none
	rnr      uint8              // RNR retries, 0 is 7, for ever; noRetry for none
	minRNR   uint8              // code of the RNR NAK delay, 0 is 1: 10 us
}

const noRetry = 0xff

const allAccess = uverbs.AccessRemoteRead | uverbs.AccessRemoteWrite | uverbs.AccessRemoteAtomic

const (
	initMask = uverbs.AttrState | uverbs.AttrPKeyIndex | uverbs.AttrPort
	rcInit   = initMask | uverbs.AttrAccessFlags
	rcRTR    = uverbs.AttrState | uverbs.AttrAV | uverbs.AttrPathMTU | uverbs.AttrDestQPN | uverbs.AttrRQPSN |
		uverbs.AttrMaxDestRdAtomic | uverbs.AttrMinRNRTimer
	rcRTS = uverbs.AttrState | uverbs.AttrSQPSN | uverbs.AttrMaxRdAtomic | uverbs.AttrTimeout | uverbs.AttrRetryCnt | uverbs.AttrRNRRetry
	udRTS = uverbs.AttrState | uverbs.AttrSQPSN
)

// psn is the first PSN of a QP: near the wrap, so that every test crosses it. A
// QP that was reset takes another, because packets of its last life may be under
// way.
func psn(qpn, life uint32) uint32 { return (0xfffff0 | qpn&0xf) - life*0x5000&0xffffff }

func orDefault(v, d uint8) uint8 {
	switch v {
	case 0:
		return d
	case noRetry:
		return 0
	}
	return v
}

func (c rc) init() *uverbs.QPAttr {
	a := &uverbs.QPAttr{State: uverbs.QPStateInit, Port: port, AccessFlags: c.access}
	if c.access == 0 && !c.noAccess {
		a.AccessFlags = allAccess
	}
	return a
}

// rtr connects to a QP at the end of av, in its so manieth life.
func (c rc) rtr(av uverbs.AHAttr, qpn, life uint32) *uverbs.QPAttr {
	a := &uverbs.QPAttr{State: uverbs.QPStateRTR, PathMTU: c.mtu, DestQPN: qpn, RQPSN: psn(qpn, life), MaxDestRdAtomic: 4,
		MinRNRTimer: orDefault(c.minRNR, 1), AV: av}
	if a.PathMTU == 0 {
		a.PathMTU = uverbs.MTU1024
	}
	return a
}

func (c rc) rts(qpn, life uint32) *uverbs.QPAttr {
	return &uverbs.QPAttr{State: uverbs.QPStateRTS, SQPSN: psn(qpn, life), MaxRdAtomic: 4, Timeout: orDefault(c.timeout, 17),
		RetryCnt: orDefault(c.retries, 7), RNRRetry: orDefault(c.rnr, 7)}
}

// up brings d's QP, of RC or UC, from RESET to RTS, connected to z's.
func (d *end) up(z *end, c rc) {
	d.e.Helper()
	d.upBy(z, d.av(z.host), c)
}

// upBy is up with an address vector of the caller's.
func (d *end) upBy(z *end, av uverbs.AHAttr, c rc) {
	d.e.Helper()
	rtr, rts := rcRTR, rcRTS
	if d.qp.Type() == uverbs.QPTypeUC {
		rtr, rts = ucRTR, ucRTS
	}
	d.e.must(d.qp.Modify(c.init(), rcInit))
	d.e.must(d.qp.Modify(c.rtr(av, z.qp.QPN(), z.life), rtr))
	d.e.must(d.qp.Modify(c.rts(d.qp.QPN(), d.life), rts))
}

// connect makes and connects two ends, of RC unless s says UC.
func (e *env) connect(s shape, c rc) (a, z *end) {
	e.Helper()
	a, z = e.a.end(s), e.z.end(s)
	a.up(z, c)
	z.up(a, c)
	return a, z
}

// upUD brings a UD QP from RESET to RTS.
func (d *end) upUD() {
	d.e.Helper()
	d.e.must(d.qp.Modify(&uverbs.QPAttr{State: uverbs.QPStateInit, Port: port, QKey: qkey}, initMask|uverbs.AttrQKey))
	d.e.must(d.qp.Modify(&uverbs.QPAttr{State: uverbs.QPStateRTR}, uverbs.AttrState))
	d.e.must(d.qp.Modify(&uverbs.QPAttr{State: uverbs.QPStateRTS, SQPSN: psn(d.qp.QPN(), d.life)}, udRTS))
}

// datagrams makes two UD ends, and the way from the first to the second.
func (e *env) datagrams(s shape) (a, z *end, to uverbs.SendWR) {
	e.Helper()
	s.typ = uverbs.QPTypeUD
	a, z = e.a.end(s), e.z.end(s)
	a.upUD()
	z.upUD()
	return a, z, uverbs.SendWR{Opcode: uverbs.WRSend, Flags: uverbs.SendSignaled, AH: a.ah(a.prot, z.host), RemoteQPN: z.qp.QPN(), RemoteQKey: qkey}
}

func (d *end) mr(n int, access uverbs.AccessFlags) *uverbs.MR {
	d.e.Helper()
	return d.e.mr(d.prot, n, access)
}

// send posts requests, all of which must be accepted.
func (d *end) send(wrs ...uverbs.SendWR) {
	d.e.Helper()
	n, err := d.qp.PostSend(wrs)
	d.e.must(err)
	if n != len(wrs) {
		d.e.Fatalf("%d of %d sends posted, without an error", n, len(wrs))
	}
}

func (d *end) recv(id uint64, sges ...uverbs.SGE) {
	d.e.Helper()
	n, err := d.qp.PostRecv([]uverbs.RecvWR{{WRID: id, SGList: sges}})
	d.e.must(err)
	if n != 1 {
		d.e.Fatal("receive not posted, without an error")
	}
}

// take takes what is in cq now.
func (d *end) take(cq *uverbs.CQ) []uverbs.WC {
	d.e.Helper()
	wc := make([]uverbs.WC, 64)
	n, err := cq.Poll(wc)
	d.e.must(err)
	return wc[:n]
}

// wait polls cq until n completions came. More are a failure.
func (d *end) wait(cq *uverbs.CQ, n int) []uverbs.WC {
	d.e.Helper()
	var all []uverbs.WC
	d.e.until(fmt.Sprintf("%d completions", n), func() bool {
		all = append(all, d.take(cq)...)
		return len(all) >= n
	})
	if len(all) > n {
		d.e.Fatalf("%d completions, want %d: %+v", len(all), n, all)
	}
	return all
}

// one waits for one completion, and checks what every completion must say.
func (d *end) one(cq *uverbs.CQ, id uint64) uverbs.WC {
	d.e.Helper()
	wc := d.wait(cq, 1)[0]
	if wc.WRID != id || wc.QPN != d.qp.QPN() {
		d.e.Fatalf("completion of work request %d of QP %#x (%v), want %d of %#x", wc.WRID, wc.QPN, wc.Status, id, d.qp.QPN())
	}
	return wc
}

// sent and received wait for the success of a work request.
func (d *end) sent(id uint64, op uverbs.WCOpcode) uverbs.WC {
	d.e.Helper()
	return d.success(d.one(d.sendCQ, id), op)
}

func (d *end) received(id uint64, op uverbs.WCOpcode, n int) uverbs.WC {
	d.e.Helper()
	wc := d.success(d.one(d.recvCQ, id), op)
	if int(wc.ByteLen) != n {
		d.e.Fatalf("received %d bytes, want %d", wc.ByteLen, n)
	}
	return wc
}

func (d *end) success(wc uverbs.WC, op uverbs.WCOpcode) uverbs.WC {
	d.e.Helper()
	if wc.Status != uverbs.WCSuccess || wc.Opcode != op {
		d.e.Fatalf("work request %d: %v of a %v, want success of a %v", wc.WRID, wc.Status, wc.Opcode, op)
	}
	return wc
}

// failed waits for the failure of a work request and tells its status.
func (d *end) failed(cq *uverbs.CQ, id uint64) string {
	d.e.Helper()
	wc := d.one(cq, id)
	if wc.Status == uverbs.WCSuccess {
		d.e.Fatalf("work request %d succeeded", id)
	}
	return status(wc.Status)
}

// flushed checks that work requests are flushed, in order.
func (d *end) flushed(cq *uverbs.CQ, ids ...uint64) {
	d.e.Helper()
	for i, wc := range d.wait(cq, len(ids)) {
		if wc.WRID != ids[i] || wc.Status != uverbs.WCWRFlushErr {
			d.e.Fatalf("completion %d: work request %d: %v, want %d flushed", i, wc.WRID, wc.Status, ids[i])
		}
	}
}

// idle checks that a CQ is empty.
func (d *end) idle(cq *uverbs.CQ) {
	d.e.Helper()
	if wcs := d.take(cq); len(wcs) > 0 {
		d.e.Fatalf("completions that nobody waits for: %+v", wcs)
	}
}

// state waits for the QP to get to a state by the device's doing.
func (d *end) state(want uverbs.QPState) {
	d.e.Helper()
	d.e.until(fmt.Sprintf("QP in %v", want), func() bool { return d.query().State == want })
}

func (d *end) query() *uverbs.QPAttr {
	d.e.Helper()
	a, err := d.qp.Query()
	d.e.must(err)
	return a
}

// modify moves the QP to a state that needs no attributes.
func (d *end) modify(to uverbs.QPState) {
	d.e.Helper()
	d.e.must(d.qp.Modify(&uverbs.QPAttr{State: to}, uverbs.AttrState))
	if to == uverbs.QPStateReset {
		d.life++
	}
}

// works sends a message each way on connected QPs.
func works(a, z *end) {
	a.e.Helper()
	for i, dir := range [][2]*end{{a, z}, {z, a}} {
		from, to := dir[0], dir[1]
		src, dst := from.mr(100, localOnly), to.mr(100, localOnly)
		fill(src.Bytes(), byte(90+i))
		to.recv(701, dst.SGE(0, 100))
		from.send(uverbs.SendWR{WRID: 700, Opcode: uverbs.WRSend, Flags: uverbs.SendSignaled, SGList: []uverbs.SGE{src.SGE(0, 100)}})
		from.sent(700, uverbs.WCSend)
		to.received(701, uverbs.WCRecv, 100)
		a.e.same(dst.Bytes(), src.Bytes())
		a.e.must(src.Close())
		a.e.must(dst.Close())
	}
}

// fill writes bytes that tell the seed and the place.
func fill(b []byte, seed byte) {
	for i := range b {
		b[i] = seed + byte(i) + byte(i>>8)*5 + byte(i>>16)*11
	}
}

func (e *env) same(got, want []byte) {
	e.Helper()
	if bytes.Equal(got, want) {
		return
	}
	if len(got) != len(want) {
		e.Fatalf("%d bytes, want %d", len(got), len(want))
	}
	for i := range got {
		if got[i] != want[i] {
			e.Fatalf("byte %d of %d is %#x, want %#x", i, len(want), got[i], want[i])
		}
	}
}

// is checks that all of b is v.
func (e *env) is(b []byte, v byte) {
	e.Helper()
	e.same(b, bytes.Repeat([]byte{v}, len(b)))
}
