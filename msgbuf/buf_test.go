package msgbuf

import (
	"errors"
	"fmt"
	"strings"
	"testing"
)

func TestZeroBufNamesNothing(t *testing.T) {
	var b Buf
	if !b.IsNil() || b.Valid() || b.Bytes() != nil || b.Full() != nil || b.Len() != 0 || b.Cap() != 0 ||
		b.Addr() != 0 || b.LKey() != 0 || b.RKey() != 0 || !errors.Is(b.SetLen(0), ErrFreed) {
		t.Error("the zero Buf answers")
	}
	b.Free()
}

func TestSetLenStaysWithinCapacity(t *testing.T) {
	p, _ := newTestPool(t, Local)
	b := mustAlloc(t, p, 100)
	for _, n := range []int{0, 1, 128} {
		if err := b.SetLen(n); err != nil || b.Len() != n || len(b.Bytes()) != n {
			t.Errorf("set %d: %v, %d", n, err, b.Len())
		}
	}
	for _, n := range []int{-1, 129, 1 << 40} {
		if err := b.SetLen(n); !errors.Is(err, ErrCapacity) || b.Len() != 128 {
			t.Errorf("set %d: %v, %d", n, err, b.Len())
		}
	}
	if got := cap(b.Bytes()[:0]); got != 128 {
		t.Errorf("append would run into the next buffer: cap %d", got)
	}
	b.Free()
}

func TestStaleBufAnswersNothingEvenWhenItsBlockIsUsedAgain(t *testing.T) {
	p, _ := newTestPool(t, RemoteRead)
	old := mustAlloc(t, p, 100)
	copied := old
	old.Free()
	next := mustAlloc(t, p, 100)
	if next.b != old.b {
		t.Fatal("the block was not used again; the test shows nothing")
	}
	for _, b := range []Buf{old, copied} {
		if b.Valid() || b.IsNil() || b.Bytes() != nil || b.Full() != nil || b.Len() != 0 || b.Cap() != 0 ||
			b.Addr() != 0 || b.LKey() != 0 || b.RKey() != 0 || !errors.Is(b.SetLen(0), ErrFreed) {
			t.Error("a stale Buf answers")
		}
	}
	if next.Len() != 100 || !next.Valid() {
		t.Error("the new Buf is harmed")
	}
	next.Free()
}

// catch returns what f panics with.
func catch(f func()) (msg string) {
	defer func() {
		if v := recover(); v != nil {
			msg = fmt.Sprint(v)
		}
	}()
	f()
	return ""
}

func freeHereFirst(b Buf) { b.Free() }

func TestDoubleFreePanicsAndSaysWhere(t *testing.T) {
	p, _ := newTestPool(t, Local)
	b := mustAlloc(t, p, 100)
	freeHereFirst(b)
	msg := catch(b.Free)
	if !strings.Contains(msg, "freed twice") {
		t.Fatalf("panic %q", msg)
	}
	if traced := !strings.Contains(msg, "-tags msgbufdebug"); traced && !strings.Contains(msg, "freeHereFirst") {
		t.Errorf("panic does not say where: %q", msg)
	}
	if msg := catch(func() { p.FreeLocal(b) }); !strings.Contains(msg, "freed twice") {
		t.Errorf("panic %q", msg)
	}
	// The same after the block has been handed out again: the new owner keeps it.
	next := mustAlloc(t, p, 100)
	if msg := catch(b.Free); !strings.Contains(msg, "freed twice") {
		t.Errorf("panic %q", msg)
	}
	if !next.Valid() {
		t.Error("a stale free took the new buffer away")
	}
	next.Free()
	if s := p.Stats(); s.InUse != 0 || s.UsedBytes != 0 {
		t.Errorf("%+v", s)
	}
}

func TestFreeLocalRefusesAnotherPoolsBuffer(t *testing.T) {
	p, _ := newTestPool(t, Local)
	q, _ := newTestPool(t, Local)
	b := mustAlloc(t, p, 1)
	if msg := catch(func() { q.FreeLocal(b) }); !strings.Contains(msg, "another pool") {
		t.Errorf("panic %q", msg)
	}
	q.FreeLocal(Buf{})
	b.Free()
}
