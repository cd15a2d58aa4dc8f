//go:build !linux

package uverbs

// memlockLimit: only Linux pins memory for devices.
func memlockLimit() (uint64, bool) { return 0, false }
