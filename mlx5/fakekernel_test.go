package mlx5

import (
	"context"
	"encoding/binary"
	"encoding/hex"
	"io/fs"
	"sync"
	"syscall"
	"testing"
	"unsafe"

	kabi "github.com/rrppcc-go/rrppcc/internal/abi"
	"github.com/rrppcc-go/rrppcc/internal/kernel"
	"github.com/rrppcc-go/rrppcc/mlx5/internal/abi"
	"github.com/rrppcc-go/rrppcc/mlx5/internal/prm"
	"github.com/rrppcc-go/rrppcc/uverbs"
)

// The answers to GET_CONTEXT that libmlx5 got while the vectors were recorded.
const (
	ucontextDynamic = "0000040000020000000000004000000000040002008000000080000000800000010000002f000000480000000103010104000000000000000c000000010000000000000000030000"
	ucontextStatic  = "0000040000020000100000004000000000040002008000000080000000800000010000002f000000480000000103010104000000000000000c000000010000000004000000030000"
)

// command is one ioctl as the fake kernel saw it.
type command struct {
	object, method uint16
	write          uint64 // INVOKE_WRITE's command
	attrs          map[uint16]attribute
}

type attribute struct {
	len, flags uint16
	data       uint64
	in         []byte // the input's bytes; before the answer for an output
}

// fakeKernel answers the commands of a context as mlx5_ib does, keeps a record
// of them, and lets a test look at the UAR pages. It has no device: nothing
// consumes the queues.
type fakeKernel struct {
	t        testing.TB
	ucontext []byte
	link     uint8 // link layer of port 1

	mu       sync.Mutex
	commands []command
	mmaps    []int64
	next     uint32 // handle
	nextQPN  uint32
	nextCQN  uint32
	nextSRQN uint32
	nextUAR  uint32
	bfreg    uint32                            // answered to create QP
	fail     func(object, method uint16) error // forced errors
	dmac     func(dgid [16]byte) [6]byte       // answered to CREATE_AH
	kicks    []uint32                          // offsets
	pages    map[*byte][]byte                  // mapped UARs
	handles  map[uint32]uint16                 // live objects
	onKick   func(page []byte, off uint32)     // after the record
	onResize func(cqe uint32, in *abi.Mlx5_ib_resize_cq)
	onWrite  func(cmd uint64, resp []byte) bool // commands that the fake does not know; false: nor does this
}

func newFakeKernel(t testing.TB) *fakeKernel {
	k := &fakeKernel{t: t, link: kernelEthernet, next: 1, nextQPN: 419, nextCQN: 1029, nextSRQN: 1911, nextUAR: 16,
		pages: make(map[*byte][]byte), handles: make(map[uint32]uint16)}
	k.ucontext, _ = hex.DecodeString(ucontextDynamic)
	k.dmac = func(dgid [16]byte) [6]byte { return [6]byte{2, 0x5a, dgid[12], dgid[13], dgid[14], dgid[15]} }
	return k
}

const (
	kernelInfiniBand = 1
	kernelEthernet   = 2
)

func (k *fakeKernel) Info() kernel.DeviceInfo {
	return kernel.DeviceInfo{Name: "mlx5_fake", Driver: "mlx5_core", DriverID: kabi.RDMA_DRIVER_MLX5, Simulated: true}
}
func (k *fakeKernel) Attr(string) (string, error) { return "", fs.ErrNotExist }
func (k *fakeKernel) Open() (kernel.File, error)  { return k, nil }

func (k *fakeKernel) Kicker() func(uar *byte, offset uint32) {
	return func(uar *byte, offset uint32) {
		k.kicks = append(k.kicks, offset)
		if k.onKick != nil {
			k.onKick(k.pages[uar], offset)
		}
	}
}

func (k *fakeKernel) Mmap(offset int64, length int, prot kernel.Prot) ([]byte, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if prot != kernel.ProtWrite {
		k.t.Errorf("mmap of a UAR with protection %v", prot)
	}
	mem, err := allocMemory(length)
	if err == nil {
		k.pages[&mem[0]] = mem
		k.mmaps = append(k.mmaps, offset)
	}
	return mem, err
}

func (k *fakeKernel) Munmap(mem []byte) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.pages[&mem[0]] == nil {
		k.t.Error("munmap of what is not mapped")
		return syscall.EINVAL
	}
	delete(k.pages, &mem[0])
	return freeMemory(mem)
}

func (k *fakeKernel) Events(fd int32) (kernel.EventFile, error) { return fakeEvents(fd), nil }
func (k *fakeKernel) Close() error                              { return nil }

type fakeEvents int32

func (f fakeEvents) FD() int32 { return int32(f) }
func (f fakeEvents) ReadEvent(ctx context.Context, p []byte) (int, error) {
	<-ctx.Done()
	return 0, ctx.Err()
}
func (f fakeEvents) Close() error { return nil }

func (k *fakeKernel) Ioctl(buf []byte) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	hdr := (*kabi.Ib_uverbs_ioctl_hdr)(unsafe.Pointer(&buf[0]))
	raw := unsafe.Slice((*kabi.Ib_uverbs_attr)(unsafe.Pointer(&buf[unsafe.Sizeof(*hdr)])), hdr.Num_attrs)
	if hdr.Driver_id != kabi.RDMA_DRIVER_MLX5 || int(hdr.Length) != len(buf) {
		k.t.Errorf("bad header %+v", *hdr)
		return syscall.EINVAL
	}
	c := command{object: hdr.Object_id, method: hdr.Method_id, attrs: make(map[uint16]attribute)}
	out := make(map[uint16][]byte)
	ref := make(map[uint16]*uint64)
	for i := range raw {
		a := attribute{len: raw[i].Len, flags: raw[i].Flags, data: raw[i].Data}
		ref[raw[i].Attr_id] = &raw[i].Data
		if a.len > 8 || a.len > 0 && a.data > 1<<36 {
			p := *(**byte)(unsafe.Pointer(&raw[i].Data))
			out[raw[i].Attr_id] = unsafe.Slice(p, a.len)
			a.in = append([]byte(nil), out[raw[i].Attr_id]...)
		} else if a.len > 0 {
			a.in = binary.LittleEndian.AppendUint64(nil, a.data)[:a.len]
		}
		c.attrs[raw[i].Attr_id] = a
	}
	if c.object == kabi.UVERBS_OBJECT_DEVICE && c.method == kabi.UVERBS_METHOD_INVOKE_WRITE {
		c.write = c.attrs[kabi.UVERBS_ATTR_WRITE_CMD].data
	}
	k.commands = append(k.commands, c)
	if k.fail != nil {
		if err := k.fail(c.object, c.method); err != nil {
			return err
		}
	}
	return k.answer(&c, out, ref)
}

func (k *fakeKernel) newHandle(object uint16) uint32 {
	h := k.next
	k.next++
	k.handles[h] = object
	return h
}

func (k *fakeKernel) answer(c *command, out map[uint16][]byte, ref map[uint16]*uint64) error {
	le := binary.LittleEndian
	switch c.object {
	case kabi.UVERBS_OBJECT_DEVICE:
		switch c.method {
		case kabi.UVERBS_METHOD_GET_CONTEXT:
			le.PutUint32(out[kabi.UVERBS_ATTR_GET_CONTEXT_NUM_COMP_VECTORS], 8)
			copy(out[kabi.UVERBS_ATTR_UHW_OUT], k.ucontext)
		case kabi.UVERBS_METHOD_QUERY_PORT:
			r := (*kabi.Ib_uverbs_query_port_resp_ex)(unsafe.Pointer(&out[kabi.UVERBS_ATTR_QUERY_PORT_RESP][0]))
			r.Legacy_resp.Link_layer = k.link
			r.Legacy_resp.State = 4
		case kabi.UVERBS_METHOD_QUERY_GID_ENTRY:
			r := (*kabi.Ib_uverbs_gid_entry)(unsafe.Pointer(&out[kabi.UVERBS_ATTR_QUERY_GID_ENTRY_RESP_ENTRY][0]))
			r.Gid_index = uint32(c.attrs[kabi.UVERBS_ATTR_QUERY_GID_ENTRY_GID_INDEX].data)
			r.Port_num = uint32(c.attrs[kabi.UVERBS_ATTR_QUERY_GID_ENTRY_PORT].data)
			r.Gid = [16]byte{10: 0xff, 11: 0xff, 12: 10, 15: 1}
			r.Netdev_ifindex = 1
			r.Gid_type = kabi.IB_UVERBS_GID_TYPE_ROCE_V2
			if r.Gid_index%2 == 0 {
				r.Gid_type = kabi.IB_UVERBS_GID_TYPE_ROCE_V1
			}
		case kabi.UVERBS_METHOD_INVOKE_WRITE:
			return k.answerWrite(c, out)
		default:
			return syscall.EPROTONOSUPPORT
		}
	case kabi.UVERBS_OBJECT_ASYNC_EVENT:
		*ref[0] = 6
	case kabi.UVERBS_OBJECT_CQ:
		if c.method == kabi.UVERBS_METHOD_CQ_DESTROY {
			return k.destroy(c, kabi.UVERBS_ATTR_DESTROY_CQ_HANDLE)
		}
		cqe := uint32(c.attrs[kabi.UVERBS_ATTR_CREATE_CQ_CQE].data)
		if cqe > 4194303 {
			return syscall.EINVAL
		}
		*ref[kabi.UVERBS_ATTR_CREATE_CQ_HANDLE] = uint64(k.newHandle(c.object))
		le.PutUint32(out[kabi.UVERBS_ATTR_CREATE_CQ_RESP_CQE], cqe)
		le.PutUint32(out[kabi.UVERBS_ATTR_UHW_OUT], k.nextCQN)
		k.nextCQN++
	case kabi.UVERBS_OBJECT_SRQ:
		if c.method == kabi.UVERBS_METHOD_SRQ_DESTROY {
			return k.destroy(c, kabi.UVERBS_ATTR_DESTROY_SRQ_HANDLE)
		}
		wrs := uint32(c.attrs[kabi.UVERBS_ATTR_CREATE_SRQ_MAX_WR].data)
		if wrs > 32767 {
			return syscall.EINVAL
		}
		*ref[kabi.UVERBS_ATTR_CREATE_SRQ_HANDLE] = uint64(k.newHandle(c.object))
		le.PutUint32(out[kabi.UVERBS_ATTR_CREATE_SRQ_RESP_MAX_WR], wrs)
		le.PutUint32(out[kabi.UVERBS_ATTR_CREATE_SRQ_RESP_MAX_SGE], uint32(c.attrs[kabi.UVERBS_ATTR_CREATE_SRQ_MAX_SGE].data))
		le.PutUint32(out[kabi.UVERBS_ATTR_UHW_OUT], k.nextSRQN)
		k.nextSRQN++
	case kabi.UVERBS_OBJECT_QP:
		if c.method == kabi.UVERBS_METHOD_QP_DESTROY {
			return k.destroy(c, kabi.UVERBS_ATTR_DESTROY_QP_HANDLE)
		}
		*ref[kabi.UVERBS_ATTR_CREATE_QP_HANDLE] = uint64(k.newHandle(c.object))
		copy(out[kabi.UVERBS_ATTR_CREATE_QP_RESP_CAP], c.attrs[kabi.UVERBS_ATTR_CREATE_QP_CAP].in)
		le.PutUint32(out[kabi.UVERBS_ATTR_CREATE_QP_RESP_QP_NUM], k.nextQPN)
		le.PutUint32(out[kabi.UVERBS_ATTR_UHW_OUT], k.bfreg)
		k.nextQPN++
	case kabi.UVERBS_OBJECT_AH, kabi.UVERBS_OBJECT_PD:
		return k.destroy(c, 0)
	case kabi.UVERBS_OBJECT_MR:
		return k.destroy(c, kabi.UVERBS_ATTR_DESTROY_MR_HANDLE)
	case abi.MLX5_IB_OBJECT_UAR:
		if c.method == abi.MLX5_IB_METHOD_UAR_OBJ_DESTROY {
			return k.destroy(c, abi.MLX5_IB_ATTR_UAR_OBJ_DESTROY_HANDLE)
		}
		*ref[abi.MLX5_IB_ATTR_UAR_OBJ_ALLOC_HANDLE] = uint64(k.newHandle(c.object))
		le.PutUint64(out[abi.MLX5_IB_ATTR_UAR_OBJ_ALLOC_MMAP_OFFSET], 0x900000+uint64(k.nextUAR-16)*4096)
		le.PutUint32(out[abi.MLX5_IB_ATTR_UAR_OBJ_ALLOC_MMAP_LENGTH], 4096)
		le.PutUint32(out[abi.MLX5_IB_ATTR_UAR_OBJ_ALLOC_PAGE_ID], k.nextUAR)
		k.nextUAR++
	default:
		return syscall.EPROTONOSUPPORT
	}
	return nil
}

func (k *fakeKernel) answerWrite(c *command, out map[uint16][]byte) error {
	le := binary.LittleEndian
	resp := out[kabi.UVERBS_ATTR_CORE_OUT]
	switch c.write {
	case kabi.IB_USER_VERBS_CMD_ALLOC_PD:
		le.PutUint32(resp, k.newHandle(kabi.UVERBS_OBJECT_PD))
	case kabi.IB_USER_VERBS_CMD_CREATE_COMP_CHANNEL:
		le.PutUint32(resp, 8)
	case kabi.IB_USER_VERBS_CMD_REG_MR:
		le.PutUint32(resp, k.newHandle(kabi.UVERBS_OBJECT_MR))
		le.PutUint32(resp[4:], 1581735)
		le.PutUint32(resp[8:], 1581735)
	case kabi.IB_USER_VERBS_CMD_MODIFY_QP, kabi.IB_USER_VERBS_CMD_MODIFY_SRQ:
	case kabi.IB_USER_VERBS_CMD_RESIZE_CQ:
		in := (*kabi.Ib_uverbs_resize_cq)(unsafe.Pointer(&c.attrs[kabi.UVERBS_ATTR_CORE_IN].in[0]))
		uhw := (*abi.Mlx5_ib_resize_cq)(unsafe.Pointer(&c.attrs[kabi.UVERBS_ATTR_UHW_IN].in[0]))
		le.PutUint32(resp, in.Cqe)
		if k.onResize != nil {
			k.onResize(in.Cqe, uhw)
		}
	case kabi.IB_USER_VERBS_CMD_CREATE_AH:
		in := (*kabi.Ib_uverbs_create_ah)(unsafe.Pointer(&c.attrs[kabi.UVERBS_ATTR_CORE_IN].in[0]))
		le.PutUint32(resp, k.newHandle(kabi.UVERBS_OBJECT_AH))
		mac := k.dmac(in.Attr.Grh.Dgid)
		uhw := (*abi.Mlx5_ib_create_ah_resp)(unsafe.Pointer(&out[kabi.UVERBS_ATTR_UHW_OUT][0]))
		uhw.Response_length, uhw.Dmac = 16, mac
	default:
		if k.onWrite == nil || !k.onWrite(c.write, resp) {
			return syscall.EOPNOTSUPP
		}
	}
	return nil
}

func (k *fakeKernel) destroy(c *command, attr uint16) error {
	h := uint32(c.attrs[attr].data)
	if k.handles[h] != c.object {
		k.t.Errorf("destroy of object %#x handle %d, which is of object %#x", c.object, h, k.handles[h])
		return syscall.ENOENT
	}
	delete(k.handles, h)
	return nil
}

// rig is an open context on a fake kernel.
type rig struct {
	t   testing.TB
	k   *fakeKernel
	ctx *uverbs.Context
	drv *contextDriver
	pd  *uverbs.PD
}

func openRig(t testing.TB, k *fakeKernel) *rig {
	t.Helper()
	ctx, err := uverbs.NewDevice(k).Open()
	if err != nil {
		t.Fatal(err)
	}
	pd, err := ctx.AllocPD()
	if err != nil {
		t.Fatal(err)
	}
	r := &rig{t: t, k: k, ctx: ctx, drv: ctx.Driver().(*contextDriver), pd: pd}
	t.Cleanup(r.close)
	return r
}

// close closes what openRig opened; once is enough.
func (r *rig) close() {
	if r.ctx == nil {
		return
	}
	r.pd.Close()
	if err := r.ctx.Close(); err != nil {
		r.t.Error(err)
	}
	r.ctx = nil
	if len(r.k.pages) != 0 {
		r.t.Errorf("%d UAR pages are still mapped", len(r.k.pages))
	}
}

func (r *rig) cq(depth int) *uverbs.CQ {
	r.t.Helper()
	c, err := r.ctx.CreateCQ(&uverbs.CQInitAttr{Depth: depth})
	if err != nil {
		r.t.Fatal(err)
	}
	return c
}

func (r *rig) srq(maxWR, maxSGE uint32) *uverbs.SRQ {
	r.t.Helper()
	s, err := r.pd.CreateSRQ(&uverbs.SRQInitAttr{SRQAttr: uverbs.SRQAttr{MaxWR: maxWR, MaxSGE: maxSGE}})
	if err != nil {
		r.t.Fatal(err)
	}
	return s
}

// qpWith creates a QP of a given layout, bypassing uverbs.
func (r *rig) qpWith(typ uverbs.QPType, send, recv *uverbs.CQ, layout qpLayout, sigAll bool, qpn, bfregIndex uint32) *qp {
	r.t.Helper()
	return r.qpOn(nil, typ, send, recv, layout, sigAll, qpn, bfregIndex)
}

func (r *rig) qpOn(srq *uverbs.SRQ, typ uverbs.QPType, send, recv *uverbs.CQ, layout qpLayout, sigAll bool, qpn, bfregIndex uint32) *qp {
	r.t.Helper()
	q, err := r.drv.newQP(&uverbs.QPInitAttr{Type: typ, SendCQ: send, RecvCQ: recv, SRQ: srq, SigAll: sigAll}, layout,
		func(cap uverbs.QPCap, in, out []byte) (uverbs.QPCap, uint32, error) {
			(*abi.Mlx5_ib_create_qp_resp)(unsafe.Pointer(&out[0])).Bfreg_index = bfregIndex
			return cap, qpn, nil
		})
	if err != nil {
		r.t.Fatal(err)
	}
	return q
}

func (r *rig) newQP(typ uverbs.QPType, cqDepth int, cap uverbs.QPCap) *qp {
	r.t.Helper()
	layout, err := layoutQP(&r.drv.lim, cap, map[uverbs.QPType]uint32{uverbs.QPTypeUD: overheadUD, uverbs.QPTypeRC: overheadRC}[typ])
	if err != nil {
		r.t.Fatal(err)
	}
	r.k.nextQPN++
	send, recv := r.cq(cqDepth), r.cq(cqDepth)
	q := r.qpWith(typ, send, recv, layout, false, r.k.nextQPN-1, 0)
	r.t.Cleanup(func() {
		q.Close()
		send.Close()
		recv.Close()
	})
	return q
}

func (r *rig) ah() *uverbs.AH {
	r.t.Helper()
	ah, err := r.pd.CreateAH(&uverbs.AHAttr{DGID: uverbs.GID{10: 0xff, 11: 0xff, 12: 10, 15: 2}, SGIDIndex: 3, HopLimit: 64, FlowLabel: 74565, IsGlobal: true, Port: 1})
	if err != nil {
		r.t.Fatal(err)
	}
	return ah
}

// put writes a CQE at consumer index ci+ahead of a CQ, as the device would.
func (c *cq) put(ahead uint32, cqe []byte) {
	e := c.at(c.ci + ahead)
	if len(cqe) == 2*prm.CQEBytes {
		copy(e.Data(prm.CQEScatter64, prm.CQEBytes), cqe)
		cqe = cqe[prm.CQEBytes:]
	}
	dst := unsafe.Slice((*byte)(unsafe.Pointer(e)), prm.CQEBytes)
	copy(dst[:60], cqe[:60])
	e.Last.Store(binary.NativeEndian.Uint32(cqe[60:]))
}

// cqe makes a CQE for slot ci+ahead of c, of this lap.
func (c *cq) cqe(ahead uint32, q *qp, op, wqeOpcode byte, counter uint16) []byte {
	b := make([]byte, prm.CQEBytes)
	key := q.key
	if !c.qps.byIndex {
		key = 0
	}
	binary.BigEndian.PutUint32(b[32:], key)
	binary.BigEndian.PutUint32(b[44:], 64)
	binary.BigEndian.PutUint32(b[56:], uint32(wqeOpcode)<<24|q.qpn)
	binary.BigEndian.PutUint16(b[60:], counter)
	b[63] = op<<4 | byte((c.ci+ahead)>>c.shift&1)
	return b
}
