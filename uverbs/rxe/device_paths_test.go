package rxe

import (
	"testing"

	"github.com/rrppcc-go/rrppcc/uverbs"
)

// ipv6 switches a node to the first IPv6 entry of its GID table.
func (n *node) ipv6(t *testing.T) {
	for _, e := range must(n.ctx.QueryGIDTable())(t) {
		if e.Type == uverbs.GIDTypeRoCEv2 && e.GID.Addr().Is6() {
			n.gid = e
			return
		}
	}
	t.Skip("no IPv6 entry in the GID table")
}

func TestDeviceIPv6(t *testing.T) {
	a, b := devices(t)
	a.ipv6(t)
	b.ipv6(t)
	t.Logf("%v to %v", a.gid.GID, b.gid.GID)
	qa, qb := rcPair(a, b, nil, usual)
	fill(a.mem[:10000], 1)
	b.recv(qb, uverbs.RecvWR{WRID: 1, SGList: []uverbs.SGE{b.mr.SGE(0, 10000)}})
	a.send(qa, uverbs.SendWR{WRID: 2, Opcode: uverbs.WRSend, Flags: sig, SGList: []uverbs.SGE{a.mr.SGE(0, 10000)}})
	a.want(2, uverbs.WCSuccess, uverbs.WCSend)
	b.want(1, uverbs.WCSuccess, uverbs.WCRecv)
	same(t, "RC", b.mem[:10000], a.mem[:10000])

	ua, ub := a.ud(nil), b.ud(nil)
	b.recv(ub, uverbs.RecvWR{WRID: 3, SGList: []uverbs.SGE{b.mr.SGE(0, 1000)}})
	a.send(ua, uverbs.SendWR{WRID: 4, Opcode: uverbs.WRSend, Flags: sig, SGList: []uverbs.SGE{a.mr.SGE(0, 500)}, AH: a.ah(b), RemoteQPN: ub.QPN(), RemoteQKey: testQKey})
	a.want(4, uverbs.WCSuccess, uverbs.WCSend)
	if wc := b.want(3, uverbs.WCSuccess, uverbs.WCRecv); wc.ByteLen != 540 || uverbs.GID(b.mem[8:24]) != a.gid.GID || uverbs.GID(b.mem[24:40]) != b.gid.GID {
		t.Errorf("%+v, GRH % x", wc, b.mem[:40])
	}
	same(t, "UD", b.mem[40:540], a.mem[:500])
}

func TestDeviceUC(t *testing.T) {
	a, b := devices(t)
	qa, qb := a.qp(uverbs.QPTypeUC, nil), b.qp(uverbs.QPTypeUC, nil)
	up := func(n, peer *node, qp, remote *uverbs.QP) {
		n.modify(qp, uverbs.QPAttr{State: uverbs.QPStateInit, Port: 1, AccessFlags: allAccess}, uverbs.AttrPKeyIndex|uverbs.AttrPort|uverbs.AttrAccessFlags)
		n.modify(qp, uverbs.QPAttr{State: uverbs.QPStateRTR, AV: n.path(peer), PathMTU: uverbs.MTU1024, DestQPN: remote.QPN()},
			uverbs.AttrAV|uverbs.AttrPathMTU|uverbs.AttrDestQPN|uverbs.AttrRQPSN)
		n.modify(qp, uverbs.QPAttr{State: uverbs.QPStateRTS}, uverbs.AttrSQPSN)
	}
	up(a, b, qa, qb)
	up(b, a, qb, qa)
	fill(a.mem[:5000], 8)
	b.recv(qb, uverbs.RecvWR{WRID: 1, SGList: []uverbs.SGE{b.mr.SGE(0, 5000)}})
	a.send(qa, uverbs.SendWR{WRID: 2, Opcode: uverbs.WRRDMAWrite, Flags: sig, SGList: []uverbs.SGE{a.mr.SGE(0, 5000)}, RemoteAddr: b.mr.Addr() + 8192, RKey: b.mr.RKey()},
		uverbs.SendWR{WRID: 3, Opcode: uverbs.WRSend, Flags: sig, SGList: []uverbs.SGE{a.mr.SGE(0, 5000)}})
	a.want(2, uverbs.WCSuccess, uverbs.WCRDMAWrite)
	a.want(3, uverbs.WCSuccess, uverbs.WCSend)
	b.want(1, uverbs.WCSuccess, uverbs.WCRecv)
	same(t, "send", b.mem[:5000], a.mem[:5000])
	same(t, "write", b.mem[8192:][:5000], a.mem[:5000])
	if n, err := qa.PostSend([]uverbs.SendWR{{Opcode: uverbs.WRRDMARead}}); n != 0 || err != uverbs.ErrBadOpcode {
		t.Errorf("READ on UC: %d, %v", n, err)
	}
}
