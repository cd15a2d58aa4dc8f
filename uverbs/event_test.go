package uverbs

import (
	"context"
	"errors"
	"io/fs"
	"syscall"
	"testing"

	"github.com/rrppcc-go/rrppcc/internal/abi"
	"github.com/rrppcc-go/rrppcc/internal/kernel"
)

func async(element uint64, typ EventType) []byte {
	return kernel.Bytes(&abi.Ib_uverbs_async_event_desc{Element: element, Event_type: uint32(typ)})
}

func comp(user uint64) []byte { return kernel.Bytes(&abi.Ib_uverbs_comp_event_desc{Cq_handle: user}) }

func TestAsyncEventNamesItsObject(t *testing.T) {
	c := open(t, newFakeKernel())
	defer c.Close()
	o, err := use(c)
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		record []byte
		want   AsyncEvent
	}{
		{async(o.cq.user, EventCQErr), AsyncEvent{Type: EventCQErr, CQ: o.cq}},
		{async(o.qp.user, EventQPLastWQEReached), AsyncEvent{Type: EventQPLastWQEReached, QP: o.qp}},
		{async(1, EventPortErr), AsyncEvent{Type: EventPortErr, Port: 1}},
		{async(0, EventDeviceFatal), AsyncEvent{Type: EventDeviceFatal}},
		{async(o.qp.user, EventCQErr), AsyncEvent{Type: EventCQErr}}, // no CQ has this handle
		{async(99, EventType(77)), AsyncEvent{Type: 77}},
	} {
		c.async.(*fakeEvents).records <- tt.record
		if got, err := c.WaitAsyncEvent(t.Context()); err != nil || got != tt.want {
			t.Errorf("%v, %v; want %v", got, err, tt.want)
		}
	}
	user := o.qp.user
	if err := o.qp.Close(); err != nil {
		t.Fatal(err)
	}
	c.async.(*fakeEvents).records <- async(user, EventQPFatal)
	if got, err := c.WaitAsyncEvent(t.Context()); err != nil || got.QP != nil {
		t.Errorf("event of a closed QP: %v, %v", got, err)
	}
}

func TestWaitNamesTheCQAndSkipsClosedOnes(t *testing.T) {
	c := open(t, newFakeKernel())
	defer c.Close()
	o, err := use(c)
	if err != nil {
		t.Fatal(err)
	}
	old, err := c.CreateCQ(&CQInitAttr{Depth: 1, Channel: o.ch})
	if err != nil {
		t.Fatal(err)
	}
	records := o.ch.file.(*fakeEvents).records
	records <- comp(old.user)
	if got, err := o.ch.Wait(t.Context()); got != old || err != nil || old.drv.(*fakeCQ).events != 1 {
		t.Errorf("%v, %v", got, err)
	}
	if err := old.Close(); err != nil {
		t.Fatal(err)
	}
	records <- comp(old.user)
	records <- comp(0)
	records <- comp(^uint64(0))
	records <- comp(o.cq.user)
	if got, err := o.ch.Wait(t.Context()); got != o.cq || err != nil {
		t.Errorf("%v, %v; want the CQ that is open", got, err)
	}
	if n := old.drv.(*fakeCQ).events; n != 1 {
		t.Errorf("the closed CQ's driver was told of %d events", n)
	}
}

func TestEndOfWaitIsRecognisable(t *testing.T) {
	k := newFakeKernel()
	c := open(t, k)
	o, err := use(c)
	if err != nil {
		t.Fatal(err)
	}
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := o.ch.Wait(ended); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
	for _, cut := range []int{0, 1, 7} {
		o.ch.file.(*fakeEvents).records <- comp(1)[:cut]
		if _, err := o.ch.Wait(t.Context()); !errors.Is(err, ErrBadAnswer) {
			t.Errorf("%d bytes: %v", cut, err)
		}
	}
	for cut := range 16 {
		c.async.(*fakeEvents).records <- async(1, EventPortErr)[:cut]
		if _, err := c.WaitAsyncEvent(t.Context()); !errors.Is(err, ErrBadAnswer) {
			t.Errorf("%d bytes: %v", cut, err)
		}
	}
	o.ch.file.(*fakeEvents).records <- nil
	if _, err := o.ch.Wait(t.Context()); !errors.Is(err, ErrDeviceRemoved) || !errors.Is(err, syscall.EIO) {
		t.Errorf("device gone: %v", err)
	}
	waiting := make(chan error)
	go func() {
		_, err := o.ch.Wait(context.Background())
		waiting <- err
	}()
	go func() {
		_, err := c.WaitAsyncEvent(context.Background())
		waiting <- err
	}()
	if err := c.Close(); err != nil {
		t.Error(err)
	}
	for range 2 {
		if err := <-waiting; !errors.Is(err, ErrClosed) || !errors.Is(err, fs.ErrClosed) {
			t.Errorf("closed: %v", err)
		}
	}
	checkNothingLeft(t, k)
}
