package mlx5

import (
	"sync/atomic"

	"github.com/rrppcc-go/rrppcc/mlx5/internal/prm"
	"github.com/rrppcc-go/rrppcc/uverbs"
)

// recvQueue is the receive half of a QP. All fields but tail belong to the
// queue's owner; tail belongs to the owner of the receive CQ.
type recvQueue struct {
	start *byte
	ids   *byte // work request id per WQE
	db    *prm.DBRec

	entries uint32 // WQEs; a power of two, or 0
	shift   uint32 // log2 of bytes per WQE
	maxSGE  int

	head     uint32        // posted, free-running
	seenTail uint32        // tail as the owner saw it last
	tail     atomic.Uint32 // completed, free-running
}

func (r *recvQueue) init(q *qp, l *qpLayout) {
	r.entries, r.shift, r.maxSGE = l.rqEntries, l.rqShift, int(l.rqMaxSGE)
	r.start = &q.mem[0]
	r.ids = &q.tables[l.sqEntries*sendSlotBytes]
	r.db = q.db.DBRec
}

func (r *recvQueue) reset() {
	r.head, r.seenTail = 0, 0
	r.tail.Store(0)
}

// outstanding tells whether a CQE may name WQE counter: posted and not yet
// completed. The doorbell record is what the poster has published of head.
func (r *recvQueue) outstanding(counter, tail uint32) bool {
	posted := (r.db.Load(prm.QPRecv) - tail) & 0xffff
	return (counter-tail)&0xffff < posted
}

func (r *recvQueue) wqe(i uint32) *byte { return prm.Add(r.start, i&(r.entries-1)<<r.shift) }

// PostRecv writes a WQE per request and publishes the ones that were accepted.
func (q *qp) PostRecv(wrs []uverbs.RecvWR) (n int, err error) {
	if q.closed.Load() {
		return 0, uverbs.ErrQPState
	}
	r := &q.rq
	for n < len(wrs) {
		if r.head-r.seenTail >= r.entries {
			if r.seenTail = r.tail.Load(); r.head-r.seenTail >= r.entries {
				if err = uverbs.ErrQueueFull; q.srq != nil {
					err = uverbs.ErrQPUsesSRQ
				}
				break
			}
		}
		wr := &wrs[n]
		if len(wr.SGList) > r.maxSGE {
			err = uverbs.ErrTooManySGEs
			break
		}
		at := r.wqe(r.head)
		used := 0
		for i := range wr.SGList {
			sge := &wr.SGList[i]
			if sge.Length == 0 {
				continue
			}
			if sge.Length >= prm.InlineFlag {
				err = errSGETooLong
				break
			}
			*prm.Data(at) = prm.DataSeg{ByteCount: prm.ToBE32(sge.Length), LKey: prm.ToBE32(sge.LKey), Addr: prm.ToBE64(sge.Addr)}
			at = prm.Add(at, prm.SegBytes)
			used++
		}
		if err != nil {
			break
		}
		if used < r.maxSGE {
			*prm.Data(at) = prm.DataSeg{LKey: prm.ToBE32(prm.InvalidLKey)}
		}
		*r.wrid(r.head) = wr.WRID
		r.head++
		n++
	}
	if n > 0 {
		toDevice()
		r.db.Store(prm.QPRecv, r.head&0xffff)
	}
	return n, err
}
