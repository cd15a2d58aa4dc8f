package mlx5sim

import (
	"errors"
	"sync"
	"sync/atomic"
	"syscall"
)

// ForeignConfig is what the device needs of a program whose memory is not this
// process's. Its functions and the methods of Memory are called with the
// fabric's mutex held, except NewEvents: they must not call the device.
type ForeignConfig struct {
	// Memory reaches the program's memory by the program's addresses. View may
	// always answer nil. Where it also has a method Writable(addr, n uint64) bool,
	// memory that may only be read is refused where the kernel refuses it. Where it
	// has a method Publish(addr uint64, p []byte) error, which stores the last byte of
	// p after all others, a completion takes one call instead of two. Where it has a
	// method Gone() bool, a program that has ended and is not closed yet is silent to
	// its peers, instead of failing their requests.
	Memory DMA

	// MapUAR returns this process's own shared mapping of the page that the
	// program sees when it maps the device at offset. The page is the device's
	// until UnmapUAR, which gets the same slice.
	MapUAR   func(offset int64, length int) ([]byte, error)
	UnmapUAR func(page []byte)

	// NewEvents makes an event descriptor in the program, of the async kind or a
	// completion channel, and returns the device's end. It is called on the
	// goroutine of the Ioctl that wants it, before that returns, and holds no
	// lock of the device. An errno that it wraps is the command's answer.
	NewEvents func(async bool) (EventSink, error)
}

// EventSink is the device's end of an event file in the program. Its methods
// are called with the fabric's mutex held and must not block.
type EventSink interface {
	// FD is the descriptor's number in the program: commands name it by that.
	FD() int32

	// Send hands one record over. EAGAIN says that there is no room now: the
	// device keeps the record and tries again. Any other error means that
	// nobody reads any more.
	Send(rec []byte) error

	// TakeBack removes the records that nobody has read whose first eight bytes,
	// little-endian, are cookie, and returns how many that were.
	TakeBack(cookie uint64) int

	Close() error
}

// Foreign is one open of the device by a program whose memory and whose stores
// to UAR pages the device reaches by way of a [ForeignConfig] alone. The program
// calls no kicker; Poll finds what it stored.
//
// Ioctl, CloseEvents and Poll may be called from several goroutines.
type Foreign struct {
	cfg ForeignConfig
	f   *file

	errQPs atomic.Int32 // in ERR; guarded by the fabric's mutex, but for Poll's look

	// pollMu is held through Poll and Close, and taken before the fabric's mutex.
	// Who holds it may read all UAR pages: they are unmapped by nobody else.
	pollMu sync.Mutex
	record recordReader // guarded by pollMu, as what follows
	idle   uint32       // calls of Poll that did not look at the QPs in ERR

	pages atomic.Pointer[[]foreignPage] // that Poll looks at
	again atomic.Bool                   // yielded holds something
	stuck atomic.Bool                   // an event file holds records that its sink had no room for
	dead  atomic.Bool                   // unmap holds something

	// Guarded by the fabric's mutex.
	unmap   [][]byte  // pages of dead UARs, until nobody can be looking at them
	offered EventSink // for the command that is executing
	inTurn  bool      // what is executed now was asked for by the program
	begun   int       // work requests, and 4 KiB of data, of this turn
	yielded []*qp     // whose SQ goes on in the next one
}

// errNeedSink ends a command that creates an event file before it has done
// anything: the file has to be made in the program first.
type errNeedSink bool

func (errNeedSink) Error() string { return "mlx5sim: no event sink was offered" }

// OpenForeign opens the device for a program in another process. Close it.
func (d *Device) OpenForeign(cfg ForeignConfig) (*Foreign, error) {
	if cfg.Memory == nil || cfg.MapUAR == nil || cfg.UnmapUAR == nil || cfg.NewEvents == nil {
		return nil, errors.New("mlx5sim: a field of ForeignConfig is nil")
	}
	fo := &Foreign{cfg: cfg}
	fo.pages.Store(new([]foreignPage))
	f, err := d.open(cfg.Memory, fo)
	if err != nil {
		return nil, err
	}
	fo.f = f
	return fo, nil
}

// Ioctl executes RDMA_VERBS_IOCTL, after the doorbells that the program rang
// before. cmd is a copy of what the program's argument points to, as long as its
// header says or shorter; handles, descriptors and flags are written into it for
// the caller to copy back, whether or not there is an error. The error is nil or a
// bare errno.
func (fo *Foreign) Ioctl(cmd []byte) error {
	fo.Poll()
	err := fo.ioctl(cmd, nil)
	need, ok := err.(errNeedSink)
	if !ok {
		return err
	}
	sink, err := fo.cfg.NewEvents(bool(need))
	if err != nil {
		var errno syscall.Errno
		if errors.As(err, &errno) {
			return errno
		}
		return syscall.ENOMEM
	}
	err = fo.ioctl(cmd, sink)
	if err != nil {
		sink.Close()
		if _, ok := err.(errNeedSink); ok { // cannot be: it has one
			return syscall.EINVAL
		}
	}
	return err
}

func (fo *Foreign) ioctl(cmd []byte, sink EventSink) error {
	fab := fo.f.dev.fab
	fab.mu.Lock()
	defer fab.mu.Unlock()
	fo.offered = sink
	defer func() { fo.offered = nil }()
	fo.beginTurn()
	defer fo.endTurn()
	return fo.f.command(cmd)
}

// CheckMmap says whether the program may map length bytes of the device at
// offset: nil, or the errno of the mmap. Nothing but UAR pages can be mapped, by
// the one offset that MapUAR was called with.
func (fo *Foreign) CheckMmap(offset int64, length int) error {
	f := fo.f
	f.dev.fab.mu.Lock()
	defer f.dev.fab.mu.Unlock()
	switch {
	case f.closed:
		return syscall.EBADF
	case f.dev.closed:
		return syscall.EIO
	case !f.ready || length != pageSize:
		return syscall.EINVAL
	}
	for _, u := range f.uars {
		if u.offset == offset && !u.dead {
			return nil
		}
	}
	return syscall.EINVAL
}

// CloseEvents is told when the program closed the event descriptor fd.
func (fo *Foreign) CloseEvents(fd int32) {
	f := fo.f
	f.dev.fab.mu.Lock()
	e := f.events[fd]
	f.dev.fab.mu.Unlock()
	if e != nil {
		e.Close()
	}
}

// Close releases all that the program has, in whatever state it is, and returns
// when nothing of the device uses the config any more. Closing twice is no
// error.
func (fo *Foreign) Close() error {
	fo.pollMu.Lock()
	defer fo.pollMu.Unlock()
	fo.f.Close() // EBADF the second time
	fo.pages.Store(new([]foreignPage))
	fo.unmapDead()
	return nil
}
