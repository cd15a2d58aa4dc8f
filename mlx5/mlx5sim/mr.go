package mlx5sim

import (
	"math/bits"
	"syscall"
)

// Access flags, enum ib_uverbs_access_flags.
const (
	accessLocalWrite      = 1 << 0
	accessRemoteWrite     = 1 << 1
	accessRemoteRead      = 1 << 2
	accessRemoteAtomic    = 1 << 3
	accessMWBind          = 1 << 4
	accessZeroBased       = 1 << 5
	accessOnDemand        = 1 << 6
	accessHugeTLB         = 1 << 7
	accessOptional        = 0x3ff << 20 // a driver may ignore these
	accessRelaxedOrdering = 1 << 20
	accessKnown           = 1<<8 - 1 | accessOptional
)

func (m *mr) busy() bool { return false }

func (m *mr) destroy() {
	delete(m.pd.file.dev.mrs, m.key)
	m.pd.refs--
	m.unmap()
}

// regMR answers REG_MR: struct ib_uverbs_reg_mr.
func (c *call) regMR() error {
	var in [40]byte
	if err := c.coreIn(in[:]); err != nil {
		return err
	}
	m := &mr{start: le.Uint64(in[8:]), length: le.Uint64(in[16:]), iova: le.Uint64(in[24:]), access: le.Uint32(in[36:])}
	if m.start%pageSize != m.iova%pageSize {
		return syscall.EINVAL
	}
	var err error
	if m.pd, err = lookup[*pd](c.f, uint64(le.Uint32(in[32:]))); err != nil {
		return err
	}
	if err := c.newMR(m); err != nil {
		return err
	}
	var out [12]byte // struct ib_uverbs_reg_mr_resp
	le.PutUint32(out[0:], m.handle)
	le.PutUint32(out[4:], m.key)
	le.PutUint32(out[8:], m.key)
	return c.respond(out[:], nil)
}

// newMR makes m an object and a key.
func (c *call) newMR(m *mr) error {
	if err := c.f.checkMR(m); err != nil {
		return err
	}
	return c.register(m)
}

// register gives m, which was checked, a key and a handle.
func (c *call) register(m *mr) (err error) {
	d := c.f.dev
	if m.key, err = d.newMKey(); err != nil {
		m.unmap()
		return err
	}
	d.mrs[m.key] = m
	m.pd.refs++
	return c.create(m, &m.handle)
}

// regMRMethod answers UVERBS_METHOD_REG_MR: for memory, or for a dma-buf.
func (c *call) regMRMethod() error {
	fd := c.arg(attrRegMRFD)
	if c.word(attrRegMRAccess)>>32 != 0 || (fd == nil) == (c.arg(attrRegMRAddr) == nil) || (fd == nil) != (c.arg(attrRegMRFDOffset) == nil) {
		return syscall.EINVAL
	}
	m := &mr{pd: c.objects[0].(*pd), start: c.word(attrRegMRAddr), length: c.word(attrRegMRLength), access: uint32(c.word(attrRegMRAccess))}
	if m.iova = m.start; c.arg(attrRegMRIOVA) != nil {
		m.iova = c.word(attrRegMRIOVA)
	}
	var err error
	if fd != nil {
		if c.arg(attrRegMRIOVA) == nil || int64(fd.data) != int64(int32(fd.data)) {
			return syscall.EINVAL
		}
		err = c.newDMABuf(m, int32(fd.data), c.word(attrRegMRFDOffset))
	} else {
		err = c.newMR(m)
	}
	if err != nil {
		return err
	}
	if err := firstError(c.putU32(attrRegMRLKey, m.key), c.putU32(attrRegMRRKey, m.key)); err != nil {
		return err
	}
	c.setHandle(attrRegMRHandle, m.handle)
	return nil
}

// checkMR checks what an MR is to be: its rights, its place and its memory.
func (f *file) checkMR(m *mr) error {
	if m.start%pageSize != m.iova%pageSize {
		return syscall.EINVAL
	}
	if err := checkAccess(m.access); err != nil {
		return err
	}
	if m.access&accessOnDemand != 0 {
		return f.checkOnDemand(m)
	}
	if err := firstError(checkRange(m.start, m.length), checkRange(m.iova, m.length)); err != nil {
		return err
	}
	if !f.pinnable(m.start, m.length, m.access&(accessLocalWrite|accessMWBind) != 0) {
		return syscall.EFAULT
	}
	return nil
}

func checkAccess(access uint32) error {
	if access&^uint32(accessKnown) != 0 {
		return syscall.EINVAL
	}
	if access&(accessRemoteWrite|accessRemoteAtomic) != 0 && access&accessLocalWrite == 0 {
		return syscall.EINVAL
	}
	if access&accessZeroBased != 0 {
		return syscall.EOPNOTSUPP
	}
	return nil
}

// checkRange refuses what does not end, rounded up to pages, below 2^64.
func checkRange(addr, n uint64) error {
	end, carry := bits.Add64(addr, n, 0)
	if n == 0 || carry != 0 || end > 1<<64-pageSize {
		return syscall.EINVAL
	}
	return nil
}

// newMKey draws a key: 24 bits of index and 8 of variant, which changes so
// that a key of a dead MR does not name the next one.
func (d *Device) newMKey() (uint32, error) {
	for range 1 << 24 {
		d.nextMKey++
		key := d.nextMKey<<8 | (d.nextMKey*0x9d)&0xff
		if key>>8 > 0x300 && d.mrs[key] == nil && d.mws[key>>8] == nil { // small indices are the device's own
			return key, nil
		}
	}
	return 0, syscall.ENOMEM
}

// What REREG_MR changes, enum ib_mr_rereg_flags.
const (
	reregTrans  = 1 << 0
	reregPD     = 1 << 1
	reregAccess = 1 << 2
	reregKnown  = reregTrans | reregPD | reregAccess
)

// reregMR answers REREG_MR: struct ib_uverbs_rereg_mr. The MR keeps its keys.
// One that cannot be changed stays as it was.
func (c *call) reregMR() error {
	var in [48]byte
	if err := c.coreIn(in[:]); err != nil {
		return err
	}
	flags := le.Uint32(in[12:])
	if flags == 0 {
		return syscall.EINVAL
	}
	if flags&^uint32(reregKnown) != 0 {
		return syscall.EOPNOTSUPP
	}
	m, err := lookup[*mr](c.f, uint64(le.Uint32(in[8:])))
	if err != nil {
		return err
	}
	n := *m
	if flags&reregTrans != 0 {
		n.start, n.length, n.iova = le.Uint64(in[16:]), le.Uint64(in[24:]), le.Uint64(in[32:])
	}
	if flags&reregAccess != 0 {
		n.access = le.Uint32(in[44:])
	}
	if m.reach != nil || n.access&accessOnDemand != 0 {
		return syscall.EOPNOTSUPP // as in mlx5_ib, which has the program register anew
	}
	if err := c.f.checkMR(&n); err != nil {
		return err
	}
	if flags&reregPD != 0 {
		if n.pd, err = lookup[*pd](c.f, uint64(le.Uint32(in[40:]))); err != nil {
			return err
		}
	}
	var out [8]byte // struct ib_uverbs_rereg_mr_resp
	le.PutUint32(out[0:], m.key)
	le.PutUint32(out[4:], m.key)
	if err := c.respond(out[:], nil); err != nil {
		return err
	}
	m.pd.refs--
	n.pd.refs++
	*m = n
	return nil
}

// queryMR answers UVERBS_METHOD_QUERY_MR.
func (c *call) queryMR() error {
	m := c.objects[0].(*mr)
	return firstError(
		c.putU32(attrQueryMRLKey, m.key),
		c.putU32(attrQueryMRRKey, m.key),
		c.putU64(attrQueryMRLength, m.length),
		c.putU64(attrQueryMRIOVA, m.iova))
}
