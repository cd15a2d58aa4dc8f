package mlx5

import (
	"errors"
	"sync"
	"sync/atomic"
)

// qpTable finds a QP by the key that CQEs carry: the user index that the
// driver chose (CQE version 1), or the QP number (version 0, Connect-IB). It is
// read without locks by every CQ's poller; entries change under mu.
type qpTable struct {
	byIndex bool
	dir     [1 << dirBits]atomic.Pointer[qpLeaf]

	mu sync.Mutex
}

type qpLeaf [1 << leafBits]atomic.Pointer[qp]

// Keys have 24 bits.
const (
	leafBits = 12
	dirBits  = 24 - leafBits
	keyMask  = 1<<24 - 1
	noUIdx   = keyMask // what the kernel is told where CQEs carry the QPN
)

var errTooManyQPs = errors.New("mlx5: all user indices are in use")

func newQPTable(cqeVersion uint8) *qpTable { return &qpTable{byIndex: cqeVersion == 1} }

// lookup returns the QP with the key, or nil.
func (t *qpTable) lookup(key uint32) *qp {
	leaf := t.dir[key>>leafBits&(1<<dirBits-1)].Load()
	if leaf == nil {
		return nil
	}
	return leaf[key&(1<<leafBits-1)].Load()
}

func (t *qpTable) leaf(key uint32) *qpLeaf {
	d := &t.dir[key>>leafBits]
	if d.Load() == nil {
		d.Store(new(qpLeaf))
	}
	return d.Load()
}

// reserve gives q the lowest free user index. An index stays taken until the
// CQEs of its last QP are out of all CQs.
func (t *qpTable) reserve(q *qp) (uint32, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for key := uint32(0); key < noUIdx; key++ {
		if slot := &t.leaf(key)[key&(1<<leafBits-1)]; slot.Load() == nil {
			slot.Store(q)
			return key, nil
		}
	}
	return 0, errTooManyQPs
}

// insert puts q under its QP number.
func (t *qpTable) insert(key uint32, q *qp) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.leaf(key)[key&(1<<leafBits-1)].Store(q)
}

// remove frees the key if it is still q's. It takes no lock, so that a poller
// can call it.
func (t *qpTable) remove(key uint32, q *qp) {
	if leaf := t.dir[key>>leafBits&(1<<dirBits-1)].Load(); leaf != nil {
		leaf[key&(1<<leafBits-1)].CompareAndSwap(q, nil)
	}
}
