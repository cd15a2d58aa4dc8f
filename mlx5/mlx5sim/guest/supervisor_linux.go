//go:build amd64 || arm64

package guest

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"runtime"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/rrppcc-go/rrppcc/mlx5/mlx5sim"
)

// supervisor answers what the filter asks. One locked thread does so, one
// question after the other; the programs that ask stand still meanwhile, all
// others run.
type supervisor struct {
	log      *slog.Logger
	devs     []*mlx5sim.Device
	tree     *tree
	poller   *poller
	lo, hi   int // where device files are put in the programs' descriptor tables
	listener int // -1 until the filter is installed

	epoll   int // listener, changes, stop
	changes int // an epoll of its own: inotify and pipes, what the programs closed
	inotify int
	stop    int // eventfd

	// Of the serving thread alone.
	files   map[fileID]*deviceFile
	watches map[int32]*deviceFile

	mu    sync.Mutex
	pipes map[int32]*eventPipe // by our descriptor
}

// answer is what a call returns to the program.
type answer struct {
	val   int64
	errno unix.Errno
	run   bool // the kernel shall execute the call as if nobody had asked
}

var carryOn = answer{run: true}

func fail(errno unix.Errno) answer { return answer{errno: errno} }

// failure is the answer that tells err.
func failure(err error) answer {
	var errno syscall.Errno
	if errors.As(err, &errno) {
		return answer{errno: errno}
	}
	return answer{errno: unix.EIO}
}

func newSupervisor(log *slog.Logger, devs []*mlx5sim.Device, t *tree) (s *supervisor, err error) {
	s = &supervisor{
		log: log, devs: devs, tree: t, poller: newPoller(),
		listener: -1, epoll: -1, changes: -1, inotify: -1, stop: -1,
		files: make(map[fileID]*deviceFile), watches: make(map[int32]*deviceFile), pipes: make(map[int32]*eventPipe),
	}
	s.lo, s.hi, err = descriptorRange()
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			s.closeFDs()
		}
	}()
	if s.epoll, err = unix.EpollCreate1(unix.EPOLL_CLOEXEC); err != nil {
		return nil, fmt.Errorf("epoll: %w", err)
	}
	if s.changes, err = unix.EpollCreate1(unix.EPOLL_CLOEXEC); err != nil {
		return nil, fmt.Errorf("epoll: %w", err)
	}
	if s.inotify, err = unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK); err != nil {
		return nil, fmt.Errorf("inotify: %w", err)
	}
	if s.stop, err = unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK); err != nil {
		return nil, fmt.Errorf("eventfd: %w", err)
	}
	return s, errors.Join(
		watch(s.changes, s.inotify, unix.EPOLLIN),
		watch(s.epoll, s.changes, unix.EPOLLIN),
		watch(s.epoll, s.stop, unix.EPOLLIN))
}

func watch(epoll, fd int, events uint32) error {
	return unix.EpollCtl(epoll, unix.EPOLL_CTL_ADD, fd, &unix.EpollEvent{Events: events, Fd: int32(fd)})
}

// closeFDs closes what newSupervisor opened, and the listener.
func (s *supervisor) closeFDs() {
	for _, fd := range []*int{&s.listener, &s.epoll, &s.changes, &s.inotify, &s.stop} {
		if *fd >= 0 {
			unix.Close(*fd)
			*fd = -1
		}
	}
}

// serve answers until no program is left that the filter holds for, or until
// halt. Then all that the programs had is released, and whatever still asks is
// told ENOSYS by the kernel once the listener is closed.
func (s *supervisor) serve() error {
	runtime.LockOSThread() // for good: the thread's signal mask is changed
	// A signal would interrupt an ADDFD in the middle. The runtime's preemption
	// by SIGURG is among them; system calls and function calls let it in anyway.
	var all unix.Sigset_t
	for i := range all.Val {
		all.Val[i] = ^all.Val[i]
	}
	if err := unix.PthreadSigmask(unix.SIG_BLOCK, &all, nil); err != nil {
		return fmt.Errorf("block signals: %w", err)
	}
	defer s.releaseAll()
	var ready [8]unix.EpollEvent
	for {
		n, err := unix.EpollWait(s.epoll, ready[:], -1)
		if err != nil && err != unix.EINTR {
			return fmt.Errorf("epoll: %w", err)
		}
		for _, e := range ready[:max(n, 0)] {
			switch int(e.Fd) {
			case s.stop:
				return nil
			case s.changes:
				s.noteClosed()
			case s.listener:
				if e.Events&unix.EPOLLIN != 0 {
					s.question()
				} else if e.Events&(unix.EPOLLHUP|unix.EPOLLERR) != 0 {
					return nil // the last program under the filter has ended
				}
			}
		}
	}
}

// halt ends serve.
func (s *supervisor) halt() {
	one := [8]byte{1}
	unix.Write(s.stop, one[:])
}

// question takes one notification and answers it.
func (s *supervisor) question() {
	var n notif
	if err := receive(s.listener, &n); err != nil {
		if err != unix.ENOENT {
			s.log.Error("seccomp notification", "err", err)
		}
		return
	}
	a := s.answer(&n)
	r := notifResp{id: n.id, val: a.val}
	switch {
	case a.run:
		r = notifResp{id: n.id, flags: unix.SECCOMP_USER_NOTIF_FLAG_CONTINUE}
	case a.errno != 0:
		r.error = -int32(a.errno)
	}
	if err := respond(s.listener, &r); err != nil && err != unix.ENOENT {
		s.log.Error("answer to a seccomp notification", "err", err)
	}
}

// answer decides what becomes of a call.
func (s *supervisor) answer(n *notif) answer {
	nr, a := legacy(uint32(n.nr), n.args)
	fd := int32(a[0])
	switch nr {
	case unix.SYS_IOCTL:
		return s.ioctl(n, fd, a[2])
	case unix.SYS_MMAP:
		return s.mmap(n, int32(a[4]), a[1], a[2], a[3], a[5])
	case unix.SYS_FSTAT:
		return s.fstat(n, fd, a[1])
	case unix.SYS_OPENAT:
		return s.open(n, fd, a[1], a[2])
	case unix.SYS_OPENAT2:
		return s.openat2(n, fd, a[1], a[2], a[3])
	case sysFstatat:
		return s.fstatat(n, fd, a[1], a[2], a[3])
	case unix.SYS_STATX:
		return s.statx(n, fd, a[1], a[2], a[3], a[4])
	case unix.SYS_FACCESSAT, unix.SYS_FACCESSAT2:
		return s.access(n, fd, a[1], a[2])
	case unix.SYS_READLINKAT:
		return s.readlink(n, fd, a[1], a[2], a[3])
	case unix.SYS_GETXATTR, unix.SYS_LGETXATTR, unix.SYS_LISTXATTR, unix.SYS_LLISTXATTR:
		return s.xattr(n, a[0])
	}
	return carryOn
}

// write stores p at addr of the thread that asked. It is certain that it still
// waits: the number of a dead one could be another's by now.
func (s *supervisor) write(n *notif, addr uint64, p []byte) error {
	if !alive(s.listener, n.id) {
		return unix.EFAULT
	}
	if newMemory(0, int(n.pid)).Write(addr, p) != nil {
		return unix.EFAULT
	}
	return nil
}

// noteClosed learns what the programs closed since it was asked last, by
// whichever way: close, exec, exit, death.
func (s *supervisor) noteClosed() {
	var ready [32]unix.EpollEvent
	for {
		n, err := unix.EpollWait(s.changes, ready[:], 0)
		if err == unix.EINTR {
			continue
		}
		if n <= 0 {
			return
		}
		for _, e := range ready[:n] {
			if int(e.Fd) == s.inotify {
				s.filesClosed()
			} else {
				s.pipeClosed(e.Fd)
			}
		}
	}
}

// descriptorRange chooses the numbers at which the programs get device files:
// high, so that ordinary descriptors stay below and need no questions, but
// below 1024 for the sake of select.
func descriptorRange() (lo, hi int, err error) {
	var lim unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &lim); err != nil {
		return 0, 0, fmt.Errorf("RLIMIT_NOFILE: %w", err)
	}
	hi = int(min(lim.Max, 1024))
	if lo = hi - hi/4; lo < 16 {
		return 0, 0, fmt.Errorf("RLIMIT_NOFILE: %d descriptors are too few", lim.Max)
	}
	return lo, hi, nil
}

// procFD is where descriptor fd of thread tid is found.
func procFD(tid uint32, fd int32) string { return fmt.Sprintf("/proc/%d/fd/%d", tid, fd) }

// identify returns the device file behind descriptor fd of the thread that
// asked, nil if it is none.
func (s *supervisor) identify(n *notif, fd int32) *deviceFile {
	if fd < 0 || len(s.files) == 0 {
		return nil
	}
	var st unix.Stat_t
	if unix.Stat(procFD(n.pid, fd), &st) != nil {
		return nil
	}
	return s.files[fileID{uint64(st.Dev), st.Ino}]
}

// freeSlot finds a number of the range that thread tid does not use.
func (s *supervisor) freeSlot(tid uint32) int {
	for fd := s.hi - 1; fd >= s.lo; fd-- {
		if _, err := os.Readlink(procFD(tid, int32(fd))); errors.Is(err, os.ErrNotExist) {
			return fd
		}
	}
	return -1
}
