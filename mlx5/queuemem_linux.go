package mlx5

import "golang.org/x/sys/unix"

// mapMemory maps memory outside the Go heap. A child process does not inherit
// it: a copy-on-write fault in the parent would take the page away from the
// device.
func mapMemory(n int) ([]byte, error) {
	mem, err := unix.Mmap(-1, 0, n, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		return nil, err
	}
	if err := unix.Madvise(mem, unix.MADV_DONTFORK); err != nil {
		unix.Munmap(mem)
		return nil, err
	}
	return mem, nil
}

func unmapMemory(mem []byte) error { return unix.Munmap(mem) }
