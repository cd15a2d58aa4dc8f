package mlx5

import (
	"math/bits"
	"syscall"

	"github.com/rrppcc-go/rrppcc/mlx5/internal/prm"
	"github.com/rrppcc-go/rrppcc/uverbs"
)

// What precedes the data in a send WQE, bytes.
const (
	overheadUD = 16 + 48 // control, datagram
	overheadRC = 16 + 16 // control, remote address
	inlineHdr  = 4
)

// maxCQE is the largest number of entries that a CQ is asked for.
const maxCQE = 1<<24 - 1

// cqEntries returns the ring size for a CQ that must hold depth completions:
// one more, so that full and empty differ, rounded up to a power of two.
func cqEntries(depth int) (uint32, error) {
	if depth <= 0 || depth > maxCQE {
		return 0, syscall.EINVAL
	}
	return roundUpPow2(uint32(depth) + 1), nil
}

// qpLayout is how a QP's queues lie in its one buffer: the receive queue at
// offset 0, the send queue behind it.
type qpLayout struct {
	rqEntries uint32 // WQEs
	rqShift   uint32 // log2 of bytes per WQE
	rqMaxSGE  uint32

	sqEntries uint32 // WQEBBs
	sqMaxPost uint32 // WRs: one WQE may take several WQEBBs
	sqPerWR   uint32 // WQEBBs that are reckoned for one
	sqMaxSGE  uint32
	maxInline uint32 // bytes
}

func (l *qpLayout) sqOffset() int { return int(l.rqEntries) << l.rqShift }
func (l *qpLayout) bytes() int    { return l.sqOffset() + int(l.sqEntries)*prm.WQEBBBytes }

// user returns the capacities that the user gets.
func (l *qpLayout) user() uverbs.QPCap {
	return uverbs.QPCap{MaxSendWR: l.sqMaxPost, MaxRecvWR: l.rqEntries, MaxSendSGE: l.sqMaxSGE,
		MaxRecvSGE: l.rqMaxSGE, MaxInline: l.maxInline}
}

// layoutQP sizes a QP for the capacities asked. overhead is what precedes the
// data in a send WQE; see overheadUD. Capacities that the device cannot give are
// EINVAL.
func layoutQP(lim *limits, ask uverbs.QPCap, overhead uint32) (qpLayout, error) {
	var l qpLayout
	if err := l.sizeRQ(lim, ask); err != nil {
		return qpLayout{}, err
	}
	if err := l.sizeSQ(lim, ask, overhead); err != nil {
		return qpLayout{}, err
	}
	return l, nil
}

func (l *qpLayout) sizeRQ(lim *limits, ask uverbs.QPCap) error {
	if ask.MaxRecvWR == 0 {
		return nil
	}
	if ask.MaxRecvWR > lim.maxRecvWRs || ask.MaxRecvSGE > lim.maxRQDesc/prm.SegBytes {
		return syscall.EINVAL
	}
	wqe := roundUpPow2(max(ask.MaxRecvSGE, 1) * prm.SegBytes)
	if wqe > lim.maxRQDesc {
		return syscall.EINVAL
	}
	// The kernel places the SQ behind the RQ at a multiple of a WQEBB.
	queue := max(roundUpPow2(ask.MaxRecvWR)*wqe, prm.WQEBBBytes)
	l.rqEntries = queue / wqe
	l.rqShift = uint32(bits.TrailingZeros32(wqe))
	l.rqMaxSGE = wqe / prm.SegBytes
	return nil
}

func (l *qpLayout) sizeSQ(lim *limits, ask uverbs.QPCap, overhead uint32) error {
	if ask.MaxSendWR == 0 {
		return nil
	}
	if ask.MaxSendWR > lim.maxSendWQEBBs || ask.MaxInline > lim.maxSQDesc || overhead > lim.maxSQDesc ||
		ask.MaxSendSGE > (lim.maxSQDesc-overhead)/prm.SegBytes {
		return syscall.EINVAL
	}
	wqe := overhead + ask.MaxSendSGE*prm.SegBytes
	if ask.MaxInline > 0 {
		wqe = max(wqe, overhead+roundUp(inlineHdr+ask.MaxInline, prm.SegBytes))
	}
	if wqe > lim.maxSQDesc {
		return syscall.EINVAL
	}
	wqe = roundUp(wqe, prm.WQEBBBytes)
	if wqe < overhead+inlineHdr {
		return syscall.EINVAL // no room for any data at all
	}
	queue := roundUpPow2(ask.MaxSendWR * wqe)
	if queue/prm.WQEBBBytes > lim.maxSendWQEBBs {
		return syscall.EINVAL
	}
	l.sqEntries = queue / prm.WQEBBBytes
	l.sqMaxPost = queue / wqe
	l.sqPerWR = wqe / prm.WQEBBBytes
	l.sqMaxSGE = ask.MaxSendSGE
	l.maxInline = wqe - overhead - inlineHdr
	return nil
}

func roundUp(v, unit uint32) uint32 { return (v + unit - 1) / unit * unit }

// roundUpPow2 rounds v, at most 1<<31, up to a power of two.
func roundUpPow2(v uint32) uint32 {
	if v <= 1 {
		return 1
	}
	return 1 << bits.Len32(v-1)
}
