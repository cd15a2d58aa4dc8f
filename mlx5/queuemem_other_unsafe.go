//go:build !linux

package mlx5

import (
	"os"
	"unsafe"
)

// mapMemory takes memory of the heap. Only simulated devices exist on this
// system; they hold no address beyond the life of the queue, whose slice keeps
// the memory alive.
func mapMemory(n int) ([]byte, error) {
	page := os.Getpagesize()
	mem := make([]byte, n+page)
	off := -int(uintptr(unsafe.Pointer(&mem[0]))) & (page - 1)
	return mem[off : off+n : off+n], nil
}

func unmapMemory([]byte) error { return nil }
