//go:build !linux

package mlx5sim

func setGSO(l link, on bool) {}
