package verbstest

import (
	"fmt"
	"slices"

	"github.com/rrppcc-go/rrppcc/uverbs"
)

// split cuts n bytes of mr, from off on, into k elements of uneven length. With
// three or more, one in the middle is empty.
func split(mr *uverbs.MR, off, n, k int) []uverbs.SGE {
	var sges []uverbs.SGE
	for i := range k {
		part := n
		switch {
		case i == k-1:
		case i == 1:
			part = 0
		default:
			part = min(n, n/3+i+1)
		}
		sges = append(sges, mr.SGE(off, part))
		off, n = off+part, n-part
	}
	return sges
}

// lengths are message sizes around the edges of packets.
func lengths(mtu int) []int {
	return []int{0, 1, 3, 4, mtu - 1, mtu, mtu + 1, 2*mtu - 1, 2 * mtu, 2*mtu + 1, 7*mtu + 5}
}

var shapeTests = []test{
	{name: "RCMovesEveryLengthAtEveryMTU", run: func(e *env) {
		for _, mtu := range []uverbs.MTU{uverbs.MTU256, uverbs.MTU1024, uverbs.MTU4096} {
			if mtu > min(e.a.mtu, e.z.mtu) {
				e.Logf("path MTU %v left out: the active MTU is %v", mtu, min(e.a.mtu, e.z.mtu))
				continue
			}
			a, z := e.connect(shape{}, rc{mtu: mtu})
			for _, n := range lengths(mtu.Bytes()) {
				e.moveAll(a, z, n, 1, 1, fmt.Sprintf("%d bytes at MTU %v", n, mtu))
			}
		}
	}},
	{name: "RCMovesOneMiB", run: func(e *env) {
		a, z := e.connect(shape{}, rc{mtu: min(e.a.mtu, e.z.mtu)})
		e.moveAll(a, z, 1<<20, 1, 1, "1 MiB")
		e.moveAll(a, z, 1<<20, 3, 4, "1 MiB in pieces")
	}},
	{name: "GatherAndScatterTakeAnyPieces", run: func(e *env) {
		a, z := e.connect(shape{}, rc{})
		for gather := 1; gather <= 4; gather++ {
			for scatter := 1; scatter <= 4; scatter++ {
				for _, n := range []int{0, 1, 7, 1023, 1025, 5000} {
					e.moveAll(a, z, n, gather, scatter, fmt.Sprintf("%d bytes of %d pieces to %d", n, gather, scatter))
				}
			}
		}
	}},
	{name: "WorkRequestsMayHaveNoPieces", run: func(e *env) {
		a, z := e.connect(shape{}, rc{})
		far := z.mr(8, remoteRW)
		z.recv(1)
		z.recv(2)
		a.send(uverbs.SendWR{WRID: 1, Opcode: uverbs.WRSend, Flags: uverbs.SendSignaled},
			uverbs.SendWR{WRID: 2, Opcode: uverbs.WRRDMAWrite, Flags: uverbs.SendSignaled, RemoteAddr: far.Addr(), RKey: far.RKey()},
			uverbs.SendWR{WRID: 3, Opcode: uverbs.WRRDMARead, Flags: uverbs.SendSignaled, RemoteAddr: far.Addr(), RKey: far.RKey()},
			uverbs.SendWR{WRID: 4, Opcode: uverbs.WRRDMAWriteWithImm, Flags: uverbs.SendSignaled, RemoteAddr: far.Addr(), RKey: far.RKey(), ImmData: 4})
		for i, wc := range a.wait(a.sendCQ, 4) {
			if wc.Status != uverbs.WCSuccess || wc.WRID != uint64(i+1) {
				e.Errorf("completion %d: %+v", i, wc)
			}
		}
		for i, wc := range z.wait(z.recvCQ, 2) {
			if wc.Status != uverbs.WCSuccess || wc.WRID != uint64(i+1) || wc.ByteLen != 0 {
				e.Errorf("receive %d: %+v", i, wc)
			}
		}
	}},
	{name: "ReceiveMayBeLargerThanTheMessage", run: func(e *env) {
		a, z := e.connect(shape{}, rc{})
		src, dst := a.mr(2000, 0), z.mr(4000, localOnly)
		fill(src.Bytes(), 8)
		z.recv(2, dst.SGE(0, 500), dst.SGE(1000, 3000))
		a.send(uverbs.SendWR{WRID: 1, Opcode: uverbs.WRSend, Flags: uverbs.SendSignaled, SGList: []uverbs.SGE{src.SGE(0, 2000)}})
		a.sent(1, uverbs.WCSend)
		z.received(2, uverbs.WCRecv, 2000)
		e.same(dst.Bytes()[:500], src.Bytes()[:500])
		e.is(dst.Bytes()[500:1000], 0)
		e.same(dst.Bytes()[1000:2500], src.Bytes()[500:])
		e.is(dst.Bytes()[2500:], 0)
	}},
	{name: "UDMovesEveryLengthUpToTheMTU", run: func(e *env) {
		a, z, wr := e.datagrams(shape{})
		mtu := min(a.mtu, z.mtu).Bytes()
		src, dst := a.mr(mtu, 0), z.mr(mtu+100, localOnly)
		for i, n := range []int{0, 1, 3, 4, 255, 256, 257, mtu/2 + 1, mtu - 1, mtu} {
			for pieces := 1; pieces <= 3; pieces++ {
				fill(src.Bytes(), byte(i*3+pieces))
				clear(dst.Bytes())
				// The GRH crosses pieces.
				z.recv(2, append([]uverbs.SGE{dst.SGE(0, 13)}, split(dst, 13, mtu+50-13, pieces)...)...)
				wr.WRID, wr.SGList = 1, split(src, 0, n, pieces)
				a.send(wr)
				a.sent(1, uverbs.WCSend)
				z.received(2, uverbs.WCRecv, n+grhBytes)
				e.same(dst.Bytes()[grhBytes:grhBytes+n], src.Bytes()[:n])
				e.is(dst.Bytes()[grhBytes+n:], 0)
			}
		}
	}},
	{name: "InlineDataAreCopiedByThePost", run: func(e *env) {
		// A short queue, so that the data often lie around its end.
		a, z := e.connect(shape{wrs: 4, inline: 100}, rc{})
		room := int(a.qp.Cap().MaxInline)
		if room < 100 {
			e.Fatalf("MaxInline %d, asked for 100", room)
		}
		src, dst := e.pages(room+1), z.mr(room+1, remoteRW) // never registered
		inline := func(off, n int) uverbs.SGE {
			return uverbs.SGE{Addr: addrOf(src) + uint64(off), Length: uint32(n), LKey: 0xdead}
		}
		want := make([]byte, room)
		for i, n := range slices.Repeat([]int{0, 1, 3, 4, 12, 28, 59, 60, 61, 99, 100, room}, 4) {
			for _, op := range []uverbs.WROpcode{uverbs.WRSend, uverbs.WRSendWithImm, uverbs.WRRDMAWrite} {
				fill(src[:n], byte(i)+byte(op)*40)
				clear(dst.Bytes())
				copy(want, src[:n])
				if op != uverbs.WRRDMAWrite {
					z.recv(2, dst.SGE(0, room+1))
				}
				a.send(uverbs.SendWR{WRID: 1, Opcode: op, Flags: uverbs.SendSignaled | uverbs.SendInline,
					SGList: []uverbs.SGE{inline(0, n/2), inline(n/2, n-n/2)}, RemoteAddr: dst.Addr(), RKey: dst.RKey()})
				clear(src)
				wc := a.success(a.one(a.sendCQ, 1), map[bool]uverbs.WCOpcode{true: uverbs.WCRDMAWrite, false: uverbs.WCSend}[op == uverbs.WRRDMAWrite])
				if wc.Status == uverbs.WCSuccess && op != uverbs.WRRDMAWrite {
					z.received(2, uverbs.WCRecv, n)
				}
				e.same(dst.Bytes()[:n], want[:n])
				e.is(dst.Bytes()[n:], 0)
			}
		}
		_, err := a.qp.PostSend([]uverbs.SendWR{{Opcode: uverbs.WRSend, Flags: uverbs.SendInline, SGList: []uverbs.SGE{inline(0, room), inline(room, 1)}}})
		e.fails("more inline data than the QP has room for", err, uverbs.ErrInlineTooLong)
		works(a, z)
	}},
}

// moveAll sends, writes and reads n bytes from a to z, gathered from so many
// pieces and scattered to so many, and checks that exactly those change.
func (e *env) moveAll(a, z *end, n, gather, scatter int, what string) {
	e.Helper()
	src, dst := a.mr(n+64, remoteRW), z.mr(n+64, remoteRW)
	defer func() {
		e.must(src.Close())
		e.must(dst.Close())
	}()
	check := func(op string, from, to *uverbs.MR) {
		e.Helper()
		if f, t := from.Bytes()[32:32+n], to.Bytes()[32:32+n]; string(f) != string(t) {
			e.Errorf("%s of %s: the data differ", op, what)
			e.same(t, f)
		}
		e.is(to.Bytes()[:32], 0)
		e.is(to.Bytes()[32+n:], 0)
	}
	prepare := func(from, to *uverbs.MR, seed byte) {
		fill(from.Bytes(), seed)
		clear(to.Bytes())
	}
	prepare(src, dst, 1)
	z.recv(2, split(dst, 32, n, scatter)...)
	a.send(uverbs.SendWR{WRID: 1, Opcode: uverbs.WRSend, Flags: uverbs.SendSignaled, SGList: split(src, 32, n, gather)})
	a.sent(1, uverbs.WCSend)
	z.received(2, uverbs.WCRecv, n)
	check("SEND", src, dst)

	prepare(src, dst, 2)
	a.send(uverbs.SendWR{WRID: 1, Opcode: uverbs.WRRDMAWrite, Flags: uverbs.SendSignaled, SGList: split(src, 32, n, gather), RemoteAddr: dst.Addr() + 32, RKey: dst.RKey()})
	a.sent(1, uverbs.WCRDMAWrite)
	check("WRITE", src, dst)

	prepare(src, dst, 3)
	z.recv(2)
	a.send(uverbs.SendWR{WRID: 1, Opcode: uverbs.WRRDMAWriteWithImm, Flags: uverbs.SendSignaled, ImmData: 77, SGList: split(src, 32, n, gather), RemoteAddr: dst.Addr() + 32, RKey: dst.RKey()})
	a.sent(1, uverbs.WCRDMAWrite)
	z.received(2, uverbs.WCRecvRDMAWithImm, n)
	check("WRITE with immediate", src, dst)

	prepare(dst, src, 4)
	a.send(uverbs.SendWR{WRID: 1, Opcode: uverbs.WRRDMARead, Flags: uverbs.SendSignaled, SGList: split(src, 32, n, gather), RemoteAddr: dst.Addr() + 32, RKey: dst.RKey()})
	a.sent(1, uverbs.WCRDMARead)
	check("READ", dst, src)
}
