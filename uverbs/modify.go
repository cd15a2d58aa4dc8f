package uverbs

import (
	"errors"
	"fmt"
	"syscall"

	"github.com/rrppcc-go/rrppcc/internal/abi"
	"github.com/rrppcc-go/rrppcc/internal/kernel"
)

// QPAttrMask tells which fields of a QPAttr count: enum ibv_qp_attr_mask.
type QPAttrMask uint32

const (
	AttrState           QPAttrMask = abi.IB_QP_STATE
	AttrCurState        QPAttrMask = abi.IB_QP_CUR_STATE
	AttrSQDAsyncNotify  QPAttrMask = abi.IB_QP_EN_SQD_ASYNC_NOTIFY
	AttrAccessFlags     QPAttrMask = abi.IB_QP_ACCESS_FLAGS
	AttrPKeyIndex       QPAttrMask = abi.IB_QP_PKEY_INDEX
	AttrPort            QPAttrMask = abi.IB_QP_PORT
	AttrQKey            QPAttrMask = abi.IB_QP_QKEY
	AttrAV              QPAttrMask = abi.IB_QP_AV
	AttrPathMTU         QPAttrMask = abi.IB_QP_PATH_MTU
	AttrTimeout         QPAttrMask = abi.IB_QP_TIMEOUT
	AttrRetryCnt        QPAttrMask = abi.IB_QP_RETRY_CNT
	AttrRNRRetry        QPAttrMask = abi.IB_QP_RNR_RETRY
	AttrRQPSN           QPAttrMask = abi.IB_QP_RQ_PSN
	AttrMaxRdAtomic     QPAttrMask = abi.IB_QP_MAX_QP_RD_ATOMIC
	AttrMinRNRTimer     QPAttrMask = abi.IB_QP_MIN_RNR_TIMER
	AttrSQPSN           QPAttrMask = abi.IB_QP_SQ_PSN
	AttrMaxDestRdAtomic QPAttrMask = abi.IB_QP_MAX_DEST_RD_ATOMIC
	AttrCap             QPAttrMask = abi.IB_QP_CAP
	AttrDestQPN         QPAttrMask = abi.IB_QP_DEST_QPN
)

// AHAttr is struct ibv_ah_attr: where packets go.
type AHAttr struct {
	DGID         GID
	FlowLabel    uint32
	SGIDIndex    uint8
	HopLimit     uint8
	TrafficClass uint8
	IsGlobal     bool // a GRH is used; always true on RoCE
	DLID         uint16
	SL           uint8
	SrcPathBits  uint8
	StaticRate   uint8
	Port         uint8
}

// QPAttr is struct ibv_qp_attr.
type QPAttr struct {
	State           QPState
	CurState        QPState
	PathMTU         MTU
	QKey            uint32
	RQPSN           uint32 // 24 bits
	SQPSN           uint32 // 24 bits
	DestQPN         uint32 // 24 bits
	AccessFlags     AccessFlags
	PKeyIndex       uint16
	AV              AHAttr
	MaxRdAtomic     uint8 // outstanding READs and atomics as requester
	MaxDestRdAtomic uint8 // the same as responder
	MinRNRTimer     uint8 // code of the RNR NAK delay; 0 is 655.36 ms, 12 is 0.64 ms
	Port            uint8
	Timeout         uint8 // 4.096 us << Timeout; 0 waits for ever
	RetryCnt        uint8 // 0..7
	RNRRetry        uint8 // 0..7; 7 retries for ever
	SQDAsyncNotify  bool  // to SQD: raise EventSQDrained once the send queue has drained
	SQDraining      bool  // Query only: in SQD, and sends are still under way
	SigAll          bool  // Query only
	Cap             QPCap // Query only
}

// Modify changes the attributes that mask names. A transition that the verbs
// do not allow is EINVAL. On RoCE the kernel resolves the MAC address of
// attr.AV.DGID, which can take a second if nobody answers (ETIMEDOUT).
func (qp *QP) Modify(attr *QPAttr, mask QPAttrMask) error {
	in := &abi.Ib_uverbs_modify_qp{
		Qp_handle:          qp.handle,
		Attr_mask:          uint32(mask),
		Qkey:               attr.QKey,
		Rq_psn:             attr.RQPSN,
		Sq_psn:             attr.SQPSN,
		Dest_qp_num:        attr.DestQPN,
		Qp_access_flags:    uint32(attr.AccessFlags),
		Pkey_index:         attr.PKeyIndex,
		Qp_state:           uint8(attr.State),
		Cur_qp_state:       uint8(attr.CurState),
		Path_mtu:           uint8(attr.PathMTU),
		Max_rd_atomic:      attr.MaxRdAtomic,
		Max_dest_rd_atomic: attr.MaxDestRdAtomic,
		Min_rnr_timer:      attr.MinRNRTimer,
		Port_num:           attr.Port,
		Timeout:            attr.Timeout,
		Retry_cnt:          attr.RetryCnt,
		Rnr_retry:          attr.RNRRetry,

		En_sqd_async_notify: b2u8(attr.SQDAsyncNotify),
	}
	if mask&AttrAV != 0 {
		in.Dest = abi.Ib_uverbs_qp_dest{
			Dgid: attr.AV.DGID, Flow_label: attr.AV.FlowLabel, Dlid: attr.AV.DLID, Sgid_index: attr.AV.SGIDIndex,
			Hop_limit: attr.AV.HopLimit, Traffic_class: attr.AV.TrafficClass, Sl: attr.AV.SL, Src_path_bits: attr.AV.SrcPathBits,
			Static_rate: attr.AV.StaticRate, Is_global: b2u8(attr.AV.IsGlobal), Port_num: attr.AV.Port,
		}
	}
	c := qp.pd.ctx
	qp.mu.Lock()
	defer qp.mu.Unlock()
	object := "qp"
	if mask&AttrState != 0 {
		object = fmt.Sprintf("qp (%s to %s)", qp.State(), attr.State)
	}
	if qp.closed {
		return opError("modify", object, ErrClosed)
	}
	if err := c.run(c.writeCommand(abi.IB_USER_VERBS_CMD_MODIFY_QP, kernel.Bytes(in), nil)); err != nil {
		e := &Error{Op: "modify", Object: object, Hint: hint(err), Err: err}
		switch {
		case mask&AttrAV != 0 && errors.Is(err, syscall.ETIMEDOUT):
			e.Hint = unreachableHint(attr.AV.DGID)
		case mask&AttrQKey != 0 && attr.QKey>>31 != 0 && errors.Is(err, syscall.EPERM):
			e.Hint = "a QKey with the top bit set needs CAP_NET_RAW"
		}
		return e
	}
	if mask&AttrState != 0 {
		qp.state.Store(uint32(attr.State))
		qp.drv.StateChanged(attr.State)
	}
	return nil
}

// Query returns the QP's attributes as the device has them.
func (qp *QP) Query() (*QPAttr, error) {
	c := qp.pd.ctx
	qp.mu.Lock()
	defer qp.mu.Unlock()
	if qp.closed {
		return nil, opError("query", "qp", ErrClosed)
	}
	in := &abi.Ib_uverbs_query_qp{Qp_handle: qp.handle, Attr_mask: 1<<21 - 1}
	out := new(abi.Ib_uverbs_query_qp_resp)
	if err := c.run(c.writeCommand(abi.IB_USER_VERBS_CMD_QUERY_QP, kernel.Bytes(in), kernel.Bytes(out))); err != nil {
		return nil, opError("query", "qp", err)
	}
	d := &out.Dest
	return &QPAttr{
		State:       QPState(out.Qp_state),
		CurState:    QPState(out.Cur_qp_state),
		PathMTU:     MTU(out.Path_mtu),
		QKey:        out.Qkey,
		RQPSN:       out.Rq_psn,
		SQPSN:       out.Sq_psn,
		DestQPN:     out.Dest_qp_num,
		AccessFlags: AccessFlags(out.Qp_access_flags),
		PKeyIndex:   out.Pkey_index,
		AV: AHAttr{DGID: d.Dgid, FlowLabel: d.Flow_label, SGIDIndex: d.Sgid_index, HopLimit: d.Hop_limit, TrafficClass: d.Traffic_class,
			IsGlobal: d.Is_global != 0, DLID: d.Dlid, SL: d.Sl, SrcPathBits: d.Src_path_bits, StaticRate: d.Static_rate, Port: d.Port_num},
		MaxRdAtomic:     out.Max_rd_atomic,
		MaxDestRdAtomic: out.Max_dest_rd_atomic,
		MinRNRTimer:     out.Min_rnr_timer,
		Port:            out.Port_num,
		Timeout:         out.Timeout,
		RetryCnt:        out.Retry_cnt,
		RNRRetry:        out.Rnr_retry,
		SQDraining:      out.Sq_draining != 0,
		SigAll:          out.Sq_sig_all != 0,
		Cap:             qp.cap,
	}, nil
}

func b2u8(b bool) uint8 {
	if b {
		return 1
	}
	return 0
}
