package verbstest

import (
	"encoding/binary"
	"syscall"

	"github.com/rrppcc-go/rrppcc/uverbs"
)

// faultedTests: regions whose memory the device looks up when it accesses it, and
// memory that is a descriptor's.
var faultedTests = []test{
	{name: "OnDemandRegionsServeEveryOperation", needs: []Capability{OnDemand, Atomics}, run: func(e *env) {
		a, z := e.connect(shape{}, rc{})
		const n = 9000
		all := remoteRW | uverbs.AccessRemoteAtomic | uverbs.AccessOnDemand
		src, dst, far := a.mr(n, localOnly|uverbs.AccessOnDemand), z.mr(n, localOnly|uverbs.AccessOnDemand), z.mr(n, all)
		fill(src.Bytes(), 1)
		z.recv(2, dst.SGE(0, n))
		a.send(uverbs.SendWR{WRID: 1, Opcode: uverbs.WRSend, Flags: uverbs.SendSignaled, SGList: []uverbs.SGE{src.SGE(0, 10), src.SGE(10, n-10)}})
		a.sent(1, uverbs.WCSend)
		z.received(2, uverbs.WCRecv, n)
		e.same(dst.Bytes(), src.Bytes())
		a.send(uverbs.SendWR{WRID: 3, Opcode: uverbs.WRRDMAWrite, Flags: uverbs.SendSignaled, SGList: []uverbs.SGE{src.SGE(0, n)}, RemoteAddr: far.Addr(), RKey: far.RKey()})
		a.sent(3, uverbs.WCRDMAWrite)
		e.same(far.Bytes(), src.Bytes())
		fill(far.Bytes(), 77)
		a.send(uverbs.SendWR{WRID: 4, Opcode: uverbs.WRRDMARead, Flags: uverbs.SendSignaled, SGList: []uverbs.SGE{src.SGE(0, n)}, RemoteAddr: far.Addr(), RKey: far.RKey()})
		a.sent(4, uverbs.WCRDMARead)
		e.same(src.Bytes(), far.Bytes())
		was := binary.NativeEndian.Uint64(far.Bytes()[4096:])
		a.send(uverbs.SendWR{WRID: 5, Opcode: uverbs.WRAtomicFetchAndAdd, Flags: uverbs.SendSignaled, SGList: []uverbs.SGE{src.SGE(0, 8)}, RemoteAddr: far.Addr() + 4096, RKey: far.RKey(), CompareAdd: 5})
		a.sent(5, uverbs.WCFetchAdd)
		if old, now := binary.NativeEndian.Uint64(src.Bytes()), binary.NativeEndian.Uint64(far.Bytes()[4096:]); old != was || now != was+5 {
			e.Errorf("%#x became %#x, and was %#x for the requester", was, now, old)
		}
	}},
	{name: "OnDemandMemoryComesAndGoes", needs: []Capability{OnDemand}, run: func(e *env) {
		a, z := e.connect(shape{}, rc{})
		mine := a.mr(100, localOnly)
		fill(mine.Bytes(), 1)
		sink := z.mr(100, localOnly)
		sges := []uverbs.SGE{mine.SGE(0, 100)}
		for _, d := range []*end{a, z} {
			mem := e.pages(pageBytes)
			mr, err := d.prot.RegisterMR(mem, remoteRW|uverbs.AccessOnDemand)
			e.must(err)
			e.closeLater(mr)
			for round := range 2 {
				e.must(protect(mem, round == 1))
				var wr uverbs.SendWR
				if d == z {
					wr = uverbs.SendWR{Opcode: uverbs.WRRDMAWrite, SGList: sges, RemoteAddr: mr.Addr() + 50, RKey: mr.RKey()}
				} else {
					wr = uverbs.SendWR{Opcode: uverbs.WRSend, SGList: []uverbs.SGE{mr.SGE(50, 100)}}
					z.recv(8, sink.SGE(0, 100))
				}
				wr.WRID, wr.Flags = 1, uverbs.SendSignaled
				if round == 1 { // there again: the region is as it was
					if d == z {
						a.send(wr)
						a.sent(1, uverbs.WCRDMAWrite)
						e.same(mem[50:150], mine.Bytes())
					}
					continue
				}
				a.send(wr)
				got := a.failed(a.sendCQ, 1)
				if d == a && got != status(uverbs.WCLocProtErr) {
					e.Errorf("gather from memory that is gone: %s", got)
				} else if d == z {
					e.rule(RuleFaultedWrite, got)
				}
				a.state(uverbs.QPStateErr)
				renew(a, z, rc{})
			}
			e.must(protect(mem, true))
		}
	}},
	{name: "OnDemandRegionsAreNotReregistered", needs: []Capability{OnDemand, ReregMR}, run: func(e *env) {
		mr := e.mr(e.a.pd(), 4096, localOnly|uverbs.AccessOnDemand)
		e.fails("changing a region of on-demand paging", mr.Rereg(uverbs.ReregAccess, nil, nil, remoteRW), syscall.EOPNOTSUPP)
	}},
	{name: "DMABufsAreRegions", needs: []Capability{DMABuf}, run: func(e *env) {
		a, z := e.connect(shape{}, rc{})
		fd, mem, closeFD, err := sharedFile(4 * pageBytes)
		e.must(err)
		for name, c := range map[string]struct {
			fd     int
			off, n uint64
			access uverbs.AccessFlags
			want   syscall.Errno
		}{
			"behind the end":                   {fd, 3 * pageBytes, pageBytes + 1, localOnly, syscall.EINVAL},
			"around the end of numbers":        {fd, 1<<64 - 4096, 8192, localOnly, syscall.EINVAL},
			"an access flag that it cannot do": {fd, 0, 4096, localOnly | uverbs.AccessOnDemand, syscall.EINVAL},
			"AccessRemoteWrite without local":  {fd, 0, 4096, uverbs.AccessRemoteWrite, syscall.EINVAL},
			"no descriptor":                    {1 << 20, 0, 4096, localOnly, syscall.EBADF},
		} {
			bad, err := z.prot.RegisterDMABuf(c.fd, c.off, c.n, c.access)
			if err == nil {
				e.must(bad.Close())
			}
			e.fails(name, err, c.want)
		}
		const off, n = pageBytes + 100, 2*pageBytes - 200
		mr, err := z.prot.RegisterDMABuf(fd, off, n, remoteRW|uverbs.AccessRemoteAtomic)
		e.must(err)
		e.must(closeFD()) // the region stays
		if mr.Addr() != off || mr.Len() != n || mr.Bytes() != nil {
			e.Errorf("region of %d bytes at %d", mr.Len(), mr.Addr())
		}
		buf := mem[off : off+n]
		src := a.mr(n, localOnly)
		fill(src.Bytes(), 3)
		wr := uverbs.SendWR{WRID: 1, Opcode: uverbs.WRRDMAWrite, Flags: uverbs.SendSignaled, SGList: []uverbs.SGE{src.SGE(0, n)}, RemoteAddr: mr.Addr(), RKey: mr.RKey()}
		a.send(wr)
		a.sent(1, uverbs.WCRDMAWrite)
		e.same(buf, src.Bytes())
		e.is(mem[:off], 0)
		e.is(mem[off+n:], 0)
		fill(buf, 9)
		wr.Opcode = uverbs.WRRDMARead
		a.send(wr)
		a.sent(1, uverbs.WCRDMARead)
		e.same(src.Bytes(), buf)
		was := binary.NativeEndian.Uint64(mem[off+4:])
		a.send(uverbs.SendWR{WRID: 1, Opcode: uverbs.WRAtomicFetchAndAdd, Flags: uverbs.SendSignaled, SGList: []uverbs.SGE{src.SGE(0, 8)}, RemoteAddr: off + 4, RKey: mr.RKey(), CompareAdd: 1})
		a.sent(1, uverbs.WCFetchAdd)
		if now := binary.NativeEndian.Uint64(mem[off+4:]); now != was+1 {
			e.Errorf("%#x became %#x", was, now)
		}
		// It sends and receives as any memory.
		clear(buf)
		fill(src.Bytes(), 5)
		z.recv(2, mr.SGE(10, 5000))
		a.send(uverbs.SendWR{WRID: 1, Opcode: uverbs.WRSend, Flags: uverbs.SendSignaled, SGList: []uverbs.SGE{src.SGE(0, 5000)}})
		a.sent(1, uverbs.WCSend)
		z.received(2, uverbs.WCRecv, 5000)
		e.same(buf[10:5010], src.Bytes()[:5000])
		clear(src.Bytes())
		a.recv(3, src.SGE(0, 5000))
		z.send(uverbs.SendWR{WRID: 4, Opcode: uverbs.WRSend, Flags: uverbs.SendSignaled, SGList: []uverbs.SGE{mr.SGE(10, 3000), mr.SGE(3010, 2000)}})
		z.sent(4, uverbs.WCSend)
		a.received(3, uverbs.WCRecv, 5000)
		e.same(src.Bytes()[:5000], buf[10:5010])
		for _, at := range []uint64{off - 1, off + n - 7} {
			a.send(uverbs.SendWR{WRID: 1, Opcode: uverbs.WRRDMAWrite, SGList: []uverbs.SGE{src.SGE(0, 8)}, RemoteAddr: at, RKey: mr.RKey()})
			if got := a.failed(a.sendCQ, 1); got != status(uverbs.WCRemAccessErr) {
				e.Errorf("WRITE at %d: %s", at, got)
			}
			renew(a, z, rc{})
		}
		e.must(mr.Close())
		a.send(uverbs.SendWR{WRID: 1, Opcode: uverbs.WRRDMAWrite, SGList: []uverbs.SGE{src.SGE(0, 8)}, RemoteAddr: off, RKey: mr.RKey()})
		if got := a.failed(a.sendCQ, 1); got != status(uverbs.WCRemAccessErr) {
			e.Errorf("WRITE to a closed region: %s", got)
		}
	}},
}
