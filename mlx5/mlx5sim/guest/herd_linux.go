//go:build amd64 || arm64

package guest

import (
	"bytes"
	"crypto/rand"
	"fmt"
	"os"
	"slices"
	"strconv"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// herd is the processes that descend from the program. They are told by the
// environment that they began with, and by their parents.
type herd struct {
	reap   bool
	marker string // NAME=VALUE
	guard  int    // has the marker and is none of them; 0 if there is none

	mu   sync.Mutex
	main int // the program's pid; 0 once it was waited for, and may be another's
}

// markerName is the environment variable that programs are known by.
const markerName = "RRPC_SIM"

func newHerd(reap bool) (*herd, error) {
	h := &herd{reap: reap, marker: markerName + "=" + rand.Text()}
	if reap {
		if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
			return nil, fmt.Errorf("prctl PR_SET_CHILD_SUBREAPER: %w", err)
		}
	}
	return h, nil
}

// env is the environment of the program: base, the caller's if that is nil, and
// the marker.
func (h *herd) env(base []string) []string {
	if base == nil {
		base = os.Environ()
	}
	return append(slices.Clone(base), h.marker)
}

// add says which process the program is.
func (h *herd) add(pid int) {
	h.mu.Lock()
	h.main = pid
	h.mu.Unlock()
}

// signal sends sig to the program, if it has not ended.
func (h *herd) signal(sig syscall.Signal) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.main != 0 {
		unix.Kill(h.main, sig)
	}
}

// wait waits for the program and returns how it ended.
func (h *herd) wait(pid int) Exit {
	for {
		which := pid
		if h.reap {
			which = -1
		}
		var ws unix.WaitStatus
		got, err := unix.Wait4(which, &ws, 0, nil)
		switch {
		case err == unix.EINTR:
		case err != nil:
			return Exit{Status: 255} // somebody else waited for it
		case got == pid:
			h.mu.Lock()
			h.main = 0
			h.mu.Unlock()
			if ws.Signaled() {
				return Exit{Signal: int(ws.Signal())}
			}
			return Exit{Status: ws.ExitStatus()}
		}
	}
}

// killTime is how long a killed process may take to end.
const killTime = 10 * time.Second

// killAll kills every process of the herd and returns when none is left, or
// when the kernel does not let go of one. It does not need the supervisor, which
// may be held up by one of them.
func (h *herd) killAll() {
	for start := time.Now(); time.Since(start) < killTime; {
		left := h.members()
		if len(left) == 0 {
			return
		}
		for _, pid := range left {
			unix.Kill(pid, unix.SIGKILL)
		}
		h.collect()
		nanosleep(longestPause)
	}
}

// killOnPanic is deferred by goroutines that the programs depend on: those that
// poll would do so for ever without them.
func (h *herd) killOnPanic() {
	if cause := recover(); cause != nil {
		h.killAll()
		panic(cause)
	}
}

// leave undoes newHerd.
func (h *herd) leave() {
	if h.reap {
		unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0)
	}
}

// collect waits for orphans that have ended.
func (h *herd) collect() {
	h.mu.Lock()
	defer h.mu.Unlock()
	for h.reap && h.main == 0 { // before that, wait does
		if pid, err := unix.Wait4(-1, nil, unix.WNOHANG, nil); pid <= 0 && err != unix.EINTR {
			return
		}
	}
}

// members lists the processes of the herd that are not dead.
func (h *herd) members() []int {
	dir, err := os.Open("/proc")
	if err != nil {
		return nil
	}
	defer dir.Close()
	names, err := dir.Readdirnames(-1)
	if err != nil {
		return nil
	}
	h.mu.Lock()
	main := h.main
	h.mu.Unlock()
	self := os.Getpid()
	parents := make(map[int]int)
	ours := make(map[int]bool)
	for _, name := range names {
		pid, err := strconv.Atoi(name)
		if err != nil || pid == self || pid == h.guard {
			continue
		}
		parent, dead := parentOf(pid)
		if dead {
			continue
		}
		parents[pid] = parent
		if pid == main || h.reap && parent == self || h.marked(pid) {
			ours[pid] = true
		}
	}
	var list []int
	for pid := range parents {
		// A parent may have been a child's number before: the walk is bounded.
		for p, steps := pid, 0; p > 1 && steps < 1000; p, steps = parents[p], steps+1 {
			if ours[p] {
				list = append(list, pid)
				break
			}
		}
	}
	return list
}

// marked reports whether process pid began with the marker in its environment.
func (h *herd) marked(pid int) bool {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/environ", pid))
	return err == nil && bytes.Contains(b, []byte(h.marker))
}

// parentOf reads /proc/pid/stat: "pid (name) state ppid …". The name may hold
// anything.
func parentOf(pid int) (parent int, dead bool) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, true
	}
	f := bytes.Fields(b[bytes.LastIndexByte(b, ')')+1:])
	if len(f) < 2 || f[0][0] == 'Z' || f[0][0] == 'X' {
		return 0, true
	}
	parent, _ = strconv.Atoi(string(f[1]))
	return parent, false
}
