//go:build amd64 || arm64

package guest

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// running is held by Run: the reaping of orphans is the process's, and one set
// of devices per call is enough.
var running sync.Mutex

// Run starts the program and serves it, and all processes that descend from it,
// until they have ended. It returns how the program ended; an error says that it
// could not be run, or not be served to its end. The error of a program that is not
// there wraps [os/exec.ErrNotFound] or [io/fs.ErrNotExist], and of one that could
// not be executed [ErrExec] and its errno.
//
// When ctx ends, and when Run returns, all of these processes are killed. One
// Run is possible at a time in a process; a second one waits.
func Run(ctx context.Context, cfg Config) (Exit, error) {
	if err := cfg.check(); err != nil {
		return Exit{}, err
	}
	running.Lock()
	defer running.Unlock()
	log := cfg.Log
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	program, err := lookPath(cfg.Args[0], cfg.Dir)
	if err != nil {
		return Exit{}, err
	}
	t, err := newTree(cfg.Devices)
	if err != nil {
		return Exit{}, fmt.Errorf("guest: the directory of the devices: %w", err)
	}
	exit, err := run(ctx, &cfg, log, program, t)
	return exit, errors.Join(err, t.remove())
}

// lookPath finds the program as exec does. A relative path is one of dir.
func lookPath(name, dir string) (string, error) {
	p, err := exec.LookPath(name)
	if err != nil && dir != "" && errors.Is(err, os.ErrNotExist) {
		return name, nil // it may be relative to dir; exec will tell
	}
	return p, err
}

func run(ctx context.Context, cfg *Config, log *slog.Logger, program string, t *tree) (Exit, error) {
	s, err := newSupervisor(log, cfg.Devices, t)
	if err != nil {
		return Exit{}, fmt.Errorf("guest: %w", err)
	}
	defer s.closeFDs()
	h, err := newHerd(cfg.Reap)
	if err != nil {
		return Exit{}, fmt.Errorf("guest: %w", err)
	}
	defer h.leave()
	g, err := startGuard(cfg, h)
	if err != nil {
		return Exit{}, fmt.Errorf("guest: %w", err)
	}
	defer g.stop()
	l, err := launch(cfg, program, h.env(cfg.Env), buildFilter(uint32(s.lo), uint32(s.hi)))
	if err != nil {
		return Exit{}, fmt.Errorf("guest: %w", err)
	}
	h.add(l.pid)
	s.listener = l.listener
	defer l.release()
	ended := make(chan Exit, 1)
	go func() { ended <- h.wait(l.pid) }()
	raiseLimit(l.pid, s.hi)
	// Until it is served, the program does not get far: its loader opens files.
	err = probe(l.pid)
	if err == nil {
		err = watch(s.epoll, s.listener, unix.EPOLLIN)
	}
	if err != nil {
		h.killAll()
		<-ended
		return Exit{}, fmt.Errorf("guest: %w", err)
	}

	served := make(chan error, 1)
	go func() {
		defer h.killOnPanic()
		served <- s.serve()
	}()
	go func() {
		defer h.killOnPanic()
		s.poller.run()
	}()
	exit, err := attend(ctx, cfg, h, l, served, ended)
	s.halt()
	if serveErr := <-served; err == nil {
		err = serveErr
	}
	s.poller.end()
	if err != nil {
		err = fmt.Errorf("guest: %w", err)
	}
	return exit, err
}

// attend waits until the program has ended, and what it left behind has or has
// had its time. served gets a value for whoever receives next.
func attend(ctx context.Context, cfg *Config, h *herd, l *launched, served chan error, ended <-chan Exit) (Exit, error) {
	var exit Exit
	var failed error
	signals := cfg.Signals
	for done := false; !done; {
		select {
		case exit = <-ended:
			done = true
		case sig, open := <-signals:
			if n, ok := sig.(syscall.Signal); ok {
				h.signal(n)
			}
			if !open {
				signals = nil
			}
		case <-ctx.Done():
			failed = context.Cause(ctx)
			h.killAll()
			exit, done = <-ended, true
		case failed = <-served: // it cannot be served any more
			if failed == nil {
				failed = errors.New("the program left the filter")
			}
			served <- nil
			h.killAll()
			exit, done = <-ended, true
		}
	}
	l.release()
	if failed != nil {
		return exit, failed
	}
	timer := time.NewTimer(cfg.Linger)
	defer timer.Stop()
	select {
	case err := <-served: // nobody is left
		served <- nil
		return exit, err
	case <-signals:
	case <-ctx.Done():
	case <-timer.C:
	}
	h.killAll()
	return exit, nil
}

// probe says whether the memory of process pid can be reached.
func probe(pid int) error {
	var b [1]byte
	local := [1]unix.Iovec{{Base: &b[0], Len: 1}}
	_, err := unix.ProcessVMReadv(pid, local[:], []unix.RemoteIovec{{Base: 4096, Len: 1}}, 0)
	if err == unix.EPERM || err == unix.ENOSYS {
		return fmt.Errorf("%w: process_vm_readv: %w (seccomp, or kernel.yama.ptrace_scope above 1, or a program that may not be read)", ErrUnavailable, err)
	}
	return nil // most likely EFAULT
}

// raiseLimit lets process pid have descriptors below n, if it may.
func raiseLimit(pid, n int) {
	var lim unix.Rlimit
	if unix.Prlimit(pid, unix.RLIMIT_NOFILE, nil, &lim) == nil && lim.Cur < uint64(n) && lim.Max >= uint64(n) {
		lim.Cur = uint64(n)
		unix.Prlimit(pid, unix.RLIMIT_NOFILE, &lim, nil)
	}
}
