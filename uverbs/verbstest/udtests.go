package verbstest

import (
	"github.com/rrppcc-go/rrppcc/uverbs"
)

const grhBytes = 40

var udTests = []test{
	{name: "UDReceiveTellsTheSender", run: func(e *env) {
		a, z, wr := e.datagrams(shape{})
		src, dst := a.mr(100, 0), z.mr(200, localOnly)
		fill(src.Bytes(), 5)
		grh := a.av(z.host).IsGlobal
		for range 9 {
			for i := range dst.Bytes() {
				dst.Bytes()[i] = 0xcc
			}
			z.recv(2, dst.SGE(0, 200))
			wr.WRID, wr.Opcode, wr.ImmData, wr.SGList = 1, uverbs.WRSendWithImm, 0x11223344, []uverbs.SGE{src.SGE(0, 100)}
			a.send(wr)
			a.sent(1, uverbs.WCSend)
			wc := z.received(2, uverbs.WCRecv, 100+grhBytes)
			if wc.SrcQP != a.qp.QPN() || wc.Flags&uverbs.WCWithImm == 0 || wc.ImmData != 0x11223344 || wc.Flags&uverbs.WCGRH != 0 != grh {
				e.Errorf("completion %+v, want QP %#x, the immediate, and a GRH: %v", wc, a.qp.QPN(), grh)
			}
			e.same(dst.Bytes()[grhBytes:140], src.Bytes())
			e.is(dst.Bytes()[140:], 0xcc)
		}
		if !grh {
			e.is(dst.Bytes()[:grhBytes], 0xcc)
			return
		}
		// The header tells where an answer goes.
		if !a.gid.Addr().Is4() {
			h := dst.Bytes()
			e.same(h[8:24], a.gid[:])
			e.same(h[24:40], z.gid[:])
			return
		}
		ip := dst.Bytes()[20:40]
		if ip[0] != 0x45 {
			e.Errorf("IPv4 header %x", ip)
		}
		e.same(ip[12:16], a.gid[12:])
		e.same(ip[16:20], z.gid[12:])
		first := "zero"
		for _, b := range dst.Bytes()[:20] {
			if b != 0 {
				first = "not zero"
			}
		}
		if first != "zero" {
			e.Logf("before the IPv4 header: %x", dst.Bytes()[:20])
		}
		e.rule(RuleGRH, first)
	}},
	{name: "UDHeaderShowsTheAddressVector", run: func(e *env) {
		a, z, wr := e.datagrams(shape{})
		src, dst := a.mr(8, 0), z.mr(48, localOnly)
		for _, c := range []struct{ class, hops uint8 }{{0, 64}, {0x68, 33}, {0x68, 33}, {0xe0, 1}, {0, 255}, {4, 64}} {
			av := a.globalAV(z.host)
			av.TrafficClass, av.HopLimit = c.class, c.hops
			ah, err := a.prot.CreateAH(&av)
			e.must(err)
			e.closeLater(ah)
			z.recv(2, dst.SGE(0, 48))
			wr.WRID, wr.AH, wr.SGList = 1, ah, []uverbs.SGE{src.SGE(0, 8)}
			a.send(wr)
			a.sent(1, uverbs.WCSend)
			z.received(2, uverbs.WCRecv, 48)
			h := dst.Bytes()
			class, hops := h[21], h[28]
			if !a.gid.Addr().Is4() {
				class, hops = h[0]<<4|h[1]>>4, h[7]
			}
			if class != c.class {
				e.Errorf("traffic class %#x, want %#x", class, c.class)
			}
			if hops != c.hops {
				e.Errorf("hop limit %d, want %d", hops, c.hops)
			}
		}
	}},
	{name: "UDAnswersGoBackToTheSender", run: func(e *env) {
		a, z, wr := e.datagrams(shape{})
		src, dst := a.mr(8, localOnly), z.mr(48, localOnly)
		in := a.mr(48, localOnly)
		fill(src.Bytes(), 5)
		z.recv(2, dst.SGE(0, 48))
		a.recv(3, in.SGE(0, 48))
		wr.SGList = []uverbs.SGE{src.SGE(0, 8)}
		a.send(wr)
		a.sent(0, uverbs.WCSend)
		from := z.received(2, uverbs.WCRecv, 48).SrcQP
		z.send(uverbs.SendWR{WRID: 4, Opcode: uverbs.WRSend, Flags: uverbs.SendSignaled, SGList: []uverbs.SGE{dst.SGE(40, 8)},
			AH: z.ah(z.prot, a.host), RemoteQPN: from, RemoteQKey: qkey})
		z.sent(4, uverbs.WCSend)
		if wc := a.received(3, uverbs.WCRecv, 48); wc.SrcQP != z.qp.QPN() {
			e.Errorf("answer of QP %#x, want %#x", wc.SrcQP, z.qp.QPN())
		}
		e.same(in.Bytes()[40:], src.Bytes())
	}},
	{name: "UDQPTalksToManyByAddressHandle", run: func(e *env) {
		a, z, wr := e.datagrams(shape{})
		all := []*end{z}
		for range 7 {
			d := e.z.end(shape{typ: uverbs.QPTypeUD})
			d.upUD()
			all = append(all, d)
		}
		src := a.mr(8, 0)
		fill(src.Bytes(), 9)
		ahs := []*uverbs.AH{wr.AH, a.ah(a.prot, z.host)} // two of the same
		for i, d := range all {
			dst := d.mr(48, localOnly)
			d.recv(uint64(i), dst.SGE(0, 48))
			wr.WRID, wr.AH, wr.RemoteQPN, wr.SGList = uint64(i), ahs[i%2], d.qp.QPN(), []uverbs.SGE{src.SGE(0, 8)}
			a.send(wr)
			a.sent(uint64(i), uverbs.WCSend)
			d.received(uint64(i), uverbs.WCRecv, 48)
			e.same(dst.Bytes()[grhBytes:], src.Bytes())
		}
		for _, d := range all {
			d.idle(d.recvCQ)
		}
	}},
	{name: "UDDropsWhatNobodyMayReceive", run: func(e *env) {
		// Datagrams between two QPs keep their order here, so that one which
		// arrives shows that those before it never will.
		a, z, wr := e.datagrams(shape{})
		src, dst := a.mr(8, 0), z.mr(48, localOnly)
		fill(src.Bytes(), 9)
		wr.SGList = []uverbs.SGE{src.SGE(0, 8)}
		good := wr
		for name, spoil := range map[string]func(*uverbs.SendWR){
			"wrong QKey": func(w *uverbs.SendWR) { w.RemoteQKey++ },
			"unknown QP": func(w *uverbs.SendWR) { w.RemoteQPN ^= 0x7ff000 },
		} {
			z.recv(2, dst.SGE(0, 48))
			bad := good
			spoil(&bad)
			bad.WRID = 1
			a.send(bad)
			a.sent(1, uverbs.WCSend)
			good.WRID = 3
			good.Opcode, good.ImmData = uverbs.WRSendWithImm, 1234
			a.send(good)
			a.sent(3, uverbs.WCSend)
			got := dropped
			if wc := z.received(2, uverbs.WCRecv, 48); wc.ImmData != 1234 {
				got = "received"
			}
			if name == "wrong QKey" {
				e.rule(RuleUDBadQKey, got)
			} else if got != dropped {
				e.Errorf("%s: %s", name, got)
			}
		}
	}},
	{name: "UDWithoutReceiveDropsAndGoesOn", run: func(e *env) {
		a, z, wr := e.datagrams(shape{})
		src, dst := a.mr(8, 0), z.mr(48, localOnly)
		wr.SGList = []uverbs.SGE{src.SGE(0, 8)}
		for i := range uint64(5) {
			wr.WRID = i
			a.send(wr)
			a.sent(i, uverbs.WCSend)
		}
		// The five may still be on their way: a receive takes the first that
		// comes from now on. One that is numbered must get through.
		for i := uint32(1); ; i++ {
			z.recv(2, dst.SGE(0, 48))
			wr.WRID, wr.Opcode, wr.ImmData = 9, uverbs.WRSendWithImm, 77
			a.send(wr)
			a.sent(9, uverbs.WCSend)
			if wc := z.received(2, uverbs.WCRecv, 48); wc.ImmData == 77 {
				break
			}
			if i > 6 {
				e.Fatal("the datagrams without a receive were kept")
			}
		}
	}},
	{name: "UDDatagramLongerThanTheReceive", run: func(e *env) {
		a, z, wr := e.datagrams(shape{})
		src, dst := a.mr(100, 0), z.mr(300, localOnly)
		wr.SGList = []uverbs.SGE{src.SGE(0, 100)}
		z.recv(2, dst.SGE(0, 139)) // one short, with the GRH
		z.recv(3, dst.SGE(140, 140))
		a.send(wr)
		a.sent(0, uverbs.WCSend)
		if e.expects(RuleUDRecvSmall) == dropped {
			// What does fit shows that the other is gone, and that its receive was
			// kept.
			wr.WRID, wr.SGList = 1, []uverbs.SGE{src.SGE(0, 99)}
			a.send(wr)
			a.sent(1, uverbs.WCSend)
			wc := z.one(z.recvCQ, 2)
			e.rule(RuleUDRecvSmall, map[bool]string{true: dropped, false: status(wc.Status)}[wc.Status == uverbs.WCSuccess && wc.ByteLen == 139])
			return
		}
		wcs := z.wait(z.recvCQ, 2)
		e.rule(RuleUDRecvSmall, status(wcs[0].Status))
		if wcs[0].WRID != 2 || wcs[1].WRID != 3 || wcs[1].Status != uverbs.WCWRFlushErr {
			e.Errorf("%+v, want work request 2, and 3 flushed", wcs)
		}
		z.state(uverbs.QPStateErr)
		a.state(uverbs.QPStateRTS)
	}},
	{name: "UDSendLongerThanTheMTU", run: func(e *env) {
		a, z, wr := e.datagrams(shape{})
		mtu := min(a.mtu, z.mtu).Bytes()
		src, dst := a.mr(mtu+1, 0), z.mr(mtu+100, localOnly)
		z.recv(2, dst.SGE(0, mtu+100))
		wr.SGList = []uverbs.SGE{src.SGE(0, mtu+1)}
		a.send(wr)
		wc := a.one(a.sendCQ, 0)
		if wc.Status != uverbs.WCSuccess {
			e.rule(RuleUDTooLong, status(wc.Status))
			e.rule(RuleUDErrState, a.settled().String())
			return
		}
		wr.WRID, wr.SGList = 1, []uverbs.SGE{src.SGE(0, 10)}
		a.send(wr)
		a.sent(1, uverbs.WCSend)
		z.received(2, uverbs.WCRecv, 10+grhBytes)
		e.rule(RuleUDTooLong, dropped)
	}},
	{name: "UDSendOfBadMemoryFails", run: func(e *env) {
		a, z, wr := e.datagrams(shape{})
		src, dst := a.mr(10, 0), z.mr(100, localOnly)
		z.recv(2, dst.SGE(0, 100))
		bad := src.SGE(0, 10)
		bad.LKey ^= 0x10100
		wr.SGList = []uverbs.SGE{bad}
		a.send(wr)
		e.rule(RuleBadUDGather, a.failed(a.sendCQ, 0))
		e.rule(RuleUDErrState, a.settled().String())
		z.idle(z.recvCQ)
	}},
	{name: "PostSendRefusesWhatUDCannotDo", run: func(e *env) {
		a, z, wr := e.datagrams(shape{})
		mr := a.mr(100, remoteRW)
		other, _ := e.connect(shape{}, rc{}) // of the same context, another PD
		for name, spoil := range map[string]func(*uverbs.SendWR){
			"RDMA WRITE":    func(w *uverbs.SendWR) { w.Opcode = uverbs.WRRDMAWrite },
			"RDMA READ":     func(w *uverbs.SendWR) { w.Opcode = uverbs.WRRDMARead },
			"fetch-and-add": func(w *uverbs.SendWR) { w.Opcode = uverbs.WRAtomicFetchAndAdd },
			"opcode 99":     func(w *uverbs.SendWR) { w.Opcode = 99 },
		} {
			bad := wr
			bad.SGList = []uverbs.SGE{mr.SGE(0, 8)}
			spoil(&bad)
			n, err := a.qp.PostSend([]uverbs.SendWR{wr, bad, wr})
			if n != 1 {
				e.Errorf("%s: %d posted, want the one before it", name, n)
			}
			e.fails(name, err, uverbs.ErrBadOpcode)
			a.sent(0, uverbs.WCSend)
		}
		bad := wr
		bad.AH = nil
		_, err := a.qp.PostSend([]uverbs.SendWR{bad})
		e.fails("no address handle", err, uverbs.ErrBadAH)
		bad.AH = z.ah(z.prot, a.host)
		_, err = a.qp.PostSend([]uverbs.SendWR{bad})
		e.fails("an address handle of another context", err, uverbs.ErrBadAH)
		_, err = other.qp.PostSend([]uverbs.SendWR{{Opcode: 99}})
		e.fails("opcode 99 on RC", err, uverbs.ErrBadOpcode)
		_, err = other.qp.PostSend([]uverbs.SendWR{{Opcode: uverbs.WRSend, SGList: make([]uverbs.SGE, other.qp.Cap().MaxSendSGE+1)}})
		e.fails("too many pieces to send", err, uverbs.ErrTooManySGEs)
		_, err = other.qp.PostRecv([]uverbs.RecvWR{{SGList: make([]uverbs.SGE, other.qp.Cap().MaxRecvSGE+1)}})
		e.fails("too many pieces to receive", err, uverbs.ErrTooManySGEs)
		a.send(wr)
		a.sent(0, uverbs.WCSend)
		a.idle(a.sendCQ)
	}},
	{name: "AddressHandlesAreChecked", run: func(e *env) {
		pd := e.a.pd()
		for name, spoil := range map[string]func(*uverbs.AHAttr){
			"port 0":         func(a *uverbs.AHAttr) { a.Port = 0 },
			"port 200":       func(a *uverbs.AHAttr) { a.Port = 200 },
			"no GRH":         func(a *uverbs.AHAttr) { a.IsGlobal = false },
			"GID index 255":  func(a *uverbs.AHAttr) { a.SGIDIndex = 255 },
			"v6 from a v4":   func(a *uverbs.AHAttr) { a.DGID = uverbs.GID{0: 0x20, 1: 1, 15: 7} },
			"empty GID slot": nil,
		} {
			av := e.a.av(e.z)
			if spoil != nil {
				spoil(&av)
			} else if av.SGIDIndex = e.emptyGID(e.a); av.SGIDIndex == 0 {
				e.Log("no empty GID slot")
				continue
			}
			if name == "v6 from a v4" && !e.a.gid.Addr().Is4() {
				continue
			}
			if e.a.ib && av.Port == port {
				continue // the device is told, and nobody looks at them before
			}
			ah, err := pd.CreateAH(&av)
			if err == nil {
				e.Errorf("%s: accepted", name)
				e.must(ah.Close())
				continue
			}
			if _, ok := err.(*uverbs.Error); !ok {
				e.Errorf("%s: %T", name, err)
			}
		}
		e.must(pd.Close()) // the failures left nothing behind
	}},
}

// settled is the state that the QP goes to after an error.
func (d *end) settled() uverbs.QPState {
	d.e.Helper()
	var s uverbs.QPState
	d.e.until("QP out of RTS", func() bool { s = d.query().State; return s != uverbs.QPStateRTS })
	return s
}

// emptyGID returns an empty slot of the GID table, 0 if there is none.
func (e *env) emptyGID(h *host) uint8 {
	e.Helper()
	p, err := h.ctx.QueryPort(port)
	e.must(err)
	for i := range min(p.GIDTblLen, 255) {
		if _, err := h.ctx.QueryGID(port, i); err != nil {
			return uint8(i)
		}
	}
	return 0
}
