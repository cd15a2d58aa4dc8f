package kernel

import (
	"bytes"
	"encoding/binary"
	"errors"
	"syscall"
	"testing"
	"unsafe"

	"github.com/rrppcc-go/rrppcc/internal/abi"
)

// recorder is a File that answers one errno and notes the last command.
type recorder struct {
	File
	errno syscall.Errno
	cmd   []byte
	runs  int
}

func (r *recorder) Ioctl(cmd []byte) error {
	r.runs++
	r.cmd = cmd
	for i := 24; i < len(cmd); i += 16 { // as the kernel does
		cmd[i+4] |= abi.UVERBS_ATTR_F_VALID_OUTPUT
	}
	if r.errno != 0 {
		return r.errno
	}
	return nil
}

func pages(t testing.TB) []byte {
	t.Helper()
	mem, err := AllocPages(4096)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { FreePages(mem) })
	return mem
}

func TestPreparedCommandPointsIntoItsMemory(t *testing.T) {
	mem := pages(t)
	request := []byte("a request of more than eight bytes")
	p, err := PrepareWrite(mem, 14, abi.IB_USER_VERBS_CMD_POST_SEND, request, 4)
	if err != nil {
		t.Fatal(err)
	}
	if copy(request, "xxxx"); !bytes.HasPrefix(p.In(), []byte("a re")) {
		t.Error("the request is not copied")
	}
	r := new(recorder)
	for range 3 {
		if err := p.Run(r); err != nil {
			t.Fatal(err)
		}
	}
	u16, u64 := binary.NativeEndian.Uint16, binary.NativeEndian.Uint64
	if len(r.cmd) != 24+3*16 || int(u16(r.cmd)) != len(r.cmd) || u16(r.cmd[6:]) != 3 || binary.NativeEndian.Uint32(r.cmd[16:]) != 14 {
		t.Errorf("header % x", r.cmd[:24])
	}
	base := uint64(uintptr(unsafe.Pointer(&mem[0])))
	for i, want := range []struct {
		id   uint16
		n    int
		data uint64
	}{
		{abi.UVERBS_ATTR_WRITE_CMD, 8, abi.IB_USER_VERBS_CMD_POST_SEND},
		{abi.UVERBS_ATTR_CORE_IN, len(request), base + 72},
		{abi.UVERBS_ATTR_CORE_OUT, 4, base + 112},
	} {
		a := r.cmd[24+16*i:]
		if u16(a) != want.id || int(u16(a[2:])) != want.n || u64(a[8:]) != want.data {
			t.Errorf("attribute %d: % x, want %+v from %#x", i, a[:16], want, base)
		}
	}
	r.errno = syscall.EINVAL
	if err := p.Run(r); err != syscall.EINVAL {
		t.Errorf("%v", err)
	}
}

func TestPreparedShortRequestIsChangedInTheCommand(t *testing.T) {
	p, err := PrepareWrite(pages(t), 14, abi.IB_USER_VERBS_CMD_REQ_NOTIFY_CQ, []byte{1, 2, 3, 4, 5, 6, 7, 8}, 0)
	if err != nil {
		t.Fatal(err)
	}
	p.In()[4] = 99
	r := new(recorder)
	if err := p.Run(r); err != nil {
		t.Fatal(err)
	}
	if got := r.cmd[24+16+8:]; !bytes.Equal(got, []byte{1, 2, 3, 4, 99, 6, 7, 8}) || len(r.cmd) != 24+2*16 {
		t.Errorf("% x", got)
	}
}

func TestPreparedCommandAllocatesNothing(t *testing.T) {
	p, err := PrepareWrite(pages(t), 14, abi.IB_USER_VERBS_CMD_REQ_NOTIFY_CQ, make([]byte, 8), 0)
	if err != nil {
		t.Fatal(err)
	}
	var f File = &recorder{errno: syscall.EIO}
	if n := testing.AllocsPerRun(100, func() {
		if p.Run(f) == nil {
			t.Fatal("no error")
		}
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func TestPreparedCommandThatDoesNotFitIsRefused(t *testing.T) {
	mem := pages(t)
	for _, tt := range []struct{ room, in, out int }{{4096, 0, 4}, {60, 24, 0}, {4096, 4096, 0}, {4096, 8, 4096}, {0, 1, 0}, {4096, 8, -1}} {
		if _, err := PrepareWrite(mem[:tt.room], 14, 1, make([]byte, tt.in), tt.out); !errors.Is(err, syscall.EINVAL) {
			t.Errorf("%+v: %v", tt, err)
		}
	}
}
