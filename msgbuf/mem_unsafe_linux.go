package msgbuf

import (
	"errors"
	"fmt"
	"unsafe"

	"golang.org/x/sys/unix"
)

const mapKind = unix.MAP_PRIVATE | unix.MAP_ANONYMOUS

// mapMemory maps size bytes (a multiple of hugePage), aligned to hugePage. The
// second result says why huge pages were not to be had, nil if they were.
func mapMemory(size int) (mem []byte, noHuge, err error) {
	mem, noHuge = mapHuge(size)
	if noHuge == nil {
		return mem, nil, nil
	}
	mem, err = mapNormal(size)
	return mem, noHuge, err
}

func mapHuge(size int) ([]byte, error) {
	p, err := unix.MmapPtr(-1, 0, nil, uintptr(size), unix.PROT_READ|unix.PROT_WRITE,
		mapKind|unix.MAP_HUGETLB|unix.MAP_HUGE_2MB)
	if err != nil {
		return nil, fmt.Errorf("mmap MAP_HUGETLB: %w", err)
	}
	mem := unsafe.Slice((*byte)(p), size)
	// A hugetlb cgroup limit shows only at the first touch, as SIGBUS. Touch
	// now (Linux 5.14; EINVAL before), where it is an error.
	if err := unix.Madvise(mem, unix.MADV_POPULATE_WRITE); err != nil && !errors.Is(err, unix.EINVAL) {
		_ = unix.MunmapPtr(p, uintptr(size))
		return nil, fmt.Errorf("populate huge pages: %w", err)
	}
	if err := unix.Madvise(mem, unix.MADV_DONTFORK); err != nil {
		_ = unix.MunmapPtr(p, uintptr(size))
		return nil, fmt.Errorf("madvise MADV_DONTFORK: %w", err)
	}
	return mem, nil
}

func mapNormal(size int) ([]byte, error) {
	// Map a huge page more than needed and cut off the ends, so that the
	// region starts where a transparent huge page can.
	total := uintptr(size) + hugePage
	p, err := unix.MmapPtr(-1, 0, nil, total, unix.PROT_READ|unix.PROT_WRITE, mapKind)
	if err != nil {
		return nil, fmt.Errorf("mmap %d bytes: %w", size, err)
	}
	head := -uintptr(p) & (hugePage - 1)
	tail := total - head - uintptr(size)
	base := unsafe.Add(p, head)
	if head > 0 {
		_ = unix.MunmapPtr(p, head)
	}
	if tail > 0 {
		_ = unix.MunmapPtr(unsafe.Add(base, size), tail)
	}
	mem := unsafe.Slice((*byte)(base), size)
	// Without DONTFORK a child's copy-on-write could move our pages away from
	// under the device.
	if err := unix.Madvise(mem, unix.MADV_DONTFORK); err != nil {
		_ = unix.MunmapPtr(base, uintptr(size))
		return nil, fmt.Errorf("madvise MADV_DONTFORK: %w", err)
	}
	_ = unix.Madvise(mem, unix.MADV_HUGEPAGE) // a hint; kernels without THP refuse it
	return mem, nil
}

func unmapMemory(mem []byte) error {
	return unix.MunmapPtr(unsafe.Pointer(unsafe.SliceData(mem)), uintptr(len(mem)))
}
