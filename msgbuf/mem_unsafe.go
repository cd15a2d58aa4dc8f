package msgbuf

import "unsafe"

// addrOf returns the address of mem's first byte, as the device sees it.
func addrOf(mem []byte) uintptr {
	return uintptr(unsafe.Pointer(unsafe.SliceData(mem)))
}
