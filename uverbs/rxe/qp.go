package rxe

import (
	"errors"
	"fmt"
	"sync/atomic"
	"syscall"

	kabi "github.com/rrppcc-go/rrppcc/internal/abi"
	"github.com/rrppcc-go/rrppcc/internal/kernel"
	"github.com/rrppcc-go/rrppcc/uverbs"
	"github.com/rrppcc-go/rrppcc/uverbs/rxe/internal/abi"
)

// errTooLong is for data that no message can hold.
var errTooLong error = syscall.EINVAL

// qp is a queue pair. Each ring has its own owner.
type qp struct {
	ctx    *contextDriver
	typ    uverbs.QPType
	qpn    uint32
	sendCQ *cq
	recvCQ *cq
	state  atomic.Uint32 // uverbs.QPState
	closed atomic.Bool

	sq     sendQueue
	rq     recvQueue
	hasSRQ bool
}

// sendQueue is the producer's side of a send ring.
type sendQueue struct {
	ring      ring
	maxSGE    uint32
	maxInline uint32 // bytes
	prod      uint32 // next entry to write
	cons      uint32 // the kernel's index when last read

	doorbell    *kernel.Prepared
	doorbellMem []byte
}

func (d *contextDriver) CreateQP(attr *uverbs.QPInitAttr, issue func(cap uverbs.QPCap, uhwIn, uhwOut []byte) (uverbs.QPCap, uint32, error)) (_ uverbs.QPDriver, err error) {
	switch attr.Type {
	case uverbs.QPTypeRC, uverbs.QPTypeUC, uverbs.QPTypeUD:
	default:
		return nil, fmt.Errorf("QP type %v: %w", attr.Type, syscall.EOPNOTSUPP)
	}
	sendCQ, ok1 := attr.SendCQ.Driver().(*cq)
	recvCQ, ok2 := attr.RecvCQ.Driver().(*cq)
	if !ok1 || !ok2 || sendCQ.ctx != d || recvCQ.ctx != d {
		return nil, fmt.Errorf("CQs of another device: %w", syscall.EINVAL)
	}
	q := &qp{ctx: d, typ: attr.Type, sendCQ: sendCQ, recvCQ: recvCQ, hasSRQ: attr.SRQ != nil}
	ask := attr.Cap
	if q.hasSRQ {
		ask.MaxRecvWR, ask.MaxRecvSGE = 0, 0
	}
	resp := new(abi.Rxe_create_qp_resp)
	granted, qpn, err := issue(ask, nil, kernel.Bytes(resp))
	if err != nil {
		return nil, err
	}
	if granted.MaxSendSGE < ask.MaxSendSGE || granted.MaxRecvSGE < ask.MaxRecvSGE || granted.MaxInline < ask.MaxInline ||
		granted.MaxSendSGE > maxSGE || granted.MaxRecvSGE > maxSGE || granted.MaxInline > maxInline || qpn > maxQPN {
		return nil, fmt.Errorf("%w: QP %#x with %+v, asked %+v", uverbs.ErrBadAnswer, qpn, granted, ask)
	}
	q.qpn = qpn
	defer func() {
		if err != nil {
			q.free()
		}
	}()
	q.sq.maxSGE, q.sq.maxInline = granted.MaxSendSGE, granted.MaxInline
	entry := sendHeadBytes + max(q.sq.maxSGE*sgeBytes, q.sq.maxInline)
	if q.sq.ring, err = mapRing(d.file, &resp.Sq_mi, entry, ask.MaxSendWR); err != nil {
		return nil, err
	}
	q.sq.prod, q.sq.cons = q.sq.ring.producer(), q.sq.ring.consumer()
	granted.MaxSendWR = q.sq.ring.mask
	if !q.hasSRQ {
		if err = q.rq.attach(d, &resp.Rq_mi, ask.MaxRecvWR, granted.MaxRecvSGE); err != nil {
			return nil, err
		}
		granted.MaxRecvWR = q.rq.ring.mask
	}
	d.markUD(qpn, attr.Type == uverbs.QPTypeUD)
	attr.Cap = granted
	return q, nil
}

// Limits far above rdma_rxe's (32 and 512), against garbled answers.
const (
	maxSGE    = 1 << 12
	maxInline = 1 << 16
)

// SetHandle builds the doorbell.
func (q *qp) SetHandle(handle uint32) (err error) {
	in := &kabi.Ib_uverbs_post_send{Qp_handle: handle, Wqe_size: sendWRBytes}
	q.sq.doorbell, q.sq.doorbellMem, err = q.ctx.prepare(kabi.IB_USER_VERBS_CMD_POST_SEND, kernel.Bytes(in), postSendRespBytes)
	return err
}

const (
	// sendWRBytes is sizeof(struct ib_uverbs_send_wr): the kernel refuses a
	// smaller wqe_size, although there is no work request in the command.
	sendWRBytes       = 56
	postSendRespBytes = 4
)

// PostSend writes the requests into the ring and rings the doorbell once.
func (q *qp) PostSend(wrs []uverbs.SendWR) (n int, err error) {
	// The kernel refuses the doorbell before RTS, and would execute what is in
	// the ring with the first doorbell after it.
	if q.closed.Load() || uverbs.QPState(q.state.Load()) < uverbs.QPStateRTS {
		return 0, uverbs.ErrQPState
	}
	s := &q.sq
	prod := s.prod
	for n < len(wrs) {
		next := (prod + 1) & s.ring.mask
		if next == s.cons {
			if s.cons = s.ring.consumer(); next == s.cons {
				err = uverbs.ErrQueueFull
				break
			}
		}
		if err = q.writeSend(s.ring.slot(prod), &wrs[n]); err != nil {
			break
		}
		prod = next
		n++
	}
	if n == 0 {
		return 0, err
	}
	s.ring.setProducer(prod)
	if err := s.doorbell.Run(q.ctx.file); err != nil {
		// The kernel has not looked at the ring: the QP left RTS meanwhile, or
		// the device is gone.
		s.ring.setProducer(s.prod)
		return 0, q.ctx.commandError(err)
	}
	s.prod = prod
	return n, err
}

// PostRecv writes the requests into the ring, where the kernel finds them.
func (q *qp) PostRecv(wrs []uverbs.RecvWR) (int, error) {
	switch {
	case q.hasSRQ:
		return 0, uverbs.ErrQPUsesSRQ
	case q.closed.Load():
		return 0, uverbs.ErrQPState
	}
	return q.rq.post(wrs)
}

// StateChanged notes the state. In RESET the kernel has moved its own indices
// up to ours, which go on from where they are.
func (q *qp) StateChanged(state uverbs.QPState) {
	q.state.Store(uint32(state))
	if state != uverbs.QPStateReset {
		return
	}
	q.sendCQ.purge(q.qpn)
	if q.recvCQ != q.sendCQ {
		q.recvCQ.purge(q.qpn)
	}
}

// Close unmaps the rings.
func (q *qp) Close() error {
	if q.closed.Swap(true) {
		return nil
	}
	return q.free()
}

func (q *qp) free() error {
	errs := []error{q.sq.ring.close(), q.rq.ring.close()}
	if q.sq.doorbellMem != nil {
		errs = append(errs, kernel.FreePages(q.sq.doorbellMem))
	}
	return errors.Join(errs...)
}
