//go:build amd64 || arm64

package guest

import (
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// name returns the absolute clean path that a call names, if it is one of the
// tree. A path that cannot be read, or is not ours, is the kernel's to judge.
//
// Symbolic links outside the tree that lead into it are not seen through, and of
// relative paths only those are looked at that can be meant.
func (s *supervisor) name(n *notif, dirfd int32, addr uint64) (string, bool) {
	m := newMemory(0, int(n.pid))
	p, err := m.readPath(addr)
	if err != nil || p == "" {
		return "", false
	}
	if p[0] != '/' {
		if !strings.Contains(p, "infiniband") && !strings.Contains(p, "uverbs") {
			return "", false
		}
		dir := procFD(n.pid, dirfd)
		if dirfd == unix.AT_FDCWD {
			dir = fmt.Sprintf("/proc/%d/cwd", n.pid)
		}
		if dir, err = os.Readlink(dir); err != nil {
			return "", false
		}
		p = s.tree.guestName(dir) + "/" + p
	}
	p = s.tree.resolve(p)
	return p, serves(p)
}

// open answers openat.
func (s *supervisor) open(n *notif, dirfd int32, addr, flags uint64) answer {
	name, ok := s.name(n, dirfd, addr)
	if !ok {
		return carryOn
	}
	return s.openName(n, name, flags)
}

// openat2 answers openat2: struct open_how begins with the flags.
func (s *supervisor) openat2(n *notif, dirfd int32, addr, how, size uint64) answer {
	name, ok := s.name(n, dirfd, addr)
	if !ok || size < 24 {
		return carryOn
	}
	var flags [8]byte
	if newMemory(0, int(n.pid)).Read(how, flags[:]) != nil {
		return fail(unix.EFAULT)
	}
	return s.openName(n, name, le.Uint64(flags[:]))
}

func (s *supervisor) openName(n *notif, name string, flags uint64) answer {
	if flags&unix.O_PATH != 0 {
		// Such a descriptor cannot be handed over. One that can do more serves, too.
		flags &= unix.O_PATH | unix.O_DIRECTORY | unix.O_CLOEXEC | unix.O_NOFOLLOW
	}
	if i := s.tree.device(name); i >= 0 {
		switch {
		case flags&unix.O_DIRECTORY != 0:
			return fail(unix.ENOTDIR)
		case flags&(unix.O_CREAT|unix.O_EXCL) == unix.O_CREAT|unix.O_EXCL:
			return fail(unix.EEXIST)
		}
		return s.openDevice(n, i, flags&unix.O_CLOEXEC != 0)
	}
	fd, err := unix.Open(s.tree.host(name), int(flags&(unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_NONBLOCK))|unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return failure(err)
	}
	defer unix.Close(fd)
	if flags&(unix.O_ACCMODE|unix.O_TRUNC) != 0 {
		return fail(unix.EACCES)
	}
	got, err := addFD(s.listener, n.id, fd, -1, flags&unix.O_CLOEXEC != 0)
	if err != nil {
		return failure(err)
	}
	return answer{val: int64(got)}
}

// charDevice makes st what the kernel tells of the file of device i.
func charDevice(st *unix.Stat_t, i int) {
	major, minor := rdev(i)
	st.Mode = unix.S_IFCHR | 0o666
	st.Rdev = unix.Mkdev(major, minor)
	st.Size, st.Blocks = 0, 0
}

// stat returns what the program shall see at name.
func (s *supervisor) stat(name string, flags int, st *unix.Stat_t) error {
	if err := unix.Fstatat(unix.AT_FDCWD, s.tree.host(name), st, flags&unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return err
	}
	if i := s.tree.device(name); i >= 0 {
		charDevice(st, i)
	}
	return nil
}

// deviceName is the path of device i.
func deviceName(i int) string { return fmt.Sprintf("%s/uverbs%d", devRoot, i) }

// fstat answers fstat of a device file.
func (s *supervisor) fstat(n *notif, fd int32, addr uint64) answer {
	f := s.identify(n, fd)
	if f == nil {
		return carryOn
	}
	return s.putStat(n, deviceName(f.dev), 0, addr)
}

// putStat stores what is at name as struct stat.
func (s *supervisor) putStat(n *notif, name string, flags int, addr uint64) answer {
	var st unix.Stat_t
	if err := s.stat(name, flags, &st); err != nil {
		return failure(err)
	}
	if err := s.write(n, addr, bytesOf(&st)); err != nil {
		return failure(err)
	}
	return answer{}
}

// subject is the name that a call with AT_EMPTY_PATH is about.
func (s *supervisor) subject(n *notif, fd int32, addr, flags uint64) (string, bool) {
	if flags&unix.AT_EMPTY_PATH != 0 {
		if f := s.identify(n, fd); f != nil {
			if p, err := newMemory(0, int(n.pid)).readPath(addr); err == nil && p == "" || addr == 0 {
				return deviceName(f.dev), true
			}
		}
	}
	return s.name(n, fd, addr)
}

// fstatat answers newfstatat.
func (s *supervisor) fstatat(n *notif, fd int32, addr, buf, flags uint64) answer {
	name, ok := s.subject(n, fd, addr, flags)
	if !ok {
		return carryOn
	}
	return s.putStat(n, name, int(uint32(flags)), buf)
}

// statx answers statx.
func (s *supervisor) statx(n *notif, fd int32, addr, flags, mask, buf uint64) answer {
	name, ok := s.subject(n, fd, addr, flags)
	if !ok {
		return carryOn
	}
	var st unix.Statx_t
	if err := unix.Statx(unix.AT_FDCWD, s.tree.host(name), int(uint32(flags)&unix.AT_SYMLINK_NOFOLLOW), int(uint32(mask)), &st); err != nil {
		return failure(err)
	}
	if i := s.tree.device(name); i >= 0 {
		st.Mode = unix.S_IFCHR | 0o666
		st.Rdev_major, st.Rdev_minor = rdev(i)
		st.Size, st.Blocks = 0, 0
	}
	if err := s.write(n, buf, bytesOf(&st)); err != nil {
		return failure(err)
	}
	return answer{}
}

// access answers faccessat: the tree is as readable as sysfs, and nothing but
// the device files can be written.
func (s *supervisor) access(n *notif, dirfd int32, addr, mode uint64) answer {
	name, ok := s.name(n, dirfd, addr)
	if !ok {
		return carryOn
	}
	var st unix.Stat_t
	if err := s.stat(name, 0, &st); err != nil {
		return failure(err)
	}
	switch {
	case mode&unix.W_OK != 0 && s.tree.device(name) < 0,
		mode&unix.X_OK != 0 && st.Mode&unix.S_IFMT != unix.S_IFDIR:
		return fail(unix.EACCES)
	}
	return answer{}
}

// readlink answers readlinkat.
func (s *supervisor) readlink(n *notif, dirfd int32, addr, buf, size uint64) answer {
	name, ok := s.name(n, dirfd, addr)
	if !ok {
		return carryOn
	}
	if int32(size) <= 0 {
		return fail(unix.EINVAL)
	}
	to := make([]byte, min(uint64(int32(size)), unix.PathMax))
	k, err := unix.Readlink(s.tree.host(name), to)
	if err != nil {
		return failure(err)
	}
	if err := s.write(n, buf, to[:k]); err != nil {
		return failure(err)
	}
	return answer{val: int64(k)}
}

// xattr answers the calls for extended attributes, of which the tree has none.
func (s *supervisor) xattr(n *notif, addr uint64) answer {
	name, ok := s.name(n, unix.AT_FDCWD, addr)
	if !ok {
		return carryOn
	}
	var st unix.Stat_t
	if err := s.stat(name, 0, &st); err != nil {
		return failure(err)
	}
	return fail(unix.EOPNOTSUPP)
}
