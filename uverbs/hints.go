package uverbs

import (
	"errors"
	"fmt"
	"io/fs"
	"syscall"

	"github.com/rrppcc-go/rrppcc/internal/kernel"
)

// minKernel is the oldest kernel that has every command of this package.
const minKernel = "Linux 5.10"

// hint says what the user can do about an error that any command may meet.
func hint(err error) string {
	var inner *Error
	switch {
	case errors.As(err, &inner), errors.Is(err, ErrDeviceRemoved):
		return "" // the cause has said it
	case errors.Is(err, syscall.ENOTTY):
		return "the kernel lacks the uverbs ioctl interface; " + minKernel + " or newer is needed"
	case errors.Is(err, syscall.EPROTONOSUPPORT):
		return "the kernel or its driver lacks this method; " + minKernel + " or newer is needed"
	case errors.Is(err, syscall.EIO):
		return "the device was removed, or its firmware failed; see dmesg"
	case errors.Is(err, syscall.EMFILE):
		return "this process has too many open files; raise ulimit -n"
	case errors.Is(err, syscall.EBADF):
		return "the context, or the completion channel, is closed"
	}
	return ""
}

// listError explains why there is no device; err is nil for an empty list.
func listError(err error) error {
	e := &Error{Op: "list", Object: "devices", Err: ErrNoDevice}
	switch {
	case err == nil:
		e.Hint = "load the NIC's RDMA driver (modprobe mlx5_ib), or make a Soft-RoCE device (rdma link add rxe0 type rxe netdev eth0); " +
			"a container sees only the devices of its own network namespace"
	case errors.Is(err, kernel.ErrNoInterface):
		e.Err = fmt.Errorf("%w: %w", ErrNoDevice, err)
		e.Hint = "use a simulated device"
	case errors.Is(err, kernel.ErrNoModule):
		e.Err = fmt.Errorf("%w: %w", ErrNoDevice, err)
		e.Hint = "modprobe ib_uverbs, and the NIC's driver"
	default:
		e.Err = err
	}
	return e
}

// openError adds what the user can do about a device that does not open.
func openError(d *Device, err error) error {
	node := d.info.Node
	e := &Error{Op: "open", Object: "device " + d.Name(), Hint: hint(err), Err: err}
	switch {
	case errors.Is(err, fs.ErrNotExist):
		e.Hint = fmt.Sprintf("there is no device node %s: load ib_uverbs; in a container, pass the node in (docker run --device=%s)", node, node)
	case errors.Is(err, syscall.EACCES):
		e.Hint = fmt.Sprintf("this user may not read and write %s: grant it by a udev rule or by the node's group (often rdma)", node)
	case errors.Is(err, syscall.EPERM):
		e.Hint = fmt.Sprintf("the container's device list forbids it: docker run --device=%s, or a Kubernetes device plugin", node)
	case errors.Is(err, kernel.ErrWrongNode):
		e.Hint = fmt.Sprintf("%s is left over from another device: remove it and let udev make it anew, or restart the container", node)
	case errors.Is(err, syscall.ENXIO), errors.Is(err, syscall.ENODEV):
		e.Hint = "the device or its driver was removed; list the devices again"
	}
	return e
}

// portError adds to the kernel's EINVAL that it means the number.
func portError(port uint8, d *Device, err error) error {
	e := &Error{Op: "query", Object: fmt.Sprintf("port %d of %s", port, d.Name()), Hint: hint(err), Err: err}
	if errors.Is(err, syscall.EINVAL) {
		e.Hint = "the device has no port of this number; the first is 1, and most devices have no other"
	}
	return e
}

// mrHint says why n bytes could not be registered.
func mrHint(err error, n uint64, access AccessFlags) string {
	const remoteWrite = AccessRemoteWrite | AccessRemoteAtomic
	switch {
	case errors.Is(err, syscall.ENOMEM):
		return memlockHint(n)
	case errors.Is(err, syscall.EFAULT):
		return "the memory is not mapped, or is read-only and AccessLocalWrite was asked for"
	case errors.Is(err, syscall.EINVAL) && access&remoteWrite != 0 && access&AccessLocalWrite == 0:
		return "AccessRemoteWrite and AccessRemoteAtomic need AccessLocalWrite"
	case errors.Is(err, syscall.EOPNOTSUPP), errors.Is(err, syscall.EINVAL) && access&AccessOnDemand != 0:
		return fmt.Sprintf("the device or its driver lacks one of the access flags %#x", uint32(access))
	}
	return hint(err)
}

// dmaBufHint says why a dma-buf could not be registered.
func dmaBufHint(err error) string {
	switch {
	case errors.Is(err, syscall.EPROTONOSUPPORT):
		return "the kernel lacks dma-buf registration; Linux 5.12 or newer is needed"
	case errors.Is(err, syscall.EOPNOTSUPP):
		return "the device's driver cannot register a dma-buf"
	case errors.Is(err, syscall.EBADF), errors.Is(err, syscall.EINVAL):
		return "the descriptor is no dma-buf, or the range is not within it"
	}
	return hint(err)
}

// memlockHint says why pinning n bytes may have failed.
func memlockHint(n uint64) string {
	limit, known := memlockLimit()
	if !known {
		return fmt.Sprintf("pinning %s failed: out of memory", byteSize(n))
	}
	return fmt.Sprintf("pinning %s, on top of what is registered already, with RLIMIT_MEMLOCK at %s: raise it "+
		"(ulimit -l unlimited; LimitMEMLOCK=infinity in a systemd unit; docker run --ulimit memlock=-1), or give CAP_IPC_LOCK",
		byteSize(n), byteSize(limit))
}

func unreachableHint(g GID) string {
	return fmt.Sprintf("nobody answers for %s: is it up, and reachable from the chosen GID's interface? (ip route get %s)", g.Addr(), g.Addr())
}

// byteSize formats n bytes in the largest unit that it reaches.
func byteSize(n uint64) string {
	switch {
	case n == ^uint64(0):
		return "unlimited"
	case n >= 1<<30:
		return fmt.Sprintf("%.1f GiB", float64(n)/(1<<30))
	case n >= 1<<20:
		return fmt.Sprintf("%.1f MiB", float64(n)/(1<<20))
	case n >= 1<<10:
		return fmt.Sprintf("%.1f KiB", float64(n)/(1<<10))
	}
	return fmt.Sprintf("%d bytes", n)
}
