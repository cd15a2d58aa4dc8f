//go:build linux

package kernel

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/rrppcc-go/rrppcc/internal/leakcheck"
)

// standIn is a device whose node is another character device, by its number.
func standIn(t *testing.T, node, number string) *sysfsDevice {
	t.Helper()
	devices, err := fakeTree(t, map[string]string{
		verbsClass + "abi_version":         "6\n",
		verbsClass + "uverbs0/ibdev":       "mlx5_0\n",
		verbsClass + "uverbs0/dev":         number + "\n",
		verbsClass + "uverbs0/abi_version": "1\n",
		deviceClass + "mlx5_0/node_guid":   "5054:00ff:fe12:3456\n",
		"dev/infiniband/uverbs0":           "-> " + node,
	}).scan()
	if err != nil || len(devices) != 1 {
		t.Fatal(devices, err)
	}
	return devices[0]
}

func TestOpenNamesTheNodeAndKeepsTheErrno(t *testing.T) {
	leakcheck.Check(t)
	missing := standIn(t, "/nonexistent", "1:3")
	if _, err := missing.Open(); !errors.Is(err, syscall.ENOENT) || !strings.Contains(err.Error(), missing.info.Node) {
		t.Errorf("no node: %v", err)
	}
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := standIn(t, file, "1:3").Open(); !errors.Is(err, ErrWrongNode) {
		t.Errorf("a regular file: %v", err)
	}
	for _, number := range []string{"231:192", "231:3", "1:192"} { // /dev/null is 1:3
		if _, err := standIn(t, "/dev/null", number).Open(); !errors.Is(err, ErrWrongNode) || !strings.Contains(err.Error(), number) {
			t.Errorf("another device, %s: %v", number, err)
		}
	}
}

func TestFileAnswersErrnosAndClosesOnce(t *testing.T) {
	leakcheck.Check(t)
	f, err := standIn(t, "/dev/null", "1:3").Open()
	if err != nil {
		t.Fatal(err)
	}
	if flags, err := unix.FcntlInt(uintptr(f.(*file).fd), unix.F_GETFD, 0); err != nil || flags&unix.FD_CLOEXEC == 0 {
		t.Errorf("flags %#x, %v: would leak into children", flags, err)
	}
	cmd := NewCommand(1, 0, 3)
	cmd.Out(0, make([]byte, 4))
	if err := cmd.Run(f); err != syscall.ENOTTY {
		t.Errorf("ioctl: %v, want ENOTTY", err)
	}
	if err := f.Ioctl(nil); err != syscall.EINVAL {
		t.Errorf("empty command: %v", err)
	}
	if _, err := f.Mmap(0, 0, ProtRead); err == nil {
		t.Error("mapped nothing")
	}
	if _, err := f.Events(-1); err != syscall.EBADF {
		t.Errorf("event file -1: %v", err)
	}
	if err := f.Close(); err != nil {
		t.Error(err)
	}
	if err := f.Close(); !errors.Is(err, fs.ErrClosed) {
		t.Errorf("second close: %v", err)
	}
	if err := NewCommand(1, 0, 3).Run(f); err != syscall.EBADF {
		t.Errorf("ioctl after close: %v", err)
	}
	if _, err := f.Mmap(0, 4096, ProtRead); err != syscall.EBADF {
		t.Errorf("mmap after close: %v", err)
	}
}

func TestCloseDoesNotRaceWithCommands(t *testing.T) {
	leakcheck.Check(t)
	f, err := standIn(t, "/dev/null", "1:3").Open()
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for {
				switch err := NewCommand(1, 0, 3).Run(f); err {
				case syscall.ENOTTY:
				case syscall.EBADF:
					return
				default:
					t.Errorf("%v: another descriptor was asked", err)
					return
				}
			}
		})
	}
	runtime.Gosched()
	if err := f.Close(); err != nil {
		t.Error(err)
	}
	wg.Wait()
}

func TestMappingOutlivesFileAndTakesCommands(t *testing.T) {
	f, err := standIn(t, "/dev/zero", "1:5").Open()
	if err != nil {
		t.Fatal(err)
	}
	mem, err := f.Mmap(0, 8192, ProtRead|ProtWrite)
	if err != nil {
		t.Fatal(err)
	}
	// A driver's payload may lie in mapped memory, which Go cannot pin.
	copy(mem, "driver's payload")
	c := NewCommand(1, 3, 0)
	c.UHW(mem[:16], mem[4096:4112])
	err = c.Run(ioctlFunc(func(cmd []byte) error {
		copy(at(binary.NativeEndian.Uint64(cmd[24+16+8:]), 16), at(binary.NativeEndian.Uint64(cmd[24+8:]), 16))
		return nil
	}))
	if err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	if got := string(mem[4096:4112]); got != "driver's payload" {
		t.Errorf("the kernel's answer reads %q", got)
	}
	if err := f.Munmap(mem[:4096]); err == nil {
		t.Error("a part of the mapping was unmapped")
	}
	if err := f.Munmap(mem); err != nil {
		t.Error(err)
	}
	if err := f.Munmap(mem); err == nil {
		t.Error("unmapped twice")
	}
	if _, err := (&file{fd: -1}).Mmap(0, 4096, ProtRead); err != syscall.EBADF {
		t.Error(err)
	}
}

// packets is an event file over a socket pair, whose other end is the kernel:
// each packet is one record.
func packets(t *testing.T) (*eventFile, int) {
	t.Helper()
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	e, err := newEventFile(pair[0])
	if err != nil {
		t.Fatal(err)
	}
	if e.FD() != int32(pair[0]) {
		t.Errorf("FD %d, want %d", e.FD(), pair[0])
	}
	return e, pair[1]
}

func send(t *testing.T, fd int, record string) {
	t.Helper()
	if err := unix.Send(fd, []byte(record), 0); err != nil {
		t.Error(err)
	}
}

// What the poller does not wait for is read without it. That a device's removal
// comes this way is seen on a real kernel only: scripts/kerneltest.sh.
func TestReadingPastThePoller(t *testing.T) {
	leakcheck.Check(t)
	e, fd := packets(t)
	p := make([]byte, 8)
	if n, err := e.readNow(p); n != 0 || err != unix.EAGAIN {
		t.Errorf("nothing there: %d, %v", n, err)
	}
	send(t, fd, "record 1")
	if n, err := e.readNow(p); err != nil || string(p[:n]) != "record 1" {
		t.Errorf("a record: %q, %v", p[:n], err)
	}
	unix.Close(fd)
	if n, err := e.readNow(p); n != 0 || err != syscall.EIO {
		t.Errorf("the end: %d, %v", n, err)
	}
	e.Close()
	if n, err := e.readNow(p); n != 0 || !errors.Is(err, fs.ErrClosed) {
		t.Errorf("closed: %d, %v", n, err)
	}
}

func TestReadEventReturnsOneRecord(t *testing.T) {
	leakcheck.Check(t)
	e, fd := packets(t)
	defer unix.Close(fd)
	defer e.Close()
	send(t, fd, "record 1")
	send(t, fd, "rec")
	p := make([]byte, 8)
	if n, err := e.ReadEvent(t.Context(), p); n != 8 || err != nil || string(p) != "record 1" {
		t.Errorf("%d, %v, %q", n, err, p)
	}
	if n, err := e.ReadEvent(context.Background(), p); n != 3 || err != nil {
		t.Errorf("short record: %d, %v", n, err)
	}
}

func TestReadEventPrefersRecordOverContextThatEndsMeanwhile(t *testing.T) {
	e, fd := packets(t)
	defer unix.Close(fd)
	defer e.Close()
	for range 200 {
		ctx, cancel := context.WithCancel(t.Context())
		got := make(chan error, 1)
		go func() {
			n, err := e.ReadEvent(ctx, make([]byte, 8))
			if err == nil && n != 8 {
				err = errors.New("short")
			}
			got <- err
		}()
		go cancel()
		send(t, fd, "record 1")
		if err := <-got; errors.Is(err, context.Canceled) {
			// Then the record is still there for the next reader.
			if n, err := e.ReadEvent(t.Context(), make([]byte, 8)); n != 8 || err != nil {
				t.Fatalf("the record is lost: %d, %v", n, err)
			}
		} else if err != nil {
			t.Fatal(err)
		}
	}
}

func TestCancelledWaiterDoesNotDisturbTheOthers(t *testing.T) {
	leakcheck.Check(t)
	e, fd := packets(t)
	defer unix.Close(fd)
	defer e.Close()
	const waiters = 8
	var cancels []context.CancelFunc
	results := make([]chan error, waiters)
	for i := range results {
		ctx, cancel := context.WithCancel(t.Context())
		cancels = append(cancels, cancel)
		results[i] = make(chan error, 1)
		go func() {
			n, err := e.ReadEvent(ctx, make([]byte, 8))
			if err == nil && n != 8 {
				err = errors.New("short")
			}
			results[i] <- err
		}()
	}
	// Whoever is in Read and whoever queues: the even ones give up.
	for i := 0; i < waiters; i += 2 {
		cancels[i]()
		if err := <-results[i]; err != context.Canceled {
			t.Errorf("waiter %d: %v, want the bare context.Canceled", i, err)
		}
	}
	for range waiters / 2 {
		send(t, fd, "record 1")
	}
	for i := 1; i < waiters; i += 2 {
		if err := <-results[i]; err != nil {
			t.Errorf("waiter %d: %v", i, err)
		}
		cancels[i]()
	}
}

// A context ends, and before its deadline is set a record ends the Read: the
// late deadline must not hit the next reader.
func TestLateDeadlineOfEndedContextIsTakenBack(t *testing.T) {
	e, fd := packets(t)
	defer unix.Close(fd)
	defer e.Close()
	ctx, cancel := context.WithCancel(t.Context())
	returned, set := make(chan struct{}), make(chan struct{})
	e.setDeadline = func(at time.Time) error {
		if !at.Equal(past) {
			return e.f.SetReadDeadline(at)
		}
		send(t, fd, "record 1")
		// Give a reader that does not wait for this every chance to return.
		for range 10000 {
			select {
			case <-returned:
			default:
				runtime.Gosched()
			}
		}
		defer close(set)
		return e.f.SetReadDeadline(at)
	}
	go func() {
		defer close(returned)
		// If the deadline wins after all, the record stays for the next reader.
		if n, err := e.ReadEvent(ctx, make([]byte, 8)); (n != 8 || err != nil) && err != context.Canceled {
			t.Errorf("first reader: %d, %v", n, err)
		}
	}()
	for len(e.turn) == 0 { // until the reader has its turn
		runtime.Gosched()
	}
	cancel()
	<-returned
	<-set
	send(t, fd, "record 2")
	if n, err := e.ReadEvent(t.Context(), make([]byte, 8)); n != 8 || err != nil {
		t.Errorf("next reader: %d, %v", n, err)
	}
}

func TestReadEventEndsWithItsDeadline(t *testing.T) {
	e, fd := packets(t)
	defer unix.Close(fd)
	defer e.Close()
	ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
	defer cancel()
	if _, err := e.ReadEvent(ctx, make([]byte, 8)); err != context.DeadlineExceeded {
		t.Errorf("%v, want the bare context.DeadlineExceeded", err)
	}
	if _, err := e.ReadEvent(ctx, make([]byte, 8)); err != context.DeadlineExceeded {
		t.Errorf("context that has ended: %v", err)
	}
	send(t, fd, "record 1")
	if n, err := e.ReadEvent(t.Context(), make([]byte, 8)); n != 8 || err != nil {
		t.Errorf("after it: %d, %v", n, err)
	}
}

func TestCloseWakesAllWaiters(t *testing.T) {
	leakcheck.Check(t)
	e, fd := packets(t)
	defer unix.Close(fd)
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			ctx := context.Background()
			if i%2 == 0 {
				ctx = t.Context()
			}
			if _, err := e.ReadEvent(ctx, make([]byte, 8)); err != fs.ErrClosed {
				t.Errorf("waiter: %v, want the bare fs.ErrClosed", err)
			}
		})
	}
	if err := e.Close(); err != nil {
		t.Error(err)
	}
	wg.Wait()
	if err := e.Close(); err != fs.ErrClosed {
		t.Errorf("second close: %v", err)
	}
	if _, err := e.ReadEvent(t.Context(), make([]byte, 8)); err != fs.ErrClosed {
		t.Errorf("after close: %v", err)
	}
}

func TestEndOfFileMeansDeviceIsGone(t *testing.T) {
	e, fd := packets(t)
	defer e.Close()
	unix.Close(fd)
	if n, err := e.ReadEvent(t.Context(), make([]byte, 8)); n != 0 || err != syscall.EIO {
		t.Errorf("%d, %v; want the bare EIO", n, err)
	}
}

func TestReadErrnoIsBare(t *testing.T) {
	fd, err := unix.Eventfd(1, unix.EFD_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	e, err := newEventFile(fd)
	if err != nil {
		t.Fatal(err)
	}
	defer e.Close()
	// Like an uverbs event file, an eventfd refuses less than its 8 bytes.
	if _, err := e.ReadEvent(t.Context(), make([]byte, 4)); err != syscall.EINVAL {
		t.Errorf("%v, want the bare EINVAL", err)
	}
	p := make([]byte, 8)
	if n, err := e.ReadEvent(t.Context(), p); n != 8 || err != nil || !bytes.Contains(p, []byte{1}) {
		t.Errorf("%d, %v, %x", n, err, p)
	}
}

func TestFileThatCannotBePolledIsRefusedAndClosed(t *testing.T) {
	leakcheck.Check(t)
	f, err := os.CreateTemp(t.TempDir(), "")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	fd, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := newEventFile(fd); !errors.Is(err, syscall.EPERM) {
		t.Errorf("%v, want EPERM", err)
	}
	// At once, not when the collector finds the os.File.
	if _, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0); err != syscall.EBADF {
		t.Errorf("the descriptor is still open: %v", err)
	}
	if _, err := newEventFile(1 << 20); err != syscall.EBADF {
		t.Errorf("no such descriptor: %v", err)
	}
}

func TestDevicesOfThisMachine(t *testing.T) {
	devices, err := Devices()
	if errors.Is(err, ErrNoModule) {
		t.Skip("this machine: ", err)
	}
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range devices {
		t.Logf("%+v", d.Info())
	}
}

func TestFrameIsWhatTheIoctlNumberSays(t *testing.T) {
	// _IOWR('\x1b', 1, size): bits 16 to 29 hold the header's size.
	const number uint32 = 0xc0181b01
	if size := number >> 16 & 0x3fff; uintptr(size) != unsafe.Offsetof(frame{}.attrs) {
		t.Errorf("the ioctl number says %d bytes", size)
	}
}
