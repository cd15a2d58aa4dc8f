package mlx5sim

import (
	"math/bits"
	"syscall"
)

// resizeCQ answers RESIZE_CQ with struct mlx5_ib_resize_cq as the driver's
// half. The device only changes buffers: its last entry in the old one is of a
// kind of its own, and the program copies what it has not polled before that to
// the new one. By that entry, the indices of all of them grow by one.
func (c *call) resizeCQ() error {
	var in [16]byte // struct ib_uverbs_resize_cq
	if err := c.coreIn(in[:]); err != nil {
		return err
	}
	q, err := lookup[*cq](c.f, uint64(le.Uint32(in[8:])))
	if err != nil {
		return err
	}
	cqe := le.Uint32(in[12:])
	if cqe == 0 || cqe >= maxCQESlots {
		return syscall.EINVAL
	}
	size := uint32(1) << bits.Len32(cqe)
	var out [8]byte // struct ib_uverbs_resize_cq_resp
	le.PutUint32(out[:], size-1)
	if size == q.size {
		return c.respond(out[:], nil)
	}
	var uhw [16]byte
	n, err := c.in(attrUHWIn, uhw[:])
	if err != nil {
		return err
	}
	if n < len(uhw) || le.Uint16(uhw[10:]) != 0 || le.Uint32(uhw[12:]) != 0 {
		return syscall.EINVAL
	}
	buf, cqeSize := le.Uint64(uhw[0:]), int(le.Uint16(uhw[8:]))
	if cqeSize != 64 && cqeSize != 128 {
		return syscall.EINVAL
	}
	if err := c.f.checkQueue(buf, uint64(size)*uint64(cqeSize), q.dbrec, true); err != nil {
		return err
	}
	if err := q.resize(buf, size, cqeSize); err != nil {
		return err
	}
	return c.respond(out[:], nil)
}

// resize goes on in a new buffer. It is refused where the entries that wait do
// not fit it, or leave no room for the last one in the old buffer.
func (c *cq) resize(buf uint64, size uint32, cqeSize int) error {
	v, ok := load32(c.file.dma, c.dbrec+dbConsumer)
	if !ok {
		return syscall.EFAULT
	}
	if used := (c.pi - v) & ciMask; c.overrun || used >= c.size || used >= size {
		return syscall.EINVAL
	}
	c.eng.ci = v & ciMask
	armed := c.armed
	c.armed = false // the entry is no completion: no event is due
	c.add(&cqe{opcode: cqeResize})
	c.armed = armed
	if c.overrun {
		return syscall.EFAULT // the old buffer is gone
	}
	c.eng.solPI++
	c.eventPI++
	c.buf, c.size, c.cqeSize = buf, size, cqeSize
	return nil
}
