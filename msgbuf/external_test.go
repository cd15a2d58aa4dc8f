package msgbuf

import (
	"errors"
	"strings"
	"sync"
	"testing"
)

func newTestExternal(t *testing.T, access Access) (*External, *fakeDevice) {
	t.Helper()
	mem, _, err := mapMemory(hugePage)
	if err != nil {
		t.Fatal(err)
	}
	d := new(fakeDevice)
	x, err := NewExternal(d, mem, access)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := x.Close(); err != nil {
			t.Error(err)
		}
		if d.regions.Load() != 0 {
			t.Error("stays registered")
		}
		unmapMemory(mem)
	})
	return x, d
}

func TestViewNamesItsPartOfTheMemory(t *testing.T) {
	x, d := newTestExternal(t, RemoteRead)
	b, err := x.View(4096, 100)
	if err != nil {
		t.Fatal(err)
	}
	copy(b.Bytes(), "hello")
	if string(x.Bytes()[4096:4101]) != "hello" || b.Len() != 100 || b.Cap() != 100 || b.Addr() != uint64(addrOf(x.Bytes()))+4096 ||
		b.LKey() == 0 || b.RKey() == 0 || b.Registrar() != Registrar(d) || cap(b.Bytes()) != 100 {
		t.Errorf("%+v", b.b)
	}
	if err := b.SetLen(101); !errors.Is(err, ErrCapacity) {
		t.Error(err)
	}
	b.Free()
	if string(x.Bytes()[4096:4101]) != "hello" || b.Valid() || b.Bytes() != nil || b.Addr() != 0 || b.RKey() != 0 {
		t.Error("Free did more or less than to drop the view")
	}
	if msg := catch(b.Free); !strings.Contains(msg, "freed twice") {
		t.Errorf("panic %q", msg)
	}
	again, err := x.View(0, 1)
	if err != nil || again.b != b.b || b.Valid() || !again.Valid() {
		t.Error("a stale view lives again")
	}
	again.Free()
}

func TestViewOfLocalMemoryHasNoRemoteKey(t *testing.T) {
	x, _ := newTestExternal(t, Local)
	b, err := x.View(0, len(x.Bytes()))
	if err != nil || b.RKey() != 0 || b.LKey() == 0 {
		t.Error(err, b.RKey())
	}
	b.Free()
}

func TestViewStaysWithinTheMemory(t *testing.T) {
	x, _ := newTestExternal(t, Local)
	size := len(x.Bytes())
	for _, v := range [][2]int{{-1, 1}, {0, -1}, {0, size + 1}, {size, 1}, {size + 1, 0}, {1, size}, {1 << 62, 1 << 62}} {
		if b, err := x.View(v[0], v[1]); !errors.Is(err, ErrCapacity) || !b.IsNil() {
			t.Errorf("view %v: %v", v, err)
		}
	}
	b, err := x.View(size, 0)
	if err != nil {
		t.Error(err)
	}
	b.Free()
}

func TestExternalStaysRegisteredWhileViewsAreOut(t *testing.T) {
	x, d := newTestExternal(t, Local)
	b, _ := x.View(0, 100)
	var inUse *InUseError
	if err := x.Close(); !errors.As(err, &inUse) || inUse.Bufs != 1 || inUse.Bytes != 100 || d.regions.Load() != 1 {
		t.Errorf("%v", err)
	}
	if _, err := x.View(0, 1); !errors.Is(err, ErrClosed) {
		t.Error(err)
	}
	if !b.Valid() {
		t.Error("the view ended")
	}
	b.Free()
}

func TestExternalOfNothingIsRefused(t *testing.T) {
	if _, err := NewExternal(new(fakeDevice), nil, Local); !errors.Is(err, ErrCapacity) {
		t.Error(err)
	}
	d := &fakeDevice{failWith: errors.New("no")}
	if _, err := NewExternal(d, make([]byte, 1), Local); !errors.Is(err, d.failWith) {
		t.Error(err)
	}
}

func TestViewsComeAndGoOnAllGoroutinesWithoutAllocation(t *testing.T) {
	x, _ := newTestExternal(t, Local)
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for i := range 1000 {
				b, err := x.View(i, 64)
				if err != nil {
					t.Error(err)
					return
				}
				b.Free()
			}
		})
	}
	wg.Wait()
	if n := testing.AllocsPerRun(100, func() {
		b, _ := x.View(0, 64)
		b.Free()
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func TestViewsOfUnmappedMemoryHaveNoBytes(t *testing.T) {
	_, d := newTestExternal(t, Local) // which registers
	mem, _, err := mapMemory(hugePage)
	if err != nil {
		t.Fatal(err)
	}
	defer unmapMemory(mem)
	r, err := d.Register(mem, RemoteRead)
	if err != nil {
		t.Fatal(err)
	}
	x, err := NewUnmapped(d, r, 0, 10_000, RemoteRead)
	if err != nil {
		t.Fatal(err)
	}
	if x.Bytes() != nil || x.Len() != 10_000 {
		t.Errorf("%d bytes, %d of them here", x.Len(), len(x.Bytes()))
	}
	b, err := x.View(100, 9900)
	if err != nil {
		t.Fatal(err)
	}
	if b.Bytes() != nil || b.Full() != nil || b.Mapped() || b.Len() != 9900 || b.Cap() != 9900 || b.Addr() != 100 || b.RKey() != r.RKey() || b.LKey() != r.LKey() || b.Access() != RemoteRead {
		t.Errorf("%+v", b.b)
	}
	if err := b.SetLen(5); err != nil || b.Len() != 5 {
		t.Error(err)
	}
	if err := b.SetLen(9901); !errors.Is(err, ErrCapacity) {
		t.Error(err)
	}
	for _, part := range [][2]int{{0, 10_001}, {10_001, 0}, {-1, 1}, {0, -1}} {
		if _, err := x.View(part[0], part[1]); !errors.Is(err, ErrCapacity) {
			t.Errorf("%d bytes at %d: %v", part[1], part[0], err)
		}
	}
	var inUse *InUseError
	if err := x.Close(); !errors.As(err, &inUse) || inUse.Bufs != 1 || inUse.Bytes != 9900 {
		t.Error(err)
	}
	b.Free()
	if b.Cap() != 0 || b.Addr() != 0 {
		t.Error("the view outlives Free")
	}
	if err := x.Close(); err != nil {
		t.Error(err)
	}
	for _, bad := range []struct {
		addr uint64
		n    int
	}{{0, 0}, {0, -1}, {1<<64 - 10, 11}} {
		if _, err := NewUnmapped(d, r, bad.addr, bad.n, Local); !errors.Is(err, ErrCapacity) {
			t.Errorf("%+v: %v", bad, err)
		}
	}
}
