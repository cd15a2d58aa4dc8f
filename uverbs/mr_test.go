package uverbs

import (
	"encoding/binary"
	"errors"
	"strings"
	"syscall"
	"testing"

	"github.com/rrppcc-go/rrppcc/internal/abi"
)

func TestRegionsAreAddressedWhereTheyWereRegistered(t *testing.T) {
	k := newFakeKernel()
	c := open(t, k)
	defer c.Close()
	pd, err := c.AllocPD()
	if err != nil {
		t.Fatal(err)
	}
	var request []byte
	k.fail = func(_ int, cmd *fakeCommand) syscall.Errno {
		if cmd.write == abi.IB_USER_VERBS_CMD_REG_MR {
			request = append([]byte(nil), cmd.in(abi.UVERBS_ATTR_CORE_IN)...)
		}
		return 0
	}
	u64 := binary.NativeEndian.Uint64
	for _, tt := range []struct {
		access AccessFlags
		iova   uint64
		want   uint64
	}{
		{AccessLocalWrite | AccessRelaxedOrdering, 0x7000, 0x7000},
		{AccessLocalWrite | AccessOnDemand, memAddr(mrMemory), memAddr(mrMemory)},
		{AccessZeroBased, memAddr(mrMemory), 0},
	} {
		mr, err := pd.RegisterMRIova(mrMemory[:100], tt.iova, tt.access)
		if err != nil {
			t.Fatal(err)
		}
		if mr.Addr() != tt.want || mr.Len() != 100 || mr.SGE(5, 10) != (SGE{Addr: tt.want + 5, Length: 10, LKey: mr.LKey()}) || mr.PD() != pd {
			t.Errorf("%#x: %+v", tt.iova, mr.SGE(5, 10))
		}
		if u64(request[8:]) != memAddr(mrMemory) || u64(request[16:]) != 100 || u64(request[24:]) != tt.iova ||
			binary.NativeEndian.Uint32(request[36:]) != uint32(tt.access) {
			t.Errorf("request % x", request)
		}
	}
}

func TestRegisterDMABufNamesTheDescriptor(t *testing.T) {
	k := newFakeKernel()
	c := open(t, k)
	defer c.Close()
	pd, err := c.AllocPD()
	if err != nil {
		t.Fatal(err)
	}
	k.fail = func(_ int, cmd *fakeCommand) syscall.Errno {
		if cmd.object == abi.UVERBS_OBJECT_MR && cmd.method == abi.UVERBS_METHOD_REG_DMABUF_MR &&
			(cmd.data(abi.UVERBS_ATTR_REG_DMABUF_MR_OFFSET) != 4096 || cmd.data(abi.UVERBS_ATTR_REG_DMABUF_MR_IOVA) != 4096 ||
				cmd.data(abi.UVERBS_ATTR_REG_DMABUF_MR_LENGTH) != 100 || uint32(cmd.data(abi.UVERBS_ATTR_REG_DMABUF_MR_ACCESS_FLAGS)) != uint32(AccessRemoteRead)) {
			return syscall.EFAULT
		}
		return 0
	}
	mr, err := pd.RegisterDMABuf(44, 4096, 100, AccessRemoteRead)
	if err != nil {
		t.Fatal(err)
	}
	if mr.Bytes() != nil || mr.Len() != 100 || mr.Addr() != 4096 || mr.LKey() != 0x3333 || mr.RKey() != 0x4444 {
		t.Errorf("%+v", mr)
	}
	for _, tt := range []struct {
		fd     int
		length uint64
		errno  syscall.Errno
	}{{-1, 100, syscall.EINVAL}, {44, 0, syscall.EINVAL}, {45, 100, syscall.EBADF}} {
		if _, err := pd.RegisterDMABuf(tt.fd, 4096, tt.length, AccessRemoteRead); !errors.Is(err, tt.errno) {
			t.Errorf("fd %d, %d bytes: %v", tt.fd, tt.length, err)
		}
	}
	for errno, word := range map[syscall.Errno]string{syscall.EPROTONOSUPPORT: "5.12", syscall.EOPNOTSUPP: "driver cannot"} {
		k.fail = func(int, *fakeCommand) syscall.Errno { return errno }
		if _, err := pd.RegisterDMABuf(44, 4096, 100, 0); !errors.Is(err, errno) || !strings.Contains(err.Error(), word) {
			t.Errorf("%v", err)
		}
	}
}

func TestReregChangesWhatItsFlagsSay(t *testing.T) {
	k := newFakeKernel()
	c := open(t, k)
	o, err := use(c)
	if err != nil {
		t.Fatal(err)
	}
	pd2, err := c.AllocPD()
	if err != nil {
		t.Fatal(err)
	}
	if err := o.mr.Rereg(ReregPD|ReregTranslation, pd2, mrMemory[64:128], 0); err != nil {
		t.Fatal(err)
	}
	if o.mr.PD() != pd2 || o.mr.Len() != 64 || o.mr.Addr() != memAddr(mrMemory)+64 || o.mr.LKey() != 0x5555 || o.mr.RKey() != 0x6666 {
		t.Errorf("%+v", o.mr)
	}
	if err := pd2.Close(); !errors.Is(err, syscall.EBUSY) {
		t.Errorf("its new PD: %v", err)
	}
	for what, err := range map[string]error{"no PD": o.mr.Rereg(ReregPD, nil, nil, 0), "no memory": o.mr.Rereg(ReregTranslation, nil, nil, 0)} {
		if !errors.Is(err, syscall.EINVAL) {
			t.Errorf("%s: %v", what, err)
		}
	}
	if err := o.mr.Close(); err != nil {
		t.Error(err)
	}
	if err := o.mr.Rereg(ReregAccess, nil, nil, 0); !errors.Is(err, ErrClosed) {
		t.Errorf("closed: %v", err)
	}
	if err := c.Close(); err != nil {
		t.Error(err)
	}
	checkNothingLeft(t, k)
}
