//go:build amd64 || arm64

package guest

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"os"
	"strconv"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"github.com/rrppcc-go/rrppcc/mlx5/mlx5sim"
)

// errNoMemory is an address, or a process, that is not there.
var errNoMemory = errors.New("guest: no such memory in the program")

// memory is the memory of a process, by the id of a thread of it. It implements
// mlx5sim.DMA by copying; process_vm_readv and process_vm_writev check the
// process's own mappings, so a bad address is an error and nothing worse.
type memory struct {
	tgid atomic.Int32
	tid  atomic.Int32 // a thread that lives, as far as is known
}

var _ mlx5sim.DMA = (*memory)(nil)

func newMemory(tgid, tid int) *memory {
	m := new(memory)
	m.move(tgid, tid)
	return m
}

// process is the id of the process whose memory it is.
func (m *memory) process() int { return int(m.tgid.Load()) }

// move makes it the memory of another process.
func (m *memory) move(tgid, tid int) {
	m.tgid.Store(int32(tgid))
	m.tid.Store(int32(tid))
}

// Read implements mlx5sim.DMA.
func (m *memory) Read(addr uint64, p []byte) error { return m.copy(addr, p, false) }

// Write implements mlx5sim.DMA. A write that runs into unmapped memory has
// written what is before it.
func (m *memory) Write(addr uint64, p []byte) error { return m.copy(addr, p, true) }

// View implements mlx5sim.DMA: the memory cannot be reached but by copying.
func (*memory) View(uint64, int) []byte { return nil }

func (m *memory) copy(addr uint64, p []byte, write bool) error {
	if len(p) == 0 {
		return nil
	}
	for {
		tid := m.tid.Load()
		local := [1]unix.Iovec{{Base: &p[0]}} // a pointer, which follows p when the stack moves
		local[0].SetLen(len(p))
		remote := [1]unix.RemoteIovec{{Base: uintptr(addr), Len: len(p)}}
		var n int
		var err error
		if write {
			n, err = unix.ProcessVMWritev(int(tid), local[:], remote[:], 0)
		} else {
			n, err = unix.ProcessVMReadv(int(tid), local[:], remote[:], 0)
		}
		switch {
		case err == nil && n == len(p):
			return nil
		case err == unix.EINTR:
		case err == unix.ESRCH && m.another(tid):
		default:
			return errNoMemory
		}
	}
}

// another finds another thread after tid has ended: the first thread of a
// process may end before the rest.
func (m *memory) another(tid int32) bool {
	dir, err := os.ReadDir(fmt.Sprintf("/proc/%d/task", m.process()))
	if err != nil {
		return false
	}
	for _, e := range dir {
		n, err := strconv.Atoi(e.Name())
		if err != nil || int32(n) == tid {
			continue
		}
		if hasMemory(n) {
			m.tid.Store(int32(n))
			return true
		}
	}
	return false
}

// hasMemory reports whether process or thread id exists and is no zombie.
func hasMemory(id int) bool {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/statm", id))
	return err == nil && !bytes.HasPrefix(b, []byte("0 "))
}

// Mapped implements mlx5sim.DMA.
func (m *memory) Mapped(addr, n uint64) bool {
	if n == 0 {
		return true
	}
	end := addr + n
	if end < addr {
		return false
	}
	// A page or two are asked for themselves: commands have many such ranges.
	const page = 4096
	if (end-1)/page-addr/page <= 1 {
		var b [1]byte
		return m.Read(addr, b[:]) == nil && m.Read(end-1, b[:]) == nil
	}
	return m.covered(addr, end, 'r')
}

// Writable is asked by the device beside Mapped: whether n bytes at addr may be
// written. It does not write there to find out.
func (m *memory) Writable(addr, n uint64) bool {
	end := addr + n
	return n == 0 || end > addr && m.covered(addr, end, 'w')
}

// Gone is asked by the device when an access failed: whether the process has
// ended.
func (m *memory) Gone() bool { return !hasMemory(int(m.tid.Load())) && !m.another(m.tid.Load()) }

// covered reports whether the process has mappings of all of addr to end-1 that
// allow what letter ('r' or 'w') stands for.
func (m *memory) covered(addr, end uint64, letter byte) bool {
	f, err := os.Open(fmt.Sprintf("/proc/%d/maps", m.tid.Load()))
	if err != nil {
		return false
	}
	defer f.Close()
	lines := bufio.NewScanner(f)
	for lines.Scan() && addr < end {
		lo, hi, rights, ok := parseMapping(lines.Bytes())
		switch {
		case !ok || hi <= addr:
		case lo > addr || bytes.IndexByte(rights, letter) < 0:
			return false
		default:
			addr = hi
		}
	}
	return addr >= end
}

// parseMapping reads the beginning of a line of /proc/pid/maps:
//
//	7f0000000000-7f0000001000 rw-p …
func parseMapping(line []byte) (lo, hi uint64, rights []byte, ok bool) {
	span, rest, _ := bytes.Cut(line, []byte(" "))
	from, to, ok := bytes.Cut(span, []byte("-"))
	if rights, _, _ = bytes.Cut(rest, []byte(" ")); !ok || len(rights) != 4 {
		return 0, 0, nil, false
	}
	lo, err1 := strconv.ParseUint(string(from), 16, 64)
	hi, err2 := strconv.ParseUint(string(to), 16, 64)
	return lo, hi, rights, err1 == nil && err2 == nil
}

// readPath reads the C string at addr: at most a path's length, and never beyond
// the page that its end is in.
func (m *memory) readPath(addr uint64) (string, error) {
	const page = 4096
	var path []byte
	for len(path) < unix.PathMax {
		b := make([]byte, min(256, page-addr%page))
		if err := m.Read(addr, b); err != nil {
			return "", unix.EFAULT
		}
		if i := bytes.IndexByte(b, 0); i >= 0 {
			return string(append(path, b[:i]...)), nil
		}
		path = append(path, b...)
		addr += uint64(len(b))
	}
	return "", unix.ENAMETOOLONG
}

// tgidOf returns the process that thread tid belongs to, 0 if it is gone.
func tgidOf(tid int) int {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", tid))
	if err != nil {
		return 0
	}
	_, rest, _ := bytes.Cut(b, []byte("\nTgid:"))
	line, _, _ := bytes.Cut(rest, []byte("\n"))
	n, _ := strconv.Atoi(string(bytes.TrimSpace(line)))
	return n
}
