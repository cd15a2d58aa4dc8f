package uverbs

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"sync"
	"testing"

	"github.com/rrppcc-go/rrppcc/internal/abi"
	"github.com/rrppcc-go/rrppcc/internal/kernel"
)

// guestDriver is as much of a provider for Soft-RoCE as the control path needs:
// it gives the kernel the room that rdma_rxe wants for its answers
// (include/uapi/rdma/rdma_user_rxe.h), and maps the rings that it gets, so that
// teardown is as with a real provider. Nothing is posted or polled.
type guestDriver struct{}

const rxeDriverID = 14 // RDMA_DRIVER_RXE

// guest skips the test unless this is scripts/kerneltest.sh's machine.
func guest(t *testing.T) {
	t.Helper()
	if os.Getenv("RRPC_GUEST") == "" {
		t.Skip("needs a machine with Soft-RoCE whose devices may be changed: scripts/kerneltest.sh (RRPC_GUEST=1)")
	}
	registerGuest()
}

var registerGuest = sync.OnceFunc(func() { RegisterProvider(guestDriver{}) })

// openGuest opens a device of the guest.
func openGuest(t *testing.T, name string) *Context {
	t.Helper()
	guest(t)
	d, err := DeviceByName(name)
	if err != nil {
		t.Fatal(err)
	}
	c, err := d.Open()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Close(); err != nil && !errors.Is(err, ErrClosed) {
			t.Error(err)
		}
	})
	return c
}

func (guestDriver) Name() string     { return "rxe control path" }
func (guestDriver) DriverID() uint32 { return rxeDriverID }

func (guestDriver) OpenContext(c *Context) (ContextDriver, error) {
	if err := c.GetContext(nil, nil); err != nil {
		return nil, err
	}
	return &guestContext{c: c}, nil
}

type guestContext struct{ c *Context }

// guestQueue is a CQ, a QP or an SRQ: rings that the kernel shares.
type guestQueue struct {
	c     *guestContext
	cq    *CQ // for Arm
	depth int
	rings [][]byte
}

// ring maps what a struct mminfo (offset u64, size u32) names. A QP with an SRQ
// has no receive ring: size 0.
func (q *guestQueue) ring(mminfo []byte) error {
	offset, size := binary.NativeEndian.Uint64(mminfo), binary.NativeEndian.Uint32(mminfo[8:])
	if size == 0 {
		return nil
	}
	mem, err := q.c.c.Kernel().Mmap(int64(offset), int(size), kernel.ProtRead|kernel.ProtWrite)
	if err != nil {
		return fmt.Errorf("map %d bytes at %#x: %w", size, offset, err)
	}
	q.rings = append(q.rings, mem)
	// struct rxe_queue_buf: log2_elem_size u32, index_mask u32, ... data at 384.
	log2, mask := binary.NativeEndian.Uint32(mem), binary.NativeEndian.Uint32(mem[4:])
	if mask&(mask+1) != 0 || log2 > 16 || 384+uint64(mask+1)<<log2 > uint64(size) {
		return fmt.Errorf("%w: ring of %d bytes has mask %#x, elements of 1<<%d", ErrBadAnswer, size, mask, log2)
	}
	return nil
}

func (q *guestQueue) Depth() int                     { return q.depth }
func (q *guestQueue) Poll([]WC) (int, error)         { return 0, nil }
func (q *guestQueue) EventArrived()                  {}
func (q *guestQueue) PostSend([]SendWR) (int, error) { return 0, ErrBadOpcode }
func (q *guestQueue) PostRecv([]RecvWR) (int, error) { return 0, ErrQueueFull }
func (q *guestQueue) StateChanged(QPState)           {}
func (c *guestContext) Close() error                 { return nil }
func (c *guestContext) CreateAH(_ *AHAttr, issue func([]byte) error) (any, error) {
	out := make([]byte, 8) // struct rxe_create_ah_resp: ah_num
	err := issue(out)
	return binary.NativeEndian.Uint32(out), err
}

func (q *guestQueue) Arm(solicited bool) error {
	in := &abi.Ib_uverbs_req_notify_cq{Cq_handle: q.cq.Handle(), Solicited_only: uint32(b2u8(solicited))}
	return q.c.c.run(q.c.c.writeCommand(abi.IB_USER_VERBS_CMD_REQ_NOTIFY_CQ, kernel.Bytes(in), nil))
}

func (q *guestQueue) Close() error {
	var errs []error
	for _, r := range q.rings {
		errs = append(errs, q.c.c.Kernel().Munmap(r))
	}
	q.rings = nil
	return errors.Join(errs...)
}

func (c *guestContext) CreateCQ(attr *CQInitAttr, issue func(uint32, []byte, []byte) (uint32, error)) (CQDriver, error) {
	out := make([]byte, 16) // struct rxe_create_cq_resp: mminfo
	n, err := issue(uint32(attr.Depth), nil, out)
	if err != nil {
		return nil, err
	}
	q := &guestQueue{c: c, depth: int(n)}
	if err := q.ring(out); err != nil {
		return nil, errors.Join(err, q.Close())
	}
	return q, nil
}

// Resize maps the new ring, then lets go of the old one.
func (q *guestQueue) Resize(depth int, issue func(uint32, []byte, []byte) (uint32, error)) error {
	out := make([]byte, 16) // struct rxe_resize_cq_resp: mminfo
	n, err := issue(uint32(depth), nil, out)
	if err != nil {
		return err
	}
	old := q.rings
	q.rings, q.depth = nil, int(n)
	err = q.ring(out)
	for _, r := range old {
		err = errors.Join(err, q.c.c.Kernel().Munmap(r))
	}
	return err
}

func (c *guestContext) CreateQP(attr *QPInitAttr, issue func(QPCap, []byte, []byte) (QPCap, uint32, error)) (QPDriver, error) {
	out := make([]byte, 32) // struct rxe_create_qp_resp: rq_mi, sq_mi
	got, _, err := issue(attr.Cap, nil, out)
	if err != nil {
		return nil, err
	}
	attr.Cap = got
	q := &guestQueue{c: c}
	if attr.SRQ == nil {
		err = q.ring(out)
	}
	if err = errors.Join(err, q.ring(out[16:])); err != nil {
		return nil, errors.Join(err, q.Close())
	}
	return q, nil
}

func (c *guestContext) CreateSRQ(attr *SRQInitAttr, issue func(SRQAttr, []byte, []byte) (SRQAttr, error)) (SRQDriver, error) {
	out := make([]byte, 24) // struct rxe_create_srq_resp: mminfo, srq_num
	got, err := issue(attr.SRQAttr, nil, out)
	if err != nil {
		return nil, err
	}
	attr.SRQAttr = got
	q := &guestQueue{c: c}
	if err := q.ring(out); err != nil {
		return nil, errors.Join(err, q.Close())
	}
	return guestSRQ{q}, nil
}

type guestSRQ struct{ *guestQueue }

func (q guestSRQ) Modify(_ *SRQAttr, mask SRQAttrMask, issue func([]byte) error) error {
	// struct rxe_modify_srq_cmd: where the mminfo of a new ring goes. rdma_rxe
	// wants it even where there is none.
	return issue(make([]byte, 8))
}
