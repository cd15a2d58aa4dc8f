package uverbs

import (
	"errors"
	"slices"
	"testing"

	"github.com/rrppcc-go/rrppcc/internal/abi"
)

func TestMulticastNamesTheGroup(t *testing.T) {
	k := newFakeKernel()
	c := open(t, k)
	defer c.Close()
	o, err := use(c)
	if err != nil {
		t.Fatal(err)
	}
	k.groups = nil
	gid := GIDFromAddr(addr("239.1.2.3"))
	if err := errors.Join(o.qp.AttachMulticast(gid, 7), o.qp.DetachMulticast(gid, 7)); err != nil {
		t.Fatal(err)
	}
	if want := []fakeGroup{{abi.IB_USER_VERBS_CMD_ATTACH_MCAST, gid, 7}, {abi.IB_USER_VERBS_CMD_DETACH_MCAST, gid, 7}}; !slices.Equal(k.groups, want) {
		t.Errorf("%v, want %v", k.groups, want)
	}
	if err := o.qp.Close(); err != nil {
		t.Fatal(err)
	}
	if err := o.qp.AttachMulticast(gid, 0); !errors.Is(err, ErrClosed) {
		t.Error(err)
	}
}
