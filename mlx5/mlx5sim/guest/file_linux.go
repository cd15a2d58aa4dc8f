//go:build amd64 || arm64

package guest

import (
	"encoding/binary"
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/rrppcc-go/rrppcc/mlx5/mlx5sim"
)

// le is the byte order of both architectures.
var le = binary.LittleEndian

// fileID tells files apart, whatever numbers they have in which process.
type fileID struct{ dev, ino uint64 }

// deviceFile is one open of a device. What the programs hold is an open
// description of a sparse memfd: mappings of UAR pages are mappings of it, shared
// with the supervisor's own. All references of all programs (duplicates,
// children, mappings) hold that one description, so the kernel knows when the
// last is gone, and inotify tells. This is the rule by which a real device's
// context lives, too.
type deviceFile struct {
	dev     int
	fd      int // the supervisor's own description of the memfd
	watch   int32
	id      fileID
	foreign *mlx5sim.Foreign
	mem     *memory
	caller  uint32               // thread that was seen last, of the owner's process
	pipes   map[int32]*eventPipe // by the number in the program
	asking  *notif               // while an ioctl executes
}

// deviceBytes is the size of the memfd: more than any offset of a mapping. It is
// sparse; only UAR pages exist.
const deviceBytes = 1 << 40

// maxDeviceFiles bounds what programs may keep open, all together.
const maxDeviceFiles = 4096

// openDevice opens device i for the program that asks.
func (s *supervisor) openDevice(n *notif, i int, cloexec bool) answer {
	s.noteClosed()
	if len(s.files) >= maxDeviceFiles {
		return fail(unix.ENFILE)
	}
	tgid := tgidOf(int(n.pid))
	slot := s.freeSlot(n.pid)
	if tgid == 0 || slot < 0 {
		return fail(unix.EMFILE)
	}
	theirs, f, err := s.newDeviceFile(i, tgid, n.pid)
	if err != nil {
		s.log.Error("open", "device", i, "pid", tgid, "err", err)
		return failure(err)
	}
	// Closed here, whatever happens: if the program did not get it, that is the
	// last close, and inotify tells of it as of any other.
	defer unix.Close(theirs)
	s.log.Info("opened", "device", i, "pid", tgid, "fd", slot)
	got, err := addFD(s.listener, n.id, theirs, slot, cloexec)
	if err != nil {
		return failure(err)
	}
	s.poller.add(f)
	return answer{val: int64(got)}
}

// newDeviceFile opens device i for thread tid of process tgid. theirs is the
// description that the program gets.
func (s *supervisor) newDeviceFile(i, tgid int, tid uint32) (theirs int, _ *deviceFile, err error) {
	f := &deviceFile{dev: i, fd: -1, watch: -1, caller: tid, mem: newMemory(tgid, int(tid)), pipes: make(map[int32]*eventPipe)}
	if theirs, err = s.makeDeviceFile(f); err != nil {
		s.release(f)
		return -1, nil, err
	}
	f.foreign, err = s.devs[i].OpenForeign(mlx5sim.ForeignConfig{
		Memory: f.mem,
		MapUAR: func(offset int64, length int) ([]byte, error) {
			return unix.Mmap(f.fd, offset, length, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
		},
		UnmapUAR:  func(page []byte) { unix.Munmap(page) },
		NewEvents: func(bool) (mlx5sim.EventSink, error) { return s.newEvents(f) },
	})
	if err != nil {
		unix.Close(theirs)
		s.release(f)
		return -1, nil, err
	}
	s.files[f.id], s.watches[f.watch] = f, f
	return theirs, f, nil
}

// makeDeviceFile makes the memfd of f, its watch, and the program's description of
// it.
func (s *supervisor) makeDeviceFile(f *deviceFile) (theirs int, err error) {
	if f.fd, err = unix.MemfdCreate(fmt.Sprintf("uverbs%d", f.dev), unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING); err != nil {
		return -1, fmt.Errorf("memfd: %w", err)
	}
	if err := unix.Ftruncate(f.fd, deviceBytes); err != nil {
		return -1, fmt.Errorf("memfd: %w", err)
	}
	// No program may cut it short below a page that the poller reads.
	if _, err := unix.FcntlInt(uintptr(f.fd), unix.F_ADD_SEALS, unix.F_SEAL_SHRINK|unix.F_SEAL_GROW|unix.F_SEAL_SEAL); err != nil {
		return -1, fmt.Errorf("seal memfd: %w", err)
	}
	var st unix.Stat_t
	if err := unix.Fstat(f.fd, &st); err != nil {
		return -1, fmt.Errorf("memfd: %w", err)
	}
	f.id = fileID{uint64(st.Dev), st.Ino}
	ours := fmt.Sprintf("/proc/self/fd/%d", f.fd)
	w, err := unix.InotifyAddWatch(s.inotify, ours, unix.IN_CLOSE)
	if err != nil {
		return -1, fmt.Errorf("inotify: %w", err)
	}
	f.watch = int32(w)
	// A description of its own, whose end is an event. (Recent kernels send none
	// for the one that memfd_create made.)
	if theirs, err = unix.Open(ours, unix.O_RDWR|unix.O_CLOEXEC, 0); err != nil {
		return -1, fmt.Errorf("open memfd: %w", err)
	}
	return theirs, nil
}

// release closes f and all that it has.
func (s *supervisor) release(f *deviceFile) {
	s.poller.remove(f)
	if f.foreign != nil {
		f.foreign.Close()
	}
	for _, p := range f.pipes {
		p.Close()
	}
	delete(s.files, f.id)
	if f.watch >= 0 {
		delete(s.watches, f.watch)
		unix.InotifyRmWatch(s.inotify, uint32(f.watch))
	}
	if f.fd >= 0 {
		unix.Close(f.fd)
	}
}

func (s *supervisor) releaseAll() {
	for _, f := range s.files {
		s.release(f)
	}
}

// filesClosed reads inotify and releases what has no user any more.
func (s *supervisor) filesClosed() {
	var buf [64 * unix.SizeofInotifyEvent]byte
	for {
		n, err := unix.Read(s.inotify, buf[:])
		if err == unix.EINTR {
			continue
		}
		if n <= 0 {
			return
		}
		for p := buf[:n]; len(p) >= unix.SizeofInotifyEvent; {
			wd, mask, extra := int32(le.Uint32(p)), le.Uint32(p[4:]), int(le.Uint32(p[12:]))
			p = p[min(unix.SizeofInotifyEvent+extra, len(p)):]
			if f := s.watches[wd]; f != nil && mask&unix.IN_CLOSE != 0 {
				s.log.Info("closed", "device", f.dev, "pid", f.mem.process())
				s.release(f)
			}
		}
	}
}

// mmap answers mmap of a device file: mappings of living UAR pages are the
// kernel's to make, and of nothing else. Ranges of one file that libmlx5 asks
// for as "contiguous" memory would all alias; it does without when refused.
func (s *supervisor) mmap(n *notif, fd int32, length, prot, flags, offset uint64) answer {
	f := s.identify(n, fd)
	if f == nil || flags&unix.MAP_ANONYMOUS != 0 {
		return carryOn
	}
	if offset >= deviceBytes || length > deviceBytes || prot&unix.PROT_EXEC != 0 || flags&unix.MAP_TYPE == unix.MAP_PRIVATE {
		return fail(unix.EINVAL)
	}
	if err := f.foreign.CheckMmap(int64(offset), int(length)); err != nil {
		return failure(err)
	}
	return carryOn
}

const (
	cmdHeaderBytes = 24
	maxCmdBytes    = 4096
)

// ioctl answers RDMA_VERBS_IOCTL.
func (s *supervisor) ioctl(n *notif, fd int32, addr uint64) answer {
	s.noteClosed()
	f := s.identify(n, fd)
	if f == nil {
		return carryOn // the kernel knows what ENOTTY and EBADF are
	}
	if !s.adopt(f, n.pid) {
		return fail(unix.EINVAL)
	}
	m := newMemory(0, int(n.pid))
	var header [cmdHeaderBytes]byte
	if m.Read(addr, header[:]) != nil {
		return fail(unix.EFAULT)
	}
	length := int(le.Uint16(header[:]))
	if length < cmdHeaderBytes || length > maxCmdBytes {
		return fail(unix.EINVAL)
	}
	cmd := make([]byte, length)
	if m.Read(addr, cmd) != nil {
		return fail(unix.EFAULT)
	}
	copy(cmd, header[:]) // the length that was checked is the one that counts
	f.asking = n
	err := f.foreign.Ioctl(cmd)
	f.asking = nil
	if err != nil {
		return failure(err)
	}
	if err := s.write(n, addr, cmd); err != nil {
		return failure(err)
	}
	return answer{}
}

// adopt reports whether thread tid may use f: it must be of the process that
// opened it, whose memory the device knows. If that process has ended, which is
// how daemons are born, the first one that comes takes its place.
func (s *supervisor) adopt(f *deviceFile, tid uint32) bool {
	if f.caller == tid {
		return true
	}
	tgid := tgidOf(int(tid))
	if tgid == 0 {
		return false
	}
	if owner := f.mem.process(); tgid != owner {
		if hasMemory(owner) {
			return false
		}
		f.mem.move(tgid, int(tid))
	}
	f.caller = tid
	return true
}
