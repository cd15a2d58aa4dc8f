package rpc

import (
	"context"

	"github.com/rrppcc-go/rrppcc/msgbuf"
	"github.com/rrppcc-go/rrppcc/rpc/internal/engine"
)

// Handler answers requests of one type. It returns the response, a buffer that
// the endpoint then owns and frees (the zero Buf is an empty response), or an
// error, which the caller gets as a *HandlerError, or h.Defer().
//
// How it is bound says where it runs, and how it may wait: with Handle on the
// loop, where it must not block; with HandleCoroutine on the loop, where it may
// wait for nested calls; with HandleBackground on a goroutine of its own, where
// it may do anything.
type Handler func(h *RequestHandle) (msgbuf.Buf, error)

// style is how a request's handler runs.
type style uint8

const (
	inline style = iota
	background
	suspendable
)

// RequestHandle is a request at the server. It is valid until the handler
// returns; after Defer, until Reply or Fail.
type RequestHandle struct {
	h     *engine.Handle
	ep    *Endpoint
	style style
	out   bool // of the loop: somebody has it who will reply later

	co *coroutine // of a suspendable handler

	// Of a background handler.
	job
	fn  Handler
	own msgbuf.Buf // what Response gave
}

// Type returns the request type.
func (h *RequestHandle) Type() uint8 { return h.h.Type() }

// Bytes returns the request, in place: a small one in the receive ring, others
// where they were put together or pulled to. It must not be written to, nor used after the
// reply.
func (h *RequestHandle) Bytes() []byte { return h.h.Data() }

// Buf returns the buffer that a large request was pulled to: where its bytes are not
// mapped (PlaceRequests), it tells where they are. It is the endpoint's, and valid
// until the handler returns, and after Defer until the reply or Release. For a
// request that came in datagrams it is the zero Buf.
func (h *RequestHandle) Buf() msgbuf.Buf { return h.h.Buf() }

// Large reports whether the request was pulled by RDMA READ.
func (h *RequestHandle) Large() bool { return h.h.Large() }

// Endpoint returns the endpoint that the request came to.
func (h *RequestHandle) Endpoint() *Endpoint { return h.ep }

// Context returns a context that ends when Close of the endpoint begins, for
// what a background handler waits for.
func (h *RequestHandle) Context() context.Context { return h.ep.life }

// Session returns the server's end of the session.
func (h *RequestHandle) Session() *Session {
	s, _ := h.h.Session().User.(*Session)
	if s != nil && s.main != nil {
		return s.main // nobody knows lanes
	}
	return s
}

// nesting is the lane of the handler's nested calls: the one that its own
// request came by.
func (h *RequestHandle) nesting() int16 {
	if s, ok := h.h.Session().User.(*Session); ok {
		return int16(s.lane)
	}
	return notNested
}

// Enqueue is Session.Enqueue, on a session of the same endpoint, for a nested
// request, from the handler itself or from the callback of another: a handler that
// defers its answer until nested requests have ended. Unlike Session.Enqueue, it cannot end in a deadlock with
// other handlers that wait; see HandleBackground.
func (h *RequestHandle) Enqueue(s *Session, reqType uint8, req, resp msgbuf.Buf, tag uint64, fn func(*Request)) {
	s.enqueue(reqType, req, resp, tag, fn, h.nesting())
}

// Response returns a buffer of n bytes for the response: for small ones the
// same preallocated one again and again, at no cost. It belongs to the handler
// until it is returned; ask once per request. Only the handler itself may call
// it, before it returns; elsewhere use Endpoint.Alloc.
//
// In a background handler it is Endpoint.Alloc, and the endpoint frees the
// buffer if the handler does not return it.
func (h *RequestHandle) Response(n int) (msgbuf.Buf, error) {
	if h.style != background {
		return h.h.Response(n)
	}
	h.freeOwn()
	buf, err := h.ep.Alloc(n)
	h.own = buf
	return buf, err
}

func (h *RequestHandle) freeOwn() {
	if h.own.Valid() {
		h.own.Free()
	}
	h.own = msgbuf.Buf{}
}

// Defer lets the handler return without an answer: return h.Defer(). Then Reply
// or Fail must be called, once, by any goroutine. Until then the request stays
// in its receive buffer, and its slot of the session's window is taken.
func (h *RequestHandle) Defer() (msgbuf.Buf, error) {
	if h.style != inline {
		return msgbuf.Buf{}, engine.ErrDeferred // the engine knows
	}
	return h.h.Defer()
}

// Release gives a deferred request's memory back before its reply: the receive
// buffer of a small one, or the memory of a longer one. Bytes must not be
// used any more, nor slices of it. Any goroutine may call it that may call Reply,
// and before that.
func (h *RequestHandle) Release() {
	eh, ep := h.h, h.ep
	ep.submit(op{kind: opFunc, fn: func() { ep.e.Release(eh) }})
}

// Reply answers a deferred request; the endpoint owns resp from now on. If the
// session is gone, resp is freed and nobody hears. It panics if the request was
// replied to before.
func (h *RequestHandle) Reply(resp msgbuf.Buf) { h.finish(resp, nil) }

// Fail answers a deferred request with an error, which the caller gets as a
// *HandlerError. It panics if the request was replied to before.
func (h *RequestHandle) Fail(err error) {
	if err == nil {
		err = &HandlerError{Message: "unspecified error"}
	}
	h.finish(msgbuf.Buf{}, err)
}

func (h *RequestHandle) finish(resp msgbuf.Buf, err error) {
	if !h.h.Take() {
		panic(engine.ErrDoubleReply)
	}
	h.ep.reply(op{kind: opReply, handle: h.h, buf: resp, err: err})
}

// reply has the loop, or what Close has left of it, answer a request.
func (ep *Endpoint) reply(o op) {
	if ep.submit(o) {
		return
	}
	ep.lateMu.Lock()
	defer ep.lateMu.Unlock()
	if !ep.over { // Close is at work
		ep.late = append(ep.late, o)
		return
	}
	ep.respond(&o)
	ep.settleLate()
}

// respond executes an opReply. It runs in the loop.
func (ep *Endpoint) respond(o *op) {
	if h, ok := o.handle.User.(*RequestHandle); ok && h.out {
		h.out = false
		ep.out--
	}
	ep.e.Respond(ep.now, o.handle, o.buf, o.err)
	if o.reuse {
		o.handle.Reuse()
	}
}

// settleLate frees, after Close, what replies have let go. The caller holds
// lateMu.
func (ep *Endpoint) settleLate() {
	ep.e.Flushed()
	if ep.out == 0 {
		ep.ring.Free()
		ep.ring = msgbuf.Buf{}
		ep.release() // as far as it goes: users may have buffers, or have closed the context
	}
}

// handleOf returns the RequestHandle of eh, for a handler of a style. It stays
// with the engine's Handle, so it costs nothing per request.
func (ep *Endpoint) handleOf(eh *engine.Handle, st style) *RequestHandle {
	h, ok := eh.User.(*RequestHandle)
	if !ok {
		h = &RequestHandle{h: eh, ep: ep}
		eh.User = h
	}
	h.style = st
	return h
}

// deferred notes that h is answered later.
func (ep *Endpoint) deferred(h *RequestHandle) {
	h.out = true
	ep.out++
}

// adapt makes an engine handler of fn, for the loop.
func (ep *Endpoint) adapt(fn Handler) engine.Handler {
	return func(eh *engine.Handle) (msgbuf.Buf, error) {
		h := ep.handleOf(eh, inline)
		buf, err := fn(h)
		if err == engine.ErrDeferred {
			ep.deferred(h)
		}
		return buf, err
	}
}
