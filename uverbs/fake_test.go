package uverbs

import (
	"context"
	"encoding/binary"
	"io/fs"
	"sync"
	"syscall"
	"testing"
	"unsafe"

	"github.com/rrppcc-go/rrppcc/internal/abi"
	"github.com/rrppcc-go/rrppcc/internal/kernel"
	"github.com/rrppcc-go/rrppcc/internal/leakcheck"
)

func TestMain(m *testing.M) {
	RegisterProvider(fakes)
	leakcheck.Main(m)
}

// fakeKernel is a device that answers the commands of this package as ib_uverbs
// does: one space of handles that starts at 0, EBUSY for objects in use, ENOENT
// for unknown ones.
type fakeKernel struct {
	info  kernel.DeviceInfo
	attrs map[string]string // sysfs
	port  abi.Ib_uverbs_query_port_resp_ex
	gids  []abi.Ib_uverbs_gid_entry

	// fail answers the n-th command (from 0) with an errno instead, if not nil.
	fail func(n int, cmd *fakeCommand) syscall.Errno
	// garble changes an answer before it is given, if not nil.
	garble func(p []byte)
	// openErr answers Open, if not nil.
	openErr error

	mu      sync.Mutex
	files   int // open
	n       int // commands
	objects map[uint32]*fakeObject
	next    uint32
	events  map[int32]*fakeEvents
	nextFD  int32
	groups  []fakeGroup
}

// fakeGroup is a command that attached or detached a QP.
type fakeGroup struct {
	write uint32
	gid   GID
	lid   uint16
}

type fakeObject struct {
	kind uint16
	user uint64
	uses []uint32
	fd   int32 // a CQ's channel
}

const fakeDriver = 0xfffe

func newFakeKernel() *fakeKernel {
	k := &fakeKernel{
		info: kernel.DeviceInfo{Name: "fake0", Node: "/dev/infiniband/uverbs9", Driver: "fake", DriverID: fakeDriver},
		attrs: map[string]string{"ports/1/pkeys/0": "0xffff", "ports/1/gids/0": "0000:0000:0000:0000:0000:ffff:0a00:0005",
			"ports/1/gid_attrs/types/0": "RoCE v2", "ports/1/gid_attrs/ndevs/0": "eth7"},
		objects: make(map[uint32]*fakeObject),
		events:  make(map[int32]*fakeEvents),
		nextFD:  100,
	}
	k.port.Legacy_resp = abi.Ib_uverbs_query_port_resp{State: 4, Max_mtu: 5, Active_mtu: 3, Gid_tbl_len: 4, Pkey_tbl_len: 1, Link_layer: 2}
	k.gids = []abi.Ib_uverbs_gid_entry{{Gid: GIDFromAddr(addr("10.0.0.5")), Gid_index: 0, Port_num: 1, Gid_type: 2, Netdev_ifindex: 7}}
	return k
}

// leaks says what is left open.
func (k *fakeKernel) leaks() (files, objects, events int) {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.files, len(k.objects), len(k.events)
}

func (k *fakeKernel) Info() kernel.DeviceInfo { return k.info }

func (k *fakeKernel) Attr(path string) (string, error) {
	if s, ok := k.attrs[path]; ok {
		if s == "EINVAL" {
			return "", syscall.EINVAL
		}
		return s, nil
	}
	return "", fs.ErrNotExist
}

func (k *fakeKernel) Open() (kernel.File, error) {
	if k.openErr != nil {
		return nil, k.openErr
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	k.files++
	return &fakeFile{k: k}, nil
}

type fakeFile struct {
	k      *fakeKernel
	closed bool
}

func (f *fakeFile) Mmap(int64, int, kernel.Prot) ([]byte, error) { return nil, syscall.EINVAL }
func (f *fakeFile) Munmap([]byte) error                          { return syscall.EINVAL }

func (f *fakeFile) Events(fd int32) (kernel.EventFile, error) {
	f.k.mu.Lock()
	defer f.k.mu.Unlock()
	if e := f.k.events[fd]; e != nil {
		return e, nil
	}
	return nil, syscall.EBADF
}

func (f *fakeFile) Close() error {
	f.k.mu.Lock()
	defer f.k.mu.Unlock()
	if f.closed {
		return fs.ErrClosed
	}
	f.closed = true
	f.k.files--
	clear(f.k.objects)
	return nil
}

// fakeEvents is an event file.
type fakeEvents struct {
	k       *fakeKernel
	fd      int32
	records chan []byte
	done    chan struct{}
	once    sync.Once
}

func (e *fakeEvents) FD() int32 { return e.fd }

func (e *fakeEvents) ReadEvent(ctx context.Context, p []byte) (int, error) {
	select {
	case <-ctx.Done():
		return 0, ctx.Err()
	case <-e.done:
		return 0, fs.ErrClosed
	case r := <-e.records:
		if r == nil {
			return 0, syscall.EIO
		}
		return copy(p, r), nil
	}
}

func (e *fakeEvents) Close() error {
	e.once.Do(func() {
		close(e.done)
		e.k.mu.Lock()
		delete(e.k.events, e.fd)
		e.k.mu.Unlock()
	})
	return nil
}

// newEvents makes an event file. The caller holds k.mu.
func (k *fakeKernel) newEvents() int32 {
	k.nextFD++
	k.events[k.nextFD] = &fakeEvents{k: k, fd: k.nextFD, records: make(chan []byte, 16), done: make(chan struct{})}
	return k.nextFD
}

// fakeCommand is a decoded command.
type fakeCommand struct {
	raw            []byte
	object, method uint16
	write          uint32 // command of an INVOKE_WRITE
	attrs          map[uint16]int
}

func decode(raw []byte) *fakeCommand {
	u16 := binary.NativeEndian.Uint16
	c := &fakeCommand{raw: raw, object: u16(raw[2:]), method: u16(raw[4:]), attrs: make(map[uint16]int)}
	for i := range int(u16(raw[6:])) {
		c.attrs[u16(raw[24+16*i:])] = 24 + 16*i
	}
	if c.object == abi.UVERBS_OBJECT_DEVICE && c.method == abi.UVERBS_METHOD_INVOKE_WRITE {
		c.write = uint32(c.data(abi.UVERBS_ATTR_WRITE_CMD))
	}
	return c
}

func (c *fakeCommand) data(id uint16) uint64 {
	return binary.NativeEndian.Uint64(c.raw[c.attrs[id]+8:])
}

func (c *fakeCommand) len(id uint16) int {
	return int(binary.NativeEndian.Uint16(c.raw[c.attrs[id]+2:]))
}

func (c *fakeCommand) set(id uint16, v uint32) {
	binary.NativeEndian.PutUint64(c.raw[c.attrs[id]+8:], uint64(v))
}

// out is the caller's output buffer, nil if there is none.
func (c *fakeCommand) out(id uint16) []byte {
	if _, ok := c.attrs[id]; !ok || c.len(id) == 0 {
		return nil
	}
	addr := c.data(id)
	return unsafe.Slice(*(**byte)(unsafe.Pointer(&addr)), c.len(id))
}

func (c *fakeCommand) in(id uint16) []byte {
	if c.len(id) <= 8 {
		return c.raw[c.attrs[id]+8:][:c.len(id)]
	}
	return c.out(id)
}

func u32(v uint32) []byte { return binary.NativeEndian.AppendUint32(nil, v) }

func (f *fakeFile) Ioctl(raw []byte) error {
	k := f.k
	k.mu.Lock()
	defer k.mu.Unlock()
	if f.closed {
		return syscall.EBADF
	}
	c := decode(raw)
	n := k.n
	k.n++
	if k.fail != nil {
		if errno := k.fail(n, c); errno != 0 {
			return errno
		}
	}
	if errno := k.answer(c); errno != 0 {
		return errno
	}
	return nil
}

func (k *fakeKernel) put(dst, answer []byte) {
	n := copy(dst, answer)
	if k.garble != nil {
		k.garble(dst[:n])
	}
}

func (k *fakeKernel) create(kind uint16, user uint64, fd int32, uses ...uint32) (uint32, syscall.Errno) {
	for _, h := range uses {
		if k.objects[h] == nil {
			return 0, syscall.ENOENT
		}
	}
	h := k.next
	k.next++
	k.objects[h] = &fakeObject{kind: kind, user: user, uses: uses, fd: fd}
	return h, 0
}

func (k *fakeKernel) destroy(kind uint16, h uint32) syscall.Errno {
	if o := k.objects[h]; o == nil || o.kind != kind {
		return syscall.ENOENT
	}
	for _, o := range k.objects {
		for _, used := range o.uses {
			if used == h {
				return syscall.EBUSY
			}
		}
	}
	delete(k.objects, h)
	return 0
}

func (k *fakeKernel) answer(c *fakeCommand) syscall.Errno {
	switch [2]uint16{c.object, c.method} {
	case [2]uint16{abi.UVERBS_OBJECT_DEVICE, abi.UVERBS_METHOD_INVOKE_WRITE}:
		return k.answerWrite(c)
	case [2]uint16{abi.UVERBS_OBJECT_DEVICE, abi.UVERBS_METHOD_GET_CONTEXT}:
		k.put(c.out(0), u32(2))
		k.put(c.out(1), []byte{1})
	case [2]uint16{abi.UVERBS_OBJECT_DEVICE, abi.UVERBS_METHOD_QUERY_PORT}:
		if c.data(0) != 1 {
			return syscall.EINVAL
		}
		if c.len(1) < 48 {
			return syscall.EINVAL
		}
		k.put(c.out(1), kernel.Bytes(&k.port))
	case [2]uint16{abi.UVERBS_OBJECT_DEVICE, abi.UVERBS_METHOD_QUERY_GID_TABLE}:
		if len(k.gids) > c.len(2)/int(c.data(0)) {
			return syscall.EINVAL
		}
		p := c.out(2)
		for i := range k.gids {
			k.put(p[32*i:], kernel.Bytes(&k.gids[i]))
		}
		k.put(c.out(3), binary.NativeEndian.AppendUint64(nil, uint64(len(k.gids))))
	case [2]uint16{abi.UVERBS_OBJECT_DEVICE, abi.UVERBS_METHOD_QUERY_GID_ENTRY}:
		for i := range k.gids {
			if e := &k.gids[i]; uint64(e.Port_num) == c.data(0) && uint64(e.Gid_index) == c.data(1) {
				k.put(c.out(3), kernel.Bytes(e))
				return 0
			}
		}
		return syscall.ENODATA
	case [2]uint16{abi.UVERBS_OBJECT_ASYNC_EVENT, abi.UVERBS_METHOD_ASYNC_EVENT_ALLOC}:
		c.set(0, uint32(k.newEvents()))
	case [2]uint16{abi.UVERBS_OBJECT_CQ, abi.UVERBS_METHOD_CQ_CREATE}:
		fd := int32(-1)
		if _, ok := c.attrs[abi.UVERBS_ATTR_CREATE_CQ_COMP_CHANNEL]; ok {
			if fd = int32(c.data(abi.UVERBS_ATTR_CREATE_CQ_COMP_CHANNEL)); k.events[fd] == nil {
				return syscall.EBADF
			}
		}
		h, errno := k.create(c.object, c.data(abi.UVERBS_ATTR_CREATE_CQ_USER_HANDLE), fd)
		c.set(abi.UVERBS_ATTR_CREATE_CQ_HANDLE, h)
		k.put(c.out(abi.UVERBS_ATTR_CREATE_CQ_RESP_CQE), u32(uint32(c.data(abi.UVERBS_ATTR_CREATE_CQ_CQE))))
		return errno
	case [2]uint16{abi.UVERBS_OBJECT_QP, abi.UVERBS_METHOD_QP_CREATE}:
		uses := []uint32{uint32(c.data(abi.UVERBS_ATTR_CREATE_QP_PD_HANDLE)), uint32(c.data(abi.UVERBS_ATTR_CREATE_QP_SEND_CQ_HANDLE)),
			uint32(c.data(abi.UVERBS_ATTR_CREATE_QP_RECV_CQ_HANDLE))}
		if _, ok := c.attrs[abi.UVERBS_ATTR_CREATE_QP_SRQ_HANDLE]; ok {
			uses = append(uses, uint32(c.data(abi.UVERBS_ATTR_CREATE_QP_SRQ_HANDLE)))
		}
		h, errno := k.create(c.object, c.data(abi.UVERBS_ATTR_CREATE_QP_USER_HANDLE), -1, uses...)
		if errno != 0 {
			return errno
		}
		c.set(abi.UVERBS_ATTR_CREATE_QP_HANDLE, h)
		k.put(c.out(abi.UVERBS_ATTR_CREATE_QP_RESP_CAP), c.in(abi.UVERBS_ATTR_CREATE_QP_CAP))
		k.put(c.out(abi.UVERBS_ATTR_CREATE_QP_RESP_QP_NUM), u32(0x100+h))
	case [2]uint16{abi.UVERBS_OBJECT_SRQ, abi.UVERBS_METHOD_SRQ_CREATE}:
		h, errno := k.create(c.object, c.data(abi.UVERBS_ATTR_CREATE_SRQ_USER_HANDLE), -1, uint32(c.data(abi.UVERBS_ATTR_CREATE_SRQ_PD_HANDLE)))
		if errno != 0 {
			return errno
		}
		c.set(abi.UVERBS_ATTR_CREATE_SRQ_HANDLE, h)
		k.put(c.out(abi.UVERBS_ATTR_CREATE_SRQ_RESP_MAX_WR), c.in(abi.UVERBS_ATTR_CREATE_SRQ_MAX_WR))
		k.put(c.out(abi.UVERBS_ATTR_CREATE_SRQ_RESP_MAX_SGE), c.in(abi.UVERBS_ATTR_CREATE_SRQ_MAX_SGE))
	case [2]uint16{abi.UVERBS_OBJECT_MR, abi.UVERBS_METHOD_REG_DMABUF_MR}:
		if c.data(abi.UVERBS_ATTR_REG_DMABUF_MR_FD) != 44 {
			return syscall.EBADF
		}
		h, errno := k.create(c.object, 0, -1, uint32(c.data(abi.UVERBS_ATTR_REG_DMABUF_MR_PD_HANDLE)))
		if errno != 0 {
			return errno
		}
		c.set(abi.UVERBS_ATTR_REG_DMABUF_MR_HANDLE, h)
		k.put(c.out(abi.UVERBS_ATTR_REG_DMABUF_MR_RESP_LKEY), u32(0x3333))
		k.put(c.out(abi.UVERBS_ATTR_REG_DMABUF_MR_RESP_RKEY), u32(0x4444))
	case [2]uint16{abi.UVERBS_OBJECT_SRQ, abi.UVERBS_METHOD_SRQ_DESTROY}, [2]uint16{abi.UVERBS_OBJECT_MW, abi.UVERBS_METHOD_MW_DESTROY},
		[2]uint16{abi.UVERBS_OBJECT_CQ, abi.UVERBS_METHOD_CQ_DESTROY}, [2]uint16{abi.UVERBS_OBJECT_QP, abi.UVERBS_METHOD_QP_DESTROY},
		[2]uint16{abi.UVERBS_OBJECT_MR, abi.UVERBS_METHOD_MR_DESTROY}, [2]uint16{abi.UVERBS_OBJECT_PD, abi.UVERBS_METHOD_PD_DESTROY},
		[2]uint16{abi.UVERBS_OBJECT_AH, abi.UVERBS_METHOD_AH_DESTROY}:
		return k.destroy(c.object, uint32(c.data(0)))
	default:
		return syscall.EPROTONOSUPPORT
	}
	return 0
}

func (k *fakeKernel) answerWrite(c *fakeCommand) syscall.Errno {
	in, out := c.in(abi.UVERBS_ATTR_CORE_IN), c.out(abi.UVERBS_ATTR_CORE_OUT)
	word := func(off int) uint32 { return binary.NativeEndian.Uint32(in[off:]) }
	switch c.write {
	case abi.IB_USER_VERBS_EX_CMD_QUERY_DEVICE, abi.IB_USER_VERBS_CMD_QUERY_DEVICE:
		k.put(out, kernel.Bytes(&abi.Ib_uverbs_query_device_resp{Fw_ver: 22<<32 | 43<<16 | 1014, Max_qp: 1000, Phys_port_cnt: 1}))
	case abi.IB_USER_VERBS_CMD_ALLOC_PD:
		h, _ := k.create(abi.UVERBS_OBJECT_PD, 0, -1)
		k.put(out, u32(h))
	case abi.IB_USER_VERBS_CMD_REG_MR:
		h, errno := k.create(abi.UVERBS_OBJECT_MR, 0, -1, word(32))
		if errno != 0 {
			return errno
		}
		k.put(out, append(append(u32(h), u32(0x1111)...), u32(0x2222)...))
	case abi.IB_USER_VERBS_CMD_CREATE_COMP_CHANNEL:
		k.put(out, u32(uint32(k.newEvents())))
	case abi.IB_USER_VERBS_CMD_CREATE_AH:
		h, errno := k.create(abi.UVERBS_OBJECT_AH, 0, -1, word(16))
		if errno != 0 {
			return errno
		}
		k.put(out, u32(h))
	case abi.IB_USER_VERBS_CMD_MODIFY_QP:
		if o := k.objects[word(64)]; o == nil || o.kind != abi.UVERBS_OBJECT_QP {
			return syscall.ENOENT
		}
	case abi.IB_USER_VERBS_CMD_QUERY_QP:
		if o := k.objects[word(8)]; o == nil || o.kind != abi.UVERBS_OBJECT_QP {
			return syscall.ENOENT
		}
		k.put(out, kernel.Bytes(&abi.Ib_uverbs_query_qp_resp{Qp_state: 3, Sq_psn: 77, Sq_draining: 1}))
	case abi.IB_USER_VERBS_CMD_REREG_MR:
		if o := k.objects[word(8)]; o == nil || o.kind != abi.UVERBS_OBJECT_MR {
			return syscall.ENOENT
		}
		if word(12)&abi.IB_MR_REREG_PD != 0 {
			k.objects[word(8)].uses = []uint32{word(40)}
		}
		k.put(out, append(u32(0x5555), u32(0x6666)...))
	case abi.IB_USER_VERBS_CMD_ALLOC_MW:
		h, errno := k.create(abi.UVERBS_OBJECT_MW, 0, -1, word(8))
		if errno != 0 {
			return errno
		}
		k.put(out, append(u32(h), u32(0x770000fe)...))
	case abi.IB_USER_VERBS_CMD_RESIZE_CQ:
		if o := k.objects[word(8)]; o == nil || o.kind != abi.UVERBS_OBJECT_CQ {
			return syscall.ENOENT
		}
		k.put(out, append(u32(word(12)), u32(0)...))
	case abi.IB_USER_VERBS_CMD_ATTACH_MCAST, abi.IB_USER_VERBS_CMD_DETACH_MCAST:
		if o := k.objects[word(16)]; o == nil || o.kind != abi.UVERBS_OBJECT_QP {
			return syscall.ENOENT
		}
		k.groups = append(k.groups, fakeGroup{c.write, GID(in[:16]), binary.NativeEndian.Uint16(in[20:])})
	case abi.IB_USER_VERBS_CMD_MODIFY_SRQ, abi.IB_USER_VERBS_CMD_QUERY_SRQ:
		at := 0
		if c.write == abi.IB_USER_VERBS_CMD_QUERY_SRQ {
			at = 8
		}
		if o := k.objects[word(at)]; o == nil || o.kind != abi.UVERBS_OBJECT_SRQ {
			return syscall.ENOENT
		}
		if at != 0 {
			k.put(out, kernel.Bytes(&abi.Ib_uverbs_query_srq_resp{Max_wr: 63, Max_sge: 2, Srq_limit: 9}))
		}
	default:
		return syscall.EOPNOTSUPP
	}
	return 0
}

// fakeProvider passes the commands on with a payload of its own, and counts
// what the drivers hold.
type fakeProvider struct {
	mu   sync.Mutex
	live map[string]int
	// broken makes the provider fail at "context", "cq", "qp" or "ah", after
	// the kernel has made its object.
	broken string
}

var fakes = &fakeProvider{live: make(map[string]int)}

func (p *fakeProvider) count(what string, n int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.live[what] += n
	if p.live[what] < 0 {
		panic("fake driver: " + what + " is closed twice")
	}
}

func (p *fakeProvider) total() (n int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, v := range p.live {
		n += v
	}
	return n
}

var errBroken = syscall.ENOMEM

func (p *fakeProvider) Name() string     { return "fake" }
func (p *fakeProvider) DriverID() uint32 { return fakeDriver }

func (p *fakeProvider) OpenContext(c *Context) (ContextDriver, error) {
	if err := c.GetContext(make([]byte, 16), make([]byte, 24)); err != nil {
		return nil, err
	}
	if p.broken == "context" {
		return nil, errBroken
	}
	p.count("context", 1)
	return &fakeContext{p}, nil
}

type fakeContext struct{ p *fakeProvider }

func (d *fakeContext) CreateCQ(attr *CQInitAttr, issue func(uint32, []byte, []byte) (uint32, error)) (CQDriver, error) {
	depth, err := issue(uint32(attr.Depth), nil, make([]byte, 16))
	if err != nil {
		return nil, err
	}
	if d.p.broken == "cq" {
		return nil, errBroken
	}
	d.p.count("cq", 1)
	return &fakeCQ{p: d.p, depth: int(depth)}, nil
}

func (d *fakeContext) CreateQP(attr *QPInitAttr, issue func(QPCap, []byte, []byte) (QPCap, uint32, error)) (QPDriver, error) {
	granted, _, err := issue(attr.Cap, make([]byte, 8), make([]byte, 32))
	if err != nil {
		return nil, err
	}
	if d.p.broken == "qp" {
		return nil, errBroken
	}
	attr.Cap = granted
	d.p.count("qp", 1)
	return &fakeQP{p: d.p}, nil
}

func (d *fakeContext) CreateSRQ(attr *SRQInitAttr, issue func(SRQAttr, []byte, []byte) (SRQAttr, error)) (SRQDriver, error) {
	granted, err := issue(attr.SRQAttr, nil, make([]byte, 24))
	if err != nil {
		return nil, err
	}
	if d.p.broken == "srq" {
		return nil, errBroken
	}
	attr.SRQAttr = granted
	d.p.count("srq", 1)
	return &fakeSRQ{p: d.p}, nil
}

func (d *fakeContext) CreateAH(attr *AHAttr, issue func([]byte) error) (any, error) {
	if err := issue(make([]byte, 8)); err != nil {
		return nil, err
	}
	if d.p.broken == "ah" {
		return nil, errBroken
	}
	return "address vector", nil
}

func (d *fakeContext) Close() error { d.p.count("context", -1); return nil }

type fakeCQ struct {
	p      *fakeProvider
	depth  int
	events int // guarded by the context's lock, as EventArrived is called under it
}

func (q *fakeCQ) Depth() int             { return q.depth }
func (q *fakeCQ) Poll([]WC) (int, error) { return 0, nil }
func (q *fakeCQ) Arm(bool) error         { return nil }
func (q *fakeCQ) Close() error           { q.p.count("cq", -1); return nil }
func (q *fakeCQ) EventArrived()          { q.events++ }

func (q *fakeCQ) Resize(depth int, issue func(uint32, []byte, []byte) (uint32, error)) error {
	got, err := issue(uint32(depth), nil, make([]byte, 16))
	if err == nil {
		q.depth = int(got)
	}
	return err
}

type fakeSRQ struct{ p *fakeProvider }

func (q *fakeSRQ) PostRecv(wrs []RecvWR) (int, error) { return len(wrs), nil }
func (q *fakeSRQ) Close() error                       { q.p.count("srq", -1); return nil }
func (q *fakeSRQ) Modify(_ *SRQAttr, _ SRQAttrMask, issue func([]byte) error) error {
	return issue(make([]byte, 8))
}

type fakeQP struct {
	p      *fakeProvider
	states []QPState
}

func (q *fakeQP) PostSend(wrs []SendWR) (int, error) { return len(wrs), nil }
func (q *fakeQP) PostRecv(wrs []RecvWR) (int, error) { return len(wrs), nil }
func (q *fakeQP) StateChanged(s QPState)             { q.states = append(q.states, s) }
func (q *fakeQP) Close() error                       { q.p.count("qp", -1); return nil }
