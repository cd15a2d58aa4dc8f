package uverbs

import (
	"errors"
	"syscall"
	"testing"
)

func TestMemoryWindowKeys(t *testing.T) {
	c := open(t, newFakeKernel())
	defer c.Close()
	o, err := use(c)
	if err != nil {
		t.Fatal(err)
	}
	mw, err := o.pd.AllocMW(MWType1)
	if err != nil {
		t.Fatal(err)
	}
	if mw.RKey() != 0x770000fe || mw.Type() != MWType1 || mw.PD() != o.pd {
		t.Errorf("%+v", mw)
	}
	if a, b := NextRKey(mw.RKey()), NextRKey(NextRKey(mw.RKey())); a != 0x770000ff || b != 0x77000000 {
		t.Errorf("next keys %#x, %#x", a, b)
	}
	for _, typ := range []MWType{0, 3} {
		if _, err := o.pd.AllocMW(typ); !errors.Is(err, syscall.EINVAL) {
			t.Errorf("type %d: %v", typ, err)
		}
	}
	if err := mw.Close(); err != nil {
		t.Error(err)
	}
	if err := mw.Close(); !errors.Is(err, ErrClosed) {
		t.Error(err)
	}
}
