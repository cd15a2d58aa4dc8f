package uverbs

import (
	"fmt"
	"sync"
	"sync/atomic"
	"syscall"

	"github.com/rrppcc-go/rrppcc/internal/abi"
	"github.com/rrppcc-go/rrppcc/internal/kernel"
)

// QPType is enum ibv_qp_type.
type QPType uint8

const (
	QPTypeRC QPType = 2
	QPTypeUC QPType = 3
	QPTypeUD QPType = 4
)

func (t QPType) String() string {
	switch t {
	case QPTypeRC:
		return "RC"
	case QPTypeUC:
		return "UC"
	case QPTypeUD:
		return "UD"
	}
	return fmt.Sprintf("QPType(%d)", uint8(t))
}

// QPState is enum ibv_qp_state.
type QPState uint8

const (
	QPStateReset QPState = iota
	QPStateInit
	QPStateRTR
	QPStateRTS
	QPStateSQD
	QPStateSQE
	QPStateErr
)

func (s QPState) String() string {
	names := [...]string{"RESET", "INIT", "RTR", "RTS", "SQD", "SQE", "ERR"}
	if int(s) < len(names) {
		return names[s]
	}
	return fmt.Sprintf("QPState(%d)", uint8(s))
}

// QPCap is struct ibv_qp_cap.
type QPCap struct {
	MaxSendWR  uint32
	MaxRecvWR  uint32
	MaxSendSGE uint32
	MaxRecvSGE uint32
	MaxInline  uint32 // bytes
}

// maxQPN is the largest number that the 24 bits of a packet's header hold.
const maxQPN = 1<<24 - 1

// QPInitAttr is struct ibv_qp_init_attr. CreateQP writes the capacities that
// the QP really has into Cap.
type QPInitAttr struct {
	Type   QPType
	SendCQ *CQ
	RecvCQ *CQ
	SRQ    *SRQ // where receives come from, instead of a queue of its own; may be nil
	Cap    QPCap
	SigAll bool // every send is signaled
}

// QP is a queue pair. PostSend belongs to one owner goroutine at a time, and
// so does PostRecv; the rest may be called from anywhere.
type QP struct {
	pd     *PD
	srq    *SRQ
	drv    QPDriver
	typ    QPType
	handle uint32
	user   uint64
	qpn    uint32
	cap    QPCap
	state  atomic.Uint32

	// mu is held by Modify, Query and Close: states change in one order for
	// the kernel, for State and for the driver, and no command names the
	// handle after it may have become another object's.
	mu     sync.Mutex
	closed bool
}

// CreateQP creates a queue pair in state RESET.
func (pd *PD) CreateQP(attr *QPInitAttr) (*QP, error) {
	c := pd.ctx
	if attr.SendCQ == nil || attr.RecvCQ == nil {
		return nil, &Error{Op: "create", Object: "qp", Err: syscall.EINVAL, Hint: "SendCQ and RecvCQ must be set"}
	}
	switch {
	case attr.SendCQ.ctx != c || attr.RecvCQ.ctx != c:
		return nil, &Error{Op: "create", Object: "qp", Err: syscall.EINVAL, Hint: "a CQ belongs to another context"}
	case pd.closed.Load():
		return nil, &Error{Op: "create", Object: "qp", Err: ErrClosed, Hint: "the PD"}
	case attr.SendCQ.closed.Load() || attr.RecvCQ.closed.Load():
		return nil, &Error{Op: "create", Object: "qp", Err: ErrClosed, Hint: "a CQ"}
	}
	if attr.SRQ != nil {
		if err := attr.SRQ.check(pd); err != nil {
			return nil, err
		}
	}
	qp := &QP{pd: pd, srq: attr.SRQ, typ: attr.Type, user: c.userHandle()}
	issued := false
	drv, err := c.drv.CreateQP(attr, func(cap QPCap, uhwIn, uhwOut []byte) (QPCap, uint32, error) {
		in := &abi.Ib_uverbs_qp_cap{Max_send_wr: cap.MaxSendWR, Max_recv_wr: cap.MaxRecvWR,
			Max_send_sge: cap.MaxSendSGE, Max_recv_sge: cap.MaxRecvSGE, Max_inline_data: cap.MaxInline}
		out := new(abi.Ib_uverbs_qp_cap)
		qpn := new(uint32)
		cmd := c.command(abi.UVERBS_OBJECT_QP, abi.UVERBS_METHOD_QP_CREATE)
		cmd.Object(abi.UVERBS_ATTR_CREATE_QP_PD_HANDLE, pd.handle)
		cmd.Object(abi.UVERBS_ATTR_CREATE_QP_SEND_CQ_HANDLE, attr.SendCQ.handle)
		cmd.Object(abi.UVERBS_ATTR_CREATE_QP_RECV_CQ_HANDLE, attr.RecvCQ.handle)
		if attr.SRQ != nil {
			cmd.Object(abi.UVERBS_ATTR_CREATE_QP_SRQ_HANDLE, attr.SRQ.handle)
		}
		cmd.NewObject(abi.UVERBS_ATTR_CREATE_QP_HANDLE)
		cmd.Const(abi.UVERBS_ATTR_CREATE_QP_TYPE, uint64(attr.Type))
		cmd.Const(abi.UVERBS_ATTR_CREATE_QP_USER_HANDLE, qp.user)
		cmd.In(abi.UVERBS_ATTR_CREATE_QP_CAP, kernel.Bytes(in))
		cmd.FD(abi.UVERBS_ATTR_CREATE_QP_EVENT_FD, c.async.FD(), false)
		if attr.SigAll {
			cmd.U32(abi.UVERBS_ATTR_CREATE_QP_FLAGS, abi.IB_UVERBS_QP_CREATE_SQ_SIG_ALL)
		}
		cmd.Out(abi.UVERBS_ATTR_CREATE_QP_RESP_CAP, kernel.Bytes(out))
		cmd.Out(abi.UVERBS_ATTR_CREATE_QP_RESP_QP_NUM, kernel.Bytes(qpn))
		cmd.UHW(uhwIn, uhwOut)
		if err := c.run(cmd); err != nil {
			return QPCap{}, 0, err
		}
		issued = true
		qp.handle = cmd.Handle(abi.UVERBS_ATTR_CREATE_QP_HANDLE)
		qp.qpn = *qpn
		if *qpn > maxQPN {
			return QPCap{}, 0, fmt.Errorf("%w: QP number %#x", ErrBadAnswer, *qpn)
		}
		return QPCap{MaxSendWR: out.Max_send_wr, MaxRecvWR: out.Max_recv_wr,
			MaxSendSGE: out.Max_send_sge, MaxRecvSGE: out.Max_recv_sge, MaxInline: out.Max_inline_data}, *qpn, nil
	})
	if err != nil {
		if issued {
			qp.destroy()
		}
		return nil, opError("create", "qp", err)
	}
	qp.drv = drv
	qp.cap = attr.Cap
	err = setHandle(drv, qp.handle)
	if err == nil {
		err = c.adopt(func() { c.qps[qp.user] = qp })
	}
	if err != nil {
		qp.destroy()
		drv.Close()
		return nil, opError("create", "qp", err)
	}
	return qp, nil
}

// QPN returns the QP number, 24 bits.
func (qp *QP) QPN() uint32 { return qp.qpn }

// Type returns the transport type.
func (qp *QP) Type() QPType { return qp.typ }

// Cap returns the capacities of the QP.
func (qp *QP) Cap() QPCap { return qp.cap }

// PD returns the QP's protection domain.
func (qp *QP) PD() *PD { return qp.pd }

// SRQ returns the shared receive queue that the QP receives from; nil if it has
// a queue of its own.
func (qp *QP) SRQ() *SRQ { return qp.srq }

// State returns the state that the last Modify set. A QP that the device has
// moved to ERR by itself shows that in Query.
func (qp *QP) State() QPState { return QPState(qp.state.Load()) }

// Driver returns the provider's half, for providers.
func (qp *QP) Driver() QPDriver { return qp.drv }

// Handle returns the kernel's handle, for providers.
func (qp *QP) Handle() uint32 { return qp.handle }

// PostSend posts work requests in order and rings the doorbell once. It
// returns how many were posted; the error belongs to wrs[n]. It never blocks
// and never allocates.
func (qp *QP) PostSend(wrs []SendWR) (int, error) { return qp.drv.PostSend(wrs) }

// PostRecv posts receive work requests in order. It returns how many were
// posted; the error belongs to wrs[n]. It never blocks and never allocates.
func (qp *QP) PostRecv(wrs []RecvWR) (int, error) { return qp.drv.PostRecv(wrs) }

func (qp *QP) destroy() error {
	out := new(abi.Ib_uverbs_destroy_qp_resp)
	cmd := qp.pd.ctx.command(abi.UVERBS_OBJECT_QP, abi.UVERBS_METHOD_QP_DESTROY)
	cmd.Object(abi.UVERBS_ATTR_DESTROY_QP_HANDLE, qp.handle)
	cmd.Out(abi.UVERBS_ATTR_DESTROY_QP_RESP, kernel.Bytes(out))
	return qp.pd.ctx.runDestroy(cmd)
}

// Close destroys the QP. Work requests that are still in its queues are
// dropped without completion, and the device no longer touches their memory.
func (qp *QP) Close() error {
	qp.mu.Lock()
	defer qp.mu.Unlock()
	if qp.closed {
		return opError("close", "qp", ErrClosed)
	}
	if err := qp.destroy(); err != nil {
		return opError("close", "qp", err)
	}
	return opError("close", "qp", qp.release())
}

// abandon frees the queues of a QP that the kernel destroys with the context.
func (qp *QP) abandon() error {
	qp.mu.Lock()
	defer qp.mu.Unlock()
	if qp.closed {
		return nil
	}
	return qp.release()
}

func (qp *QP) release() error {
	qp.closed = true
	c := qp.pd.ctx
	c.mu.Lock()
	delete(c.qps, qp.user)
	c.mu.Unlock()
	return qp.drv.Close()
}
