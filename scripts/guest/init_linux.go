package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// What jobs find.
var guestEnv = []string{
	"PATH=/bin:/sbin:/usr/bin:/usr/sbin",
	"HOME=/root",
	"TMPDIR=/tmp",
	"RRPC_GUEST=1", // this is a machine whose devices may be changed
	"RRPC_DEVICE=rxe0", "RRPC_DEVICE2=rxe1",
}

// runInit is process 1. It never returns: when it is done, or cannot go on, the
// machine is switched off.
func runInit() {
	r := &report{w: os.Stdout}
	err := boot(r)
	if err != nil {
		r.say("cannot start: %v", err)
	} else {
		runJobs(r)
		r.end()
	}
	unix.Sync()
	// Only when the last byte has left the serial port.
	if f, ok := r.w.(*os.File); ok {
		unix.IoctlSetInt(int(f.Fd()), unix.TCSBRK, 1)
	}
	unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF)
	select {} // a process 1 that returns makes the kernel panic
}

// boot prepares the machine.
func boot(r *report) error {
	if err := mountAll(); err != nil {
		return err
	}
	port, err := openSerial("/dev/ttyS1")
	if err != nil {
		return err
	}
	r.w = port
	release, err := os.ReadFile("/proc/sys/kernel/osrelease")
	if err != nil {
		return err
	}
	r.say("hello Linux %s", strings.TrimSpace(string(release)))
	if err := installBusybox(); err != nil {
		return err
	}
	if err := loadModules(); err != nil {
		return err
	}
	setup := exec.Command("/bin/sh", "/setup.sh")
	setup.Env, setup.Stdout, setup.Stderr = guestEnv, port, port
	if err := setup.Run(); err != nil {
		return fmt.Errorf("/setup.sh: %w", err)
	}
	return nil
}

func mountAll() error {
	for _, m := range []struct{ source, target, fstype, data string }{
		{"proc", "/proc", "proc", ""},
		{"sysfs", "/sys", "sysfs", ""},
		{"devtmpfs", "/dev", "devtmpfs", ""},
		{"devpts", "/dev/pts", "devpts", ""},
		{"tmpfs", "/dev/shm", "tmpfs", ""},
		{"tmpfs", "/run", "tmpfs", ""},
		{"tmpfs", "/tmp", "tmpfs", "mode=1777"},
	} {
		if err := os.MkdirAll(m.target, 0o755); err != nil {
			return err
		}
		// The kernel may have mounted /dev by itself.
		if err := unix.Mount(m.source, m.target, m.fstype, 0, m.data); err != nil && err != unix.EBUSY {
			return fmt.Errorf("mount %s: %w", m.target, err)
		}
	}
	return nil
}

// openSerial opens a serial port that passes bytes as they are: a terminal
// would turn each newline into two characters.
func openSerial(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		return nil, err
	}
	t, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
	if err == nil {
		t.Oflag &^= unix.OPOST
		t.Lflag &^= unix.ECHO | unix.ICANON | unix.ISIG
		t.Cflag = t.Cflag&^unix.CBAUD | unix.B115200
		err = unix.IoctlSetTermios(int(f.Fd()), unix.TCSETS, t)
	}
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return f, nil
}

// installBusybox gives busybox its names, but for those of programs that were
// packed.
func installBusybox() error {
	out, err := exec.Command("/bin/busybox", "--list").Output()
	if err != nil {
		return err
	}
	for name := range strings.FieldsSeq(string(out)) {
		if err := os.Symlink("/bin/busybox", "/bin/"+name); err != nil && !errors.Is(err, os.ErrExist) {
			return err
		}
	}
	return nil
}

func loadModules() error {
	list, err := os.ReadFile(moduleList)
	if err != nil {
		return err
	}
	for name := range strings.FieldsSeq(string(list)) {
		f, err := os.Open("/modules/" + name + ".ko")
		if err != nil {
			return err
		}
		err = unix.FinitModule(int(f.Fd()), "", 0)
		f.Close()
		if err != nil && err != unix.EEXIST {
			return fmt.Errorf("load module %s: %w", name, err)
		}
	}
	return nil
}

// runJobs runs the scripts of /jobs in the order of their names.
func runJobs(r *report) {
	jobs, err := filepath.Glob("/jobs/*")
	if err != nil || len(jobs) == 0 {
		r.failed++
		r.say("no jobs: %v", err)
		return
	}
	base, err := rdmaResources()
	if err != nil {
		r.failed++
		r.say("rdma resource show: %v", err)
	}
	taint := kernelTaint()
	for _, job := range jobs {
		// 10-uverbs is the job uverbs.
		name := filepath.Base(job)
		if _, rest, ok := strings.Cut(name, "-"); ok {
			name = rest
		}
		r.start(name)
		kmsg("guest: job " + name)
		start := time.Now()
		var problems []string
		if err := runJob(job, r.w); err != nil {
			problems = append(problems, err.Error())
		}
		took := time.Since(start)
		left, now := leftBehind(base)
		problems = append(problems, left...)
		if len(left) > 0 && now != nil {
			base = now // one job is to blame, not all after it
		}
		if t := kernelTaint(); t != taint {
			problems = append(problems, fmt.Sprintf("the kernel complained (taint %#x, was %#x): see the console", t, taint))
			taint = t
		}
		r.done(name, took, problems)
	}
}

// killAfter is how long a job that was told to end may take for its last words.
var killAfter = 5 * time.Second

// runJob runs one script; "# timeout: 60" in its second line is in seconds.
func runJob(job string, out io.Writer) error {
	text, err := os.ReadFile(job)
	if err != nil {
		return err
	}
	limit := 60 * time.Second
	for line := range strings.Lines(string(text)) {
		if v, ok := strings.CutPrefix(line, "# timeout:"); ok {
			n, err := strconv.Atoi(strings.TrimSpace(v))
			if err != nil {
				return fmt.Errorf("%s: %w", job, err)
			}
			limit = time.Duration(n) * time.Second
		}
	}
	cmd := exec.Command("/bin/sh", job)
	cmd.Env, cmd.Stdout, cmd.Stderr = guestEnv, out, out
	// A group of its own, so that what it started ends with it.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := cmd.Start(); err != nil {
		return err
	}
	group := -cmd.Process.Pid
	// SIGQUIT makes a Go program tell where it hangs.
	quit := time.AfterFunc(limit, func() { unix.Kill(group, unix.SIGQUIT) })
	kill := time.AfterFunc(limit+killAfter, func() { unix.Kill(group, unix.SIGKILL) })
	err = cmd.Wait()
	timely := quit.Stop()
	kill.Stop()
	unix.Kill(group, unix.SIGKILL)
	if !timely {
		return fmt.Errorf("not done after %v", limit)
	}
	return err
}

// leftBehind waits for the kernel to drop what ended processes held. It tells
// what the kernel keeps, and what there is altogether.
func leftBehind(base resources) (problems []string, now resources) {
	for range 20 {
		var err error
		if now, err = rdmaResources(); err != nil {
			return []string{"rdma resource show: " + err.Error()}, nil
		}
		if problems = now.more(base); len(problems) == 0 {
			return nil, now
		}
		time.Sleep(100 * time.Millisecond)
	}
	return problems, now
}

func rdmaResources() (resources, error) {
	var stderr bytes.Buffer
	cmd := exec.Command("/bin/rdma", "resource", "show")
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("%w: %s", err, strings.TrimSpace(stderr.String()))
	}
	return parseResources(string(out)), nil
}

// kernelTaint is a bit mask that grows when the kernel has warned about itself
// or died in part.
func kernelTaint() uint64 {
	text, err := os.ReadFile("/proc/sys/kernel/tainted")
	if err != nil {
		return 0
	}
	n, _ := strconv.ParseUint(strings.TrimSpace(string(text)), 10, 64)
	return n
}

// kmsg puts a line into the kernel's log, so that the console tells what ran
// when it complained.
func kmsg(text string) { os.WriteFile("/dev/kmsg", []byte("<3>"+text+"\n"), 0) }
