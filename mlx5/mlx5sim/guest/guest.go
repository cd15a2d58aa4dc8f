package guest

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"time"

	"github.com/rrppcc-go/rrppcc/mlx5/mlx5sim"
)

// ErrUnavailable says that this system cannot run programs against simulated
// devices: it is not Linux on amd64 or arm64, the kernel is older than 5.19, or
// seccomp is forbidden or taken.
var ErrUnavailable = errors.New("unmodified programs cannot be served here")

// ErrExec says that the program was found and could not be executed.
var ErrExec = errors.New("the program cannot be executed")

// Config says what [Run] runs, and against which devices.
type Config struct {
	// Devices are what the program finds, in this order: /dev/infiniband/uverbs0,
	// uverbs1 and so on. They stay the caller's to close.
	Devices []*mlx5sim.Device

	// Args is the program, looked for in PATH if it has no slash, and its
	// arguments. Env is its environment, nil for the caller's; Dir is where it
	// starts, empty for the caller's directory.
	Args []string
	Env  []string
	Dir  string

	// Stdin, Stdout and Stderr are the program's; nil is /dev/null.
	Stdin, Stdout, Stderr *os.File

	// Signals are passed on to the program; nil for none.
	Signals <-chan os.Signal

	// Linger is how long processes that the program left behind are served before
	// they are killed.
	Linger time.Duration

	// Reap makes this process the parent of the program's orphans while Run runs:
	// where Yama restricts ptrace, only descendants' memory can be reached. The
	// caller must have no other child processes then, because Run waits for all.
	Reap bool

	// Guard is a command that does nothing but call the function [Guard] on its
	// standard input; nil for none. It kills the program's processes when the
	// supervisor dies, which without it happens to the first one alone.
	Guard []string

	// Log gets what is worth knowing about the programs; nil is silent.
	Log *slog.Logger
}

func (c *Config) check() error {
	if len(c.Devices) == 0 {
		return errors.New("guest: no device")
	}
	if len(c.Devices) > MaxDevices {
		return fmt.Errorf("guest: %d devices; at most %d are possible", len(c.Devices), MaxDevices)
	}
	if len(c.Args) == 0 {
		return errors.New("guest: no program")
	}
	return nil
}

// MaxDevices is how many devices a program can be given: as many as the kernel
// has fixed device numbers for.
const MaxDevices = 32

// Exit is how a program ended.
type Exit struct {
	Status int // of exit; meaningless if it was killed
	Signal int // that killed it, 0 if none did
}

// Code is the exit status that a shell makes of it: 128 plus the signal's
// number for a program that was killed.
func (e Exit) Code() int {
	if e.Signal != 0 {
		return 128 + e.Signal
	}
	return e.Status
}
