package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"net/netip"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/rrppcc-go/rrppcc/mlx5/mlx5sim"
	"github.com/rrppcc-go/rrppcc/mlx5/mlx5sim/guest"
	"github.com/rrppcc-go/rrppcc/uverbs"
)

// Exit statuses of rrpc sim that are not the program's: those of env and of
// shells, and EX_UNAVAILABLE of sysexits.h.
const (
	exitUnavailable   = 69  // programs cannot be served on this system
	exitFailed        = 125 // rrpc sim failed
	exitNotExecutable = 126 // the program exists and could not be executed
	exitNotFound      = 127 // there is no such program
)

// simGuard is the command that rrpc sim starts itself, to kill the program's
// processes should it be killed.
const simGuard = "sim-guard"

const (
	// killGrace is how long the program may take to end after it was asked to.
	killGrace = 5 * time.Second
	// minProcs is how many of rrpc's threads may run Go code at once, at least.
	minProcs = 4
	// manyInterrupts is how often a terminal's interrupt is left to the program
	// alone.
	manyInterrupts = 3
)

// exitError ends rrpc with a status of its own.
type exitError struct {
	code int
	err  error // nil: the program's own status, of which nothing is said
}

func (e *exitError) Error() string {
	if e.err == nil {
		return fmt.Sprintf("the program ended with status %d", e.code)
	}
	return e.err.Error()
}

func (e *exitError) Unwrap() error { return e.err }

// Values of --link.
const (
	linkEthernet   = "ethernet"
	linkInfiniBand = "infiniband"
)

// simFlags are the flags of rrpc sim.
type simFlags struct {
	devices int
	addrs   string
	link    string
	mtu     int
	pcap    string
	wire    bool
	faults  mlx5sim.Faults
	seed    uint64
	linger  time.Duration
	verbose bool
}

const simUsage = `Usage: rrpc sim [flags] [--] PROGRAM [ARGUMENTS]

Runs PROGRAM, unmodified, against simulated ConnectX devices: mlx5_0 and so on, as
many as asked for, in place of what the machine has. Its children find them too.

Its exit status is PROGRAM's, or 128 plus the number of the signal that killed it;
69 if this system cannot serve programs (Linux 5.19, amd64 or arm64, seccomp and
process_vm_readv), 125 if rrpc sim failed otherwise, 126 and 127 if PROGRAM
could not be executed or found.

`

func (f *simFlags) register(fs *flag.FlagSet, stderr io.Writer) {
	fs.Usage = func() {
		fmt.Fprint(stderr, simUsage)
		fs.PrintDefaults()
	}
	fs.IntVar(&f.devices, "devices", 1, "how many devices there are")
	fs.StringVar(&f.addrs, "addr", "", "IP `addresses` of the devices, separated by commas (default: random loopback addresses)")
	fs.StringVar(&f.link, "link", linkEthernet, "link `layer` of the ports: ethernet or infiniband, which stays among these devices, without packets")
	fs.IntVar(&f.mtu, "mtu", 4096, "MTU of the ports in `bytes`: 256, 512, 1024, 2048 or 4096")
	fs.StringVar(&f.pcap, "pcap", "", "write the packets to this `file`; with several devices, one file each, with the device's name before the suffix")
	fs.BoolVar(&f.wire, "wire", false, "send everything as packets, also what stays among these devices; implied by --pcap and by all faults")
	fs.Float64Var(&f.faults.Loss, "loss", 0, "`chance` that a packet is lost, 0 to 1")
	fs.Float64Var(&f.faults.Duplicate, "duplicate", 0, "`chance` that a packet arrives twice")
	fs.Float64Var(&f.faults.Reorder, "reorder", 0, "`chance` that a packet is late, so that others overtake it")
	fs.Float64Var(&f.faults.Corrupt, "corrupt", 0, "`chance` that a bit of a packet flips")
	fs.DurationVar(&f.faults.Delay, "delay", 0, "each packet takes this long")
	fs.DurationVar(&f.faults.Jitter, "jitter", 0, "and up to this much longer")
	fs.Int64Var(&f.faults.Bandwidth, "bandwidth", 0, "what a port sends in `bits` per second")
	fs.Uint64Var(&f.seed, "seed", 0, "`number` that the faults come from (default: random, and told if there are faults)")
	fs.DurationVar(&f.linger, "linger", 2*time.Second, "how long processes that PROGRAM left behind are served before they are killed")
	fs.BoolVar(&f.verbose, "v", false, "log what the programs open")
}

// sim runs a program against simulated devices.
func sim(ctx context.Context, args []string, stdin io.Reader, stdout, stderr io.Writer) (err error) {
	var f simFlags
	flags := flag.NewFlagSet("sim", flag.ContinueOnError)
	flags.SetOutput(stderr)
	f.register(flags, stderr)
	if err := flags.Parse(args); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			return err
		}
		return fmt.Errorf("%w: rrpc sim: %w", errUsage, err)
	}
	if flags.NArg() == 0 {
		return fmt.Errorf("%w: rrpc sim needs a program to run", errUsage)
	}
	s, err := f.devicesOf(stderr)
	if err != nil {
		return err
	}
	// Threads that answer and poll are in system calls most of the time; they shall
	// not wait for each other when they come back.
	runtime.GOMAXPROCS(max(runtime.GOMAXPROCS(0), minProcs))
	exit, err := runGuest(ctx, &f, s.devs, flags.Args(), stdin, stdout, stderr)
	if err := errors.Join(err, s.close()); err != nil {
		return &exitError{guestStatus(err), err}
	}
	if exit.Code() != 0 {
		return &exitError{code: exit.Code()}
	}
	return nil
}

// guestStatus is the status to end with after an error.
func guestStatus(err error) int {
	var lookup *exec.Error
	execution := errors.As(err, &lookup) || errors.Is(err, guest.ErrExec)
	switch {
	case errors.Is(err, guest.ErrUnavailable):
		return exitUnavailable
	case execution && (errors.Is(err, exec.ErrNotFound) || errors.Is(err, fs.ErrNotExist)):
		return exitNotFound
	case execution:
		return exitNotExecutable
	}
	return exitFailed
}

// simDevices are the devices of one run, and their captures.
type simDevices struct {
	devs  []*mlx5sim.Device
	files []*os.File
}

func (s *simDevices) close() error {
	var errs []error
	for _, d := range s.devs {
		errs = append(errs, d.Close())
	}
	for _, f := range s.files {
		errs = append(errs, f.Close())
	}
	return errors.Join(errs...)
}

// devicesOf makes the devices that the flags ask for.
func (f *simFlags) devicesOf(stderr io.Writer) (_ *simDevices, err error) {
	if f.devices < 1 || f.devices > guest.MaxDevices {
		return nil, fmt.Errorf("%w: --devices %d; 1 to %d are possible", errUsage, f.devices, guest.MaxDevices)
	}
	mtu := uverbs.MTU256
	for ; mtu.Bytes() != f.mtu; mtu++ {
		if mtu == uverbs.MTU4096 {
			return nil, fmt.Errorf("%w: --mtu %d; 256, 512, 1024, 2048 and 4096 are possible", errUsage, f.mtu)
		}
	}
	var addrs []netip.Addr
	if f.addrs != "" {
		for text := range strings.SplitSeq(f.addrs, ",") {
			a, err := netip.ParseAddr(strings.TrimSpace(text))
			if err != nil {
				return nil, fmt.Errorf("%w: --addr: %w", errUsage, err)
			}
			addrs = append(addrs, a)
		}
		if len(addrs) != f.devices {
			return nil, fmt.Errorf("%w: --addr has %d addresses for %d devices", errUsage, len(addrs), f.devices)
		}
	}
	faulty := f.faults != (mlx5sim.Faults{})
	switch {
	case f.link == linkInfiniBand && (addrs != nil || f.wire || faulty || f.pcap != ""):
		return nil, fmt.Errorf("%w: --link infiniband has no IP addresses and no packets: --addr, --wire, --pcap and faults are not possible", errUsage)
	case f.link != linkInfiniBand && f.link != linkEthernet:
		return nil, fmt.Errorf("%w: --link %q; %s and %s are possible", errUsage, f.link, linkEthernet, linkInfiniBand)
	}
	s := new(simDevices)
	defer func() {
		if err != nil {
			err = &exitError{exitFailed, errors.Join(err, s.close())}
		}
	}()
	for i := range f.devices {
		name := fmt.Sprintf("mlx5_%d", i)
		opts := []mlx5sim.Option{mlx5sim.WithName(name), mlx5sim.WithMTU(mtu)}
		if f.link == linkInfiniBand {
			opts = append(opts, mlx5sim.WithInfiniBand())
		}
		if addrs != nil {
			opts = append(opts, mlx5sim.WithAddr(addrs[i]))
		}
		if f.wire || faulty || f.pcap != "" {
			opts = append(opts, mlx5sim.ByWire())
		}
		if f.pcap != "" {
			out, err := os.Create(captureName(f.pcap, name, f.devices))
			if err != nil {
				return nil, err
			}
			s.files = append(s.files, out)
			opts = append(opts, mlx5sim.WithPcap(out))
		}
		d, err := mlx5sim.New(opts...)
		if err != nil {
			return nil, err
		}
		s.devs = append(s.devs, d)
		if !faulty {
			continue
		}
		// On the way out alone: what one device sends, another receives.
		seed := f.seed
		if seed != 0 {
			seed += uint64(i)
		}
		if seed, err = d.SetFaults(mlx5sim.Outbound, f.faults, seed); err != nil {
			return nil, err
		}
		if f.seed == 0 {
			f.seed = seed
			fmt.Fprintf(stderr, "rrpc sim: --seed %d\n", seed)
		}
	}
	return s, nil
}

// captureName is the file for the packets of device name, of n devices.
func captureName(file, name string, n int) string {
	if n == 1 {
		return file
	}
	ext := filepath.Ext(file)
	return strings.TrimSuffix(file, ext) + "." + name + ext
}

// runGuest runs the program, with this process's standard files and signals.
func runGuest(ctx context.Context, f *simFlags, devs []*mlx5sim.Device, args []string, stdin io.Reader, stdout, stderr io.Writer) (guest.Exit, error) {
	v := deviceFlags{verbose: f.verbose}
	cfg := guest.Config{Devices: devs, Args: args, Linger: f.linger, Reap: true, Guard: []string{"/proc/self/exe", simGuard}, Log: v.logger(stderr)}
	cfg.Stdin, _ = stdin.(*os.File)
	var copies sync.WaitGroup
	var ours []*os.File
	for _, o := range []struct {
		theirs **os.File
		w      io.Writer
	}{{&cfg.Stdout, stdout}, {&cfg.Stderr, stderr}} {
		if file, ok := o.w.(*os.File); ok {
			*o.theirs = file
			continue
		}
		r, w, err := os.Pipe()
		if err != nil {
			return guest.Exit{}, err
		}
		*o.theirs = w
		ours = append(ours, w)
		copies.Go(func() {
			io.Copy(o.w, r)
			r.Close()
		})
	}
	defer func() {
		for _, w := range ours {
			w.Close()
		}
		copies.Wait()
	}()

	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	signals := make(chan os.Signal, 8)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGQUIT)
	defer signal.Stop(signals)
	passed := make(chan os.Signal, 8)
	cfg.Signals = passed
	ended := make(chan struct{})
	defer close(ended)
	go passSignals(signals, passed, ended, cancel)
	return guest.Run(ctx, cfg)
}

// passSignals hands signals on to the program, and cancels if it takes no notice.
// What a terminal's keys cause is sent to the program by the terminal already.
func passSignals(from <-chan os.Signal, to chan<- os.Signal, ended <-chan struct{}, cancel func(error)) {
	interrupts := 0
	var late <-chan time.Time
	for {
		select {
		case sig := <-from:
			key := sig == os.Interrupt || sig == syscall.SIGQUIT
			if key {
				interrupts++
			} else if late == nil {
				late = time.After(killGrace)
			}
			if interrupts == manyInterrupts {
				cancel(fmt.Errorf("killed the program: %v", sig))
			}
			if key && ownsTerminal() {
				continue
			}
			select {
			case to <- sig:
			case <-ended:
				return
			}
		case <-late:
			cancel(fmt.Errorf("killed the program: it did not end within %v", killGrace))
		case <-ended:
			return
		}
	}
}
