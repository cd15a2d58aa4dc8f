package uverbs

import (
	"errors"
	"fmt"
	"syscall"

	"github.com/rrppcc-go/rrppcc/internal/kernel"
)

// run issues a command. Where the device is gone its error is ErrDeviceRemoved
// with the errno, else the errno alone.
func (c *Context) run(cmd *kernel.Command) error {
	err := cmd.Run(c.file)
	if err != nil && c.lost(err) {
		return fmt.Errorf("%w: %w", ErrDeviceRemoved, err)
	}
	return err
}

// runDestroy issues a command that destroys an object. The objects of a device
// that is gone went with it, so that there is nothing to fail.
func (c *Context) runDestroy(cmd *kernel.Command) error {
	if err := c.run(cmd); !errors.Is(err, ErrDeviceRemoved) {
		return err
	}
	return nil
}

// lost reports whether err says that the device is gone. The kernel answers EIO
// to every command then; but a driver may answer it, too, for a firmware that
// failed, and the objects are still there. QUERY_GID_ENTRY tells the two apart:
// the core answers it from its cache, without the driver, but not when there is
// no device. (INFO_HANDLES is answered even then.)
func (c *Context) lost(err error) bool {
	if !errors.Is(err, syscall.EIO) {
		return false
	}
	if c.removed.Load() {
		return true
	}
	if !c.coreAnswersEIO() {
		return false
	}
	c.removed.Store(true)
	return true
}

func (c *Context) coreAnswersEIO() bool {
	cmd, _ := c.gidEntryCommand(1, 0)
	return errors.Is(cmd.Run(c.file), syscall.EIO)
}

// fatal is called with every EventDeviceFatal. If it is the last event of a
// device that is gone, the kernel neither ends the event file nor writes to it
// again: closing it is what wakes the other waiters.
func (c *Context) fatal() {
	if c.lost(syscall.EIO) {
		c.async.Close()
	}
}
