package verbstest

import (
	"errors"
	"syscall"

	"github.com/rrppcc-go/rrppcc/uverbs"
)

const smallPage = 4096

var mrTests = []test{
	{name: "RegionsEndAtTheByte", run: func(e *env) {
		// Registered pieces of three pages: a device that rounds to pages, or is
		// off by one at an edge, shows.
		a, z := e.connect(shape{}, rc{})
		mine := a.mr(3*smallPage, localOnly)
		fill(mine.Bytes(), 1)
		for _, r := range [][2]int{{0, 1}, {smallPage - 1, smallPage}, {smallPage - 1, smallPage + 1}, {smallPage, smallPage + 1}, {smallPage, 2 * smallPage},
			{1, 3*smallPage - 1}, {smallPage + 100, smallPage + 300}, {0, 3 * smallPage}} {
			mem := e.pages(3 * smallPage)
			mr, err := z.prot.RegisterMR(mem[r[0]:r[1]], remoteRW)
			e.must(err)
			n := r[1] - r[0]
			write := func(off, n int) uverbs.SendWR {
				return uverbs.SendWR{WRID: 1, Opcode: uverbs.WRRDMAWrite, Flags: uverbs.SendSignaled, SGList: []uverbs.SGE{mine.SGE(0, n)},
					RemoteAddr: uint64(int64(mr.Addr()) + int64(off)), RKey: mr.RKey()}
			}
			a.send(write(0, n))
			a.sent(1, uverbs.WCRDMAWrite)
			a.send(write(n-1, 1))
			a.sent(1, uverbs.WCRDMAWrite)
			e.same(mem[r[0]:r[1]-1], mine.Bytes()[:n-1])
			if mem[r[1]-1] != mine.Bytes()[0] {
				e.Errorf("region %v: last byte %#x", r, mem[r[1]-1])
			}
			for _, off := range []int{n, -1} {
				a.send(write(off, 1))
				if got := a.failed(a.sendCQ, 1); got != status(uverbs.WCRemAccessErr) {
					e.Errorf("region %v, byte %d: %s", r, off, got)
				}
				renew(a, z, rc{})
			}
			e.is(mem[:r[0]], 0)
			e.is(mem[r[1]:], 0)
			e.must(mr.Close())
		}
	}},
	{name: "RegionsAtAnAddressOfChoice", run: func(e *env) {
		a, z := e.connect(shape{}, rc{})
		src := a.mr(100, 0)
		fill(src.Bytes(), 1)
		mem := e.pages(8192)
		const iova = 0x7654_0000_0000
		mr, err := z.prot.RegisterMRIova(mem[100:], iova+100, remoteRW)
		e.must(err)
		e.closeLater(mr)
		if mr.Addr() != iova+100 {
			e.Errorf("address %#x", mr.Addr())
		}
		a.send(uverbs.SendWR{WRID: 1, Opcode: uverbs.WRRDMAWrite, Flags: uverbs.SendSignaled, SGList: []uverbs.SGE{src.SGE(0, 100)}, RemoteAddr: iova + 4090, RKey: mr.RKey()})
		a.sent(1, uverbs.WCRDMAWrite)
		e.same(mem[4090:4190], src.Bytes())
		e.is(mem[:4090], 0)
		if _, err := z.prot.RegisterMRIova(mem[100:], iova+101, remoteRW); !errors.Is(err, syscall.EINVAL) {
			e.Errorf("another place in its page: %v, want EINVAL", err)
		}
	}},
	{name: "SameMemoryMayBeRegisteredTwice", run: func(e *env) {
		a, z := e.connect(shape{}, rc{})
		src := a.mr(100, 0)
		mem := e.pages(100)
		one, err := z.prot.RegisterMR(mem, uverbs.AccessLocalWrite|uverbs.AccessRemoteWrite)
		e.must(err)
		two, err := z.prot.RegisterMR(mem, remoteRW)
		e.must(err)
		e.closeLater(two)
		if one.RKey() == two.RKey() || one.LKey() == two.LKey() {
			e.Error("two regions have one key")
		}
		e.must(one.Close())
		fill(src.Bytes(), 1)
		a.send(uverbs.SendWR{WRID: 1, Opcode: uverbs.WRRDMAWrite, Flags: uverbs.SendSignaled, SGList: []uverbs.SGE{src.SGE(0, 100)}, RemoteAddr: two.Addr(), RKey: two.RKey()})
		a.sent(1, uverbs.WCRDMAWrite)
		e.same(mem[:100], src.Bytes())
	}},
	{name: "WhatCannotBeRegisteredIsRefused", run: func(e *env) {
		pd := e.a.pd()
		mem := e.pages(pageBytes)
		for name, c := range map[string]struct {
			mem    []byte
			access uverbs.AccessFlags
		}{
			"nothing":                              {mem[:0], localOnly},
			"AccessRemoteWrite without local":      {mem, uverbs.AccessRemoteWrite},
			"AccessRemoteAtomic without local":     {mem, uverbs.AccessRemoteAtomic},
			"an access flag that nobody knows yet": {mem, 1 << 19},
		} {
			mr, err := pd.RegisterMR(c.mem, c.access)
			if err == nil {
				e.must(mr.Close())
			}
			if !errors.Is(err, syscall.EINVAL) {
				e.Errorf("%s: %v, want EINVAL", name, err)
			}
		}
		mr, err := pd.RegisterMR(mem, uverbs.AccessZeroBased)
		e.rule(RuleZeroBased, errnoName(err))
		if err == nil {
			e.must(mr.Close())
		}
		if err := readOnly(mem); !errors.Is(err, errors.ErrUnsupported) {
			e.must(err)
			mr, err = pd.RegisterMR(mem, uverbs.AccessRemoteRead)
			e.must(err)
			e.must(mr.Close())
			mr, err = pd.RegisterMR(mem, localOnly)
			e.rule(RuleReadOnly, errnoName(err))
			if err == nil {
				e.must(mr.Close())
			}
		}
		gone, unmap, err := mapPages(pageBytes)
		e.must(err)
		addr := addrOf(gone)
		e.must(unmap())
		if _, err := pd.RegisterMR(at(addr, pageBytes), localOnly); canUnmap && !errors.Is(err, syscall.EFAULT) {
			e.Errorf("memory that is not mapped: %v, want EFAULT", err)
		}
		e.must(pd.Close())
	}},
	{name: "RegionChangesItsAccessAndPD", needs: []Capability{ReregMR}, run: func(e *env) {
		a, z := e.connect(shape{}, rc{})
		src, dst := a.mr(100, 0), z.mr(100, localOnly)
		fill(src.Bytes(), 1)
		write := func() {
			a.send(uverbs.SendWR{WRID: 1, Opcode: uverbs.WRRDMAWrite, Flags: uverbs.SendSignaled, SGList: []uverbs.SGE{src.SGE(0, 100)}, RemoteAddr: dst.Addr(), RKey: dst.RKey()})
		}
		write()
		if got := a.failed(a.sendCQ, 1); got != status(uverbs.WCRemAccessErr) {
			e.Errorf("before: %s", got)
		}
		renew(a, z, rc{})
		e.must(dst.Rereg(uverbs.ReregAccess, nil, nil, remoteRW))
		write()
		a.sent(1, uverbs.WCRDMAWrite)
		e.same(dst.Bytes(), src.Bytes())
		e.must(dst.Rereg(uverbs.ReregPD, e.z.pd(), nil, 0))
		write()
		if got := a.failed(a.sendCQ, 1); got != status(uverbs.WCRemAccessErr) {
			e.Errorf("in another PD: %s", got)
		}
		e.must(dst.Close()) // before its PD
	}},
}
