package verbstest

import (
	"bytes"
	"errors"
	"syscall"

	"github.com/rrppcc-go/rrppcc/uverbs"
)

// lidTests are about what InfiniBand's link layer has of its own.
var lidTests = []test{
	{name: "InfiniBandPortHasALIDAndAGID", needs: []Capability{LIDs}, run: func(e *env) {
		for _, h := range []*host{e.a, e.z} {
			p, err := h.ctx.QueryPort(port)
			e.must(err)
			if p.LinkLayer != uverbs.LinkLayerInfiniBand || p.LID == 0 || p.LID > 0xbfff || p.SMLID == 0 || p.SMLID > 0xbfff {
				e.Errorf("port %+v", p)
			}
			g, err := h.ctx.QueryGID(port, 0)
			e.must(err)
			if g.Type != uverbs.GIDTypeIB || h.gidIndex != 0 || g.GID != h.gid || bytes.Equal(g.GID[8:], make([]byte, 8)) {
				e.Errorf("GID 0 is %+v; index %d was chosen", g, h.gidIndex)
			}
		}
	}},
	{name: "DatagramHasAGRHIfAskedFor", needs: []Capability{LIDs}, run: func(e *env) {
		a, z, wr := e.datagrams(shape{})
		src, dst := a.mr(100, 0), z.mr(140, localOnly)
		fill(src.Bytes(), 5)
		for sl, global := range []bool{false, true, true, false} {
			av := a.globalAV(z.host)
			if !global {
				av = uverbs.AHAttr{DLID: z.lid, Port: port}
			}
			av.SL = uint8(sl)
			ah, err := a.prot.CreateAH(&av)
			e.must(err)
			e.closeLater(ah)
			for i := range dst.Bytes() {
				dst.Bytes()[i] = 0xcc
			}
			z.recv(2, dst.SGE(0, 140))
			wr.AH, wr.SGList = ah, []uverbs.SGE{src.SGE(0, 100)}
			a.send(wr)
			a.sent(0, uverbs.WCSend)
			wc := z.received(2, uverbs.WCRecv, 100+grhBytes)
			if wc.SLID != a.lid || wc.SL != av.SL || wc.SrcQP != a.qp.QPN() || wc.Flags&uverbs.WCGRH != 0 != global {
				e.Errorf("completion %+v, want LID %#x, service level %d, QP %#x, a GRH: %v", wc, a.lid, av.SL, a.qp.QPN(), global)
			}
			e.same(dst.Bytes()[grhBytes:], src.Bytes())
			if !global {
				e.is(dst.Bytes()[:grhBytes], 0xcc)
				continue
			}
			h := dst.Bytes()
			if h[0]>>4 != 6 || h[6] != 0x1b {
				e.Errorf("GRH %x", h[:grhBytes])
			}
			e.same(h[4:6], []byte{0, 12 + 8 + 100 + 4}) // BTH to ICRC
			e.same(h[8:24], a.gid[:])
			e.same(h[24:40], z.gid[:])
		}
	}},
	{name: "ConnectionsGoByLID", needs: []Capability{LIDs}, run: func(e *env) {
		for _, typ := range []uverbs.QPType{uverbs.QPTypeRC, uverbs.QPTypeUC} {
			if typ == uverbs.QPTypeUC && e.b.Lacks[UC] != "" {
				continue
			}
			for _, global := range []bool{false, true} {
				a, z := e.a.end(shape{typ: typ}), e.z.end(shape{typ: typ})
				for _, dir := range [][2]*end{{a, z}, {z, a}} {
					from, to := dir[0], dir[1]
					av := from.globalAV(to.host)
					if !global {
						av = uverbs.AHAttr{DLID: to.lid, Port: port}
					}
					av.SL = 2
					from.upBy(to, av, rc{})
					q := from.query()
					if q.AV.DLID != to.lid || q.AV.SL != 2 || q.AV.IsGlobal != global || q.AV.Port != port || global != (q.AV.DGID == to.gid) {
						e.Errorf("%v, global %v: address vector %+v", typ, global, q.AV)
					}
				}
				works(a, z)
			}
		}
	}},
	{name: "PortReachesItselfByLID", needs: []Capability{LIDs}, run: func(e *env) {
		a, z := e.a.end(shape{}), e.a.end(shape{})
		a.up(z, rc{})
		z.up(a, rc{})
		works(a, z)
	}},
	{name: "LIDThatNobodyHasIsUnreachable", needs: []Capability{LIDs}, run: func(e *env) {
		nobody := uverbs.AHAttr{DLID: 0xbfe0, Port: port}
		for nobody.DLID == e.a.lid || nobody.DLID == e.z.lid {
			nobody.DLID--
		}
		d, f, wr := e.datagrams(shape{})
		src, dst := d.mr(8, 0), f.mr(48, localOnly)
		ah, err := d.prot.CreateAH(&nobody)
		e.must(err)
		e.closeLater(ah)
		f.recv(2, dst.SGE(0, 48))
		lost := wr
		lost.WRID, lost.AH, lost.SGList = 1, ah, []uverbs.SGE{src.SGE(0, 8)}
		d.send(lost)
		d.sent(1, uverbs.WCSend) // whatever becomes of it
		wr.WRID, wr.Opcode, wr.ImmData = 3, uverbs.WRSendWithImm, 3
		d.send(wr)
		d.sent(3, uverbs.WCSend)
		if wc := f.received(2, uverbs.WCRecv, grhBytes); wc.ImmData != 3 {
			e.Errorf("the datagram that is received is %+v", wc)
		}

		a, z := e.a.end(shape{}), e.z.end(shape{})
		quick := rc{timeout: 8, retries: 2}
		a.upBy(z, nobody, quick)
		z.up(a, rc{})
		a.send(uverbs.SendWR{WRID: 4, Opcode: uverbs.WRSend, Flags: uverbs.SendSignaled})
		if got, want := a.failed(a.sendCQ, 4), status(uverbs.WCRetryExcErr); got != want {
			e.Errorf("RC to a LID that nobody has: %s, want %s", got, want)
		}
		a.state(uverbs.QPStateErr)
	}},
	{name: "PortAndGIDIndexOfAVectorAreChecked", needs: []Capability{LIDs}, run: func(e *env) {
		a := e.a.end(shape{})
		conn := rc{}
		e.must(a.qp.Modify(conn.init(), rcInit))
		for name, spoil := range map[string]func(*uverbs.AHAttr){
			"port 9":        func(av *uverbs.AHAttr) { av.Port = 9 },
			"GID index 255": func(av *uverbs.AHAttr) { av.SGIDIndex = 255 },
		} {
			av := a.globalAV(e.z)
			spoil(&av)
			if err := a.qp.Modify(conn.rtr(av, 77, 0), rcRTR); !errors.Is(err, syscall.EINVAL) {
				e.Errorf("%s: %v, want EINVAL", name, err)
			}
		}
		av := uverbs.AHAttr{DLID: e.z.lid, SGIDIndex: 255, Port: port} // of a GRH that is not there
		e.must(a.qp.Modify(conn.rtr(av, 77, 0), rcRTR))
	}},
}
