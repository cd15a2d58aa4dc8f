package uverbs

import (
	"fmt"
	"sync"
	"syscall"

	"github.com/rrppcc-go/rrppcc/internal/abi"
	"github.com/rrppcc-go/rrppcc/internal/kernel"
)

// SRQAttr is struct ibv_srq_attr.
type SRQAttr struct {
	MaxWR  uint32 // receives that the queue holds
	MaxSGE uint32 // scatter/gather elements of one receive
	// Limit arms EventSRQLimitReached: it is raised once, when fewer receives
	// than this are left, and the limit is 0 (off) afterwards.
	Limit uint32
}

// SRQAttrMask tells which fields of an SRQAttr count: enum ibv_srq_attr_mask.
type SRQAttrMask uint32

const (
	SRQMaxWR SRQAttrMask = abi.IB_SRQ_MAX_WR
	SRQLimit SRQAttrMask = abi.IB_SRQ_LIMIT
)

// SRQInitAttr says what shared receive queue is wanted: struct
// ibv_srq_init_attr. CreateSRQ writes what it really has into it.
type SRQInitAttr struct {
	SRQAttr
}

// SRQ is a shared receive queue: a receive queue for any number of QPs of one
// PD. PostRecv belongs to one owner goroutine at a time; the rest may be called
// from anywhere.
type SRQ struct {
	pd     *PD
	drv    SRQDriver
	handle uint32
	user   uint64

	mu     sync.Mutex // held by Modify, Query and Close
	closed bool
}

// CreateSRQ creates a shared receive queue. The error wraps [ErrNotSupported]
// where the device's provider has none.
func (pd *PD) CreateSRQ(attr *SRQInitAttr) (*SRQ, error) {
	c := pd.ctx
	creator, ok := c.drv.(SRQCreator)
	if !ok {
		return nil, c.lacks("create", "srq", "SRQ")
	}
	if pd.closed.Load() {
		return nil, &Error{Op: "create", Object: "srq", Err: ErrClosed, Hint: "the PD"}
	}
	if attr.MaxWR == 0 {
		return nil, &Error{Op: "create", Object: "srq", Err: syscall.EINVAL, Hint: "MaxWR is 0"}
	}
	s := &SRQ{pd: pd, user: c.userHandle()}
	issued := false
	drv, err := creator.CreateSRQ(attr, func(ask SRQAttr, uhwIn, uhwOut []byte) (SRQAttr, error) {
		got := new(struct{ wr, sge uint32 })
		cmd := c.command(abi.UVERBS_OBJECT_SRQ, abi.UVERBS_METHOD_SRQ_CREATE)
		cmd.NewObject(abi.UVERBS_ATTR_CREATE_SRQ_HANDLE)
		cmd.Object(abi.UVERBS_ATTR_CREATE_SRQ_PD_HANDLE, pd.handle)
		cmd.Const(abi.UVERBS_ATTR_CREATE_SRQ_TYPE, abi.IB_UVERBS_SRQT_BASIC)
		cmd.Const(abi.UVERBS_ATTR_CREATE_SRQ_USER_HANDLE, s.user)
		cmd.U32(abi.UVERBS_ATTR_CREATE_SRQ_MAX_WR, ask.MaxWR)
		cmd.U32(abi.UVERBS_ATTR_CREATE_SRQ_MAX_SGE, ask.MaxSGE)
		cmd.U32(abi.UVERBS_ATTR_CREATE_SRQ_LIMIT, ask.Limit)
		cmd.FD(abi.UVERBS_ATTR_CREATE_SRQ_EVENT_FD, c.async.FD(), false)
		cmd.Out(abi.UVERBS_ATTR_CREATE_SRQ_RESP_MAX_WR, kernel.Bytes(&got.wr))
		cmd.Out(abi.UVERBS_ATTR_CREATE_SRQ_RESP_MAX_SGE, kernel.Bytes(&got.sge))
		cmd.UHW(uhwIn, uhwOut)
		if err := c.run(cmd); err != nil {
			return SRQAttr{}, err
		}
		issued = true
		s.handle = cmd.Handle(abi.UVERBS_ATTR_CREATE_SRQ_HANDLE)
		return SRQAttr{MaxWR: got.wr, MaxSGE: got.sge, Limit: ask.Limit}, nil
	})
	if err != nil {
		if issued {
			s.destroy()
		}
		return nil, opError("create", "srq", err)
	}
	s.drv = drv
	if err := c.adopt(func() { c.srqs[s.user] = s }); err != nil {
		s.destroy()
		drv.Close()
		return nil, opError("create", "srq", err)
	}
	return s, nil
}

// PD returns the queue's protection domain.
func (s *SRQ) PD() *PD { return s.pd }

// Handle returns the kernel's handle, for providers.
func (s *SRQ) Handle() uint32 { return s.handle }

// Driver returns the provider's half, for providers.
func (s *SRQ) Driver() SRQDriver { return s.drv }

// PostRecv posts receive work requests in order. It returns how many were
// posted; the error belongs to wrs[n]. It never blocks and never allocates.
func (s *SRQ) PostRecv(wrs []RecvWR) (int, error) { return s.drv.PostRecv(wrs) }

// Modify changes the limit, or the size where the device can do that
// (EOPNOTSUPP or EINVAL where it cannot). Nobody may post while the size
// changes.
func (s *SRQ) Modify(attr *SRQAttr, mask SRQAttrMask) error {
	c := s.pd.ctx
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return opError("modify", "srq", ErrClosed)
	}
	in := &abi.Ib_uverbs_modify_srq{Srq_handle: s.handle, Attr_mask: uint32(mask), Max_wr: attr.MaxWR, Srq_limit: attr.Limit}
	return opError("modify", "srq", s.drv.Modify(attr, mask, func(uhwIn []byte) error {
		cmd := c.writeCommand(abi.IB_USER_VERBS_CMD_MODIFY_SRQ, kernel.Bytes(in), nil)
		cmd.UHW(uhwIn, nil)
		return c.run(cmd)
	}))
}

// Query returns the queue's attributes as the device has them.
func (s *SRQ) Query() (*SRQAttr, error) {
	c := s.pd.ctx
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil, opError("query", "srq", ErrClosed)
	}
	in := &abi.Ib_uverbs_query_srq{Srq_handle: s.handle}
	out := new(abi.Ib_uverbs_query_srq_resp)
	if err := c.run(c.writeCommand(abi.IB_USER_VERBS_CMD_QUERY_SRQ, kernel.Bytes(in), kernel.Bytes(out))); err != nil {
		return nil, opError("query", "srq", err)
	}
	return &SRQAttr{MaxWR: out.Max_wr, MaxSGE: out.Max_sge, Limit: out.Srq_limit}, nil
}

func (s *SRQ) destroy() error {
	out := new(abi.Ib_uverbs_destroy_srq_resp)
	cmd := s.pd.ctx.command(abi.UVERBS_OBJECT_SRQ, abi.UVERBS_METHOD_SRQ_DESTROY)
	cmd.Object(abi.UVERBS_ATTR_DESTROY_SRQ_HANDLE, s.handle)
	cmd.Out(abi.UVERBS_ATTR_DESTROY_SRQ_RESP, kernel.Bytes(out))
	return s.pd.ctx.runDestroy(cmd)
}

// Close destroys the queue. It fails with EBUSY while a QP uses it, and the
// queue stays usable.
func (s *SRQ) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return opError("close", "srq", ErrClosed)
	}
	if err := s.destroy(); err != nil {
		return opError("close", "srq", err)
	}
	return opError("close", "srq", s.release())
}

// abandon frees the queue after the kernel has destroyed all of the context's
// objects.
func (s *SRQ) abandon() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil
	}
	return s.release()
}

func (s *SRQ) release() error {
	s.closed = true
	c := s.pd.ctx
	c.mu.Lock()
	delete(c.srqs, s.user)
	c.mu.Unlock()
	return s.drv.Close()
}

// check says why the queue cannot serve a QP of pd.
func (s *SRQ) check(pd *PD) *Error {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.pd.ctx != pd.ctx:
		return &Error{Op: "create", Object: "qp", Err: syscall.EINVAL, Hint: "the SRQ belongs to another context"}
	case s.closed:
		return &Error{Op: "create", Object: "qp", Err: ErrClosed, Hint: "the SRQ"}
	}
	return nil
}

// lacks is the error for what the provider of this device cannot do.
func (c *Context) lacks(op, object, what string) error {
	name := "of " + c.dev.Driver()
	if p := providerFor(c.dev.info.DriverID); p != nil {
		name = p.Name()
	}
	return &Error{Op: op, Object: object, Err: ErrNotSupported, Hint: fmt.Sprintf("provider %s has no %s", name, what)}
}
