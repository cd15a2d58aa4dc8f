package rpc

import (
	"github.com/rrppcc-go/rrppcc/msgbuf"
	"github.com/rrppcc-go/rrppcc/rpc/internal/engine"
)

// Handler answers requests of one type. It runs on the goroutine that drives
// the endpoint, so it must not block: what takes long is deferred.
//
// It returns the response, a buffer that the endpoint then owns and frees (the
// zero Buf is an empty response), or an error, which the caller gets as a
// *HandlerError, or h.Defer().
type Handler func(h *RequestHandle) (msgbuf.Buf, error)

// RequestHandle is a request at the server. It is valid until the handler
// returns; after Defer, until Reply or Fail.
type RequestHandle struct {
	h  *engine.Handle
	ep *Endpoint
}

// Type returns the request type.
func (h *RequestHandle) Type() uint8 { return h.h.Type() }

// Bytes returns the request, in place: a small one in the receive ring, a large
// one where it was pulled to. It must not be written to, nor used after the
// reply.
func (h *RequestHandle) Bytes() []byte { return h.h.Data() }

// Large reports whether the request was pulled by RDMA READ.
func (h *RequestHandle) Large() bool { return h.h.Large() }

// Endpoint returns the endpoint that the request came to.
func (h *RequestHandle) Endpoint() *Endpoint { return h.ep }

// Session returns the server's end of the session.
func (h *RequestHandle) Session() *Session {
	s, _ := h.h.Session().User.(*Session)
	return s
}

// Response returns a buffer of n bytes for the response: for small ones the
// same preallocated one again and again, at no cost. It belongs to the handler
// until it is returned. Only the handler itself may call it, before it returns;
// elsewhere use Endpoint.Alloc.
func (h *RequestHandle) Response(n int) (msgbuf.Buf, error) { return h.h.Response(n) }

// Defer lets the handler return without an answer: return h.Defer(). Then Reply
// or Fail must be called, once, by any goroutine. Until then the request stays
// in its receive buffer, and its slot of the session's window is taken.
func (h *RequestHandle) Defer() (msgbuf.Buf, error) { return h.h.Defer() }

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
	if !h.ep.submit(op{kind: opReply, handle: h.h, buf: resp, err: err}) {
		resp.Free()
	}
}

// adapt makes an engine handler of fn. The RequestHandle stays with the
// engine's Handle, so it costs nothing per request.
func (ep *Endpoint) adapt(fn Handler) engine.Handler {
	return func(eh *engine.Handle) (msgbuf.Buf, error) {
		h, ok := eh.User.(*RequestHandle)
		if !ok {
			h = &RequestHandle{h: eh, ep: ep}
			eh.User = h
		}
		return fn(h)
	}
}
