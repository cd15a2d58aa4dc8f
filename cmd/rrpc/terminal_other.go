//go:build !linux

package main

// ownsTerminal is asked only where programs can run.
func ownsTerminal() bool { return false }
