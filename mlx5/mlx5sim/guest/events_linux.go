//go:build amd64 || arm64

package guest

import (
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/rrppcc-go/rrppcc/mlx5/mlx5sim"
)

// eventPipe is a completion channel or an async event file: a pipe of packets,
// of which the program has the reading end. One read returns one record, as of
// the kernel's files. Only the program holds that end, so the kernel tells when
// its last reference is gone; the records that nobody has read are taken back by
// opening the pipe once more.
type eventPipe struct {
	s  *supervisor
	fd int32 // in the program
	w  int   // our end
	f  *deviceFile
}

var _ mlx5sim.EventSink = (*eventPipe)(nil)

// maxPipes bounds the event files of one open of a device.
const maxPipes = 1024

// newEvents puts the reading end of a new pipe into the program whose command
// executes.
func (s *supervisor) newEvents(f *deviceFile) (mlx5sim.EventSink, error) {
	if len(f.pipes) >= maxPipes {
		return nil, unix.EMFILE
	}
	var p [2]int
	if err := unix.Pipe2(p[:], unix.O_CLOEXEC|unix.O_DIRECT); err != nil {
		return nil, err
	}
	defer unix.Close(p[0])
	e := &eventPipe{s: s, w: p[1], f: f}
	err := unix.SetNonblock(e.w, true)
	if err == nil {
		var fd int
		fd, err = addFD(s.listener, f.asking.id, p[0], -1, true)
		e.fd = int32(fd)
	}
	if err != nil {
		unix.Close(e.w)
		return nil, err
	}
	// The number may be known still: its file was duplicated and closed, or is
	// another process's.
	if f.pipes[e.fd] != nil {
		f.foreign.CloseEvents(e.fd)
	}
	f.pipes[e.fd] = e
	s.mu.Lock()
	s.pipes[int32(e.w)] = e
	s.mu.Unlock()
	if err := watch(s.changes, e.w, 0); err != nil { // EPOLLERR comes unasked
		e.Close()
		return nil, err
	}
	return e, nil
}

// pipeClosed tells the device that nobody reads the pipe w any more.
func (s *supervisor) pipeClosed(w int32) {
	s.mu.Lock()
	e := s.pipes[w]
	s.mu.Unlock()
	if e == nil {
		return
	}
	// The number w may have been another pipe's when it was reported.
	now := []unix.PollFd{{Fd: w}}
	if n, err := unix.Poll(now, 0); n != 1 || err != nil || now[0].Revents&unix.POLLERR == 0 {
		return
	}
	if e.f.pipes[e.fd] == e {
		e.f.foreign.CloseEvents(e.fd)
		delete(e.f.pipes, e.fd)
	}
	e.Close()
}

// FD implements mlx5sim.EventSink.
func (e *eventPipe) FD() int32 { return e.fd }

// Send implements mlx5sim.EventSink. A full pipe is EAGAIN.
func (e *eventPipe) Send(rec []byte) error {
	for {
		_, err := unix.Write(e.w, rec)
		if err != unix.EINTR {
			return err
		}
	}
}

// TakeBack implements mlx5sim.EventSink.
func (e *eventPipe) TakeBack(cookie uint64) (taken int) {
	r, err := unix.Open(fmt.Sprintf("/proc/self/fd/%d", e.w), unix.O_RDONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return 0
	}
	defer unix.Close(r)
	var kept [][]byte
	for {
		var rec [16]byte // an async record; a completion record is shorter
		n, err := unix.Read(r, rec[:])
		switch {
		case err == unix.EINTR:
			continue
		case n >= 8 && le.Uint64(rec[:]) == cookie:
			taken++
			continue
		case n > 0:
			kept = append(kept, rec[:n])
			continue
		}
		break
	}
	for _, rec := range kept {
		e.Send(rec) // there is room: they were in it before, and nobody else writes
	}
	return taken
}

// Close implements mlx5sim.EventSink. A reader finds the end of the file.
func (e *eventPipe) Close() error {
	e.s.mu.Lock()
	defer e.s.mu.Unlock()
	if e.s.pipes[int32(e.w)] != e {
		return nil
	}
	delete(e.s.pipes, int32(e.w))
	return unix.Close(e.w)
}
