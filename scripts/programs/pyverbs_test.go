package programs

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

var update = flag.Bool("update", false, "write testdata/pyverbs/results.txt anew")

const (
	// pyverbsTests is where Debian's python3-pyverbs has rdma-core's tests, some
	// of them compressed.
	pyverbsTests = "/usr/share/doc/rdma-core/tests"
	// python is the interpreter that Debian's pyverbs is made for.
	python = "/usr/bin/python3"

	resultsFile = "testdata/pyverbs/results.txt"
)

// verdict is how a test ended: "ok", "skipped", "failed", "error", or "crashed"
// if it took the process with it.
type verdict struct {
	kind   string
	reason string
}

// TestPyverbs runs rdma-core's unit tests of its Python binding on the real
// libmlx5 and compares every result with the recorded one.
func TestPyverbs(t *testing.T) {
	needs(t, python)
	if out, err := exec.Command(python, "-c", "import pyverbs.device").CombinedOutput(); err != nil {
		t.Skipf("no pyverbs (Debian: python3-pyverbs): %v: %s", err, lastLine(string(out)))
	}
	if _, err := os.Stat(pyverbsTests); err != nil {
		t.Skipf("pyverbs' tests are not installed: %v", err)
	}
	dir := t.TempDir()
	unpackTests(t, filepath.Join(dir, "tests"))
	got := runPyverbs(t, dir)

	count := map[string]int{}
	for _, v := range got {
		count[v.kind]++
	}
	t.Logf("pyverbs: %d ok, %d skipped, %d failed, %d errors, %d crashed", count["ok"], count["skipped"], count["failed"], count["error"], count["crashed"])
	if *update {
		writeResults(t, got)
		return
	}
	want := readResults(t)
	for _, id := range sortedKeys(want) {
		g, ran := got[id]
		switch {
		case !ran:
			t.Errorf("%s did not run; recorded is %q", id, want[id])
		case g.kind != want[id]:
			t.Errorf("%s: %s (%s); recorded is %q", id, g.kind, g.reason, want[id])
		}
	}
	for _, id := range sortedKeys(got) {
		if _, known := want[id]; !known {
			t.Errorf("%s: %s (%s); it is not in %s", id, got[id].kind, got[id].reason, resultsFile)
		}
	}
}

// unpackTests copies pyverbs' tests to dir, uncompressed.
func unpackTests(t *testing.T, dir string) {
	t.Helper()
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	files, err := os.ReadDir(pyverbsTests)
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		data, err := os.ReadFile(filepath.Join(pyverbsTests, f.Name()))
		if err != nil {
			t.Fatal(err)
		}
		name, compressed := strings.CutSuffix(f.Name(), ".gz")
		if compressed {
			z, err := gzip.NewReader(bytes.NewReader(data))
			if err != nil {
				t.Fatal(err)
			}
			if data, err = io.ReadAll(z); err != nil {
				t.Fatal(err)
			}
		}
		if err := os.WriteFile(filepath.Join(dir, name), data, 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

// runPyverbs runs all tests of dir, each crash in a new process behind the last.
func runPyverbs(t *testing.T, dir string) map[string]verdict {
	t.Helper()
	script, err := filepath.Abs("testdata/pyverbs/run.py")
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]verdict{}
	for next, crashes := 0, 0; ; crashes++ {
		ctx, cancel := context.WithTimeout(context.Background(), 4*time.Minute)
		cmd := sim(ctx, t, "--devices", "2", "--", python, script, dir, strconv.Itoa(next))
		var out, log bytes.Buffer
		cmd.Stdout, cmd.Stderr = &out, &log
		runErr := cmd.Run()
		late := ctx.Err()
		cancel()
		r := readRun(t, &out, got)
		if r.total == 0 || late != nil {
			t.Fatalf("the tests did not run to their end: %v\n%s", errors.Join(runErr, late), log.String())
		}
		if r.running == "" {
			if r.next != r.total {
				t.Fatalf("the tests ended at %d of %d: %v\n%s", r.next, r.total, runErr, log.String())
			}
			return got
		}
		got[r.running] = verdict{"crashed", fmt.Sprint(runErr)}
		if crashes == 20 {
			t.Fatalf("the %d. crash, in %s: %v\n%s", crashes+1, r.running, runErr, log.String())
		}
		if next = r.next; next == r.total {
			return got
		}
	}
}

// pyRun is what one process said of itself.
type pyRun struct {
	total   int
	next    int    // test behind the last one that was started
	running string // test that was started and did not end
}

func readRun(t *testing.T, out io.Reader, got map[string]verdict) (r pyRun) {
	t.Helper()
	lines := bufio.NewScanner(out)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		word, rest, _ := strings.Cut(lines.Text(), " ")
		switch word {
		case "total":
			r.total, _ = strconv.Atoi(rest)
		case "start":
			i, id, _ := strings.Cut(rest, " ")
			r.running = id
			n, err := strconv.Atoi(i)
			if err != nil {
				t.Fatalf("bad line %q", lines.Text())
			}
			r.next = n + 1
		case "end":
			_, rest, _ = strings.Cut(rest, " ")
			kind, reason, _ := strings.Cut(rest, " ")
			got[r.running] = verdict{kind, reason}
			r.running = ""
		}
	}
	return r
}

// The results file has a line "kind id" per test; "#" starts a comment, such as
// the reason that was given when it was recorded.
func readResults(t *testing.T) map[string]string {
	t.Helper()
	data, err := os.ReadFile(resultsFile)
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]string{}
	for line := range strings.Lines(string(data)) {
		line, _, _ = strings.Cut(line, "#")
		if f := strings.Fields(line); len(f) == 2 {
			want[f[1]] = f[0]
		} else if len(f) != 0 {
			t.Fatalf("%s: bad line %q", resultsFile, line)
		}
	}
	return want
}

func writeResults(t *testing.T, got map[string]verdict) {
	t.Helper()
	var b strings.Builder
	b.WriteString("# Results of rdma-core's pyverbs tests on the simulated ConnectX, written by\n# go test ./scripts/programs -run Pyverbs -update\n")
	for _, id := range sortedKeys(got) {
		v := got[id]
		fmt.Fprintf(&b, "%-7s %s", v.kind, id)
		if v.reason != "" {
			fmt.Fprintf(&b, "  # %s", v.reason)
		}
		b.WriteString("\n")
	}
	if err := os.WriteFile(resultsFile, []byte(b.String()), 0o644); err != nil {
		t.Fatal(err)
	}
}

func sortedKeys[V any](m map[string]V) []string {
	var keys []string
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}

func lastLine(s string) string {
	s = strings.TrimSpace(s)
	return s[strings.LastIndexByte(s, '\n')+1:]
}
