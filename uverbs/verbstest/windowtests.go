package verbstest

import "github.com/rrppcc-go/rrppcc/uverbs"

// bound is a window of type 2 onto 64 bytes of a region at z, bound to z's QP.
type bound struct {
	mr   *uverbs.MR
	mw   *uverbs.MW
	addr uint64
	rkey uint32
}

// window makes a region and binds a window to bytes 32 to 96 of it.
func (z *end) window(access uverbs.AccessFlags) *bound {
	z.e.Helper()
	mr := z.mr(128, uverbs.AccessLocalWrite|uverbs.AccessMWBind)
	mw, err := z.prot.AllocMW(uverbs.MWType2)
	z.e.must(err)
	z.e.closeLater(mw)
	b := &bound{mr: mr, mw: mw, addr: mr.Addr() + 32, rkey: uverbs.NextRKey(mw.RKey())}
	z.send(uverbs.SendWR{WRID: 50, Opcode: uverbs.WRBindMW, Flags: uverbs.SendSignaled, Bind: &uverbs.MWBind{MW: mw, OldRKey: mw.RKey(), NewRKey: b.rkey,
		LKey: mr.LKey(), Addr: b.addr, Length: 64, Access: access}})
	z.sent(50, uverbs.WCBindMW)
	return b
}

// write is a WRITE of n bytes to a window.
func (b *bound) write(src *uverbs.MR, off, n int) uverbs.SendWR {
	return uverbs.SendWR{WRID: 1, Opcode: uverbs.WRRDMAWrite, Flags: uverbs.SendSignaled, SGList: []uverbs.SGE{src.SGE(0, n)}, RemoteAddr: b.addr + uint64(off), RKey: b.rkey}
}

var windowTests = []test{
	{name: "WindowGrantsItsPartOfTheRegion", needs: []Capability{MemoryWindows}, run: func(e *env) {
		a, z := e.connect(shape{}, rc{})
		src := a.mr(128, localOnly)
		fill(src.Bytes(), 1)
		b := z.window(uverbs.AccessRemoteWrite)
		a.send(b.write(src, 0, 64))
		a.sent(1, uverbs.WCRDMAWrite)
		e.same(b.mr.Bytes()[32:96], src.Bytes()[:64])
		e.is(b.mr.Bytes()[:32], 0)
		e.is(b.mr.Bytes()[96:], 0)
		a.send(b.write(src, 1, 64))
		e.rule(RuleWindowBounds, status(a.one(a.sendCQ, 1).Status))
		e.is(b.mr.Bytes()[97:], 0)
	}},
	{name: "WindowGrantsNothingThatItWasNotBoundFor", needs: []Capability{MemoryWindows}, run: func(e *env) {
		a, z := e.connect(shape{}, rc{})
		src := a.mr(128, localOnly)
		fill(src.Bytes(), 1)
		b := z.window(uverbs.AccessRemoteRead)
		a.send(b.write(src, 0, 8))
		if got := a.failed(a.sendCQ, 1); got != status(uverbs.WCRemAccessErr) {
			e.Errorf("WRITE to a window for reading: %s", got)
		}
		e.is(b.mr.Bytes(), 0)
	}},
	{name: "WindowDoesNotOutliveItsRegion", needs: []Capability{MemoryWindows}, run: func(e *env) {
		a, z := e.connect(shape{}, rc{})
		src := a.mr(128, localOnly)
		fill(src.Bytes(), 1)
		b := z.window(uverbs.AccessRemoteWrite)
		if err := b.mr.Close(); err != nil {
			e.rule(RuleBoundRegion, refused)
			a.send(b.write(src, 0, 8)) // both go on
			a.sent(1, uverbs.WCRDMAWrite)
			e.same(b.mr.Bytes()[32:40], src.Bytes()[:8])
			e.must(b.mw.Close())
			e.must(b.mr.Close())
			return
		}
		e.rule(RuleBoundRegion, accepted)
		a.send(b.write(src, 0, 8))
		if got := a.failed(a.sendCQ, 1); got != status(uverbs.WCRemAccessErr) {
			e.Errorf("WRITE through a window to a closed region: %s", got)
		}
		e.is(b.mr.Bytes(), 0)
	}},
}

var invalidateTests = []test{
	{name: "SendWithInvEndsAWindow", needs: []Capability{MemoryWindows, Invalidation}, run: func(e *env) {
		a, z := e.connect(shape{}, rc{})
		src, dst := a.mr(128, localOnly), z.mr(128, localOnly)
		fill(src.Bytes(), 1)
		b := z.window(uverbs.AccessRemoteWrite)
		a.send(b.write(src, 0, 8))
		a.sent(1, uverbs.WCRDMAWrite)
		z.recv(2, dst.SGE(0, 128))
		a.send(uverbs.SendWR{WRID: 3, Opcode: uverbs.WRSendWithInv, Flags: uverbs.SendSignaled, InvalidateRKey: b.rkey, SGList: []uverbs.SGE{src.SGE(0, 100)}})
		a.sent(3, uverbs.WCSend)
		wc := z.received(2, uverbs.WCRecv, 100)
		if wc.Flags&uverbs.WCWithInv == 0 || wc.ImmData != b.rkey {
			e.Errorf("flags %#x, key %#x, want %#x invalidated", wc.Flags, wc.ImmData, b.rkey)
		}
		e.same(dst.Bytes()[:100], src.Bytes()[:100])
		a.send(b.write(src, 8, 8))
		if got := a.failed(a.sendCQ, 1); got != status(uverbs.WCRemAccessErr) {
			e.Errorf("WRITE after the invalidation: %s", got)
		}
		e.is(b.mr.Bytes()[40:], 0)
	}},
	{name: "LocalInvEndsAWindow", needs: []Capability{MemoryWindows, Invalidation}, run: func(e *env) {
		a, z := e.connect(shape{}, rc{})
		src := a.mr(128, localOnly)
		fill(src.Bytes(), 1)
		b := z.window(uverbs.AccessRemoteWrite)
		z.send(uverbs.SendWR{WRID: 4, Opcode: uverbs.WRLocalInv, Flags: uverbs.SendSignaled, InvalidateRKey: b.rkey})
		z.sent(4, uverbs.WCLocalInv)
		a.send(b.write(src, 0, 8))
		if got := a.failed(a.sendCQ, 1); got != status(uverbs.WCRemAccessErr) {
			e.Errorf("WRITE after the invalidation: %s", got)
		}
		e.is(b.mr.Bytes(), 0)
	}},
	{name: "InvalidationOfNothingFails", needs: []Capability{Invalidation}, run: func(e *env) {
		// The specification leaves open what the sender is told, if anything.
		a, z := e.connect(shape{}, rc{})
		dst := z.mr(8, localOnly)
		z.recv(2, dst.SGE(0, 8))
		a.send(uverbs.SendWR{WRID: 3, Opcode: uverbs.WRSendWithInv, InvalidateRKey: 0xdead00})
		z.failed(z.recvCQ, 2)
		z.state(uverbs.QPStateErr)
		renew(a, z, rc{})
		works(a, z)
		a.send(uverbs.SendWR{WRID: 4, Opcode: uverbs.WRLocalInv, InvalidateRKey: 0xdead00})
		a.failed(a.sendCQ, 4)
		a.state(uverbs.QPStateErr)
		z.state(uverbs.QPStateRTS)
	}},
}
