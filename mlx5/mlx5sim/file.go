package mlx5sim

import (
	"syscall"

	"github.com/rrppcc-go/rrppcc/internal/kernel"
)

var _ kernel.File = (*file)(nil)

// Commands in an mmap offset, enum mlx5_ib_mmap_cmd: page number bits 8..15.
const (
	mmapRegularPage = 0
	mmapWCPage      = 2
	mmapNCPage      = 3
)

// Mmap implements kernel.File. Only UAR pages can be mapped; the clock pages
// and everything else answer EINVAL, as on a device without them.
func (f *file) Mmap(offset int64, length int, prot kernel.Prot) ([]byte, error) {
	f.dev.fab.mu.Lock()
	defer f.dev.fab.mu.Unlock()
	if f.closed {
		return nil, syscall.EBADF
	}
	if f.dev.closed {
		return nil, syscall.EIO
	}
	if !f.ready || length != pageSize || prot&^(kernel.ProtRead|kernel.ProtWrite) != 0 || prot == 0 {
		return nil, syscall.EINVAL
	}
	u := f.uarAt(offset)
	if u == nil {
		return nil, syscall.EINVAL
	}
	if u.mem == nil {
		mem, err := allocPage()
		if err != nil {
			return nil, syscall.ENOMEM
		}
		u.mem = mem[:pageSize:pageSize]
	}
	u.maps++
	return u.mem, nil
}

// uarAt finds the living UAR of a mapping offset. A static UAR page may be
// mapped by any of three commands, which differ in caching alone.
func (f *file) uarAt(offset int64) *uar {
	if offset < 0 || offset%pageSize != 0 {
		return nil
	}
	switch page := offset / pageSize; page >> 8 {
	case mmapWCPage, mmapNCPage:
		offset = (page & 0xff) * pageSize
	}
	for _, u := range f.uars {
		if u.offset == offset && !u.dead {
			return u
		}
	}
	return nil
}

// Munmap implements kernel.File. It works after Close, as munmap does.
func (f *file) Munmap(mem []byte) error {
	f.dev.fab.mu.Lock()
	defer f.dev.fab.mu.Unlock()
	if len(mem) != pageSize {
		return syscall.EINVAL
	}
	for _, u := range f.uars {
		if u.maps > 0 && &u.mem[0] == &mem[0] {
			u.maps--
			return f.reap(u)
		}
	}
	return syscall.EINVAL
}

// Events implements kernel.File.
func (f *file) Events(fd int32) (kernel.EventFile, error) {
	f.dev.fab.mu.Lock()
	defer f.dev.fab.mu.Unlock()
	e := f.events[fd]
	if f.closed || e == nil || e.taken {
		return nil, syscall.EBADF
	}
	e.taken = true
	return e, nil
}

// Close implements kernel.File. UAR mappings stay valid until Munmap; event
// files that are still open read EIO once they are drained.
func (f *file) Close() error {
	f.dev.fab.mu.Lock()
	defer f.dev.fab.mu.Unlock()
	if f.closed {
		return syscall.EBADF
	}
	f.closed = true
	delete(f.dev.files, f)
	f.destroyAll()
	f.dropUARs()
	for _, e := range f.events {
		if e.sink != nil {
			e.close() // the program is gone, or wants nothing more
			continue
		}
		e.end()
	}
	return nil
}
