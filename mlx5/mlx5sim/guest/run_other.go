//go:build !linux || !(amd64 || arm64)

package guest

import (
	"context"
	"fmt"
	"io"
	"runtime"
)

// Run is not available here.
func Run(ctx context.Context, cfg Config) (Exit, error) {
	if err := cfg.check(); err != nil {
		return Exit{}, err
	}
	return Exit{}, unavailable()
}

// Guard is not available here.
func Guard(io.Reader) error { return unavailable() }

func unavailable() error {
	return fmt.Errorf("guest: %w: this is %s/%s, and Linux on amd64 or arm64 is needed", ErrUnavailable, runtime.GOOS, runtime.GOARCH)
}
