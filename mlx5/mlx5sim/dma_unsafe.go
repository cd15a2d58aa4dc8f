package mlx5sim

import (
	"encoding/binary"
	"sync/atomic"
	"unsafe"
)

// directDMA reaches the memory of this process. It trusts the ranges that
// were checked when a queue or an MR was created: memory that is unmapped
// while the device still owns it faults, where real hardware would go on
// writing to the pinned pages.
type directDMA struct{}

// newDirectDMA returns DMA to this process's own memory. The memory must not
// be Go heap that can be freed while the device knows it.
func newDirectDMA() DMA { return directDMA{} }

// pointer turns a user address into a pointer. The address came out of a
// command or a work request, so the conversion is by way of memory: it is no
// pointer arithmetic that the compiler could check.
func pointer(addr uint64) unsafe.Pointer {
	p := uintptr(addr)
	return *(*unsafe.Pointer)(unsafe.Pointer(&p))
}

func (directDMA) View(addr uint64, n int) []byte {
	if n < 0 || !rangeOK(addr, uint64(n)) || uint64(uintptr(addr)) != addr {
		return nil
	}
	return unsafe.Slice((*byte)(pointer(addr)), n)
}

func (d directDMA) Read(addr uint64, p []byte) error {
	m := d.View(addr, len(p))
	if m == nil {
		return errDMA
	}
	copy(p, m)
	return nil
}

func (d directDMA) Write(addr uint64, p []byte) error {
	m := d.View(addr, len(p))
	if m == nil {
		return errDMA
	}
	copy(m, p)
	return nil
}

func (directDMA) Mapped(addr uint64, n uint64) bool {
	return rangeOK(addr, n) && uint64(uintptr(addr)) == addr && mapped(addr, n)
}

// word returns the four bytes of p as an atomic word. p is 4-byte aligned.
func word(p []byte) *uint32 { return (*uint32)(unsafe.Pointer(unsafe.SliceData(p[:4]))) }

// bigNative is v with the bytes in the order that a store must have to leave
// v big-endian in memory.
func bigNative(v uint32) uint32 {
	var b [4]byte
	binary.BigEndian.PutUint32(b[:], v)
	return binary.NativeEndian.Uint32(b[:])
}

func atomicLoadBE32(p []byte) uint32     { return bigNative(atomic.LoadUint32(word(p))) }
func atomicStoreBE32(p []byte, v uint32) { atomic.StoreUint32(word(p), bigNative(v)) }

// hostOrder is the byte order in which atomics see memory.
var hostOrder = binary.NativeEndian

// atomicSwap64 is COMPARE & SWAP on the 8 bytes of p, which are aligned.
func atomicSwap64(p []byte, compare, swap uint64) (old uint64) {
	w := (*uint64)(unsafe.Pointer(unsafe.SliceData(p[:8])))
	for {
		if old = atomic.LoadUint64(w); old != compare || atomic.CompareAndSwapUint64(w, old, swap) {
			return old
		}
	}
}

// atomicAdd64 is FETCH & ADD on the 8 bytes of p, which are aligned.
func atomicAdd64(p []byte, add uint64) (old uint64) {
	return atomic.AddUint64((*uint64)(unsafe.Pointer(unsafe.SliceData(p[:8]))), add) - add
}

// register reads the big-endian 64-bit value that was stored at offset of the
// UAR page uar.
func register(uar *byte, offset uint32) uint64 {
	p := (*uint64)(unsafe.Add(unsafe.Pointer(uar), offset))
	var b [8]byte
	binary.NativeEndian.PutUint64(b[:], atomic.LoadUint64(p))
	return binary.BigEndian.Uint64(b[:])
}

// takeRegister is register for who is told of no store: it leaves 0 behind, so
// that what is stored next is seen, however late. An idle register is only
// read: its cache line stays with the program.
func takeRegister(uar *byte, offset uint32) uint64 {
	p := (*uint64)(unsafe.Add(unsafe.Pointer(uar), offset))
	if atomic.LoadUint64(p) == 0 {
		return 0
	}
	var b [8]byte
	binary.NativeEndian.PutUint64(b[:], atomic.SwapUint64(p, 0))
	return binary.BigEndian.Uint64(b[:])
}
