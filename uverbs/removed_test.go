package uverbs

import (
	"errors"
	"syscall"
	"testing"
)

// A kernel that removes a device says so once, and leaves the event file open.
func TestRemovalWakesEveryWaiterForEvents(t *testing.T) {
	k := newFakeKernel()
	c := open(t, k)
	o, err := use(c)
	if err != nil {
		t.Fatal(err)
	}
	type result struct {
		ev  AsyncEvent
		err error
	}
	results := make(chan result)
	const waiters = 3
	for range waiters {
		go func() {
			ev, err := c.WaitAsyncEvent(t.Context())
			results <- result{ev, err}
		}()
	}
	k.mu.Lock()
	k.fail = func(int, *fakeCommand) syscall.Errno { return syscall.EIO }
	k.mu.Unlock()
	c.async.(*fakeEvents).records <- async(0, EventDeviceFatal)
	fatal := 0
	for range waiters {
		switch r := <-results; {
		case r.err == nil && r.ev.Type == EventDeviceFatal:
			fatal++
		case !errors.Is(r.err, ErrDeviceRemoved) || !errors.Is(r.err, syscall.EIO):
			t.Errorf("%+v, %v", r.ev, r.err)
		}
	}
	if fatal != 1 {
		t.Errorf("%d waiters got the event", fatal)
	}
	if _, err := c.WaitAsyncEvent(t.Context()); !errors.Is(err, ErrDeviceRemoved) {
		t.Errorf("afterwards: %v", err)
	}
	// In the wrong order: nothing is in use any more.
	if err := errors.Join(o.pd.Close(), o.cq.Close(), o.srq.Close(), o.mr.Close(), o.mw.Close(), o.ah.Close(), o.qp.Close(), o.ch.Close()); err != nil {
		t.Error(err)
	}
	if err := c.Close(); err != nil {
		t.Error(err)
	}
	if _, err := c.WaitAsyncEvent(t.Context()); !errors.Is(err, ErrClosed) {
		t.Errorf("closed: %v", err)
	}
	checkNothingLeft(t, k)
}

func TestFatalEventOfADeviceThatIsThere(t *testing.T) {
	c := open(t, newFakeKernel())
	defer c.Close()
	events := c.async.(*fakeEvents).records
	events <- async(0, EventDeviceFatal)
	events <- async(1, EventPortErr)
	for _, want := range []EventType{EventDeviceFatal, EventPortErr} {
		if ev, err := c.WaitAsyncEvent(t.Context()); err != nil || ev.Type != want {
			t.Errorf("%v, %v, want %v", ev, err, want)
		}
	}
}
