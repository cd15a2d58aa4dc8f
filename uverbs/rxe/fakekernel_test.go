package rxe

import (
	"context"
	"encoding/binary"
	"io/fs"
	"math/bits"
	"os"
	"sync"
	"syscall"
	"testing"
	"unsafe"

	kabi "github.com/rrppcc-go/rrppcc/internal/abi"
	"github.com/rrppcc-go/rrppcc/internal/kernel"
	"github.com/rrppcc-go/rrppcc/uverbs"
)

// fakeKernel answers as ib_uverbs with rdma_rxe does as far as the provider
// sees it. It executes nothing: tests look at the rings, and move the kernel's
// indices. Its view of a ring is by byte offsets, apart from package abi.
type fakeKernel struct {
	t   testing.TB
	abi int

	// fail answers a command with an errno instead, if not nil.
	fail func(object, method uint16, write uint32) syscall.Errno
	// garble changes a new ring and where it is said to be, if not nil.
	garble func(r fakeRing, offset *uint64, size *uint32)
	// caps changes what CREATE_QP grants, if not nil.
	caps    func(*kabi.Ib_uverbs_qp_cap)
	mmapErr error

	mu        sync.Mutex
	offset    uint64
	rings     map[uint64]fakeRing // not mapped yet
	mapped    map[*byte]bool
	all       []fakeRing // in the order of creation
	next      uint32
	objects   map[uint32]uint16
	doorbells []uint32 // handles
	arms      [][2]uint32
	srqCalls  []kabi.Ib_uverbs_modify_srq
	nextFD    int32
	events    int
}

// fakeRing is a ring as the kernel sees it.
type fakeRing struct{ mem []byte }

func (r fakeRing) u32(off int) uint32    { return binary.NativeEndian.Uint32(r.mem[off:]) }
func (r fakeRing) set(off int, v uint32) { binary.NativeEndian.PutUint32(r.mem[off:], v) }
func (r fakeRing) prod() uint32          { return r.u32(128) }
func (r fakeRing) cons() uint32          { return r.u32(256) }
func (r fakeRing) setProd(v uint32)      { r.set(128, v) }
func (r fakeRing) setCons(v uint32)      { r.set(256, v) }
func (r fakeRing) mask() uint32          { return r.u32(4) }
func (r fakeRing) entry(i uint32) []byte { return r.mem[384+int(i)<<r.u32(0):][:1<<r.u32(0)] }
func (r fakeRing) complete(e kabi.Ib_uverbs_wc) {
	p := r.prod()
	copy(r.entry(p), kernel.Bytes(&e))
	r.setProd((p + 1) & r.mask())
}

func newFakeKernel(t testing.TB) *fakeKernel {
	k := &fakeKernel{t: t, abi: 2, offset: uint64(os.Getpagesize()), rings: make(map[uint64]fakeRing), mapped: make(map[*byte]bool),
		objects: make(map[uint32]uint16), nextFD: 10}
	t.Cleanup(func() {
		if len(k.mapped) != 0 {
			t.Errorf("%d rings are still mapped", len(k.mapped))
		}
		if k.events != 0 {
			t.Errorf("%d event files are still open", k.events)
		}
		for _, r := range k.all {
			kernel.FreePages(r.mem)
		}
	})
	return k
}

func (k *fakeKernel) Info() kernel.DeviceInfo {
	return kernel.DeviceInfo{Name: "rxe9", Driver: "rdma_rxe", DriverID: kabi.RDMA_DRIVER_RXE, ABI: k.abi}
}
func (k *fakeKernel) Attr(string) (string, error) { return "", fs.ErrNotExist }
func (k *fakeKernel) Open() (kernel.File, error)  { return k, nil }
func (k *fakeKernel) Close() error                { return nil }

func (k *fakeKernel) Mmap(offset int64, length int, prot kernel.Prot) ([]byte, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	r, ok := k.rings[uint64(offset)]
	if k.mmapErr != nil {
		return nil, k.mmapErr
	}
	if !ok || length > len(r.mem) || prot != kernel.ProtRead|kernel.ProtWrite {
		return nil, syscall.EINVAL
	}
	delete(k.rings, uint64(offset))
	k.mapped[&r.mem[0]] = true
	return r.mem[:length:length], nil
}

func (k *fakeKernel) Munmap(mem []byte) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if !k.mapped[&mem[0]] {
		k.t.Error("munmap of what is not mapped")
		return syscall.EINVAL
	}
	delete(k.mapped, &mem[0])
	return nil
}

type fakeEvents struct {
	k  *fakeKernel
	fd int32
}

func (k *fakeKernel) Events(fd int32) (kernel.EventFile, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.events++
	return fakeEvents{k, fd}, nil
}
func (e fakeEvents) FD() int32                                      { return e.fd }
func (e fakeEvents) ReadEvent(context.Context, []byte) (int, error) { return 0, syscall.EIO }
func (e fakeEvents) Close() error {
	e.k.mu.Lock()
	defer e.k.mu.Unlock()
	e.k.events--
	return nil
}

// ring makes a ring of at least n entries and answers where it is.
func (k *fakeKernel) ring(mi []byte, n, entryBytes uint32) {
	shift := uint32(bits.Len32(entryBytes - 1))
	mask := uint32(1)<<bits.Len32(n) - 1
	page := uint32(os.Getpagesize())
	size := (384 + (mask+1)<<shift + page - 1) &^ (page - 1)
	mem, err := kernel.AllocPages(int(size))
	if err != nil {
		k.t.Fatal(err)
	}
	r := fakeRing{mem}
	for i := 384; i < len(mem); i++ {
		mem[i] = 0xa5 // what an earlier lap left
	}
	r.set(0, shift)
	r.set(4, mask)
	offset := k.offset
	k.offset += uint64(size)
	k.rings[offset] = r
	k.all = append(k.all, r)
	if k.garble != nil {
		k.garble(r, &offset, &size)
	}
	binary.NativeEndian.PutUint64(mi, offset)
	binary.NativeEndian.PutUint32(mi[8:], size)
}

func (k *fakeKernel) create(object uint16) uint32 {
	k.next++
	k.objects[k.next] = object
	return k.next
}

// command is a decoded ioctl.
type command struct {
	raw            []byte
	object, method uint16
}

func (c command) find(id uint16) []byte {
	for a := c.raw[24:]; len(a) >= 16; a = a[16:] {
		if binary.NativeEndian.Uint16(a) == id {
			return a[:16]
		}
	}
	return nil
}
func (c command) data(id uint16) uint64   { return binary.NativeEndian.Uint64(c.find(id)[8:]) }
func (c command) set(id uint16, v uint32) { binary.NativeEndian.PutUint64(c.find(id)[8:], uint64(v)) }
func (c command) buf(id uint16) []byte {
	a := c.find(id)
	if a == nil {
		return nil
	}
	n := binary.NativeEndian.Uint16(a[2:])
	if n <= 8 && id != kabi.UVERBS_ATTR_UHW_OUT && id != kabi.UVERBS_ATTR_CORE_OUT || n == 0 {
		return a[8 : 8+n]
	}
	addr := binary.NativeEndian.Uint64(a[8:])
	return unsafe.Slice(*(**byte)(unsafe.Pointer(&addr)), n)
}

// out is an output buffer, of any length.
func (c command) out(id uint16) []byte {
	a := c.find(id)
	addr := binary.NativeEndian.Uint64(a[8:])
	return unsafe.Slice(*(**byte)(unsafe.Pointer(&addr)), binary.NativeEndian.Uint16(a[2:]))
}

func put32(p []byte, v ...uint32) {
	for i, x := range v {
		binary.NativeEndian.PutUint32(p[4*i:], x)
	}
}

func (k *fakeKernel) Ioctl(raw []byte) error {
	u16 := binary.NativeEndian.Uint16
	c := command{raw, u16(raw[2:]), u16(raw[4:])}
	var write uint32
	if c.object == kabi.UVERBS_OBJECT_DEVICE && c.method == kabi.UVERBS_METHOD_INVOKE_WRITE {
		write = uint32(c.data(kabi.UVERBS_ATTR_WRITE_CMD))
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.fail != nil {
		if errno := k.fail(c.object, c.method, write); errno != 0 {
			return errno
		}
	}
	if errno := k.answer(c, write); errno != 0 {
		return errno
	}
	return nil
}

func (k *fakeKernel) answer(c command, write uint32) syscall.Errno {
	type om [2]uint16
	switch (om{c.object, c.method}) {
	case om{kabi.UVERBS_OBJECT_DEVICE, kabi.UVERBS_METHOD_INVOKE_WRITE}:
		return k.answerWrite(c, write)
	case om{kabi.UVERBS_OBJECT_DEVICE, kabi.UVERBS_METHOD_GET_CONTEXT}:
		put32(c.out(kabi.UVERBS_ATTR_GET_CONTEXT_NUM_COMP_VECTORS), 2)
	case om{kabi.UVERBS_OBJECT_DEVICE, kabi.UVERBS_METHOD_QUERY_GID_ENTRY}:
		copy(c.out(kabi.UVERBS_ATTR_QUERY_GID_ENTRY_RESP_ENTRY), kernel.Bytes(&kabi.Ib_uverbs_gid_entry{Gid: fakeGID, Gid_index: 1, Port_num: 1, Gid_type: 2}))
	case om{kabi.UVERBS_OBJECT_DEVICE, kabi.UVERBS_METHOD_QUERY_GID_TABLE}:
		copy(c.out(kabi.UVERBS_ATTR_QUERY_GID_TABLE_RESP_ENTRIES), kernel.Bytes(&kabi.Ib_uverbs_gid_entry{Gid: fakeGID, Gid_index: 1, Port_num: 1, Gid_type: 2}))
		put32(c.out(kabi.UVERBS_ATTR_QUERY_GID_TABLE_RESP_NUM_ENTRIES), 1, 0)
	case om{kabi.UVERBS_OBJECT_ASYNC_EVENT, kabi.UVERBS_METHOD_ASYNC_EVENT_ALLOC}:
		k.nextFD++
		c.set(kabi.UVERBS_ATTR_ASYNC_EVENT_ALLOC_FD_HANDLE, uint32(k.nextFD))
	case om{kabi.UVERBS_OBJECT_CQ, kabi.UVERBS_METHOD_CQ_CREATE}:
		out := c.buf(kabi.UVERBS_ATTR_UHW_OUT)
		if len(out) < 16 {
			return syscall.EINVAL
		}
		n := uint32(c.data(kabi.UVERBS_ATTR_CREATE_CQ_CQE))
		k.ring(out, n, 64)
		put32(c.out(kabi.UVERBS_ATTR_CREATE_CQ_RESP_CQE), n)
		c.set(kabi.UVERBS_ATTR_CREATE_CQ_HANDLE, k.create(c.object))
	case om{kabi.UVERBS_OBJECT_SRQ, kabi.UVERBS_METHOD_SRQ_CREATE}:
		out := c.buf(kabi.UVERBS_ATTR_UHW_OUT)
		if len(out) < 24 {
			return syscall.EINVAL
		}
		wr, sge := uint32(c.data(kabi.UVERBS_ATTR_CREATE_SRQ_MAX_WR)), uint32(c.data(kabi.UVERBS_ATTR_CREATE_SRQ_MAX_SGE))
		k.ring(out, wr, 40+16*sge)
		put32(c.out(kabi.UVERBS_ATTR_CREATE_SRQ_RESP_MAX_WR), wr)
		put32(c.out(kabi.UVERBS_ATTR_CREATE_SRQ_RESP_MAX_SGE), sge)
		c.set(kabi.UVERBS_ATTR_CREATE_SRQ_HANDLE, k.create(c.object))
	case om{kabi.UVERBS_OBJECT_QP, kabi.UVERBS_METHOD_QP_CREATE}:
		out := c.buf(kabi.UVERBS_ATTR_UHW_OUT)
		if len(out) < 32 || c.find(kabi.UVERBS_ATTR_UHW_IN) != nil {
			return syscall.EINVAL
		}
		var cap kabi.Ib_uverbs_qp_cap
		copy(kernel.Bytes(&cap), c.buf(kabi.UVERBS_ATTR_CREATE_QP_CAP))
		room := max(16*cap.Max_send_sge, cap.Max_inline_data)
		cap.Max_send_sge, cap.Max_inline_data = room/16, room
		clear(out)
		if c.find(kabi.UVERBS_ATTR_CREATE_QP_SRQ_HANDLE) == nil {
			k.ring(out, cap.Max_recv_wr, 40+16*cap.Max_recv_sge)
		}
		k.ring(out[16:], cap.Max_send_wr, 208+room)
		if k.caps != nil {
			k.caps(&cap)
		}
		copy(c.out(kabi.UVERBS_ATTR_CREATE_QP_RESP_CAP), kernel.Bytes(&cap))
		h := k.create(c.object)
		put32(c.out(kabi.UVERBS_ATTR_CREATE_QP_RESP_QP_NUM), 0x100+h)
		c.set(kabi.UVERBS_ATTR_CREATE_QP_HANDLE, h)
	default: // destroys
		h := uint32(c.data(0))
		if k.objects[h] != c.object {
			return syscall.ENOENT
		}
		delete(k.objects, h)
	}
	return 0
}

var fakeGID = uverbs.GID{10: 0xff, 11: 0xff, 12: 10, 15: 5}

func (k *fakeKernel) answerWrite(c command, write uint32) syscall.Errno {
	in, out := c.buf(kabi.UVERBS_ATTR_CORE_IN), c.buf(kabi.UVERBS_ATTR_CORE_OUT)
	u32 := func(off int) uint32 { return binary.NativeEndian.Uint32(in[off:]) }
	switch write {
	case kabi.IB_USER_VERBS_CMD_ALLOC_PD:
		put32(out, k.create(kabi.UVERBS_OBJECT_PD))
	case kabi.IB_USER_VERBS_CMD_CREATE_AH:
		put32(out, k.create(kabi.UVERBS_OBJECT_AH))
	case kabi.IB_USER_VERBS_CMD_MODIFY_QP:
	case kabi.IB_USER_VERBS_CMD_POST_SEND:
		if len(in) != 24 || u32(12) != 0 || u32(16) != 0 || u32(20) < 56 || len(out) != 4 {
			return syscall.EINVAL
		}
		k.doorbells = append(k.doorbells, u32(8))
	case kabi.IB_USER_VERBS_CMD_REQ_NOTIFY_CQ:
		k.arms = append(k.arms, [2]uint32{u32(0), u32(4)})
	case kabi.IB_USER_VERBS_CMD_RESIZE_CQ:
		k.ring(c.buf(kabi.UVERBS_ATTR_UHW_OUT), u32(12), 64)
		put32(out, u32(12))
	case kabi.IB_USER_VERBS_CMD_MODIFY_SRQ:
		k.srqCalls = append(k.srqCalls, kabi.Ib_uverbs_modify_srq{Srq_handle: u32(0), Attr_mask: u32(4), Max_wr: u32(8), Srq_limit: u32(12)})
		uhw := c.buf(kabi.UVERBS_ATTR_UHW_IN)
		if len(uhw) < 8 {
			return syscall.EINVAL
		}
		if u32(4)&kabi.IB_SRQ_MAX_WR != 0 {
			addr := binary.NativeEndian.Uint64(uhw)
			k.ring(unsafe.Slice(*(**byte)(unsafe.Pointer(&addr)), 16), u32(8), 128)
		}
	default:
		return syscall.EOPNOTSUPP
	}
	return 0
}

// bench is one of each on a fake kernel, the QP in RTS.
type bench struct {
	k   *fakeKernel
	ctx *uverbs.Context
	pd  *uverbs.PD
	cq  *uverbs.CQ
	qp  *uverbs.QP

	cqRing, rqRing, sqRing fakeRing
}

func newBench(t testing.TB, typ uverbs.QPType) *bench {
	t.Helper()
	b := &bench{k: newFakeKernel(t)}
	b.ctx = must(uverbs.NewDevice(b.k).Open())(t)
	t.Cleanup(func() { check(t, b.ctx.Close()) })
	b.pd = must(b.ctx.AllocPD())(t)
	b.cq = must(b.ctx.CreateCQ(&uverbs.CQInitAttr{Depth: 7}))(t)
	b.cqRing = b.k.all[0]
	b.qp = b.newQP(t, typ, nil)
	b.rqRing, b.sqRing = b.k.all[1], b.k.all[2]
	return b
}

func (b *bench) newQP(t testing.TB, typ uverbs.QPType, srq *uverbs.SRQ) *uverbs.QP {
	t.Helper()
	qp := must(b.pd.CreateQP(&uverbs.QPInitAttr{Type: typ, SendCQ: b.cq, RecvCQ: b.cq, SRQ: srq,
		Cap: uverbs.QPCap{MaxSendWR: 4, MaxRecvWR: 5, MaxSendSGE: 2, MaxRecvSGE: 2, MaxInline: 64}}))(t)
	check(t, qp.Modify(&uverbs.QPAttr{State: uverbs.QPStateRTS}, uverbs.AttrState))
	return qp
}
