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
