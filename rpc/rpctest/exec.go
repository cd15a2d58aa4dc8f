package rpctest

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"time"

	"github.com/rrppcc-go/rrppcc/internal/leakcheck"
)

// roleEnv makes a test binary something else; its value is a role as JSON.
const roleEnv = "RRPC_TEST_ROLE"

// role is what a process that a test starts is to be: a server, or a client that
// calls without end.
type role struct {
	Server ServerConfig
	Caller *caller `json:",omitempty"`
	Device string  // of the machine; empty: a simulated one that talks UDP
}

// startLimit is how long a server may take to start or to end.
const startLimit = 30 * time.Second

// Main is for TestMain: it runs the tests of a package under leakcheck, or plays
// the role that [TwoProcesses] or [Kills] started the process for.
func Main(m interface{ Run() int }) {
	if text, ok := os.LookupEnv(roleEnv); ok {
		if err := play(text); err != nil {
			fmt.Fprintln(os.Stderr, "rpctest:", err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	leakcheck.Main(m)
}

// play plays a role until standard input ends. It prints one line, a server its
// URI, as soon as it does what it is to do.
func play(text string) error {
	var r role
	if err := json.Unmarshal([]byte(text), &r); err != nil {
		return err
	}
	b := Loopback()
	if r.Device != "" {
		var err error
		if b, err = Device(r.Device, r.Device); err != nil {
			return err
		}
	}
	if r.Caller != nil {
		return r.Caller.run(b)
	}
	s, err := startLocal(b, r.Server)
	if err != nil {
		return err
	}
	fmt.Println(s.URI())
	_, err = io.Copy(io.Discard, os.Stdin)
	return errors.Join(err, s.Close())
}

type execBackend struct {
	simBackend
}

// TwoProcesses returns a backend whose servers are processes of their own: the
// running test binary, started again. Simulated devices talk UDP.
func TwoProcesses() Backend {
	b := &execBackend{*Loopback().(*simBackend)}
	b.name = "two processes"
	return b
}

func (b *execBackend) Lacks(c Capability) string {
	if c == SlowTests {
		return ""
	}
	return fmt.Sprintf("the servers are other processes, without %s", c)
}

// process is a process that plays a role.
type process struct {
	cmd    *exec.Cmd
	stdin  io.WriteCloser
	line   string // what it printed
	stderr strings.Builder
	killed bool
}

func (b *execBackend) StartServer(cfg ServerConfig) (Server, error) {
	p, err := start(role{Server: cfg})
	if err != nil {
		return nil, err // not a nil *process
	}
	return p, nil
}

// start starts the test binary to play r, and waits for its line.
func start(r role) (*process, error) {
	text, err := json.Marshal(r)
	if err != nil {
		return nil, err
	}
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	s := &process{cmd: exec.Command(self)}
	s.cmd.Env = append(os.Environ(), roleEnv+"="+string(text))
	s.cmd.Stderr = &s.stderr
	s.cmd.WaitDelay = startLimit
	if s.stdin, err = s.cmd.StdinPipe(); err != nil {
		return nil, err
	}
	stdout, err := s.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := s.cmd.Start(); err != nil {
		return nil, err
	}
	timer := time.AfterFunc(startLimit, func() { s.cmd.Process.Kill() })
	line, err := bufio.NewReader(stdout).ReadString('\n')
	timer.Stop()
	if err != nil {
		s.Kill()
		return nil, fmt.Errorf("process did not start: %w; %w", err, s.Close())
	}
	s.line = strings.TrimSpace(line)
	return s, nil
}

// URI is where a server is reached.
func (s *process) URI() string { return s.line }

func (s *process) Kill() error {
	s.killed = true
	return s.cmd.Process.Kill()
}

func (s *process) Close() error {
	s.stdin.Close()
	timer := time.AfterFunc(startLimit, func() { s.cmd.Process.Kill() })
	defer timer.Stop()
	err := s.cmd.Wait()
	if text := s.stderr.String(); text != "" {
		return fmt.Errorf("process: %w: %s", err, text)
	}
	if s.killed {
		return nil
	}
	return err
}
