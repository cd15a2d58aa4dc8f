package rpc

import (
	"context"
	"fmt"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/rrppcc-go/rrppcc/msgbuf"
	"github.com/rrppcc-go/rrppcc/rpc/internal/engine"
)

// opKind is what another goroutine wants of the loop.
type opKind uint8

const (
	opStart opKind = iota // start req
	opAbort               // abort req
	opReply               // answer handle
	opFunc                // call fn
)

// op is an entry of the submission queue.
type op struct {
	kind   opKind
	req    *Request
	handle *engine.Handle
	buf    msgbuf.Buf
	err    error
	fn     func()
	reuse  bool // nobody keeps handle
}

// submit queues o for the loop and wakes it. It reports false if the endpoint
// is closed: nobody will look at o.
func (ep *Endpoint) submit(o op) bool {
	ep.opMu.Lock()
	if ep.opClosed {
		ep.opMu.Unlock()
		return false
	}
	ep.ops = append(ep.ops, o)
	ep.opCount.Store(int32(len(ep.ops)))
	ep.opMu.Unlock()
	if ep.asleep.Load() {
		ep.wakeUp()
	}
	return true
}

func (ep *Endpoint) wakeUp() {
	select {
	case ep.wake <- struct{}{}:
	default:
	}
}

// runOps executes what was submitted.
func (ep *Endpoint) runOps() int {
	if ep.opCount.Load() == 0 {
		return 0
	}
	ep.tick()
	ep.opMu.Lock()
	ops := ep.ops
	ep.ops = ep.opSpare[:0]
	ep.opCount.Store(0)
	ep.opMu.Unlock()
	for i := range ops {
		o := &ops[i]
		switch o.kind {
		case opStart:
			ep.start(o.req)
		case opAbort:
			if !o.req.over.Load() {
				o.req.call.Abort(ep.now)
			}
		case opReply:
			ep.respond(o)
		case opFunc:
			o.fn()
		}
	}
	n := len(ops)
	clear(ops)
	ep.opSpare = ops[:0]
	return n
}

func (ep *Endpoint) clock() int64 { return int64(time.Since(ep.epoch)) }

// poll does one round of the loop and returns how much there was to do. The
// caller owns the endpoint.
func (ep *Endpoint) poll() int {
	if ep.posted {
		ep.posted, ep.fresh = false, true // the round before read it last thing
	} else if ep.idle&(ep.stride-1) == 0 {
		ep.readClock()
	}
	n := ep.runOps()
	m, err := ep.t.Poll(ep.e, ep.now, ep.tickFn)
	if ep.ticked != ep.now {
		ep.ticked = ep.now
		ep.e.Tick(ep.now)
	}
	if err == nil {
		err = ep.t.Flush(ep.e, ep.now, ep.stampFn)
	}
	if err != nil {
		ep.deviceFailed(err)
	}
	if ep.t.NeedsCare() {
		ep.carePeers()
	}
	if m > 0 && ep.now-ep.touched > int64(touchEvery) {
		ep.touched = ep.now
		ep.touchPeers()
	}
	ep.fresh = false
	if !ep.e.Idle() {
		n++ // what a callback or carePeers added is not posted yet: do not sleep on it
	}
	if n+m > 0 {
		ep.idle = 0
	} else {
		ep.idle++
	}
	return n + m
}

// idleStride is how many rounds without work share one reading of the clock,
// which costs as much as the rest of such a round; a round that finds work has
// its own. Where that many rounds take longer than strideLimit, since somebody
// polls by hand now and then, every round reads it, for the timers' sake.
const (
	idleStride  = 8
	strideLimit = 20 * time.Microsecond
)

// tick returns the time of this round, for a round that has found work.
func (ep *Endpoint) tick() int64 {
	if !ep.fresh {
		ep.now, ep.fresh = ep.clock(), true
	}
	return ep.now
}

// stamp returns the time at which a round posts what it has to.
func (ep *Endpoint) stamp() int64 {
	ep.now, ep.posted = ep.clock(), true
	return ep.now
}

// readClock sets the loop's time in a round that has found none yet.
func (ep *Endpoint) readClock() {
	was := ep.now
	ep.now, ep.fresh = ep.clock(), true
	if ep.idle == 0 {
		return
	}
	if (ep.now-was)*int64(idleStride/ep.stride) <= int64(strideLimit) {
		ep.stride = idleStride
	} else {
		ep.stride = 1
	}
}

// tryOwn makes the caller the endpoint's owner, if there is none.
func (ep *Endpoint) tryOwn() bool { return ep.owned.CompareAndSwap(false, true) }

// disown ends the ownership and lets somebody else take over.
func (ep *Endpoint) disown() {
	ep.owned.Store(false)
	ep.offer()
}

// offer tells one waiting Run and one waiting call that the endpoint has no
// owner. A token that nobody needed only makes somebody look once more.
func (ep *Endpoint) offer() {
	select {
	case ep.runHandoff <- struct{}{}:
	default:
	}
	select {
	case ep.handoff <- struct{}{}:
	default:
	}
}

// Poll does one round of the loop by hand: it executes handlers and callbacks
// and returns how many completions and submissions it found. It never blocks.
// Rounds without work share readings of the clock, so timers may be some
// microseconds late.
// While Run, or a blocking call, drives the endpoint it returns 0.
func (ep *Endpoint) Poll() int {
	if !ep.tryOwn() {
		return 0
	}
	ep.posted = false // some time ago
	n := ep.poll()
	ep.owned.Store(false)
	if ep.waiters.Load() > 0 || ep.runners.Load() > 0 {
		ep.offer()
	}
	return n
}

// Run drives the endpoint until ctx ends (nil), the endpoint is closed
// (ErrClosed) or the device fails (ErrDevice). It polls, and when nothing came
// for the time of WithSpin it sleeps on the completion channel.
func (ep *Endpoint) Run(ctx context.Context) error {
	ep.runners.Add(1)
	owner := false
	defer func() {
		ep.runners.Add(-1)
		if owner {
			ep.owned.Store(false)
		}
		ep.offer()
	}()
	for !ep.tryOwn() {
		ep.wakeUp() // a blocking call that drives the loop gives way
		select {
		case <-ep.runHandoff:
		case <-ctx.Done():
			return nil
		case <-ep.closed:
			return ErrClosed
		}
	}
	owner = true
	var stop atomic.Bool
	defer context.AfterFunc(ctx, func() {
		stop.Store(true)
		ep.wakeUp()
	})()
	for {
		ep.drive(&stop)
		switch {
		case ep.stopped():
			return ErrClosed
		case ep.failed.Load() != nil:
			return *ep.failed.Load()
		case stop.Load():
			return nil
		}
	}
}

// drive polls until stop is set, the endpoint closes or fails. The caller owns
// the endpoint.
func (ep *Endpoint) drive(stop *atomic.Bool) {
	ep.posted = false // whoever drove it did some time ago
	var idle spell
	for !stop.Load() && !ep.stopped() && ep.failed.Load() == nil {
		if ep.poll() > 0 {
			idle = spell{}
			continue
		}
		if ep.spins(&idle) {
			continue
		}
		ep.sleep(stop)
		idle = spell{}
	}
}

// spell is a time of polling without finding anything.
type spell struct {
	rounds int
	since  int64
}

// yieldEvery is how many rounds without work a loop makes before it lets other
// goroutines have the processor: they may be the ones that it waits for.
const yieldEvery = 16

// spins reports, after a round without work, whether to poll on; otherwise the
// loop should sleep.
func (ep *Endpoint) spins(idle *spell) bool {
	if idle.rounds++; idle.rounds == 1 {
		idle.since = ep.now
	}
	if ep.opt.spin >= 0 && ep.now-idle.since >= int64(ep.opt.spin) && !ep.attentive() {
		return false
	}
	if idle.rounds%yieldEvery == 0 {
		runtime.Gosched()
	}
	return true
}

// attention is how long before a paced request's turn, and after a request that
// congestion control measures, a loop does not go to sleep: timers of the
// operating system come up to a millisecond late, and what a wake-up takes cannot
// be told from the network.
const attention = time.Millisecond

func (ep *Endpoint) attentive() bool {
	if ep.opt.congestion == nil {
		return false
	}
	at, ok := ep.e.NextTurn()
	return ok && at-ep.now < int64(attention) || ep.now-ep.e.Measured() < int64(attention)
}

func (ep *Endpoint) stopped() bool { return ep.stop.Load() }

// touchEvery is how often the session manager is told which peers were heard,
// so that it need not ping them.
const touchEvery = 40 * time.Millisecond

// collectEvery is how often a loop that goes to sleep lets its pools give
// memory back.
const collectEvery = time.Second

// sleep parks the owner until a completion, a submission, a timer or a wake-up.
// Arming does not tell of completions that are there already, and a submission
// may have come before asleep was set: so both are looked at once more.
func (ep *Endpoint) sleep(stop *atomic.Bool) {
	if ep.now-ep.collected > int64(collectEvery) {
		ep.collected = ep.now
		ep.mem.collect()
	}
	ep.asleep.Store(true)
	ep.idle = 0 // the time that passes is to be seen
	defer func() {
		ep.asleep.Store(false)
		ep.idle = 0
	}()
	if err := ep.t.Arm(); err != nil {
		ep.deviceFailed(err)
		return
	}
	if ep.poll() > 0 || stop.Load() || ep.stopped() || ep.t.Unarmed() {
		return
	}
	var due <-chan time.Time
	if when, ok := ep.e.NextTimer(); ok {
		ep.timer.Reset(time.Duration(max(when-ep.clock(), 0)))
		due = ep.timer.C
	}
	select {
	case <-ep.wake:
	case <-due:
	}
	ep.timer.Stop()
	ep.posted = false
}

// watch turns completion events into wake-ups. It is the endpoint's one
// goroutine.
func (ep *Endpoint) watch(ctx context.Context) {
	defer close(ep.watched)
	for {
		if _, err := ep.t.Channel().Wait(ctx); err != nil {
			if ctx.Err() == nil {
				ep.submit(op{kind: opFunc, fn: func() { ep.deviceFailed(err) }})
				ep.wakeUp()
			}
			return
		}
		ep.wakeUp()
	}
}

// deviceFailed ends all sessions: nothing can be sent or received any more.
func (ep *Endpoint) deviceFailed(err error) {
	if ep.failed.Load() != nil {
		return
	}
	err = fmt.Errorf("%w: %w", ErrDevice, err)
	ep.failed.Store(&err)
	ep.log.Error("rpc: device failed", "endpoint", ep.id, "error", err)
	ep.failAll(err)
	ep.t.EndOffers(ep.e)
	ep.e.Flushed() // ends what waited for its datagrams to be posted
}

// deadlockAfter is how long a blocking call waits before it looks whether it
// holds up the loop itself.
const deadlockAfter = 50 * time.Millisecond

// wait blocks until over is set, which done tells, or ctx ends. While nobody
// drives the endpoint, the caller does.
func (ep *Endpoint) wait(ctx context.Context, done <-chan struct{}, over *atomic.Bool) error {
	ep.waiters.Add(1)
	defer ep.waiters.Add(-1)
	for {
		if ep.runners.Load() == 0 && !over.Load() && !ep.stopped() && ep.tryOwn() {
			ep.driveFor(ctx, over)
			ep.disown()
		}
		if over.Load() {
			if cap(done) == 1 { // pooled: the token must not stay
				<-done
			}
			return nil
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := ep.failed.Load(); err != nil && ep.runners.Load() == 0 {
			return *err
		}
		if ended, err := ep.park(ctx, done, over); ended {
			return err
		}
	}
}

// looks are timers of park, stopped.
var looks = sync.Pool{New: func() any {
	t := time.NewTimer(time.Hour)
	t.Stop()
	return t
}}

// park waits for what may let a blocking call go on. It reports true if the
// call has ended.
func (ep *Endpoint) park(ctx context.Context, done <-chan struct{}, over *atomic.Bool) (ended bool, err error) {
	look := looks.Get().(*time.Timer)
	look.Reset(deadlockAfter)
	defer func() {
		look.Stop()
		looks.Put(look)
	}()
	for {
		select {
		case <-done:
			return true, nil
		case <-ctx.Done():
			return true, ctx.Err()
		case <-ep.handoff:
			return false, nil
		case <-ep.closed:
			// Everything under way has ended before closed was closed.
			if over.Load() {
				return false, nil
			}
			return true, ErrClosed
		case <-look.C:
			if onLoop() {
				return true, ErrDeadlock
			}
		}
	}
}

// driveFor drives the loop on behalf of a blocking call until over is set, ctx
// ends, or somebody calls Run.
func (ep *Endpoint) driveFor(ctx context.Context, over *atomic.Bool) {
	if ep.failed.Load() != nil {
		ep.settle()
		return
	}
	ep.posted = false
	var idle spell
	for !over.Load() && ctx.Err() == nil && ep.runners.Load() == 0 && !ep.stopped() && ep.failed.Load() == nil {
		if ep.poll() > 0 {
			idle = spell{}
			continue
		}
		if ep.spins(&idle) {
			continue
		}
		if over.Load() || ep.runners.Load() != 0 {
			return
		}
		ep.sleepFor(ctx)
		idle = spell{}
	}
}

// sleepFor sleeps until there is something to do or ctx ends.
func (ep *Endpoint) sleepFor(ctx context.Context) {
	stop := new(atomic.Bool)
	if ctx.Done() != nil {
		defer context.AfterFunc(ctx, func() {
			stop.Store(true)
			ep.wakeUp()
		})()
	}
	ep.sleep(stop)
}

// settle does what was submitted after the device failed: all of it ends at
// once. The caller owns the endpoint.
func (ep *Endpoint) settle() {
	ep.now = ep.clock()
	ep.runOps()
	if ep.t != nil {
		ep.t.EndOffers(ep.e)
	}
	ep.e.Flushed()
}

// onLoop reports whether the caller runs inside the loop: in a handler or
// callback. A coroutine has a stack of its own.
func onLoop() bool {
	var pcs [128]uintptr
	frames := runtime.CallersFrames(pcs[:runtime.Callers(2, pcs[:])])
	for {
		f, more := frames.Next()
		if strings.HasSuffix(f.Function, ".(*Endpoint).poll") || strings.HasSuffix(f.Function, ".(*coroutine).body") {
			return true
		}
		if !more {
			return false
		}
	}
}
