package mlx5sim

import (
	"math/bits"
	"syscall"
)

// srq is a shared receive queue. Its WQEs are a list: the first 16 bytes of
// each name the next one, and the device follows the list from WQE 0 on, one WQE
// for each that the doorbell record counts.
type srq struct {
	pd     *pd // checks the lkeys of its WQEs, whatever PD a QP has
	handle uint32
	user   uint64
	srqn   uint32
	dbrec  uint64 // user address of the count of posted WQEs, 16 bits
	rq     wq     // pi and ci count WQEs; where the next one is, head says
	head   uint32 // WQE that is taken next
	maxSGE uint32
	limit  uint32 // the event comes when fewer are left; 0: not armed
	broken bool   // the list or the record made no sense
	refs   int    // QPs

	asyncEvents uint32
}

const (
	srqBasic      = 0      // IB_SRQT_BASIC
	srqSignature  = 1 << 0 // MLX5_SRQ_FLAG_SIGNATURE
	srqNextBytes  = 16     // struct mlx5_wqe_srq_next_seg
	srqMinStride  = 32
	srqAttrMaxWR  = 1 << 0 // IB_SRQ_MAX_WR
	srqAttrLimit  = 1 << 1 // IB_SRQ_LIMIT
	createSRQUHW  = 32     // struct mlx5_ib_create_srq
	firstSRQN     = 0x777
	maxSRQDescLen = maxRQDescBytes
)

func (s *srq) busy() bool { return s.refs > 0 }

func (s *srq) destroy() {
	delete(s.pd.file.dev.srqs, s.srqn)
	s.pd.refs--
}

func (s *srq) asyncEvent(typ uint32) { s.pd.file.raise(s.user, typ, &s.asyncEvents) }

// newSRQ creates an SRQ of at least maxWR receives of maxSGE segments, with
// struct mlx5_ib_create_srq as the driver's half.
func (c *call) newSRQ(p *pd, user uint64, maxWR, maxSGE uint32) (*srq, error) {
	var in [createSRQUHW]byte
	n, err := c.in(attrUHWIn, in[:])
	if err != nil {
		return nil, err
	}
	if n > len(in) && !c.zeroBeyond(c.arg(attrUHWIn), len(in)) {
		return nil, syscall.EINVAL
	}
	if le.Uint32(in[20:])|le.Uint32(in[28:]) != 0 { // reserved0, reserved1
		return nil, syscall.EINVAL
	}
	if le.Uint32(in[16:])&srqSignature != 0 {
		return nil, syscall.EOPNOTSUPP
	}
	if maxWR >= maxSRQWR || maxSGE > maxSRQDescLen/segBytes-1 {
		return nil, syscall.EINVAL
	}
	desc := max(srqMinStride, srqNextBytes+maxSGE*segBytes)
	s := &srq{pd: p, user: user, dbrec: le.Uint64(in[8:]), maxSGE: maxSGE}
	s.rq = wq{buf: le.Uint64(in[0:]), size: 1 << bits.Len32(maxWR), stride: 1 << bits.Len32(desc-1)}
	if err := c.f.checkQueue(s.rq.buf, uint64(s.rq.size)*uint64(s.rq.stride), s.dbrec, false); err != nil {
		return nil, err
	}
	d := c.f.dev
	if s.srqn, err = newNumber(&d.nextSRQN, d.srqs); err != nil {
		return nil, err
	}
	d.srqs[s.srqn] = s
	p.refs++
	if err := c.create(s, &s.handle); err != nil {
		return nil, err
	}
	var uhw [8]byte // struct mlx5_ib_create_srq_resp
	le.PutUint32(uhw[:], s.srqn)
	return s, c.putUHW(uhw[:])
}

// createSRQ answers UVERBS_METHOD_SRQ_CREATE. The limit of its request counts
// for nothing, as in mlx5_ib: only MODIFY_SRQ arms it.
func (c *call) createSRQ() error {
	if c.word(attrSRQType) != srqBasic {
		return syscall.EOPNOTSUPP
	}
	s, err := c.newSRQ(c.objects[0].(*pd), c.word(attrSRQUser), uint32(c.word(attrSRQMaxWR)), uint32(c.word(attrSRQMaxSGE)))
	if err != nil {
		return err
	}
	if err := firstError(
		c.putU32(attrSRQRespMaxWR, s.rq.size-1),
		c.putU32(attrSRQRespMaxSGE, s.maxSGE),
		c.putU32(attrSRQRespNum, s.srqn)); err != nil {
		return err
	}
	c.setHandle(attrSRQHandle, s.handle)
	return nil
}

// createSRQWrite answers CREATE_SRQ: struct ib_uverbs_create_srq.
func (c *call) createSRQWrite() error {
	var in [32]byte
	if err := c.coreIn(in[:]); err != nil {
		return err
	}
	p, err := lookup[*pd](c.f, uint64(le.Uint32(in[16:])))
	if err != nil {
		return err
	}
	s, err := c.newSRQ(p, le.Uint64(in[8:]), le.Uint32(in[20:]), le.Uint32(in[24:]))
	if err != nil {
		return err
	}
	w := make(writer, 0, 16) // struct ib_uverbs_create_srq_resp
	w.u32(s.handle, s.rq.size-1, s.maxSGE, 0)
	return c.put(attrCoreOut, w)
}

// modifySRQ answers MODIFY_SRQ: struct ib_uverbs_modify_srq. The size cannot
// be changed.
func (c *call) modifySRQ() error {
	var in [16]byte
	if err := c.coreIn(in[:]); err != nil {
		return err
	}
	s, err := lookup[*srq](c.f, uint64(le.Uint32(in[0:])))
	if err != nil {
		return err
	}
	mask, limit := le.Uint32(in[4:]), le.Uint32(in[12:])
	if mask&srqAttrMaxWR != 0 {
		return syscall.EINVAL
	}
	if mask&srqAttrLimit == 0 {
		return nil
	}
	if limit >= s.rq.size {
		return syscall.EINVAL
	}
	s.limit = limit
	if limit != 0 && s.sync() {
		s.checkLimit()
	}
	return nil
}

// querySRQ answers QUERY_SRQ: struct ib_uverbs_query_srq.
func (c *call) querySRQ() error {
	var in [16]byte
	if err := c.coreIn(in[:]); err != nil {
		return err
	}
	s, err := lookup[*srq](c.f, uint64(le.Uint32(in[8:])))
	if err != nil {
		return err
	}
	w := make(writer, 0, 16) // struct ib_uverbs_query_srq_resp
	w.u32(s.rq.size-1, s.maxSGE, s.limit, 0)
	return c.respond(w, nil)
}

// destroyedSRQ answers UVERBS_METHOD_SRQ_DESTROY after the SRQ is gone.
func (c *call) destroyedSRQ() error {
	s := c.objects[0].(*srq)
	return c.putU32(attrDestroyResp, c.f.takeBackAsync(s.user, &s.asyncEvents))
}

// destroySRQWrite answers DESTROY_SRQ: struct ib_uverbs_destroy_srq.
func (c *call) destroySRQWrite() error {
	var in [16]byte
	if err := c.coreIn(in[:]); err != nil {
		return err
	}
	s, err := lookup[*srq](c.f, uint64(le.Uint32(in[8:])))
	if err != nil {
		return err
	}
	var out [4]byte // struct ib_uverbs_destroy_srq_resp
	if err := c.put(attrCoreOut, out[:]); err != nil {
		return err // before anything is gone
	}
	if err := c.f.removeIdle(s.handle); err != nil {
		return err
	}
	le.PutUint32(out[:], c.f.takeBackAsync(s.user, &s.asyncEvents))
	return c.put(attrCoreOut, out[:])
}

// sync takes over the count of posted WQEs. It reports false where the SRQ
// cannot be used.
func (s *srq) sync() bool {
	if !s.broken && !s.rq.sync(s.pd.file.dma, s.dbrec) {
		s.fail()
	}
	return !s.broken
}

// fail puts the SRQ out of use. QPs go to ERR as they find out.
func (s *srq) fail() {
	s.broken = true
	s.asyncEvent(eventSRQErr)
}

// checkLimit raises the event that an armed limit is good for.
func (s *srq) checkLimit() {
	if s.limit != 0 && s.rq.pi-s.rq.ci < s.limit {
		s.limit = 0
		s.asyncEvent(eventSRQLimitReached)
	}
}

// takeShared is takeRecv for a QP on an SRQ.
func (q *qp) takeShared() (*recvWQE, recvStatus) {
	s, w := q.srq, &q.eng.recv
	if (s.rq.ci == s.rq.pi || s.limit != 0) && !s.sync() || s.broken {
		q.toError()
		return nil, recvDead
	}
	if s.rq.ci == s.rq.pi {
		return nil, recvEmpty
	}
	at := s.rq.slot(s.head)
	b := q.file.dma.View(at, int(s.rq.stride))
	if b == nil {
		b = q.copyRecv(at, s.rq.stride)
	}
	next := s.rq.size
	if b != nil {
		next = uint32(be.Uint16(b[2:]))
	}
	if next >= s.rq.size { // where the list goes on is not known
		s.fail()
		q.toError()
		return nil, recvDead
	}
	w.index = uint16(s.head)
	w.sges, w.length = w.sges[:0], 0
	w.decode(b[srqNextBytes:])
	q.eng.recvTaken = true
	s.head = next
	s.rq.ci++
	s.checkLimit()
	return w, recvOK
}
