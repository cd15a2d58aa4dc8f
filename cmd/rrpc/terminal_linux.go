package main

import (
	"os"

	"golang.org/x/sys/unix"
)

// ownsTerminal reports whether this process is in the foreground of its
// terminal, which then sends key signals to all of its process group.
func ownsTerminal() bool {
	tty, err := os.Open("/dev/tty")
	if err != nil {
		return false
	}
	defer tty.Close()
	group, err := unix.IoctlGetInt(int(tty.Fd()), unix.TIOCGPGRP)
	return err == nil && group == unix.Getpgrp()
}
