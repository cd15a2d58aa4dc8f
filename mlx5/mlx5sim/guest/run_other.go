//go:build !linux || !(amd64 || arm64)

package guest

import (
	"context"
	"fmt"
	"runtime"
)

// Run is not available here.
func Run(ctx context.Context, cfg Config) (Exit, error) {
	if err := cfg.check(); err != nil {
		return Exit{}, err
	}
	return Exit{}, fmt.Errorf("guest: %w: this is %s/%s, and Linux on amd64 or arm64 is needed", ErrUnavailable, runtime.GOOS, runtime.GOARCH)
}
