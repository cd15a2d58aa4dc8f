package rpc

import (
	"context"
	"sync"
	"sync/atomic"
	"time"

	"github.com/rrppcc-go/rrppcc/msgbuf"
	"github.com/rrppcc-go/rrppcc/nexus"
	"github.com/rrppcc-go/rrppcc/rpc/internal/engine"
)

// Session is a connection to a remote endpoint. The client's end sends
// requests; the server's end, which a handler sees, only tells where they come
// from. Methods may be called from any goroutine, except Enqueue.
type Session struct {
	ep     *Endpoint
	es     *engine.Session
	pair   *pair
	up     bool // of the loop: connected once; until then es, pair and conn are Connect's
	conn   *nexus.Conn
	remote string // URI of the remote process
	id     uint16 // remote endpoint; 0 at the server's end

	threshold atomic.Int64 // bytes, once it is up

	passive bool // what brings it up must not drive the loop
	credits int  // of our ring

	lane     uint8       // 0 for a session that users know; see nesting
	main     *Session    // whose lane it is
	lanes    *lanes      // of a main session; the loop's
	lastUsed int64       // of a lane; the loop's
	laned    atomic.Bool // there are lanes, or were

	// Of Open; nil otherwise.
	opening chan struct{} // closed when the session is up, or has ended without
	opened  atomic.Bool   // opening is closed
	cancel  context.CancelCauseFunc

	creditsFree bool   // under Endpoint.mu
	heard       uint64 // of es.Received, when the peer was touched last; the loop's

	closeOnce sync.Once
	closeErr  error
	ended     chan struct{} // closed when the session has ended
	endOnce   sync.Once
	err       error // why, valid once ended is closed
}

// requests are reused by Call.
var requests = sync.Pool{New: func() any { return &Request{done: make(chan struct{}, 1)} }}

// notNested is the lane of a request that no handler waits for.
const notNested = -1

func (r *Request) prepare(s *Session, reqType uint8, req, resp msgbuf.Buf, deadline int64) {
	r.sess, r.err, r.lane = s, nil, notNested
	r.over.Store(false)
	r.call = engine.Call{Type: reqType, Req: req, Resp: resp, Deadline: deadline, Fn: finished, User: r}
}

// deadline is the request deadline on the loop's clock.
func (ep *Endpoint) deadline(ctx context.Context) int64 {
	now := ep.clock()
	d := now + int64(ep.opt.timeout)
	if t, ok := ctx.Deadline(); ok {
		d = int64(t.Sub(ep.epoch))
	}
	return max(d, 1)
}

// Call sends a request and waits for the response, whose bytes are then in
// resp, with resp's length set. req and resp may be the zero Buf for nothing.
// Both belong to the endpoint until Call returns; req may be shared by several
// requests at once, resp not.
//
// When ctx ends first, the request is given up: Call returns an error that is
// context.DeadlineExceeded or context.Canceled as soon as no NIC can touch the
// buffers any more, within about a round trip.
func (s *Session) Call(ctx context.Context, reqType uint8, req, resp msgbuf.Buf) error {
	return s.call(ctx, reqType, req, resp, notNested)
}

func (s *Session) call(ctx context.Context, reqType uint8, req, resp msgbuf.Buf, lane int16) error {
	r := requests.Get().(*Request)
	r.prepare(s, reqType, req, resp, s.ep.deadline(ctx))
	r.lane = lane
	if !s.ep.submit(op{kind: opStart, req: r}) {
		requests.Put(r)
		return ErrClosed
	}
	err := r.Wait(ctx)
	if r.over.Load() && !r.aborted {
		r.call = engine.Call{}
		r.sess = nil
		requests.Put(r)
	}
	return err
}

// Go sends a request and returns at once; the Request tells when it is done.
// Its deadline is that of WithRequestTimeout.
func (s *Session) Go(reqType uint8, req, resp msgbuf.Buf) *Request {
	return s.send(reqType, req, resp, notNested)
}

func (s *Session) send(reqType uint8, req, resp msgbuf.Buf, lane int16) *Request {
	r := &Request{done: make(chan struct{})}
	r.prepare(s, reqType, req, resp, s.ep.deadline(context.Background()))
	r.lane = lane
	if !s.ep.submit(op{kind: opStart, req: r}) {
		r.err = ErrClosed
		r.over.Store(true)
		close(r.done)
	}
	return r
}

// GoFunc is Go with a function to go on with: fn is called when the request is
// done, on one of the goroutines that also run the handlers of HandleBackground,
// where it may block in any way. Close of the endpoint waits for it as for those.
func (s *Session) GoFunc(reqType uint8, req, resp msgbuf.Buf, fn func(*Request)) *Request {
	ep := s.ep
	r := &Request{done: make(chan struct{})}
	r.prepare(s, reqType, req, resp, ep.deadline(context.Background()))
	r.fn = fn
	r.job.run = func() {
		defer ep.workers.done()
		close(r.done)
		fn(r)
	}
	r.job.work = func() { ep.workers.serve(&r.job) }
	if !ep.submit(op{kind: opStart, req: r}) {
		r.err = ErrClosed
		r.over.Store(true)
		close(r.done)
		go fn(r)
	}
	return r
}

// Enqueue sends a request from the goroutine that drives the endpoint: from a
// handler or callback, or between two Polls. fn is called by the loop when the
// request is done, with a Request that is valid until fn returns. It costs no
// allocation and no lock. fn may be called before Enqueue returns if the session
// is closed.
func (s *Session) Enqueue(reqType uint8, req, resp msgbuf.Buf, tag uint64, fn func(*Request)) {
	s.enqueue(reqType, req, resp, tag, fn, notNested)
}

func (s *Session) enqueue(reqType uint8, req, resp msgbuf.Buf, tag uint64, fn func(*Request), lane int16) {
	ep := s.ep
	var r *Request
	if n := len(ep.recycled); n > 0 {
		r = ep.recycled[n-1]
		ep.recycled = ep.recycled[:n-1]
	} else {
		r = new(Request)
	}
	now := ep.tick() // read by the first since the last round: once per burst
	r.prepare(s, reqType, req, resp, now+int64(ep.opt.timeout))
	r.fn, r.tag, r.lane = fn, tag, lane
	if s.es == nil { // just opened
		s.begin()
	}
	ep.start(r)
}

// start starts a request in the loop.
func (ep *Endpoint) start(r *Request) {
	if r.lane >= 0 {
		r.sess.startNested(r)
		return
	}
	r.sess.es.Start(ep.now, &r.call)
}

func (ep *Endpoint) recycle(r *Request) {
	r.call, r.sess, r.fn = engine.Call{}, nil, nil
	ep.recycled = append(ep.recycled, r)
}

// Endpoint returns the local endpoint.
func (s *Session) Endpoint() *Endpoint { return s.ep }

// Remote returns the URI of the remote process, and at the client's end the
// number of the remote endpoint.
func (s *Session) Remote() (uri string, id uint16) { return s.remote, s.id }

// Done is closed when the session has ended.
func (s *Session) Done() <-chan struct{} { return s.ended }

// Err returns why the session has ended, nil while it lives.
func (s *Session) Err() error {
	select {
	case <-s.ended:
		return s.err
	default:
		return nil
	}
}

// Ready waits until a session of Open is up, and returns nil; if it has ended,
// or ends before, Ready returns why. If nobody runs the endpoint's loop, Ready
// does.
func (s *Session) Ready(ctx context.Context) error {
	if s.opening != nil {
		if err := s.ep.wait(ctx, s.opening, &s.opened); err != nil {
			return err
		}
	}
	return s.Err()
}

// Close ends the session and tells the peer. Requests under way end with
// ErrSessionClosed. Close of an ended session returns nil. It must not be called
// from a handler or callback.
func (s *Session) Close() error {
	ctx, cancel := context.WithTimeout(context.Background(), closeTimeout)
	defer cancel()
	return s.close(ctx)
}

func (s *Session) close(ctx context.Context) error {
	s.closeOnce.Do(func() {
		select {
		case <-s.ended:
			return
		default:
		}
		// Nothing may be under way that touches a buffer of ours when the peer
		// is told; a peer that does not let go in time loses its access.
		if s.opening != nil {
			if s.cancel != nil {
				s.cancel(ErrSessionClosed)
			}
			if s.Ready(ctx) != nil {
				return // it has ended, or will: what opens it has been told to stop
			}
		}
		if s.es == nil {
			return // not up yet: its Connect ends by itself
		}
		if s.es.Client() {
			s.quiesce(ctx)
		}
		s.closeLanes(ctx)
		if s.conn != nil {
			s.closeErr = s.conn.Close(ctx)
		}
		s.ep.onOwner(ctx, func() { s.end(ErrSessionClosed) })
	})
	return s.closeErr
}

// quiesce aborts everything under way and waits for its end.
func (s *Session) quiesce(ctx context.Context) {
	for wait := time.Millisecond; ; wait = min(2*wait, 50*time.Millisecond) {
		quiet := false
		err := s.ep.onOwner(ctx, func() {
			s.es.Closing(s.ep.now, ErrSessionClosed)
			quiet = s.es.Quiet()
		})
		if quiet || err != nil {
			return
		}
		timer := time.NewTimer(wait)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return
		}
	}
}

// end finishes the session in the loop. If anything is under way, the peer
// loses its access to our memory first.
func (s *Session) end(err error) {
	s.endOnce.Do(func() {
		ep := s.ep
		s.err = err
		if s.es.Err() == nil {
			if s.es.Client() && !s.es.Quiet() && s.pair.peer != nil {
				ep.disconnectPair(s.pair, err)
			}
			s.es.Fail(ep.now, err)
		}
		s.endLanes()
		ep.forget(s)
		s.logEnd()
		close(s.ended)
	})
}
