package mlx5sim

import (
	"syscall"
	"testing"
)

// wantStep is one allowed transition of the IBTA table, as ib_modify_qp_is_ok
// has it. It is written out per type, apart from the code's tables.
type wantStep struct {
	req, opt uint32
}

type transition struct{ from, to uint8 }

var wantUD = map[transition]wantStep{
	{0, 0}: {}, {0, 1}: {1<<4 | 1<<5 | 1<<6, 0},
	{1, 0}: {}, {1, 6}: {}, {1, 1}: {0, 1<<4 | 1<<5 | 1<<6}, {1, 2}: {0, 1<<4 | 1<<6},
	{2, 0}: {}, {2, 6}: {}, {2, 3}: {1 << 16, 1<<1 | 1<<6},
	{3, 0}: {}, {3, 6}: {}, {3, 3}: {0, 1<<1 | 1<<6}, {3, 4}: {0, 1 << 2},
	{4, 0}: {}, {4, 6}: {}, {4, 3}: {0, 1<<1 | 1<<6}, {4, 4}: {0, 1<<4 | 1<<6},
	{5, 0}: {}, {5, 6}: {}, {5, 3}: {0, 1<<1 | 1<<6},
	{6, 0}: {}, {6, 6}: {},
}

var wantRC = map[transition]wantStep{
	{0, 0}: {}, {0, 1}: {1<<3 | 1<<4 | 1<<5, 0},
	{1, 0}: {}, {1, 6}: {}, {1, 1}: {0, 1<<3 | 1<<4 | 1<<5},
	{1, 2}: {1<<7 | 1<<8 | 1<<12 | 1<<15 | 1<<17 | 1<<20, 1<<3 | 1<<4 | 1<<14},
	{2, 0}: {}, {2, 6}: {},
	{2, 3}: {1<<9 | 1<<10 | 1<<11 | 1<<13 | 1<<16, 1<<1 | 1<<3 | 1<<14 | 1<<15 | 1<<18},
	{3, 0}: {}, {3, 6}: {}, {3, 3}: {0, 1<<1 | 1<<3 | 1<<14 | 1<<15 | 1<<18}, {3, 4}: {0, 1 << 2},
	{4, 0}: {}, {4, 6}: {}, {4, 3}: {0, 1<<1 | 1<<3 | 1<<14 | 1<<15 | 1<<18},
	{4, 4}: {0, 1<<3 | 1<<4 | 1<<5 | 1<<7 | 1<<9 | 1<<10 | 1<<11 | 1<<13 | 1<<14 | 1<<15 | 1<<17 | 1<<18},
	{5, 0}: {}, {5, 6}: {}, {5, 3}: {},
	{6, 0}: {}, {6, 6}: {},
}

var wantUC = map[transition]wantStep{
	{0, 0}: {}, {0, 1}: {1<<3 | 1<<4 | 1<<5, 0},
	{1, 0}: {}, {1, 6}: {}, {1, 1}: {0, 1<<3 | 1<<4 | 1<<5},
	{1, 2}: {1<<7 | 1<<8 | 1<<12 | 1<<20, 1<<3 | 1<<4 | 1<<14},
	{2, 0}: {}, {2, 6}: {},
	{2, 3}: {1 << 16, 1<<1 | 1<<3 | 1<<14 | 1<<18},
	{3, 0}: {}, {3, 6}: {}, {3, 3}: {0, 1<<1 | 1<<3 | 1<<14 | 1<<18}, {3, 4}: {0, 1 << 2},
	{4, 0}: {}, {4, 6}: {}, {4, 3}: {0, 1<<1 | 1<<3 | 1<<14 | 1<<18},
	{4, 4}: {0, 1<<3 | 1<<4 | 1<<7 | 1<<14 | 1<<18},
	{5, 0}: {}, {5, 6}: {}, {5, 3}: {0, 1<<1 | 1<<3},
	{6, 0}: {}, {6, 6}: {},
}

// TestModifyQPTakesExactlyTheTransitionsOfTheTable tries, for all types and
// every pair of states, the required attributes, each of them missing, each
// optional one, and each that is neither.
func TestModifyQPTakesExactlyTheTransitionsOfTheTable(t *testing.T) {
	tried, taken := 0, 0
	for typ, table := range map[uint8]map[transition]wantStep{qpUD: wantUD, qpUC: wantUC, qpRC: wantRC} {
		u := newUser(t)
		u.getContext()
		_, index := u.allocUAR()
		pdh := u.allocPD()
		h := u.createQP(typ, pdh, u.createCQ(index), index)
		q := u.f.handles[h].(*qp)
		mark := u.top
		try := func(from, to uint8, mask uint32, ok bool) {
			t.Helper()
			u.top = mark
			q.attr = qpAttr{state: from}
			err := u.f.Ioctl(u.modify(h, mask, to, func(b []byte) { b[97] = from }))
			tried++
			if ok {
				taken++
			}
			// An alternate path passes the table and fails after it: RoCE has none.
			if ok && mask&maskAltPath != 0 {
				ok = false
			}
			if (err == nil) != ok || err != nil && err != syscall.EINVAL {
				t.Errorf("type %d, %d to %d, mask %#x: %v, want ok=%v", typ, from, to, mask, err, ok)
			}
			switch {
			case ok && q.attr.state != to:
				t.Errorf("type %d, %d to %d: state is %d", typ, from, to, q.attr.state)
			case !ok && q.attr != (qpAttr{state: from}):
				t.Errorf("type %d, %d to %d, mask %#x: a refused modify changed %+v", typ, from, to, mask, q.attr)
			}
		}
		for from := range uint8(stateErr + 1) {
			for to := range uint8(stateErr + 1) {
				s, ok := table[transition{from, to}]
				base := s.req | maskState
				try(from, to, base, ok)
				for bit := uint32(1) << 1; bit < 1<<21; bit <<= 1 {
					switch {
					case s.req&bit != 0:
						try(from, to, base&^bit, false)
					case s.opt&bit != 0:
						try(from, to, base|bit, ok)
					default:
						try(from, to, base|bit, false)
					}
				}
				if from == to {
					try(from, to, s.req, ok) // without STATE it stays where it is
				}
			}
		}
		q.attr = qpAttr{}
		u.top = mark
		u.want(syscall.EINVAL, u.modify(h, maskState, stateErr+1, nil))
		u.want(syscall.EOPNOTSUPP, u.modify(h, maskState|1<<21, stateReset, nil))
		u.want(syscall.ENOENT, u.modify(999, maskState, stateReset, nil))
	}
	if tried < 1000 || taken < 60 {
		t.Errorf("only %d tried, %d taken", tried, taken)
	}
	t.Logf("%d tried, %d taken", tried, taken)
}

const (
	toInitUD = maskState | maskPKeyIndex | maskPort | maskQKey
	toInitRC = maskState | maskPKeyIndex | maskPort | maskAccess
	toRTRRC  = maskState | maskAV | maskPathMTU | maskDestQPN | maskRQPSN | maskMaxDestRd | maskMinRNRTimer
	toRTSRC  = maskState | maskTimeout | maskRetryCnt | maskRNRRetry | maskSQPSN | maskMaxRdAtomic
)

func TestModifyQPChecksValues(t *testing.T) {
	u := newUser(t)
	u.getContext()
	_, index := u.allocUAR()
	pdh, cqh := u.allocPD(), u.createCQ(index)
	tests := []struct {
		name  string
		state uint8 // before
		to    uint8
		mask  uint32
		edit  func(b []byte)
		errno syscall.Errno
	}{
		{"port 0", stateReset, stateInit, toInitRC, func(b []byte) { b[104] = 0 }, syscall.EINVAL},
		{"port 2", stateReset, stateInit, toInitRC, func(b []byte) { b[104] = 2 }, syscall.EINVAL},
		{"pkey index beyond the table", stateReset, stateInit, toInitRC, func(b []byte) { b[92] = 1 }, syscall.EINVAL},
		{"pkey index high byte", stateReset, stateInit, toInitRC, func(b []byte) { b[93] = 1 }, syscall.EINVAL},
		{"mtu 0", stateInit, stateRTR, toRTRRC, func(b []byte) { b[98] = 0 }, syscall.EINVAL},
		{"mtu 6", stateInit, stateRTR, toRTRRC, func(b []byte) { b[98] = 6 }, syscall.EINVAL},
		{"max_dest_rd_atomic 17", stateInit, stateRTR, toRTRRC, func(b []byte) { b[102] = 17 }, syscall.EINVAL},
		{"min_rnr_timer 32", stateInit, stateRTR, toRTRRC, func(b []byte) { b[103] = 32 }, syscall.EINVAL},
		{"AV not global", stateInit, stateRTR, toRTRRC, func(b []byte) { b[30] = 0 }, syscall.EINVAL},
		{"AV port 2", stateInit, stateRTR, toRTRRC, func(b []byte) { b[31] = 2 }, syscall.EINVAL},
		{"empty sgid", stateInit, stateRTR, toRTRRC, func(b []byte) { b[24] = 4 }, syscall.ENODATA},
		{"sgid beyond the table", stateInit, stateRTR, toRTRRC, func(b []byte) { b[24] = 16 }, syscall.EINVAL},
		{"dgid zero", stateInit, stateRTR, toRTRRC, func(b []byte) { clear(b[:16]) }, syscall.EINVAL},
		{"dgid multicast", stateInit, stateRTR, toRTRRC, func(b []byte) { clear(b[:16]); b[0] = 0xff; b[1] = 2 }, syscall.EINVAL},
		{"dgid v6, sgid v4", stateInit, stateRTR, toRTRRC, func(b []byte) { clear(b[:16]); b[0] = 0x20; b[15] = 1 }, syscall.EINVAL},
		{"dgid that nobody has", stateInit, stateRTR, toRTRRC, func(b []byte) { b[15] = 99 }, syscall.ETIMEDOUT},
		{"timeout 32", stateRTR, stateRTS, toRTSRC, func(b []byte) { b[105] = 32 }, syscall.EINVAL},
		{"retry_cnt 8", stateRTR, stateRTS, toRTSRC, func(b []byte) { b[106] = 8 }, syscall.EINVAL},
		{"rnr_retry 8", stateRTR, stateRTS, toRTSRC, func(b []byte) { b[107] = 8 }, syscall.EINVAL},
		{"max_rd_atomic 17", stateRTR, stateRTS, toRTSRC, func(b []byte) { b[101] = 17 }, syscall.EINVAL},
		{"cur_state wrong", stateRTR, stateRTS, toRTSRC | maskCurState, func(b []byte) { b[97] = stateRTS }, syscall.EINVAL},
		{"cur_state beyond the enum", stateRTR, stateRTS, toRTSRC | maskCurState, func(b []byte) { b[97] = 7 }, syscall.EINVAL},
	}
	h := u.createQP(qpRC, pdh, cqh, index)
	q := u.f.handles[h].(*qp)
	mark := u.top
	for _, tt := range tests {
		u.top = mark
		q.attr = qpAttr{state: tt.state}
		if err := u.f.Ioctl(u.modify(h, tt.mask, tt.to, tt.edit)); err != tt.errno {
			t.Errorf("%s: %v, want %v", tt.name, err, tt.errno)
		}
		if q.attr != (qpAttr{state: tt.state}) {
			t.Errorf("%s: a refused modify changed %+v", tt.name, q.attr)
		}
		q.attr = qpAttr{state: tt.state}
		if err := u.f.Ioctl(u.modify(h, tt.mask&^maskCurState, tt.to, nil)); err != nil {
			t.Errorf("%s: the same without the fault: %v", tt.name, err)
		}
	}
}

func TestQueryQPAnswersWhatModifyQPSet(t *testing.T) {
	u := newUser(t)
	u.getContext()
	_, index := u.allocUAR()
	h := u.createQP(qpRC, u.allocPD(), u.createCQ(index), index)
	u.must(u.modify(h, toInitRC, stateInit, nil))
	u.must(u.modify(h, toRTRRC, stateRTR, func(b []byte) {
		le.PutUint32(b[16:], 0x12345)
		le.PutUint32(b[76:], 0xff123456)
		b[26], b[27] = 0x60, 3
	}))
	u.must(u.modify(h, toRTSRC, stateRTS, func(b []byte) { le.PutUint32(b[80:], 0x654321) }))
	core := u.out(attrCoreOut, 128)
	in := make([]byte, 16)
	le.PutUint32(in[8:], h)
	u.must(writeCommand(25, u.in(attrCoreIn, in), core))
	got := u.at(core.data, 128)
	for _, f := range []struct {
		name      string
		off, size int
		want      uint32
	}{
		{"dgid tail", 12, 4, 0x0200000a}, {"flow_label", 16, 4, 0x12345}, {"sgid_index", 24, 1, 3}, {"hop_limit", 25, 1, 64},
		{"traffic_class", 26, 1, 0x60}, {"sl", 27, 1, 3}, {"is_global", 30, 1, 1}, {"dest port", 31, 1, 1},
		{"max_send_wr", 64, 4, 0}, {"max_recv_wr", 68, 4, 8}, {"qkey", 84, 4, 0}, {"rq_psn", 88, 4, 0x123456}, {"sq_psn", 92, 4, 0x654321},
		{"dest_qp_num", 96, 4, 0x1a4}, {"access", 100, 4, accessRemoteRead}, {"state", 108, 1, stateRTS}, {"cur_state", 109, 1, stateRTS},
		{"path_mtu", 110, 1, 3}, {"max_rd_atomic", 113, 1, 16}, {"max_dest_rd_atomic", 114, 1, 16}, {"min_rnr_timer", 115, 1, 12},
		{"port", 116, 1, 1}, {"timeout", 117, 1, 14}, {"retry_cnt", 118, 1, 7}, {"rnr_retry", 119, 1, 7}, {"sig_all", 122, 1, 0},
	} {
		var w [4]byte
		copy(w[:], got[f.off:f.off+f.size])
		if v := le.Uint32(w[:]); v != f.want {
			t.Errorf("%s is %#x, want %#x", f.name, v, f.want)
		}
	}
	u.must(u.modify(h, maskState, stateReset, nil))
	if q := u.f.handles[h].(*qp); q.attr != (qpAttr{}) {
		t.Errorf("RESET left %+v", q.attr)
	}
}

func TestRTRResolvesLinkLocalPeersFromTheirGID(t *testing.T) {
	u := newUser(t)
	u.getContext()
	_, index := u.allocUAR()
	h := u.createQP(qpRC, u.allocPD(), u.createCQ(index), index)
	u.must(u.modify(h, toInitRC, stateInit, nil))
	u.must(u.modify(h, toRTRRC, stateRTR, func(b []byte) {
		gid := linkLocal(macOf(testDevice(t, u.d.fab, "10.0.0.7").addr))
		copy(b, gid[:])
		b[24] = 1
	}))
}
