//go:build amd64 || arm64

package guest

import (
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"syscall"
)

// Guard reads r to its end, and then kills all processes that began with the
// environment's RRPC_SIM. It is the whole of the process that [Config.Guard]
// names, which gets the supervisor's death told by its standard input.
func Guard(r io.Reader) error {
	name := os.Getenv(markerName)
	if name == "" {
		return errors.New("guest: a guard without RRPC_SIM in its environment")
	}
	io.Copy(io.Discard, r)
	h := &herd{marker: markerName + "=" + name}
	h.killAll()
	return nil
}

// guard is a running guard.
type guard struct {
	proc *os.Process
	pipe *os.File // ends with this process, or with stop
}

// startGuard starts the guard of cfg for the herd h; nil if there is none.
func startGuard(cfg *Config, h *herd) (*guard, error) {
	if len(cfg.Guard) == 0 {
		return nil, nil
	}
	r, w, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer r.Close()
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		w.Close()
		return nil, err
	}
	defer null.Close()
	// A session of its own: no terminal's signals.
	proc, err := os.StartProcess(cfg.Guard[0], cfg.Guard, &os.ProcAttr{
		Env: append(slices.Clip(os.Environ()), h.marker), Files: []*os.File{r, null, null}, Sys: &syscall.SysProcAttr{Setsid: true},
	})
	if err != nil {
		w.Close()
		return nil, fmt.Errorf("guard: %w", err)
	}
	h.guard = proc.Pid
	return &guard{proc, w}, nil
}

// stop ends the guard, which kills what is left of the herd.
func (g *guard) stop() {
	if g != nil {
		g.pipe.Close()
		g.proc.Wait() // an error: the herd's wait has had it
	}
}
