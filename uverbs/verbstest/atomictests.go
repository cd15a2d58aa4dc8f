package verbstest

import (
	"encoding/binary"

	"github.com/rrppcc-go/rrppcc/uverbs"
)

const atomicMR = uverbs.AccessLocalWrite | uverbs.AccessRemoteAtomic | uverbs.AccessRemoteRead

var atomicTests = []test{
	{name: "FetchAndAddAddsAndTellsTheOldValue", needs: []Capability{Atomics}, run: func(e *env) {
		a, z := e.connect(shape{}, rc{})
		old, word := a.mr(8, localOnly), z.mr(24, atomicMR)
		v := uint64(0x0102030405060708)
		binary.NativeEndian.PutUint64(word.Bytes()[8:], v)
		for i, add := range []uint64{1, 0xff, ^uint64(0), 1 << 63, 0} {
			a.send(uverbs.SendWR{WRID: uint64(i), Opcode: uverbs.WRAtomicFetchAndAdd, Flags: uverbs.SendSignaled, SGList: []uverbs.SGE{old.SGE(0, 8)},
				RemoteAddr: word.Addr() + 8, RKey: word.RKey(), CompareAdd: add})
			a.sent(uint64(i), uverbs.WCFetchAdd)
			if got := binary.NativeEndian.Uint64(old.Bytes()); got != v {
				e.Errorf("old value %#x, want %#x", got, v)
			}
			v += add
			if got := binary.NativeEndian.Uint64(word.Bytes()[8:]); got != v {
				e.Errorf("after adding %#x: %#x, want %#x", add, got, v)
			}
		}
		e.is(word.Bytes()[:8], 0)
		e.is(word.Bytes()[16:], 0)
	}},
	{name: "CompareAndSwapSwapsWhereEqual", needs: []Capability{Atomics}, run: func(e *env) {
		a, z := e.connect(shape{}, rc{})
		old, word := a.mr(8, localOnly), z.mr(24, atomicMR)
		v := uint64(0x0102030405060708)
		binary.NativeEndian.PutUint64(word.Bytes()[8:], v)
		for i, c := range []struct{ compare, swap uint64 }{{v, 7}, {v, 8}, {7, 1 << 63}, {0, 5}, {1 << 63, 0}} {
			a.send(uverbs.SendWR{WRID: uint64(i), Opcode: uverbs.WRAtomicCmpAndSwp, Flags: uverbs.SendSignaled, SGList: []uverbs.SGE{old.SGE(0, 8)},
				RemoteAddr: word.Addr() + 8, RKey: word.RKey(), CompareAdd: c.compare, Swap: c.swap})
			a.sent(uint64(i), uverbs.WCCompSwap)
			if got := binary.NativeEndian.Uint64(old.Bytes()); got != v {
				e.Errorf("old value %#x, want %#x", got, v)
			}
			if v == c.compare {
				v = c.swap
			}
			if got := binary.NativeEndian.Uint64(word.Bytes()[8:]); got != v {
				e.Errorf("%d: %#x, want %#x", i, got, v)
			}
		}
		e.is(word.Bytes()[:8], 0)
		e.is(word.Bytes()[16:], 0)
	}},
	{name: "AtomicsOfManyQPsAddUp", needs: []Capability{Atomics}, run: func(e *env) {
		zpd := e.z.pd()
		word := e.mr(zpd, 8, atomicMR)
		const qps = 4
		rounds := scaled(200, 20)
		var ends []*end
		var olds []*uverbs.MR
		for range qps {
			a := e.a.end(shape{})
			z := &end{host: e.z, prot: zpd, sendCQ: e.z.cq(8, nil), recvCQ: e.z.cq(8, nil)}
			z.qp = e.z.qp(zpd, uverbs.QPInitAttr{Type: uverbs.QPTypeRC, SendCQ: z.sendCQ, RecvCQ: z.recvCQ,
				Cap: uverbs.QPCap{MaxSendWR: 1, MaxRecvWR: 1, MaxSendSGE: 1, MaxRecvSGE: 1}})
			a.up(z, rc{})
			z.up(a, rc{})
			ends, olds = append(ends, a), append(olds, a.mr(8*8, localOnly))
		}
		seen := map[uint64]bool{}
		for range rounds {
			for i, a := range ends {
				for k := range 8 {
					a.send(uverbs.SendWR{WRID: uint64(k), Opcode: uverbs.WRAtomicFetchAndAdd, Flags: uverbs.SendSignaled, SGList: []uverbs.SGE{olds[i].SGE(8*k, 8)},
						RemoteAddr: word.Addr(), RKey: word.RKey(), CompareAdd: 1})
				}
			}
			for i, a := range ends {
				for _, wc := range a.wait(a.sendCQ, 8) {
					if wc.Status != uverbs.WCSuccess {
						e.Fatalf("%+v", wc)
					}
					v := binary.NativeEndian.Uint64(olds[i].Bytes()[8*wc.WRID:])
					if seen[v] {
						e.Fatalf("two saw the old value %d", v)
					}
					seen[v] = true
				}
			}
		}
		if got := binary.NativeEndian.Uint64(word.Bytes()); got != uint64(8*qps*rounds) {
			e.Errorf("sum %d, want %d", got, 8*qps*rounds)
		}
	}},
	{name: "AtomicsNeedTheirRightAndAlignment", needs: []Capability{Atomics}, run: func(e *env) {
		a, z := e.connect(shape{}, rc{})
		old, word, plain := a.mr(8, localOnly), z.mr(24, atomicMR), z.mr(24, remoteRW)
		add := func(addr uint64, key uint32) string {
			e.Helper()
			a.send(uverbs.SendWR{WRID: 1, Opcode: uverbs.WRAtomicFetchAndAdd, SGList: []uverbs.SGE{old.SGE(0, 8)}, RemoteAddr: addr, RKey: key, CompareAdd: 1})
			got := a.failed(a.sendCQ, 1)
			a.state(uverbs.QPStateErr)
			z.state(uverbs.QPStateErr)
			renew(a, z, rc{})
			return got
		}
		for name, got := range map[string]string{
			"a region without AccessRemoteAtomic": add(plain.Addr(), plain.RKey()),
			"behind the end":                      add(word.Addr()+24, word.RKey()),
			"a bad key":                           add(word.Addr(), word.RKey()^0x10100),
		} {
			if got != status(uverbs.WCRemAccessErr) {
				e.Errorf("%s: %s, want remote access error", name, got)
			}
		}
		e.rule(RuleMisaligned, add(word.Addr()+4, word.RKey()))
		e.is(word.Bytes(), 0)
		e.is(plain.Bytes(), 0)
		works(a, z)
	}},
}
