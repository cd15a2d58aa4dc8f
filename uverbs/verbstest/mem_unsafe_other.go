//go:build !linux

package verbstest

import (
	"errors"
	"runtime"
	"unsafe"
)

const pageBytes = 64 << 10

// mapPages returns n page-aligned bytes of the heap, which stay alive until
// they are given back: simulated devices alone look at them here.
func mapPages(n int) ([]byte, func() error, error) {
	all := make([]byte, n+pageBytes)
	skip := -uintptr(unsafe.Pointer(&all[0])) & (pageBytes - 1)
	mem := all[skip : skip+uintptr(n) : skip+uintptr(n)]
	return mem, func() error { runtime.KeepAlive(all); return nil }, nil
}

func readOnly([]byte) error { return errors.ErrUnsupported }

func protect([]byte, bool) error { return errors.ErrUnsupported }

func sharedFile(int) (fd int, mem []byte, closeFD func() error, err error) {
	return -1, nil, nil, errors.ErrUnsupported
}

const canUnmap = false
