package mlx5sim

import "syscall"

// mw is a memory window. Its key names nothing until a UMR work request binds
// it to a part of an MR. It is the only kind of key here that can be
// invalidated: mlx5_ib registers MRs without that right.
type mw struct {
	pd     *pd
	handle uint32
	typ    uint8
	key    uint32 // index, and the variant that the last work request set

	bound  bool
	lkey   uint32 // of the MR behind it
	addr   uint64 // in that MR
	iova   uint64 // first address by which work requests name it
	length uint64
	access uint32
	qpn    uint32 // type 2: the QP that it is bound to

	// window stands for the part of the MR while one access is executed.
	window mr
}

const (
	mwType1 = 1 // IB_MW_TYPE_1
	mwType2 = 2 // IB_MW_TYPE_2
)

func (w *mw) busy() bool { return false }

func (w *mw) destroy() {
	delete(w.pd.file.dev.mws, w.key>>8)
	w.pd.refs--
}

// allocMW answers ALLOC_MW: struct ib_uverbs_alloc_mw.
func (c *call) allocMW() error {
	var in [16]byte
	if err := c.coreIn(in[:]); err != nil {
		return err
	}
	p, err := lookup[*pd](c.f, uint64(le.Uint32(in[8:])))
	if err != nil {
		return err
	}
	w := &mw{pd: p, typ: in[12]}
	if w.typ != mwType1 && w.typ != mwType2 {
		return syscall.EINVAL
	}
	var uhw [8]byte // struct mlx5_ib_alloc_mw: comp_mask, num_klms, reserved
	if _, err := c.in(attrUHWIn, uhw[:]); err != nil {
		return err
	}
	if le.Uint32(uhw[:]) != 0 || uhw[5]|uhw[6]|uhw[7] != 0 {
		return syscall.EOPNOTSUPP
	}
	d := c.f.dev
	if w.key, err = d.newMKey(); err != nil {
		return err
	}
	d.mws[w.key>>8] = w
	p.refs++
	if err := c.create(w, &w.handle); err != nil {
		return err
	}
	var out [8]byte // struct ib_uverbs_alloc_mw_resp
	le.PutUint32(out[0:], w.handle)
	le.PutUint32(out[4:], w.key)
	var resp [8]byte // struct mlx5_ib_alloc_mw_resp: comp_mask, response_length
	if c.len(attrUHWOut) >= len(resp) {
		resp[4] = uint8(len(resp))
	}
	return c.respond(out[:], resp[:])
}

// window finds the memory behind a window's key, as find does for an MR's,
// for an access by way of q.
func (d *Device) window(q *qp, key uint32, addr, n uint64, access uint32) *mr {
	w := d.mws[key>>8]
	if w == nil || w.key != key || !w.bound || w.pd != q.pd || w.access&access != access || w.typ == mwType2 && w.qpn != q.qpn {
		return nil
	}
	off := addr - w.iova
	if addr < w.iova || n > w.length || off > w.length-n {
		return nil
	}
	m := d.find(w.pd, w.lkey, w.addr+off, n, accessMWBind)
	if m == nil {
		return nil // the MR is gone
	}
	w.window = mr{pd: m.pd, key: key, iova: w.iova, start: m.start + (w.addr - m.iova), length: w.length, access: w.access, reach: m.reach}
	return &w.window
}

// invalidate frees the key of a window: LOCAL_INV at q, or what a SEND with
// invalidate asks of q. It reports false where the key is not q's to free.
func (d *Device) invalidate(q *qp, key uint32) bool {
	w := d.mws[key>>8]
	if w == nil || w.key != key || w.typ != mwType2 || !w.bound || w.pd != q.pd || w.qpn != q.qpn {
		return false
	}
	w.bound = false
	return true
}

// UMR WQE, PRM "UMR Control Segment" and "Mkey Context Segment": behind the
// control segment, whose immediate is the key, 48 bytes of what to change, 64 of
// the new mkey context and, if the key gets memory, a list of KLMs, of which the
// driver uses one, padded to 64 bytes.
const (
	umrCtrlBytes = 48
	umrMKeyBytes = 64
	umrListBytes = 64
	umrInline    = 1 << 7 // the list is in the WQE
	umrMKeyAt    = segBytes + umrCtrlBytes
	umrKLMAt     = umrMKeyAt + umrMKeyBytes
	mkeyFree     = 1 << 6

	mkeyLocalWrite   = 1 << 3
	mkeyRemoteRead   = 1 << 4
	mkeyRemoteWrite  = 1 << 5
	mkeyRemoteAtomic = 1 << 6
)

// umrSize is how long a UMR WQE must be.
func umrSize(wqe []byte) int {
	if len(wqe) > umrMKeyAt && wqe[umrMKeyAt]&mkeyFree != 0 {
		return umrKLMAt
	}
	return umrKLMAt + umrListBytes
}

// executeUMR binds or frees a memory window. What the driver does not build is
// refused as the device refuses a key that it may not change.
func (q *qp) executeUMR(op *sendOp) syndrome {
	d := q.file.dev
	key := op.imm
	ctx := op.wqe[umrMKeyAt:]
	w := d.mws[key>>8]
	if w == nil || w.pd != q.pd || op.wqe[segBytes]&umrInline == 0 {
		return synBind
	}
	free := ctx[0]&mkeyFree != 0
	variant := be.Uint32(ctx[4:])
	if free {
		if w.typ == mwType2 && !d.invalidate(q, key) {
			return synBind
		}
		w.bound = false
		w.key = w.key&^0xff | variant&0xff
		return synOK
	}
	if w.typ == mwType2 && (w.bound || variant>>8 != q.qpn) {
		return synBind
	}
	klm := op.wqe[umrKLMAt:]
	b := mw{lkey: be.Uint32(klm[4:]), addr: be.Uint64(klm[8:]), iova: be.Uint64(ctx[16:]), length: be.Uint64(ctx[24:])}
	for _, r := range [...]struct {
		bit    uint8
		access uint32
	}{{mkeyLocalWrite, accessLocalWrite}, {mkeyRemoteRead, accessRemoteRead}, {mkeyRemoteWrite, accessRemoteWrite}, {mkeyRemoteAtomic, accessRemoteAtomic}} {
		if ctx[2]&r.bit != 0 {
			b.access |= r.access
		}
	}
	need := uint32(accessMWBind)
	if b.access&(accessRemoteWrite|accessRemoteAtomic) != 0 {
		need |= accessLocalWrite
	}
	if b.length == 0 || b.length != uint64(be.Uint32(klm)) || b.iova+b.length < b.iova ||
		d.find(q.pd, b.lkey, b.addr, b.length, need) == nil {
		return synBind
	}
	w.lkey, w.addr, w.iova, w.length, w.access = b.lkey, b.addr, b.iova, b.length, b.access
	w.bound, w.qpn = true, q.qpn
	w.key = w.key&^0xff | variant&0xff
	return synOK
}
