//go:build !linux

package kernel

// AllocPages returns n zeroed bytes. Only simulators run here, and Go does not
// move what the caller keeps a slice of.
func AllocPages(n int) ([]byte, error) { return make([]byte, n), nil }

// FreePages gives back what AllocPages returned.
func FreePages([]byte) error { return nil }
