package mlx5sim

import "syscall"

// enum ib_uverbs_advise_mr_advice, and the flag.
const (
	advicePrefetch        = 0
	advicePrefetchWrite   = 1
	advicePrefetchNoFault = 2
	adviseFlush           = 1 << 0 // IB_UVERBS_ADVISE_MR_FLAG_FLUSH: wait until it is done

	adviseSGEBytes = 16 // struct ib_uverbs_sge: addr u64, length u32, lkey u32
)

// adviseMR answers ADVISE_MR, which asks for pages of on-demand paging to be made
// ready. The simulator looks memory up when it is accessed, so that only the
// checks remain: of the keys always, of the memory where the caller waits for it.
func (c *call) adviseMR() error {
	advice, flags := c.word(attrAdviseAdvice), c.word(attrAdviseFlags)
	if flags&^uint64(adviseFlush) != 0 {
		return syscall.EINVAL
	}
	if advice > advicePrefetchNoFault {
		return syscall.EOPNOTSUPP
	}
	n := c.len(attrAdviseSGEs)
	if n == 0 || n%adviseSGEBytes != 0 {
		return syscall.EINVAL
	}
	list := make([]byte, n) // at most 64 KiB: the attribute's length has 16 bits
	if _, err := c.in(attrAdviseSGEs, list); err != nil {
		return err
	}
	p := c.objects[0].(*pd)
	for ; len(list) > 0; list = list[adviseSGEBytes:] {
		addr, length, key := le.Uint64(list), uint64(le.Uint32(list[8:])), le.Uint32(list[12:])
		m := p.file.dev.mrs[key]
		if m == nil || m.access&accessOnDemand == 0 {
			return syscall.ENOENT
		}
		if m.pd != p || advice == advicePrefetchWrite && m.access&accessLocalWrite == 0 {
			return syscall.EPERM
		}
		if flags&adviseFlush == 0 {
			continue
		}
		off := addr - m.iova
		if addr < m.iova || length > m.length || off > m.length-length {
			return syscall.EFAULT
		}
		if advice != advicePrefetchNoFault && length > 0 && !m.reach.Mapped(m.start+off, length) {
			return syscall.EFAULT
		}
	}
	return nil
}
