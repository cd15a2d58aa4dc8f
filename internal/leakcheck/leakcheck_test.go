package leakcheck

import (
	"errors"
	"os"
	"runtime"
	"strings"
	"testing"
	"time"
)

func TestMain(m *testing.M) { Main(m) }

type fakeM func() int

func (f fakeM) Run() int { return f() }

func TestNothingLeakedPasses(t *testing.T) {
	code := run(fakeM(func() int {
		f, err := os.Open(os.Args[0])
		if err != nil {
			t.Fatal(err)
		}
		f.Close()
		done := make(chan struct{})
		go close(done)
		<-done
		return 0
	}), os.Stderr, nil)
	if code != 0 {
		t.Errorf("exit code %d without a leak", code)
	}
}

func TestLeakedDescriptorIsNamed(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("descriptors are listed on Linux only")
	}
	before := take()
	f, err := os.Open(os.Args[0])
	if err != nil {
		t.Fatal(err)
	}
	leaks := wait(before, time.Millisecond, nil)
	if !strings.Contains(leaks, os.Args[0]) {
		t.Errorf("leaks %q do not name %s", leaks, os.Args[0])
	}
	f.Close()
	if leaks := wait(before, grace, nil); leaks != "" {
		t.Errorf("closed, and still a leak: %s", leaks)
	}
}

func leakedGoroutine(stop chan struct{}) { <-stop }

func TestLeakedGoroutineIsShownWithItsStack(t *testing.T) {
	before := take()
	stop := make(chan struct{})
	go leakedGoroutine(stop)
	leaks := wait(before, time.Millisecond, nil)
	if !strings.Contains(leaks, "leakedGoroutine") {
		t.Errorf("leaks %q do not show the stack", leaks)
	}
	close(stop)
	if leaks := wait(before, grace, nil); leaks != "" {
		t.Errorf("stopped, and still a leak: %s", leaks)
	}
}

func TestFurtherCheckIsAskedUntilItPasses(t *testing.T) {
	asked := 0
	leaks := wait(take(), grace, []func() error{func() error {
		if asked++; asked < 3 {
			return errors.New("2 buffers out")
		}
		return nil
	}})
	if leaks != "" || asked != 3 {
		t.Errorf("leaks %q after %d questions", leaks, asked)
	}
	leaks = wait(take(), time.Millisecond, []func() error{func() error { return errors.New("2 buffers out") }})
	if leaks != "2 buffers out\n" {
		t.Errorf("leaks %q", leaks)
	}
}

func TestExitCodeOfTestsIsKept(t *testing.T) {
	if code := run(fakeM(func() int { return 2 }), os.Stderr, nil); code != 2 {
		t.Errorf("exit code %d, want the tests' 2", code)
	}
}

// recorder stands for a test that uses Check.
type recorder struct {
	cleanup func()
	errors  int
	failed  bool
}

func (r *recorder) Helper()               {}
func (r *recorder) Cleanup(f func())      { r.cleanup = f }
func (r *recorder) Errorf(string, ...any) { r.errors++ }
func (r *recorder) Failed() bool          { return r.failed }

func TestCheckReportsUnlessTestFailedAnyway(t *testing.T) {
	for failed, want := range map[bool]int{false: 1, true: 0} {
		stop := make(chan struct{})
		r := &recorder{failed: failed}
		Check(r)
		go leakedGoroutine(stop)
		r.cleanup()
		if r.errors != want {
			t.Errorf("failed=%v: %d errors, want %d", failed, r.errors, want)
		}
		close(stop)
	}
}
