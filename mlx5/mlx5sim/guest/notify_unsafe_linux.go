//go:build amd64 || arm64

package guest

import (
	"fmt"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

// notif is struct seccomp_notif.
type notif struct {
	id    uint64
	pid   uint32 // a thread id, in the supervisor's namespace
	flags uint32
	nr    int32
	arch  uint32
	ip    uint64
	args  [6]uint64
}

// notifResp is struct seccomp_notif_resp.
type notifResp struct {
	id    uint64
	val   int64
	error int32
	flags uint32
}

// notifAddFD is struct seccomp_notif_addfd.
type notifAddFD struct {
	id         uint64
	flags      uint32
	srcFD      uint32
	newFD      uint32
	newFDFlags uint32
}

// notifSizes is struct seccomp_notif_sizes.
type notifSizes struct {
	notif, resp, data uint16
}

var (
	_ [80]byte = [unsafe.Sizeof(notif{})]byte{}
	_ [24]byte = [unsafe.Sizeof(notifResp{})]byte{}
	_ [24]byte = [unsafe.Sizeof(notifAddFD{})]byte{}
)

// installFilter puts the calling thread, and what it will fork, under the filter
// and returns the descriptor by which it asks. There is no way back for the
// thread.
func installFilter(filter []unix.SockFilter) (int, error) {
	var sizes notifSizes
	if _, _, errno := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_GET_NOTIF_SIZES, 0, uintptr(unsafe.Pointer(&sizes))); errno != 0 {
		return -1, fmt.Errorf("%w: seccomp SECCOMP_GET_NOTIF_SIZES: %w", ErrUnavailable, errno)
	}
	if int(sizes.notif) != int(unsafe.Sizeof(notif{})) || int(sizes.resp) != int(unsafe.Sizeof(notifResp{})) {
		return -1, fmt.Errorf("%w: the kernel's seccomp notifications have %d and %d bytes, which this version does not know", ErrUnavailable, sizes.notif, sizes.resp)
	}
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return -1, fmt.Errorf("%w: prctl PR_SET_NO_NEW_PRIVS: %w", ErrUnavailable, err)
	}
	prog := unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]}
	const flags = unix.SECCOMP_FILTER_FLAG_NEW_LISTENER | unix.SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV
	fd, _, errno := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, flags, uintptr(unsafe.Pointer(&prog)))
	runtime.KeepAlive(filter)
	switch errno {
	case 0:
		return int(fd), nil
	case unix.EINVAL:
		return -1, fmt.Errorf("%w: seccomp: the kernel has no user notifications that wait killable; Linux 5.19 has: %w", ErrUnavailable, errno)
	case unix.EBUSY:
		return -1, fmt.Errorf("%w: seccomp: another supervisor listens already, such as a container's or another rrpc sim: %w", ErrUnavailable, errno)
	}
	return -1, fmt.Errorf("%w: seccomp: %w", ErrUnavailable, errno)
}

// receive waits for a notification. ENOENT says that its sender died meanwhile.
func receive(listener int, n *notif) error {
	*n = notif{} // the kernel insists
	return listenerIoctl(listener, unix.SECCOMP_IOCTL_NOTIF_RECV, unsafe.Pointer(n))
}

// respond answers a notification. ENOENT says that its sender died meanwhile.
func respond(listener int, r *notifResp) error {
	return listenerIoctl(listener, unix.SECCOMP_IOCTL_NOTIF_SEND, unsafe.Pointer(r))
}

// alive reports whether the sender of notification id still waits, so that its
// thread id is still its own.
func alive(listener int, id uint64) bool {
	return listenerIoctl(listener, unix.SECCOMP_IOCTL_NOTIF_ID_VALID, unsafe.Pointer(&id)) == nil
}

// addFD installs the file of our descriptor fd in the sender of notification id:
// at number at, or at the lowest free one if at is negative. The answer to the
// notification is another call: in one (ADDFD_FLAG_SEND), a signal between the
// two would have it repeated on a notification that is answered already.
func addFD(listener int, id uint64, fd, at int, cloexec bool) (int, error) {
	a := notifAddFD{id: id, srcFD: uint32(fd)}
	if at >= 0 {
		a.flags, a.newFD = unix.SECCOMP_ADDFD_FLAG_SETFD, uint32(at)
	}
	if cloexec {
		a.newFDFlags = unix.O_CLOEXEC
	}
	for {
		n, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(listener), unix.SECCOMP_IOCTL_NOTIF_ADDFD, uintptr(unsafe.Pointer(&a)))
		switch errno {
		case 0:
			return int(n), nil
		case unix.EINTR:
			continue
		}
		return -1, errno
	}
}

func listenerIoctl(fd int, cmd uintptr, p unsafe.Pointer) error {
	for {
		_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), cmd, uintptr(p))
		switch errno {
		case 0:
			return nil
		case unix.EINTR:
			continue
		}
		return errno
	}
}

// bytesOf is the memory of *p.
func bytesOf[T any](p *T) []byte {
	return unsafe.Slice((*byte)(unsafe.Pointer(p)), unsafe.Sizeof(*p))
}
