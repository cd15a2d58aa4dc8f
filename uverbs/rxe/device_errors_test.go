package rxe

import (
	"slices"
	"testing"
	"time"

	"github.com/rrppcc-go/rrppcc/uverbs"
)

func TestDeviceRCErrors(t *testing.T) {
	a, b := devices(t)
	other := must(b.pd.Context().AllocPD())(t)
	defer func() { check(t, other.Close()) }()
	foreign := must(other.RegisterMR(b.mem[:4096], allAccess))(t)
	defer func() { check(t, foreign.Close()) }()
	readOnly := must(b.pd.RegisterMR(b.mem[:4096], 0))(t)
	defer func() { check(t, readOnly.Close()) }()
	local := []uverbs.WCStatus{uverbs.WCLocQPOpErr, uverbs.WCWRFlushErr, uverbs.WCLocProtErr} // 6.1, and 6.12
	remote := func(op uverbs.WROpcode, addr uint64, rkey uint32, n int) uverbs.SendWR {
		return uverbs.SendWR{Opcode: op, SGList: []uverbs.SGE{a.mr.SGE(0, n)}, RemoteAddr: addr, RKey: rkey}
	}
	noAccess := usual
	noAccess.access = 0
	fewTries := usual
	fewTries.rnrRetry = 0
	for _, tt := range []struct {
		name string
		attr rcAttr
		recv []uverbs.SGE // nil: none is posted
		wr   uverbs.SendWR
		want []uverbs.WCStatus // one of
		at   []uverbs.WCStatus // at the receiver, one of; nil: nothing completes
	}{
		{"send with a wrong lkey", usual, nil, uverbs.SendWR{Opcode: uverbs.WRSend, SGList: []uverbs.SGE{{Addr: a.mr.Addr(), Length: 8, LKey: 0xdead00}}}, local, nil},
		{"send beyond the region", usual, nil, uverbs.SendWR{Opcode: uverbs.WRSend, SGList: []uverbs.SGE{{Addr: a.mr.Addr() + nodeBytes - 4, Length: 8, LKey: a.mr.LKey()}}}, local, nil},
		{"receive that is too small", usual, []uverbs.SGE{b.mr.SGE(0, 4)}, uverbs.SendWR{Opcode: uverbs.WRSend, SGList: []uverbs.SGE{a.mr.SGE(0, 8)}},
			[]uverbs.WCStatus{uverbs.WCRemOpErr, uverbs.WCRemInvReqErr}, []uverbs.WCStatus{uverbs.WCLocQPOpErr, uverbs.WCLocLenErr}},
		{"receive with a wrong lkey", usual, []uverbs.SGE{{Addr: b.mr.Addr(), Length: 8, LKey: 0xdead00}}, uverbs.SendWR{Opcode: uverbs.WRSend, SGList: []uverbs.SGE{a.mr.SGE(0, 8)}},
			[]uverbs.WCStatus{uverbs.WCRemOpErr}, []uverbs.WCStatus{uverbs.WCLocQPOpErr, uverbs.WCLocProtErr}},
		{"write with a wrong rkey", usual, nil, remote(uverbs.WRRDMAWrite, b.mr.Addr(), 0xdead00, 8), []uverbs.WCStatus{uverbs.WCRemAccessErr}, nil},
		{"write beyond the region", usual, nil, remote(uverbs.WRRDMAWrite, b.mr.Addr()+nodeBytes-4, b.mr.RKey(), 8), []uverbs.WCStatus{uverbs.WCRemAccessErr}, nil},
		{"write to another PD", usual, nil, remote(uverbs.WRRDMAWrite, foreign.Addr(), foreign.RKey(), 8), []uverbs.WCStatus{uverbs.WCRemAccessErr}, nil},
		{"write to a region without access", usual, nil, remote(uverbs.WRRDMAWrite, readOnly.Addr(), readOnly.RKey(), 8), []uverbs.WCStatus{uverbs.WCRemAccessErr}, nil},
		{"read of a region without access", usual, nil, remote(uverbs.WRRDMARead, readOnly.Addr(), readOnly.RKey(), 8), []uverbs.WCStatus{uverbs.WCRemAccessErr}, nil},
		{"write to a QP without access", noAccess, nil, remote(uverbs.WRRDMAWrite, b.mr.Addr(), b.mr.RKey(), 8), []uverbs.WCStatus{uverbs.WCRemInvReqErr}, nil},
		{"atomic that is not aligned", usual, nil, remote(uverbs.WRAtomicFetchAndAdd, b.mr.Addr()+4, b.mr.RKey(), 8), []uverbs.WCStatus{uverbs.WCRemInvReqErr}, nil},
		{"no receive", fewTries, nil, uverbs.SendWR{Opcode: uverbs.WRSend}, []uverbs.WCStatus{uverbs.WCRNRRetryExcErr}, nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			qa, qb := rcPair(a, b, nil, tt.attr)
			defer qb.Close()
			defer qa.Close()
			if tt.recv != nil {
				b.recv(qb, uverbs.RecvWR{WRID: 1, SGList: tt.recv})
			}
			tt.wr.WRID = 2 // not signaled: a failure completes all the same
			flushed := uverbs.SendWR{WRID: 3, Opcode: uverbs.WRRDMAWrite, SGList: []uverbs.SGE{a.mr.SGE(0, 1)}, RemoteAddr: b.mr.Addr(), RKey: b.mr.RKey()}
			a.send(qa, tt.wr, flushed)
			if wc := a.next(); wc.WRID != 2 || !slices.Contains(tt.want, wc.Status) {
				t.Errorf("sender: %d with %v, want one of %v", wc.WRID, wc.Status, tt.want)
			} else {
				t.Logf("sender: %v", wc.Status)
			}
			if wc := a.next(); wc.WRID != 3 || wc.Status != uverbs.WCWRFlushErr {
				t.Errorf("behind it: %d with %v, want a flush", wc.WRID, wc.Status)
			}
			if tt.at != nil {
				if wc := b.next(); wc.WRID != 1 || !slices.Contains(tt.at, wc.Status) {
					t.Errorf("receiver: %d with %v, want one of %v", wc.WRID, wc.Status, tt.at)
				} else {
					t.Logf("receiver: %v", wc.Status)
				}
			}
			if got := must(qa.Query())(t); got.State != uverbs.QPStateErr {
				t.Errorf("the sender is in %v", got.State)
			}
			a.send(qa, uverbs.SendWR{WRID: 4, Opcode: uverbs.WRSend})
			if wc := a.next(); wc.WRID != 4 || wc.Status != uverbs.WCWRFlushErr {
				t.Errorf("posted in ERR: %d with %v, want a flush", wc.WRID, wc.Status)
			}
		})
	}
}

func TestDevicePeerThatIsGone(t *testing.T) {
	a, b := devices(t)
	few := usual
	few.retry = 2
	qa, qb := rcPair(a, b, nil, few)
	check(t, qb.Close())
	start := time.Now()
	a.send(qa, uverbs.SendWR{WRID: 1, Opcode: uverbs.WRSend})
	a.want(1, uverbs.WCRetryExcErr, 0)
	t.Logf("after %v", time.Since(start).Round(time.Millisecond))
}

func TestDeviceReceivesAreFlushed(t *testing.T) {
	a, _ := devices(t)
	qp := a.ud(nil)
	for i := range uint64(5) {
		a.recv(qp, uverbs.RecvWR{WRID: i, SGList: []uverbs.SGE{a.mr.SGE(0, 100)}})
	}
	a.modify(qp, uverbs.QPAttr{State: uverbs.QPStateErr}, 0)
	for i := range uint64(5) {
		a.want(i, uverbs.WCWRFlushErr, 0)
	}
	a.recv(qp, uverbs.RecvWR{WRID: 9})
	if wc, ok := a.nextWithin(patience / 20); ok {
		t.Logf("a receive posted in ERR: %v", wc.Status)
	} else {
		t.Log("a receive posted in ERR is not flushed")
	}
}

func TestDeviceCQOverflow(t *testing.T) {
	a, b := devices(t)
	small := must(b.ctx.CreateCQ(&uverbs.CQInitAttr{Depth: 3}))(t)
	t.Cleanup(func() { check(t, small.Close()) }) // after its QP
	qa, qb := rcPair(a, b, func(i *uverbs.QPInitAttr) {
		if i.RecvCQ == b.cq {
			i.RecvCQ = small
		}
	}, usual)
	for range small.Depth() + 1 {
		b.recv(qb, uverbs.RecvWR{})
		a.send(qa, uverbs.SendWR{Opcode: uverbs.WRSend})
	}
	if ev := b.event(uverbs.EventCQErr); ev.CQ != small {
		t.Errorf("event %+v", ev)
	}
}

func TestDeviceUDBadAddressHandleAndLength(t *testing.T) {
	a, b := devices(t)
	qa, qb := a.ud(nil), b.ud(nil)
	toB := a.ah(b)
	// A receive without room for the packet.
	b.recv(qb, uverbs.RecvWR{WRID: 1, SGList: []uverbs.SGE{b.mr.SGE(0, 45)}}, uverbs.RecvWR{WRID: 2, SGList: []uverbs.SGE{b.mr.SGE(0, 1000)}})
	a.send(qa, uverbs.SendWR{WRID: 3, Opcode: uverbs.WRSend, Flags: sig, SGList: []uverbs.SGE{a.mr.SGE(0, 100)}, AH: toB, RemoteQPN: qb.QPN(), RemoteQKey: testQKey})
	a.want(3, uverbs.WCSuccess, uverbs.WCSend)
	if wc, ok := b.nextWithin(patience / 20); ok {
		t.Logf("short receive: %d with %v, QP in %v", wc.WRID, wc.Status, must(qb.Query())(t).State)
	} else {
		t.Logf("short receive: dropped, QP in %v", must(qb.Query())(t).State)
	}
	// A wrong QKey is not received.
	a.send(qa, uverbs.SendWR{WRID: 4, Opcode: uverbs.WRSend, Flags: sig, AH: toB, RemoteQPN: qb.QPN(), RemoteQKey: testQKey + 1})
	a.want(4, uverbs.WCSuccess, uverbs.WCSend)
	if n, err := qa.PostSend([]uverbs.SendWR{{Opcode: uverbs.WRSend}}); n != 0 || err != uverbs.ErrBadAH {
		t.Errorf("without an address handle: %d, %v", n, err)
	}
}
