package mlx5sim

import (
	"context"
	"errors"
	"io/fs"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"

	"github.com/rrppcc-go/rrppcc/internal/kernel"
)

// channel opens a completion channel and a CQ on it.
func (u *user) channelCQ(index uint32) (kernel.EventFile, *cq) {
	u.t.Helper()
	fd := u.compChannel()
	e, err := u.f.Events(int32(fd))
	if err != nil {
		u.t.Fatal(err)
	}
	return e, u.f.handles[u.createCQ(index, obj(attrCQChannel, fd))].(*cq)
}

// locked runs f as the engine runs.
func (u *user) locked(f func()) {
	u.d.fab.mu.Lock()
	defer u.d.fab.mu.Unlock()
	f()
}

func TestReadEventParksUntilAnEventCloseOrContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		u := newUser(t)
		u.getContext()
		_, index := u.allocUAR()
		e, c := u.channelCQ(index)
		type result struct {
			n   int
			err error
			rec [8]byte
		}
		read := func(ctx context.Context) chan result {
			ch := make(chan result, 1)
			go func() {
				var r result
				r.n, r.err = e.ReadEvent(ctx, r.rec[:])
				ch <- r
			}()
			synctest.Wait()
			return ch
		}
		a := read(t.Context())
		if len(a) != 0 {
			t.Fatalf("an event that nobody wrote: %+v", <-a)
		}
		u.locked(c.notify)
		if r := <-a; r.n != 8 || r.err != nil || le.Uint64(r.rec[:]) != 0xc0 {
			t.Errorf("got %+v, want the CQ's user handle", r)
		}

		// Two readers, two events: one each.
		b1, b2 := read(t.Context()), read(t.Context())
		u.locked(func() { c.notify(); c.notify() })
		if r1, r2 := <-b1, <-b2; r1.err != nil || r2.err != nil {
			t.Errorf("%v, %v", r1.err, r2.err)
		}

		ctx, cancel := context.WithCancel(t.Context())
		d1, d2 := read(ctx), read(t.Context())
		cancel()
		if r := <-d1; r.err != context.Canceled {
			t.Errorf("got %v", r.err)
		}
		d3 := read(t.Context())
		if err := e.Close(); err != nil {
			t.Fatal(err)
		}
		if r2, r3 := <-d2, <-d3; r2.err != fs.ErrClosed || r3.err != fs.ErrClosed {
			t.Errorf("after Close: %v, %v", r2.err, r3.err)
		}
		if err := e.Close(); !errors.Is(err, fs.ErrClosed) {
			t.Errorf("second Close: %v", err)
		}
		u.locked(c.notify) // the CQ still names the closed channel
	})
}

func TestReadEventKeepsOrderAndRefusesShortBuffers(t *testing.T) {
	u := newUser(t)
	u.getContext()
	e := u.asyncFile()
	for i := range uint64(500) {
		u.locked(func() { u.f.raise(i, eventCommEst, nil) })
	}
	var rec [16]byte
	if _, err := e.ReadEvent(t.Context(), rec[:4]); err != syscall.EINVAL {
		t.Errorf("4-byte buffer: %v", err)
	}
	for i := range uint64(500) {
		n, err := e.ReadEvent(t.Context(), rec[:])
		if n != 16 || err != nil || le.Uint64(rec[:]) != i || le.Uint32(rec[8:]) != eventCommEst {
			t.Fatalf("event %d: %d bytes, %v, % x", i, n, err, rec)
		}
		u.locked(func() { u.f.raise(500+i, eventCommEst, nil) }) // the queue is compacted meanwhile
	}
	for i := range uint64(500) {
		if _, err := e.ReadEvent(t.Context(), rec[:]); err != nil || le.Uint64(rec[:]) != 500+i {
			t.Fatalf("event %d: %v, % x", 500+i, err, rec)
		}
	}
}

func (u *user) asyncFile() kernel.EventFile {
	u.t.Helper()
	fd := int32(dataWord(u.must(command(objAsync, 0, newID(attrAsyncFD))), 0))
	e, err := u.f.Events(fd)
	if err != nil {
		u.t.Fatal(err)
	}
	if e.FD() != fd {
		u.t.Errorf("FD %d, want %d", e.FD(), fd)
	}
	return e
}

func TestEventFilesAreBoundedAndCountDrops(t *testing.T) {
	u := newUser(t)
	u.getContext()
	u.asyncFile()
	u.locked(func() {
		for range maxEvents + 3 {
			u.f.raise(0, eventPortErr, nil)
		}
	})
	if n := u.d.Stats().Drops.Events; n != 3 {
		t.Errorf("%d dropped events, want 3", n)
	}
}

// TestDestroyCQTakesBackUnreadEvents checks that the answer counts the events
// that were read, and that none of a dead CQ is left to read.
func TestDestroyCQTakesBackUnreadEvents(t *testing.T) {
	u := newUser(t)
	u.getContext()
	_, index := u.allocUAR()
	async := u.asyncFile()
	e, c := u.channelCQ(index)
	fd := uint32(e.FD())
	other := u.f.handles[u.createCQ(index, obj(attrCQChannel, fd))].(*cq)
	other.user = 0xdd
	u.locked(func() {
		for range 3 {
			c.notify()
		}
		other.notify()
		c.notify()
		c.asyncEvent(eventCQErr)
		c.asyncEvent(eventCQErr)
	})
	var rec [16]byte
	for range 2 {
		if _, err := e.ReadEvent(t.Context(), rec[:]); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := async.ReadEvent(t.Context(), rec[:]); err != nil {
		t.Fatal(err)
	}
	resp := u.out(1, 8)
	u.must(command(objCQ, 1, resp, obj(0, c.handle)))
	if got := u.at(resp.data, 8); le.Uint32(got) != 2 || le.Uint32(got[4:]) != 1 {
		t.Errorf("reported %d completion and %d async events, want 2 and 1", le.Uint32(got), le.Uint32(got[4:]))
	}
	if _, err := e.ReadEvent(t.Context(), rec[:]); err != nil || le.Uint64(rec[:]) != 0xdd {
		t.Errorf("next event: %v, % x; want the other CQ's", err, rec)
	}
	done, cancel := context.WithCancel(t.Context())
	cancel()
	for _, f := range []kernel.EventFile{e, async} {
		if _, err := f.ReadEvent(done, rec[:]); err != context.Canceled {
			t.Errorf("an event of a dead CQ is left: %v", err)
		}
	}
}

func TestEventsHandsOutEachFileOnce(t *testing.T) {
	u := newUser(t)
	u.getContext()
	fd := int32(u.compChannel())
	if _, err := u.f.Events(fd); err != nil {
		t.Fatal(err)
	}
	for _, bad := range []int32{fd, fd + 1, 0, -1} {
		if _, err := u.f.Events(bad); err != syscall.EBADF {
			t.Errorf("Events(%d): %v", bad, err)
		}
	}
	if a, b := u.compChannel(), u.compChannel(); a == b {
		t.Errorf("two files with number %d", a)
	}
}

func TestFileCloseEndsItsEventFiles(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		u := newUser(t)
		u.getContext()
		_, index := u.allocUAR()
		e, _ := u.channelCQ(index)
		async := u.asyncFile()
		var wg sync.WaitGroup
		for _, f := range []kernel.EventFile{e, e, async} {
			wg.Go(func() {
				if _, err := f.ReadEvent(t.Context(), make([]byte, 16)); err != syscall.EIO {
					t.Errorf("got %v, want EIO", err)
				}
			})
		}
		synctest.Wait()
		if err := u.f.Close(); err != nil {
			t.Fatal(err)
		}
		wg.Wait()
		if err := e.Close(); err != nil {
			t.Error(err)
		}
	})
}

func TestClosedDeviceLooksRemoved(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		u := newUser(t)
		u.getContext()
		_, index := u.allocUAR()
		e, _ := u.channelCQ(index)
		async := u.asyncFile()
		mem, err := u.f.Mmap(0x900000, pageSize, 2)
		if err != nil {
			t.Fatal(err)
		}
		if err := u.d.Close(); err != nil {
			t.Fatal(err)
		}
		if err := u.d.Close(); err != nil {
			t.Errorf("second Close: %v", err)
		}
		var rec [16]byte
		if _, err := e.ReadEvent(t.Context(), rec[:]); err != syscall.EIO {
			t.Errorf("completion channel: %v, want EIO", err)
		}
		if _, err := async.ReadEvent(t.Context(), rec[:]); err != nil || le.Uint32(rec[8:]) != eventDeviceFatal {
			t.Errorf("async file: %v, % x; want DEVICE_FATAL", err, rec)
		}
		u.want(syscall.EIO, command(objDevice, 2, in64(attrPortNum, 1), u.out(attrPortResp, 48)))
		if _, err := u.f.Mmap(0x900000, pageSize, 2); err != syscall.EIO {
			t.Errorf("mmap: %v", err)
		}
		if _, err := u.d.Open(); err != syscall.ENODEV {
			t.Errorf("Open: %v", err)
		}
		mem[0] = 1 // mappings stay
		if err := u.f.Munmap(mem); err != nil {
			t.Error(err)
		}
		if s := u.snapshot(); s[0] != 0 || s[3]+s[4]+s[5] != 0 {
			t.Errorf("objects are left: %v", s)
		}
	})
}

func TestPushDoesNotAllocateInSteadyState(t *testing.T) {
	u := newUser(t)
	u.getContext()
	_, index := u.allocUAR()
	e, c := u.channelCQ(index)
	ctx := t.Context()
	rec := make([]byte, 8)
	if n := testing.AllocsPerRun(200, func() {
		u.d.fab.mu.Lock()
		c.notify()
		u.d.fab.mu.Unlock()
		if _, err := e.ReadEvent(ctx, rec); err != nil {
			t.Fatal(err)
		}
	}); n != 0 {
		t.Errorf("%v allocations per event", n)
	}
}
