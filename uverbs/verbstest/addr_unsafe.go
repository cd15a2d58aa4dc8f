package verbstest

import "unsafe"

// addrOf is the address of mapped memory, for work requests that name memory
// which is not registered.
func addrOf(mem []byte) uint64 { return uint64(uintptr(unsafe.Pointer(unsafe.SliceData(mem)))) }

// at is the n bytes at addr, which need not be mapped: nobody looks at them.
func at(addr uint64, n int) []byte {
	return unsafe.Slice(*(**byte)(unsafe.Pointer(&addr)), n)
}
