package uverbs

import (
	"runtime"
	"unsafe"
)

// memAddr is the address of mem's first byte, 0 if there is none. Mapped
// memory does not move; the kernel refuses nothing that Go has given back, so
// keepAlive follows every use.
func memAddr(mem []byte) uint64 { return uint64(uintptr(unsafe.Pointer(unsafe.SliceData(mem)))) }

func keepAlive(mem []byte) { runtime.KeepAlive(mem) }
