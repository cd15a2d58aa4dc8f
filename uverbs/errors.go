package uverbs

import (
	"errors"
	"fmt"
	"syscall"
)

// Error is a failed control-path operation. errors.Is and errors.As reach the
// errno through Unwrap: errors.Is(err, syscall.EBUSY).
type Error struct {
	Op     string // what was tried: "create", "modify", "query"
	Object string // on what: "qp", "device mlx5_0", "port 1"
	Hint   string // what the user can do about it; may be empty
	Err    error  // the cause: a syscall.Errno or one of this package's errors
}

func (e *Error) Error() string {
	s := fmt.Sprintf("uverbs: %s %s: %v", e.Op, e.Object, e.Err)
	if e.Hint != "" {
		s += " (" + e.Hint + ")"
	}
	return s
}

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.Err }

func opError(op, object string, err error) error {
	if err == nil {
		return nil
	}
	return &Error{Op: op, Object: object, Hint: hint(err), Err: err}
}

// Conditions that are not errnos.
var (
	// ErrNoDevice says that no RDMA device was found, or none of that name.
	ErrNoDevice = errors.New("no such RDMA device")
	// ErrNoProvider says that the device's driver has no provider here.
	ErrNoProvider = errors.New("no provider for this driver")
	// ErrClosed says that the object was closed before.
	ErrClosed = errors.New("object is closed")
	// ErrDeviceRemoved says that the device, or its driver, is gone. Close
	// everything, which works; nothing else of the context works again. It
	// comes with the kernel's EIO.
	ErrDeviceRemoved = errors.New("the device was removed")
	// ErrNotSupported says that the device's provider cannot do this.
	ErrNotSupported = errors.New("not supported by the provider")
	// ErrPortDown says that the port is not active.
	ErrPortDown = errors.New("port is not active")
	// ErrNoGID says that no entry of the port's GID table can be used from here.
	ErrNoGID = errors.New("no usable GID")
	// ErrBadAnswer says that the kernel's answer contradicts itself.
	ErrBadAnswer = errors.New("malformed answer of the kernel")
)

// Conditions of the data path: preallocated, returned by PostSend, PostRecv
// and Poll without allocation. Each is the errno that libibverbs returns.
var (
	// ErrQueueFull: the work queue has no room for this work request (ENOMEM).
	ErrQueueFull error = &dataError{"work queue is full", syscall.ENOMEM}
	// ErrTooManySGEs: more scatter/gather elements than the QP was created with (EINVAL).
	ErrTooManySGEs error = &dataError{"too many scatter/gather elements", syscall.EINVAL}
	// ErrInlineTooLong: more inline data than the QP was created with (EINVAL).
	ErrInlineTooLong error = &dataError{"inline data too long", syscall.EINVAL}
	// ErrBadOpcode: the QP type or the provider cannot execute the opcode (EINVAL).
	ErrBadOpcode error = &dataError{"opcode not supported on this QP", syscall.EINVAL}
	// ErrBadAH: a UD work request without a usable address handle (EINVAL).
	ErrBadAH error = &dataError{"work request needs an address handle of this device", syscall.EINVAL}
	// ErrQPState: the QP is closed (EINVAL).
	ErrQPState error = &dataError{"QP is not in a state for this work request", syscall.EINVAL}
	// ErrQPUsesSRQ: PostRecv on a QP that receives from an SRQ (EINVAL).
	ErrQPUsesSRQ error = &dataError{"the QP receives from its SRQ", syscall.EINVAL}
	// ErrDataRemoved is ErrDeviceRemoved on the data path, where the doorbell
	// goes through the kernel.
	ErrDataRemoved error = &dataRemoved{}
	// ErrCQCorrupt: the completion queue holds an entry that cannot be (EIO).
	ErrCQCorrupt error = &dataError{"malformed completion queue entry", syscall.EIO}
)

type dataError struct {
	msg   string
	errno syscall.Errno
}

// dataRemoved is both ErrDeviceRemoved and the errno.
type dataRemoved struct{}

func (*dataRemoved) Error() string   { return "uverbs: " + ErrDeviceRemoved.Error() }
func (*dataRemoved) Unwrap() []error { return []error{ErrDeviceRemoved, syscall.EIO} }

func (e *dataError) Error() string { return "uverbs: " + e.msg }
func (e *dataError) Unwrap() error { return e.errno }
