//go:build linux

package mlx5sim_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/rrppcc-go/rrppcc/mlx5/mlx5sim"
	"github.com/rrppcc-go/rrppcc/uverbs"
)

func TestVerbsUDPingPong(t *testing.T) {
	for _, twoDevices := range []bool{true, false} {
		t.Run(fmt.Sprintf("twoDevices=%v", twoDevices), func(t *testing.T) {
			fab := mlx5sim.NewFabric()
			da := newDevice(t, fab)
			db := da
			if twoDevices {
				db = newDevice(t, fab)
			}
			a, b := newEnd(t, da, uverbs.QPTypeUD, 64), newEnd(t, db, uverbs.QPTypeUD, 64)
			a.ud()
			b.ud()
			ma, mb := a.mr(8192, uverbs.AccessLocalWrite), b.mr(8192, uverbs.AccessLocalWrite)
			toB, toA := a.ah(b), b.ah(a)
			for i := range 100 {
				n := i * 41 % 4097
				if i == 99 {
					n = 4096
				}
				fill(ma, byte(i))
				b.recv(uint64(i), mb.SGE(0, 40), mb.SGE(4096, 4096))
				a.recv(uint64(i), ma.SGE(4096, 4096))
				a.send(uverbs.SendWR{WRID: uint64(i), Opcode: uverbs.WRSendWithImm, Flags: uverbs.SendSignaled, ImmData: 0xabc0 + uint32(i),
					SGList: []uverbs.SGE{ma.SGE(0, n)}, AH: toB, RemoteQPN: b.qp.QPN(), RemoteQKey: qkey})
				a.want(a.sendCQ, outcome{uint64(i), 0})
				wc := b.want(b.recvCQ, outcome{uint64(i), 0})[0]
				if wc.ByteLen != uint32(n)+40 || wc.SrcQP != a.qp.QPN() || wc.QPN != b.qp.QPN() || wc.Flags != uverbs.WCGRH|uverbs.WCWithImm ||
					wc.ImmData != 0xabc0+uint32(i) || wc.Opcode != uverbs.WCRecv {
					t.Fatalf("completion %+v", wc)
				}
				if !bytes.Equal(mb.Bytes()[4096:4096+n], ma.Bytes()[:n]) {
					t.Fatalf("round %d: data differ", i)
				}
				ip := mb.Bytes()[20:40]
				src, dst := a.gid.Addr().As4(), b.gid.Addr().As4()
				if !bytes.Equal(mb.Bytes()[:20], make([]byte, 20)) || ip[0] != 0x45 || ip[1] != 0x68 || ip[8] != 33 || ip[9] != 17 ||
					!bytes.Equal(ip[12:16], src[:]) || !bytes.Equal(ip[16:], dst[:]) ||
					int(binary.BigEndian.Uint16(ip[2:])) != 20+8+12+8+4+(n+3)/4*4+4 {
					t.Fatalf("IPv4 header % x", ip)
				}
				answer := uverbs.SendWR{WRID: uint64(i), Opcode: uverbs.WRSend, Flags: uverbs.SendInline, SGList: []uverbs.SGE{mb.SGE(0, 20)},
					AH: toA, RemoteQPN: wc.SrcQP, RemoteQKey: qkey}
				if i%8 == 7 { // one completion gives back eight slots
					answer.Flags |= uverbs.SendSignaled
				}
				b.send(answer)
				if i%8 == 7 {
					b.want(b.sendCQ, outcome{uint64(i), 0})
				}
				if wc := a.want(a.recvCQ, outcome{uint64(i), 0})[0]; wc.ByteLen != 60 || wc.Flags != uverbs.WCGRH {
					t.Fatalf("answer %+v", wc)
				}
			}
			if wcs := b.poll(b.sendCQ); len(wcs) != 0 {
				t.Errorf("unsignaled sends completed: %+v", wcs)
			}
		})
	}
}

func TestVerbsUDWrongQKeyIsDropped(t *testing.T) {
	fab := mlx5sim.NewFabric()
	a, b := newEnd(t, newDevice(t, fab), uverbs.QPTypeUD, 16), newEnd(t, newDevice(t, fab), uverbs.QPTypeUD, 16)
	a.ud()
	b.ud()
	ma, mb := a.mr(64, 0), b.mr(128, uverbs.AccessLocalWrite)
	b.recv(1, mb.SGE(0, 128))
	a.send(uverbs.SendWR{WRID: 9, Flags: uverbs.SendSignaled, Opcode: uverbs.WRSend, SGList: []uverbs.SGE{ma.SGE(0, 8)}, AH: a.ah(b), RemoteQPN: b.qp.QPN(), RemoteQKey: qkey + 1})
	a.want(a.sendCQ, outcome{9, 0})
	if wcs := b.poll(b.recvCQ); len(wcs) != 0 {
		t.Errorf("received %+v", wcs)
	}
	if n := b.sim.Stats().Drops.BadQKey; n != 1 {
		t.Errorf("%d drops for the QKey, want 1", n)
	}
}

func TestVerbsRCMovesEverySize(t *testing.T) {
	a, b := rcPair(t)
	for _, n := range []int{0, 1, 4095, 4096, 4097, 1 << 20} {
		ma, mb := a.mr(n+2, fullMR), b.mr(n+2, fullMR)
		var src, dst []uverbs.SGE
		if n > 0 {
			src, dst = []uverbs.SGE{ma.SGE(1, n)}, []uverbs.SGE{mb.SGE(1, n)}
		}
		same := func(what string) {
			t.Helper()
			if !bytes.Equal(ma.Bytes()[1:n+1], mb.Bytes()[1:n+1]) {
				t.Errorf("%s of %d: data differ", what, n)
			}
		}
		fill(ma, 1)
		b.recv(5, dst...)
		a.send(uverbs.SendWR{WRID: 1, Opcode: uverbs.WRSend, Flags: uverbs.SendSignaled, SGList: src})
		a.want(a.sendCQ, outcome{1, 0})
		if wc := b.want(b.recvCQ, outcome{5, 0})[0]; wc.ByteLen != uint32(n) || wc.Opcode != uverbs.WCRecv {
			t.Errorf("receive %+v", wc)
		}
		same("SEND")

		fill(ma, 2)
		b.recv(6)
		a.send(
			uverbs.SendWR{WRID: 2, Opcode: uverbs.WRRDMAWrite, SGList: src, RemoteAddr: mb.Addr() + 1, RKey: mb.RKey()},
			uverbs.SendWR{WRID: 3, Opcode: uverbs.WRRDMAWriteWithImm, Flags: uverbs.SendSignaled, ImmData: 99, SGList: src, RemoteAddr: mb.Addr() + 1, RKey: mb.RKey()})
		a.want(a.sendCQ, outcome{3, 0})
		if wc := b.want(b.recvCQ, outcome{6, 0})[0]; wc.Opcode != uverbs.WCRecvRDMAWithImm || wc.ImmData != 99 || wc.ByteLen != uint32(n) {
			t.Errorf("WRITE with immediate: %+v", wc)
		}
		same("WRITE")

		fill(mb, 3)
		a.send(uverbs.SendWR{WRID: 4, Opcode: uverbs.WRRDMARead, Flags: uverbs.SendSignaled, SGList: src, RemoteAddr: mb.Addr() + 1, RKey: mb.RKey()})
		if wc := a.want(a.sendCQ, outcome{4, 0})[0]; wc.Opcode != uverbs.WCRDMARead || wc.ByteLen != uint32(n) {
			t.Errorf("READ %+v", wc)
		}
		same("READ")
		if ma.Bytes()[0] != 2 {
			t.Errorf("READ of %d wrote below its buffer", n)
		}
	}
}

func TestVerbsRCErrorsFlushInOrder(t *testing.T) {
	type c struct {
		name  string
		wr    func(a, b *end, ma, mb *uverbs.MR) uverbs.SendWR
		want  uverbs.WCStatus
		recv  uverbs.WCStatus // of the responder's first receive, if it dies
		dies  bool
		event uverbs.EventType
	}
	write := func(ma, mb *uverbs.MR) uverbs.SendWR {
		return uverbs.SendWR{Opcode: uverbs.WRRDMAWrite, SGList: []uverbs.SGE{ma.SGE(0, 64)}, RemoteAddr: mb.Addr(), RKey: mb.RKey()}
	}
	for _, c := range []c{
		{name: "bad lkey", want: uverbs.WCLocProtErr, wr: func(a, b *end, ma, mb *uverbs.MR) uverbs.SendWR {
			wr := write(ma, mb)
			wr.SGList[0].LKey++
			return wr
		}},
		{name: "beyond the local MR", want: uverbs.WCLocProtErr, wr: func(a, b *end, ma, mb *uverbs.MR) uverbs.SendWR {
			wr := write(ma, mb)
			wr.SGList[0].Length = 4097
			return wr
		}},
		{name: "local MR of another PD", want: uverbs.WCLocProtErr, wr: func(a, b *end, ma, mb *uverbs.MR) uverbs.SendWR {
			pd, err := a.ctx.AllocPD()
			check(a.t, err)
			a.t.Cleanup(func() { check(a.t, pd.Close()) })
			mr, err := pd.RegisterMR(ma.Bytes(), fullMR)
			check(a.t, err)
			a.t.Cleanup(func() { check(a.t, mr.Close()) })
			return write(mr, mb)
		}},
		{name: "local MR deregistered", want: uverbs.WCLocProtErr, wr: func(a, b *end, ma, mb *uverbs.MR) uverbs.SendWR {
			wr := write(ma, mb)
			check(a.t, ma.Close())
			return wr
		}},
		{name: "bad rkey", want: uverbs.WCRemAccessErr, dies: true, recv: uverbs.WCWRFlushErr, event: uverbs.EventQPAccessErr, wr: func(a, b *end, ma, mb *uverbs.MR) uverbs.SendWR {
			wr := write(ma, mb)
			wr.RKey++
			return wr
		}},
		{name: "beyond the remote MR", want: uverbs.WCRemAccessErr, dies: true, recv: uverbs.WCWRFlushErr, event: uverbs.EventQPAccessErr, wr: func(a, b *end, ma, mb *uverbs.MR) uverbs.SendWR {
			wr := write(ma, mb)
			wr.RemoteAddr += 4096 - 63
			return wr
		}},
		{name: "remote MR deregistered", want: uverbs.WCRemAccessErr, dies: true, recv: uverbs.WCWRFlushErr, event: uverbs.EventQPAccessErr, wr: func(a, b *end, ma, mb *uverbs.MR) uverbs.SendWR {
			wr := write(ma, mb)
			wr.Opcode = uverbs.WRRDMARead
			check(a.t, mb.Close())
			return wr
		}},
		{name: "remote MR is read-only", want: uverbs.WCRemAccessErr, dies: true, recv: uverbs.WCWRFlushErr, event: uverbs.EventQPAccessErr, wr: func(a, b *end, ma, mb *uverbs.MR) uverbs.SendWR {
			ro := b.mr(4096, uverbs.AccessLocalWrite|uverbs.AccessRemoteRead)
			return write(ma, ro)
		}},
		{name: "longer than the receive", want: uverbs.WCRemInvReqErr, dies: true, recv: uverbs.WCLocLenErr, wr: func(a, b *end, ma, mb *uverbs.MR) uverbs.SendWR {
			return uverbs.SendWR{Opcode: uverbs.WRSend, SGList: []uverbs.SGE{ma.SGE(0, 65)}}
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			a, b := rcPair(t)
			ma, mb := a.mr(4096, fullMR), b.mr(4096, fullMR)
			b.recv(1, mb.SGE(0, 64))
			b.recv(2, mb.SGE(0, 64))
			a.recv(3, ma.SGE(0, 64))
			a.send(uverbs.SendWR{WRID: 10, Opcode: uverbs.WRRDMAWrite, Flags: uverbs.SendSignaled, SGList: []uverbs.SGE{ma.SGE(0, 4)}, RemoteAddr: mb.Addr(), RKey: mb.RKey()})
			bad := c.wr(a, b, ma, mb)
			bad.WRID = 11
			later := uverbs.SendWR{WRID: 12, Opcode: uverbs.WRSend}
			a.send(bad, later)
			a.want(a.sendCQ, outcome{10, 0}, outcome{11, c.want}, outcome{12, uverbs.WCWRFlushErr})
			a.want(a.recvCQ, outcome{3, uverbs.WCWRFlushErr})
			a.wantState(uverbs.QPStateErr)
			if !c.dies {
				b.wantState(uverbs.QPStateRTS)
				return
			}
			b.want(b.recvCQ, outcome{1, c.recv}, outcome{2, uverbs.WCWRFlushErr})
			b.wantState(uverbs.QPStateErr)
			if c.recv == uverbs.WCWRFlushErr {
				b.wantAsync(c.event)
			}
		})
	}
}

func TestVerbsRNRThenSuccess(t *testing.T) {
	a, b := rcPair(t)
	mb := b.mr(64, fullMR)
	a.send(uverbs.SendWR{WRID: 1, Opcode: uverbs.WRSend, Flags: uverbs.SendSignaled})
	for b.sim.Stats().RNRNaks < 3 {
		if wcs := a.poll(a.sendCQ); len(wcs) != 0 {
			t.Fatalf("completed without a receive: %+v", wcs)
		}
	}
	b.recv(2, mb.SGE(0, 64))
	a.want(a.sendCQ, outcome{1, 0})
	b.want(b.recvCQ, outcome{2, 0})
}

func TestVerbsRetriesAreExceeded(t *testing.T) {
	t.Run("RNR", func(t *testing.T) {
		a, b := rcPair(t)
		check(t, a.qp.Modify(&uverbs.QPAttr{State: uverbs.QPStateReset}, uverbs.AttrState))
		a.rcInit()
		a.rcRTR(b)
		a.rcRTS(2)
		a.send(uverbs.SendWR{WRID: 1, Opcode: uverbs.WRSend}, uverbs.SendWR{WRID: 2, Opcode: uverbs.WRSend})
		a.want(a.sendCQ, outcome{1, uverbs.WCRNRRetryExcErr}, outcome{2, uverbs.WCWRFlushErr})
		b.wantState(uverbs.QPStateRTS)
	})
	t.Run("nobody answers", func(t *testing.T) {
		a, b := rcPair(t)
		check(t, b.qp.Modify(&uverbs.QPAttr{State: uverbs.QPStateErr}, uverbs.AttrState))
		a.send(uverbs.SendWR{WRID: 1, Opcode: uverbs.WRSend}, uverbs.SendWR{WRID: 2, Opcode: uverbs.WRSend})
		a.want(a.sendCQ, outcome{1, uverbs.WCRetryExcErr}, outcome{2, uverbs.WCWRFlushErr})
	})
}

func TestVerbsModifyToErrFlushes(t *testing.T) {
	a, b := rcPair(t)
	ma, mb := a.mr(64, fullMR), b.mr(64, fullMR)
	for i := range 5 {
		a.recv(uint64(i), ma.SGE(0, 64))
	}
	check(t, a.qp.Modify(&uverbs.QPAttr{State: uverbs.QPStateErr}, uverbs.AttrState))
	var want []outcome
	for i := range 5 {
		want = append(want, outcome{uint64(i), uverbs.WCWRFlushErr})
	}
	a.want(a.recvCQ, want...)
	a.send(uverbs.SendWR{WRID: 7, Opcode: uverbs.WRSend}, uverbs.SendWR{WRID: 8, Opcode: uverbs.WRSend})
	a.want(a.sendCQ, outcome{7, uverbs.WCWRFlushErr}, outcome{8, uverbs.WCWRFlushErr})

	// Both QPs live again after RESET.
	for _, e := range []*end{a, b} {
		check(t, e.qp.Modify(&uverbs.QPAttr{State: uverbs.QPStateReset}, uverbs.AttrState))
	}
	rcConnect(a, b)
	for i := range 40 { // more than a lap
		fill(ma, byte(i))
		b.recv(uint64(i), mb.SGE(0, 64))
		a.send(uverbs.SendWR{WRID: uint64(i), Opcode: uverbs.WRSend, Flags: uverbs.SendSignaled, SGList: []uverbs.SGE{ma.SGE(0, 64)}})
		a.want(a.sendCQ, outcome{uint64(i), 0})
		b.want(b.recvCQ, outcome{uint64(i), 0})
		if !bytes.Equal(ma.Bytes(), mb.Bytes()) {
			t.Fatalf("round %d: data differ", i)
		}
	}
}

func TestVerbsEventsWakeTheOwner(t *testing.T) {
	a, b := rcPair(t)
	mb := b.mr(64, fullMR)
	const rounds = 200
	done := make(chan int)
	for range 2 {
		b.recv(0, mb.SGE(0, 64))
	}
	go func() { // b's owner: arm, poll once more, sleep
		got := 0
		defer func() { done <- got }()
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		wc := make([]uverbs.WC, 16)
		for got < rounds {
			if err := b.recvCQ.Arm(false); err != nil {
				t.Error(err)
				return
			}
			for {
				n, err := b.recvCQ.Poll(wc)
				if err != nil {
					t.Error(err)
					return
				}
				for range n {
					if _, err := b.qp.PostRecv([]uverbs.RecvWR{{SGList: []uverbs.SGE{mb.SGE(0, 64)}}}); err != nil {
						t.Error(err)
						return
					}
				}
				if got += n; n == 0 {
					break
				}
			}
			if got == rounds {
				return
			}
			if cq, err := b.channel.Wait(ctx); err != nil || cq != b.recvCQ {
				t.Errorf("after %d messages: %v", got, err)
				return
			}
		}
	}()
	ma := a.mr(64, 0)
	for i := range rounds {
		a.send(uverbs.SendWR{WRID: uint64(i), Opcode: uverbs.WRSend, Flags: uverbs.SendSignaled, SGList: []uverbs.SGE{ma.SGE(0, 16)}})
		a.want(a.sendCQ, outcome{uint64(i), 0})
	}
	if got := <-done; got != rounds {
		t.Errorf("%d messages, want %d", got, rounds)
	}
}

func TestVerbsCQOverrunIsReported(t *testing.T) {
	fab := mlx5sim.NewFabric()
	a, b := newEnd(t, newDevice(t, fab), uverbs.QPTypeRC, 1), newEnd(t, newDevice(t, fab), uverbs.QPTypeRC, 64)
	rcConnect(a, b)
	depth := a.sendCQ.Depth()
	mb := b.mr(64, fullMR)
	for i := range depth + 2 { // one slot beside the depth is the kernel's
		a.send(uverbs.SendWR{WRID: uint64(i), Opcode: uverbs.WRRDMAWrite, Flags: uverbs.SendSignaled, RemoteAddr: mb.Addr(), RKey: mb.RKey()})
	}
	a.wantAsync(uverbs.EventCQErr)
	a.wantState(uverbs.QPStateErr)
}

// TestVerbsManyOwnersAtOnce has several goroutines, each the owner of one
// connected pair, use two devices at the same time.
func TestVerbsManyOwnersAtOnce(t *testing.T) {
	fab := mlx5sim.NewFabric()
	da, db := newDevice(t, fab), newDevice(t, fab)
	var wg sync.WaitGroup
	for i := range 6 {
		from, to := da, db
		if i%2 == 1 {
			from, to = db, da
		}
		a, b := newEnd(t, from, uverbs.QPTypeRC, 64), newEnd(t, to, uverbs.QPTypeRC, 64)
		rcConnect(a, b)
		ma, mb := a.mr(4096, fullMR), b.mr(4096, fullMR)
		wg.Go(func() {
			for k := range 200 {
				fill(ma, byte(i*40+k))
				b.recv(uint64(k), mb.SGE(0, 4096))
				a.send(uverbs.SendWR{WRID: uint64(k), Opcode: uverbs.WRSend, Flags: uverbs.SendSignaled, SGList: []uverbs.SGE{ma.SGE(0, 4096)}})
				// The engine runs to completion: both are there already.
				s, r := a.poll(a.sendCQ), b.poll(b.recvCQ)
				if len(s) != 1 || len(r) != 1 || s[0].Status != 0 || r[0].Status != 0 || r[0].WRID != uint64(k) || !bytes.Equal(ma.Bytes(), mb.Bytes()) {
					t.Errorf("owner %d, round %d: %+v %+v", i, k, s, r)
					return
				}
			}
		})
	}
	wg.Wait()
	if n := da.Stats().LocalMsgs + db.Stats().LocalMsgs; n != 6*200 {
		t.Errorf("%d messages, want %d", n, 6*200)
	}
}

// BenchmarkVerbsUDSend32 is one 32-byte inline datagram with its receive, both
// completions polled: driver and device together.
func BenchmarkVerbsUDSend32(b *testing.B) {
	fab := mlx5sim.NewFabric()
	from, to := newEnd(b, newDevice(b, fab), uverbs.QPTypeUD, 64), newEnd(b, newDevice(b, fab), uverbs.QPTypeUD, 64)
	from.ud()
	to.ud()
	src, dst := from.mr(64, 0), to.mr(128, uverbs.AccessLocalWrite)
	wrs := []uverbs.SendWR{{Opcode: uverbs.WRSend, Flags: uverbs.SendInline | uverbs.SendSignaled, SGList: []uverbs.SGE{src.SGE(0, 32)},
		AH: from.ah(to), RemoteQPN: to.qp.QPN(), RemoteQKey: qkey}}
	recvs := []uverbs.RecvWR{{SGList: []uverbs.SGE{dst.SGE(0, 128)}}}
	wc := make([]uverbs.WC, 4)
	b.ReportAllocs()
	for b.Loop() {
		_, err1 := to.qp.PostRecv(recvs)
		_, err2 := from.qp.PostSend(wrs)
		n1, err3 := from.sendCQ.Poll(wc)
		n2, err4 := to.recvCQ.Poll(wc)
		if err1 != nil || err2 != nil || err3 != nil || err4 != nil || n1 != 1 || n2 != 1 || wc[0].ByteLen != 72 {
			b.Fatal(err1, err2, err3, err4, n1, n2)
		}
	}
}

func BenchmarkVerbsRead(b *testing.B) {
	for _, n := range []int{4096, 1 << 20} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			from, to := rcPair(b)
			dst, src := from.mr(n, fullMR), to.mr(n, fullMR)
			fill(src, 1)
			fill(dst, 2)
			wrs := []uverbs.SendWR{{Opcode: uverbs.WRRDMARead, Flags: uverbs.SendSignaled, SGList: []uverbs.SGE{dst.SGE(0, n)},
				RemoteAddr: src.Addr(), RKey: src.RKey()}}
			wc := make([]uverbs.WC, 4)
			b.SetBytes(int64(n))
			b.ReportAllocs()
			for b.Loop() {
				_, err := from.qp.PostSend(wrs)
				if got, err2 := from.sendCQ.Poll(wc); err != nil || err2 != nil || got != 1 || wc[0].Status != 0 {
					b.Fatal(err, err2, got, wc[0].Status)
				}
			}
			if !bytes.Equal(src.Bytes(), dst.Bytes()) {
				b.Error("data differ")
			}
		})
	}
}
