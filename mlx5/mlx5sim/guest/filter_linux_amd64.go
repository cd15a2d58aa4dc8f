package guest

import "golang.org/x/sys/unix"

const (
	auditArch = unix.AUDIT_ARCH_X86_64
	x32Bit    = 0x40000000 // __X32_SYSCALL_BIT
)

// calls is in the order of how often programs make them.
var calls = []call{
	{unix.SYS_IOCTL, askVerbs},
	{unix.SYS_MMAP, askRange4},
	{unix.SYS_FSTAT, askRange0},
	{unix.SYS_NEWFSTATAT, askFlags3},
	{unix.SYS_OPENAT, askAlways},
	{unix.SYS_OPEN, askAlways},
	{unix.SYS_STAT, askAlways},
	{unix.SYS_LSTAT, askAlways},
	{unix.SYS_STATX, askFlags2},
	{unix.SYS_ACCESS, askAlways},
	{unix.SYS_READLINK, askAlways},
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

// legacy tells the calls that arm64 does not have: which of today's calls an old
// one is, and where its arguments are in that one's.
func legacy(nr uint32, args [6]uint64) (uint32, [6]uint64) {
	cwd := int64(unix.AT_FDCWD)
	at := uint64(cwd)
	switch nr {
	case unix.SYS_OPEN:
		return unix.SYS_OPENAT, [6]uint64{at, args[0], args[1], args[2]}
	case unix.SYS_STAT:
		return sysFstatat, [6]uint64{at, args[0], args[1], 0}
	case unix.SYS_LSTAT:
		return sysFstatat, [6]uint64{at, args[0], args[1], unix.AT_SYMLINK_NOFOLLOW}
	case unix.SYS_ACCESS:
		return unix.SYS_FACCESSAT, [6]uint64{at, args[0], args[1]}
	case unix.SYS_READLINK:
		return unix.SYS_READLINKAT, [6]uint64{at, args[0], args[1], args[2]}
	}
	return nr, args
}

const sysFstatat = unix.SYS_NEWFSTATAT
