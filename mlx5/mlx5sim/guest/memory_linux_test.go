//go:build amd64 || arm64

package guest

import (
	"bytes"
	"fmt"
	"os"
	"runtime"
	"strings"
	"sync"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
)

// ownMemory is this process as a program; the calling goroutine keeps its
// thread.
func ownMemory(t *testing.T) *memory {
	t.Helper()
	runtime.LockOSThread()
	t.Cleanup(runtime.UnlockOSThread)
	m := newMemory(os.Getpid(), unix.Gettid())
	var b [1]byte
	if err := m.Read(uint64(uintptr(unsafe.Pointer(&mapped(t, 1)[0]))), b[:]); err != nil {
		t.Skip("this system forbids process_vm_readv")
	}
	return m
}

// mapped returns n pages whose successor is not mapped.
func mapped(t *testing.T, n int) []byte {
	t.Helper()
	page := os.Getpagesize()
	mem, err := unix.Mmap(-1, 0, (n+1)*page, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Munmap(mem) })
	if err := unix.Mprotect(mem[n*page:], unix.PROT_NONE); err != nil {
		t.Fatal(err)
	}
	return mem[:n*page]
}

func addrOf(p []byte) uint64 { return uint64(uintptr(unsafe.Pointer(unsafe.SliceData(p)))) }

func TestMemoryIsCopiedBothWays(t *testing.T) {
	m, theirs := ownMemory(t), mapped(t, 3)
	want := bytes.Repeat([]byte("rdma"), len(theirs)/4)
	if err := m.Write(addrOf(theirs), want); err != nil || !bytes.Equal(theirs, want) {
		t.Fatalf("write: %v", err)
	}
	got := make([]byte, len(theirs))
	if err := m.Read(addrOf(theirs), got); err != nil || !bytes.Equal(got, want) {
		t.Fatalf("read: %v", err)
	}
	if err := m.Read(0, nil); err != nil {
		t.Error("nothing is always there:", err)
	}
}

func TestBadAddressesAreErrors(t *testing.T) {
	m, theirs := ownMemory(t), mapped(t, 2)
	end := addrOf(theirs) + uint64(len(theirs))
	var two [2]byte
	for _, addr := range []uint64{0, 1, end, end - 1, ^uint64(0), 1 << 63, 1<<47 - 4096} {
		if m.Read(addr, two[:]) == nil {
			t.Errorf("%#x could be read", addr)
		}
		if m.Write(addr, two[:]) == nil {
			t.Errorf("%#x could be written", addr)
		}
		if m.Mapped(addr, 2) {
			t.Errorf("%#x is said to be mapped", addr)
		}
	}
	gone := newMemory(1<<22+1, 1<<22+1) // above any process id
	if gone.Read(addrOf(theirs), two[:]) == nil {
		t.Error("the memory of no process could be read")
	}
}

func TestMappedLooksAtEveryPage(t *testing.T) {
	m, theirs := ownMemory(t), mapped(t, 20)
	page := os.Getpagesize()
	all := uint64(len(theirs))
	for _, tt := range []struct {
		addr, n uint64
		want    bool
	}{
		{addrOf(theirs), all, true}, {addrOf(theirs) + 5, all - 5, true}, {addrOf(theirs), all + 1, false},
		{addrOf(theirs), 0, true}, {addrOf(theirs), ^uint64(0), false}, {addrOf(theirs) + all - 1, 1, true}, {addrOf(theirs) + all - 1, 2, false},
	} {
		if got := m.Mapped(tt.addr, tt.n); got != tt.want {
			t.Errorf("%#x, %d bytes: %v", tt.addr-addrOf(theirs), tt.n, got)
		}
	}
	if err := unix.Mprotect(theirs[10*page:11*page], unix.PROT_NONE); err != nil {
		t.Fatal(err)
	}
	if m.Mapped(addrOf(theirs), all) || !m.Mapped(addrOf(theirs), uint64(10*page)) || !m.Mapped(addrOf(theirs[11*page:]), uint64(9*page)) {
		t.Error("a page in the middle that cannot be read is not noticed")
	}
}

func TestPathEndsWhereTheMappingEnds(t *testing.T) {
	m, theirs := ownMemory(t), mapped(t, 2)
	put := func(at int, s string) uint64 { return addrOf(theirs[at:][:copy(theirs[at:], s)]) }
	last := len(theirs)
	other := mapped(t, 1)
	copy(other[len(other)-20:], strings.Repeat("y", 20))
	unended := addrOf(other[len(other)-20:])
	for _, tt := range []struct {
		addr uint64
		want string
		err  error
	}{
		{put(0, "/dev\x00"), "/dev", nil},
		{put(100, "\x00"), "", nil},
		{put(last-6, "/proc\x00"), "/proc", nil},
		{put(os.Getpagesize()-300, strings.Repeat("x", 500)+"\x00"), strings.Repeat("x", 500), nil},
		{unended, "", unix.EFAULT},
		{0, "", unix.EFAULT},
		{^uint64(0), "", unix.EFAULT},
	} {
		if got, err := m.readPath(tt.addr); got != tt.want || err != tt.err {
			t.Errorf("%.20q, %v; want %.20q, %v", got, err, tt.want, tt.err)
		}
	}
	for i := range theirs {
		theirs[i] = 'z'
	}
	if _, err := m.readPath(addrOf(theirs)); err != unix.ENAMETOOLONG {
		t.Errorf("a path without end: %v", err)
	}
}

// The iovecs are on the stack, which moves while others of the process grow
// theirs and the collector runs.
func TestCopiesSurviveMovingStacks(t *testing.T) {
	m, theirs := ownMemory(t), mapped(t, 1)
	copy(theirs, "0123456789abcdef")
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for i := range 50 {
				done := make(chan struct{})
				go func() {
					defer close(done)
					if got := deep(m, addrOf(theirs), i*10); string(got[:]) != "0123456789abcdef" {
						t.Errorf("read %q", got)
					}
				}()
				<-done
				if i%10 == 0 {
					runtime.GC()
				}
			}
		})
	}
	wg.Wait()
}

//go:noinline
func deep(m *memory, addr uint64, n int) (got [16]byte) {
	var pad [128]byte
	if n > 0 {
		pad[n%128] = 1
		return deep(m, addr, n-1)
	}
	m.Read(addr, got[:])
	return got
}

func TestMemoryFollowsToAnotherThread(t *testing.T) {
	m := ownMemory(t)
	theirs := mapped(t, 1)
	tid := make(chan int)
	go func() { // a thread that ends
		runtime.LockOSThread()
		tid <- unix.Gettid()
	}()
	gone := <-tid
	for hasMemory(gone) { // until the kernel has buried it
		runtime.Gosched()
	}
	m.move(os.Getpid(), gone)
	var b [4]byte
	if err := m.Read(addrOf(theirs), b[:]); err != nil {
		t.Errorf("the process has other threads: %v", err)
	}
}

func TestCopyDoesNotAllocate(t *testing.T) {
	m, theirs := ownMemory(t), mapped(t, 1)
	buf := make([]byte, 64)
	if n := testing.AllocsPerRun(100, func() { m.Read(addrOf(theirs), buf); m.Write(addrOf(theirs), buf) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func TestParseMapping(t *testing.T) {
	for line, want := range map[string]struct {
		lo, hi uint64
		rights string
		ok     bool
	}{
		"7f00-8000 rw-p 00000000 00:00 0 [heap]": {0x7f00, 0x8000, "rw-p", true},
		"7f00-8000 ---s 00000000 00:00 0":        {0x7f00, 0x8000, "---s", true},
		"":                                       {}, "7f00": {}, "7f00-": {}, "x-y rw-p 0": {}, "7f00-8000": {}, "7f00-8000 ": {}, "7f00-8000 rw": {}, "-8000 rw-p 0": {},
	} {
		lo, hi, rights, ok := parseMapping([]byte(line))
		if ok != want.ok || ok && (lo != want.lo || hi != want.hi || string(rights) != want.rights) {
			t.Errorf("%q: %x %x %q %v", line, lo, hi, rights, ok)
		}
	}
}

func TestWritableIsMoreThanMapped(t *testing.T) {
	m, theirs := ownMemory(t), mapped(t, 4)
	page := os.Getpagesize()
	if err := unix.Mprotect(theirs[2*page:3*page], unix.PROT_READ); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		from, n int
		want    bool
	}{{0, 2 * page, true}, {0, 2*page + 1, false}, {2 * page, 1, false}, {3 * page, page, true}, {3 * page, page + 1, false}, {2 * page, 0, true}} {
		if got := m.Writable(addrOf(theirs)+uint64(tt.from), uint64(tt.n)); got != tt.want {
			t.Errorf("%d bytes from %d: %v", tt.n, tt.from, got)
		}
	}
	if !m.Mapped(addrOf(theirs), uint64(len(theirs))) || m.Writable(addrOf(theirs), ^uint64(0)) {
		t.Error("what is read-only is mapped, and nothing wraps around")
	}
}

func BenchmarkRead(b *testing.B) {
	m := newMemory(os.Getpid(), os.Getpid())
	mem, err := unix.Mmap(-1, 0, 1<<16, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		b.Fatal(err)
	}
	defer unix.Munmap(mem)
	for _, n := range []int{64, 4096, 65536} {
		p := make([]byte, n)
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			b.SetBytes(int64(n))
			for b.Loop() {
				if m.Read(addrOf(mem), p) != nil {
					b.Fatal("read")
				}
			}
		})
	}
}
