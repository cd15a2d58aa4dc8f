package rxe

import (
	"fmt"
	"sync/atomic"
	"syscall"
	"unsafe"

	"github.com/rrppcc-go/rrppcc/internal/kernel"
	"github.com/rrppcc-go/rrppcc/uverbs"
	"github.com/rrppcc-go/rrppcc/uverbs/rxe/internal/abi"
)

// srq is a shared receive queue.
type srq struct {
	ctx    *contextDriver
	rq     recvQueue
	closed atomic.Bool
}

func (d *contextDriver) CreateSRQ(attr *uverbs.SRQInitAttr, issue func(ask uverbs.SRQAttr, uhwIn, uhwOut []byte) (uverbs.SRQAttr, error)) (uverbs.SRQDriver, error) {
	resp := new(abi.Rxe_create_srq_resp)
	granted, err := issue(attr.SRQAttr, nil, kernel.Bytes(resp))
	if err != nil {
		return nil, err
	}
	if granted.MaxSGE < attr.MaxSGE || granted.MaxSGE > maxSGE {
		return nil, fmt.Errorf("%w: SRQ with %+v, asked %+v", uverbs.ErrBadAnswer, granted, attr.SRQAttr)
	}
	s := &srq{ctx: d}
	if err := s.rq.attach(d, &resp.Mi, attr.MaxWR, granted.MaxSGE); err != nil {
		return nil, err
	}
	granted.MaxWR = s.rq.ring.mask
	attr.SRQAttr = granted
	return s, nil
}

// PostRecv writes the requests into the ring, where the kernel finds them.
func (s *srq) PostRecv(wrs []uverbs.RecvWR) (int, error) {
	if s.closed.Load() {
		return 0, uverbs.ErrClosed
	}
	return s.rq.post(wrs)
}

// Modify gives the kernel the address where it says where a ring of another
// size is. It is the one answer of rdma_rxe that does not come with the
// command, so it gets memory that stays where it is.
func (s *srq) Modify(attr *uverbs.SRQAttr, mask uverbs.SRQAttrMask, issue func(uhwIn []byte) error) error {
	// A resize that fails leaves rdma_rxe's SRQ without a queue, which the next
	// packet would make it look at (seen in the source of 6.1 and later). What
	// does not fit is therefore not asked for.
	if posted := s.rq.posted(); mask&uverbs.SRQMaxWR != 0 && attr.MaxWR < posted {
		return fmt.Errorf("%d receives are posted, and %d are to fit: %w", posted, attr.MaxWR, syscall.EINVAL)
	}
	mem, err := kernel.AllocPages(int(unsafe.Sizeof(abi.Mminfo{})))
	if err != nil {
		return fmt.Errorf("allocate an answer: %w", err)
	}
	defer kernel.FreePages(mem)
	mi := (*abi.Mminfo)(unsafe.Pointer(&mem[0]))
	cmd := &abi.Rxe_modify_srq_cmd{Mmap_info_addr: uint64(uintptr(unsafe.Pointer(mi)))}
	if err := issue(kernel.Bytes(cmd)); err != nil {
		return err
	}
	if mask&uverbs.SRQMaxWR == 0 {
		return nil
	}
	old := s.rq.ring
	where := *mi
	if err := s.rq.attach(s.ctx, &where, attr.MaxWR, s.rq.maxSGE); err != nil {
		return err
	}
	return old.close()
}

// Close unmaps the ring.
func (s *srq) Close() error {
	if s.closed.Swap(true) {
		return nil
	}
	return s.rq.ring.close()
}
