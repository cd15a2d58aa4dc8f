//go:build !amd64 && !arm64

package mlx5

import (
	"sync/atomic"
	"unsafe"
)

// mmioSafe says that the stores below do not reach a device as they must: Go
// gives no barrier against device memory here. A simulated device in this
// process sees them in order.
const mmioSafe = false

func ring(rec *uint32, count uint32, reg *byte, word uint64) {
	atomic.StoreUint32(rec, count)
	atomic.StoreUint64((*uint64)(unsafe.Pointer(reg)), word)
}

func ringBlueFlame(rec *uint32, count uint32, reg, wqe *byte, blocks uint32, start, end *byte) {
	atomic.StoreUint32(rec, count)
	for ; blocks > 0; blocks-- {
		copy(unsafe.Slice(reg, 64), unsafe.Slice(wqe, 64))
		reg = (*byte)(unsafe.Add(unsafe.Pointer(reg), 64))
		if wqe = (*byte)(unsafe.Add(unsafe.Pointer(wqe), 64)); wqe == end {
			wqe = start
		}
	}
}

func toDevice() {}

func fromDevice() {}
