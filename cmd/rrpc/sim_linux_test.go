package main

import (
	"bufio"
	"bytes"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"
)

// simCommand is rrpc sim in a process of its own, and of its own process group,
// as a shell starts it.
func simCommand(args ...string) *exec.Cmd {
	cmd := exec.Command(os.Args[0], append([]string{"sim"}, args...)...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	return cmd
}

// runSim runs rrpc sim to its end and skips the test where it cannot serve
// anybody.
func runSim(t *testing.T, args ...string) (stdout, stderr string, status int) {
	t.Helper()
	cmd := simCommand(args...)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	var exit *exec.ExitError
	if err := cmd.Run(); err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	status = cmd.ProcessState.ExitCode()
	if status == exitUnavailable {
		t.Skip(errs.String())
	}
	return out.String(), errs.String(), status
}

func TestSimHasTheProgramsExitStatus(t *testing.T) {
	garbage := filepath.Join(t.TempDir(), "garbage")
	if err := os.WriteFile(garbage, []byte("\x7fELF, it says"), 0o755); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		args   []string
		status int
		stdout string
		stderr string
	}{
		{[]string{"--", "sh", "-c", "echo hello; exit 0"}, 0, "hello\n", ""},
		{[]string{"sh", "-c", "echo oops >&2; exit 69"}, 69, "", "oops\n"},
		{[]string{"sh", "-c", "kill -KILL $$"}, 137, "", ""},
		{[]string{"--", "/there/is/no/such/program"}, exitNotFound, "", "no such file"},
		{[]string{"--", "there-is-no-such-program"}, exitNotFound, "", "not found"},
		{[]string{"--", garbage}, exitNotExecutable, "", "exec format error"},
		{[]string{"--", "/"}, exitNotExecutable, "", "rrpc sim: "},
		{[]string{"--addr", "192.0.2.1", "--", "true"}, exitFailed, "", "192.0.2.1"},
		{[]string{"--pcap", "/there/is/no/such/directory", "--", "true"}, exitFailed, "", "no such file"},
		{[]string{"--loss", "2", "--", "true"}, exitFailed, "", "Loss"},
		{[]string{}, 2, "", "program"},
		{[]string{"--devices", "0", "--", "true"}, 2, "", "--devices"},
		{[]string{"--devices", "33", "--", "true"}, 2, "", "--devices"},
		{[]string{"--mtu", "1500", "--", "true"}, 2, "", "--mtu"},
		{[]string{"--link", "token-ring", "--", "true"}, 2, "", "token-ring"},
		{[]string{"--link", "infiniband", "--loss", "0.1", "--", "true"}, 2, "", "--link infiniband"},
		{[]string{"--link", "infiniband", "--addr", "127.3.2.1", "--", "true"}, 2, "", "--link infiniband"},
		{[]string{"--addr", "127.3.2.1,here", "--", "true"}, 2, "", "--addr"},
		{[]string{"--addr", "127.3.2.1,127.3.2.2", "--", "true"}, 2, "", "2 addresses for 1 device"},
		{[]string{"--nonsense"}, 2, "", "nonsense"},
	} {
		cmd := simCommand(tt.args...)
		var out, errs bytes.Buffer
		cmd.Stdout, cmd.Stderr = &out, &errs
		cmd.Run()
		if strings.Contains(errs.String(), "cannot be served here") {
			t.Skip(errs.String())
		}
		if got := cmd.ProcessState.ExitCode(); got != tt.status || out.String() != tt.stdout || !strings.Contains(errs.String(), tt.stderr) {
			t.Errorf("%q: status %d, %q, %q; want %d, %q, %q", tt.args, got, out.String(), errs.String(), tt.status, tt.stdout, tt.stderr)
		}
	}
}

// This library's own processes find the simulated devices as they find real
// ones.
func TestSimServesHello(t *testing.T) {
	out, errs, status := runSim(t, "--", os.Args[0], "hello", "--device", "mlx5_0", "--large", "3000001")
	if status != 0 || !strings.Contains(out, "every check held") || strings.Contains(out, "simulated mlx5_core") {
		t.Errorf("status %d\n%s%s", status, out, errs)
	}
}

func TestSimHasAsManyDevicesAsAskedFor(t *testing.T) {
	out, errs, status := runSim(t, "--devices", "3", "--mtu", "1024", "--addr", "127.7.7.1,127.7.7.2,127.7.7.3", "--", os.Args[0], "devices")
	if status != 0 || strings.Count(out, "(mlx5_core)") != 3 || strings.Count(out, "MTU 1024 of 1024") != 3 || !strings.Contains(out, "127.7.7.3") {
		t.Errorf("status %d\n%s%s", status, out, errs)
	}
}

func TestSimLosesAndCapturesPackets(t *testing.T) {
	dir := t.TempDir()
	out, errs, status := runSim(t, "--devices", "2", "--pcap", filepath.Join(dir, "x.pcap"), "--loss", "0.02", "--seed", "7",
		"--", os.Args[0], "hello", "--device", "mlx5_0", "--large", "300000")
	if status != 0 || !strings.Contains(out, "every check held") {
		t.Fatalf("status %d\n%s%s", status, out, errs)
	}
	for name, least := range map[string]int64{"x.mlx5_0.pcap": 600000, "x.mlx5_1.pcap": 24} { // both large messages; the header alone
		if st, err := os.Stat(filepath.Join(dir, name)); err != nil || st.Size() < least {
			t.Errorf("%s: %v, %v", name, st, err)
		}
	}
	if _, errs, _ := runSim(t, "--loss", "0.5", "--", "true"); !strings.Contains(errs, "--seed ") {
		t.Errorf("the seed is not told: %s", errs)
	}
}

func TestTwoSimsTalk(t *testing.T) {
	runSim(t, "--", "true") // or skip
	srv := simCommand("--addr", "127.9.8.1", "--", os.Args[0], "hello", "--device", "mlx5_0", "--serve", "127.0.0.1:0", "--until-eof")
	srv.Stderr = os.Stderr
	stdin, err1 := srv.StdinPipe()
	stdout, err2 := srv.StdoutPipe()
	if err := errors.Join(err1, err2, srv.Start()); err != nil {
		t.Fatal(err)
	}
	defer srv.Process.Kill()
	uri := ""
	for in := bufio.NewScanner(stdout); uri == "" && in.Scan(); {
		if rest, ok := strings.CutPrefix(in.Text(), readyLine); ok {
			uri = rest
		}
	}
	out, errs, status := runSim(t, "--addr", "127.9.8.2", "--", os.Args[0], "hello", "--device", "mlx5_0", "--large", "300000", "--connect", uri)
	if status != 0 || !strings.Contains(out, "every check held") {
		t.Errorf("status %d\n%s%s", status, out, errs)
	}
	stdin.Close()
	if err := srv.Wait(); err != nil {
		t.Errorf("server: %v", err)
	}
}

func TestSignalsEndSimAndProgram(t *testing.T) {
	runSim(t, "--", "true") // or skip
	for _, tt := range []struct {
		name   string
		group  bool // the terminal's way
		signal syscall.Signal
	}{{"interrupt of the group", true, syscall.SIGINT}, {"interrupt of rrpc", false, syscall.SIGINT}, {"end of rrpc", false, syscall.SIGTERM}} {
		cmd := simCommand("--", "sh", "-c", "echo $$; exec sleep 1000")
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		line, _ := bufio.NewReader(out).ReadString('\n')
		pid, err := strconv.Atoi(strings.TrimSpace(line))
		if err != nil {
			t.Fatal(err)
		}
		to := cmd.Process.Pid
		if tt.group {
			to = -to
		}
		syscall.Kill(to, tt.signal)
		cmd.Wait()
		if got := cmd.ProcessState.ExitCode(); got != 128+int(tt.signal) {
			t.Errorf("%s: status %d", tt.name, got)
		}
		if syscall.Kill(pid, 0) == nil {
			t.Errorf("%s: the program is still there", tt.name)
		}
	}
}

func TestNothingOutlivesAKilledSim(t *testing.T) {
	runSim(t, "--", "true") // or skip
	t.Setenv("TMPDIR", t.TempDir())
	cmd := simCommand("--", "sh", "-c", `(echo $PPID; while :; do :; done) & sh -c 'echo $$; while :; do :; done' & wait`)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewScanner(out)
	for range 2 {
		lines.Scan()
	}
	cmd.Process.Kill()
	// All of them hold the pipe.
	for lines.Scan() {
		t.Error(lines.Text())
	}
	cmd.Wait()
}

func TestProgramThatDoesNotEndIsKilled(t *testing.T) {
	for _, tt := range []struct {
		name    string
		signals []os.Signal
		after   time.Duration // when it is killed; 0: not
	}{
		{"terminated", []os.Signal{syscall.SIGTERM}, killGrace},
		{"hung up twice", []os.Signal{syscall.SIGHUP, syscall.SIGHUP}, killGrace},
		{"interrupted twice", []os.Signal{os.Interrupt, syscall.SIGQUIT}, 0},
		{"interrupted three times", []os.Signal{os.Interrupt, os.Interrupt, os.Interrupt}, time.Nanosecond},
	} {
		synctest.Test(t, func(t *testing.T) {
			from, to, ended := make(chan os.Signal, 8), make(chan os.Signal, 8), make(chan struct{})
			killed := make(chan error, 8)
			go passSignals(from, to, ended, func(err error) { killed <- err })
			for _, sig := range tt.signals {
				from <- sig
			}
			if tt.after > 0 {
				time.Sleep(tt.after - time.Nanosecond)
				synctest.Wait()
				if len(killed) > 0 && tt.after > time.Second {
					t.Errorf("%s: killed early: %v", tt.name, <-killed)
				}
			}
			time.Sleep(time.Minute)
			synctest.Wait()
			if (len(killed) > 0) != (tt.after > 0) {
				t.Errorf("%s: killed %d times", tt.name, len(killed))
			}
			close(ended)
		})
	}
}

func TestDevinfoOfTheRealLibrary(t *testing.T) {
	if _, err := exec.LookPath("ibv_devinfo"); err != nil {
		t.Skip("ibv_devinfo is not installed; Debian has it in ibverbs-utils")
	}
	out, errs, status := runSim(t, "--devices", "2", "--addr", "127.7.6.1,127.7.6.2", "--", "ibv_devinfo", "-v")
	for _, want := range []string{"hca_id:\tmlx5_0", "hca_id:\tmlx5_1", "PORT_ACTIVE", "::ffff:127.7.6.2, RoCE v2", "Ethernet"} {
		if status != 0 || !strings.Contains(out, want) {
			t.Errorf("status %d, no %q in\n%s%s", status, want, out, errs)
		}
	}
}
