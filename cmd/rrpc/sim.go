package main

import (
	"context"
	"flag"
	"fmt"
	"io"
	"os"

	"github.com/rrppcc-go/rrppcc/mlx5/mlx5sim"
	"github.com/rrppcc-go/rrppcc/mlx5/mlx5sim/guest"
)

func sim(ctx context.Context, args []string, stdin io.Reader, stdout, stderr io.Writer) error {
	fs := flag.NewFlagSet("sim", flag.ContinueOnError)
	n := fs.Int("devices", 1, "how many")
	v := deviceFlags{}
	fs.BoolVar(&v.verbose, "v", false, "log")
	if err := fs.Parse(args); err != nil {
		return err
	}
	var devs []*mlx5sim.Device
	for i := range *n {
		d, err := mlx5sim.New(mlx5sim.WithName(fmt.Sprintf("mlx5_%d", i)))
		if err != nil {
			return err
		}
		defer d.Close()
		devs = append(devs, d)
	}
	exit, err := guest.Run(ctx, guest.Config{Devices: devs, Args: fs.Args(), Stdin: os.Stdin, Stdout: os.Stdout, Stderr: os.Stderr, Reap: true, Log: v.logger(stderr)})
	if err != nil {
		return err
	}
	if exit.Code() != 0 {
		os.Exit(exit.Code())
	}
	return nil
}
