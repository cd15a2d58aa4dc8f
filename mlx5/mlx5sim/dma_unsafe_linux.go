package mlx5sim

import (
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

// mapped asks mincore, which answers ENOMEM where a page of the range is in no
// mapping. It does not tell whether a mapping is readable; a PROT_NONE one
// passes.
func mapped(addr, n uint64) bool {
	page := uint64(os.Getpagesize())
	end := addr + n
	addr &^= page - 1
	var vec [256]byte
	for addr < end {
		k := min(end-addr, uint64(len(vec))*page)
		_, _, errno := unix.Syscall(unix.SYS_MINCORE, uintptr(addr), uintptr(k), uintptr(unsafe.Pointer(&vec[0])))
		if errno == unix.EAGAIN || errno == unix.EINTR {
			continue
		}
		if errno != 0 {
			return false
		}
		addr += k
	}
	return true
}

// allocPage returns a zeroed page of 4096 bytes outside the Go heap, for a UAR
// page: it is shared with a driver that stores to it from assembly.
func allocPage() ([]byte, error) {
	return unix.Mmap(-1, 0, uarPageBytes, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED|unix.MAP_ANONYMOUS)
}

// freePage gives back what allocPage returned.
func freePage(p []byte) error { return unix.Munmap(p) }
