package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func script(t *testing.T, text string) string {
	t.Helper()
	p := filepath.Join(t.TempDir(), "10-job")
	if err := os.WriteFile(p, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	return p
}

func TestJobPassesOnOutputAndExitCode(t *testing.T) {
	var out strings.Builder
	if err := runJob(script(t, "#!/bin/sh\necho $RRPC_GUEST; echo no >&2; exit 3\n"), &out); err == nil || err.Error() != "exit status 3" {
		t.Errorf("error %v", err)
	}
	if out.String() != "1\nno\n" {
		t.Errorf("output %q", out.String())
	}
	if err := runJob(script(t, "true\n"), &out); err != nil {
		t.Error(err)
	}
}

func TestJobThatHangsIsEndedWithItsChildren(t *testing.T) {
	defer func(d time.Duration) { killAfter = d }(killAfter)
	killAfter = 10 * time.Millisecond
	var out strings.Builder
	start := time.Now()
	err := runJob(script(t, "#!/bin/sh\n# timeout: 1\nsleep 1000 & sleep 1000\n"), &out)
	if err == nil || err.Error() != "not done after 1s" {
		t.Errorf("error %v", err)
	}
	// The pipe of the output ends only with the last child.
	if took := time.Since(start); took > 20*time.Second {
		t.Errorf("took %v", took)
	}
	if err := runJob(script(t, "# timeout: soon\n"), &out); err == nil {
		t.Error("a timeout that is no number")
	}
}
