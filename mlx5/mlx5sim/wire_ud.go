package mlx5sim

import (
	"net/netip"

	"github.com/rrppcc-go/rrppcc/internal/roce"
)

// wireHopLimit is what links put into IP's TTL if nobody asks for another.
const wireHopLimit = 64

// sendDatagram sends a UD message. It completes at once, whatever becomes of
// it.
func (q *qp) sendDatagram(op *sendOp) {
	d := q.file.dev
	opcode := roce.UDSendOnly
	if op.hasImm() {
		opcode = roce.UDSendOnlyImm
	}
	n := int(op.length)
	b := d.room(roce.Size(opcode, n))
	h := roce.BTH{Opcode: opcode, Solicited: op.solicited, MigReq: true, Pad: uint8(roce.Pad(n)), PKey: defaultPKey,
		DestQPN: op.av.qpn, PSN: q.attr.sqPSN + q.req.next}
	h.Put(b)
	roce.DETH{QKey: q.udQKey(&op.av), SrcQPN: q.qpn}.Put(b[roce.BTHSize:])
	if op.hasImm() {
		roce.PutUint32(b[roce.BTHSize+roce.DETHSize:], op.imm)
	}
	at := opcode.HeaderSize()
	if s := q.gather(op, 0, b[at:at+n]); s != synOK {
		q.failSend(op, s)
		return
	}
	clear(b[at+n:])
	q.req.next++
	if p := d.datagramPath(&op.av.addressVector); p != nil {
		d.commit(p, b)
	} else {
		d.stats.Drops.Unreachable++
	}
	q.completeSend(op, 0)
}

// datagramPath is the path of av, kept for the next datagram; nil if there is
// none.
func (d *Device) datagramPath(av *addressVector) *path {
	p := &d.wire.udPath
	a, ok := addrOfGID(av.dgid)
	if !ok {
		return nil
	}
	if p.to.Addr() != a {
		if *p, ok = d.pathTo(av.dgid); !ok {
			return nil
		}
	}
	p.class = av.ipClass()
	return p
}

// receiveUD brings a datagram to its QP, or drops and counts it.
func (d *Device) receiveUD(from netip.AddrPort, class ipClass, ip []byte, p *roce.Packet) {
	n := uint64(len(p.Payload))
	if n > uint64(d.mtuBytes()) {
		d.stats.Drops.TooLong++
		return
	}
	deth := p.DETH()
	q, ok := d.udTarget(p.DestQPN, deth.QKey)
	if !ok {
		return
	}
	w, st := q.nextRecv()
	if st != recvOK {
		d.stats.Drops.NoReceive++
		return
	}
	if w.length < n+grhBytes {
		d.stats.Drops.TooLong++
		q.failRecv(w, synLocalLen)
		return
	}
	head := &d.fab.eng.grh
	g := grh{src: from.Addr().As16(), dst: d.addr.As16(), trafficClass: class.traffic, hopLimit: class.hops, payload: udWireBytes(n, p.Opcode.HasImm())}
	l3 := g.put(head)
	if ip != nil {
		copy(head[grhBytes-ipv4Bytes:], ip)
	}
	s := q.scatterRecv(w, 0, head[:])
	if s == synOK {
		s = q.scatterRecv(w, grhBytes, p.Payload)
	}
	if s != synOK {
		q.failRecv(w, s)
		return
	}
	q.completeRecv(w, recvInfo{
		byteLen: uint32(n) + grhBytes, imm: p.Imm(), hasImm: p.Opcode.HasImm(), solicited: p.Solicited,
		srcQPN: deth.SrcQPN, grh: true, l3: l3,
	})
}
