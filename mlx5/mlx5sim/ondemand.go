package mlx5sim

import "syscall"

// MRs whose memory is not known to be there when it is accessed: on-demand paging,
// where the program may unmap it, and dma-bufs. They are reached by a DMA that
// survives bad addresses.

// What on-demand paging can do, struct ib_uverbs_odp_caps: all but datagrams'
// receives that are not of an SRQ, as ConnectX has it.
const (
	odpSupport   = 1 << 0
	odpImplicit  = 1 << 1
	odpSend      = 1 << 0
	odpRecv      = 1 << 1
	odpWrite     = 1 << 2
	odpRead      = 1 << 3
	odpAtomic    = 1 << 4
	odpSRQRecv   = 1 << 5
	odpReliable  = odpSend | odpRecv | odpWrite | odpRead | odpAtomic | odpSRQRecv
	odpDatagrams = odpSend | odpSRQRecv
)

// faultable is a DMA to f's memory that answers an error where there is none; nil
// if there is no such.
func (f *file) faultable() DMA {
	if f.foreign != nil {
		return f.dma
	}
	return faultable()
}

// checkOnDemand makes m an MR of on-demand paging. That of all memory
// (IBV_ACCESS_ON_DEMAND with the largest length) is the implicit one.
func (f *file) checkOnDemand(m *mr) error {
	if m.reach = f.faultable(); m.reach == nil {
		return syscall.EOPNOTSUPP
	}
	if m.length == 1<<64-1 {
		if m.start != 0 || m.iova != 0 {
			return syscall.EINVAL
		}
		return nil
	}
	return firstError(checkRange(m.start, m.length), checkRange(m.iova, m.length))
}

const dmaBufAccess = accessLocalWrite | accessRemoteWrite | accessRemoteRead | accessRemoteAtomic | accessRelaxedOrdering

// regDMABuf answers REG_DMABUF_MR. The descriptor is mapped: a real dma-buf's
// exporter must allow that, and any file that can be shared, such as a memfd, may
// stand in for one.
func (c *call) regDMABuf() error {
	p := c.objects[0].(*pd)
	m := &mr{pd: p, length: c.word(attrDMABufLength), iova: c.word(attrDMABufIOVA), access: uint32(c.word(attrDMABufAccess))}
	if c.word(attrDMABufAccess)>>32 != 0 {
		return syscall.EINVAL
	}
	if err := c.newDMABuf(m, int32(c.word(attrDMABufFD)), c.word(attrDMABufOffset)); err != nil {
		return err
	}
	if err := firstError(c.putU32(attrDMABufLKey, m.key), c.putU32(attrDMABufRKey, m.key)); err != nil {
		return err
	}
	c.setHandle(attrDMABufHandle, m.handle)
	return nil
}

// newDMABuf makes m an MR of what lies at offset of a descriptor's memory.
func (c *call) newDMABuf(m *mr, fd int32, offset uint64) error {
	if m.access&^uint32(dmaBufAccess) != 0 || offset%pageSize != m.iova%pageSize {
		return syscall.EINVAL
	}
	if err := firstError(checkAccess(m.access), checkRange(offset, m.length), checkRange(m.iova, m.length)); err != nil {
		return err
	}
	if c.f.foreign != nil || c.f.faultable() == nil {
		return syscall.EOPNOTSUPP // the descriptor is another process's, or its memory could not be trusted
	}
	m.reach = c.f.faultable()
	mem, start, err := mapFile(int(fd), offset, m.length, m.access&accessLocalWrite != 0)
	if err != nil {
		return err
	}
	m.mapping, m.start = &mapping{mem}, start
	return c.register(m)
}

// unmap gives up the mapping of a dma-buf.
func (m *mr) unmap() {
	if m.mapping != nil {
		freePage(m.mapping.mem)
		m.mapping = nil
	}
}
