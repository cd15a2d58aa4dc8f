package verbstest

import (
	"github.com/rrppcc-go/rrppcc/uverbs"
)

// rcTests: what each operation of a connected QP does to memory, and what the
// completions on both sides say.
var rcTests = []test{
	{name: "RCSendBringsDataToTheReceive", run: func(e *env) {
		a, z := e.connect(shape{}, rc{})
		src, dst := a.mr(3000, 0), z.mr(3000, localOnly)
		fill(src.Bytes(), 1)
		z.recv(2, dst.SGE(0, 3000))
		a.send(uverbs.SendWR{WRID: 1, Opcode: uverbs.WRSend, Flags: uverbs.SendSignaled, SGList: []uverbs.SGE{src.SGE(0, 3000)}})
		a.sent(1, uverbs.WCSend)
		if wc := z.received(2, uverbs.WCRecv, 3000); wc.Flags&(uverbs.WCWithImm|uverbs.WCWithInv) != 0 {
			e.Errorf("flags %#x of a SEND without immediate", wc.Flags)
		}
		e.same(dst.Bytes(), src.Bytes())
	}},
	{name: "RCSendWithImmCarriesIt", run: func(e *env) {
		a, z := e.connect(shape{}, rc{})
		dst := z.mr(64, localOnly)
		src := a.mr(64, 0)
		fill(src.Bytes(), 7)
		for i, imm := range []uint32{0x01020304, 0, 0xffffffff} {
			z.recv(2, dst.SGE(0, 64))
			a.send(uverbs.SendWR{WRID: 1, Opcode: uverbs.WRSendWithImm, Flags: uverbs.SendSignaled, ImmData: imm, SGList: []uverbs.SGE{src.SGE(0, i*20)}})
			a.sent(1, uverbs.WCSend)
			wc := z.received(2, uverbs.WCRecv, i*20)
			if wc.Flags&uverbs.WCWithImm == 0 || wc.ImmData != imm {
				e.Errorf("immediate %#x with flags %#x, want %#x", wc.ImmData, wc.Flags, imm)
			}
			e.same(dst.Bytes()[:i*20], src.Bytes()[:i*20])
		}
	}},
	{name: "WriteChangesRemoteMemoryAlone", run: func(e *env) {
		a, z := e.connect(shape{}, rc{})
		src, dst := a.mr(3000, 0), z.mr(3100, remoteRW)
		fill(src.Bytes(), 3)
		recv := z.mr(8, localOnly)
		z.recv(9, recv.SGE(0, 8))
		a.send(uverbs.SendWR{WRID: 1, Opcode: uverbs.WRRDMAWrite, Flags: uverbs.SendSignaled, SGList: []uverbs.SGE{src.SGE(0, 3000)},
			RemoteAddr: dst.Addr() + 50, RKey: dst.RKey()})
		a.sent(1, uverbs.WCRDMAWrite)
		e.same(dst.Bytes()[50:3050], src.Bytes())
		e.is(dst.Bytes()[:50], 0)
		e.is(dst.Bytes()[3050:], 0)
		z.idle(z.recvCQ)
		a.send(uverbs.SendWR{WRID: 2, Opcode: uverbs.WRSend, Flags: uverbs.SendSignaled, SGList: []uverbs.SGE{src.SGE(0, 8)}})
		a.sent(2, uverbs.WCSend)
		z.received(9, uverbs.WCRecv, 8) // the WRITE did not use it up
	}},
	{name: "WriteWithImmUsesAReceive", run: func(e *env) {
		a, z := e.connect(shape{}, rc{})
		for _, n := range []int{0, 5, 3000} {
			src, dst := a.mr(3000, 0), z.mr(3000, remoteRW)
			fill(src.Bytes(), byte(n))
			z.recv(2) // no memory: the data go elsewhere
			a.send(uverbs.SendWR{WRID: 1, Opcode: uverbs.WRRDMAWriteWithImm, Flags: uverbs.SendSignaled, ImmData: 0xa0b0c0d0,
				SGList: []uverbs.SGE{src.SGE(0, n)}, RemoteAddr: dst.Addr(), RKey: dst.RKey()})
			a.sent(1, uverbs.WCRDMAWrite)
			wc := z.received(2, uverbs.WCRecvRDMAWithImm, n)
			if wc.Flags&uverbs.WCWithImm == 0 || wc.ImmData != 0xa0b0c0d0 {
				e.Errorf("immediate %#x with flags %#x", wc.ImmData, wc.Flags)
			}
			e.same(dst.Bytes()[:n], src.Bytes()[:n])
			e.is(dst.Bytes()[n:], 0)
		}
	}},
	{name: "ReadBringsRemoteMemory", run: func(e *env) {
		a, z := e.connect(shape{}, rc{})
		src, dst := z.mr(3000, uverbs.AccessRemoteRead), a.mr(3100, localOnly)
		fill(src.Bytes(), 5)
		a.send(uverbs.SendWR{WRID: 1, Opcode: uverbs.WRRDMARead, Flags: uverbs.SendSignaled, SGList: []uverbs.SGE{dst.SGE(50, 3000)},
			RemoteAddr: src.Addr(), RKey: src.RKey()})
		a.sent(1, uverbs.WCRDMARead)
		e.same(dst.Bytes()[50:3050], src.Bytes())
		e.is(dst.Bytes()[:50], 0)
		e.is(dst.Bytes()[3050:], 0)
		z.idle(z.sendCQ)
		z.idle(z.recvCQ)
	}},
	{name: "OperationsOfAQPTakeEffectInOrder", run: func(e *env) {
		// Each WRITE is read back by the READ behind it, and overwritten by the
		// next WRITE.
		a, z := e.connect(shape{wrs: 64}, rc{})
		const n = 1500
		src, back, far := a.mr(16*n, 0), a.mr(16*n, localOnly), z.mr(n, remoteRW)
		fill(src.Bytes(), 11)
		var wrs []uverbs.SendWR
		for i := range 16 {
			wrs = append(wrs,
				uverbs.SendWR{WRID: uint64(2 * i), Opcode: uverbs.WRRDMAWrite, Flags: uverbs.SendSignaled, SGList: []uverbs.SGE{src.SGE(i*n, n)}, RemoteAddr: far.Addr(), RKey: far.RKey()},
				uverbs.SendWR{WRID: uint64(2*i + 1), Opcode: uverbs.WRRDMARead, Flags: uverbs.SendSignaled, SGList: []uverbs.SGE{back.SGE(i*n, n)}, RemoteAddr: far.Addr(), RKey: far.RKey()})
		}
		// A READ is answered from memory as it is then, and a WRITE behind it may
		// come first unless it waits: IBTA has READs relaxed. A fence orders them.
		for i := 2; i < len(wrs); i += 2 {
			wrs[i].Flags |= uverbs.SendFence
		}
		a.send(wrs...)
		for i, wc := range a.wait(a.sendCQ, len(wrs)) {
			if wc.Status != uverbs.WCSuccess || wc.WRID != uint64(i) {
				e.Fatalf("completion %d: %+v", i, wc)
			}
		}
		e.same(back.Bytes(), src.Bytes())
	}},
	{name: "BothSidesSendAtOnce", run: func(e *env) {
		a, z := e.connect(shape{wrs: 64}, rc{})
		rounds := scaled(40, 5)
		const n, burst = 2500, 16
		ms := map[*end][2]*uverbs.MR{a: {a.mr(burst*n, 0), a.mr(burst*n, localOnly)}, z: {z.mr(burst*n, 0), z.mr(burst*n, localOnly)}}
		for r := range rounds {
			for i, d := range []*end{a, z} {
				fill(ms[d][0].Bytes(), byte(r*2+i))
				clear(ms[d][1].Bytes())
				for k := range burst {
					d.recv(uint64(k), ms[d][1].SGE(k*n, n))
				}
			}
			for k := range burst {
				for _, d := range []*end{a, z} {
					d.send(uverbs.SendWR{WRID: uint64(k), Opcode: uverbs.WRSend, Flags: uverbs.SendSignaled, SGList: []uverbs.SGE{ms[d][0].SGE(k*n, n)}})
				}
			}
			for _, d := range []*end{a, z} {
				for _, cq := range []*uverbs.CQ{d.sendCQ, d.recvCQ} {
					for k, wc := range d.wait(cq, burst) {
						if wc.Status != uverbs.WCSuccess || wc.WRID != uint64(k) {
							e.Fatalf("round %d, completion %d: %+v", r, k, wc)
						}
					}
				}
			}
			e.same(ms[z][1].Bytes(), ms[a][0].Bytes())
			e.same(ms[a][1].Bytes(), ms[z][0].Bytes())
		}
	}},
	{name: "QPConnectedToItselfTalksToItself", run: func(e *env) {
		a := e.a.end(shape{})
		a.up(a, rc{})
		src, dst := a.mr(2000, 0), a.mr(2000, remoteRW)
		fill(src.Bytes(), 4)
		a.recv(2, dst.SGE(0, 2000))
		a.send(uverbs.SendWR{WRID: 1, Opcode: uverbs.WRSend, Flags: uverbs.SendSignaled, SGList: []uverbs.SGE{src.SGE(0, 2000)}})
		a.sent(1, uverbs.WCSend)
		a.received(2, uverbs.WCRecv, 2000)
		e.same(dst.Bytes(), src.Bytes())
	}},
}
