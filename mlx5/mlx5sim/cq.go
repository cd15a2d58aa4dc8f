package mlx5sim

import (
	"math/bits"
	"syscall"
)

const (
	cqFlagKnown = 1<<0 | 1<<1 // IB_UVERBS_CQ_FLAGS_TIMESTAMP_COMPLETION, _IGNORE_OVERRUN

	cqUHWFlagPad128  = 1 << 0 // MLX5_IB_CREATE_CQ_FLAGS_CQE_128B_PAD
	cqUHWFlagUAR     = 1 << 1 // MLX5_IB_CREATE_CQ_FLAGS_UAR_PAGE_INDEX
	cqUHWFlagRealTS  = 1 << 2 // MLX5_IB_CREATE_CQ_FLAGS_REAL_TIME_TS
	dbrecBytes       = 8
	dbrecAlign       = 8
	queueAlign       = 64 // unit of the page offset in a queue context
	cqUHWFlagsOffset = 22
)

func (c *cq) busy() bool { return c.refs > 0 }

func (c *cq) destroy() {
	delete(c.file.dev.cqs, c.cqn)
	c.uar.dropCQ(c)
}

// createCQ answers UVERBS_METHOD_CQ_CREATE with struct mlx5_ib_create_cq and
// struct mlx5_ib_create_cq_resp as the driver's half.
func (c *call) createCQ() error {
	f := c.f
	q := &cq{file: f, user: c.word(attrCQUser)}
	if a := c.arg(attrCQChannel); a != nil {
		q.channel = a.fd
	}
	if c.word(attrCQVector) >= numCompVectors || c.word(attrCQFlags)&^uint64(cqFlagKnown) != 0 {
		return syscall.EINVAL
	}
	cqe := uint32(c.word(attrCQCQE))
	if cqe == 0 || cqe >= maxCQESlots {
		return syscall.EINVAL
	}
	q.size = 1 << bits.Len32(cqe) // the power of two above cqe: one slot stays free

	var in [32]byte
	n, err := c.in(attrUHWIn, in[:])
	if err != nil {
		return err
	}
	if n < cqUHWFlagsOffset {
		return syscall.EINVAL
	}
	q.buf, q.dbrec = le.Uint64(in[0:]), le.Uint64(in[8:])
	q.cqeSize = int(le.Uint32(in[16:]))
	compress, flags, uarIndex := in[20], le.Uint16(in[22:]), le.Uint32(in[24:])
	if flags&^uint16(cqUHWFlagPad128|cqUHWFlagUAR|cqUHWFlagRealTS) != 0 || le.Uint32(in[28:]) != 0 {
		return syscall.EINVAL
	}
	if q.cqeSize != 64 && q.cqeSize != 128 {
		return syscall.EINVAL
	}
	if compress != 0 || flags&(cqUHWFlagPad128|cqUHWFlagRealTS) != 0 {
		return syscall.EOPNOTSUPP
	}
	if err := f.checkQueue(q.buf, uint64(q.size)*uint64(q.cqeSize), q.dbrec, true); err != nil {
		return err
	}
	if flags&cqUHWFlagUAR != 0 {
		q.uar = f.uarByIndex(uarIndex)
	} else if !f.dynUAR && len(f.uars) > 0 {
		q.uar = f.uars[0]
	}
	if q.uar == nil {
		return syscall.EINVAL
	}
	d := f.dev
	if q.cqn, err = newNumber(&d.nextCQN, d.cqs); err != nil {
		return err
	}
	d.cqs[q.cqn] = q
	q.uar.addCQ(q)
	q.engineCreated()
	if err := c.create(q, &q.handle); err != nil {
		return err
	}
	var uhw [8]byte
	le.PutUint32(uhw[:], q.cqn)
	if err := firstError(c.putU32(attrCQRespCQE, q.size-1), c.putUHW(uhw[:])); err != nil {
		return err
	}
	c.setHandle(attrCQHandle, q.handle)
	return nil
}

// checkQueue checks the memory of a queue of n bytes and of its doorbell
// record, as pinning and the queue context's alignment do. write says that the
// device writes to the queue.
func (f *file) checkQueue(buf, n, dbrec uint64, write bool) error {
	if dbrec%dbrecAlign != 0 || buf%queueAlign != 0 {
		return syscall.EINVAL
	}
	if n > 0 {
		if err := checkRange(buf, n); err != nil {
			return err
		}
		if !f.pinnable(buf, n, write) {
			return syscall.EFAULT
		}
	}
	if err := checkRange(dbrec, dbrecBytes); err != nil {
		return err
	}
	if !f.pinnable(dbrec, dbrecBytes, false) {
		return syscall.EFAULT
	}
	return nil
}

// newNumber draws the next free 24-bit object number. Numbers are not reused
// soon, so that what is late for a dead object does not meet a new one.
func newNumber[T any](next *uint32, used map[uint32]T) (uint32, error) {
	for range 1 << 24 {
		n := *next & 0xffffff
		*next++
		if _, taken := used[n]; !taken && n > 1 && n != 0xffffff {
			return n, nil
		}
	}
	return 0, syscall.ENOMEM
}

// destroyedCQ answers UVERBS_METHOD_CQ_DESTROY after the CQ is gone: it takes
// back the events that nobody read and says how many were.
func (c *call) destroyedCQ() error {
	q := c.objects[0].(*cq)
	var resp [8]byte // struct ib_uverbs_destroy_cq_resp
	if q.channel != nil {
		le.PutUint32(resp[0:], q.channel.takeBack(q.user, &q.compEvents))
	}
	le.PutUint32(resp[4:], c.f.takeBackAsync(q.user, &q.asyncEvents))
	return c.put(attrDestroyResp, resp[:])
}
