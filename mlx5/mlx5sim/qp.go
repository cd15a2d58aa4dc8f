package mlx5sim

import "syscall"

// QP types, enum ib_uverbs_qp_type.
const (
	qpRC        = 2
	qpUC        = 3
	qpUD        = 4
	qpRawPacket = 8
	qpXRCIni    = 9
	qpXRCTgt    = 10
	qpDriver    = 0xff
)

const (
	qpCreateBlockMulticastLoopback = 1 << 1  // IB_UVERBS_QP_CREATE_BLOCK_MULTICAST_LOOPBACK: there is no multicast to block
	qpCreateSigAll                 = 1 << 12 // IB_UVERBS_QP_CREATE_SQ_SIG_ALL

	// Flags of struct mlx5_ib_create_qp that are understood. Scatter-to-CQE is
	// for connected QPs alone, and for what the requester fetches only where every
	// send has a completion, or the second flag says that it need not.
	qpFlagScatterCQE      = 1 << 1
	qpFlagAllowScatterCQE = 1 << 8
	qpFlagUARPageIndex    = 1 << 10
	qpFlagsKnown          = qpFlagScatterCQE | qpFlagAllowScatterCQE | qpFlagUARPageIndex

	sqStride       = 64 // bytes of a WQEBB
	rqShiftMin     = 4  // a receive WQE is at least one data segment
	rqShiftMax     = 9  // and at most maxRQDescBytes
	createQPMinUHW = 32 // up to flags: the oldest libraries' struct
	createQPUIDX   = 36 // end of uidx
)

func (q *qp) busy() bool { return false }

func (q *qp) destroy() {
	q.engineDestroy() // nothing of it may act or be acted on any more
	delete(q.file.dev.qps, q.qpn)
	q.pd.refs--
	q.sendCQ.refs--
	q.recvCQ.refs--
	if q.srq != nil {
		q.srq.refs--
	}
	if q.uar != nil {
		q.uar.dropQP(q)
	}
	if q.bfreg >= 0 {
		q.file.bfregs[q.bfreg]--
	}
}

// createQP answers UVERBS_METHOD_QP_CREATE with struct mlx5_ib_create_qp and
// struct mlx5_ib_create_qp_resp as the driver's half.
func (c *call) createQP() error {
	f := c.f
	q := &qp{file: f, user: c.word(attrQPUser), bfreg: -1}
	switch t := c.word(attrQPType); t {
	case qpRC, qpUC, qpUD:
		q.typ = uint8(t)
	case qpRawPacket, qpXRCIni, qpXRCTgt, qpDriver:
		return syscall.EOPNOTSUPP
	default:
		return syscall.EINVAL
	}
	// The objects come in the order of the schema: XRCD, PD, SRQ, send CQ,
	// receive CQ, indirection table.
	var ok [3]bool
	q.pd, ok[0] = c.objects[1].(*pd)
	q.sendCQ, ok[1] = c.objects[3].(*cq)
	q.recvCQ, ok[2] = c.objects[4].(*cq)
	if ok != [3]bool{true, true, true} {
		return syscall.ENOENT
	}
	q.srq, _ = c.objects[2].(*srq)
	flags := c.word(attrQPFlags)
	if flags&^uint64(qpCreateSigAll|qpCreateBlockMulticastLoopback) != 0 || c.arg(attrQPSource) != nil {
		return syscall.EINVAL
	}
	q.sigAll = flags&qpCreateSigAll != 0
	var cb [20]byte // struct ib_uverbs_qp_cap
	if _, err := c.in(attrQPCap, cb[:]); err != nil {
		return err
	}
	q.cap = qpCap{sendWR: le.Uint32(cb[0:]), recvWR: le.Uint32(cb[4:]), sendSGE: le.Uint32(cb[8:]),
		recvSGE: le.Uint32(cb[12:]), inline: le.Uint32(cb[16:])}

	var in [56]byte
	n, err := c.in(attrUHWIn, in[:])
	if err != nil {
		return err
	}
	if n < createQPMinUHW {
		return syscall.EINVAL
	}
	if a := c.arg(attrUHWIn); n > len(in) && !c.zeroBeyond(a, len(in)) {
		return syscall.EINVAL
	}
	if err := q.decodeUHW(in[:], n); err != nil {
		return err
	}
	d := f.dev
	if q.qpn, err = newNumber(&d.nextQPN, d.qps); err != nil {
		return err
	}
	user := uint32(invalidBFReg)
	if q.uar == nil {
		if q.bfreg, user, err = f.takeBFReg(); err != nil {
			return err
		}
		q.uar = f.uars[q.bfreg/bfregsPerPage]
	}
	d.qps[q.qpn] = q
	q.pd.refs++
	q.sendCQ.refs++
	q.recvCQ.refs++
	if q.srq != nil {
		q.srq.refs++
	}
	q.uar.addQP(q)
	if err := c.create(q, &q.handle); err != nil {
		return err
	}

	var uhw [40]byte
	le.PutUint32(uhw[0:], user)
	copy(uhw[4:8], in[48:52]) // ece_options: none are negotiated away
	w := make(writer, 0, 20)
	w.u32(q.cap.sendWR, q.cap.recvWR, q.cap.sendSGE, q.cap.recvSGE, q.cap.inline)
	if err := firstError(
		c.put(attrQPRespCap, w),
		c.putU32(attrQPRespQPN, q.qpn),
		c.putUHW(uhw[:])); err != nil {
		return err
	}
	c.setHandle(attrQPHandle, q.handle)
	return nil
}

// decodeUHW checks struct mlx5_ib_create_qp, of which n bytes were given, and
// lays out the queues: the RQ first, the SQ behind it.
func (q *qp) decodeUHW(in []byte, n int) error {
	f := q.file
	buf, dbrec := le.Uint64(in[0:]), le.Uint64(in[8:])
	sqCount, rqCount, rqShift := le.Uint32(in[16:]), le.Uint32(in[20:]), le.Uint32(in[24:])
	flags, uidx, bfreg := le.Uint32(in[28:]), le.Uint32(in[32:]), le.Uint32(in[36:])
	if flags&^uint32(qpFlagsKnown) != 0 {
		return syscall.EINVAL
	}
	if q.cap.recvWR > maxRecvWR || q.cap.sendWR > maxWQEBBs {
		return syscall.EINVAL
	}
	if sqCount > maxWQEBBs || sqCount&(sqCount-1) != 0 {
		return syscall.EINVAL
	}
	if q.srq != nil {
		q.cap.recvWR, rqCount, rqShift = 0, 0, 0 // it has no RQ, whatever was asked for
	}
	if q.cap.recvWR == 0 {
		if rqCount != 0 || rqShift != 0 {
			return syscall.EINVAL
		}
		q.cap.recvSGE = 0
	} else if rqCount == 0 || rqCount > maxRecvWR || rqCount&(rqCount-1) != 0 || rqShift < rqShiftMin || rqShift > rqShiftMax {
		return syscall.EINVAL
	}
	switch {
	case f.cqeVersion == 0:
		if n >= createQPUIDX && uidx != noUIDX {
			return syscall.EINVAL
		}
		q.uidx = 0 // in its place completions have an SRQ's number
	case n < createQPUIDX || uidx > 0xffffff:
		return syscall.EINVAL
	default:
		q.uidx = uidx
	}
	q.recvInCQE = q.typ != qpUD && flags&qpFlagScatterCQE != 0
	q.answerInCQE = q.recvInCQE && (q.sigAll || flags&qpFlagAllowScatterCQE != 0)
	if flags&qpFlagUARPageIndex != 0 {
		if q.uar = f.uarByIndex(bfreg); q.uar == nil {
			return syscall.EINVAL
		}
	} else if f.dynUAR {
		return syscall.EINVAL
	}
	rqBytes := uint64(rqCount) << rqShift
	if err := f.checkQueue(buf, rqBytes+uint64(sqCount)*sqStride, dbrec, false); err != nil {
		return err
	}
	q.dbrec = dbrec
	q.rq = wq{buf: buf, size: rqCount, stride: 1 << rqShift}
	q.sq = wq{buf: buf + rqBytes, size: sqCount, stride: sqStride}
	return nil
}

// destroyedQP answers UVERBS_METHOD_QP_DESTROY after the QP is gone.
func (c *call) destroyedQP() error {
	q := c.objects[0].(*qp)
	return c.putU32(attrDestroyResp, c.f.takeBackAsync(q.user, &q.asyncEvents))
}

// queryQP answers QUERY_QP: struct ib_uverbs_query_qp_resp.
func (c *call) queryQP() error {
	var in [16]byte
	if err := c.coreIn(in[:]); err != nil {
		return err
	}
	q, err := lookup[*qp](c.f, uint64(le.Uint32(in[8:])))
	if err != nil {
		return err
	}
	a := &q.attr
	var rqSGE uint32
	if q.rq.size > 0 {
		rqSGE = q.rq.stride / 16 // bytes of a data segment
	}
	draining := b2u8(a.state == stateSQD && q.draining())
	w := make(writer, 0, 128)
	w.u8(a.dest.dgid[:]...)
	w.u32(a.dest.flowLabel)
	w.u16(a.dest.dlid, 0)
	w.u8(a.dest.sgidIndex, a.dest.hopLimit, a.dest.trafficClass, a.dest.sl, a.dest.srcPathBits, 0, b2u8(a.dest.isGlobal), a.dest.port)
	w = append(w, make([]byte, 32)...) // alt_dest
	// Of the RQ mlx5_ib says what it holds, which may be more than was asked for;
	// of the SQ it says nothing: the library knows.
	w.u32(0, q.rq.size, 0, rqSGE, 0)
	w.u32(a.qkey, a.rqPSN, a.sqPSN, a.destQPN, a.access)
	w.u16(a.pkeyIndex, 0)
	w.u8(a.state, a.state, a.pathMTU, 0, draining, a.maxRdAtomic, a.maxDestRd, a.minRNRTimer)
	w.u8(a.port, a.timeout, a.retryCnt, a.rnrRetry, 0, 0, b2u8(q.sigAll), 0, 0, 0, 0, 0)
	return c.respond(w, nil)
}

func b2u8(b bool) uint8 {
	if b {
		return 1
	}
	return 0
}
