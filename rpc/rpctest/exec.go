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

// serverEnv makes a test binary a server; its value is a ServerConfig as JSON.
const serverEnv = "RRPC_TEST_SERVER"

// startLimit is how long a server may take to start or to end.
const startLimit = 30 * time.Second

// Main is for TestMain: it runs the tests of a package under leakcheck, or the
// server of [TwoProcesses] where the process was started to be one.
func Main(m interface{ Run() int }) {
	if cfg, ok := os.LookupEnv(serverEnv); ok {
		if err := serverMain(cfg); err != nil {
			fmt.Fprintln(os.Stderr, "rpctest server:", err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	leakcheck.Main(m)
}

// serverMain prints the server's URI and serves until standard input ends.
func serverMain(text string) error {
	var cfg ServerConfig
	if err := json.Unmarshal([]byte(text), &cfg); err != nil {
		return err
	}
	s, err := startLocal(Loopback(), cfg)
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
	return fmt.Sprintf("the servers are other processes, without %s", c)
}

// execServer is a server in another process.
type execServer struct {
	cmd    *exec.Cmd
	stdin  io.WriteCloser
	uri    string
	stderr strings.Builder
	killed bool
}

func (b *execBackend) StartServer(cfg ServerConfig) (Server, error) {
	text, err := json.Marshal(cfg)
	if err != nil {
		return nil, err
	}
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	s := &execServer{cmd: exec.Command(self)}
	s.cmd.Env = append(os.Environ(), serverEnv+"="+string(text))
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
		return nil, fmt.Errorf("server did not start: %w; %w", err, s.Close())
	}
	s.uri = strings.TrimSpace(line)
	return s, nil
}

func (s *execServer) URI() string { return s.uri }

func (s *execServer) Kill() error {
	s.killed = true
	return s.cmd.Process.Kill()
}

func (s *execServer) Close() error {
	s.stdin.Close()
	timer := time.AfterFunc(startLimit, func() { s.cmd.Process.Kill() })
	defer timer.Stop()
	err := s.cmd.Wait()
	if text := s.stderr.String(); text != "" {
		return fmt.Errorf("server: %w: %s", err, text)
	}
	if s.killed {
		return nil
	}
	return err
}
