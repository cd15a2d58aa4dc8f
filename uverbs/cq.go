package uverbs

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"syscall"

	"github.com/rrppcc-go/rrppcc/internal/abi"
	"github.com/rrppcc-go/rrppcc/internal/kernel"
)

// CompChannel is a completion channel: a file that delivers an event when an
// armed CQ gets a completion. Methods may be called from several goroutines at
// once.
type CompChannel struct {
	ctx    *Context
	file   kernel.EventFile
	closed atomic.Bool
}

// CreateCompChannel creates a completion channel.
func (c *Context) CreateCompChannel() (*CompChannel, error) {
	in := new(abi.Ib_uverbs_create_comp_channel)
	out := new(abi.Ib_uverbs_create_comp_channel_resp)
	if err := c.run(c.writeCommand(abi.IB_USER_VERBS_CMD_CREATE_COMP_CHANNEL, kernel.Bytes(in), kernel.Bytes(out))); err != nil {
		return nil, opError("create", "completion channel", err)
	}
	file, err := c.file.Events(int32(out.Fd))
	if err != nil {
		return nil, opError("create", "completion channel", err)
	}
	ch := &CompChannel{ctx: c, file: file}
	if err := c.adopt(func() { c.channels[ch] = struct{}{} }); err != nil {
		file.Close()
		return nil, opError("create", "completion channel", err)
	}
	return ch, nil
}

// Wait blocks until an armed CQ of this channel has a completion, and returns
// the CQ, which must be armed again for the next event. An event of a CQ that
// is closed by now is skipped. Arming does not report completions that are in
// the queue already: arm, then poll once more, then wait. Close ends it with
// [ErrClosed], a device that goes away with [ErrDeviceRemoved].
func (ch *CompChannel) Wait(ctx context.Context) (*CQ, error) {
	desc := new(abi.Ib_uverbs_comp_event_desc)
	for {
		if err := ch.ctx.readEvent(ctx, ch.file, kernel.Bytes(desc)); err != nil {
			return nil, opError("wait", "completion channel", err)
		}
		// Under the lock, because a CQ leaves the map before its queue's memory
		// goes.
		ch.ctx.mu.Lock()
		cq := ch.ctx.cqs[desc.Cq_handle]
		if cq != nil {
			cq.drv.EventArrived()
		}
		ch.ctx.mu.Unlock()
		if cq != nil {
			return cq, nil
		}
	}
}

// Close closes the channel and wakes its waiters. CQs that use it must be
// closed first.
func (ch *CompChannel) Close() error {
	if ch.closed.Swap(true) {
		return opError("close", "completion channel", ErrClosed)
	}
	ch.ctx.mu.Lock()
	delete(ch.ctx.channels, ch)
	ch.ctx.mu.Unlock()
	return opError("close", "completion channel", ch.file.Close())
}

// CQInitAttr says what completion queue is wanted.
type CQInitAttr struct {
	Depth   int          // completions that it must hold; rounded up
	Channel *CompChannel // where armed events go; may be nil
	Vector  int          // completion vector, below Context.NumCompVectors
}

// CQ is a completion queue. Poll and Arm belong to one owner goroutine at a
// time; the rest may be called from anywhere.
type CQ struct {
	ctx    *Context
	drv    CQDriver
	handle uint32
	user   uint64

	mu     sync.Mutex // held while the kernel's object goes
	closed atomic.Bool
}

// CreateCQ creates a completion queue.
func (c *Context) CreateCQ(attr *CQInitAttr) (*CQ, error) {
	if attr.Depth <= 0 || attr.Vector < 0 {
		return nil, &Error{Op: "create", Object: "cq", Err: syscall.EINVAL, Hint: fmt.Sprintf("depth %d, vector %d", attr.Depth, attr.Vector)}
	}
	if ch := attr.Channel; ch != nil {
		if ch.ctx != c {
			return nil, &Error{Op: "create", Object: "cq", Err: syscall.EINVAL, Hint: "the channel belongs to another context"}
		}
		if ch.closed.Load() { // its descriptor may be another file by now
			return nil, &Error{Op: "create", Object: "cq", Err: ErrClosed, Hint: "the channel"}
		}
	}
	cq := &CQ{ctx: c, user: c.userHandle()}
	issued := false
	drv, err := c.drv.CreateCQ(attr, func(cqe uint32, uhwIn, uhwOut []byte) (uint32, error) {
		got := new(uint32)
		cmd := c.command(abi.UVERBS_OBJECT_CQ, abi.UVERBS_METHOD_CQ_CREATE)
		cmd.NewObject(abi.UVERBS_ATTR_CREATE_CQ_HANDLE)
		cmd.Out(abi.UVERBS_ATTR_CREATE_CQ_RESP_CQE, kernel.Bytes(got))
		cmd.U32(abi.UVERBS_ATTR_CREATE_CQ_CQE, cqe)
		cmd.Const(abi.UVERBS_ATTR_CREATE_CQ_USER_HANDLE, cq.user)
		if attr.Channel != nil {
			cmd.FD(abi.UVERBS_ATTR_CREATE_CQ_COMP_CHANNEL, attr.Channel.file.FD(), false)
		}
		cmd.U32(abi.UVERBS_ATTR_CREATE_CQ_COMP_VECTOR, uint32(attr.Vector))
		cmd.FD(abi.UVERBS_ATTR_CREATE_CQ_EVENT_FD, c.async.FD(), true)
		cmd.UHW(uhwIn, uhwOut)
		if err := c.run(cmd); err != nil {
			return 0, err
		}
		issued = true
		cq.handle = cmd.Handle(abi.UVERBS_ATTR_CREATE_CQ_HANDLE)
		return *got, nil
	})
	if err != nil {
		if issued {
			cq.destroy()
		}
		return nil, opError("create", "cq", err)
	}
	cq.drv = drv
	err = setHandle(drv, cq.handle)
	if err == nil {
		err = c.adopt(func() { c.cqs[cq.user] = cq })
	}
	if err != nil {
		cq.destroy()
		drv.Close()
		return nil, opError("create", "cq", err)
	}
	return cq, nil
}

// Context returns the context that the CQ belongs to.
func (cq *CQ) Context() *Context { return cq.ctx }

// Handle returns the kernel's handle, for providers.
func (cq *CQ) Handle() uint32 { return cq.handle }

// Driver returns the provider's half, for providers.
func (cq *CQ) Driver() CQDriver { return cq.drv }

// Depth returns the number of completions that the queue holds.
func (cq *CQ) Depth() int { return cq.drv.Depth() }

// Resize changes the queue's depth; the completions that are in it stay. Nobody
// may poll or arm meanwhile. It fails with EINVAL if they do not fit, and with
// [ErrNotSupported] where the provider cannot; after either the queue is as it
// was. After any other error it may be of no use: close it.
func (cq *CQ) Resize(depth int) error {
	r, ok := cq.drv.(CQResizer)
	if !ok {
		return cq.ctx.lacks("resize", "cq", "resizing of CQs")
	}
	if depth <= 0 {
		return &Error{Op: "resize", Object: "cq", Err: syscall.EINVAL, Hint: fmt.Sprintf("depth %d", depth)}
	}
	cq.mu.Lock()
	defer cq.mu.Unlock()
	if cq.closed.Load() {
		return opError("resize", "cq", ErrClosed)
	}
	return opError("resize", "cq", r.Resize(depth, func(cqe uint32, uhwIn, uhwOut []byte) (uint32, error) {
		in := &abi.Ib_uverbs_resize_cq{Cq_handle: cq.handle, Cqe: cqe}
		out := new(abi.Ib_uverbs_resize_cq_resp)
		cmd := cq.ctx.writeCommand(abi.IB_USER_VERBS_CMD_RESIZE_CQ, kernel.Bytes(in), kernel.Bytes(out))
		cmd.UHW(uhwIn, uhwOut)
		if err := cq.ctx.run(cmd); err != nil {
			return 0, err
		}
		return out.Cqe, nil
	}))
}

// Poll moves up to len(wc) completions into wc, oldest first, and returns how
// many. It never blocks and never allocates. With an error the first n are
// valid all the same.
func (cq *CQ) Poll(wc []WC) (int, error) { return cq.drv.Poll(wc) }

// Arm asks for one event on the CQ's channel at the next completion
// (solicitedOnly: the next solicited or failed one).
func (cq *CQ) Arm(solicitedOnly bool) error { return cq.drv.Arm(solicitedOnly) }

func (cq *CQ) destroy() error {
	out := new(abi.Ib_uverbs_destroy_cq_resp)
	cmd := cq.ctx.command(abi.UVERBS_OBJECT_CQ, abi.UVERBS_METHOD_CQ_DESTROY)
	cmd.Object(abi.UVERBS_ATTR_DESTROY_CQ_HANDLE, cq.handle)
	cmd.Out(abi.UVERBS_ATTR_DESTROY_CQ_RESP, kernel.Bytes(out))
	return cq.ctx.runDestroy(cmd)
}

// Close destroys the queue. It fails with EBUSY while a QP uses it, and the
// queue stays usable.
func (cq *CQ) Close() error {
	cq.mu.Lock()
	defer cq.mu.Unlock()
	if cq.closed.Load() {
		return opError("close", "cq", ErrClosed)
	}
	if err := cq.destroy(); err != nil {
		return opError("close", "cq", err)
	}
	return opError("close", "cq", cq.release())
}

// abandon frees the queue of a CQ that the kernel destroys with the context.
func (cq *CQ) abandon() error {
	cq.mu.Lock()
	defer cq.mu.Unlock()
	if cq.closed.Load() {
		return nil
	}
	return cq.release()
}

func (cq *CQ) release() error {
	cq.closed.Store(true)
	cq.ctx.mu.Lock()
	delete(cq.ctx.cqs, cq.user)
	cq.ctx.mu.Unlock()
	return cq.drv.Close()
}
