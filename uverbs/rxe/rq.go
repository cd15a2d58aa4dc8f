package rxe

import (
	"github.com/rrppcc-go/rrppcc/uverbs"
	"github.com/rrppcc-go/rrppcc/uverbs/rxe/internal/abi"
)

// recvQueue is the producer's side of a receive ring, a QP's or an SRQ's.
type recvQueue struct {
	ring   ring
	maxSGE uint32
	prod   uint32 // next entry to write
	cons   uint32 // the kernel's index when last read
}

// attach maps the ring.
func (q *recvQueue) attach(d *contextDriver, mi *abi.Mminfo, depth, maxSGE uint32) error {
	r, err := mapRing(d.file, mi, recvHeadBytes+maxSGE*sgeBytes, depth)
	if err != nil {
		return err
	}
	*q = recvQueue{ring: r, maxSGE: maxSGE, prod: r.producer(), cons: r.consumer()}
	return nil
}

// posted returns how many receives the kernel has not taken yet.
func (q *recvQueue) posted() uint32 { return (q.prod - q.ring.consumer()) & q.ring.mask }

func (q *recvQueue) post(wrs []uverbs.RecvWR) (n int, err error) {
	prod := q.prod
	for n < len(wrs) {
		next := (prod + 1) & q.ring.mask
		if next == q.cons {
			if q.cons = q.ring.consumer(); next == q.cons {
				err = uverbs.ErrQueueFull
				break
			}
		}
		if err = writeRecv(q.ring.slot(prod), &wrs[n], q.maxSGE); err != nil {
			break
		}
		prod = next
		n++
	}
	if n > 0 {
		q.prod = prod
		q.ring.setProducer(prod)
	}
	return n, err
}
