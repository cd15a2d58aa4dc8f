//go:build !linux

package mlx5sim

import "time"

func setGSO(l link, on bool) {}

func cpuTime() time.Duration { return 0 }
