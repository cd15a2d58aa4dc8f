//go:build amd64 || arm64

package guest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/rrppcc-go/rrppcc/internal/leakcheck"
	"github.com/rrppcc-go/rrppcc/mlx5/mlx5sim"
)

// patience is how long a program of a test may take: it ends a hang, and is no
// measure of anything.
const patience = 2 * time.Minute

// runner runs programs against devices.
type runner struct {
	t    testing.TB
	devs []*mlx5sim.Device
	log  syncBuffer // of the supervisor
	out  syncBuffer // of the programs
}

func newRunner(t testing.TB) *runner {
	t.Helper()
	leakcheck.Check(t)
	return &runner{t: t, devs: newDevices(t, 2)}
}

// syncBuffer is a buffer that one goroutine writes and others look at.
type syncBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *syncBuffer) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *syncBuffer) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}

// scenario is the configuration that runs this binary's scenario name.
func scenario(name string, args ...string) Config {
	return Config{
		Args: append([]string{"/proc/self/exe"}, args...),
		Env:  append(os.Environ(), scenarioVar+"="+name),
	}
}

// run runs the program of cfg and returns how it ended. The test is skipped
// where nothing can be run.
func (r *runner) run(ctx context.Context, cfg Config) (Exit, error) {
	r.t.Helper()
	cfg.Devices = r.devs
	cfg.Log = slog.New(slog.NewTextHandler(&r.log, nil))
	ctx, cancel := context.WithTimeoutCause(ctx, patience, errors.New("the test's patience has ended"))
	defer cancel()
	if cfg.Args[0] == "/proc/self/exe" { // of the supervisor
		self, err := os.Executable()
		if err != nil {
			r.t.Fatal(err)
		}
		cfg.Args[0] = self
	}
	pr, pw, err := os.Pipe()
	if err != nil {
		r.t.Fatal(err)
	}
	cfg.Stdout, cfg.Stderr = pw, pw
	copied := make(chan struct{})
	go func() {
		io.Copy(&r.out, pr)
		pr.Close()
		close(copied)
	}()
	exit, err := Run(ctx, cfg)
	pw.Close()
	<-copied
	if errors.Is(err, ErrUnavailable) {
		r.t.Skip(err)
	}
	return exit, err
}

// ok runs a program that must succeed.
func (r *runner) ok(cfg Config) {
	r.t.Helper()
	if exit, err := r.run(context.Background(), cfg); err != nil || exit.Code() != 0 {
		r.t.Fatalf("%v: ended with %d, %v\n%s\n%s", cfg.Args, exit.Code(), err, r.out.String(), r.log.String())
	}
}

func TestExitOfTheProgramIsTold(t *testing.T) {
	r := newRunner(t)
	for script, want := range map[string]Exit{
		"exit 0": {}, "exit 42": {Status: 42}, "kill -9 $$": {Signal: 9}, "kill -TERM $$": {Signal: 15},
	} {
		if got, err := r.run(context.Background(), Config{Args: []string{"sh", "-c", script}}); err != nil || got != want {
			t.Errorf("%s: %+v, %v; want %+v", script, got, err, want)
		}
	}
}

func TestProgramsThatCannotBeStarted(t *testing.T) {
	r := newRunner(t)
	dir := t.TempDir()
	garbage := dir + "/garbage"
	if err := os.WriteFile(garbage, []byte("\x7fELF, it says"), 0o755); err != nil {
		t.Fatal(err)
	}
	plain := dir + "/plain"
	if err := os.WriteFile(plain, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]error{
		"there is no such program": exec.ErrNotFound, dir + "/nothing": fs.ErrNotExist, plain: fs.ErrPermission, garbage: ErrExec,
	} {
		if _, err := r.run(context.Background(), Config{Args: []string{name}}); !errors.Is(err, want) {
			t.Errorf("%s: %v, want %v", name, err, want)
		}
	}
	if _, err := r.run(context.Background(), Config{Args: []string{"pwd"}, Dir: dir + "/nothing"}); !errors.Is(err, ErrExec) {
		t.Errorf("a directory that is not there: %v", err)
	}
	r.ok(Config{Args: []string{"pwd"}, Dir: dir})
	if got := strings.TrimSpace(r.out.String()); got != dir {
		t.Errorf("it ran in %s, want %s", got, dir)
	}
}

// ended waits until process pid is gone or a zombie.
func ended(pid int) error {
	for deadline := time.Now().Add(patience); hasMemory(pid); {
		if time.Now().After(deadline) {
			return fmt.Errorf("process %d is still there", pid)
		}
		nanosleep(time.Millisecond)
	}
	return nil
}

// number waits for the n-th number that the programs printed.
func (r *runner) number(n int) int {
	r.t.Helper()
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); nanosleep(time.Millisecond) {
		f := strings.Fields(r.out.String())
		if len(f) > n {
			pid, err := strconv.Atoi(f[n])
			if err != nil {
				r.t.Fatal(err)
			}
			return pid
		}
	}
	r.t.Fatal("the program says nothing")
	return 0
}

func TestWhatAProgramLeavesBehindIsKilled(t *testing.T) {
	r := newRunner(t)
	r.ok(Config{Args: []string{"sh", "-c", "sleep 1000 & echo $!; (while :; do :; done) & echo $!"}, Linger: time.Millisecond})
	for n := range 2 {
		if err := ended(r.number(n)); err != nil {
			t.Error(err)
		}
	}
}

func TestWhatAProgramLeavesBehindMayEnd(t *testing.T) {
	r := newRunner(t)
	dir := t.TempDir()
	r.ok(Config{Args: []string{"sh", "-c", "(sleep 0.2; : > done) &"}, Dir: dir, Linger: patience})
	if _, err := os.Stat(dir + "/done"); err != nil {
		t.Error(err)
	}
}

func TestEndOfContextKillsAll(t *testing.T) {
	r := newRunner(t)
	ctx, cancel := context.WithCancelCause(context.Background())
	enough := errors.New("enough")
	go func() {
		r.number(1)
		cancel(enough)
	}()
	exit, err := r.run(ctx, Config{Args: []string{"sh", "-c", "trap '' TERM INT; sleep 1000 & echo $! $$; wait"}})
	if !errors.Is(err, enough) || exit.Signal != int(unix.SIGKILL) {
		t.Errorf("%+v, %v", exit, err)
	}
	for n := range 2 {
		if err := ended(r.number(n)); err != nil {
			t.Error(err)
		}
	}
}

func TestSignalsArePassedOn(t *testing.T) {
	r := newRunner(t)
	signals := make(chan os.Signal, 1)
	go func() {
		r.number(0)
		signals <- unix.SIGTERM
	}()
	exit, err := r.run(context.Background(), Config{Args: []string{"sh", "-c", "trap 'exit 5' TERM; echo $$; while :; do sleep 0.01; done"}, Signals: signals})
	if err != nil || exit.Status != 5 {
		t.Errorf("%+v, %v", exit, err)
	}
}

func init() {
	scenarios["nested"] = func([]string) error {
		d, err := mlx5sim.New(mlx5sim.InProcess())
		if err != nil {
			return err
		}
		defer d.Close()
		_, err = Run(context.Background(), Config{Devices: []*mlx5sim.Device{d}, Args: []string{"true"}})
		if !errors.Is(err, ErrUnavailable) {
			return fmt.Errorf("Run within Run: %v, want ErrUnavailable", err)
		}
		return nil
	}
	// supervise runs its arguments, and fails as they do.
	scenarios["supervise"] = func(args []string) error {
		var devs []*mlx5sim.Device
		for i := range 2 {
			d, err := mlx5sim.New(mlx5sim.InProcess(), mlx5sim.WithName(fmt.Sprintf("mlx5_%d", i)))
			if err != nil {
				return err
			}
			defer d.Close()
			devs = append(devs, d)
		}
		os.Unsetenv(scenarioVar)
		exit, err := Run(context.Background(), Config{Devices: devs, Args: args, Stdout: os.Stdout, Stderr: os.Stderr, Reap: true})
		if exit.Status != 0 {
			err = errors.Join(err, fmt.Errorf("%v ended with %d", args, exit.Status))
		}
		return err
	}
}

func TestOneSupervisorIsEnough(t *testing.T) { newRunner(t).ok(scenario("nested")) }

// supervisor starts a supervisor of a process of its own, on args.
func (r *runner) supervisor(args ...string) *exec.Cmd {
	r.t.Helper()
	r.ok(Config{Args: []string{"true"}}) // or skip
	self, err := os.Executable()
	if err != nil {
		r.t.Fatal(err)
	}
	cmd := exec.Command(self, args...)
	cmd.Env = append(os.Environ(), scenarioVar+"=supervise")
	cmd.Stdout, cmd.Stderr = &r.out, &r.out
	if err := cmd.Start(); err != nil {
		r.t.Fatal(err)
	}
	return cmd
}

func TestProgramDiesWithItsSupervisor(t *testing.T) {
	tmp := t.TempDir()
	t.Setenv("TMPDIR", tmp)
	r := newRunner(t)
	cmd := r.supervisor("sh", "-c", "echo $$; while :; do :; done") // it asks for nothing
	pid := r.number(0)
	cmd.Process.Kill()
	cmd.Wait()
	if err := ended(pid); err != nil {
		t.Error(err)
	}
	// Its directory is left to the next supervisor.
	left, _ := filepath.Glob(filepath.Join(tmp, treePrefix+"*"))
	if len(left) != 1 {
		t.Fatalf("directories: %q", left)
	}
	if err := os.Chtimes(left[0], time.Time{}, time.Now().Add(-2*staleAge)); err != nil {
		t.Fatal(err)
	}
	r.ok(Config{Args: []string{"true"}})
	if _, err := os.Stat(left[0]); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("%s: %v", left[0], err)
	}
}

func TestOrphansAreAdopted(t *testing.T) {
	r := newRunner(t)
	cmd := r.supervisor("sh", "-c", "(env -i sleep 1000 & echo $!); echo $$; sleep 1000")
	orphan, program := r.number(0), r.number(1)
	for deadline := time.Now().Add(patience); ; nanosleep(time.Millisecond) {
		if parent, _ := parentOf(orphan); parent == cmd.Process.Pid {
			break
		} else if time.Now().After(deadline) {
			t.Fatalf("the orphan's parent is %d, the supervisor %d", parent, cmd.Process.Pid)
		}
	}
	unix.Kill(program, unix.SIGTERM)
	if err := cmd.Wait(); err != nil {
		t.Error(err, r.out.String())
	}
	if err := ended(orphan); err != nil {
		t.Error(err)
	}
}

func TestProbeOfWhatCannotForbid(t *testing.T) {
	for name, pid := range map[string]int{"this process": os.Getpid(), "none": 1<<22 + 1} {
		if err := probe(pid); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// Whoever runs the tests as root runs one program without any right.
func TestNobodyMayRunPrograms(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("only root can become nobody; all other tests run without root here")
	}
	newRunner(t).ok(Config{Args: []string{"true"}}) // or skip
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(self)
	if err != nil {
		t.Fatal(err)
	}
	// Nobody can read neither the test's binary nor its temporary directories.
	dir, err := os.MkdirTemp("/tmp", "nobody")
	if err != nil {
		t.Skip(err)
	}
	defer os.RemoveAll(dir)
	copied := filepath.Join(dir, "guest.test")
	if err := errors.Join(os.Chmod(dir, 0o755), os.WriteFile(copied, b, 0o755)); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(copied, "env", scenarioVar+"=close", copied)
	cmd.Env = append(os.Environ(), scenarioVar+"=supervise", "TMPDIR=/tmp")
	cmd.Dir = dir
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
}
