package verbstest

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/rrppcc-go/rrppcc/internal/leakcheck"
	"github.com/rrppcc-go/rrppcc/uverbs"
)

// patience bounds every wait for something that must happen.
const patience = 20 * time.Second

// test is one test of the suite.
type test struct {
	name  string
	needs []Capability
	run   func(e *env)
}

// groups is the suite, in the order in which a new device is best brought up.
var groups = [][]test{
	queryTests, objectTests, mrTests, faultedTests, modifyTests, rcTests, shapeTests, mixTests, ucTests, udTests, lidTests, queueTests, eventTests,
	rnrTests, errorTests, flushTests, atomicTests, invalidateTests, windowTests, srqTests, overrunTests, processTests, removalTests,
}

// Run runs the suite on a backend, and logs which tests ran and what was
// skipped why.
func Run(t *testing.T, b Backend) {
	t.Run(b.Name, func(t *testing.T) {
		if err := b.check(); err != nil {
			t.Fatal(err)
		}
		r := &report{deviations: make(map[string]bool), skips: make(map[string]int)}
		for _, group := range groups {
			for _, c := range group {
				t.Run(c.name, func(t *testing.T) { runTest(t, b, r, c) })
			}
		}
		t.Log(r)
	})
}

// report counts what became of the tests of one backend.
type report struct {
	mu         sync.Mutex
	ran        int
	skips      map[string]int  // by reason
	deviations map[string]bool // that showed
}

func (r *report) String() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	var b strings.Builder
	skipped := 0
	for _, n := range r.skips {
		skipped += n
	}
	fmt.Fprintf(&b, "%d ran, %d skipped", r.ran, skipped)
	for i, why := range slices.Sorted(maps.Keys(r.skips)) {
		sep := "; "
		if i == 0 {
			sep = ": "
		}
		fmt.Fprintf(&b, "%s%d for want of %s", sep, r.skips[why], why)
	}
	for _, d := range slices.Sorted(maps.Keys(r.deviations)) {
		fmt.Fprintf(&b, "\ndeviation: %s", d)
	}
	return b.String()
}

func (r *report) skip(t *testing.T, why string) {
	t.Helper()
	r.mu.Lock()
	r.skips[why]++
	r.mu.Unlock()
	t.Skip("for want of " + why)
}

func runTest(t *testing.T, b Backend, r *report, c test) {
	for _, need := range c.needs {
		if why := b.Lacks[need]; why != "" {
			r.skip(t, fmt.Sprintf("%s (%s)", need, why))
		}
	}
	r.mu.Lock()
	r.ran++
	r.mu.Unlock()
	leakcheck.Check(t)
	e := &env{T: t, b: &b, report: r, forgiven: make(map[any]bool)}
	e.open()
	c.run(e)
}

// env is what a test works with. Everything that it makes is closed with the
// test, in reverse order, and closing must not fail.
type env struct {
	*testing.T
	b      *Backend
	report *report
	pair   *Pair
	a, z   *host // the two sides

	forgiven map[any]bool // what may fail to close
}

// host is one of the two opened devices.
type host struct {
	e        *env
	ctx      *uverbs.Context
	gid      uverbs.GID
	gidIndex uint8
	ib       bool       // the port's link layer is InfiniBand
	lid      uint16     // then
	mtu      uverbs.MTU // active
}

const port = 1

func (e *env) open() {
	var err error
	e.pair, err = e.b.Open()
	e.must(err)
	e.Cleanup(func() { e.must(e.pair.Close()) })
	e.a, e.z = &host{e: e, ctx: e.pair.A}, &host{e: e, ctx: e.pair.B}
	for _, h := range []*host{e.z, e.a} {
		e.closeLater(h.ctx)
		g, _, err := h.ctx.ChooseGID(port, -1)
		e.must(err)
		p, err := h.ctx.QueryPort(port)
		e.must(err)
		h.gid, h.gidIndex, h.mtu = g.GID, uint8(g.Index), p.ActiveMTU
		if h.ib = p.LinkLayer == uverbs.LinkLayerInfiniBand; h.ib {
			h.lid = p.LID
		}
	}
}

// must ends the test on an error.
func (e *env) must(err error) {
	e.Helper()
	if err != nil {
		e.Fatal(err)
	}
}

// closeLater closes c when the test ends. A test may have closed it before.
func (e *env) closeLater(c interface{ Close() error }) {
	e.Cleanup(func() {
		if err := c.Close(); err != nil && !errors.Is(err, uverbs.ErrClosed) && !e.forgiven[c] {
			e.Errorf("close a %T: %v", c, err)
		}
	})
}

// fails checks that err is each of the wanted errors.
func (e *env) fails(what string, err error, want ...error) {
	e.Helper()
	if err == nil {
		e.Errorf("%s: no error, want %v", what, want)
	}
	for _, w := range want {
		if err != nil && !errors.Is(err, w) {
			e.Errorf("%s: %v, want %v", what, err, w)
		}
	}
}

// rule checks what a device answered against what it should, or against the
// deviation that is declared.
func (e *env) rule(r Rule, got string) {
	e.Helper()
	want, why := e.b.answer(r)
	switch {
	case got != want && why != "":
		e.Errorf("%s: %s, want the declared deviation: %s (%s)", r, got, want, why)
	case got != want:
		e.Errorf("%s: %s, want %s", r, got, want)
	case why != "":
		e.report.mu.Lock()
		e.report.deviations[fmt.Sprintf("%s: %s (%s)", r, want, why)] = true
		e.report.mu.Unlock()
	}
}

// expects tells what the backend answers where the rule applies, for tests
// that go on differently.
func (e *env) expects(r Rule) string {
	want, _ := e.b.answer(r)
	return want
}

const (
	notSupported = "EOPNOTSUPP"
	badAddress   = "EFAULT"
)

// errnoName is what a rule says of a control command's answer.
func errnoName(err error) string {
	for errno, name := range map[syscall.Errno]string{syscall.EINVAL: invalid, syscall.EOPNOTSUPP: notSupported, syscall.EFAULT: badAddress} {
		if errors.Is(err, errno) {
			return name
		}
	}
	if err != nil {
		return err.Error()
	}
	return accepted
}

// scaled is n rounds, or fewer with -short.
func scaled(n, short int) int {
	if testing.Short() {
		return short
	}
	return n
}

// until polls cond until it holds. It yields, so that others get on.
func (e *env) until(what string, cond func() bool) {
	e.Helper()
	for deadline := time.Now().Add(patience); !cond(); runtime.Gosched() {
		if time.Now().After(deadline) {
			e.Fatalf("%s: not in %v", what, patience)
		}
	}
}

// soon is the context of a wait for something that must happen.
func (e *env) soon() context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	e.Cleanup(cancel)
	return ctx
}

// async waits for an async event that is about something of ours: a port's
// events come and go by themselves.
func (e *env) async(h *host) uverbs.AsyncEvent {
	e.Helper()
	for ctx := e.soon(); ; {
		ev, err := h.ctx.WaitAsyncEvent(ctx)
		e.must(err)
		if ev.Port == 0 {
			return ev
		}
		e.Logf("%v on port %d", ev.Type, ev.Port)
	}
}
