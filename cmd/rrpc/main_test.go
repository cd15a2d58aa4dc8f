package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"
)

// asMain makes the test binary the command, for tests that start processes.
const asMain = "RRPC_TEST_AS_MAIN"

func TestMain(m *testing.M) {
	if os.Getenv(asMain) != "" {
		main()
		os.Exit(0)
	}
	os.Setenv(asMain, "1") // for the processes that hello itself starts
	os.Exit(m.Run())
}

func runHello(t *testing.T, args ...string) (stdout, stderr string, err error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	var out, errs bytes.Buffer
	err = run(ctx, append([]string{"hello", "--device", "sim"}, args...), strings.NewReader(""), &out, &errs)
	return out.String(), errs.String(), err
}

func TestHelloRunsTwoProcessesAndChecksEveryAnswer(t *testing.T) {
	out, errs, err := runHello(t, "--large", "3000001")
	if err != nil {
		t.Fatalf("%v\n%s%s", err, out, errs)
	}
	for _, want := range []string{"server   process", "simulated mlx5_core", "hello ", "large request", "large response", "nested", "every check held"} {
		if !strings.Contains(out, want) {
			t.Errorf("output lacks %q:\n%s", want, out)
		}
	}
	for _, line := range strings.Split(out, "\n") {
		f := strings.Fields(line)
		switch {
		case strings.HasPrefix(line, "hello "), strings.HasPrefix(line, "nested "):
			if strings.Count(strings.Join(f, " "), "UD") != 2 {
				t.Errorf("small messages must go over UD: %s", line)
			}
		case strings.HasPrefix(line, "large "):
			if !strings.Contains(line, " RC ") || !strings.Contains(line, " UD ") {
				t.Errorf("the large message must go over RC, the small one over UD: %s", line)
			}
		}
	}
}

// server starts rrpc hello --serve and returns its URI.
func server(t *testing.T, args ...string) (*exec.Cmd, string) {
	t.Helper()
	cmd := exec.Command(os.Args[0], append([]string{"hello", "--device", "sim", "--serve", "127.0.0.1:0"}, args...)...)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cmd.Process.Kill() })
	in := bufio.NewScanner(out)
	for in.Scan() {
		if uri, ok := strings.CutPrefix(in.Text(), readyLine); ok {
			go func() {
				for in.Scan() {
				}
			}()
			return cmd, uri
		}
	}
	t.Fatal("server ended before it was ready")
	return nil, ""
}

func TestServeAndConnectAreTheTwoHalves(t *testing.T) {
	srv, uri := server(t)
	for range 2 {
		if out, errs, err := runHello(t, "--connect", uri); err != nil {
			t.Fatalf("%v\n%s%s", err, out, errs)
		}
	}
	if runtime.GOOS == "windows" {
		return
	}
	if err := srv.Process.Signal(os.Interrupt); err != nil {
		t.Fatal(err)
	}
	if err := srv.Wait(); err != nil {
		t.Errorf("an interrupted server must end cleanly: %v", err)
	}
}

func TestKeyFileIsForBothHalves(t *testing.T) {
	file := func(name, secret string) string {
		path := filepath.Join(t.TempDir(), name)
		if err := os.WriteFile(path, []byte(secret), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	key := file("key", "sixteen bytes and more\n")
	if out, errs, err := runHello(t, "--key-file", key, "--large", "1000"); err != nil {
		t.Fatalf("%v\n%s%s", err, out, errs)
	}
	_, uri := server(t, "--key-file", key)
	if _, _, err := runHello(t, "--connect", uri, "--key-file", key, "--large", "1000"); err != nil {
		t.Errorf("with the key: %v", err)
	}
	for name, c := range map[string]struct {
		args []string
		want string
	}{
		"without the key":  {nil, "we have none"},
		"with another key": {[]string{"--key-file", file("other", "another sixteen bytes")}, "another key"},
		"with a short key": {[]string{"--key-file", file("short", "short")}, "at least 16"},
		"without the file": {[]string{"--key-file", key + ".missing"}, "key.missing"},
	} {
		if _, _, err := runHello(t, append(c.args, "--connect", uri)...); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestPcapCapturesTheClientsPackets(t *testing.T) {
	file := filepath.Join(t.TempDir(), "hello.pcap")
	out, errs, err := runHello(t, "--large", "100000", "--pcap", file)
	if err != nil {
		t.Fatalf("%v\n%s%s", err, out, errs)
	}
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	// The requests, the answers and what was read are in it, by UD and RC.
	if !bytes.HasPrefix(b, []byte{0x4d, 0x3c, 0xb2, 0xa1}) || len(b) < 200000 || !bytes.Contains(b, []byte(helloText)) || !bytes.Contains(b, []byte(helloAnswer)) {
		t.Errorf("a capture of %d bytes: % x", len(b), b[:min(len(b), 64)])
	}
}

func TestConnectToNobodySaysSo(t *testing.T) {
	_, _, err := runHello(t, "--connect", "127.0.0.1:9", "--timeout", "300ms")
	if err == nil || !strings.Contains(err.Error(), "127.0.0.1:9") || !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v", err)
	}
}

func TestBadFlagsAreUsageErrors(t *testing.T) {
	for _, args := range [][]string{
		nil, {"nonsense"}, {"hello", "x"}, {"hello", "--serve", "a:1", "--connect", "b:2"}, {"hello", "--port", "0"},
		{"hello", "--large", "0"}, {"hello", "--large", "2000000000"}, {"hello", "--nonsense"}, {"hello", "--pcap", "x"}, {"devices", "x"},
	} {
		var out, errs bytes.Buffer
		if err := run(t.Context(), args, strings.NewReader(""), &out, &errs); !errors.Is(err, errUsage) {
			t.Errorf("rrpc %q: %v", args, err)
		}
	}
}

func TestUnusableDeviceSaysWhy(t *testing.T) {
	for _, c := range []struct {
		args []string
		want string
	}{
		{[]string{"--device", "mlx5_99"}, "mlx5_99"},
		{[]string{"--gid-index", "14", "--connect", "127.0.0.1:9"}, "GID"},
		{[]string{"--port", "2", "--connect", "127.0.0.1:9"}, "port 2"},
		{[]string{"--serve", "no.such.host.invalid:1"}, "no.such.host.invalid"},
	} {
		if _, _, err := runHello(t, c.args...); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("hello %q: %v, want %q in it", c.args, err, c.want)
		}
	}
}

func TestDevicesListsOrSaysThatThereIsNone(t *testing.T) {
	var out, errs bytes.Buffer
	err := run(t.Context(), []string{"devices"}, strings.NewReader(""), &out, &errs)
	if err == nil && out.Len() == 0 {
		t.Error("neither a device nor a reason")
	}
}
