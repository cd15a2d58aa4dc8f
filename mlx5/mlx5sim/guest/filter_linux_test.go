//go:build amd64 || arm64

package guest

import (
	"encoding/binary"
	"fmt"
	"testing"

	"golang.org/x/sys/unix"
)

// execute runs a classic BPF program over struct seccomp_data as the kernel
// does, for the instructions that seccomp allows and the filter uses.
func execute(prog []unix.SockFilter, data []byte) (uint32, error) {
	var a uint32
	for pc := 0; pc < len(prog); pc++ {
		in := prog[pc]
		var taken bool
		switch in.Code {
		case unix.BPF_LD | unix.BPF_W | unix.BPF_ABS:
			if in.K%4 != 0 || int(in.K)+4 > len(data) {
				return 0, fmt.Errorf("instruction %d loads from %d", pc, in.K)
			}
			a = binary.LittleEndian.Uint32(data[in.K:])
			continue
		case unix.BPF_RET | unix.BPF_K:
			return in.K, nil
		case unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K:
			taken = a == in.K
		case unix.BPF_JMP | unix.BPF_JGE | unix.BPF_K:
			taken = a >= in.K
		case unix.BPF_JMP | unix.BPF_JSET | unix.BPF_K:
			taken = a&in.K != 0
		default:
			return 0, fmt.Errorf("instruction %d has code %#x", pc, in.Code)
		}
		if taken {
			pc += int(in.Jt)
		} else {
			pc += int(in.Jf)
		}
	}
	return 0, fmt.Errorf("the program ran over its end")
}

func seccompData(nr, arch uint32, args ...uint64) []byte {
	b := make([]byte, 64)
	binary.LittleEndian.PutUint32(b[dataNR:], nr)
	binary.LittleEndian.PutUint32(b[dataArch:], arch)
	for i, a := range args {
		binary.LittleEndian.PutUint64(b[dataArgs+8*i:], a)
	}
	return b
}

func TestFilterAsksAboutWhatTheSupervisorAnswers(t *testing.T) {
	const lo, hi = 768, 1024
	cwd := int64(unix.AT_FDCWD)
	at := uint64(cwd)
	at32 := uint64(uint32(at)) // compilers pass an int in either way
	tests := []struct {
		name string
		nr   uint32
		args []uint64
		want uint32
	}{
		{"verbs", unix.SYS_IOCTL, []uint64{3, rdmaVerbsIoctl, 0x1000}, retAsk},
		{"verbs, sign-extended", unix.SYS_IOCTL, []uint64{3, 0xffffffff<<32 | rdmaVerbsIoctl}, retAsk},
		{"another ioctl", unix.SYS_IOCTL, []uint64{3, unix.TCGETS}, retAllow},
		{"mmap of a device file", unix.SYS_MMAP, []uint64{0, 4096, 2, 1, hi - 1, 0x900000}, retAsk},
		{"mmap, lowest", unix.SYS_MMAP, []uint64{0, 4096, 2, 1, lo, 0}, retAsk},
		{"mmap of another file", unix.SYS_MMAP, []uint64{0, 4096, 2, 1, lo - 1, 0}, retAllow},
		{"mmap above", unix.SYS_MMAP, []uint64{0, 4096, 2, 1, hi, 0}, retAllow},
		{"anonymous mmap", unix.SYS_MMAP, []uint64{0, 4096, 3, 0x22, ^uint64(0), 0}, retAllow},
		{"fstat of a device file", unix.SYS_FSTAT, []uint64{lo}, retAsk},
		{"fstat of stdin", unix.SYS_FSTAT, []uint64{0}, retAllow},
		{"fstat of -1", unix.SYS_FSTAT, []uint64{^uint64(0)}, retAllow},
		{"openat", unix.SYS_OPENAT, []uint64{at}, retAsk},
		{"openat2", unix.SYS_OPENAT2, []uint64{at}, retAsk},
		{"stat by path", sysFstatat, []uint64{at, 1, 1, 0}, retAsk},
		{"stat below a directory", sysFstatat, []uint64{5, 1, 1, unix.AT_SYMLINK_NOFOLLOW}, retAsk},
		{"glibc's fstat", sysFstatat, []uint64{5, 1, 1, unix.AT_EMPTY_PATH}, retAllow},
		{"glibc's fstat of a device file", sysFstatat, []uint64{hi - 1, 1, 1, unix.AT_EMPTY_PATH}, retAsk},
		{"path with AT_EMPTY_PATH", sysFstatat, []uint64{at32, 1, 1, unix.AT_EMPTY_PATH}, retAsk},
		{"statx by path", unix.SYS_STATX, []uint64{at, 1, 0, 0xfff}, retAsk},
		{"statx of a file", unix.SYS_STATX, []uint64{4, 1, unix.AT_EMPTY_PATH, 0xfff}, retAllow},
		{"statx of a device file", unix.SYS_STATX, []uint64{lo, 1, unix.AT_EMPTY_PATH, 0xfff}, retAsk},
		{"faccessat", unix.SYS_FACCESSAT, []uint64{at}, retAsk},
		{"faccessat2", unix.SYS_FACCESSAT2, []uint64{at}, retAsk},
		{"readlinkat", unix.SYS_READLINKAT, []uint64{at}, retAsk},
		{"RDMA netlink", unix.SYS_SOCKET, []uint64{unix.AF_NETLINK, unix.SOCK_RAW, netlinkRDMA}, retDeny},
		{"route netlink", unix.SYS_SOCKET, []uint64{unix.AF_NETLINK, unix.SOCK_RAW, unix.NETLINK_ROUTE}, retAllow},
		{"TCP", unix.SYS_SOCKET, []uint64{unix.AF_INET, unix.SOCK_STREAM, netlinkRDMA}, retAllow},
	}
	// What a vfork child of Go does before it executes, and what a data path does.
	for _, nr := range []uint32{unix.SYS_CLOSE, unix.SYS_DUP, unix.SYS_DUP3, unix.SYS_FCNTL, unix.SYS_EXECVE, unix.SYS_EXECVEAT, unix.SYS_PRCTL, unix.SYS_PRLIMIT64,
		unix.SYS_CHDIR, unix.SYS_READ, unix.SYS_WRITE, unix.SYS_MUNMAP, unix.SYS_FUTEX, unix.SYS_CLONE, unix.SYS_EXIT, unix.SYS_RT_SIGPROCMASK, unix.SYS_GETTID} {
		for _, fd := range []uint64{0, lo, hi - 1, at} {
			tests = append(tests, struct {
				name string
				nr   uint32
				args []uint64
				want uint32
			}{fmt.Sprintf("system call %d of %d", nr, int32(fd)), nr, []uint64{fd, rdmaVerbsIoctl, 0, 0, lo}, retAllow})
		}
	}
	prog := buildFilter(lo, hi)
	if len(prog) > unix.BPF_MAXINSNS {
		t.Fatalf("%d instructions", len(prog))
	}
	for _, tt := range tests {
		got, err := execute(prog, seccompData(tt.nr, auditArch, tt.args...))
		if err != nil || got != tt.want {
			t.Errorf("%s: %#x, %v; want %#x", tt.name, got, err, tt.want)
		}
		const i386 = 0x40000003
		if got, err := execute(prog, seccompData(tt.nr, i386, tt.args...)); err != nil || got != retAllow {
			t.Errorf("%s, for another instruction set: %#x, %v; want to allow it", tt.name, got, err)
		}
	}
}

func TestFilterEndsForEveryCall(t *testing.T) {
	prog := buildFilter(12, 16)
	for nr := range uint32(600) {
		for _, flag := range []uint32{0, x32Bit} {
			got, err := execute(prog, seccompData(nr|flag, auditArch, 12, rdmaVerbsIoctl, netlinkRDMA, 0, 12))
			if err != nil {
				t.Fatalf("call %d: %v", nr|flag, err)
			}
			if flag != 0 && got != retAllow {
				t.Errorf("x32 call %d: %#x", nr, got)
			}
		}
	}
}
