package mlx5

import (
	"errors"
	"fmt"
	"math/bits"
	"os"
	"sync"
	"sync/atomic"
	"syscall"

	"github.com/rrppcc-go/rrppcc/internal/kernel"
	"github.com/rrppcc-go/rrppcc/mlx5/internal/abi"
	"github.com/rrppcc-go/rrppcc/mlx5/internal/prm"
	"github.com/rrppcc-go/rrppcc/uverbs"
)

// cq is a completion queue. ci and the fields beside it belong to the CQ's
// owner; pending is how other goroutines ask the owner to drop a QP's entries.
type cq struct {
	ctx *contextDriver
	cqRing
	ci    uint32 // free-running consumer index
	db    dbrec
	qps   *qpTable
	cqn   uint32
	depth atomic.Uint32 // completions that fit at once
	armSN atomic.Uint32 // events read from the channel
	freed srqChain

	pending atomic.Pointer[purge]

	mu     sync.Mutex // guards the ring against Close and Resize while a QP's entries are counted
	closed bool
}

// cqRing is the buffer of a CQ. Resize changes it.
type cqRing struct {
	ring   *byte // entry 0
	stride uint32
	mask   uint32
	shift  uint32 // log2 of entries: bit of ci that tells the lap
	mem    []byte
}

// newRing allocates a ring without a valid entry.
func newRing(entries, stride uint32) (cqRing, error) {
	r := cqRing{stride: stride, mask: entries - 1, shift: uint32(bits.TrailingZeros32(entries))}
	var err error
	if r.mem, err = allocMemory(int(roundUp(entries*stride, uint32(os.Getpagesize())))); err != nil {
		return cqRing{}, fmt.Errorf("allocate %d entries: %w", entries, err)
	}
	r.ring = &r.mem[stride-prm.CQEBytes]
	for i := range entries {
		r.at(i).StoreLast(prm.CQEInvalid << 4)
	}
	return r, nil
}

// at returns the entry of consumer index i.
func (r *cqRing) at(i uint32) *prm.CQE64 { return prm.CQE(r.ring, i&r.mask, r.stride) }

// written tells whether the device has written the entry of consumer index i.
func (r *cqRing) written(i uint32) bool { return valid(r.at(i).LoadLast(), i>>r.shift) }

func (d *contextDriver) CreateCQ(attr *uverbs.CQInitAttr, issue func(cqe uint32, uhwIn, uhwOut []byte) (uint32, error)) (uverbs.CQDriver, error) {
	c, err := d.newCQ(attr, d.cqeBytes, issue)
	if err != nil {
		return nil, err
	}
	return c, nil
}

// manyCQE is how many entries are allocated without asking whether the device
// takes them: some MiB.
const manyCQE = 1 << 16

// checkCQE refuses what the kernel would refuse, before memory is spent on it.
func (d *contextDriver) checkCQE(cqe uint32) error {
	if cqe <= manyCQE {
		return nil
	}
	// A device that does not tell is asked by the command proper.
	if attr, err := d.ctx.QueryDevice(); err == nil && attr.MaxCQE > 0 && cqe > uint32(attr.MaxCQE) {
		return fmt.Errorf("%d entries, at most %d: %w", cqe, attr.MaxCQE, syscall.EINVAL)
	}
	return nil
}

// newCQ creates a CQ of entries of 64 or 128 bytes.
func (d *contextDriver) newCQ(attr *uverbs.CQInitAttr, cqeBytes uint32, issue func(cqe uint32, uhwIn, uhwOut []byte) (uint32, error)) (_ *cq, err error) {
	entries, err := cqEntries(attr.Depth)
	if err != nil {
		return nil, fmt.Errorf("depth %d, at most %d: %w", attr.Depth, maxCQE, err)
	}
	if err := d.checkCQE(entries - 1); err != nil {
		return nil, err
	}
	c := &cq{ctx: d, qps: d.qps}
	c.depth.Store(entries - 1)
	if c.cqRing, err = newRing(entries, cqeBytes); err != nil {
		return nil, err
	}
	if c.db, err = d.dbrecs.alloc(); err != nil {
		return nil, errors.Join(err, freeMemory(c.mem))
	}
	defer func() {
		if err != nil {
			c.Close()
		}
	}()
	req := &abi.Mlx5_ib_create_cq{
		Buf_addr: prm.Addr(&c.mem[0]),
		Db_addr:  c.db.addr(d.dbrecs.stride),
		Cqe_size: cqeBytes, // and no compression: Cqe_comp_en is 0
	}
	if d.uars.dynamic {
		req.Flags = abi.MLX5_IB_CREATE_CQ_FLAGS_UAR_PAGE_INDEX
		req.Uar_page_index = uint16(d.uars.cq.page.id)
	}
	resp := new(abi.Mlx5_ib_create_cq_resp)
	got, err := issue(entries-1, kernel.Bytes(req), kernel.Bytes(resp))
	if err != nil {
		return nil, err
	}
	if got < entries-1 || resp.Cqn > keyMask {
		return nil, fmt.Errorf("%w: %d entries, asked %d, number %#x", uverbs.ErrBadAnswer, got, entries-1, resp.Cqn)
	}
	c.cqn = resp.Cqn
	return c, nil
}

// Depth returns the completions that fit at once.
func (c *cq) Depth() int { return int(c.depth.Load()) }

// Arm asks for an event. The device compares the sequence number with the
// events that it sent, so that an arm that crosses an event on its way is not
// lost.
func (c *cq) Arm(solicitedOnly bool) error {
	word := c.armSN.Load()&prm.ArmSNMask<<prm.ArmSNShift | c.ci&prm.CIMask
	if solicitedOnly {
		word |= prm.ArmSolicited
	}
	u := c.ctx.uars
	reg := u.cq
	if u.kick == nil {
		ring(c.db.Word(prm.CQArmW), uint32(prm.ToBE32(word)), &reg.page.mem[reg.off], prm.CQDoorbell(word, c.cqn))
		return nil
	}
	reg.kickMu.Lock()
	ring(c.db.Word(prm.CQArmW), uint32(prm.ToBE32(word)), &reg.page.mem[reg.off], prm.CQDoorbell(word, c.cqn))
	u.kick(&reg.page.mem[0], reg.off)
	reg.kickMu.Unlock()
	return nil
}

// EventArrived counts an event of this CQ.
func (c *cq) EventArrived() { c.armSN.Add(1) }

// Close frees the queue. Nobody polls it any more.
func (c *cq) Close() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return nil
	}
	c.closed = true
	c.runPurges() // for the SRQs, which get their WQEs back
	c.ctx.dbrecs.release(c.db)
	return freeMemory(c.mem)
}
