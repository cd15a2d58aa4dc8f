package mlx5sim

import (
	"time"

	"github.com/rrppcc-go/rrppcc/internal/roce"
)

// Unreliable connections (IBTA 9.8): SENDs and WRITEs as RC has them, and no
// answers. A message of which a packet is missing is dropped; the next one that
// begins is taken, whatever its PSN.

// Nothing tells a UC requester to slow down. So that sockets can keep up, it
// sends in bursts.
const (
	ucBurst = 64 // packets
	ucPause = 200 * time.Microsecond
)

// executeUC runs one operation against the connected QP on to. It completes
// with success whatever becomes of it there.
func (q *qp) executeUC(op *sendOp, to *Device) bool {
	src, s := q.ownSpans(op)
	if s != synOK {
		return q.refuse(op, s)
	}
	q.sq.next = op.end()
	if !q.deliverUC(op, to, src) {
		return q.refuse(op, synLocalProt)
	}
	q.wasLocal(op)
	q.completeSend(op, 0)
	return true
}

// deliverUC brings a message to its QP, or drops and counts it. It reports
// false where its data cannot be read.
func (q *qp) deliverUC(op *sendOp, to *Device, src []span) bool {
	r := q.peer(to)
	if r == nil {
		return true
	}
	var st rcResult
	if op.opcode == opWrite || op.opcode == opWriteImm {
		st = q.rcWrite(op, r, src)
	} else {
		st = q.rcSend(op, r, src)
	}
	if st.rnr {
		to.stats.Drops.NoReceive++
	}
	return st.syn != synLocalProt
}

// pumpUC sends what the burst has room for. An operation ends with its last
// packet.
func (q *qp) pumpUC() {
	r := &q.req
	for r.ready && r.cur != r.tail && r.burst < ucBurst {
		o := &r.ops[r.cur%wireOps]
		if s := q.sendPacket(o, false); s != synOK {
			q.failSend(&o.op, s)
			return
		}
		r.burst++
		r.snd = (r.snd + 1) & psnMask
		r.una, r.max = r.snd, r.snd
		if r.pkt++; r.pkt == o.n {
			r.cur++
			r.pkt = 0
			r.head = r.cur
			q.completeSend(&o.op, 0)
		}
	}
}

// onUC handles a packet of the requester's.
func (q *qp) onUC(p *roce.Packet) {
	q.startResponder()
	r, drops := &q.resp, &q.file.dev.stats.Drops
	first, last := p.Opcode.IsFirst(), p.Opcode.IsLast()
	inOrder := p.PSN == r.epsn
	if !inOrder {
		drops.OutOfOrder++
	}
	r.epsn = (p.PSN + 1) & psnMask
	msg := uint8(opSend)
	if p.Opcode.IsWrite() {
		msg = opWrite
	}
	switch {
	case first:
		if r.msg != opNOP {
			drops.Incomplete++ // the one before
		}
	case r.msg == opNOP: // of a message that is dropped already
		return
	case !inOrder || r.msg != msg:
		drops.Incomplete++
		r.msg = opNOP
		return
	}
	r.msg = opNOP
	n, mtu := uint64(len(p.Payload)), uint64(r.mtu)
	if n > mtu || !last && n != mtu || last && !first && n == 0 {
		drops.Malformed++
		return
	}
	var done bool
	if msg == opWrite {
		done = q.writeUC(p, first, last)
	} else {
		done = q.sendUC(p, first, last)
	}
	if done && !last {
		r.msg = msg
	}
}

// sendUC puts a packet of a SEND into the receive that it began with. False:
// the message is dropped.
func (q *qp) sendUC(p *roce.Packet, first, last bool) bool {
	r := &q.resp
	w := &q.eng.recv
	if first {
		if !q.beginUC() {
			return false
		}
		r.off = 0
	}
	inline, s := q.storeSend(p, first && last)
	if s != synOK {
		q.failRecv(w, s)
		return false
	}
	if last {
		info := q.wireInfo(p, r.off)
		info.inline = inline
		q.completeRecv(w, info)
	}
	return true
}

// beginUC takes a receive, if there is one.
func (q *qp) beginUC() bool {
	_, st := q.nextRecv()
	if st == recvEmpty {
		q.file.dev.stats.Drops.NoReceive++
	}
	return st == recvOK
}

// writeUC puts a packet of an RDMA WRITE into memory. False: the message is
// dropped; what it wrote before stays.
func (q *qp) writeUC(p *roce.Packet, first, last bool) bool {
	r, d := &q.resp, q.file.dev
	if first {
		h := p.RETH()
		r.va, r.rkey, r.length, r.off = h.VA, h.RKey, uint64(h.Length), 0
		if _, s := d.remoteAccess(q, r.rkey, r.va, r.length, accessRemoteWrite); s != synOK {
			q.accessError(s)
			return false
		}
	}
	n := uint64(len(p.Payload))
	if left := r.length - r.off; n > left || last != (n == left) {
		d.stats.Drops.Malformed++
		return false
	}
	m, s := d.remoteAccess(q, r.rkey, r.va+r.off, n, accessRemoteWrite)
	if s != synOK {
		q.accessError(s)
		return false
	}
	if p.Opcode.HasImm() && !q.beginUC() {
		return false
	}
	if m != nil && m.write(r.va+r.off, p.Payload) != nil {
		q.toError()
		return false
	}
	r.off += n
	if p.Opcode.HasImm() {
		q.completeRecv(&q.eng.recv, q.wireInfo(p, r.length))
	}
	return true
}
