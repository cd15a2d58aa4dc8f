package rpc

import (
	"context"
	"errors"

	"github.com/rrppcc-go/rrppcc/rpc/internal/engine"
)

// How a request can end other than with a response. A request that was waited
// for past its deadline ends with an error that is context.DeadlineExceeded.
var (
	// ErrNoHandler: the server has no handler for the request type.
	ErrNoHandler = engine.ErrNoHandler
	// ErrAborted: Abort was called.
	ErrAborted = engine.ErrAborted
	// ErrSessionClosed: the session was closed by either side.
	ErrSessionClosed = engine.ErrSessionClosed
	// ErrPeerDead: the remote process does not answer any more, or has restarted.
	ErrPeerDead = engine.ErrPeerDead
	// ErrServerMemory: the server has no registered memory for the request.
	ErrServerMemory = engine.ErrServerMemory
	// ErrTooLarge: the request is longer than WithMaxMessage of either side.
	ErrTooLarge = engine.ErrTooLarge
	// ErrReadFailed: the RDMA READ of a large message failed.
	ErrReadFailed = engine.ErrReadFailed
	// ErrBadResponse: the server's handler returned a buffer that cannot be sent.
	ErrBadResponse = engine.ErrBadResponse
	// ErrBuffer: a buffer is freed, is of another endpoint, or holds a large
	// message in memory that peers cannot read.
	ErrBuffer = engine.ErrBuffer
	// ErrUnmapped: a response that came in datagrams is for memory that the CPU
	// does not see (RegisterDMABuf); only large ones can be received there.
	ErrUnmapped = engine.ErrUnmapped
	// ErrProtocol: the peer sent something that cannot be.
	ErrProtocol = engine.ErrProtocol
	// ErrClosed: the endpoint is closed.
	ErrClosed = errors.New("rpc: endpoint is closed")
	// ErrRingExhausted: the receive ring of one of the two endpoints has no room
	// for the credits of another session.
	ErrRingExhausted = errors.New("rpc: receive ring has no room for another session")
	// ErrDeadlock: a handler or callback waits for something that only its own
	// endpoint's loop can bring about.
	ErrDeadlock = errors.New("rpc: blocking call from a handler or callback of the same endpoint; use Enqueue and Defer, or another goroutine")
	// ErrCannotWait: a handler that was bound with Handle waits for a nested call,
	// or one bound with HandleCoroutine does on a session of another endpoint.
	ErrCannotWait = errors.New("rpc: handler cannot wait for this call; bind it with HandleBackground, or with HandleCoroutine and use the endpoint's own sessions")
	// ErrNesting: a nested call finds every slot taken by calls that may wait for
	// it, and there is no further lane (WithNesting).
	ErrNesting = errors.New("rpc: nested calls have taken every slot and lane of the session")
	// ErrDevice: the device stopped working; the endpoint must be closed.
	ErrDevice = errors.New("rpc: device failed")
)

// HandlerError is an error that a handler returned, as its caller sees it.
// Fields: Code uint32 (the application's; 0 for other errors), Message string
// (at most 512 bytes travel), Panic bool (the handler panicked). A handler may
// return a *HandlerError itself to choose the code.
type HandlerError = engine.HandlerError

// ResponseTooLargeError says that a response did not fit into the caller's
// buffer. Fields: Need int (bytes of the response), Cap int (bytes of the
// buffer).
type ResponseTooLargeError = engine.ResponseTooLargeError

// errTimeout is engine.ErrTimeout as users see it.
var errTimeout error = timeoutError{}

type timeoutError struct{}

func (timeoutError) Error() string   { return engine.ErrTimeout.Error() }
func (timeoutError) Unwrap() error   { return context.DeadlineExceeded }
func (timeoutError) Timeout() bool   { return true }
func (timeoutError) Temporary() bool { return true }

// publicError maps the engine's errors to what users compare with.
func publicError(err error) error {
	if err == engine.ErrTimeout {
		return errTimeout
	}
	return err
}
