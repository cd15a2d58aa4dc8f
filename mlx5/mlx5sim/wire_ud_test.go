package mlx5sim

import (
	"bytes"
	"net/netip"
	"testing"

	"github.com/rrppcc-go/rrppcc/internal/roce"
)

func addrPort(s string) netip.AddrPort { return netip.MustParseAddrPort(s) }

// udOverWire is a UD QP on each of two devices; what the first sends is given
// to the second at once, when the test says so.
type udOverWire struct {
	a, b   *node
	qa, qb *qp
	link   *captureLink
	mem    *mr // of b
	src    *mr // of a
}

func newUDOverWire(t *testing.T) *udOverWire {
	p := newPair(t, "10.0.0.1", "10.0.0.2")
	u := &udOverWire{a: p.a, b: p.b, link: &captureLink{}}
	p.a.d.link = u.link
	u.qa, u.qb = p.a.qp("UD", qpOpts{}), p.b.qp("UD", qpOpts{})
	for _, q := range []*qp{u.qa, u.qb} {
		q.to(stateInit, stateRTR, stateRTS)
	}
	u.mem, u.src = p.b.mr(8192, accessLocalWrite), p.a.mr(8192, 0)
	return u
}

// pass carries what was sent to b.
func (u *udOverWire) pass() {
	for _, pkt := range u.link.pkts {
		u.b.d.deliver([]burst{{from: netip.AddrPortFrom(u.a.d.addr, roce.Port), class: plainClass, size: len(pkt), b: pkt}})
	}
	u.link.pkts = nil
}

func TestDatagramArrivesWithItsNetworkHeader(t *testing.T) {
	u := newUDOverWire(t)
	data := u.a.fill(u.src, 1)
	u.b.recv(u.qb, u.mem.sge(0, 4136))
	u.a.send(u.qa, ctrl{op: opSendImm, imm: 0x12345678, flags: ce | ctrlSolicited},
		segAV(u.b.d.gids[0].gid, u.qb.qpn, 0x11111111), u.src.sge(10, 4093))
	if all := u.a.take(u.qa.sendCQ); len(all) != 1 || all[0].syn != synOK {
		t.Fatalf("a datagram completes when it is sent: %+v", all)
	}
	u.pass()
	raw, ok := u.b.poll(u.qb.recvCQ)
	if !ok {
		t.Fatalf("nothing arrived: %+v", u.b.d.Stats())
	}
	if n, imm, src := be.Uint32(raw[44:]), be.Uint32(raw[36:]), be.Uint32(raw[24:]); n != 4133 || imm != 0x12345678 ||
		src != u.qa.qpn|1<<28|l3IPv4<<24 || raw[63]&2 == 0 || raw[63]>>4 != cqeRespSendImm {
		t.Errorf("%d bytes, immediate %#x, flags and source QPN %#x, last byte %#x", n, imm, src, raw[63])
	}
	got := u.b.bytes(u.mem)
	want := make([]byte, 40)
	copy(want[20:], []byte{0x45, 0, 0x10, 0x38, 0, 0, 0x40, 0, 64, 17, 0x16, 0xb3, 10, 0, 0, 1, 10, 0, 0, 2})
	if !bytes.Equal(got[:40], want) {
		t.Errorf("network header %x, want %x", got[:40], want)
	}
	if !bytes.Equal(got[40:4133], data[10:4103]) {
		t.Error("data differ")
	}
}

func TestDatagramsThatDoNotFitAreDroppedByReason(t *testing.T) {
	u := newUDOverWire(t)
	gid := u.b.d.gids[0].gid
	send := func(qpn, qkey, n uint32) {
		u.a.send(u.qa, ctrl{op: opSend, flags: ce}, segAV(gid, qpn, qkey), u.src.sge(0, n))
		u.pass()
		if all := u.a.take(u.qa.sendCQ); len(all) != 1 || all[0].syn != synOK {
			t.Errorf("the sender doesn't notice: %+v", all)
		}
	}
	send(u.qb.qpn, 0x11111111, 8) // no receive
	u.b.recv(u.qb, u.mem.sge(0, 100))
	send(u.qb.qpn, 0x11111112, 8)
	send(0x999, 0x11111111, 8)
	u.b.d.opt.mtu = 3 // 1024
	send(u.qb.qpn, 0x11111111, 1025)
	u.b.d.opt.mtu = 5
	s := u.b.d.Stats().Drops
	if (s != Drops{NoReceive: 1, BadQKey: 1, NoQP: 1, TooLong: 1}) {
		t.Errorf("%+v", s)
	}
	if all := u.b.take(u.qb.recvCQ); len(all) != 0 {
		t.Errorf("%+v", all)
	}
	send(u.qb.qpn, 0x11111111, 61) // 40+61 do not fit 100
	if all := u.b.take(u.qb.recvCQ); len(all) != 1 || all[0].syn != synLocalLen {
		t.Errorf("receive that is too small: %+v", all)
	}

	gid = [16]byte{15: 1} // IPv6: no way from here
	send(u.qb.qpn, 0x11111111, 8)
	if n := u.a.d.Stats().Drops.Unreachable; n != 1 {
		t.Errorf("%d unreachable, want 1", n)
	}
}

func TestDatagramOfForeignMemoryFailsAtTheSender(t *testing.T) {
	u := newUDOverWire(t)
	u.a.send(u.qa, ctrl{op: opSend, flags: ce}, segAV(u.b.d.gids[0].gid, u.qb.qpn, 0x11111111), segData(u.src.iova, 8, u.src.key+1))
	if all := u.a.take(u.qa.sendCQ); len(all) != 1 || all[0].syn != synLocalProt {
		t.Errorf("%+v", all)
	}
	if len(u.link.pkts) != 0 {
		t.Error("something was sent")
	}
}

func TestLinkLocalGIDsLeadToTheirDevice(t *testing.T) {
	u := newUDOverWire(t)
	if a, ok := addrOfGID(linkLocal(u.b.d.mac)); !ok || a != u.b.d.addr {
		t.Errorf("%v, %v", a, ok)
	}
	for _, gid := range [][16]byte{{}, linkLocal([6]byte{2, 4, 6, 8, 10, 12}), {0: 0xff, 15: 1}} {
		if a, ok := addrOfGID(gid); ok {
			t.Errorf("%x leads to %v", gid, a)
		}
	}
}
