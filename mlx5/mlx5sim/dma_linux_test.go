package mlx5sim

import (
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
)

func TestMappedSeesHoles(t *testing.T) {
	const pages = 600 // more than one mincore call
	mem, err := unix.Mmap(-1, 0, pages*4096, unix.PROT_READ, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		t.Fatal(err)
	}
	addr := uint64(uintptr(unsafe.Pointer(&mem[0])))
	defer unix.Munmap(mem)
	d := newDirectDMA()
	if !d.Mapped(addr, pages*4096) || !d.Mapped(addr+4095, 2) {
		t.Fatal("a mapping is not mapped")
	}
	hole := unsafe.Pointer(&mem[500*4096])
	if _, _, errno := unix.Syscall(unix.SYS_MUNMAP, uintptr(hole), 4096, 0); errno != 0 {
		t.Fatal(errno)
	}
	for _, c := range []struct {
		off, n uint64
		want   bool
	}{{0, 500 * 4096, true}, {0, 500*4096 + 1, false}, {500 * 4096, 1, false}, {501 * 4096, 99 * 4096, true}, {499*4096 + 4095, 2, false}, {0, pages * 4096, false}} {
		if got := d.Mapped(addr+c.off, c.n); got != c.want {
			t.Errorf("Mapped(+%d, %d) = %v, want %v", c.off, c.n, got, c.want)
		}
	}
}
