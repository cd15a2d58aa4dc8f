package uverbs

// openError adds what the user can do about a device that does not open.
func openError(d *Device, err error) error {
	return &Error{Op: "open", Object: "device " + d.Name(), Err: err}
}

// memlockHint says why pinning n bytes may have failed.
func memlockHint(n int) string {
	return "pinning the memory failed: raise RLIMIT_MEMLOCK (ulimit -l)"
}
