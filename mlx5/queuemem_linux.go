package mlx5

import "golang.org/x/sys/unix"

const hugePage = 2 << 20

// mapMemory maps memory outside the Go heap. A child process does not inherit
// it: a copy-on-write fault in the parent would take the page away from the
// device. Large queues lie in huge pages where the system has some to spare,
// which saves the device address translations.
func mapMemory(n int) ([]byte, error) {
	const flags = unix.MAP_PRIVATE | unix.MAP_ANONYMOUS
	var mem []byte
	err := error(unix.ENOMEM)
	if n >= hugePage {
		mem, err = unix.Mmap(-1, 0, (n+hugePage-1)&^(hugePage-1), unix.PROT_READ|unix.PROT_WRITE, flags|unix.MAP_HUGETLB|unix.MAP_HUGE_2MB)
	}
	if err != nil {
		mem, err = unix.Mmap(-1, 0, n, unix.PROT_READ|unix.PROT_WRITE, flags)
	}
	if err != nil {
		return nil, err
	}
	if err := unix.Madvise(mem, unix.MADV_DONTFORK); err != nil {
		unix.Munmap(mem)
		return nil, err
	}
	return mem[:n], nil
}

// unmapMemory takes what mapMemory returned, whose capacity is the mapping.
func unmapMemory(mem []byte) error { return unix.Munmap(mem[:cap(mem)]) }
