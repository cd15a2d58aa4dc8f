package mlx5

import "sync/atomic"

// mapped counts the bytes that allocMemory has given out, so that tests find
// what is not freed.
var mapped atomic.Int64

// allocMemory returns n bytes, whole pages, of zeroed and page-aligned memory
// that the collector neither moves nor reuses.
func allocMemory(n int) ([]byte, error) {
	mem, err := mapMemory(n)
	if err == nil {
		mapped.Add(int64(n))
	}
	return mem, err
}

// freeMemory takes back what allocMemory returned; nil is allowed.
func freeMemory(mem []byte) error {
	if mem == nil {
		return nil
	}
	mapped.Add(-int64(len(mem)))
	return unmapMemory(mem)
}
