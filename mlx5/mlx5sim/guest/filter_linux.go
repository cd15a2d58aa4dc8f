//go:build amd64 || arm64

package guest

import (
	"slices"

	"golang.org/x/sys/unix"
)

// The filter is a classic BPF program over struct seccomp_data:
//
//	nr u32 @0, arch u32 @4, instruction_pointer u64 @8, args [6]u64 @16
//
// It asks the supervisor (USER_NOTIF) about
//
//   - ioctl RDMA_VERBS_IOCTL, on whatever descriptor;
//   - calls that name a file by its path, because a filter cannot read paths;
//   - mmap and the stat calls on descriptors of the range where the supervisor
//     puts device files;
//
// and answers socket(AF_NETLINK, *, NETLINK_RDMA) with EPROTONOSUPPORT itself, so
// that libibverbs finds its devices in sysfs. Everything else, and everything of
// another instruction set, passes untouched. What a Go program's vfork child
// does before it executes (dup, fcntl, close, execve) is never asked about: its
// parent's thread stands still meanwhile.
const (
	dataNR   = 0
	dataArch = 4
	dataArgs = 16
)

const (
	// rdmaVerbsIoctl is RDMA_VERBS_IOCTL.
	rdmaVerbsIoctl = 0xc0181b01

	// netlinkRDMA is NETLINK_RDMA.
	netlinkRDMA = 20
)

// rule is what the filter does about one system call.
type rule uint8

const (
	askAlways    rule = iota
	askVerbs          // argument 1 is RDMA_VERBS_IOCTL
	askRange0         // argument 0 is a descriptor of the range
	askRange4         // argument 4 is
	askFlags3         // argument 3 has no AT_EMPTY_PATH; or argument 0 is AT_FDCWD or of the range
	askFlags2         // the same with argument 2
	denyRDMASock      // NETLINK_RDMA
)

// call is a system call that the filter looks at.
type call struct {
	nr   uint32
	rule rule
}

// buildFilter makes the program for descriptors lo to hi-1.
func buildFilter(lo, hi uint32) []unix.SockFilter {
	p := slices.Concat(
		load(dataArch), unless(unix.BPF_JEQ, auditArch, retAllow),
		load(dataNR))
	if x32Bit != 0 {
		p = append(p, when(unix.BPF_JGE, x32Bit, retAllow)...)
	}
	for _, c := range calls {
		body := c.rule.body(lo, hi)
		p = append(p, unix.SockFilter{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, Jf: uint8(len(body)), K: c.nr})
		p = append(p, body...)
	}
	return append(p, ret(retAllow)...)
}

const (
	retAllow = unix.SECCOMP_RET_ALLOW
	retAsk   = unix.SECCOMP_RET_USER_NOTIF
	retDeny  = unix.SECCOMP_RET_ERRNO | uint32(unix.EPROTONOSUPPORT)
)

// body is what follows once the call's number is known; it always returns.
func (r rule) body(lo, hi uint32) []unix.SockFilter {
	inRange := func(arg int) []unix.SockFilter {
		return slices.Concat(loadArg(arg), unless(unix.BPF_JGE, lo, retAllow), when(unix.BPF_JGE, hi, retAllow), ret(retAsk))
	}
	byFlags := func(arg int) []unix.SockFilter {
		cwd := int32(unix.AT_FDCWD)
		return slices.Concat(
			loadArg(arg), unless(unix.BPF_JSET, unix.AT_EMPTY_PATH, retAsk),
			loadArg(0), when(unix.BPF_JEQ, uint32(cwd), retAsk),
			inRange(0))
	}
	switch r {
	case askVerbs:
		return slices.Concat(loadArg(1), unless(unix.BPF_JEQ, rdmaVerbsIoctl, retAllow), ret(retAsk))
	case askRange0:
		return inRange(0)
	case askRange4:
		return inRange(4)
	case askFlags2:
		return byFlags(2)
	case askFlags3:
		return byFlags(3)
	case denyRDMASock:
		return slices.Concat(
			loadArg(0), unless(unix.BPF_JEQ, unix.AF_NETLINK, retAllow),
			loadArg(2), unless(unix.BPF_JEQ, netlinkRDMA, retAllow),
			ret(retDeny))
	}
	return ret(retAsk)
}

func load(offset uint32) []unix.SockFilter {
	return []unix.SockFilter{{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: offset}}
}

// loadArg loads the low half of argument n: all that the kernel itself reads of a
// descriptor, a command or flags. Both architectures are little-endian.
func loadArg(n int) []unix.SockFilter { return load(uint32(dataArgs + 8*n)) }

func ret(action uint32) []unix.SockFilter {
	return []unix.SockFilter{{Code: unix.BPF_RET | unix.BPF_K, K: action}}
}

// when returns action if op holds for the loaded word and k.
func when(op uint16, k, action uint32) []unix.SockFilter {
	return append([]unix.SockFilter{{Code: unix.BPF_JMP | op | unix.BPF_K, Jf: 1, K: k}}, ret(action)...)
}

// unless returns action if it does not.
func unless(op uint16, k, action uint32) []unix.SockFilter {
	return append([]unix.SockFilter{{Code: unix.BPF_JMP | op | unix.BPF_K, Jt: 1, K: k}}, ret(action)...)
}
