//go:build amd64 || arm64

package guest

import (
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/rrppcc-go/rrppcc/internal/kernel"
)

// What guest programs of the tests do, below the verbs: by system calls.

// deviceFD is an open device file, as the program has it.
type deviceFD int

func (fd deviceFD) Ioctl(cmd []byte) error {
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), rdmaVerbsIoctl, uintptr(unsafe.Pointer(&cmd[0])))
	if errno != 0 {
		return errno
	}
	return nil
}
func (deviceFD) Mmap(int64, int, kernel.Prot) ([]byte, error) { return nil, syscall.ENOSYS }
func (deviceFD) Munmap([]byte) error                          { return syscall.ENOSYS }
func (deviceFD) Events(int32) (kernel.EventFile, error)       { return nil, syscall.ENOSYS }
func (fd deviceFD) Close() error                              { return unix.Close(int(fd)) }

const (
	mlx5Driver   = 1
	objDevice    = 0
	objAsync     = 16
	objUAR       = 0x1008
	cmdAllocPD   = 3
	cmdRegMR     = 9
	getContext   = 3
	uarPageBytes = 4096
)

func openDevice(i, flags int) (deviceFD, error) {
	fd, err := unix.Open(fmt.Sprintf("/dev/infiniband/uverbs%d", i), unix.O_RDWR|flags, 0)
	return deviceFD(fd), err
}

// context makes fd ready for everything else: struct
// mlx5_ib_alloc_ucontext_req_v2, with UAR pages as objects.
func (fd deviceFD) context() error {
	var vectors, req, resp = make([]byte, 4), make([]byte, 32), make([]byte, 72)
	le.PutUint32(req[0:], 16) // total_num_bfregs
	le.PutUint32(req[4:], 4)  // num_low_latency_bfregs
	req[16] = 1               // max_cqe_version
	le.PutUint64(req[24:], 3) // MLX5_LIB_CAP_4K_UAR, MLX5_LIB_CAP_DYN_UAR
	c := kernel.NewCommand(mlx5Driver, objDevice, getContext)
	c.Out(0, vectors)
	c.Out(1, make([]byte, 8))
	c.UHW(req, resp)
	return c.Run(fd)
}

// allocPD returns the handle of a new PD.
func (fd deviceFD) allocPD() (uint32, error) {
	in, out, uhw := make([]byte, 8), make([]byte, 4), make([]byte, 4)
	c := kernel.NewWriteCommand(mlx5Driver, cmdAllocPD, in, out)
	c.UHW(nil, uhw)
	err := c.Run(fd)
	return le.Uint32(out), err
}

// mapUAR makes a UAR page and maps it.
func (fd deviceFD) mapUAR() ([]byte, int64, error) {
	offset := make([]byte, 8)
	c := kernel.NewCommand(mlx5Driver, objUAR, 0x1000)
	c.NewObject(0x1000)
	c.Const(0x1001, 0)
	c.Out(0x1002, offset)
	c.Out(0x1003, make([]byte, 4))
	c.Out(0x1004, make([]byte, 4))
	if err := c.Run(fd); err != nil {
		return nil, 0, err
	}
	at := int64(le.Uint64(offset))
	mem, err := unix.Mmap(int(fd), at, uarPageBytes, unix.PROT_WRITE, unix.MAP_SHARED)
	return mem, at, err
}

// mark shows in the supervisor's log what has been noticed until now: whatever
// was closed before is told of before it.
func mark() error {
	fd, err := openDevice(1, unix.O_CLOEXEC)
	if err != nil {
		return err
	}
	return fd.Close()
}

// scenarioSelf is a command that runs another scenario.
func scenarioSelf(name string) *exec.Cmd {
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), scenarioVar+"="+name)
	cmd.Stderr = os.Stderr
	return cmd
}

// steps runs functions until one fails.
func steps(fs ...func() error) error {
	for i, f := range fs {
		if err := f(); err != nil {
			return fmt.Errorf("step %d: %w", i, err)
		}
	}
	return nil
}

func init() {
	var fd, second deviceFD
	open := func() (err error) {
		if fd, err = openDevice(0, unix.O_CLOEXEC); err == nil {
			err = fd.context()
		}
		return err
	}
	closeIt := func() error { return fd.Close() }
	forget := func([]string) error { return steps(open, func() error { os.Exit(0); return nil }) }
	scenarios["mark"] = func([]string) error { return mark() }
	scenarios["exit"] = forget
	scenarios["close"] = func([]string) error { return steps(open, closeIt, mark) }
	scenarios["die"] = func([]string) error {
		return steps(open,
			func() error { _, err := fd.allocPD(); return err },
			func() error { _, _, err := fd.mapUAR(); return err },
			func() error { return unix.Kill(os.Getpid(), unix.SIGKILL) })
	}
	scenarios["exec"] = func([]string) error {
		return steps(open, func() error {
			os.Setenv(scenarioVar, "mark")
			return unix.Exec("/proc/self/exe", []string{"guest"}, os.Environ())
		})
	}
	scenarios["child exits"] = func([]string) error {
		return steps(func() error { return scenarioSelf("exit").Run() }, mark)
	}
	scenarios["child dies"] = func([]string) error {
		var status *exec.ExitError
		if err := scenarioSelf("die").Run(); !errors.As(err, &status) || status.ExitCode() != -1 {
			return fmt.Errorf("the child: %v", err)
		}
		return mark()
	}
	scenarios["duplicate"] = func([]string) error {
		return steps(open,
			func() error {
				n, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
				second = deviceFD(n)
				return err
			},
			closeIt, mark,
			func() error { _, err := second.allocPD(); return err },
			func() error { return second.Close() }, mark)
	}
	scenarios["mapping"] = func([]string) error {
		var page []byte
		return steps(open,
			func() (err error) { page, _, err = fd.mapUAR(); return err },
			closeIt, mark,
			func() error { page[0x800] = 1; return unix.Munmap(page) }, mark)
	}
	// inherit holds its descriptor 3 until its standard input ends.
	scenarios["inherit"] = func([]string) error { io.Copy(io.Discard, os.Stdin); return nil }
	scenarios["child inherits"] = func([]string) error {
		child := scenarioSelf("inherit")
		var stdin io.Closer
		return steps(open,
			func() (err error) { stdin, err = child.StdinPipe(); return err },
			func() error {
				n, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
				f := os.NewFile(uintptr(n), "uverbs0")
				defer f.Close()
				child.ExtraFiles = []*os.File{f}
				return errors.Join(err, child.Start())
			},
			closeIt, mark,
			func() error { stdin.Close(); return child.Wait() }, mark)
	}
	// heir gives commands on its descriptor 3 until it may.
	scenarios["heir"] = func([]string) error {
		for i := 0; ; i++ {
			_, err := deviceFD(3).allocPD()
			if i == 0 {
				if !errors.Is(err, unix.EINVAL) {
					return fmt.Errorf("command beside the owner: %v, want EINVAL", err)
				}
				os.Stdout.Close() // the owner may go
			}
			if err == nil {
				return mark()
			}
			nanosleep(time.Millisecond)
		}
	}
	scenarios["daemon"] = func([]string) error {
		child := scenarioSelf("heir")
		return steps(open, func() error {
			n, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
			child.ExtraFiles = []*os.File{os.NewFile(uintptr(n), "uverbs0")}
			out, err2 := child.StdoutPipe()
			if err := errors.Join(err, err2, child.Start()); err != nil {
				return err
			}
			_, err = io.Copy(io.Discard, out)
			return err
		})
	}
	scenarios["gone"] = func([]string) error {
		for range 300 {
			if _, err := openDevice(0, unix.O_CLOEXEC); err != unix.ENODEV {
				return fmt.Errorf("open of a device that was removed: %v, want ENODEV", err)
			}
		}
		return mark()
	}
	scenarios["calls"] = fileCalls
	scenarios["hostile"] = nonsense
	scenarios["signals"] = interrupted
	scenarios["loop"] = func([]string) error {
		for i := 0; ; i++ {
			if err := steps(open, func() error { _, err := fd.allocPD(); return err }, func() error { _, _, err := fd.mapUAR(); return err }, closeIt); err != nil {
				return err
			}
			if i == 0 {
				fmt.Println("going")
			}
		}
	}
	scenarios["bench"] = func(args []string) error {
		n, err := strconv.Atoi(args[0])
		if err != nil {
			return err
		}
		if err := open(); err != nil {
			return err
		}
		for _, b := range []struct {
			name string
			f    func() error
		}{
			{"command", func() error { _, err := fd.allocPD(); return err }},
			{"open", func() error {
				fd, err := unix.Open("/dev/null", unix.O_RDONLY, 0)
				unix.Close(fd)
				return err
			}},
			{"getppid", func() error { unix.Getppid(); return nil }},
		} {
			start := time.Now()
			for range n {
				if err := b.f(); err != nil {
					return err
				}
			}
			fmt.Println(b.name, time.Since(start).Nanoseconds()/int64(n))
		}
		return nil
	}
	scenarios["massacre"] = func([]string) error {
		for range 12 {
			child := scenarioSelf("loop")
			out, err := child.StdoutPipe()
			if err != nil {
				return err
			}
			if err := child.Start(); err != nil {
				return err
			}
			io.ReadFull(out, make([]byte, 5))
			nanosleep(time.Duration(rand.IntN(3000)) * time.Microsecond)
			child.Process.Kill()
			child.Wait()
		}
		return mark()
	}
}

// fileCalls looks at the devices by every system call that names files.
func fileCalls([]string) error {
	var problems []error
	want := func(what string, got, want any) {
		if got != want {
			problems = append(problems, fmt.Errorf("%s: %v, want %v", what, got, want))
		}
	}
	const dev = "/dev/infiniband/uverbs1"
	var st, lst, fst unix.Stat_t
	want("stat", unix.Stat(dev, &st), nil)
	want("lstat", unix.Lstat("/dev/../dev//infiniband/./uverbs1", &lst), nil)
	fd, err := openDevice(1, unix.O_CLOEXEC)
	want("open", err, nil)
	want("fstat", unix.Fstat(int(fd), &fst), nil)
	for name, s := range map[string]unix.Stat_t{"stat": st, "lstat": lst, "fstat": fst} {
		want(name+" mode", s.Mode, uint32(unix.S_IFCHR|0o666))
		want(name+" device number", s.Rdev, unix.Mkdev(231, 193))
	}
	var stx unix.Statx_t
	want("statx", unix.Statx(unix.AT_FDCWD, dev, 0, unix.STATX_BASIC_STATS, &stx), nil)
	want("statx device", fmt.Sprint(stx.Mode, stx.Rdev_major, stx.Rdev_minor), fmt.Sprint(unix.S_IFCHR|0o666, 231, 193))
	stx = unix.Statx_t{}
	want("statx of the descriptor", unix.Statx(int(fd), "", unix.AT_EMPTY_PATH, unix.STATX_BASIC_STATS, &stx), nil)
	want("statx device of the descriptor", fmt.Sprint(stx.Mode, stx.Rdev_major, stx.Rdev_minor), fmt.Sprint(unix.S_IFCHR|0o666, 231, 193))
	flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0)
	want("close-on-exec", fmt.Sprint(flags, err), fmt.Sprint(unix.FD_CLOEXEC, nil))
	other, err := unix.Openat2(unix.AT_FDCWD, dev, &unix.OpenHow{Flags: unix.O_RDWR})
	want("openat2", err, nil)
	flags, err = unix.FcntlInt(uintptr(other), unix.F_GETFD, 0)
	want("no close-on-exec", fmt.Sprint(flags, err), fmt.Sprint(0, nil))
	want("close", unix.Close(other), nil)

	_, err = unix.Open("/dev/infiniband/uverbs2", unix.O_RDWR, 0)
	want("a device that is not there", err, unix.ENOENT)
	_, err = unix.Open(dev, unix.O_RDWR|unix.O_DIRECTORY, 0)
	want("a device as a directory", err, unix.ENOTDIR)
	_, err = unix.Open(dev, unix.O_RDWR|unix.O_CREAT|unix.O_EXCL, 0o600)
	want("a device made anew", err, unix.EEXIST)
	_, err = unix.Open("/sys/class/infiniband/mlx5_0/node_type", unix.O_RDWR, 0)
	want("an attribute to write", err, unix.EACCES)
	_, err = unix.Open("/sys/class/infiniband/mlx5_7", unix.O_RDONLY, 0)
	want("an attribute of no device", err, unix.ENOENT)

	want("access", unix.Access(dev, unix.R_OK|unix.W_OK), nil)
	want("access to nothing", unix.Access(dev+"0", unix.F_OK), unix.ENOENT)
	want("right to write an attribute", unix.Access("/sys/class/infiniband/mlx5_0/node_type", unix.W_OK), unix.EACCES)
	want("right to execute a device", unix.Faccessat(unix.AT_FDCWD, dev, unix.X_OK, 0), unix.EACCES)
	link, err := os.Readlink("/sys/class/infiniband/mlx5_1")
	want("readlink", fmt.Sprint(link, err), fmt.Sprint("../../devices/mlx5sim/0000:c1:00.0/infiniband/mlx5_1", nil))
	_, err = os.Readlink(dev)
	want("readlink of a device", errors.Is(err, unix.EINVAL), true)
	real, err := filepath.EvalSymlinks("/sys/class/infiniband_verbs/uverbs0/device")
	want("realpath", fmt.Sprint(real, err), fmt.Sprint("/sys/devices/mlx5sim/0000:c0:00.0", nil))
	_, err = unix.Getxattr(dev, "user.x", nil)
	want("getxattr", err, unix.EOPNOTSUPP)

	dir, err := unix.Open("/sys/class/infiniband_verbs", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	want("open directory", err, nil)
	sub, err := unix.Openat(dir, "uverbs1/ibdev", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	want("openat below it", err, nil)
	text := make([]byte, 64)
	n, err := unix.Read(sub, text)
	want("read", fmt.Sprint(string(text[:max(n, 0)]), err), fmt.Sprint("mlx5_1\n", nil))
	nodes, err := unix.Open("/dev/infiniband", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	want("open the devices' directory", err, nil)
	want("stat below it", unix.Fstatat(nodes, "uverbs0", &st, 0), nil)
	want("device number below it", st.Rdev, unix.Mkdev(231, 192))
	relative, err := unix.Openat(nodes, "uverbs0", unix.O_RDWR|unix.O_CLOEXEC, 0)
	want("open a device below it", err, nil)
	want("it is one", deviceFD(relative).context(), nil)
	names, err := os.ReadDir("/sys/class/infiniband")
	want("readdir", fmt.Sprint(len(names), err), fmt.Sprint(2, nil))

	for _, name := range []string{dev, "/sys/class/infiniband"} {
		fd, err := unix.Open(name, unix.O_PATH|unix.O_CLOEXEC, 0)
		want("O_PATH of "+name, err, nil)
		want("stat by it", unix.Fstatat(fd, "", &st, unix.AT_EMPTY_PATH), nil)
		want("type by it", st.Mode&unix.S_IFMT, map[bool]uint32{true: unix.S_IFCHR, false: unix.S_IFDIR}[name == dev])
		unix.Close(fd)
	}

	_, err = unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW, netlinkRDMA)
	want("netlink", err, unix.EPROTONOSUPPORT)

	// What is not a UAR page cannot be mapped.
	want("context", fd.context(), nil)
	page, at, err := fd.mapUAR()
	want("map a UAR page", err, nil)
	for name, m := range map[string]struct {
		offset      int64
		length      int
		prot, flags int
		want        error
	}{
		"the same page again": {at, uarPageBytes, unix.PROT_WRITE, unix.MAP_SHARED, nil},
		"two pages":           {at, 2 * uarPageBytes, unix.PROT_WRITE, unix.MAP_SHARED, unix.EINVAL},
		"a private page":      {at, uarPageBytes, unix.PROT_WRITE, unix.MAP_PRIVATE, unix.EINVAL},
		"a page of code":      {at, uarPageBytes, unix.PROT_READ | unix.PROT_EXEC, unix.MAP_SHARED, unix.EINVAL},
		"the clock":           {0x500000, uarPageBytes, unix.PROT_READ, unix.MAP_SHARED, unix.EINVAL},
		"contiguous memory":   {0x10c000, 1 << 16, unix.PROT_READ | unix.PROT_WRITE, unix.MAP_SHARED, unix.EINVAL},
		"beyond everything":   {1 << 50, uarPageBytes, unix.PROT_READ, unix.MAP_SHARED, unix.EINVAL},
		"the page after it":   {at + uarPageBytes, uarPageBytes, unix.PROT_WRITE, unix.MAP_SHARED, unix.EINVAL},
	} {
		mem, err := unix.Mmap(int(fd), m.offset, m.length, m.prot, m.flags)
		want("map "+name, err, m.want)
		if err == nil {
			unix.Munmap(mem)
		}
	}
	unix.Munmap(page)
	for _, n := range []int{int(fd), dir, sub, nodes, relative} {
		want("close", unix.Close(n), nil)
	}
	// Other files are the kernel's.
	want("stat of another file", unix.Stat("/proc/self/exe", &st), nil)
	want("stat of nothing", unix.Stat("/dev/infinibandx", &st), unix.ENOENT)
	_, _, errno := unix.Syscall6(sysFstatat, ^uintptr(99), 1, uintptr(unsafe.Pointer(&st)), 0, 0, 0)
	want("stat of a bad address", errno, unix.EFAULT)
	return errors.Join(problems...)
}

// nonsense gives the device all kinds of nonsense, and then uses it.
func nonsense([]string) error {
	fd, err := openDevice(0, unix.O_CLOEXEC)
	if err != nil {
		return err
	}
	ioctl := func(addr uintptr) unix.Errno {
		_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), rdmaVerbsIoctl, addr)
		return errno
	}
	page, err := unix.Mmap(-1, 0, 2*4096, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		return err
	}
	if err := unix.Mprotect(page[4096:], unix.PROT_NONE); err != nil {
		return err
	}
	base := uintptr(unsafe.Pointer(&page[0]))
	le.PutUint16(page[4096-24:], 24+16) // a header whose attribute is not there
	le.PutUint16(page[4096-18:], 1)
	for _, tt := range []struct {
		name string
		addr uintptr
		want unix.Errno
	}{
		{"null", 0, unix.EFAULT}, {"the kernel's half", ^uintptr(4095), unix.EFAULT}, {"half a header", base + 4096 - 12, unix.EFAULT},
		{"half a command", base + 4096 - 24, unix.EFAULT}, {"no length", base, unix.EINVAL},
	} {
		if got := ioctl(tt.addr); got != tt.want {
			return fmt.Errorf("command at %s: %v, want %v", tt.name, got, tt.want)
		}
	}
	le.PutUint16(page, 0xffff)
	if got := ioctl(base); got != unix.EINVAL {
		return fmt.Errorf("command of 64 KiB: %v", got)
	}
	if err := fd.context(); err != nil {
		return err
	}
	rng := rand.New(rand.NewPCG(1, 2))
	for range 3000 {
		attrs := rng.IntN(6)
		cmd := page[:24+16*attrs]
		for i := range cmd {
			cmd[i] = byte(rng.Uint32())
		}
		le.PutUint16(cmd[0:], uint16(len(cmd)))
		le.PutUint16(cmd[2:], uint16(rng.IntN(20)))
		le.PutUint16(cmd[4:], uint16(rng.IntN(8)))
		le.PutUint16(cmd[6:], uint16(attrs))
		clear(cmd[8:16])
		le.PutUint32(cmd[16:], mlx5Driver)
		clear(cmd[20:24])
		for a := range attrs {
			b := cmd[24+16*a:]
			le.PutUint16(b[0:], uint16(rng.IntN(16)))
			le.PutUint16(b[2:], uint16(rng.IntN(2)*rng.IntN(4096)))
			le.PutUint16(b[4:], uint16(rng.IntN(2)))
			le.PutUint16(b[6:], 0)
			switch rng.IntN(3) {
			case 0:
				le.PutUint64(b[8:], uint64(rng.IntN(64)))
			case 1:
				le.PutUint64(b[8:], uint64(base)+uint64(rng.IntN(8192)))
			}
		}
		ioctl(base) // whatever it answers
	}
	if _, err := fd.allocPD(); err != nil {
		return fmt.Errorf("the device after nonsense: %w", err)
	}
	// Paths that cannot be read.
	for _, addr := range []uintptr{0, ^uintptr(0), base + 8191, base + 4096} {
		if _, _, errno := unix.Syscall6(unix.SYS_OPENAT, ^uintptr(99), addr, 0, 0, 0, 0); errno != unix.EFAULT {
			return fmt.Errorf("open of %#x: %v", addr, errno)
		}
	}
	copy(page, strings.Repeat("/", 4096))
	if _, _, errno := unix.Syscall6(unix.SYS_OPENAT, ^uintptr(99), base, 0, 0, 0, 0); errno != unix.ENAMETOOLONG && errno != unix.EFAULT {
		return fmt.Errorf("open of a path without end: %v", errno)
	}
	// Answers that cannot be stored.
	name := append([]byte("/dev/infiniband/uverbs0"), 0)
	if _, _, errno := unix.Syscall6(sysFstatat, ^uintptr(99), uintptr(unsafe.Pointer(&name[0])), base+4096, 0, 0, 0); errno != unix.EFAULT {
		return fmt.Errorf("stat into memory that is not there: %v", errno)
	}
	if n, err := unix.Write(int(fd), page[:1]); n != 1 && err == nil {
		return fmt.Errorf("write: %d", n)
	}
	for _, err := range []error{unix.Ftruncate(int(fd), 0), unix.Ftruncate(int(fd), 1<<41)} {
		if err == nil {
			return errors.New("the device file could be cut or grown")
		}
	}
	return nil // and what is open stays open
}

// interrupted has commands interrupted all the time: each must be executed once.
func interrupted([]string) error {
	fd, err := openDevice(0, unix.O_CLOEXEC)
	if err != nil {
		return err
	}
	if err := fd.context(); err != nil {
		return err
	}
	runtime.LockOSThread()
	pid, tid := os.Getpid(), unix.Gettid()
	var stop atomic.Bool
	stopped := make(chan struct{})
	go func() {
		defer close(stopped)
		for !stop.Load() {
			unix.Tgkill(pid, tid, unix.SIGURG)
		}
	}()
	defer func() { stop.Store(true); <-stopped }()
	first, err := fd.allocPD()
	if err != nil {
		return err
	}
	for i := range uint32(2000) {
		h, err := fd.allocPD()
		if err != nil {
			return err
		}
		if h != first+i+1 { // one that was made twice has taken a handle
			return fmt.Errorf("PD %d has handle %d, the first has %d", i+1, h, first)
		}
	}
	return nil
}
