package uverbs

import (
	"errors"
	"strings"
	"syscall"
	"testing"
)

// bareDriver is a provider's half without what is optional.
type bareDriver struct{ ContextDriver }

type bareCQ struct{ CQDriver }

func TestProviderWithoutSRQsIsNamed(t *testing.T) {
	c := open(t, newFakeKernel())
	defer c.Close()
	o, err := use(c)
	if err != nil {
		t.Fatal(err)
	}
	c.drv = bareDriver{c.drv}
	o.cq.drv = bareCQ{o.cq.drv}
	_, err = o.pd.CreateSRQ(&SRQInitAttr{SRQAttr{MaxWR: 1}})
	for what, err := range map[string]error{"no SRQ": err, "no resizing": o.cq.Resize(5)} {
		if !errors.Is(err, ErrNotSupported) || !strings.Contains(err.Error(), "provider fake has "+what) {
			t.Errorf("%s: %v", what, err)
		}
	}
}

func TestSRQMisuseIsRefused(t *testing.T) {
	k := newFakeKernel()
	c, other := open(t, k), open(t, newFakeKernel())
	o, err := use(c)
	if err != nil {
		t.Fatal(err)
	}
	foreign, err := use(other)
	if err != nil {
		t.Fatal(err)
	}
	create := func(srq *SRQ) error {
		_, err := o.pd.CreateQP(&QPInitAttr{Type: QPTypeUD, SendCQ: o.cq, RecvCQ: o.cq, SRQ: srq})
		return err
	}
	if err := create(foreign.srq); !errors.Is(err, syscall.EINVAL) || !strings.Contains(err.Error(), "another context") {
		t.Errorf("SRQ of another context: %v", err)
	}
	if _, err := o.pd.CreateSRQ(&SRQInitAttr{}); !errors.Is(err, syscall.EINVAL) {
		t.Errorf("SRQ of no entries: %v", err)
	}
	if err := o.srq.Close(); !errors.Is(err, syscall.EBUSY) {
		t.Errorf("closed in use: %v", err)
	}
	if a, err := o.srq.Query(); err != nil || *a != (SRQAttr{MaxWR: 63, MaxSGE: 2, Limit: 9}) {
		t.Errorf("%+v, %v", a, err)
	}
	if o.qp.SRQ() != o.srq || o.srq.PD() != o.pd {
		t.Error("the QP does not name its SRQ")
	}
	if err := errors.Join(o.qp.Close(), o.srq.Close()); err != nil {
		t.Error(err)
	}
	for what, err := range map[string]error{"create": create(o.srq), "modify": o.srq.Modify(&SRQAttr{}, 0), "query": second(o.srq.Query()), "close": o.srq.Close()} {
		if !errors.Is(err, ErrClosed) {
			t.Errorf("%s: %v, want ErrClosed", what, err)
		}
	}
	if err := errors.Join(c.Close(), other.Close()); err != nil {
		t.Error(err)
	}
	checkNothingLeft(t, k)
}

func TestEventNamesTheSRQ(t *testing.T) {
	c := open(t, newFakeKernel())
	defer c.Close()
	o, err := use(c)
	if err != nil {
		t.Fatal(err)
	}
	events := c.async.(*fakeEvents).records
	events <- async(o.srq.user, EventSRQLimitReached)
	events <- async(o.qp.user, EventSRQErr) // no SRQ has this handle
	for _, want := range []AsyncEvent{{Type: EventSRQLimitReached, SRQ: o.srq}, {Type: EventSRQErr}} {
		if got, err := c.WaitAsyncEvent(t.Context()); err != nil || got != want {
			t.Errorf("%+v, %v; want %+v", got, err, want)
		}
	}
}
