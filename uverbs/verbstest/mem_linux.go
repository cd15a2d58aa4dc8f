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

// protect takes all rights away from mapped pages, or gives them back: for those
// who have to look them up they are gone.
func protect(mem []byte, back bool) error {
	prot := unix.PROT_NONE
	if back {
		prot = unix.PROT_READ | unix.PROT_WRITE
	}
	return unix.Mprotect(mem, prot)
}

// sharedFile is a descriptor that stands in for a dma-buf, and its n bytes, which
// stay mapped until the process ends.
func sharedFile(n int) (fd int, mem []byte, closeFD func() error, err error) {
	fd, err = unix.MemfdCreate("verbstest", unix.MFD_CLOEXEC)
	if err != nil {
		return -1, nil, nil, err
	}
	if err = unix.Ftruncate(fd, int64(n)); err == nil {
		mem, err = unix.Mmap(fd, 0, n, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	}
	if err != nil {
		unix.Close(fd)
		return -1, nil, nil, err
	}
	return fd, mem, func() error { return unix.Close(fd) }, nil
}

// canUnmap says that memory that was given back is gone.
const canUnmap = true
