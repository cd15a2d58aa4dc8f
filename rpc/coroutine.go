package rpc

import (
	"fmt"
	"iter"

	"github.com/rrppcc-go/rrppcc/msgbuf"
	"github.com/rrppcc-go/rrppcc/rpc/internal/engine"
)

// HandleCoroutine binds fn to a request type, to run on the loop as with Handle,
// and so never at the same time as another of the endpoint's handlers; but it
// may wait for nested calls: h.Call and Pending.Wait suspend it, and the loop
// goes on with other work until the response is there. It must not block in any
// other way. nil unbinds it.
//
// Being able to wait costs a switch of stacks at the start and at each wait,
// a fraction of a microsecond, and no goroutine switch, lock or allocation. What
// HandleBackground says of windows holds here too.
//
// A goroutine that drives the endpoint must not come and go between being locked
// to its thread and not (runtime.LockOSThread): coroutines cannot move then.
func (ep *Endpoint) HandleCoroutine(reqType uint8, fn Handler) {
	if fn == nil {
		ep.e.Handle(reqType, nil)
		return
	}
	ep.e.Handle(reqType, func(eh *engine.Handle) (msgbuf.Buf, error) {
		h := ep.handleOf(eh, suspendable)
		c := ep.coroutine()
		c.h, c.fn, h.co = h, fn, c
		c.step()
		if !c.over {
			ep.deferred(h)
			return eh.Defer()
		}
		buf, err := c.retire()
		if err == engine.ErrDeferred {
			ep.deferred(h)
			return eh.Defer()
		}
		return buf, err
	})
}

// coroutine runs handlers, one after the other, on a stack of its own within
// the loop's goroutine.
type coroutine struct {
	ep    *Endpoint
	next  func() (struct{}, bool) // lets it run until it yields
	stop  func()
	yield func(struct{}) bool // back to the loop; false: stop

	h    *RequestHandle
	fn   Handler
	buf  msgbuf.Buf // what fn returned
	err  error
	over bool // fn has returned

	calls     []nested // of h
	waits     int      // index in calls of what it waits for
	suspended bool
	done      func(*Request) // callback of all nested calls
}

// nested is a nested call.
type nested struct {
	over bool
	err  error
}

// coroutine returns one that has nothing to do.
func (ep *Endpoint) coroutine() *coroutine {
	if n := len(ep.resting); n > 0 {
		c := ep.resting[n-1]
		ep.resting = ep.resting[:n-1]
		return c
	}
	c := &coroutine{ep: ep}
	c.done = c.callDone
	c.next, c.stop = iter.Pull(c.body)
	return c
}

// body is what the coroutine does in its life.
func (c *coroutine) body(yield func(struct{}) bool) {
	c.yield = yield
	for more := true; more; more = yield(struct{}{}) {
		c.run()
		c.over = true
	}
}

func (c *coroutine) run() {
	defer func() {
		if v := recover(); v != nil {
			c.ep.panicked(c.h.Type(), v)
			c.buf, c.err = msgbuf.Buf{}, &HandlerError{Message: fmt.Sprint(v), Panic: true}
		}
	}()
	c.buf, c.err = c.fn(c.h)
}

// step lets the handler run until it waits or returns.
func (c *coroutine) step() {
	c.suspended = false
	c.next()
}

// retire returns what the handler has returned, and makes c free for the next.
// Nested calls that the handler did not wait for end by themselves: their
// callbacks must not meet another request, so c is used again only without any.
func (c *coroutine) retire() (msgbuf.Buf, error) {
	buf, err := c.buf, c.err
	c.h.co = nil
	c.h, c.fn, c.buf, c.err, c.over = nil, nil, msgbuf.Buf{}, nil, false
	for i := range c.calls {
		if !c.calls[i].over {
			c.waits = -1 // nobody waits: the last one to end puts c to rest
			return buf, err
		}
	}
	c.rest()
	return buf, err
}

func (c *coroutine) rest() {
	c.calls, c.waits = c.calls[:0], 0
	c.ep.resting = append(c.ep.resting, c)
}

// callDone is the callback of a nested call.
func (c *coroutine) callDone(r *Request) {
	i := int(r.Tag())
	c.calls[i] = nested{over: true, err: r.Err()}
	switch {
	case c.suspended && c.waits == i:
		c.resume()
	case c.waits == -1:
		for i := range c.calls {
			if !c.calls[i].over {
				return
			}
		}
		c.rest()
	}
}

// resume goes on with a handler that was suspended, and answers its request if
// it returns.
func (c *coroutine) resume() {
	c.step()
	if !c.over {
		return
	}
	ep, h := c.ep, c.h
	buf, err := c.retire()
	switch {
	case err == engine.ErrDeferred:
	case !h.h.Take(): // it replied by itself, although it did not defer
		h.h.Discard(buf)
	default:
		ep.respond(&op{handle: h.h, buf: buf, err: err, reuse: true})
	}
}

// Pending is a nested call that a handler has begun. It is valid until its Wait
// returns.
type Pending struct {
	c   *coroutine
	i   int
	r   *Request
	h   *RequestHandle
	err error
}

// Begin sends a nested request, like Session.Go, from a handler that may wait:
// one bound with HandleBackground or HandleCoroutine. Until Wait has returned
// the buffers belong to the endpoint.
func (h *RequestHandle) Begin(s *Session, reqType uint8, req, resp msgbuf.Buf) Pending {
	switch {
	case h.style == background:
		return Pending{h: h, r: s.send(reqType, req, resp, h.nesting())}
	case h.style != suspendable || h.co == nil || s.ep != h.ep:
		return Pending{err: ErrCannotWait}
	}
	c := h.co
	i := len(c.calls)
	c.calls = append(c.calls, nested{})
	s.enqueue(reqType, req, resp, uint64(i), c.done, h.nesting())
	return Pending{c: c, i: i}
}

// Wait waits for the response, without holding up the loop, and returns how the
// request ended.
func (p Pending) Wait() error {
	switch {
	case p.err != nil:
		return p.err
	case p.r != nil:
		return p.r.Wait(p.h.ep.life)
	}
	c := p.c
	for !c.calls[p.i].over {
		c.waits, c.suspended = p.i, true
		c.yield(struct{}{})
	}
	err := c.calls[p.i].err
	if p.i == len(c.calls)-1 {
		c.calls = c.calls[:p.i]
	}
	return err
}

// Call sends a nested request and waits for the response, from a handler that
// may wait: one bound with HandleBackground, which blocks, or with
// HandleCoroutine, which is suspended. Buffers are as for Session.Call. The
// deadline is that of WithRequestTimeout. When Close of the endpoint begins, the
// request is given up.
func (h *RequestHandle) Call(s *Session, reqType uint8, req, resp msgbuf.Buf) error {
	if h.style == background {
		return s.call(h.ep.life, reqType, req, resp, h.nesting())
	}
	return h.Begin(s, reqType, req, resp).Wait()
}
