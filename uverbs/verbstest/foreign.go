package verbstest

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/rrppcc-go/rrppcc/internal/kernel"
	"github.com/rrppcc-go/rrppcc/mlx5/mlx5sim"
	"github.com/rrppcc-go/rrppcc/uverbs"
)

// Foreign returns a backend of two simulated devices of one fabric that are
// opened as a program in another process opens them: they reach memory by
// copying alone, are told of no doorbell, and hand events to a narrow pipe.
func Foreign() Backend {
	b := simBackend("mlx5sim from outside", func() (*Pair, error) {
		f := mlx5sim.NewFabric()
		return foreignPair(
			[]mlx5sim.Option{mlx5sim.WithFabric(f), mlx5sim.InProcess()},
			[]mlx5sim.Option{mlx5sim.WithFabric(f), mlx5sim.InProcess()})
	})
	b.Lacks[Processes] = "the fabric is this process's own"
	return polled(b)
}

// ForeignLoopback returns a backend like Foreign, of two fabrics that send
// RoCEv2 packets over the loopback interface.
func ForeignLoopback() Backend {
	b := simBackend("mlx5sim from outside, over UDP", func() (*Pair, error) {
		return foreignPair(
			[]mlx5sim.Option{mlx5sim.WithFabric(mlx5sim.NewFabric())},
			[]mlx5sim.Option{mlx5sim.WithFabric(mlx5sim.NewFabric())})
	})
	b.Lacks[Processes] = "the child opens its device from inside"
	b.EventRounds = 2000
	return polled(b)
}

// polled says what a device that looks at its doorbells from time to time does
// differently.
func polled(b Backend) Backend {
	b.Lacks[DMABuf] = "its descriptor would be another process's"
	b.Deviations = slices.DeleteFunc(b.Deviations, func(d Deviation) bool { return d.Rule == RuleReadOnly })
	return b
}

func foreignPair(first, second []mlx5sim.Option) (*Pair, error) {
	a, err := mlx5sim.New(first...)
	if err != nil {
		return nil, err
	}
	b, err := mlx5sim.New(second...)
	if err != nil {
		return nil, errors.Join(err, a.Close())
	}
	p, err := openPair(uverbs.NewDevice(foreignDevice{a}), uverbs.NewDevice(foreignDevice{b}), func() error { return errors.Join(a.Close(), b.Close()) })
	if err != nil {
		return nil, err
	}
	p.Remove = a.Close
	return p, nil
}

// foreignDevice is a simulated device whose every file is a foreignFile.
type foreignDevice struct{ *mlx5sim.Device }

func (d foreignDevice) Open() (kernel.File, error) {
	f := &foreignFile{pages: make(map[int64]*foreignPage), sinks: make(map[int32]*foreignSink), stop: make(chan struct{}), stopped: make(chan struct{})}
	fo, err := d.OpenForeign(mlx5sim.ForeignConfig{Memory: foreignMemory{}, MapUAR: f.mapUAR, UnmapUAR: func([]byte) {}, NewEvents: f.newEvents})
	if err != nil {
		return nil, err
	}
	f.fo = fo
	go f.poll()
	return f, nil
}

// foreignFile is what a supervisor keeps of a program's open device. It is no
// kernel.Kicker: a goroutine looks for doorbells.
type foreignFile struct {
	fo            *mlx5sim.Foreign
	stop, stopped chan struct{}

	mu     sync.Mutex
	closed bool
	pages  map[int64]*foreignPage
	sinks  map[int32]*foreignSink
	nextFD int32
}

// foreignPage is a page of the file that both sides map.
type foreignPage struct {
	mem   []byte
	unmap func() error
	maps  int
}

func (f *foreignFile) poll() {
	defer close(f.stopped)
	for idle := 0; ; idle++ {
		select {
		case <-f.stop:
			return
		default:
		}
		switch {
		case f.fo.Poll():
			idle = 0
		case idle < 1000:
			runtime.Gosched()
		default:
			time.Sleep(20 * time.Microsecond)
		}
	}
}

func (f *foreignFile) page(offset int64) (*foreignPage, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	p := f.pages[offset]
	if p == nil {
		mem, unmap, err := mapPages(smallPage)
		if err != nil {
			return nil, err
		}
		p = &foreignPage{mem: mem[:smallPage:smallPage], unmap: unmap}
		f.pages[offset] = p
	}
	return p, nil
}

// The device's side.

func (f *foreignFile) mapUAR(offset int64, length int) ([]byte, error) {
	if length != smallPage {
		return nil, fmt.Errorf("a UAR page of %d bytes", length)
	}
	p, err := f.page(offset)
	if err != nil {
		return nil, err
	}
	return p.mem, nil
}

func (f *foreignFile) newEvents(async bool) (mlx5sim.EventSink, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.closed {
		return nil, syscall.EBADF
	}
	s := &foreignSink{fo: f.fo, fd: 1000 + f.nextFD, wake: make(chan struct{}, 1), done: make(chan struct{})}
	f.nextFD++
	f.sinks[s.fd] = s
	return s, nil
}

// The program's side.

func (f *foreignFile) Ioctl(cmd []byte) error {
	own := append([]byte(nil), cmd...)
	err := f.fo.Ioctl(own)
	copy(cmd, own)
	return err
}

func (f *foreignFile) Mmap(offset int64, length int, _ kernel.Prot) ([]byte, error) {
	if err := f.fo.CheckMmap(offset, length); err != nil {
		return nil, err
	}
	p, err := f.page(offset)
	if err != nil {
		return nil, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	p.maps++
	return p.mem, nil
}

func (f *foreignFile) Munmap(mem []byte) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, p := range f.pages {
		if p.maps > 0 && len(mem) == len(p.mem) && &mem[0] == &p.mem[0] {
			p.maps--
			return f.freePages()
		}
	}
	return syscall.EINVAL
}

func (f *foreignFile) Events(fd int32) (kernel.EventFile, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if s := f.sinks[fd]; s != nil {
		return s.reader(), nil
	}
	return nil, syscall.EBADF
}

func (f *foreignFile) Close() error {
	f.mu.Lock()
	closed := f.closed
	f.closed = true
	f.mu.Unlock()
	if closed {
		return syscall.EBADF
	}
	err := f.fo.Close()
	close(f.stop)
	<-f.stopped
	f.mu.Lock()
	defer f.mu.Unlock()
	return errors.Join(err, f.freePages())
}

// freePages unmaps, once the file is closed, what the program has unmapped.
func (f *foreignFile) freePages() (err error) {
	if !f.closed {
		return nil
	}
	for offset, p := range f.pages {
		if p.maps == 0 {
			err = errors.Join(err, p.unmap())
			delete(f.pages, offset)
		}
	}
	return err
}

// sinkRecords is how many records a foreignSink holds: few, so that the device
// has to keep some.
const sinkRecords = 3

// foreignSink is an event file of the program, both ends of it.
type foreignSink struct {
	fo   *mlx5sim.Foreign
	fd   int32
	wake chan struct{}
	done chan struct{} // closed by the reader's Close

	mu     sync.Mutex
	queue  [][]byte
	ended  bool // by the device
	closed bool // by the program
}

func (s *foreignSink) FD() int32 { return s.fd }

func (s *foreignSink) signal() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

func (s *foreignSink) Send(rec []byte) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.closed:
		return syscall.EPIPE
	case len(s.queue) == sinkRecords:
		return syscall.EAGAIN
	}
	s.queue = append(s.queue, append([]byte(nil), rec...))
	s.signal()
	return nil
}

func (s *foreignSink) TakeBack(cookie uint64) (n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	kept := s.queue[:0]
	for _, rec := range s.queue {
		if cookieOf(rec) == cookie {
			n++
			continue
		}
		kept = append(kept, rec)
	}
	s.queue = kept
	return n
}

func cookieOf(rec []byte) (v uint64) {
	for i, b := range rec[:8] {
		v |= uint64(b) << (8 * i)
	}
	return v
}

func (s *foreignSink) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.ended = true
	s.signal()
	return nil
}

// reader is the program's end.
func (s *foreignSink) reader() kernel.EventFile { return foreignEvents{s, new(atomic.Bool)} }

type foreignEvents struct {
	s      *foreignSink
	closed *atomic.Bool
}

func (e foreignEvents) FD() int32 { return e.s.fd }

func (e foreignEvents) ReadEvent(ctx context.Context, p []byte) (int, error) {
	s := e.s
	for {
		s.mu.Lock()
		switch {
		case s.closed:
			s.mu.Unlock()
			return 0, fs.ErrClosed
		case len(s.queue) > 0:
			n := copy(p, s.queue[0])
			s.queue = s.queue[1:]
			s.signal() // one token, many readers
			s.mu.Unlock()
			return n, nil
		case s.ended:
			s.signal()
			s.mu.Unlock()
			return 0, syscall.EIO
		}
		s.mu.Unlock()
		select {
		case <-s.wake:
		case <-s.done:
			return 0, fs.ErrClosed
		case <-ctx.Done():
			return 0, ctx.Err()
		}
	}
}

func (e foreignEvents) Close() error {
	if e.closed.Swap(true) {
		return fs.ErrClosed
	}
	s := e.s
	s.mu.Lock()
	s.closed = true
	close(s.done)
	s.mu.Unlock()
	s.fo.CloseEvents(s.fd)
	return nil
}
