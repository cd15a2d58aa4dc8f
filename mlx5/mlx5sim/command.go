package mlx5sim

import (
	"encoding/binary"
	"syscall"
)

// le is the byte order of the kernel ABI on every platform that this module
// supports.
var le = binary.LittleEndian

// Layout of struct ib_uverbs_ioctl_hdr and struct ib_uverbs_attr, bytes.
const (
	hdrBytes      = 24
	attrBytes     = 16
	attrMandatory = 1 << 0
	attrValid     = 1 << 1
	maxCmdBytes   = 4096 // the kernel refuses headers beyond a page
)

// attrKind is what the data word of an attribute is.
type attrKind uint8

const (
	attrIn     attrKind = iota // input: the word itself up to 8 bytes, else a pointer
	attrOut                    // output: a pointer
	attrObject                 // an existing object's handle
	attrNew                    // the handle of a new object comes back
	attrFD                     // an event file of this file
	attrNewFD                  // the number of a new event file comes back
	attrRawFD                  // a descriptor of another kind, not looked at
)

// attrSpec is what a method expects of one attribute. A method's schema is the
// whole truth about it: what is not in it is refused or ignored before the
// method runs.
type attrSpec struct {
	id       uint16
	kind     attrKind
	min, max int  // bytes of attrIn and attrOut; longer input must be zero beyond max, max 0: any length
	optional bool // may be missing
	find     func(f *file, word uint64) (object, error)
	async    bool // attrFD: of the async kind
}

// method is one ioctl method.
type method struct {
	attrs   []attrSpec
	early   bool // may be called before GET_CONTEXT
	udata   bool // takes UHW attributes
	run     func(c *call) error
	destroy bool // its only handle is destroyed before run
}

// call is one command being executed.
type call struct {
	f       *file
	cmd     []byte
	m       *method
	args    []arg    // by position in m.attrs; UHW in and out behind them
	objects []object // of the handle attributes, in order of the schema
	made    bool
	newID   uint32 // handle of the object that this call made
}

// arg is an attribute that the caller gave.
type arg struct {
	given bool
	pos   int // of the attribute in cmd
	len   int
	data  uint64
	fd    *eventFile
}

var uhwSpecs = []attrSpec{
	{id: attrUHWIn, kind: attrIn, optional: true},
	{id: attrUHWOut, kind: attrOut, optional: true},
}

const (
	attrUHWIn  = 0x1000
	attrUHWOut = 0x1001
)

// Ioctl implements kernel.File. cmd is not trusted: any bytes are answered
// with an errno.
func (f *file) Ioctl(cmd []byte) error {
	fab := f.dev.fab
	fab.mu.Lock()
	defer fab.mu.Unlock()
	return f.command(cmd)
}

// command is Ioctl for who holds fab.mu.
func (f *file) command(cmd []byte) error {
	if f.closed {
		return syscall.EBADF
	}
	if f.dev.closed {
		return syscall.EIO
	}
	if errno := f.ioctl(cmd); errno != nil {
		return errno
	}
	return nil
}

func (f *file) ioctl(cmd []byte) error {
	if len(cmd) < hdrBytes {
		return syscall.EFAULT
	}
	n := int(le.Uint16(cmd[6:]))
	length := int(le.Uint16(cmd[0:]))
	if length > maxCmdBytes || length != hdrBytes+n*attrBytes {
		return syscall.EINVAL
	}
	if le.Uint64(cmd[8:]) != 0 || le.Uint32(cmd[20:]) != 0 {
		return syscall.EPROTONOSUPPORT
	}
	if le.Uint32(cmd[16:]) != driverMLX5 {
		return syscall.EINVAL
	}
	m := methods[methodID{le.Uint16(cmd[2:]), le.Uint16(cmd[4:])}]
	if m == nil {
		return syscall.EPROTONOSUPPORT
	}
	if length > len(cmd) {
		return syscall.EFAULT
	}
	c := &call{f: f, cmd: cmd, m: m, args: make([]arg, len(m.attrs)+len(uhwSpecs))}
	for i := range n {
		if err := c.parse(hdrBytes + i*attrBytes); err != nil {
			return err
		}
	}
	for i := range m.attrs {
		if !m.attrs[i].optional && !c.args[i].given {
			return syscall.EINVAL
		}
	}
	if !f.ready && !m.early {
		return syscall.EINVAL
	}
	if err := c.findObjects(); err != nil {
		return err
	}
	if m.destroy {
		if err := f.removeIdle(uint32(c.args[0].data)); err != nil {
			return err
		}
	}
	if err := m.run(c); err != nil {
		if c.made {
			f.remove(c.newID)
		}
		return err
	}
	// The kernel cannot know whether a driver wrote its answer, and says that
	// it did.
	if a := c.arg(attrUHWOut); m.udata && a != nil {
		c.setValid(a)
	}
	return nil
}

// parse checks the attribute at pos of the command against the schema.
func (c *call) parse(pos int) error {
	b := c.cmd[pos : pos+attrBytes]
	id, flags := le.Uint16(b[0:]), le.Uint16(b[4:])
	spec, a := c.slot(id)
	if spec == nil {
		if flags&attrMandatory != 0 {
			return syscall.EPROTONOSUPPORT
		}
		return nil
	}
	if a.given || le.Uint16(b[6:]) != 0 {
		return syscall.EINVAL
	}
	*a = arg{given: true, pos: pos, len: int(le.Uint16(b[2:])), data: le.Uint64(b[8:])}
	switch spec.kind {
	case attrIn, attrOut:
		if spec.kind == attrIn && spec.max > 0 && a.len > spec.max && !c.zeroBeyond(a, spec.max) {
			return syscall.EOPNOTSUPP
		}
		if a.len < spec.min || spec.kind == attrOut && spec.max > 0 && a.len > spec.max {
			return syscall.EINVAL
		}
	default:
		if a.len != 0 {
			return syscall.EINVAL
		}
	}
	return nil
}

// findObjects resolves handles and descriptors. It comes after all attributes
// are parsed, so that a command has no effect before it is known to be whole.
func (c *call) findObjects() error {
	for i := range c.m.attrs {
		spec, a := &c.m.attrs[i], &c.args[i]
		switch {
		case spec.kind == attrObject && a.given:
			o, err := spec.find(c.f, a.data)
			if err != nil {
				return err
			}
			c.objects = append(c.objects, o)
		case spec.kind == attrObject:
			c.objects = append(c.objects, nil)
		case spec.kind == attrFD && a.given:
			if a.fd = c.f.eventFile(a.data, spec.async); a.fd == nil {
				return syscall.EBADF
			}
		}
	}
	return nil
}

// eventFile finds an event file by the number in an attribute, which is the
// signed descriptor.
func (f *file) eventFile(word uint64, async bool) *eventFile {
	if word > 1<<31-1 {
		return nil
	}
	e := f.events[int32(word)]
	if e == nil || e.async != async {
		return nil
	}
	return e
}

// slot finds the schema and the argument of attribute id.
func (c *call) slot(id uint16) (*attrSpec, *arg) {
	for i := range c.m.attrs {
		if c.m.attrs[i].id == id {
			return &c.m.attrs[i], &c.args[i]
		}
	}
	if c.m.udata {
		for i := range uhwSpecs {
			if uhwSpecs[i].id == id {
				return &uhwSpecs[i], &c.args[len(c.m.attrs)+i]
			}
		}
	}
	return nil, nil
}

// arg returns attribute id, nil if it was not given.
func (c *call) arg(id uint16) *arg {
	if _, a := c.slot(id); a != nil && a.given {
		return a
	}
	return nil
}

// len returns the bytes that attribute id has, 0 if it was not given.
func (c *call) len(id uint16) int {
	if a := c.arg(id); a != nil {
		return a.len
	}
	return 0
}

// read copies the first len(p) bytes of an input attribute.
func (c *call) read(a *arg, p []byte) error {
	if a.len <= 8 {
		var word [8]byte
		le.PutUint64(word[:], a.data)
		copy(p, word[:a.len])
		return nil
	}
	if !c.f.mayAccess(a.data, uint64(a.len)) || c.f.dma.Read(a.data, p[:min(len(p), a.len)]) != nil {
		return syscall.EFAULT
	}
	return nil
}

// mayAccess is asked before a command's buffers are accessed. Memory of another
// process is not asked for twice: the access itself is refused.
func (f *file) mayAccess(addr, n uint64) bool { return f.foreign != nil || f.dma.Mapped(addr, n) }

// zeroBeyond reports whether the input is zero from byte n on.
func (c *call) zeroBeyond(a *arg, n int) bool {
	buf := make([]byte, a.len)
	if c.read(a, buf) != nil {
		return false
	}
	for _, b := range buf[min(n, len(buf)):] {
		if b != 0 {
			return false
		}
	}
	return true
}

// in copies input attribute id to p; what the caller did not give reads as
// zeros. n is the number of bytes given.
func (c *call) in(id uint16, p []byte) (n int, err error) {
	clear(p)
	a := c.arg(id)
	if a == nil {
		return 0, nil
	}
	return a.len, c.read(a, p)
}

// word returns an input attribute of up to 8 bytes, 0 if it was not given.
func (c *call) word(id uint16) uint64 {
	a := c.arg(id)
	if a == nil {
		return 0
	}
	if a.len < 8 {
		return a.data & (1<<(8*a.len) - 1)
	}
	return a.data
}

// write copies p to an output attribute, cut to its length.
func (c *call) write(a *arg, p []byte) error {
	p = p[:min(len(p), a.len)]
	if len(p) == 0 {
		return nil
	}
	if !c.f.mayAccess(a.data, uint64(len(p))) || c.f.dma.Write(a.data, p) != nil {
		return syscall.EFAULT
	}
	c.setValid(a)
	return nil
}

func (c *call) setValid(a *arg) {
	flags := c.cmd[a.pos+4:]
	le.PutUint16(flags, le.Uint16(flags)|attrValid)
}

// put answers output attribute id, if the caller wants it. Room beyond p is
// zeroed, so that a caller with a longer struct reads zeros.
func (c *call) put(id uint16, p []byte) error {
	a := c.arg(id)
	if a == nil {
		return nil
	}
	if a.len > len(p) {
		p = append(p[:len(p):len(p)], make([]byte, a.len-len(p))...)
	}
	return c.write(a, p)
}

func (c *call) putU32(id uint16, v uint32) error {
	var b [4]byte
	le.PutUint32(b[:], v)
	return c.put(id, b[:])
}

func (c *call) putU64(id uint16, v uint64) error {
	var b [8]byte
	le.PutUint64(b[:], v)
	return c.put(id, b[:])
}

// putUHW answers the driver-private output; room beyond p stays as it was.
func (c *call) putUHW(p []byte) error {
	a := c.arg(attrUHWOut)
	if a == nil {
		return nil
	}
	return c.write(a, p)
}

// setHandle stores a new handle or descriptor in the data word of attribute
// id.
func (c *call) setHandle(id uint16, v uint32) {
	if a := c.arg(id); a != nil {
		le.PutUint64(c.cmd[a.pos+8:], uint64(v))
	}
}

// create gives the new object o a handle and stores it in *h. If the command
// fails after that, o is destroyed again.
func (c *call) create(o object, h *uint32) error {
	id, err := c.f.add(o)
	if err != nil {
		o.destroy()
		return err
	}
	*h, c.newID, c.made = id, id, true
	return nil
}

func firstError(errs ...error) error {
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}
