//go:build unix

package main

import (
	"bufio"
	"errors"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"testing"
)

func TestInterruptEndsBothProcesses(t *testing.T) {
	cmd := exec.Command(os.Args[0], "hello", "--device", "sim", "--large", "300000000")
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // as a shell does
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	pid := 0
	in := bufio.NewScanner(out)
	for in.Scan() {
		if f := strings.Fields(in.Text()); len(f) > 2 && f[0] == "server" {
			pid, _ = strconv.Atoi(strings.TrimSuffix(f[2], ":"))
		}
		if strings.HasPrefix(in.Text(), "session") {
			break
		}
	}
	if pid == 0 {
		t.Fatal("no server process named")
	}
	syscall.Kill(-cmd.Process.Pid, syscall.SIGINT)
	for in.Scan() {
	}
	var exit *exec.ExitError
	if err := cmd.Wait(); !errors.As(err, &exit) || exit.ExitCode() != 1 {
		t.Errorf("an interrupted hello must end with 1: %v", err)
	}
	if err := syscall.Kill(pid, 0); err == nil {
		t.Errorf("server process %d is still there", pid)
	}
}
