package guest

import "golang.org/x/sys/unix"

// Publish is what the device asks of memory that can store a completion with one
// call: the last byte of p, by which the program knows that the rest is there,
// goes last. The kernel copies one range after the other, and amd64 shows stores
// in the order in which they are made. (Other architectures do not, and have two
// calls.)
func (m *memory) Publish(addr uint64, p []byte) error {
	last := len(p) - 1
	if last < 1 {
		return m.Write(addr, p)
	}
	local := [1]unix.Iovec{{Base: &p[0]}}
	local[0].SetLen(len(p))
	remote := [2]unix.RemoteIovec{{Base: uintptr(addr), Len: last}, {Base: uintptr(addr) + uintptr(last), Len: 1}}
	n, err := unix.ProcessVMWritev(int(m.tid.Load()), local[:], remote[:], 0)
	if err == nil && n == len(p) {
		return nil
	}
	// Interrupted, another thread to name, or bad memory.
	if err := m.Write(addr, p[:last]); err != nil {
		return err
	}
	return m.Write(addr+uint64(last), p[last:])
}
