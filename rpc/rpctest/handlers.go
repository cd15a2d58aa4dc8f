package rpctest

import (
	"context"
	"encoding/binary"
	"errors"
	"hash/crc64"
	"sync"
	"sync/atomic"
	"time"

	"github.com/rrppcc-go/rrppcc/msgbuf"
	"github.com/rrppcc-go/rrppcc/rpc"
)

// Request types of the suite's servers. Integers in requests and responses are
// little-endian uint32.
const (
	// TypeEcho answers with the request.
	TypeEcho uint8 = 1 + iota
	// TypeReverse answers with the request backwards.
	TypeReverse
	// TypeChecksum answers with Checksum of the request.
	TypeChecksum
	// TypeFill: a length and a seed; answers with that many bytes of Pattern.
	TypeFill
	// TypeFail: a code and a text; fails with them, or for code 0 with an
	// error that is not a HandlerError.
	TypeFail
	// TypePanic panics with the request as text.
	TypePanic
	// TypeHold keeps the request; it is echoed when it is released.
	TypeHold
	// TypeHeld: a number n; answers as soon as n requests have been held since
	// the server started, with the first 4 bytes of each, in order of arrival.
	TypeHeld
	// TypeRelease: a number n; lets the n oldest held requests go, and answers
	// with how many there were.
	TypeRelease
	// TypeConnect: an endpoint number and a URI; opens the session that
	// TypeForward uses.
	TypeConnect
	// TypeForward sends the request on as two TypeReverse at a time, by
	// Enqueue, and answers with both responses.
	TypeForward
	// TypeForwardBlocking is TypeForward in a goroutine that blocks in Call.
	TypeForwardBlocking
	// TypeDeadlock blocks in Call within the handler; it fails with code 1 if
	// that was ErrDeadlock, as it should be.
	TypeDeadlock
	// TypeCount answers with how many TypeEcho were executed.
	TypeCount
	// TypeForwardBackground and TypeForwardCoroutine are TypeForward in a
	// background handler and in a coroutine.
	TypeForwardBackground
	TypeForwardCoroutine
	// TypeBounceBackground and TypeBounceCoroutine: a number n as the first byte;
	// for 0 answers with the rest, else with what the same type answers, at the
	// session of TypeConnect, to n-1 and the rest.
	TypeBounceBackground
	TypeBounceCoroutine
	// TypePanicBackground and TypePanicCoroutine are TypePanic.
	TypePanicBackground
	TypePanicCoroutine
	// TypeFailBackground and TypeFailCoroutine are TypeFail.
	TypeFailBackground
	TypeFailCoroutine
	// TypeUnbound has no handler.
	TypeUnbound uint8 = 200
)

var crcTable = crc64.MakeTable(crc64.ECMA)

// Checksum returns what TypeChecksum answers for data.
func Checksum(data []byte) []byte {
	return binary.LittleEndian.AppendUint64(nil, crc64.Checksum(data, crcTable))
}

// Pattern fills b with bytes that depend on seed and position.
func Pattern(b []byte, seed uint32) {
	x := uint64(seed)*0x9e3779b97f4a7c15 + 1
	for i := range b {
		if i&7 == 0 {
			x ^= x << 13
			x ^= x >> 7
			x ^= x << 17
		}
		b[i] = byte(x >> (i & 7 * 8))
	}
}

// longest bounds how long a server's own requests may take.
const longest = 60 * time.Second

// Handlers are the handlers of one endpoint of a server.
type Handlers struct {
	ep   *rpc.Endpoint
	next atomic.Pointer[rpc.Session]
	work sync.WaitGroup // goroutines under way

	echoes uint32 // of the loop

	mu      sync.Mutex
	closing bool
	held    []*rpc.RequestHandle
	tags    []byte // first 4 bytes of everything that was ever held
	waiters []waiter
}

type waiter struct {
	n int
	h *rpc.RequestHandle
}

// Bind gives ep, which nobody drives yet, the handlers of this package.
func Bind(ep *rpc.Endpoint) *Handlers {
	s := &Handlers{ep: ep}
	for typ, fn := range map[uint8]rpc.Handler{
		TypeEcho: s.echo, TypeReverse: s.reverse, TypeChecksum: s.checksum, TypeFill: s.fill, TypeFail: s.fail, TypePanic: s.panic,
		TypeHold: s.hold, TypeHeld: s.awaitHeld, TypeRelease: s.release,
		TypeConnect: s.connect, TypeForward: s.forward, TypeForwardBlocking: s.forwardBlocking, TypeDeadlock: s.deadlock, TypeCount: s.count,
	} {
		ep.Handle(typ, fn)
	}
	for typ, fn := range map[uint8]rpc.Handler{
		TypeForwardBackground: s.forwardWaiting, TypeBounceBackground: s.bounce, TypePanicBackground: s.panic, TypeFailBackground: s.fail,
	} {
		ep.HandleBackground(typ, fn)
	}
	for typ, fn := range map[uint8]rpc.Handler{
		TypeForwardCoroutine: s.forwardWaiting, TypeBounceCoroutine: s.bounce, TypePanicCoroutine: s.panic, TypeFailCoroutine: s.fail,
	} {
		ep.HandleCoroutine(typ, fn)
	}
	return s
}

// Close answers everything that is held and waits for what is under way. The
// endpoint must still be driven, or closed afterwards.
func (s *Handlers) Close() {
	s.mu.Lock()
	held, waiters := s.held, s.waiters
	s.held, s.waiters = nil, nil
	s.closing = true
	s.mu.Unlock()
	for _, h := range held {
		h.Fail(errEnds)
	}
	for _, w := range waiters {
		w.h.Fail(errEnds)
	}
	s.work.Wait()
}

// start runs fn on a goroutine that Close waits for; after Close it does not.
func (s *Handlers) start(h *rpc.RequestHandle, fn func()) (msgbuf.Buf, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closing {
		return msgbuf.Buf{}, errEnds
	}
	s.work.Go(fn)
	return h.Defer()
}

func respond(h *rpc.RequestHandle, data []byte) (msgbuf.Buf, error) {
	buf, err := h.Response(len(data))
	if err == nil {
		copy(buf.Bytes(), data)
	}
	return buf, err
}

func number(n int) []byte { return binary.LittleEndian.AppendUint32(nil, uint32(n)) }

func parse(b []byte) (n uint32, rest []byte, err error) {
	if len(b) < 4 {
		return 0, nil, errors.New("a request without a number")
	}
	return binary.LittleEndian.Uint32(b), b[4:], nil
}

func (s *Handlers) echo(h *rpc.RequestHandle) (msgbuf.Buf, error) {
	s.echoes++
	return respond(h, h.Bytes())
}

func (s *Handlers) count(h *rpc.RequestHandle) (msgbuf.Buf, error) {
	return respond(h, number(int(s.echoes)))
}

func (s *Handlers) reverse(h *rpc.RequestHandle) (msgbuf.Buf, error) {
	buf, err := h.Response(len(h.Bytes()))
	if err == nil {
		reverseTo(buf.Bytes(), h.Bytes())
	}
	return buf, err
}

func reverseTo(dst, src []byte) {
	for i, b := range src {
		dst[len(src)-1-i] = b
	}
}

func (s *Handlers) checksum(h *rpc.RequestHandle) (msgbuf.Buf, error) {
	return respond(h, Checksum(h.Bytes()))
}

func (s *Handlers) fill(h *rpc.RequestHandle) (msgbuf.Buf, error) {
	n, rest, err := parse(h.Bytes())
	if err != nil {
		return msgbuf.Buf{}, err
	}
	seed, _, err := parse(rest)
	if err != nil {
		return msgbuf.Buf{}, err
	}
	buf, err := h.Response(int(n))
	if err == nil {
		Pattern(buf.Bytes(), seed)
	}
	return buf, err
}

func (s *Handlers) fail(h *rpc.RequestHandle) (msgbuf.Buf, error) {
	code, text, err := parse(h.Bytes())
	switch {
	case err != nil:
	case code == 0:
		err = errors.New(string(text))
	default:
		err = &rpc.HandlerError{Code: code, Message: string(text)}
	}
	return msgbuf.Buf{}, err
}

func (s *Handlers) panic(h *rpc.RequestHandle) (msgbuf.Buf, error) { panic(string(h.Bytes())) }

func (s *Handlers) hold(h *rpc.RequestHandle) (msgbuf.Buf, error) {
	tag := [4]byte{}
	copy(tag[:], h.Bytes())
	s.mu.Lock()
	if s.closing {
		s.mu.Unlock()
		return msgbuf.Buf{}, errEnds
	}
	buf, err := h.Defer()
	s.held = append(s.held, h)
	s.tags = append(s.tags, tag[:]...)
	var ready []*rpc.RequestHandle
	keep := s.waiters[:0]
	for _, w := range s.waiters {
		if len(s.tags)/4 >= w.n {
			ready = append(ready, w.h)
		} else {
			keep = append(keep, w)
		}
	}
	s.waiters = keep
	tags := s.tags
	s.mu.Unlock()
	for _, w := range ready {
		s.reply(w, tags)
	}
	return buf, err
}

// reply answers a deferred request from any goroutine.
func (s *Handlers) reply(h *rpc.RequestHandle, data []byte) {
	buf, err := s.buffer(data)
	if err != nil {
		h.Fail(err)
		return
	}
	h.Reply(buf)
}

func (s *Handlers) buffer(data []byte) (msgbuf.Buf, error) {
	buf, err := s.ep.Alloc(len(data))
	if err == nil {
		copy(buf.Bytes(), data)
	}
	return buf, err
}

func (s *Handlers) awaitHeld(h *rpc.RequestHandle) (msgbuf.Buf, error) {
	n, _, err := parse(h.Bytes())
	if err != nil {
		return msgbuf.Buf{}, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closing {
		return msgbuf.Buf{}, errEnds
	}
	if len(s.tags)/4 >= int(n) {
		return respond(h, s.tags)
	}
	s.waiters = append(s.waiters, waiter{int(n), h})
	return h.Defer()
}

func (s *Handlers) release(h *rpc.RequestHandle) (msgbuf.Buf, error) {
	n, _, err := parse(h.Bytes())
	if err != nil {
		return msgbuf.Buf{}, err
	}
	s.mu.Lock()
	k := int(min(int64(n), int64(len(s.held))))
	free := s.held[:k:k]
	s.held = s.held[k:]
	s.mu.Unlock()
	return s.start(h, func() {
		for _, h := range free {
			s.reply(h, h.Bytes())
		}
		s.reply(h, number(k))
	})
}

func (s *Handlers) connect(h *rpc.RequestHandle) (msgbuf.Buf, error) {
	id, uri, err := parse(h.Bytes())
	if err != nil {
		return msgbuf.Buf{}, err
	}
	to := string(uri)
	return s.start(h, func() {
		ctx, cancel := context.WithTimeout(context.Background(), longest)
		defer cancel()
		next, err := s.ep.Connect(ctx, to, uint16(id))
		if err != nil {
			h.Fail(err)
			return
		}
		s.next.Store(next)
		h.Reply(msgbuf.Buf{})
	})
}

var (
	errNoNext = errors.New("no session to forward to")
	errEnds   = errors.New("the server ends")
)

// triple is a request and two buffers for the responses of equal size.
func (s *Handlers) triple(data []byte) (req, a, b msgbuf.Buf, err error) {
	if req, err = s.buffer(data); err == nil {
		if a, err = s.ep.Alloc(len(data)); err == nil {
			b, err = s.ep.Alloc(len(data))
		}
	}
	if err != nil {
		req.Free()
		a.Free()
		req, a = msgbuf.Buf{}, msgbuf.Buf{}
	}
	return
}

func (s *Handlers) forward(h *rpc.RequestHandle) (msgbuf.Buf, error) {
	next := s.next.Load()
	if next == nil {
		return msgbuf.Buf{}, errNoNext
	}
	req, a, b, err := s.triple(h.Bytes())
	if err != nil {
		return msgbuf.Buf{}, err
	}
	left := 2
	var failed error
	done := func(r *rpc.Request) {
		if err := r.Err(); err != nil {
			failed = err
		}
		if left--; left == 0 {
			s.finishForward(h, req, a, b, failed)
		}
	}
	next.Enqueue(TypeReverse, req, a, 0, done)
	next.Enqueue(TypeReverse, req, b, 1, done)
	return h.Defer()
}

func (s *Handlers) finishForward(h *rpc.RequestHandle, req, a, b msgbuf.Buf, err error) {
	if err != nil {
		h.Fail(err)
	} else {
		s.reply(h, append(append(make([]byte, 0, a.Len()+b.Len()), a.Bytes()...), b.Bytes()...))
	}
	req.Free()
	a.Free()
	b.Free()
}

func (s *Handlers) forwardBlocking(h *rpc.RequestHandle) (msgbuf.Buf, error) {
	next := s.next.Load()
	if next == nil {
		return msgbuf.Buf{}, errNoNext
	}
	req, a, b, err := s.triple(h.Bytes())
	if err != nil {
		return msgbuf.Buf{}, err
	}
	deferred, err := s.start(h, func() {
		ctx, cancel := context.WithTimeout(context.Background(), longest)
		defer cancel()
		other := make(chan error, 1)
		go func() { other <- next.Call(ctx, TypeReverse, req, a) }()
		err := next.Call(ctx, TypeReverse, req, b)
		err = errors.Join(err, <-other)
		s.finishForward(h, req, a, b, err)
	})
	if errors.Is(err, errEnds) {
		req.Free()
		a.Free()
		b.Free()
	}
	return deferred, err
}

func (s *Handlers) deadlock(h *rpc.RequestHandle) (msgbuf.Buf, error) {
	next := s.next.Load()
	if next == nil {
		return msgbuf.Buf{}, errNoNext
	}
	ctx, cancel := context.WithTimeout(context.Background(), longest)
	defer cancel()
	err := next.Call(ctx, TypeEcho, msgbuf.Buf{}, msgbuf.Buf{})
	if errors.Is(err, rpc.ErrDeadlock) {
		return msgbuf.Buf{}, &rpc.HandlerError{Code: 1, Message: err.Error()}
	}
	return msgbuf.Buf{}, err
}
