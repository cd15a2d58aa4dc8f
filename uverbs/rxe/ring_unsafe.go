package rxe

import (
	"fmt"
	"math"
	"math/bits"
	"os"
	"sync/atomic"
	"unsafe"

	"github.com/rrppcc-go/rrppcc/internal/kernel"
	"github.com/rrppcc-go/rrppcc/uverbs"
	"github.com/rrppcc-go/rrppcc/uverbs/rxe/internal/abi"
)

const headBytes = uint32(unsafe.Sizeof(abi.Rxe_queue_buf{}))

// maxRingBytes bounds what a garbled answer can make us map. The largest ring
// of rdma_rxe, 2^20 WQEs of 1 KiB, is 1 GiB.
const maxRingBytes = 2 << 30

// ring is one queue shared with the kernel: struct rxe_queue_buf and the entries
// behind it. One side produces and the other consumes; an index is stored by
// its own side alone, after the entries that it covers were written (producer)
// or read (consumer), and loaded by the other side before it looks at them.
// Go's atomics give both orders on every architecture. The ring is empty where
// the indices are equal, and full one entry before: it holds mask entries.
//
// The kernel stops trusting what is in the head once it has written it, and so
// do we: shift and mask are read once and checked, indices are masked.
type ring struct {
	file  kernel.File
	mem   []byte // the mapping; nil if there is none
	head  *abi.Rxe_queue_buf
	data  unsafe.Pointer // entry 0
	mask  uint32
	shift uint32
}

// mapRing maps the ring at mi. An entry has minBytes at least, and the ring
// holds minDepth entries at least; anything else is a malformed answer. The
// kernel forgets mi with the first mapping.
func mapRing(file kernel.File, mi *abi.Mminfo, minBytes, minDepth uint32) (ring, error) {
	if mi.Size < headBytes || mi.Size > maxRingBytes || mi.Offset > math.MaxInt64 || mi.Offset%uint64(os.Getpagesize()) != 0 {
		return ring{}, fmt.Errorf("%w: ring of %d bytes at %#x", uverbs.ErrBadAnswer, mi.Size, mi.Offset)
	}
	mem, err := file.Mmap(int64(mi.Offset), int(mi.Size), kernel.ProtRead|kernel.ProtWrite)
	if err != nil {
		return ring{}, fmt.Errorf("map ring: %w", err)
	}
	r := ring{file: file, mem: mem}
	if uint64(len(mem)) < uint64(mi.Size) {
		r.close()
		return ring{}, fmt.Errorf("%w: mapping of %d bytes, not %d", uverbs.ErrBadAnswer, len(mem), mi.Size)
	}
	r.head = (*abi.Rxe_queue_buf)(unsafe.Pointer(&mem[0]))
	r.data = unsafe.Add(unsafe.Pointer(&mem[0]), headBytes)
	r.mask, r.shift = r.head.Index_mask, r.head.Log2_elem_size
	slots := uint64(r.mask) + 1
	if r.shift > 20 || 1<<r.shift < minBytes || bits.OnesCount64(slots) != 1 || r.mask < minDepth ||
		uint64(headBytes)+slots<<r.shift > uint64(mi.Size) {
		err := fmt.Errorf("%w: ring of %d bytes with entries of 2^%d and mask %#x", uverbs.ErrBadAnswer, mi.Size, r.shift, r.mask)
		r.close()
		return ring{}, err
	}
	return r, nil
}

// slot returns entry i, which is at most mask.
func (r *ring) slot(i uint32) unsafe.Pointer {
	return unsafe.Add(r.data, uintptr(i&r.mask)<<r.shift)
}

func (r *ring) producer() uint32 { return atomic.LoadUint32(&r.head.Producer_index) & r.mask }
func (r *ring) consumer() uint32 { return atomic.LoadUint32(&r.head.Consumer_index) & r.mask }

func (r *ring) setProducer(i uint32) { atomic.StoreUint32(&r.head.Producer_index, i) }
func (r *ring) setConsumer(i uint32) { atomic.StoreUint32(&r.head.Consumer_index, i) }

// close unmaps the ring. The kernel keeps all objects of the context as long as
// one ring is mapped, even of an object that was destroyed.
func (r *ring) close() error {
	if r.mem == nil {
		return nil
	}
	err := r.file.Munmap(r.mem)
	*r = ring{}
	return err
}
