package kernel

import (
	"bytes"
	"encoding/binary"
	"errors"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"unsafe"

	"github.com/google/go-cmp/cmp"

	"github.com/rrppcc-go/rrppcc/internal/abi"
)

// ioctlFunc is a File that answers commands alone.
type ioctlFunc func(cmd []byte) error

func (f ioctlFunc) Ioctl(cmd []byte) error              { return f(cmd) }
func (ioctlFunc) Mmap(int64, int, Prot) ([]byte, error) { return nil, syscall.ENOSYS }
func (ioctlFunc) Munmap([]byte) error                   { return syscall.ENOSYS }
func (ioctlFunc) Events(int32) (EventFile, error)       { return nil, syscall.ENOSYS }
func (ioctlFunc) Close() error                          { return nil }

// attrBytes and headerBytes spell the wire format of uverbs-abi: 24 bytes of
// header, 16 per attribute.
func attrBytes(id, n, flags uint16, data uint64) []byte {
	var p []byte
	p = binary.NativeEndian.AppendUint16(p, id)
	p = binary.NativeEndian.AppendUint16(p, n)
	p = binary.NativeEndian.AppendUint16(p, flags)
	p = binary.NativeEndian.AppendUint16(p, 0)
	return binary.NativeEndian.AppendUint64(p, data)
}

func headerBytes(object, method, num uint16, driver uint32) []byte {
	var p []byte
	p = binary.NativeEndian.AppendUint16(p, 24+16*num)
	p = binary.NativeEndian.AppendUint16(p, object)
	p = binary.NativeEndian.AppendUint16(p, method)
	p = binary.NativeEndian.AppendUint16(p, num)
	p = binary.NativeEndian.AppendUint64(p, 0)
	p = binary.NativeEndian.AppendUint32(p, driver)
	return binary.NativeEndian.AppendUint32(p, 0)
}

func TestCommandIsLaidOutAsTheKernelReadsIt(t *testing.T) {
	in, out := make([]byte, 20), make([]byte, 48)
	c := NewCommand(14, 4, 0)
	c.NewObject(0)
	c.Object(2, 7)
	c.Const(7, 0x1122334455667788)
	c.In(8, in)
	c.U32(10, 0xfffffff0)
	c.FD(12, 9, false)
	c.FD(13, -1, true)
	c.Out(14, out)
	c.In(15, []byte{1, 2, 3})
	c.In(16, nil)
	c.Out(17, nil)
	c.UHW([]byte{1, 0, 0, 0, 0, 0, 0, 2}, out[:1])

	var u32, three [8]byte
	binary.NativeEndian.PutUint32(u32[:], 0xfffffff0)
	copy(three[:], []byte{1, 2, 3})
	address := func(p []byte) uint64 { return uint64(uintptr(unsafe.Pointer(&p[0]))) }
	want := bytes.Join([][]byte{
		headerBytes(4, 0, 12, 14),
		attrBytes(0, 0, 1, 0),
		attrBytes(2, 0, 1, 7),
		attrBytes(7, 8, 1, 0x1122334455667788),
		attrBytes(8, 20, 1, address(in)),
		attrBytes(10, 4, 1, binary.NativeEndian.Uint64(u32[:])),
		attrBytes(12, 0, 1, 9),
		attrBytes(13, 0, 0, ^uint64(0)),
		attrBytes(14, 48, 1, address(out)),
		attrBytes(15, 3, 1, binary.NativeEndian.Uint64(three[:])),
		attrBytes(16, 0, 1, 0),
		attrBytes(0x1000, 8, 1, binary.NativeEndian.Uint64([]byte{1, 0, 0, 0, 0, 0, 0, 2})),
		attrBytes(0x1001, 1, 1, address(out)),
	}, nil)
	called := false
	err := c.Run(ioctlFunc(func(cmd []byte) error {
		called = true
		if diff := cmp.Diff(want, cmd); diff != "" {
			t.Errorf("command differs (-want +got):\n%s", diff)
		}
		return nil
	}))
	if err != nil || !called {
		t.Fatal(err, called)
	}
}

func TestWriteCommandCarriesNumberAndBuffers(t *testing.T) {
	for _, tt := range []struct {
		name    string
		in, out []byte
		want    [][]byte
	}{
		{"neither", nil, nil, [][]byte{headerBytes(0, 0, 1, 1), attrBytes(2, 8, 1, 0x80000001)}},
		{"inline", []byte{1, 2, 3, 4, 5, 6, 7, 8}, nil, [][]byte{headerBytes(0, 0, 2, 1), attrBytes(2, 8, 1, 0x80000001),
			attrBytes(0, 8, 1, binary.NativeEndian.Uint64([]byte{1, 2, 3, 4, 5, 6, 7, 8}))}},
	} {
		err := NewWriteCommand(1, 0x80000001, tt.in, tt.out).Run(ioctlFunc(func(cmd []byte) error {
			if diff := cmp.Diff(bytes.Join(tt.want, nil), cmd); diff != "" {
				t.Errorf("%s: command differs (-want +got):\n%s", tt.name, diff)
			}
			return nil
		}))
		if err != nil {
			t.Error(err)
		}
	}
}

func TestCommandWithoutAttributesIsItsHeader(t *testing.T) {
	err := NewCommand(1, 2, 3).Run(ioctlFunc(func(cmd []byte) error {
		if diff := cmp.Diff(headerBytes(2, 3, 0, 1), cmd); diff != "" {
			t.Error(diff)
		}
		return nil
	}))
	if err != nil {
		t.Error(err)
	}
}

func TestHandleZeroIsTold(t *testing.T) {
	c := NewCommand(1, 2, 3)
	c.NewObject(5)
	c.NewObject(6)
	if err := c.Run(ioctlFunc(func(cmd []byte) error {
		binary.NativeEndian.PutUint64(cmd[24+8:], 0)
		binary.NativeEndian.PutUint64(cmd[40+8:], 77)
		return nil
	})); err != nil {
		t.Fatal(err)
	}
	if h := c.Handle(5); h != 0 {
		t.Errorf("handle of attribute 5: %d, want 0", h)
	}
	if h := c.Handle(6); h != 77 {
		t.Errorf("handle of attribute 6: %d, want 77", h)
	}
	if h := c.Handle(9); h != ^uint32(0) {
		t.Errorf("handle of an absent attribute: %d", h)
	}
}

func TestInexpressibleCommandNeverReachesTheKernel(t *testing.T) {
	many := NewCommand(1, 2, 3)
	for i := range uint16(maxAttrs + 1) {
		many.Const(i, 0)
	}
	long := NewCommand(1, 2, 3)
	long.Out(1, make([]byte, 65536))
	for name, c := range map[string]*Command{"too many attributes": many, "65536 bytes": long} {
		err := c.Run(ioctlFunc(func([]byte) error { t.Errorf("%s: the kernel was asked", name); return nil }))
		if !errors.Is(err, syscall.E2BIG) {
			t.Errorf("%s: %v, want E2BIG", name, err)
		}
	}
	most := NewCommand(1, 2, 3)
	most.Out(1, make([]byte, 65535))
	if err := most.Run(ioctlFunc(func(cmd []byte) error {
		if n := binary.NativeEndian.Uint16(cmd[24+2:]); n != 65535 {
			t.Errorf("length %d", n)
		}
		return nil
	})); err != nil {
		t.Error(err)
	}
}

func TestRunAnswersOneErrno(t *testing.T) {
	for _, answer := range []error{syscall.EBUSY, &Wrapped{syscall.EBUSY}} {
		if err := NewCommand(1, 2, 3).Run(ioctlFunc(func([]byte) error { return answer })); err != syscall.EBUSY {
			t.Errorf("%#v, want the bare EBUSY", err)
		}
	}
	odd := errors.New("simulator is confused")
	err := NewCommand(1, 2, 3).Run(ioctlFunc(func([]byte) error { return odd }))
	if !errors.Is(err, odd) || !errors.Is(err, syscall.EIO) {
		t.Errorf("%v, want both the cause and EIO", err)
	}
}

type Wrapped struct{ err error }

func (w *Wrapped) Error() string { return w.err.Error() }
func (w *Wrapped) Unwrap() error { return w.err }

// grow makes the stack of the calling goroutine move.
//
//go:noinline
func grow(n int) int {
	var pad [256]byte
	if n == 0 {
		return 0
	}
	pad[n%256] = byte(n)
	return grow(n-1) + int(pad[n%256])
}

// at is the kernel's view of an address that a command holds.
func at(addr uint64, n int) []byte {
	return unsafe.Slice(*(**byte)(unsafe.Pointer(&addr)), n)
}

func TestBuffersStayPutWhileStackGrowsAndCollectorRuns(t *testing.T) {
	for range 20 {
		done := make(chan struct{})
		go func() { // a fresh goroutine has a small stack
			defer close(done)
			in := abi.Ib_uverbs_reg_mr{Start: 0x1234, Length: 99}
			var out abi.Ib_uverbs_reg_mr_resp
			var want [12]byte
			c := NewWriteCommand(1, 9, Bytes(&in), Bytes(&out))
			err := c.Run(ioctlFunc(func(cmd []byte) error {
				grow(2000)
				runtime.GC()
				trash := make([][]byte, 1000)
				for i := range trash {
					trash[i] = bytes.Repeat([]byte{0xee}, 16+i%64)
				}
				runtime.GC()
				grow(4000)
				runtime.KeepAlive(trash)
				if got := at(binary.NativeEndian.Uint64(cmd[24+16+8:]), 40); !bytes.Equal(got, Bytes(&in)) {
					t.Errorf("the kernel reads %x, want %x", got, Bytes(&in))
				}
				for i := range want {
					want[i] = byte(i + 1)
				}
				copy(at(binary.NativeEndian.Uint64(cmd[24+32+8:]), 12), want[:])
				return nil
			}))
			if err != nil {
				t.Error(err)
			}
			if got := Bytes(&out); !bytes.Equal(got, want[:]) {
				t.Errorf("the caller reads %x, the kernel wrote %x", got, want)
			}
		}()
		<-done
	}
}

func TestBytesOfConstantTextCanBeGiven(t *testing.T) {
	// Read-only data of the program is memory that the collector does not know.
	text := "sixteen bytes of it"
	c := NewCommand(1, 2, 3)
	c.In(1, unsafe.Slice(unsafe.StringData(text), len(text)))
	if err := c.Run(ioctlFunc(func(cmd []byte) error {
		if got := at(binary.NativeEndian.Uint64(cmd[24+8:]), len(text)); !strings.HasPrefix(string(got), "sixteen") {
			t.Errorf("%q", got)
		}
		return nil
	})); err != nil {
		t.Error(err)
	}
}

func TestBytesSeesTheStructure(t *testing.T) {
	v := abi.Ib_uverbs_qp_cap{Max_send_wr: 1, Max_inline_data: 5}
	p := Bytes(&v)
	if len(p) != 20 || binary.NativeEndian.Uint32(p) != 1 || binary.NativeEndian.Uint32(p[16:]) != 5 {
		t.Errorf("%x", p)
	}
	p[0] = 9
	if v.Max_send_wr == 1 {
		t.Error("Bytes is a copy")
	}
}

func TestInterruptedCommandIsRepeatedOnlyWhereNothingWasDone(t *testing.T) {
	frame := func(c *Command) (cmd []byte) {
		c.Run(ioctlFunc(func(p []byte) error { cmd = bytes.Clone(p); return nil }))
		return cmd
	}
	write := func(cmd uint32) []byte { return frame(NewWriteCommand(1, cmd, nil, nil)) }
	for _, tt := range []struct {
		name string
		cmd  []byte
		want bool
	}{
		{"query port", frame(NewCommand(1, abi.UVERBS_OBJECT_DEVICE, abi.UVERBS_METHOD_QUERY_PORT)), true},
		{"get context", frame(NewCommand(1, abi.UVERBS_OBJECT_DEVICE, abi.UVERBS_METHOD_GET_CONTEXT)), true},
		{"create CQ", frame(NewCommand(1, abi.UVERBS_OBJECT_CQ, abi.UVERBS_METHOD_CQ_CREATE)), true},
		{"destroy QP", frame(NewCommand(1, abi.UVERBS_OBJECT_QP, abi.UVERBS_METHOD_QP_DESTROY)), true},
		{"create SRQ", frame(NewCommand(1, abi.UVERBS_OBJECT_SRQ, abi.UVERBS_METHOD_SRQ_CREATE)), true},
		{"destroy MW", frame(NewCommand(1, abi.UVERBS_OBJECT_MW, abi.UVERBS_METHOD_MW_DESTROY)), true},
		{"register dma-buf", frame(NewCommand(1, abi.UVERBS_OBJECT_MR, abi.UVERBS_METHOD_REG_DMABUF_MR)), true},
		{"alloc MW", write(abi.IB_USER_VERBS_CMD_ALLOC_MW), true},
		{"query SRQ", write(abi.IB_USER_VERBS_CMD_QUERY_SRQ), true},
		{"modify SRQ", write(abi.IB_USER_VERBS_CMD_MODIFY_SRQ), false},
		{"rereg MR", write(abi.IB_USER_VERBS_CMD_REREG_MR), false},
		{"attach to a group", write(abi.IB_USER_VERBS_CMD_ATTACH_MCAST), false},
		{"query device", write(abi.IB_USER_VERBS_EX_CMD_QUERY_DEVICE), true},
		{"register MR", write(abi.IB_USER_VERBS_CMD_REG_MR), true},
		{"modify QP", write(abi.IB_USER_VERBS_CMD_MODIFY_QP), false},
		{"doorbell", write(abi.IB_USER_VERBS_CMD_POST_SEND), false},
		{"resize CQ", write(abi.IB_USER_VERBS_CMD_RESIZE_CQ), false},
		{"mlx5 UAR", frame(NewCommand(1, 0x1008, 0x1000)), false},
		{"mlx5 method on the device", frame(NewCommand(1, 0, 0x1000)), false},
		{"write without number", frame(NewCommand(1, 0, 0)), false},
		{"half a header", make([]byte, 12), false},
	} {
		if got := repeatable(tt.cmd); got != tt.want {
			t.Errorf("%s: repeatable %v, want %v", tt.name, got, tt.want)
		}
	}
}

func FuzzRepeatableNeverPanics(f *testing.F) {
	f.Add(headerBytes(0, 0, 0, 1))
	f.Add(append(headerBytes(0, 0, 1, 1), attrBytes(2, 8, 1, 26)...))
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, cmd []byte) { repeatable(cmd) })
}
