package engine

import (
	"errors"
	"sync/atomic"

	"github.com/rrppcc-go/rrppcc/msgbuf"
)

// Handler answers a request, on the owner's goroutine. It returns the response,
// which the engine then owns (the zero Buf is an empty response); or an error,
// which the caller gets as a *HandlerError; or h.Defer().
type Handler func(h *Handle) (msgbuf.Buf, error)

// ErrDeferred is what Defer makes a handler return.
var ErrDeferred = errors.New("rpc: reply deferred")

// Handle is a request at the server. It is valid until the handler returns, or
// after Defer until Respond.
type Handle struct {
	sl      *serverSlot
	data    []byte
	over    bool        // the handler's return was the reply
	replied atomic.Bool // a Handle that was replied to by Take is not used again

	// User is the owner's. It stays with the Handle, which serves many
	// requests.
	User any
}

// Type returns the request type.
func (h *Handle) Type() uint8 { return h.sl.typ }

// Session returns the server's end of the session.
func (h *Handle) Session() *Session { return h.sl.s }

// Data returns the request, in place: in the receive ring, or where it was put
// together or pulled to.
func (h *Handle) Data() []byte { return h.data }

// Buf returns the buffer that a large request was pulled to, which is the
// engine's; the zero Buf if it came otherwise, or was released.
func (h *Handle) Buf() msgbuf.Buf {
	if h.sl.handle != h {
		return msgbuf.Buf{}
	}
	return h.sl.req
}

// Large reports whether the request was pulled by RDMA READ.
func (h *Handle) Large() bool { return h.sl.large }

// Response returns a buffer of n bytes for the response. Small ones are the
// slot's own, used again and again: do not free them, and ask once per request,
// because a second call takes back what the first one gave. One of more than a
// datagram is the handler's until it returns it. Response must be called from the handler.
func (h *Handle) Response(n int) (msgbuf.Buf, error) {
	sl := h.sl
	e := sl.s.e
	if n > sl.s.maxSmall {
		if n <= sl.s.maxUD {
			return e.cfg.Small.Alloc(n)
		}
		return e.cfg.Large.Alloc(n)
	}
	if sl.cache.Valid() && sl.cache.Cap() < n {
		sl.dropCache()
	}
	if !sl.cache.Valid() {
		buf, err := e.cfg.Small.Alloc(n)
		if err != nil {
			return msgbuf.Buf{}, err
		}
		sl.cache = buf
	}
	return sl.cache, sl.cache.SetLen(n)
}

// Defer lets the handler return without an answer: it returns h.Defer(), and
// somebody calls Respond later.
func (h *Handle) Defer() (msgbuf.Buf, error) {
	if h.sl.spare == h {
		h.sl.spare = nil // whoever keeps h must not take it for a later request's
	}
	return msgbuf.Buf{}, ErrDeferred
}

// Take claims the right to reply, once. After Defer it may be called by any
// goroutine.
func (h *Handle) Take() bool { return !h.over && !h.replied.Swap(true) }

// Reuse lets a deferred Handle that was responded to serve its slot's next
// request. Nobody else may have kept it.
func (h *Handle) Reuse() {
	if h.sl.spare == nil && h.sl.handle != h {
		h.replied.Store(false)
		h.sl.spare = h
	}
}

// Discard frees buf, which Response may have given, instead of sending it.
func (h *Handle) Discard(buf msgbuf.Buf) { h.sl.discard(buf) }

// taken claims the reply for the handler's return, and reports true if Take
// came first. A request that was not deferred is known to this goroutine alone,
// and two locked instructions are saved.
func (h *Handle) taken() bool {
	if h.sl.spare != h || h.replied.Load() {
		return h.replied.Swap(true)
	}
	h.over = true
	return false
}

// Release frees a deferred request's memory ahead of the reply. Its Data must
// not be used any more. A request that was answered is left alone.
func (e *Engine) Release(h *Handle) {
	if h.sl.handle == h && h.sl.state == serverHandling {
		h.data = nil
		h.sl.releaseRequest()
	}
}

// Respond answers a deferred request whose reply was claimed with Take. If the
// request was answered before, Respond only frees buf.
func (e *Engine) Respond(now int64, h *Handle, buf msgbuf.Buf, err error) {
	e.now = now
	if h.sl.handle != h {
		h.sl.discard(buf)
		return
	}
	h.data = nil
	h.sl.respond(buf, err)
}
