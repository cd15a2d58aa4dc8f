// Command rrpc shows what the library does on this machine.
//
//	rrpc hello     two processes call each other, over a real device or the simulated one
//	rrpc devices   the machine's RDMA devices, and which GID would be used
//	rrpc sim       an unmodified libibverbs program on simulated ConnectX devices
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"

	"github.com/rrppcc-go/rrppcc/mlx5/mlx5sim/guest"
)

const usage = `rrpc: RDMA RPC in pure Go

Usage:

	rrpc hello [flags]     two processes call each other: small over UD, large over RC, nested
	rrpc devices [flags]   list the RDMA devices, their ports and GIDs
	rrpc sim [flags] -- PROGRAM [ARGUMENTS]
	                       run any libibverbs program on simulated ConnectX devices

rrpc COMMAND -h lists a command's flags.
`

func main() {
	ctx, stop := context.Background(), func() {}
	if len(os.Args) < 2 || os.Args[1] != "sim" { // there, signals are the program's
		ctx, stop = signal.NotifyContext(ctx, os.Interrupt, syscall.SIGTERM)
	}
	err := run(ctx, os.Args[1:], os.Stdin, os.Stdout, os.Stderr)
	stop()
	var exit *exitError
	switch {
	case err == nil:
	case errors.As(err, &exit):
		if exit.err != nil {
			fmt.Fprintln(os.Stderr, "rrpc sim:", exit.err)
		}
		os.Exit(exit.code)
	case errors.Is(err, flag.ErrHelp):
	case errors.Is(err, errUsage):
		fmt.Fprintln(os.Stderr, err)
		os.Exit(2)
	default:
		fmt.Fprintln(os.Stderr, "rrpc:", err)
		os.Exit(1)
	}
}

var errUsage = errors.New("usage")

// run executes one command line.
func run(ctx context.Context, args []string, stdin io.Reader, stdout, stderr io.Writer) error {
	if len(args) == 0 {
		return fmt.Errorf("%w:\n%s", errUsage, usage)
	}
	switch args[0] {
	case "hello":
		return hello(ctx, args[1:], stdin, stdout, stderr)
	case "sim":
		return sim(ctx, args[1:], stdin, stdout, stderr)
	case simGuard:
		return guest.Guard(stdin)
	case "devices":
		return devices(args[1:], stdout, stderr)
	case "help", "-h", "-help", "--help":
		fmt.Fprint(stdout, usage)
		return nil
	}
	return fmt.Errorf("%w: no command %q\n%s", errUsage, args[0], usage)
}

// parse parses the flags of a command, which takes no arguments beside them.
func parse(fs *flag.FlagSet, args []string, stderr io.Writer) error {
	fs.SetOutput(stderr)
	if err := fs.Parse(args); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			return err
		}
		return fmt.Errorf("%w: rrpc %s: %w", errUsage, fs.Name(), err)
	}
	if fs.NArg() > 0 {
		return fmt.Errorf("%w: rrpc %s takes no argument %q", errUsage, fs.Name(), fs.Arg(0))
	}
	return nil
}
