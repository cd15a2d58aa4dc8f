package guest

import (
	"bytes"
	"os"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
)

func TestPublishStoresAll(t *testing.T) {
	mem, err := unix.Mmap(-1, 0, 8192, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Munmap(mem)
	addr := uint64(uintptr(unsafe.Pointer(&mem[0])))
	m := newMemory(os.Getpid(), os.Getpid())
	for _, n := range []int{0, 1, 2, 64, 4096, 5000} {
		p := bytes.Repeat([]byte{byte(n + 1)}, n)
		for _, off := range []uint64{0, 100, 4090} {
			if off+uint64(n) >= 8192 {
				continue
			}
			clear(mem)
			if err := m.Publish(addr+off, p); err != nil || !bytes.Equal(mem[off:off+uint64(n)], p) || mem[off+uint64(n)] != 0 {
				t.Errorf("%d bytes at %d: %v", n, off, err)
			}
		}
	}
	if unix.Mprotect(mem[4096:], unix.PROT_READ) != nil {
		t.Fatal("mprotect")
	}
	if m.Publish(addr+4096-32, make([]byte, 64)) == nil || m.Publish(addr+4096-63, make([]byte, 64)) == nil || m.Publish(8, make([]byte, 64)) == nil {
		t.Error("memory that cannot be written was")
	}
}
