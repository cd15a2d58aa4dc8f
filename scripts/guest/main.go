// Command guest serves scripts/kerneltest.sh, on both sides of the virtual
// machine's wall.
//
// On the host, "guest pack" writes the initramfs that the machine boots:
// kernel modules in the order in which they must be loaded, programs with the
// shared libraries that they need, and other files.
//
// In the machine the same binary is /init, process 1: it mounts what a program
// expects, loads the modules, runs /setup.sh and then the jobs of /jobs, one
// after the other, checks after each of them that the kernel holds no more RDMA
// objects than before and has not complained, reports on the second serial port,
// and powers off. See report.go for the lines that kerneltest.sh reads.
package main

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
)

func main() {
	if os.Getpid() == 1 {
		runInit()
	}
	err := run(os.Args[1:], os.Stderr)
	switch {
	case err == nil, errors.Is(err, flag.ErrHelp):
	default:
		fmt.Fprintln(os.Stderr, "guest:", err)
		os.Exit(1)
	}
}

func run(args []string, stderr io.Writer) error {
	if len(args) == 0 || args[0] != "pack" {
		return errors.New("usage: guest pack [flags]; guest pack -h lists them")
	}
	return pack(args[1:], stderr)
}
