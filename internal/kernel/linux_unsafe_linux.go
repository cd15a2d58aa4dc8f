package kernel

import (
	"runtime"
	"syscall"
	"unsafe"

	"github.com/rrppcc-go/rrppcc/internal/abi"
)

// verbsIoctl issues RDMA_VERBS_IOCTL. It uses the syscall that tells the
// scheduler: some commands take a second (an address that nobody answers for).
func verbsIoctl(fd int, cmd []byte) syscall.Errno {
	if len(cmd) < hdrSize {
		return syscall.EINVAL
	}
	_, _, errno := syscall.Syscall(syscall.SYS_IOCTL, uintptr(fd), abi.RDMA_VERBS_IOCTL, uintptr(unsafe.Pointer(&cmd[0])))
	runtime.KeepAlive(cmd)
	return errno
}
