package mlx5

import (
	"fmt"
	"os"
	"sync/atomic"
	"syscall"

	"github.com/rrppcc-go/rrppcc/internal/kernel"
	"github.com/rrppcc-go/rrppcc/mlx5/internal/abi"
	"github.com/rrppcc-go/rrppcc/mlx5/internal/prm"
	"github.com/rrppcc-go/rrppcc/uverbs"
)

// ecePropose asks the firmware for enhanced connection establishment of its
// own choice, as libmlx5 does where the kernel knows it.
const ecePropose = 0x10000000

// qp is a queue pair. Each work queue has its own owner; see sendQueue and
// recvQueue.
type qp struct {
	ctx    *contextDriver
	ud     bool
	uc     bool
	qpn    uint32
	key    uint32 // in ctx.qps, and in CQEs
	sendCQ *cq
	recvCQ *cq
	srq    *srq // where receives come from; nil: rq
	db     dbrec
	closed atomic.Bool
	inline bool   // completions may hold data: scatter-to-CQE
	mem    []byte // receive queue, send queue; pollers look into it for scatter-to-CQE
	tables []byte // work request ids: written by posters, read by pollers

	sq sendQueue
	rq recvQueue
}

func (d *contextDriver) CreateQP(attr *uverbs.QPInitAttr, issue func(cap uverbs.QPCap, uhwIn, uhwOut []byte) (uverbs.QPCap, uint32, error)) (uverbs.QPDriver, error) {
	overhead := uint32(overheadRC)
	switch attr.Type {
	case uverbs.QPTypeUD:
		overhead = overheadUD
	case uverbs.QPTypeRC, uverbs.QPTypeUC:
	default:
		return nil, fmt.Errorf("QP type %v: %w", attr.Type, syscall.EOPNOTSUPP)
	}
	ask := attr.Cap
	if attr.SRQ != nil {
		ask.MaxRecvWR, ask.MaxRecvSGE = 0, 0
	}
	layout, err := layoutQP(&d.lim, ask, overhead)
	if err != nil {
		return nil, fmt.Errorf("capacities %+v: %w", attr.Cap, err)
	}
	return d.newQP(attr, layout, issue)
}

// newQP creates a QP of a given layout.
func (d *contextDriver) newQP(attr *uverbs.QPInitAttr, layout qpLayout, issue func(cap uverbs.QPCap, uhwIn, uhwOut []byte) (uverbs.QPCap, uint32, error)) (_ *qp, err error) {
	sendCQ, ok1 := attr.SendCQ.Driver().(*cq)
	recvCQ, ok2 := attr.RecvCQ.Driver().(*cq)
	if !ok1 || !ok2 || sendCQ.ctx != d || recvCQ.ctx != d {
		return nil, fmt.Errorf("CQs of another device: %w", syscall.EINVAL)
	}
	q := &qp{ctx: d, ud: attr.Type == uverbs.QPTypeUD, uc: attr.Type == uverbs.QPTypeUC, key: noUIdx, sendCQ: sendCQ, recvCQ: recvCQ}
	q.inline = d.scatter && !q.ud
	if attr.SRQ != nil {
		s, ok := attr.SRQ.Driver().(*srq)
		if !ok || s.ctx != d {
			return nil, fmt.Errorf("SRQ of another device: %w", syscall.EINVAL)
		}
		q.srq = s
		s.refs.Add(1)
	}
	defer func() {
		if err != nil {
			q.freeShared()
			q.freeOwn()
		}
	}()
	if q.db, err = d.dbrecs.alloc(); err != nil {
		return nil, err
	}
	page := uint32(os.Getpagesize())
	if q.mem, err = allocMemory(int(max(roundUp(uint32(layout.bytes()), page), page))); err != nil {
		return nil, err
	}
	if q.tables, err = allocMemory(int(roundUp(layout.sqEntries*sendSlotBytes+layout.rqEntries*8, page) + page)); err != nil {
		return nil, err
	}
	if d.qps.byIndex {
		if q.key, err = d.qps.reserve(q); err != nil {
			return nil, err
		}
	}
	var reg *bfreg
	req := &abi.Mlx5_ib_create_qp{
		Buf_addr:     prm.Addr(&q.mem[0]),
		Db_addr:      q.db.addr(d.dbrecs.stride),
		Sq_wqe_count: layout.sqEntries,
		Rq_wqe_count: layout.rqEntries,
		Rq_wqe_shift: layout.rqShift,
		Uidx:         q.key,
	}
	if d.scatter {
		req.Flags |= abi.MLX5_QP_FLAG_SCATTER_CQE
	}
	if d.lim.ece {
		req.Ece_options = ecePropose
	}
	if d.uars.dynamic {
		if reg, err = d.uars.take(); err != nil {
			return nil, err
		}
		q.sq.reg = reg
		req.Flags |= abi.MLX5_QP_FLAG_UAR_PAGE_INDEX
		req.Bfreg_index = reg.page.id
	}
	ask := attr.Cap
	ask.MaxInline = layout.maxInline
	if ask.MaxRecvWR == 0 || q.srq != nil {
		ask.MaxRecvWR, ask.MaxRecvSGE = 0, 0
	}
	if ask.MaxSendWR == 0 {
		ask.MaxSendSGE = 0
	}
	resp := new(abi.Mlx5_ib_create_qp_resp)
	_, qpn, err := issue(ask, kernel.Bytes(req), kernel.Bytes(resp))
	if err != nil {
		return nil, err
	}
	if qpn > keyMask {
		return nil, fmt.Errorf("%w: QP number %#x", uverbs.ErrBadAnswer, qpn)
	}
	q.qpn = qpn
	if !d.uars.dynamic {
		if reg, err = d.uars.byIndex(resp.Bfreg_index); err != nil {
			return nil, err
		}
		q.sq.reg = reg
	}
	q.sq.init(q, &layout, attr.SigAll)
	q.rq.init(q, &layout)
	if !d.qps.byIndex {
		q.key = qpn
		d.qps.insert(qpn, q)
	}
	attr.Cap = layout.user()
	return q, nil
}

// StateChanged empties the queues when the kernel has moved the QP to RESET.
func (q *qp) StateChanged(state uverbs.QPState) {
	if state != uverbs.QPStateReset {
		return
	}
	q.purge(func() {})
	q.sq.reset()
	q.rq.reset()
	q.db.Store(prm.QPRecv, 0)
	q.db.Store(prm.QPSend, 0)
}

// purge has the QP's entries dropped from its CQs, and calls done then.
func (q *qp) purge(done func()) {
	if q.sendCQ == q.recvCQ {
		q.sendCQ.purge(q.key, q.srq, done)
		return
	}
	done = countdown(2, done)
	q.sendCQ.purge(q.key, nil, done) // holds no receives
	q.recvCQ.purge(q.key, q.srq, done)
}

// Close frees the queues. The QP's key stays taken until its CQs have dropped
// its entries; until then a poller may still look at the tables of work request
// ids, which therefore live as long as the key does.
func (q *qp) Close() error {
	if q.closed.Swap(true) {
		return nil
	}
	q.purge(q.freeShared)
	q.freeOwn()
	return nil
}

// freeOwn gives back what only the owners of the work queues use.
func (q *qp) freeOwn() { q.ctx.uars.release(q.sq.reg) }

// freeShared gives back what pollers look at. It may run within a Poll, once
// in the QP's life.
func (q *qp) freeShared() {
	if q.key != noUIdx {
		q.ctx.qps.remove(q.key, q)
	}
	if q.db.DBRec != nil {
		q.ctx.dbrecs.release(q.db)
	}
	freeMemory(q.tables) // cannot fail: the mapping is whole
	freeMemory(q.mem)
	if q.srq != nil {
		q.srq.unref()
	}
}
