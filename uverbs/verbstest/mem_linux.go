package verbstest

import "golang.org/x/sys/unix"

// pageBytes is a multiple of the page size of every machine that this runs on.
const pageBytes = 64 << 10

// mapPages returns n bytes, page-aligned, of memory that the Go heap and the
// race detector do not know, and how to unmap them.
func mapPages(n int) ([]byte, func() error, error) {
	mem, err := unix.Mmap(-1, 0, n, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		return nil, nil, err
	}
	unix.Madvise(mem, unix.MADV_DONTFORK) // best effort
	return mem, func() error { return unix.Munmap(mem) }, nil
}

// readOnly takes the right to write away from mapped pages.
func readOnly(mem []byte) error { return unix.Mprotect(mem, unix.PROT_READ) }

// canUnmap says that memory that was given back is gone.
const canUnmap = true
