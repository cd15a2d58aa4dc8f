package rpc

import (
	"errors"
	"fmt"
	"sync/atomic"

	"github.com/rrppcc-go/rrppcc/msgbuf"
	"github.com/rrppcc-go/rrppcc/rpc/internal/engine"
)

// HandleBackground binds fn to a request type, to run on a goroutine of its own:
// it may block, and may call. What it returns is the reply. nil unbinds it. As
// Handle, it belongs to the driving goroutine, or to any before the endpoint is
// driven.
//
// Background handlers run at the same time, as many as requests are under way:
// at most the sum of the windows of all sessions. A handler that wants fewer
// uses a semaphore, which it must not hold over nested calls.
//
// A nested call takes a slot of its session's window for as long as it takes, and
// a chain of calls that comes along one session again and again needs a slot each
// time. Nested calls of h.Call, h.Begin and h.Enqueue cannot end up waiting for
// each other for ever: where they find no slot free, the session gets a lane, a
// second session that nobody sees, to the same endpoint (WithNesting). Calls that
// a handler makes by other means, such as Session.Call, wait in the backlog, and
// where all slots are taken by chains that need one more, until the deadline of one
// of them.
func (ep *Endpoint) HandleBackground(reqType uint8, fn Handler) {
	if fn == nil {
		ep.e.Handle(reqType, nil)
		return
	}
	ep.e.Handle(reqType, func(eh *engine.Handle) (msgbuf.Buf, error) {
		h := ep.handleOf(eh, background)
		if h.work == nil {
			h.work = func() { ep.workers.serve(&h.job) }
			h.run = h.answer
		}
		h.fn = fn
		ep.deferred(h)
		buf, err := eh.Defer()
		ep.workers.start(&h.job)
		return buf, err
	})
}

// job is what a worker does: a request to answer, or to go on with.
type job struct {
	run  func() // does it
	work func() // does it, and then others
}

// workers are the goroutines of background handlers and of Session.GoFunc.
type workers struct {
	keep    int32     // how many may wait for work
	jobs    chan *job // unbuffered: taken by who waits for work, at once
	over    bool      // of the loop: jobs is closed
	waiting atomic.Int32
	busy    atomic.Int32
	closing atomic.Bool
	idle    chan struct{} // one token: busy may be 0 while closing
}

func (w *workers) init(keep int) {
	w.keep = int32(keep)
	w.jobs = make(chan *job)
	w.idle = make(chan struct{}, 1)
}

// start gives j to a worker, or makes one. The caller is the loop.
func (w *workers) start(j *job) {
	w.busy.Add(1)
	if w.over {
		go j.work()
		return
	}
	select {
	case w.jobs <- j:
	default:
		go j.work()
	}
}

// end lets the workers that wait go.
func (w *workers) end() {
	w.over = true
	close(w.jobs)
}

// serve is a worker: it does j, and then waits for more unless enough others do.
func (w *workers) serve(j *job) {
	for ok := true; ok; {
		j.run()
		if w.waiting.Add(1) > w.keep {
			w.waiting.Add(-1)
			return
		}
		j, ok = <-w.jobs
		w.waiting.Add(-1)
	}
}

func (w *workers) done() {
	if w.busy.Add(-1) == 0 && w.closing.Load() {
		select {
		case w.idle <- struct{}{}:
		default:
		}
	}
}

// drain waits until no handler runs, or stop is closed. It reports how many do.
func (w *workers) drain(stop <-chan struct{}) int {
	w.closing.Store(true)
	for w.busy.Load() > 0 {
		select {
		case <-w.idle:
		case <-stop:
			return int(w.busy.Load())
		}
	}
	return 0
}

// errGoexit is for handlers that end their goroutine, like FailNow in a test.
var errGoexit = errors.New("the handler ended its goroutine")

// answer runs the handler of a background request.
func (h *RequestHandle) answer() {
	var buf msgbuf.Buf
	err := errGoexit
	defer func() {
		if v := recover(); v != nil {
			h.ep.panicked(h.Type(), v)
			buf, err = msgbuf.Buf{}, &HandlerError{Message: fmt.Sprint(v), Panic: true}
		}
		ep := h.ep
		h.answered(buf, err)
		ep.workers.done()
	}()
	buf, err = h.fn(h)
}

// answered replies with what the handler returned. If it deferred, h is
// somebody else's by now.
func (h *RequestHandle) answered(buf msgbuf.Buf, err error) {
	if err == engine.ErrDeferred {
		return
	}
	if buf == h.own {
		h.own = msgbuf.Buf{}
	}
	h.freeOwn()
	if !h.h.Take() { // it replied by itself, although it did not defer
		if buf.Valid() {
			buf.Free()
		}
		return
	}
	h.ep.reply(op{kind: opReply, handle: h.h, buf: buf, err: err, reuse: true})
}
