package guest

import "golang.org/x/sys/unix"

const (
	auditArch = unix.AUDIT_ARCH_AARCH64
	x32Bit    = 0 // there is no such thing
)

// calls is in the order of how often programs make them.
var calls = []call{
	{unix.SYS_IOCTL, askVerbs},
	{unix.SYS_MMAP, askRange4},
	{unix.SYS_FSTAT, askRange0},
	{sysFstatat, askFlags3},
	{unix.SYS_OPENAT, askAlways},
	{unix.SYS_STATX, askFlags2},
	{unix.SYS_READLINKAT, askAlways},
	{unix.SYS_FACCESSAT, askAlways},
	{unix.SYS_FACCESSAT2, askAlways},
	{unix.SYS_OPENAT2, askAlways},
	{unix.SYS_GETXATTR, askAlways},
	{unix.SYS_LGETXATTR, askAlways},
	{unix.SYS_LISTXATTR, askAlways},
	{unix.SYS_LLISTXATTR, askAlways},
	{unix.SYS_SOCKET, denyRDMASock},
}

// legacy is the identity: arm64 never had the old calls.
func legacy(nr uint32, args [6]uint64) (uint32, [6]uint64) { return nr, args }

const sysFstatat = unix.SYS_FSTATAT
