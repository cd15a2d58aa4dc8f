//go:build linux

package kernel

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Devices lists the RDMA devices that the kernel shows to this process, by
// name: over netlink, or in sysfs where that does not answer. The error is [ErrNoModule], wraps [ErrABI], or tells what could not be
// read; no device at all is an empty list.
func Devices() ([]Device, error) {
	t := tree{sys: "/sys", dev: "/dev"}
	var found []*sysfsDevice
	err := withNetlink(func(ask nlAsk) (err error) {
		found, err = t.byNetlink(ask)
		return err
	})
	if err == nil {
		err = t.checkVersion()
	}
	if err != nil || len(found) == 0 {
		found, err = t.scan() // says why, too
	}
	if err != nil {
		return nil, err
	}
	devices := make([]Device, len(found))
	for i, d := range found {
		devices[i] = d
	}
	return devices, nil
}

// Open opens the character device. Its errors wrap the errno of open(2), or
// ErrWrongNode.
func (d *sysfsDevice) Open() (File, error) {
	path := d.info.Node
	fd, err := openNode(path)
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: path, Err: err}
	}
	// A node that a container or an earlier driver left behind may belong to
	// another device by now.
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		unix.Close(fd)
		return nil, &fs.PathError{Op: "stat", Path: path, Err: err}
	}
	major, minor := unix.Major(uint64(st.Rdev)), unix.Minor(uint64(st.Rdev))
	if st.Mode&unix.S_IFMT != unix.S_IFCHR || major != d.major || minor != d.minor {
		unix.Close(fd)
		return nil, fmt.Errorf("%w: %s is %d:%d, %s needs %d:%d", ErrWrongNode, path, major, minor, d.info.Name, d.major, d.minor)
	}
	return &file{fd: fd}, nil
}

func openNode(path string) (int, error) {
	for {
		fd, err := unix.Open(path, unix.O_RDWR|unix.O_CLOEXEC, 0)
		if err != unix.EINTR { // open(2) has done nothing then
			return fd, err
		}
	}
}

// file is an open /dev/infiniband/uverbsN. It is not an os.File: the character
// device cannot be polled.
type file struct {
	// mu is held for reading while the descriptor is in use: Close waits for
	// commands that are under way, so that none meets a descriptor that
	// somebody else has got meanwhile.
	mu sync.RWMutex
	fd int // -1 after Close
}

func (f *file) Ioctl(cmd []byte) error {
	f.mu.RLock()
	defer f.mu.RUnlock()
	if f.fd < 0 {
		return syscall.EBADF
	}
	for tries := 0; ; tries++ {
		errno := verbsIoctl(f.fd, cmd)
		switch {
		case errno == 0:
			return nil
		case errno != syscall.EINTR || tries == maxInterrupts || !repeatable(cmd):
			return errno
		}
	}
}

func (f *file) Mmap(offset int64, length int, prot Prot) ([]byte, error) {
	f.mu.RLock()
	defer f.mu.RUnlock()
	if f.fd < 0 {
		return nil, syscall.EBADF
	}
	var p int
	if prot&ProtRead != 0 {
		p |= unix.PROT_READ
	}
	if prot&ProtWrite != 0 {
		p |= unix.PROT_WRITE
	}
	return unix.Mmap(f.fd, offset, length, p, unix.MAP_SHARED)
}

// Munmap works after Close, too: the kernel keeps a mapping's device alive.
func (f *file) Munmap(mem []byte) error { return unix.Munmap(mem) }

func (f *file) Events(fd int32) (EventFile, error) {
	if fd < 0 {
		return nil, syscall.EBADF
	}
	return newEventFile(int(fd))
}

func (f *file) Close() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.fd < 0 {
		return fs.ErrClosed
	}
	fd := f.fd
	f.fd = -1
	if err := unix.Close(fd); err != nil && err != unix.EINTR { // Linux has closed it on EINTR, too
		return err
	}
	return nil
}

// eventFile is a completion channel or the async event file, on the runtime's
// poller: a waiter is a parked goroutine, not a thread.
type eventFile struct {
	f    *os.File
	fd   int32
	turn chan struct{} // full while a waiter is in Read, which alone sets deadlines
	done chan struct{} // closed by Close
	once sync.Once

	setDeadline func(time.Time) error // f.SetReadDeadline; a test delays it
}

// newEventFile takes ownership of fd, in the error case too.
func newEventFile(fd int) (*eventFile, error) {
	// Without O_NONBLOCK, os.NewFile would leave the descriptor out of the
	// poller: no deadlines, and a thread for each waiter.
	err := unix.SetNonblock(fd, true)
	if err == nil {
		unix.CloseOnExec(fd)
	} else {
		unix.Close(fd)
		return nil, err
	}
	f := os.NewFile(uintptr(fd), "uverbs event file")
	if err := f.SetReadDeadline(time.Time{}); err != nil {
		f.Close()
		return nil, fmt.Errorf("%w: the event file cannot be polled", syscall.EPERM)
	}
	return &eventFile{f: f, fd: int32(fd), turn: make(chan struct{}, 1), done: make(chan struct{}),
		setDeadline: f.SetReadDeadline}, nil
}

func (e *eventFile) FD() int32 { return e.fd }

// past is a deadline that ends a Read at once.
var past = time.Unix(1, 0)

func (e *eventFile) ReadEvent(ctx context.Context, p []byte) (int, error) {
	if err := ctx.Err(); err != nil {
		return 0, err
	}
	// One waiter at a time is in Read, because the deadline by which a context
	// ends it is the whole file's. The others queue here, each with its own
	// context.
	select {
	case e.turn <- struct{}{}:
	case <-ctx.Done():
		return 0, ctx.Err()
	case <-e.done:
		return 0, fs.ErrClosed
	}
	defer func() { <-e.turn }()

	if ctx.Done() == nil {
		return e.read(p)
	}
	fired := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		e.setDeadline(past)
		close(fired)
	})
	n, err := e.read(p)
	if !stop() {
		// The deadline has been set, or is about to be. Take it back before
		// the next waiter's turn.
		<-fired
		e.setDeadline(time.Time{})
	}
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return 0, ctx.Err()
	}
	return n, err
}

func (e *eventFile) read(p []byte) (int, error) {
	n, err := e.f.Read(p)
	var errno syscall.Errno
	switch {
	case err == nil:
		return n, nil
	case errors.Is(err, os.ErrClosed):
		return 0, fs.ErrClosed
	case errors.Is(err, io.EOF):
		return 0, syscall.EIO // the device is gone, as where the kernel says so
	case errors.As(err, &errno):
		return 0, errno
	case errors.Is(err, os.ErrDeadlineExceeded):
		return 0, err
	}
	// A file that signals nothing but an error, as a completion channel whose
	// device is gone, is "not pollable" for Go. The kernel tells why.
	if n, now := e.readNow(p); now != unix.EAGAIN {
		return n, now
	}
	return 0, err
}

// readNow reads past the poller, without waiting: EAGAIN where nothing is there.
func (e *eventFile) readNow(p []byte) (n int, err error) {
	conn, err := e.f.SyscallConn()
	if err != nil {
		return 0, err
	}
	if conn.Control(func(fd uintptr) { n, err = unix.Read(int(fd), p) }) != nil {
		return 0, fs.ErrClosed
	}
	switch {
	case err != nil:
		return 0, err
	case n == 0:
		return 0, syscall.EIO
	}
	return n, nil
}

func (e *eventFile) Close() error {
	err := error(fs.ErrClosed)
	e.once.Do(func() {
		close(e.done)
		err = e.f.Close() // wakes the waiter that is in Read
	})
	return err
}
