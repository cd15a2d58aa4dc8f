//go:build !linux

package verbstest

import "syscall"

// foreignMemory is this process's memory without views. What is not mapped
// cannot be told here.
type foreignMemory struct{}

func (foreignMemory) View(uint64, int) []byte { return nil }

func (foreignMemory) Read(addr uint64, p []byte) error {
	if addr < smallPage {
		return syscall.EFAULT
	}
	copy(p, at(addr, len(p)))
	return nil
}

func (foreignMemory) Write(addr uint64, p []byte) error {
	if addr < smallPage {
		return syscall.EFAULT
	}
	copy(at(addr, len(p)), p)
	return nil
}

func (foreignMemory) Mapped(addr, n uint64) bool { return addr >= smallPage && addr+n >= addr }
