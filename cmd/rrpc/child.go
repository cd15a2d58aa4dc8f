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
	"sync"
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
	if f.keyFile != "" {
		args = append(args, "--key-file", f.keyFile)
	}
	cmd := exec.Command(self, args...)
	errs := &heldWriter{w: stderr}
	cmd.Stderr = errs
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
		serr := s.stop() // stderr is complete then
		if why := errs.take(); why != "" {
			return nil, fmt.Errorf("server process: %s", why)
		}
		return nil, errors.Join(fmt.Errorf("server process: %w", err), serr)
	}
	errs.release()
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

// heldWriter holds what is written until release, and then passes it on.
type heldWriter struct {
	mu   sync.Mutex
	w    io.Writer
	held []byte
	open bool
}

func (h *heldWriter) Write(p []byte) (int, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.open {
		return h.w.Write(p)
	}
	h.held = append(h.held, p...)
	return len(p), nil
}

// release passes on what is held and all that follows.
func (h *heldWriter) release() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.w.Write(h.held)
	h.held, h.open = nil, true
}

// take returns what is held.
func (h *heldWriter) take() string {
	h.mu.Lock()
	defer h.mu.Unlock()
	return strings.TrimPrefix(strings.TrimSpace(string(h.held)), "rrpc: ")
}
