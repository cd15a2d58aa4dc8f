package kernel

import "golang.org/x/sys/unix"

// AllocPages returns n zeroed bytes, in whole pages, that Go does not manage:
// the kernel or a device may keep their address.
func AllocPages(n int) ([]byte, error) {
	return unix.Mmap(-1, 0, n, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANON)
}

// FreePages gives back what AllocPages returned, as exactly the same slice.
func FreePages(mem []byte) error { return unix.Munmap(mem) }
