package msgbuf

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"sync"
	"syscall"
	"testing"
)

func TestAllocServesEverySizeClass(t *testing.T) {
	p, _ := newTestPool(t, Local)
	for n := 1; n <= 128<<20; n *= 2 {
		for _, n := range []int{n - 1, n, n + 1} {
			b := mustAlloc(t, p, n)
			if b.Len() != n || b.Cap() < max(n, 64) || len(b.Bytes()) != n || len(b.Full()) != b.Cap() {
				t.Fatalf("alloc %d: len %d, cap %d, %d bytes", n, b.Len(), b.Cap(), len(b.Bytes()))
			}
			if b.Addr()%64 != 0 || b.Addr() != uint64(addrOf(b.Full())) {
				t.Fatalf("alloc %d: address %#x", n, b.Addr())
			}
			b.Full()[0], b.Full()[b.Cap()-1] = 1, 1
			b.Free()
		}
	}
}

func TestAllocServesMaxSizeAndNoMore(t *testing.T) {
	p, _ := newTestPool(t, Local)
	b := mustAlloc(t, p, MaxSize)
	b.Full()[0], b.Full()[MaxSize-1] = 1, 1
	b.Free()
	for _, n := range []int{-1, MaxSize + 1} {
		if _, err := p.Alloc(n); !errors.Is(err, ErrTooLarge) {
			t.Errorf("alloc %d: %v", n, err)
		}
	}
}

func TestLargeBufferPinsLittleMoreThanItsSize(t *testing.T) {
	p, d := newTestPool(t, Local)
	b := mustAlloc(t, p, 65<<20+1)
	if got := d.bytes.Load(); got != 66<<20 {
		t.Errorf("%d bytes registered", got)
	}
	b.Free()
	// The region is used again for a similar size, not for a much smaller one.
	mustAlloc(t, p, 60<<20).Free()
	if n := d.calls.Load(); n != 1 {
		t.Errorf("%d registrations", n)
	}
	mustAlloc(t, p, 40<<20).Free()
	if n := d.calls.Load(); n != 2 {
		t.Errorf("%d registrations", n)
	}
}

func TestAllocFreeDoesNotAllocate(t *testing.T) {
	for _, n := range []int{0, 64, 100, 4 << 10, 1 << 20, 3 << 20, 40 << 20} {
		p, _ := newTestPool(t, Local)
		var bufs [16]Buf
		round := func() {
			for i := range bufs {
				bufs[i] = mustAlloc(t, p, n)
			}
			for i, b := range bufs {
				if i%2 == 0 {
					b.Free()
				} else {
					p.FreeLocal(b)
				}
			}
		}
		round()
		if a := testing.AllocsPerRun(50, round); a != 0 {
			t.Errorf("size %d: %v allocations per 16 buffers", n, a)
		}
	}
}

func TestKeysFollowTheRegionAndTheAccess(t *testing.T) {
	p, d := newTestPool(t, Local)
	b := mustAlloc(t, p, 10)
	if b.Registrar() != Registrar(d) || (Buf{}).Registrar() != nil {
		t.Error("wrong registrar")
	}
	if b.LKey() != 1 || b.RKey() != 0 {
		t.Errorf("local: keys %#x %#x", b.LKey(), b.RKey())
	}
	b.Free()
	p, _ = newTestPool(t, RemoteRead)
	b = mustAlloc(t, p, 10)
	c := mustAlloc(t, p, 2<<20)
	if b.LKey() != 1 || b.RKey() != 1|1<<31 || c.LKey() != 2 || c.RKey() != 2|1<<31 {
		t.Errorf("remote-read: keys %#x %#x, %#x %#x", b.LKey(), b.RKey(), c.LKey(), c.RKey())
	}
	b.Free()
	c.Free()
}

func TestFreedBlocksMergeToALargeOne(t *testing.T) {
	const limit = 64 << 20
	p, _ := newTestPool(t, Local, WithMaxBytes(limit))
	rng := rand.New(rand.NewPCG(1, 2))
	for round := range 3 {
		var bufs []Buf
		for {
			b, err := p.Alloc(rng.IntN(200 << 10))
			if errors.Is(err, ErrNoMemory) {
				break
			}
			if err != nil {
				t.Fatal(err)
			}
			bufs = append(bufs, b)
		}
		// Random sizes in powers of two waste less than half, and the buddies
		// little more, so most of the pool was in use.
		if s := p.Stats(); s.UsedBytes < limit*8/10 {
			t.Errorf("round %d: full at %d of %d bytes", round, s.UsedBytes, int64(limit))
		}
		rng.Shuffle(len(bufs), func(i, j int) { bufs[i], bufs[j] = bufs[j], bufs[i] })
		for _, b := range bufs {
			b.Free()
		}
		b := mustAlloc(t, p, maxBlock)
		b.Free()
	}
}

func TestFreeRegionsAreGivenBack(t *testing.T) {
	p, d := newTestPool(t, Local)
	var bufs []Buf
	for range 16 {
		bufs = append(bufs, mustAlloc(t, p, 2<<20))
	}
	if s := p.Stats(); s.Regions < 4 || s.Bytes != d.bytes.Load() || int64(s.Regions) != d.regions.Load() {
		t.Fatalf("%+v", s)
	}
	for _, b := range bufs {
		b.Free()
	}
	held := d.regions.Load()
	p.Collect()
	if n := d.regions.Load(); n != held {
		t.Errorf("%d regions right after use, %d before", n, held)
	}
	p.Collect()
	p.Collect()
	if s := p.Stats(); s.Regions != 1 || s.InUse != 0 || s.UsedBytes != 0 || d.regions.Load() != 1 {
		t.Errorf("after free: %+v, %d registered", s, d.regions.Load())
	}
	if err := p.Trim(); err != nil {
		t.Fatal(err)
	}
	if s := p.Stats(); s != (Stats{}) || d.regions.Load() != 0 {
		t.Errorf("after trim: %+v, %d registered", s, d.regions.Load())
	}
	mustAlloc(t, p, 1).Free()
}

func TestCollectMergesWhatWasNotNeeded(t *testing.T) {
	p, d := newTestPool(t, Local)
	var bufs []Buf
	for range 8 << 20 >> 10 {
		bufs = append(bufs, mustAlloc(t, p, 1<<10))
	}
	for _, b := range bufs {
		b.Free()
	}
	for range 3 {
		p.Collect()
	}
	if n := d.regions.Load(); n != 1 {
		t.Errorf("%d regions", n)
	}
	if c := p.cache[10].count; c != 0 {
		t.Errorf("%d idle blocks stay cached", c)
	}
}

func TestKeepFreeKeepsThatManyRegions(t *testing.T) {
	p, d := newTestPool(t, Local, WithKeepFree(3))
	var bufs []Buf
	for range 5 {
		bufs = append(bufs, mustAlloc(t, p, 40<<20))
	}
	for _, b := range bufs {
		b.Free()
	}
	p.Collect()
	p.Collect()
	if n := d.regions.Load(); n != 3 {
		t.Errorf("%d regions", n)
	}
}

func TestSteadyUseKeepsItsRegions(t *testing.T) {
	p, d := newTestPool(t, Local)
	var bufs [16]Buf
	for i := range 100_000 {
		b := &bufs[i%len(bufs)]
		b.Free()
		*b = mustAlloc(t, p, 1<<20)
		if i%100 == 0 {
			p.Collect()
		}
	}
	if n := d.calls.Load(); n > 5 {
		t.Errorf("%d registrations", n)
	}
	for _, b := range bufs {
		b.Free()
	}
}

func TestAllocCollectsByItselfNowAndThen(t *testing.T) {
	p, d := newTestPool(t, Local)
	a, b := mustAlloc(t, p, 40<<20), mustAlloc(t, p, 40<<20)
	a.Free()
	b.Free()
	for range 3 * collectEvery {
		p.FreeLocal(mustAlloc(t, p, 64))
	}
	if n := d.regions.Load(); n != 2 {
		t.Errorf("%d regions", n)
	}
}

func TestLargeRegionsOfOtherSizesDoNotPileUp(t *testing.T) {
	p, d := newTestPool(t, Local)
	for n := 40 << 20; n < 1<<30; n *= 2 {
		mustAlloc(t, p, n).Free()
		if n := d.regions.Load(); n > 2 {
			t.Errorf("%d regions", n)
		}
	}
}

func TestLimitStopsGrowthAndFreeRegionsMakeRoom(t *testing.T) {
	p, d := newTestPool(t, Local, WithMaxBytes(64<<20))
	b := mustAlloc(t, p, 60<<20)
	if _, err := p.Alloc(6 << 20); !errors.Is(err, ErrNoMemory) {
		t.Fatal(err)
	}
	small := mustAlloc(t, p, 64) // 2 MiB fit
	b.Free()
	// The free region of 60 MiB serves nobody here and must go.
	c := mustAlloc(t, p, 16<<20)
	if n := d.bytes.Load(); n > 64<<20 {
		t.Errorf("%d bytes", n)
	}
	small.Free()
	c.Free()
}

func TestRegistrarFailureIsWrappedAndLeaksNothing(t *testing.T) {
	p, d := newTestPool(t, Local)
	d.failWith, d.failOver = fmt.Errorf("no: %w", syscall.ENOMEM), 0
	for _, n := range []int{0, 1 << 20, 20 << 20, 100 << 20} {
		before := mappedBytes.Load()
		b, err := p.Alloc(n)
		if !errors.Is(err, syscall.ENOMEM) || b.Valid() || !b.IsNil() {
			t.Errorf("alloc %d: %v, %v", n, b, err)
		}
		if got := mappedBytes.Load(); got != before {
			t.Errorf("alloc %d: %d bytes stay mapped", n, got-before)
		}
	}
	if s := p.Stats(); s != (Stats{}) {
		t.Errorf("%+v", s)
	}
	d.failWith = nil
	mustAlloc(t, p, 1).Free()
}

func TestGrowsByLessWhereTheDeviceHasNoRoomForMore(t *testing.T) {
	p, d := newTestPool(t, Local)
	d.failWith, d.failOver = syscall.ENOMEM, 4<<20
	var bufs []Buf
	for range 20 {
		bufs = append(bufs, mustAlloc(t, p, 1<<20))
	}
	for _, b := range bufs {
		b.Free()
	}
}

func TestRegionThatDoesNotDeregisterStaysUsable(t *testing.T) {
	p, d := newTestPool(t, Local)
	b := mustAlloc(t, p, 64)
	b.Free()
	d.stuck = syscall.EBUSY
	if err := p.Trim(); !errors.Is(err, syscall.EBUSY) {
		t.Fatal(err)
	}
	b = mustAlloc(t, p, 64)
	b.Bytes()[0] = 1
	b.Free()
	if err := p.Close(); !errors.Is(err, syscall.EBUSY) {
		t.Fatal(err)
	}
	d.stuck = nil // the cleanup closes again and must find nothing left
	if n := d.calls.Load(); n != 1 {
		t.Errorf("%d registrations", n)
	}
}

func TestCloseNamesWhatIsOutAndFreesNothingInUse(t *testing.T) {
	p, d := newTestPool(t, Local)
	a, b := mustAlloc(t, p, 100), mustAlloc(t, p, 40<<20)
	mustAlloc(t, p, 4<<20).Free()
	var inUse *InUseError
	if err := p.Close(); !errors.As(err, &inUse) || inUse.Bufs != 2 || inUse.Bytes != 128+40<<20 {
		t.Fatal(err)
	}
	a.Bytes()[99], b.Bytes()[0] = 1, 1
	if a.LKey() == 0 || d.regions.Load() != 2 {
		t.Errorf("lkey %d, %d regions", a.LKey(), d.regions.Load())
	}
	if _, err := p.Alloc(1); !errors.Is(err, ErrClosed) {
		t.Errorf("alloc after close: %v", err)
	}
	a.Free()
	b.Free()
	if err := p.Close(); err != nil {
		t.Error(err)
	}
	if _, err := p.Alloc(1); !errors.Is(err, ErrClosed) {
		t.Errorf("alloc after close: %v", err)
	}
}

func TestFreeFromManyGoroutines(t *testing.T) {
	p, _ := newTestPool(t, Local)
	work := make(chan Buf, 64)
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for b := range work {
				for _, v := range b.Bytes() {
					if v != byte(b.Len()) {
						t.Errorf("buffer of %d bytes holds %d", b.Len(), v)
						break
					}
				}
				b.Free()
				if b.Bytes() != nil {
					t.Error("freed buffer has bytes")
				}
			}
		})
	}
	rng := rand.New(rand.NewPCG(3, 4))
	for range 20_000 {
		n := rng.IntN(3000)
		b := mustAlloc(t, p, n)
		for i := range b.Bytes() {
			b.Bytes()[i] = byte(n)
		}
		work <- b
	}
	close(work)
	wg.Wait()
	p.Collect()
	if s := p.Stats(); s.InUse != 0 {
		t.Errorf("%+v", s)
	}
}

func TestSharedPoolServesManyGoroutines(t *testing.T) {
	d := new(fakeDevice)
	p := NewSharedPool(d, RemoteRead)
	var wg sync.WaitGroup
	for g := range 8 {
		wg.Go(func() {
			var last Buf
			for i := range 2000 {
				b, err := p.Alloc(i)
				if err != nil {
					t.Error(err)
					return
				}
				for j := range b.Bytes() {
					b.Bytes()[j] = byte(g)
				}
				last.Free()
				last = b
			}
			for _, v := range last.Bytes() {
				if v != byte(g) {
					t.Error("another goroutine wrote here")
					break
				}
			}
			last.Free()
		})
	}
	wg.Wait()
	p.Collect()
	if s := p.Stats(); s.InUse != 0 {
		t.Errorf("%+v", s)
	}
	if err := p.Trim(); err != nil {
		t.Error(err)
	}
	if err := p.Close(); err != nil || d.regions.Load() != 0 {
		t.Error(err, d.regions.Load())
	}
}

func TestLackOfHugePagesIsLoggedOnce(t *testing.T) {
	hugePageLog = sync.Once{}
	_, noHuge, err := func() ([]byte, error, error) {
		mem, noHuge, err := mapMemory(hugePage)
		if err == nil {
			err = unmapMemory(mem)
		}
		return nil, noHuge, err
	}()
	if err != nil {
		t.Fatal(err)
	}
	if noHuge == nil {
		t.Skip("this machine has huge pages")
	}
	var out bytes.Buffer
	log := slog.New(slog.NewTextHandler(&out, nil))
	silent, _ := newTestPool(t, Local)
	mustAlloc(t, silent, 1).Free() // says nothing, and does not use the line up
	for range 2 {
		p, _ := newTestPool(t, Local, WithLogger(log))
		mustAlloc(t, p, 1).Free()
		mustAlloc(t, p, 4<<20).Free()
	}
	if n := bytes.Count(out.Bytes(), []byte("huge pages")); n == 0 || bytes.Count(out.Bytes(), []byte("\n")) != 1 {
		t.Errorf("logged: %s", out.String())
	}
}
