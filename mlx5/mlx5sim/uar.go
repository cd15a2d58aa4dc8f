package mlx5sim

import (
	"cmp"
	"slices"
	"syscall"
)

const (
	// bfregsPerPage is MLX5_NON_FP_BFREGS_PER_UAR: BlueFlame registers of a
	// UAR page that user space gets. bfregsStride is MLX5_BFREGS_PER_UAR.
	bfregsPerPage = 2
	bfregsStride  = 4

	mmapUARObjects = 9 // MLX5_IB_MMAP_OFFSET_START

	uarTypeBF = 0 // MLX5_IB_UAPI_UAR_ALLOC_TYPE_BF
	uarTypeNC = 1 // MLX5_IB_UAPI_UAR_ALLOC_TYPE_NC

	invalidBFReg = 1 << 31 // MLX5_IB_INVALID_BFREG

	maxUARs = 4096 // of one file; BAR space ends somewhere too
)

func (u *uar) busy() bool { return u.refs > 0 }

func (u *uar) destroy() {
	u.dead = true
	u.file.reap(u)
}

// addQP makes q one of those that ring on u.
func (u *uar) addQP(q *qp) {
	u.refs++
	u.qps = slices.Insert(u.qps, byRecord(u.qps, q.dbrec, (*qp).recordAddr), q)
}

func (u *uar) dropQP(q *qp) {
	u.refs--
	i := byRecord(u.qps, q.dbrec, (*qp).recordAddr)
	if k := slices.Index(u.qps[i:], q); k >= 0 {
		u.qps = slices.Delete(u.qps, i+k, i+k+1)
	}
}

// addCQ makes c one of those that are armed on u.
func (u *uar) addCQ(c *cq) {
	u.refs++
	u.cqs = slices.Insert(u.cqs, byRecord(u.cqs, c.dbrec, (*cq).recordAddr), c)
}

func (u *uar) dropCQ(c *cq) {
	u.refs--
	i := byRecord(u.cqs, c.dbrec, (*cq).recordAddr)
	if k := slices.Index(u.cqs[i:], c); k >= 0 {
		u.cqs = slices.Delete(u.cqs, i+k, i+k+1)
	}
}

func (q *qp) recordAddr() uint64 { return q.dbrec }
func (c *cq) recordAddr() uint64 { return c.dbrec }

// byRecord is where the first queue stands, or would stand, whose doorbell record
// is at addr.
func byRecord[T any](queues []T, addr uint64, recordAddr func(T) uint64) int {
	i, _ := slices.BinarySearchFunc(queues, addr, func(q T, addr uint64) int { return cmp.Compare(recordAddr(q), addr) })
	return i
}

// newUAR adds a UAR page to f, a static one or one that becomes an object, in
// the lowest free mapping slot. Caller holds fab.mu.
func (f *file) newUAR() (*uar, error) {
	d := f.dev
	u := &uar{file: f, index: d.nextUAR}
	d.nextUAR++
	for slot := int64(0); ; slot++ {
		u.offset = f.slotOffset(slot)
		if !slices.ContainsFunc(f.uars, func(v *uar) bool { return v.offset == u.offset }) {
			break
		}
	}
	f.uars = append(f.uars, u)
	if f.foreign != nil {
		if err := f.foreign.mapUAR(u); err != nil {
			u.destroy()
			return nil, err
		}
	}
	return u, nil
}

// slotOffset is the mapping offset of UAR page slot of f, as mlx5_ib forms it:
// the low byte of the slot, the command, the rest of the slot.
func (f *file) slotOffset(slot int64) int64 {
	command := int64(mmapRegularPage)
	if f.dynUAR {
		command = mmapUARObjects
	}
	return (slot>>8<<16 | command<<8 | slot&0xff) * pageSize
}

// reap frees a dead UAR's page once nothing maps it.
func (f *file) reap(u *uar) error {
	if !u.dead || u.maps > 0 {
		return nil
	}
	if i := slices.Index(f.uars, u); i >= 0 {
		f.uars = slices.Delete(f.uars, i, i+1)
	}
	if f.foreign != nil {
		f.foreign.dropUAR(u)
		return nil
	}
	if mem := u.mem; mem != nil {
		u.mem = nil
		return freePage(mem)
	}
	return nil
}

// dropUARs lets go of all UAR pages; those that are mapped go with their
// mapping.
func (f *file) dropUARs() {
	for _, u := range f.uars {
		u.dead = true
	}
	for i := len(f.uars) - 1; i >= 0; i-- {
		f.reap(f.uars[i])
	}
}

// allocUAR answers MLX5_IB_METHOD_UAR_OBJ_ALLOC.
func (c *call) allocUAR() error {
	if t := c.word(attrUARType); t != uarTypeBF && t != uarTypeNC {
		return syscall.EOPNOTSUPP
	}
	f := c.f
	if !f.dynUAR {
		return syscall.EOPNOTSUPP // the library did not say that it knows them
	}
	if len(f.uars) >= maxUARs {
		return syscall.ENOMEM
	}
	u, err := f.newUAR()
	if err != nil {
		return err
	}
	if err := c.create(u, &u.handle); err != nil {
		return err
	}
	if err := firstError(
		c.putU64(attrUAROffset, uint64(u.offset)),
		c.putU32(attrUARLength, pageSize),
		c.putU32(attrUARPageID, u.index)); err != nil {
		return err
	}
	c.setHandle(attrUARHandle, u.handle)
	return nil
}

// uarByIndex finds the living UAR page that QPs and CQs of f name by index.
func (f *file) uarByIndex(index uint32) *uar {
	for _, u := range f.uars {
		if u.index == index && !u.dead {
			return u
		}
	}
	return nil
}

// takeBFReg chooses a static BlueFlame register for a QP as the kernel does: a
// low-latency one of its own, else the least used of the medium ones. Register
// 0 is for doorbells only. It returns the register and its number in user
// space's count.
func (f *file) takeBFReg() (reg int, user uint32, err error) {
	reg = -1
	high := len(f.bfregs) - f.lowLatency
	for i := max(high, 1); i < len(f.bfregs); i++ {
		if f.bfregs[i] == 0 {
			reg = i
			break
		}
	}
	if reg < 0 {
		for i := 1; i < high; i++ {
			if reg < 0 || f.bfregs[i] < f.bfregs[reg] {
				reg = i
			}
		}
	}
	if reg < 0 {
		if len(f.bfregs) == 0 || f.lowLatency > 0 && high > 0 {
			return -1, 0, syscall.ENOMEM
		}
		reg = 0
	}
	f.bfregs[reg]++
	return reg, uint32(reg/bfregsPerPage*bfregsStride + reg%bfregsPerPage), nil
}
