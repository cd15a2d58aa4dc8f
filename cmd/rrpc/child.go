package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"time"
)

// What a server process tells on its standard output, one per line.
const (
	deviceLine = "device   "
	readyLine  = "ready at "
)

// stopTimeout is how long a server process may take to end.
const stopTimeout = 10 * time.Second

// serverProcess is a server in a process of its own, which ends with its
// standard input.
type serverProcess struct {
	cmd    *exec.Cmd
	stdin  io.Closer
	ended  chan error
	uri    string
	device string
}

// startServer starts this program as a server on a free port of the loopback
// address, and waits until it is ready.
func startServer(ctx context.Context, f *helloFlags, stderr io.Writer) (*serverProcess, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	args := append([]string{"hello", "--serve", "127.0.0.1:0", "--until-eof"}, f.args()...)
	cmd := exec.Command(self, args...)
	cmd.Stderr = stderr
	stdin, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("start the server process: %w", err)
	}
	s := &serverProcess{cmd: cmd, stdin: stdin, ended: make(chan error, 1)}
	ready := make(chan error, 1)
	go func() {
		ready <- s.read(stdout)
		io.Copy(io.Discard, stdout)
		s.ended <- cmd.Wait()
	}()
	select {
	case err = <-ready:
	case <-ctx.Done():
		err = context.Cause(ctx)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("server process: %w", err), s.stop())
	}
	return s, nil
}

// read takes the server's lines until it is ready.
func (s *serverProcess) read(r io.Reader) error {
	in := bufio.NewScanner(r)
	for in.Scan() {
		if d, ok := strings.CutPrefix(in.Text(), deviceLine); ok {
			s.device = d
		}
		if uri, ok := strings.CutPrefix(in.Text(), readyLine); ok {
			s.uri = uri
			return nil
		}
	}
	if err := in.Err(); err != nil {
		return err
	}
	return errors.New("it ended before it was ready")
}

// stop ends the process and returns how it ended.
func (s *serverProcess) stop() error {
	s.stdin.Close()
	timer := time.NewTimer(stopTimeout)
	defer timer.Stop()
	select {
	case err := <-s.ended:
		return err
	case <-timer.C:
		s.cmd.Process.Kill()
		<-s.ended
		return fmt.Errorf("killed: it did not end within %v", stopTimeout)
	}
}
