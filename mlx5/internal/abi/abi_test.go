package abi_test

import (
	"testing"

	"github.com/rrppcc-go/rrppcc/internal/abi/abitest"
)

func TestMatchesKernelHeaders(t *testing.T) {
	abitest.Run(t, abitest.Config{
		Headers: []string{"rdma/mlx5-abi.h", "rdma/mlx5_user_ioctl_cmds.h", "rdma/mlx5_user_ioctl_verbs.h"},
		Skip: map[string]string{
			"MLX5_IB_MMAP_CMD_SHIFT": "in the kernel's mlx5_ib.h alone; the golden control plane shows the offsets",
		},
	})
}
