//go:build !linux

package kernel

import (
	"fmt"
	"runtime"
	"syscall"
)

// Devices fails with [ErrNoInterface]: the uverbs interface is Linux's.
func Devices() ([]Device, error) {
	return nil, fmt.Errorf("%w (%s)", ErrNoInterface, runtime.GOOS)
}

func (d *sysfsDevice) Open() (File, error) { return nil, syscall.ENOSYS }
