package uverbs

import (
	"errors"
	"runtime"
	"strings"
	"syscall"
	"testing"

	"github.com/rrppcc-go/rrppcc/internal/abi"
)

func TestRegisterMRSaysWhyNot(t *testing.T) {
	limit := "out of memory"
	if runtime.GOOS == "linux" {
		limit = "RLIMIT_MEMLOCK"
	}
	for _, tt := range []struct {
		errno  syscall.Errno
		access AccessFlags
		word   string
	}{
		{syscall.ENOMEM, AccessLocalWrite, limit},
		{syscall.ENOMEM, AccessLocalWrite, "4.0 KiB"},
		{syscall.EFAULT, AccessLocalWrite, "read-only"},
		{syscall.EINVAL, AccessRemoteWrite, "need AccessLocalWrite"},
		{syscall.EOPNOTSUPP, AccessOnDemand, "0x40"},
		{syscall.EIO, AccessLocalWrite, "the device was removed"},
	} {
		k := newFakeKernel()
		c := open(t, k)
		pd, err := c.AllocPD()
		if err != nil {
			t.Fatal(err)
		}
		k.fail = func(int, *fakeCommand) syscall.Errno { return tt.errno }
		if _, err := pd.RegisterMR(mrMemory, tt.access); !errors.Is(err, tt.errno) || !strings.Contains(err.Error(), tt.word) {
			t.Errorf("%q lacks %q", err, tt.word)
		}
		c.Close()
	}
}

func TestUnreachablePeerIsNamed(t *testing.T) {
	k := newFakeKernel()
	c := open(t, k)
	defer c.Close()
	o, err := use(c)
	if err != nil {
		t.Fatal(err)
	}
	k.fail = func(_ int, cmd *fakeCommand) syscall.Errno {
		if cmd.write == abi.IB_USER_VERBS_CMD_CREATE_AH || cmd.write == abi.IB_USER_VERBS_CMD_MODIFY_QP {
			return syscall.ETIMEDOUT
		}
		return 0
	}
	peer := GIDFromAddr(addr("10.0.0.77"))
	_, err = o.pd.CreateAH(&AHAttr{DGID: peer})
	for _, err := range []error{err, o.qp.Modify(&QPAttr{State: QPStateRTR, AV: AHAttr{DGID: peer}}, AttrState|AttrAV)} {
		if !errors.Is(err, syscall.ETIMEDOUT) || !strings.Contains(err.Error(), "nobody answers for 10.0.0.77") {
			t.Error(err)
		}
	}
	k.fail = func(int, *fakeCommand) syscall.Errno { return syscall.EPERM }
	if err := o.qp.Modify(&QPAttr{QKey: 0x80000001}, AttrQKey); !strings.Contains(err.Error(), "CAP_NET_RAW") {
		t.Error(err)
	}
}

func TestByteSizesAreReadable(t *testing.T) {
	for n, want := range map[uint64]string{0: "0 bytes", 1023: "1023 bytes", 8 << 20: "8.0 MiB", 3 << 29: "1.5 GiB", ^uint64(0): "unlimited"} {
		if got := byteSize(n); got != want {
			t.Errorf("%d: %q, want %q", n, got, want)
		}
	}
}

func TestSGEOutsideTheRegionPanics(t *testing.T) {
	mr := &MR{iova: 1000, length: 100, lkey: 5}
	if s := mr.SGE(90, 10); s.Addr != 1090 || s.Length != 10 || s.LKey != 5 {
		t.Errorf("%+v", s)
	}
	for _, r := range [][2]int{{91, 10}, {-1, 2}, {50, -1}, {101, 0}} {
		func() {
			defer func() {
				if recover() == nil {
					t.Errorf("%v is accepted", r)
				}
			}()
			mr.SGE(r[0], r[1])
		}()
	}
}
