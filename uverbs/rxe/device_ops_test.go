package rxe

import (
	"encoding/binary"
	"errors"
	"net"
	"testing"

	"github.com/rrppcc-go/rrppcc/uverbs"
)

const sig = uverbs.SendSignaled

func TestDeviceRCExecutesEveryOpcode(t *testing.T) {
	a, b := devices(t)
	qa, qb := rcPair(a, b, nil, usual)
	const size = 100_000
	src := fill(a.mem[:size], 1)

	t.Run("send, in two pieces each", func(t *testing.T) {
		b.recv(qb, uverbs.RecvWR{WRID: 1, SGList: []uverbs.SGE{b.mr.SGE(0, 777), b.mr.SGE(50, 0), b.mr.SGE(4096, size)}})
		a.send(qa, uverbs.SendWR{WRID: 2, Opcode: uverbs.WRSend, Flags: sig, SGList: []uverbs.SGE{a.mr.SGE(0, 3), {}, a.mr.SGE(3, size-3)}})
		a.want(2, uverbs.WCSuccess, uverbs.WCSend)
		wc := b.want(1, uverbs.WCSuccess, uverbs.WCRecv)
		if wc.ByteLen != size || wc.QPN != qb.QPN() || wc.Flags&uverbs.WCGRH != 0 {
			t.Errorf("%+v", wc)
		}
		same(t, "first piece", b.mem[:777], src[:777])
		same(t, "second piece", b.mem[4096:4096+size-777], src[777:])
	})
	t.Run("empty send with immediate, solicited", func(t *testing.T) {
		b.recv(qb, uverbs.RecvWR{WRID: 3})
		a.send(qa, uverbs.SendWR{WRID: 4, Opcode: uverbs.WRSendWithImm, Flags: sig | uverbs.SendSolicited, ImmData: 0x01020304})
		a.want(4, uverbs.WCSuccess, uverbs.WCSend)
		if wc := b.want(3, uverbs.WCSuccess, uverbs.WCRecv); wc.ImmData != 0x01020304 || wc.Flags&uverbs.WCWithImm == 0 || wc.ByteLen != 0 {
			t.Errorf("%+v", wc)
		}
	})
	t.Run("inline send and write, of heap memory", func(t *testing.T) {
		clear(b.mem[:256])
		text := fill(make([]byte, 100), 9)
		list := []uverbs.SGE{{Addr: addrOf(text), Length: 60}, {Addr: addrOf(text[60:]), Length: 40}}
		b.recv(qb, uverbs.RecvWR{WRID: 5, SGList: []uverbs.SGE{b.mr.SGE(0, 128)}})
		a.send(qa, uverbs.SendWR{WRID: 6, Opcode: uverbs.WRSend, Flags: sig | uverbs.SendInline, SGList: list},
			uverbs.SendWR{WRID: 7, Opcode: uverbs.WRRDMAWrite, Flags: sig | uverbs.SendInline, SGList: list, RemoteAddr: b.mr.Addr() + 128, RKey: b.mr.RKey()})
		a.want(6, uverbs.WCSuccess, uverbs.WCSend)
		a.want(7, uverbs.WCSuccess, uverbs.WCRDMAWrite)
		b.want(5, uverbs.WCSuccess, uverbs.WCRecv)
		same(t, "send", b.mem[:100], text)
		same(t, "write", b.mem[128:228], text)
	})
	t.Run("write, write with immediate, read: 1 MiB", func(t *testing.T) {
		const mib = 1 << 20
		src := fill(a.mem[:mib], 2)
		b.recv(qb, uverbs.RecvWR{WRID: 8})
		a.send(qa, uverbs.SendWR{WRID: 9, Opcode: uverbs.WRRDMAWrite, Flags: sig, SGList: []uverbs.SGE{a.mr.SGE(0, mib)}, RemoteAddr: b.mr.Addr(), RKey: b.mr.RKey()},
			uverbs.SendWR{WRID: 10, Opcode: uverbs.WRRDMAWriteWithImm, Flags: sig, ImmData: 77, SGList: []uverbs.SGE{a.mr.SGE(0, 5000)}, RemoteAddr: b.mr.Addr() + 2*mib + 1, RKey: b.mr.RKey()},
			uverbs.SendWR{WRID: 11, Opcode: uverbs.WRRDMARead, Flags: sig, SGList: []uverbs.SGE{a.mr.SGE(2*mib, 1000), a.mr.SGE(3*mib, mib-1000)}, RemoteAddr: b.mr.Addr(), RKey: b.mr.RKey()})
		a.want(9, uverbs.WCSuccess, uverbs.WCRDMAWrite)
		a.want(10, uverbs.WCSuccess, uverbs.WCRDMAWrite)
		if wc := a.want(11, uverbs.WCSuccess, uverbs.WCRDMARead); wc.ByteLen != mib {
			t.Logf("the READ's completion has byte_len %d", wc.ByteLen)
		}
		if wc := b.want(8, uverbs.WCSuccess, uverbs.WCRecvRDMAWithImm); wc.ImmData != 77 || wc.ByteLen != 5000 {
			t.Errorf("%+v", wc)
		}
		same(t, "write", b.mem[:mib], src)
		same(t, "write with immediate", b.mem[2*mib+1:][:5000], src[:5000])
		same(t, "read, first", a.mem[2*mib:][:1000], src[:1000])
		same(t, "read, second", a.mem[3*mib:][:mib-1000], src[1000:])
	})
	t.Run("atomics", func(t *testing.T) {
		word := b.mem[64:72]
		binary.NativeEndian.PutUint64(word, 40)
		old := func(i int) uint64 { return binary.NativeEndian.Uint64(a.mem[8*i:]) }
		atomic := func(id int, op uverbs.WROpcode, cmpAdd, swap uint64) uverbs.SendWR {
			return uverbs.SendWR{WRID: uint64(id), Opcode: op, Flags: sig, SGList: []uverbs.SGE{a.mr.SGE(8*id, 8)},
				RemoteAddr: b.mr.Addr() + 64, RKey: b.mr.RKey(), CompareAdd: cmpAdd, Swap: swap}
		}
		a.send(qa, atomic(0, uverbs.WRAtomicFetchAndAdd, 1<<40+2, 0), atomic(1, uverbs.WRAtomicCmpAndSwp, 1<<40+42, 7),
			atomic(2, uverbs.WRAtomicCmpAndSwp, 8, 9), atomic(3, uverbs.WRAtomicFetchAndAdd, 0, 0))
		a.want(0, uverbs.WCSuccess, uverbs.WCFetchAdd)
		a.want(1, uverbs.WCSuccess, uverbs.WCCompSwap)
		a.want(2, uverbs.WCSuccess, uverbs.WCCompSwap)
		a.want(3, uverbs.WCSuccess, uverbs.WCFetchAdd)
		if old(0) != 40 || old(1) != 1<<40+42 || old(2) != 7 || old(3) != 7 || binary.NativeEndian.Uint64(word) != 7 {
			t.Errorf("old values %d %d %d %d, now %d", old(0), old(1), old(2), old(3), binary.NativeEndian.Uint64(word))
		}
	})
	t.Run("unsignaled run, fenced", func(t *testing.T) {
		wrs := make([]uverbs.SendWR, 29)
		for i := range wrs {
			wrs[i] = uverbs.SendWR{WRID: uint64(i), Opcode: uverbs.WRRDMAWrite, SGList: []uverbs.SGE{a.mr.SGE(i, 1)}, RemoteAddr: b.mr.Addr() + uint64(i), RKey: b.mr.RKey()}
		}
		wrs[28].Flags = sig | uverbs.SendFence
		fill(a.mem[:29], 5)
		for range 20 { // several laps of the ring
			a.send(qa, wrs...)
			a.want(28, uverbs.WCSuccess, uverbs.WCRDMAWrite)
		}
		same(t, "written", b.mem[:29], a.mem[:29])
	})
}

func TestDeviceMemoryWindows(t *testing.T) {
	a, b := devices(t)
	attr := must(b.ctx.QueryDevice())(t)
	t.Logf("%d windows, capabilities %#x", attr.MaxMW, attr.Caps)
	if attr.MaxMW == 0 {
		t.Skip("the device has no memory windows")
	}
	qa, qb := rcPair(a, b, nil, usual)
	mr := must(b.pd.RegisterMR(b.mem[:8192], allAccess|uverbs.AccessMWBind))(t)
	defer func() { check(t, mr.Close()) }()
	write := func(id uint64, rkey uint32, off uint64, n int) {
		a.send(qa, uverbs.SendWR{WRID: id, Opcode: uverbs.WRRDMAWrite, Flags: sig, SGList: []uverbs.SGE{a.mr.SGE(0, n)}, RemoteAddr: mr.Addr() + off, RKey: rkey})
	}
	fill(a.mem[:100], 3)

	mw1 := must(b.pd.AllocMW(uverbs.MWType1))(t)
	key1 := uverbs.NextRKey(mw1.RKey())
	b.send(qb, uverbs.SendWR{WRID: 1, Opcode: uverbs.WRBindMW, Flags: sig, Bind: &uverbs.MWBind{MW: mw1, OldRKey: mw1.RKey(), NewRKey: key1,
		LKey: mr.LKey(), Addr: mr.Addr() + 100, Length: 200, Access: uverbs.AccessRemoteWrite}})
	b.want(1, uverbs.WCSuccess, uverbs.WCBindMW)
	write(2, key1, 150, 100)
	a.want(2, uverbs.WCSuccess, uverbs.WCRDMAWrite)
	same(t, "through the window", b.mem[150:250], a.mem[:100])
	check(t, mw1.Close())

	mw2 := must(b.pd.AllocMW(uverbs.MWType2))(t)
	defer func() { check(t, mw2.Close()) }()
	key2 := uverbs.NextRKey(mw2.RKey())
	bind := &uverbs.MWBind{MW: mw2, OldRKey: mw2.RKey(), NewRKey: key2, LKey: mr.LKey(), Addr: mr.Addr(), Length: 4096, Access: uverbs.AccessRemoteWrite}
	b.send(qb, uverbs.SendWR{WRID: 3, Opcode: uverbs.WRBindMW, Flags: sig, Bind: bind})
	b.want(3, uverbs.WCSuccess, uverbs.WCBindMW)
	write(4, key2, 0, 100)
	a.want(4, uverbs.WCSuccess, uverbs.WCRDMAWrite)
	same(t, "through the window", b.mem[:100], a.mem[:100])

	// SEND_INV has the receiver take the window back.
	b.recv(qb, uverbs.RecvWR{WRID: 5, SGList: []uverbs.SGE{b.mr.SGE(8192, 10)}})
	a.send(qa, uverbs.SendWR{WRID: 6, Opcode: uverbs.WRSendWithInv, Flags: sig, InvalidateRKey: key2, SGList: []uverbs.SGE{a.mr.SGE(0, 10)}})
	a.want(6, uverbs.WCSuccess, uverbs.WCSend)
	if wc := b.want(5, uverbs.WCSuccess, uverbs.WCRecv); wc.Flags&uverbs.WCWithInv == 0 || wc.ImmData != key2 {
		t.Errorf("%+v, want the invalidated key %#x", wc, key2)
	}
	// Bound again, and taken back by its owner.
	key3 := uverbs.NextRKey(key2)
	bind.OldRKey, bind.NewRKey = key2, key3
	b.send(qb, uverbs.SendWR{WRID: 7, Opcode: uverbs.WRBindMW, Flags: sig, Bind: bind})
	b.want(7, uverbs.WCSuccess, uverbs.WCBindMW)
	b.send(qb, uverbs.SendWR{WRID: 8, Opcode: uverbs.WRLocalInv, Flags: sig, InvalidateRKey: key3})
	b.want(8, uverbs.WCSuccess, uverbs.WCLocalInv)
	write(9, key3, 0, 100)
	a.want(9, uverbs.WCRemAccessErr, 0)
}

func TestDeviceUD(t *testing.T) {
	a, b := devices(t)
	qa, qb := a.ud(nil), b.ud(nil)
	toB, toA := a.ah(b), b.ah(a)
	mtu := must(a.ctx.QueryPort(1))(t).ActiveMTU.Bytes()
	for round := range 200 {
		n := []int{0, 1, 64, 100, mtu - 1, mtu}[round%6]
		ping := fill(a.mem[:n], byte(round))
		b.recv(qb, uverbs.RecvWR{WRID: uint64(round), SGList: []uverbs.SGE{b.mr.SGE(0, mtu+40)}})
		a.recv(qa, uverbs.RecvWR{WRID: uint64(round), SGList: []uverbs.SGE{a.mr.SGE(8192, 40), a.mr.SGE(1<<20, mtu)}})
		wr := uverbs.SendWR{WRID: 1000, Opcode: uverbs.WRSendWithImm, ImmData: uint32(round) << 8, Flags: sig,
			SGList: []uverbs.SGE{a.mr.SGE(0, n)}, AH: toB, RemoteQPN: qb.QPN(), RemoteQKey: testQKey}
		if n <= 100 {
			wr.Flags |= uverbs.SendInline
		}
		a.send(qa, wr)
		a.want(1000, uverbs.WCSuccess, uverbs.WCSend)
		wc := b.want(uint64(round), uverbs.WCSuccess, uverbs.WCRecv)
		if int(wc.ByteLen) != 40+n || wc.SrcQP != qa.QPN() || wc.ImmData != uint32(round)<<8 || wc.Flags != uverbs.WCGRH|uverbs.WCWithImm {
			t.Fatalf("%d bytes: %+v", n, wc)
		}
		same(t, "ping", b.mem[40:40+n], ping)
		b.send(qb, uverbs.SendWR{Opcode: uverbs.WRSend, SGList: []uverbs.SGE{b.mr.SGE(40, n)}, AH: toA, RemoteQPN: wc.SrcQP, RemoteQKey: testQKey})
		if wc := a.want(uint64(round), uverbs.WCSuccess, uverbs.WCRecv); int(wc.ByteLen) != 40+n || wc.Flags != uverbs.WCGRH {
			t.Fatalf("%d bytes: %+v", n, wc)
		}
		same(t, "pong", a.mem[1<<20:1<<20+n], ping)
	}
	src, dst := b.mem[20:40][12:16], b.mem[20:40][16:20]
	t.Logf("%v to %v; the IPv4 header in the receive says %v to %v", a.gid.GID.Addr(), b.gid.GID.Addr(), src, dst)
}

func TestDeviceAddressHandleClosedBehindItsSends(t *testing.T) {
	a, b := devices(t)
	qa, qb := a.ud(nil), b.ud(nil)
	attr := a.path(b)
	for round := range 100 {
		ah := must(a.pd.CreateAH(&attr))(t)
		const burst = 8
		for range burst {
			b.recv(qb, uverbs.RecvWR{WRID: 1, SGList: []uverbs.SGE{b.mr.SGE(0, 140)}})
		}
		var wrs []uverbs.SendWR
		for range burst {
			wrs = append(wrs, uverbs.SendWR{WRID: 2, Opcode: uverbs.WRSend, Flags: sig, SGList: []uverbs.SGE{a.mr.SGE(0, 100)},
				AH: ah, RemoteQPN: qb.QPN(), RemoteQKey: testQKey})
		}
		n, err := qa.PostSend(wrs)
		if err := ah.Close(); n != burst || err != nil {
			t.Fatal(n, err)
		}
		check(t, err)
		for range burst {
			a.want(2, uverbs.WCSuccess, uverbs.WCSend)
		}
		for range burst {
			if wc := b.want(1, uverbs.WCSuccess, uverbs.WCRecv); wc.ByteLen != 140 {
				t.Fatalf("round %d: %+v", round, wc)
			}
		}
	}
}

func TestDeviceMulticast(t *testing.T) {
	a, b := devices(t)
	qa, qb := a.ud(nil), b.ud(nil)
	group := uverbs.GID{10: 0xff, 11: 0xff, 12: 239, 13: 1, 14: 2, 15: 3}
	if err := qb.AttachMulticast(group, 0); err != nil {
		t.Fatal(err)
	}
	// The kernel's IP receives for the groups that somebody joined.
	ifi := must(net.InterfaceByIndex(b.gid.IfIndex))(t)
	conn := must(net.ListenMulticastUDP("udp4", ifi, &net.UDPAddr{IP: group[12:], Port: 5000}))(t)
	defer conn.Close()
	attr := a.path(b)
	attr.DGID = group
	ah, err := a.pd.CreateAH(&attr)
	if err != nil {
		t.Logf("address handle of a multicast group: %v", err)
	} else {
		defer ah.Close()
		b.recv(qb, uverbs.RecvWR{WRID: 1, SGList: []uverbs.SGE{b.mr.SGE(0, 200)}})
		a.send(qa, uverbs.SendWR{WRID: 2, Opcode: uverbs.WRSend, Flags: sig, SGList: []uverbs.SGE{a.mr.SGE(0, 50)}, AH: ah, RemoteQPN: 0xffffff, RemoteQKey: testQKey})
		a.want(2, uverbs.WCSuccess, uverbs.WCSend)
		if wc, ok := b.nextWithin(patience / 10); ok {
			t.Logf("received %+v", wc)
		} else {
			t.Log("a multicast packet was not received")
		}
	}
	t.Logf("close while attached: %v", qb.Close())
	err = qb.DetachMulticast(group, 0)
	if errors.Is(err, uverbs.ErrClosed) {
		t.Error("the QP was closed although it was attached")
	}
	check(t, err)
}
