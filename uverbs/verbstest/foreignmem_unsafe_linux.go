package verbstest

import (
	"fmt"
	"os"
	"strings"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// foreignMemory is this process's memory as another process would reach it: by
// system calls that copy, and refuse what is not mapped.
type foreignMemory struct{}

func (foreignMemory) View(uint64, int) []byte { return nil }

func (foreignMemory) Read(addr uint64, p []byte) error {
	return transfer(unix.SYS_PROCESS_VM_READV, addr, p)
}

func (foreignMemory) Write(addr uint64, p []byte) error {
	return transfer(unix.SYS_PROCESS_VM_WRITEV, addr, p)
}

// Mapped tries one byte of each page.
func (m foreignMemory) Mapped(addr, n uint64) bool {
	end := addr + n
	if end < addr {
		return false
	}
	var b [1]byte
	for at := addr; at < end; at = (at | (smallPage - 1)) + 1 {
		if m.Read(at, b[:]) != nil {
			return false
		}
	}
	return true
}

// Writable looks for the range in the process's list of mappings.
func (foreignMemory) Writable(addr, n uint64) bool {
	maps, err := os.ReadFile("/proc/self/maps")
	if err != nil {
		return true
	}
	for line := range strings.Lines(string(maps)) {
		var start, end uint64
		var may string
		if _, err := fmt.Sscanf(line, "%x-%x %s", &start, &end, &may); err != nil || end <= addr || start >= addr+n {
			continue
		}
		if len(may) < 2 || may[1] != 'w' {
			return false
		}
	}
	return true
}

// remoteIovec is struct iovec of an address that is not a pointer here.
type remoteIovec struct{ base, len uint64 }

func transfer(call uintptr, addr uint64, p []byte) error {
	if len(p) == 0 {
		return nil
	}
	local := unix.Iovec{Base: unsafe.SliceData(p)}
	local.SetLen(len(p))
	remote := remoteIovec{addr, uint64(len(p))}
	n, _, errno := unix.Syscall6(call, uintptr(unix.Getpid()), uintptr(unsafe.Pointer(&local)), 1, uintptr(unsafe.Pointer(&remote)), 1, 0)
	switch {
	case errno != 0:
		return errno
	case n != uintptr(len(p)):
		return syscall.EFAULT
	}
	return nil
}
