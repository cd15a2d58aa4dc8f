//go:build linux

package mlx5sim_test

import (
	"bytes"
	"fmt"
	"testing"

	"github.com/rrppcc-go/rrppcc/uverbs"
)

// TestClassAndHopLimitGoOverSockets: what an address vector asks for is in the IP
// headers that the receiver's socket reports, per QP and per datagram.
func TestClassAndHopLimitGoOverSockets(t *testing.T) {
	classes := []struct{ class, hops uint8 }{{0, 64}, {0x28, 7}, {0xe0, 255}, {3, 64}, {0, 1}, {8, 0}}
	seen := func(hops uint8) uint8 { // 0 asks for the default
		if hops == 0 {
			return 64
		}
		return hops
	}
	da, db := farDevices(t)
	var file bytes.Buffer
	stop, err := db.Capture(&file)
	check(t, err)
	want := map[string]int{}
	for _, c := range classes {
		for _, typ := range []uverbs.QPType{uverbs.QPTypeRC, uverbs.QPTypeUC} {
			a, b := newEnd(t, da, typ, 16), newEnd(t, db, typ, 16)
			a.tclass, a.hops, b.tclass, b.hops = c.class, c.hops, c.class, c.hops
			if typ == uverbs.QPTypeRC {
				rcConnect(a, b)
			} else {
				ucConnect(a, b)
			}
			ma, mb := a.mr(8192, fullMR), b.mr(8192, fullMR)
			b.recv(1, mb.SGE(0, 8192))
			a.send(uverbs.SendWR{WRID: 1, Opcode: uverbs.WRSend, Flags: uverbs.SendSignaled, SGList: []uverbs.SGE{ma.SGE(0, 5000)}})
			a.want(a.sendCQ, outcome{1, 0})
			b.want(b.recvCQ, outcome{1, 0})
			want[fmt.Sprint(c.class, seen(c.hops))] += 5 // packets of 1024
		}
	}
	// Datagrams of one QP to one address, in one list.
	a, b := newEnd(t, da, uverbs.QPTypeUD, 16), newEnd(t, db, uverbs.QPTypeUD, 16)
	a.ud()
	b.ud()
	mb := b.mr(4096, uverbs.AccessLocalWrite)
	var wrs []uverbs.SendWR
	for i, c := range classes {
		ah, err := a.pd.CreateAH(&uverbs.AHAttr{DGID: b.gid, SGIDIndex: a.gidIndex, HopLimit: c.hops, TrafficClass: c.class, IsGlobal: true, Port: 1})
		check(t, err)
		t.Cleanup(func() { check(t, ah.Close()) })
		b.recv(uint64(i), mb.SGE(i*64, 64))
		wrs = append(wrs, uverbs.SendWR{WRID: uint64(i), Opcode: uverbs.WRSend, Flags: uverbs.SendSignaled, AH: ah, RemoteQPN: b.qp.QPN(), RemoteQKey: qkey})
		want[fmt.Sprint(c.class, seen(c.hops))]++
	}
	a.send(wrs...)
	b.wait(b.recvCQ, len(classes))
	for i, c := range classes {
		if ip := mb.Bytes()[i*64+20:]; ip[0] != 0x45 || ip[1] != c.class || ip[8] != seen(c.hops) {
			t.Errorf("datagram %d: header % x, want class %#x and %d hops", i, ip[:20], c.class, seen(c.hops))
		}
	}
	check(t, stop())
	got := map[string]int{}
	for _, c := range readPcap(t, file.Bytes()) {
		if c.src.Addr() == da.Addr() {
			got[fmt.Sprint(c.class, c.hops)]++
		}
	}
	// RC may send a packet again.
	for k, n := range want {
		if got[k] < n {
			t.Errorf("%d packets of class and hops %s, want %d", got[k], k, n)
		}
	}
	if len(got) != len(want) {
		t.Errorf("classes %v, want %v", got, want)
	}
}
