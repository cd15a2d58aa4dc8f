//go:build !linux

package mlx5sim

// mapped cannot ask this system; a bad address faults when it is used.
func mapped(addr, n uint64) bool { return true }

// allocPage returns a zeroed page of 4096 bytes. Go's collector does not move
// heap memory, and the caller keeps the slice for as long as it is mapped.
func allocPage() ([]byte, error) { return make([]byte, uarPageBytes), nil }

func freePage([]byte) error { return nil }
