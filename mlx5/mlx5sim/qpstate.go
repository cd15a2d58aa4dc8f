package mlx5sim

import "syscall"

// QP states, enum ib_qp_state.
const (
	stateReset = iota
	stateInit
	stateRTR
	stateRTS
	stateSQD
	stateSQE
	stateErr
)

// Attribute mask, enum ib_qp_attr_mask.
const (
	maskState       = 1 << 0
	maskCurState    = 1 << 1
	maskSQDNotify   = 1 << 2
	maskAccess      = 1 << 3
	maskPKeyIndex   = 1 << 4
	maskPort        = 1 << 5
	maskQKey        = 1 << 6
	maskAV          = 1 << 7
	maskPathMTU     = 1 << 8
	maskTimeout     = 1 << 9
	maskRetryCnt    = 1 << 10
	maskRNRRetry    = 1 << 11
	maskRQPSN       = 1 << 12
	maskMaxRdAtomic = 1 << 13
	maskAltPath     = 1 << 14
	maskMinRNRTimer = 1 << 15
	maskSQPSN       = 1 << 16
	maskMaxDestRd   = 1 << 17
	maskPathMig     = 1 << 18
	maskDestQPN     = 1 << 20
	maskStandard    = 1<<21 - 1
)

// step is a transition that the verbs allow, with the attributes that it must
// and may set beside the state.
type step struct {
	from, to uint8
	req, opt uint32
}

// Every transition that is not listed is refused, for example:
//   - RESET to RTR or RTS: without INIT the QP has no port, P_Key and rights.
//   - RESET to ERR: a QP that was never set up has nothing to flush.
//   - RTS to INIT or RTR: going back would lose PSNs that the peer knows;
//     only RESET and ERR lead back.
//   - ERR to anything but RESET: the queues hold flushed work.
//   - SQD and SQE belong to the send queue, so only a QP that may send gets
//     there; SQE is entered by the device alone.
var anySteps = []step{
	{from: stateReset, to: stateReset},
	{from: stateInit, to: stateReset}, {from: stateInit, to: stateErr},
	{from: stateRTR, to: stateReset}, {from: stateRTR, to: stateErr},
	{from: stateRTS, to: stateReset}, {from: stateRTS, to: stateErr},
	{from: stateRTS, to: stateSQD, opt: maskSQDNotify},
	{from: stateSQD, to: stateReset}, {from: stateSQD, to: stateErr},
	{from: stateSQE, to: stateReset}, {from: stateSQE, to: stateErr},
	{from: stateErr, to: stateReset}, {from: stateErr, to: stateErr},
}

var udSteps = append([]step{
	{stateReset, stateInit, maskPKeyIndex | maskPort | maskQKey, 0},
	{stateInit, stateInit, 0, maskPKeyIndex | maskPort | maskQKey},
	{stateInit, stateRTR, 0, maskPKeyIndex | maskQKey},
	{stateRTR, stateRTS, maskSQPSN, maskCurState | maskQKey},
	{stateRTS, stateRTS, 0, maskCurState | maskQKey},
	{stateSQD, stateRTS, 0, maskCurState | maskQKey},
	{stateSQD, stateSQD, 0, maskPKeyIndex | maskQKey},
	{stateSQE, stateRTS, 0, maskCurState | maskQKey},
}, anySteps...)

var rcSteps = append([]step{
	{stateReset, stateInit, maskPKeyIndex | maskPort | maskAccess, 0},
	{stateInit, stateInit, 0, maskPKeyIndex | maskPort | maskAccess},
	{stateInit, stateRTR, maskAV | maskPathMTU | maskDestQPN | maskRQPSN | maskMaxDestRd | maskMinRNRTimer,
		maskAltPath | maskAccess | maskPKeyIndex},
	{stateRTR, stateRTS, maskTimeout | maskRetryCnt | maskRNRRetry | maskSQPSN | maskMaxRdAtomic,
		maskCurState | maskAltPath | maskAccess | maskMinRNRTimer | maskPathMig},
	{stateRTS, stateRTS, 0, maskCurState | maskAccess | maskAltPath | maskPathMig | maskMinRNRTimer},
	{stateSQD, stateRTS, 0, maskCurState | maskAltPath | maskAccess | maskMinRNRTimer | maskPathMig},
	{stateSQD, stateSQD, 0, maskPort | maskAV | maskTimeout | maskRetryCnt | maskRNRRetry | maskMaxRdAtomic | maskMaxDestRd |
		maskAltPath | maskAccess | maskPKeyIndex | maskMinRNRTimer | maskPathMig},
	{stateSQE, stateRTS, 0, 0},
}, anySteps...)

var ucSteps = append([]step{
	{stateReset, stateInit, maskPKeyIndex | maskPort | maskAccess, 0},
	{stateInit, stateInit, 0, maskPKeyIndex | maskPort | maskAccess},
	{stateInit, stateRTR, maskAV | maskPathMTU | maskDestQPN | maskRQPSN, maskAltPath | maskAccess | maskPKeyIndex},
	{stateRTR, stateRTS, maskSQPSN, maskCurState | maskAltPath | maskAccess | maskPathMig},
	{stateRTS, stateRTS, 0, maskCurState | maskAccess | maskAltPath | maskPathMig},
	{stateSQD, stateRTS, 0, maskCurState | maskAltPath | maskAccess | maskPathMig},
	{stateSQD, stateSQD, 0, maskAV | maskAltPath | maskAccess | maskPKeyIndex | maskPathMig},
	{stateSQE, stateRTS, 0, maskCurState | maskAccess},
}, anySteps...)

// stepsOf is the transitions of a QP type.
func stepsOf(typ uint8) []step {
	switch typ {
	case qpRC:
		return rcSteps
	case qpUC:
		return ucSteps
	}
	return udSteps
}

// allowed reports whether a QP of type typ may go from one state to another
// with exactly the attributes of mask.
func allowed(typ, from, to uint8, mask uint32) bool {
	if mask&maskCurState != 0 && from != stateRTR && from != stateRTS && from != stateSQD && from != stateSQE {
		return false
	}
	for _, s := range stepsOf(typ) {
		if s.from == from && s.to == to {
			return mask&s.req == s.req && mask&^(s.req|s.opt|maskState) == 0
		}
	}
	return false
}

// modifyQP answers MODIFY_QP: struct ib_uverbs_modify_qp.
func (c *call) modifyQP() error {
	var in [112]byte
	if err := c.coreIn(in[:]); err != nil {
		return err
	}
	mask := le.Uint32(in[68:])
	if mask&^uint32(maskStandard) != 0 {
		return syscall.EOPNOTSUPP
	}
	q, err := lookup[*qp](c.f, uint64(le.Uint32(in[64:])))
	if err != nil {
		return err
	}
	from, to := q.attr.state, q.attr.state
	if mask&maskCurState != 0 {
		// The caller's idea of the state counts, as in mlx5_ib; a wrong one
		// fails in the device.
		if in[97] != from {
			return syscall.EINVAL
		}
	}
	if mask&maskState != 0 {
		if to = in[96]; to > stateErr {
			return syscall.EINVAL
		}
	}
	if !allowed(q.typ, from, to, mask) {
		return syscall.EINVAL
	}
	a := q.attr
	if err := c.f.dev.decodeAttr(&a, in[:], mask); err != nil {
		return err
	}
	a.state = to
	if to == stateReset {
		a = qpAttr{}
	}
	q.attr = a
	if from == stateRTS || to != stateSQD {
		q.eng.notifyDrained = to == stateSQD && mask&maskSQDNotify != 0 && in[100] != 0
	}
	switch {
	case from != to:
		q.engineStateChanged(from)
	case to == stateSQD:
		q.rerouted()
	}
	return nil
}

// decodeAttr takes the attributes of mask from struct ib_uverbs_modify_qp into
// a, checking the values that the kernel and the device check. Caller holds
// fab.mu.
func (d *Device) decodeAttr(a *qpAttr, in []byte, mask uint32) error {
	bad := false
	// code takes a small number that must be at most limit.
	code := func(bit uint32, dst *uint8, v, limit uint8) {
		if mask&bit != 0 {
			*dst = v
			bad = bad || v > limit
		}
	}
	code(maskMaxRdAtomic, &a.maxRdAtomic, in[101], maxRdAtomic)
	code(maskMaxDestRd, &a.maxDestRd, in[102], maxRdAtomic)
	code(maskMinRNRTimer, &a.minRNRTimer, in[103], 31)
	code(maskPort, &a.port, in[104], 1)
	code(maskTimeout, &a.timeout, in[105], 31)
	code(maskRetryCnt, &a.retryCnt, in[106], 7)
	code(maskRNRRetry, &a.rnrRetry, in[107], 7)
	code(maskPathMTU, &a.pathMTU, in[98], uint8(d.opt.mtu))
	bad = bad || mask&maskPort != 0 && a.port == 0 || mask&maskPathMTU != 0 && a.pathMTU == 0
	if mask&maskPKeyIndex != 0 {
		a.pkeyIndex = le.Uint16(in[92:])
		bad = bad || a.pkeyIndex != 0 // the table has one entry
	}
	if mask&maskAltPath != 0 {
		bad = true // the kernel bans alternate paths on RoCE; on InfiniBand they are not modelled
	}
	if bad {
		return syscall.EINVAL
	}
	if mask&maskQKey != 0 {
		a.qkey = le.Uint32(in[72:])
	}
	if mask&maskRQPSN != 0 {
		a.rqPSN = le.Uint32(in[76:]) & 0xffffff
	}
	if mask&maskSQPSN != 0 {
		a.sqPSN = le.Uint32(in[80:]) & 0xffffff
	}
	if mask&maskDestQPN != 0 {
		a.destQPN = le.Uint32(in[84:]) & 0xffffff
	}
	if mask&maskAccess != 0 {
		a.access = le.Uint32(in[88:])
	}
	if mask&maskAV != 0 {
		av := addressVector{dgid: [16]byte(in[:16]), flowLabel: le.Uint32(in[16:]) & 0xfffff, sgidIndex: in[24],
			hopLimit: in[25], trafficClass: in[26], sl: in[27], dlid: le.Uint16(in[20:]), srcPathBits: in[28], isGlobal: in[30] != 0, port: in[31]}
		if err := d.resolve(&av); err != nil {
			return err
		}
		a.dest = av
	}
	return nil
}
