package mlx5sim

import (
	"os"
	"sync"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// ownMemory reaches the memory of this process through the kernel, which checks
// each access: what is unmapped, not to be written, or behind the end of a mapped
// file is an error where directDMA would fault.
type ownMemory struct{ directDMA }

// faultable returns ownMemory, or nil where the system does not let a process
// have it.
var faultable = sync.OnceValue(func() DMA {
	var word, copied [8]byte
	word[3] = 7
	m := ownMemory{}
	if m.Read(uint64(uintptr(unsafe.Pointer(&word))), copied[:]) != nil || copied != word {
		return nil
	}
	return m
})

func (ownMemory) View(uint64, int) []byte { return nil }

func (ownMemory) Read(addr uint64, p []byte) error { return ownCopy(addr, p, false) }

func (ownMemory) Write(addr uint64, p []byte) error { return ownCopy(addr, p, true) }

func ownCopy(addr uint64, p []byte, write bool) error {
	if len(p) == 0 {
		return nil
	}
	if !rangeOK(addr, uint64(len(p))) {
		return errDMA
	}
	local := [1]unix.Iovec{{Base: &p[0]}}
	local[0].SetLen(len(p))
	remote := [1]unix.RemoteIovec{{Base: uintptr(addr), Len: len(p)}}
	for {
		var n int
		var err error
		if write {
			n, err = unix.ProcessVMWritev(os.Getpid(), local[:], remote[:], 0)
		} else {
			n, err = unix.ProcessVMReadv(os.Getpid(), local[:], remote[:], 0)
		}
		if err == unix.EINTR {
			continue
		}
		if err != nil || n != len(p) {
			return errDMA
		}
		return nil
	}
}

// mapFile maps n bytes from offset on of a descriptor's memory. The mapping
// begins at a page; addr is where offset is in it.
func mapFile(fd int, offset, n uint64, write bool) (mem []byte, addr uint64, err error) {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return nil, 0, err.(syscall.Errno)
	}
	size := st.Size
	if size == 0 { // a dma-buf says it in another way
		if size, err = unix.Seek(fd, 0, unix.SEEK_END); err != nil {
			return nil, 0, syscall.EINVAL
		}
	}
	page := uint64(os.Getpagesize())
	into := offset % page
	if size <= 0 || offset > uint64(size) || n > uint64(size)-offset || n+into > 1<<47 {
		return nil, 0, syscall.EINVAL
	}
	prot := unix.PROT_READ
	if write {
		prot |= unix.PROT_WRITE
	}
	mem, err = unix.Mmap(fd, int64(offset-into), int(n+into), prot, unix.MAP_SHARED)
	if err != nil {
		return nil, 0, err.(syscall.Errno)
	}
	return mem, uint64(uintptr(unsafe.Pointer(&mem[0]))) + into, nil
}
