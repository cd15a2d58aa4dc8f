//go:build !linux

package mlx5sim_test

import "testing"

// mapPages returns heap memory: good enough while the test holds it.
func mapPages(t *testing.T, n int) []byte {
	mem := make([]byte, n)
	t.Cleanup(func() { mem[0] = 0 })
	return mem
}
