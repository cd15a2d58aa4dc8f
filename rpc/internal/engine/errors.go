package engine

import (
	"errors"
	"fmt"
)

// Code is the reason in a KindError datagram.
type Code uint8

const (
	CodeNoHandler   Code = 1 + iota
	CodeHandler          // the handler returned an error; a uint32 code and a text follow
	CodePanic            // the handler panicked; a text follows
	CodeNoMemory         // the server could not get memory for the request or the response
	CodeTooLarge         // the request is longer than the server takes
	CodeReadFailed       // the server could not pull the request
	CodeBadResponse      // the handler's response cannot be sent
)

// Conditions that a call ends with.
var (
	ErrNoHandler     = errors.New("rpc: the server has no handler for this request type")
	ErrAborted       = errors.New("rpc: request aborted")
	ErrTimeout       = errors.New("rpc: request deadline exceeded")
	ErrSessionClosed = errors.New("rpc: session is closed")
	ErrPeerDead      = errors.New("rpc: peer is dead")
	ErrNoMemory      = errors.New("rpc: out of registered memory")
	ErrServerMemory  = errors.New("rpc: the server is out of registered memory")
	ErrTooLarge      = errors.New("rpc: request is longer than the limit")
	ErrReadFailed    = errors.New("rpc: RDMA READ failed")
	ErrBadResponse   = errors.New("rpc: the handler's response cannot be sent")
	ErrBuffer        = errors.New("rpc: buffer is freed, or not of this endpoint")
	ErrUnmapped      = errors.New("rpc: a message in datagrams cannot be put into memory that the CPU does not see")
	ErrProtocol      = errors.New("rpc: malformed message of the peer")
	ErrDoubleReply   = errors.New("rpc: request was replied to before")
)

// ResponseTooLargeError says that the response did not fit into the caller's
// buffer.
type ResponseTooLargeError struct {
	Need int // bytes of the response
	Cap  int // bytes of the buffer
}

func (e *ResponseTooLargeError) Error() string {
	return fmt.Sprintf("rpc: response of %d bytes does not fit into a buffer of %d", e.Need, e.Cap)
}

// HandlerError is an error that a handler returned, as the caller sees it.
type HandlerError struct {
	Code    uint32 // the application's; 0 for an error that is not a *HandlerError
	Message string // cut at MaxErrorText bytes
	Panic   bool   // the handler panicked
}

func (e *HandlerError) Error() string {
	if e.Panic {
		return "rpc: handler panicked: " + e.Message
	}
	return fmt.Sprintf("rpc: handler failed (code %d): %s", e.Code, e.Message)
}

// MaxErrorText bounds the text of a KindError datagram, in bytes.
const MaxErrorText = 512
