package programs

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
	"time"
)

// rrpc is the command under test, built once.
var rrpc = sync.OnceValues(func() (string, error) {
	bin := filepath.Join(binDir, "rrpc")
	cmd := exec.Command("go", "build", "-o", bin, "github.com/rrppcc-go/rrppcc/cmd/rrpc")
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("go build: %w\n%s", err, out)
	}
	return bin, nil
})

var binDir string

func TestMain(m *testing.M) {
	dir, err := os.MkdirTemp("", "programs")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	binDir = dir
	code := m.Run()
	os.RemoveAll(dir)
	os.Exit(code)
}

// unavailable is the exit code by which rrpc sim says that this system does not
// let it serve programs.
const unavailable = 69 // EX_UNAVAILABLE

var available = sync.OnceValue(func() error {
	bin, err := rrpc()
	if err != nil {
		return err
	}
	out, err := exec.Command(bin, "sim", "--", "true").CombinedOutput()
	if err != nil {
		return fmt.Errorf("%w: %s", err, lastLine(string(out)))
	}
	return nil
})

// needs skips the test where programs cannot be served or one is missing.
func needs(t *testing.T, programs ...string) {
	t.Helper()
	for _, p := range programs {
		if _, err := exec.LookPath(p); err != nil {
			t.Skipf("%v (Debian: ibverbs-utils, perftest, python3-pyverbs)", err)
		}
	}
	if err := available(); err != nil {
		var exit *exec.ExitError
		if errors.As(err, &exit) && exit.ExitCode() == unavailable {
			t.Skip(err)
		}
		t.Fatal(err)
	}
}

// sim is "rrpc sim" with args, which ends with ctx.
func sim(ctx context.Context, t *testing.T, args ...string) *exec.Cmd {
	t.Helper()
	bin, err := rrpc()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(ctx, bin, append([]string{"sim"}, args...)...)
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	cmd.WaitDelay = 10 * time.Second
	return cmd
}
