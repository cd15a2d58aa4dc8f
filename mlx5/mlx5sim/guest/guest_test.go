package guest

import (
	"context"
	"errors"
	"runtime"
	"testing"

	"github.com/rrppcc-go/rrppcc/mlx5/mlx5sim"
)

func TestExitCode(t *testing.T) {
	for e, want := range map[Exit]int{{}: 0, {Status: 3}: 3, {Signal: 9}: 137, {Status: 1, Signal: 15}: 143} {
		if got := e.Code(); got != want {
			t.Errorf("%+v: %d, want %d", e, got, want)
		}
	}
}

func TestConfigIsChecked(t *testing.T) {
	d, err := mlx5sim.New(mlx5sim.InProcess(), mlx5sim.WithFabric(mlx5sim.NewFabric()))
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	devs := []*mlx5sim.Device{d}
	for name, cfg := range map[string]Config{
		"no device":        {Args: []string{"true"}},
		"too many devices": {Args: []string{"true"}, Devices: make([]*mlx5sim.Device, MaxDevices+1)},
		"no program":       {Devices: devs},
	} {
		if _, err := Run(context.Background(), cfg); err == nil || errors.Is(err, ErrUnavailable) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if runtime.GOOS != "linux" {
		if _, err := Run(context.Background(), Config{Args: []string{"true"}, Devices: devs}); !errors.Is(err, ErrUnavailable) {
			t.Errorf("on %s: %v, want ErrUnavailable", runtime.GOOS, err)
		}
	}
}
