package main

import (
	"fmt"
	"io"
	"path"
	"strings"
)

// Modes of archive entries, as in stat(2).
const (
	modeDir     = 0o040000
	modeFile    = 0o100000
	modeSymlink = 0o120000
	modeChar    = 0o020000
)

// An archive writes the "newc" cpio format that the kernel unpacks as its root
// file system (Documentation/driver-api/early-userspace/buffer-format.rst):
// per entry a header of 6+13*8 hexadecimal characters, the name with its NUL,
// the data, the latter two padded to 4 bytes.
type archive struct {
	w    io.Writer
	ino  uint32
	seen map[string]bool // every name that was written, without the leading slash
	err  error           // the first one; everything after it is a no-op
}

func newArchive(w io.Writer) *archive { return &archive{w: w, seen: map[string]bool{}} }

// add writes one entry. The directories above it are written first; a name that
// is in the archive already is an error, as the kernel would let the last win.
func (a *archive) add(name string, mode uint32, data []byte, major, minor uint32) {
	name = strings.TrimPrefix(path.Clean("/"+name), "/")
	if a.err != nil {
		return
	}
	if name == "" || a.seen[name] {
		a.err = fmt.Errorf("two entries of the name /%s", name)
		return
	}
	if dir := path.Dir(name); dir != "." {
		a.mkdir(dir)
	}
	a.entry(name, mode, data, major, minor)
}

// mkdir writes a directory, and those above it, unless they are there already.
func (a *archive) mkdir(name string) {
	name = strings.TrimPrefix(path.Clean("/"+name), "/")
	if name == "" || a.seen[name] {
		return
	}
	a.mkdir(path.Dir("/" + name))
	a.entry(name, modeDir|0o755, nil, 0, 0)
}

func (a *archive) entry(name string, mode uint32, data []byte, major, minor uint32) {
	if a.err != nil {
		return
	}
	a.seen[name] = true
	a.ino++
	links := 1
	if mode&0o170000 == modeDir {
		links = 2
	}
	header := fmt.Sprintf("070701%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x",
		a.ino, mode, 0, 0, links, 0, len(data), 0, 0, major, minor, len(name)+1, 0)
	a.write([]byte(header + name + "\x00"))
	a.pad(len(header) + len(name) + 1)
	a.write(data)
	a.pad(len(data))
}

// close writes the trailer.
func (a *archive) close() error {
	a.entry("TRAILER!!!", 0, nil, 0, 0)
	return a.err
}

func (a *archive) write(p []byte) {
	if a.err == nil && len(p) > 0 {
		_, a.err = a.w.Write(p)
	}
}

func (a *archive) pad(n int) { a.write(make([]byte, -n&3)) }
