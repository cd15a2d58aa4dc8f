//go:build amd64 || arm64

package guest

import (
	"fmt"
	"os"
	"runtime"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// launched is a program under the filter.
type launched struct {
	pid      int
	listener int // the filter's descriptor; the caller's to close

	once sync.Once
	done chan struct{} // closed: the thread that forked may end
}

// release lets the thread that forked the program end.
func (l *launched) release() { l.once.Do(func() { close(l.done) }) }

// launch installs the filter on a thread that does nothing else, and starts the
// program from it. The filter holds for that thread and what it forks, not for
// this process.
//
// The thread stays until release: with it the program would die (Pdeathsig), so
// that it does not outlive this process, whatever ends that.
func launch(cfg *Config, program string, env []string, filter []unix.SockFilter) (*launched, error) {
	files, closeFiles, err := standardFiles(cfg)
	if err != nil {
		return nil, err
	}
	defer closeFiles()
	attr := &syscall.ProcAttr{Dir: cfg.Dir, Env: env, Files: files, Sys: &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}}
	result := make(chan error, 1)
	l := &launched{listener: -1, done: make(chan struct{})}
	onOwnThread(func() {
		var err error
		if l.listener, err = installFilter(filter); err == nil {
			if l.pid, err = syscall.ForkExec(program, cfg.Args, attr); err != nil {
				unix.Close(l.listener)
				err = fmt.Errorf("%w: %s: %w", ErrExec, program, err)
			}
		}
		result <- err
		if err == nil {
			<-l.done
		}
	})
	if err := <-result; err != nil {
		return nil, err
	}
	return l, nil
}

// onOwnThread calls f on a thread that ends with it, and returns at once. The
// process's first thread cannot end, so f never gets that one: what is done to
// it would stay, and be inherited by every thread after it.
func onOwnThread(f func()) {
	go func() {
		runtime.LockOSThread()
		if unix.Gettid() == unix.Getpid() {
			// Another goroutine gets another thread while this one is held.
			onOther := make(chan struct{})
			go func() {
				runtime.LockOSThread()
				close(onOther)
				f()
			}()
			<-onOther
			runtime.UnlockOSThread()
			return
		}
		f()
	}()
}

// standardFiles are descriptors 0 to 2 of the program.
func standardFiles(cfg *Config) (fds []uintptr, closeAll func(), err error) {
	var null *os.File
	closeAll = func() {
		if null != nil {
			null.Close()
		}
	}
	for _, f := range []*os.File{cfg.Stdin, cfg.Stdout, cfg.Stderr} {
		if f == nil {
			if null == nil {
				if null, err = os.OpenFile(os.DevNull, os.O_RDWR, 0); err != nil {
					return nil, closeAll, err
				}
			}
			f = null
		}
		fds = append(fds, f.Fd())
	}
	return fds, closeAll, nil
}
