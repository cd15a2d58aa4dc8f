// Package leakcheck finds file descriptors and goroutines that tests leave
// behind. A package uses it with
//
//	func TestMain(m *testing.M) { leakcheck.Main(m) }
//
// and, to point at one test, with leakcheck.Check(t) as that test's first line.
//
// Descriptors are compared where /proc/self/fd exists (Linux), goroutines
// everywhere. What is leaked is shown with the descriptor's target and with the
// goroutine's stack.
package leakcheck

import (
	"bytes"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"time"
)

// grace is how long something may take to go away by itself after the tests:
// a goroutine that was told to stop needs to be scheduled once more.
const grace = 3 * time.Second

// Main runs the tests of a package and ends the process: with the tests' own
// exit code, or with 1 if they passed but left a descriptor or goroutine
// behind. Each of more is one further check, which may count what the package
// itself hands out (buffers, handles, mappings); it returns nil when nothing is
// left, and is asked again until the grace period ends.
func Main(m interface{ Run() int }, more ...func() error) {
	os.Exit(run(m, os.Stderr, more))
}

func run(m interface{ Run() int }, log *os.File, more []func() error) int {
	before := take()
	code := m.Run()
	if code != 0 || fuzzWorker() {
		// A failed test may have stopped halfway: its leaks are no news. A
		// fuzz worker's pipes belong to its coordinator.
		return code
	}
	if leaks := wait(before, grace, more); leaks != "" {
		fmt.Fprintf(log, "FAIL: the tests passed but leaked:\n%s", leaks)
		return 1
	}
	return 0
}

// TB is the part of testing.TB that Check needs.
type TB interface {
	Helper()
	Cleanup(func())
	Errorf(format string, args ...any)
	Failed() bool
}

// Check fails the test if it leaves a descriptor or goroutine behind. The
// comparison is made after all cleanups that the test registers later. It
// looks at the whole process, so it is not for parallel tests.
func Check(t TB) {
	t.Helper()
	before := take()
	t.Cleanup(func() {
		if t.Failed() {
			return
		}
		if leaks := wait(before, grace, nil); leaks != "" {
			t.Errorf("leaked:\n%s", leaks)
		}
	})
}

func fuzzWorker() bool {
	f := flag.Lookup("test.fuzzworker")
	return f != nil && f.Value.String() == "true"
}

// state is what exists at one moment. A key is compared, its value is shown.
type state struct {
	fds        map[string]string // "7 /dev/null": descriptor and target
	goroutines map[string]string // id: stack
}

func take() state {
	// The runtime opens its poller's descriptors when the first file needs
	// them, and keeps them for ever: have that happen before counting.
	if r, w, err := os.Pipe(); err == nil {
		r.Close()
		w.Close()
	}
	return state{fds: descriptors(), goroutines: goroutines()}
}

// wait returns what is there and was not before, once the grace period has
// passed, or "" as soon as there is nothing.
func wait(before state, grace time.Duration, more []func() error) string {
	deadline := time.Now().Add(grace)
	for pause := time.Millisecond; ; pause = min(2*pause, 100*time.Millisecond) {
		leaks := diff(before, take())
		for _, check := range more {
			if err := check(); err != nil {
				leaks += fmt.Sprintf("%v\n", err)
			}
		}
		if leaks == "" || time.Now().After(deadline) {
			return leaks
		}
		time.Sleep(pause)
	}
}

func diff(before, after state) string {
	var lines []string
	for key := range after.fds {
		if _, ok := before.fds[key]; !ok {
			lines = append(lines, "fd "+key+"\n")
		}
	}
	for id, stack := range after.goroutines {
		if _, ok := before.goroutines[id]; !ok {
			lines = append(lines, stack+"\n")
		}
	}
	slices.Sort(lines)
	return strings.Join(lines, "")
}

func descriptors() map[string]string {
	const dir = "/proc/self/fd"
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil
	}
	fds := make(map[string]string, len(entries))
	for _, e := range entries {
		target, err := os.Readlink(filepath.Join(dir, e.Name()))
		if err != nil {
			continue // ReadDir's own descriptor, closed by now
		}
		fds[e.Name()+" "+target] = target
	}
	return fds
}

// lasting are goroutines that the standard library starts once and keeps.
var lasting = []string{
	"os/signal.signal_recv",
	"os/signal.loop",
	"runtime.ensureSigM",
}

func goroutines() map[string]string {
	buf := make([]byte, 64<<10)
	for {
		n := runtime.Stack(buf, true)
		if n < len(buf) {
			buf = buf[:n]
			break
		}
		buf = make([]byte, 2*len(buf))
	}
	all := make(map[string]string)
	for _, stack := range bytes.Split(buf, []byte("\n\n")) {
		s := string(bytes.TrimSpace(stack))
		// The first line is "goroutine 7 [chan receive]:".
		id, ok := strings.CutPrefix(s, "goroutine ")
		if !ok || slices.ContainsFunc(lasting, func(name string) bool { return strings.Contains(s, name) }) {
			continue
		}
		id, _, _ = strings.Cut(id, " ")
		all[id] = s
	}
	return all
}
