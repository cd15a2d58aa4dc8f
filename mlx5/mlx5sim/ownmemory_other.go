//go:build !linux

package mlx5sim

import "syscall"

// faultable has nothing to return: this system does not check the accesses of a
// process to itself.
func faultable() DMA { return nil }

func mapFile(int, uint64, uint64, bool) ([]byte, uint64, error) { return nil, 0, syscall.EOPNOTSUPP }
