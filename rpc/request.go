package rpc

import (
	"context"
	"errors"
	"sync/atomic"

	"github.com/rrppcc-go/rrppcc/msgbuf"
	"github.com/rrppcc-go/rrppcc/rpc/internal/engine"
)

// Request is a request under way. Its buffers belong to the endpoint until it
// is done; then the response is in the response buffer, whose length is set.
type Request struct {
	call engine.Call
	sess *Session
	done chan struct{}  // closed (Go), or sent to (Call), when done
	over atomic.Bool    // done
	err  error          // written before over
	fn   func(*Request) // Enqueue's or GoFunc's
	job  job            // GoFunc's
	tag  uint64

	aborted bool  // by Wait: an abort may still be in the submission queue
	lane    int16 // by which the request of the handler came that waits for it, or notNested
}

// Done is closed when the request is done.
func (r *Request) Done() <-chan struct{} { return r.done }

// Err returns how the request ended: nil for a response, and also while it is
// not done.
func (r *Request) Err() error {
	if !r.over.Load() {
		return nil
	}
	return r.err
}

// Type returns the request type.
func (r *Request) Type() uint8 { return r.call.Type }

// Tag returns what was given to Enqueue.
func (r *Request) Tag() uint64 { return r.tag }

// Req returns the request buffer.
func (r *Request) Req() msgbuf.Buf { return r.call.Req }

// Resp returns the response buffer.
func (r *Request) Resp() msgbuf.Buf { return r.call.Resp }

// Large reports, once the request is done, whether request and response went by
// RDMA READ over the RC queue pair (true) or in UD datagrams (false).
func (r *Request) Large() (request, response bool) { return r.call.ReqLarge, r.call.RespLarge }

// Wait blocks until the request is done and returns how it ended. When ctx ends
// first the request is aborted, and Wait returns ctx's error once the buffers
// are the caller's again, which takes about a round trip.
//
// If nobody runs the endpoint's loop, Wait does.
func (r *Request) Wait(ctx context.Context) error {
	err := r.sess.ep.wait(ctx, r.done, &r.over)
	if err == nil {
		return r.err
	}
	if errors.Is(err, ErrDeadlock) || errors.Is(err, ErrClosed) {
		return err
	}
	r.aborted = true
	r.Abort()
	if werr := r.sess.ep.wait(context.Background(), r.done, &r.over); werr != nil {
		return werr
	}
	if r.err == nil {
		return nil
	}
	return err
}

// Abort gives the request up: it ends with ErrAborted as soon as no NIC can
// touch its buffers any more. A request that is done is left alone. The server
// may or may not have executed it.
func (r *Request) Abort() {
	r.sess.ep.submit(op{kind: opAbort, req: r})
}

// finished is the engine's callback.
func finished(c *engine.Call) {
	r := c.User.(*Request)
	r.err = publicError(c.Err)
	if r.fn != nil {
		ep := r.sess.ep
		r.over.Store(true)
		if r.job.run != nil {
			ep.workers.start(&r.job)
			return
		}
		r.fn(r)
		ep.recycle(r)
		return
	}
	// After this r may be somebody else's, if it is pooled.
	done, pooled := r.done, cap(r.done) == 1
	r.over.Store(true)
	if pooled {
		done <- struct{}{}
	} else {
		close(done)
	}
}
