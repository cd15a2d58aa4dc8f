package nexus

import (
	"errors"
	"fmt"
	"time"
)

// Why a connection goes down; given to the functions registered for it.
var (
	// ErrDisconnected says that the peer has closed the connection.
	ErrDisconnected = errors.New("nexus: the peer has disconnected")
	// ErrPeerDead says that the peer's process does not answer any more or has
	// restarted.
	ErrPeerDead = errors.New("nexus: the peer is dead")
	// ErrClosed says that this process has closed the Nexus, or the connection.
	ErrClosed = errors.New("nexus: closed")
)

// Reason says why a server refused a connection. The numbers are part of the
// message format.
type Reason uint16

const (
	// ReasonInternal: the acceptor failed; the text says how.
	ReasonInternal Reason = 1 + iota
	// ReasonNoSuchEndpoint: the process has no endpoint of that number.
	ReasonNoSuchEndpoint
	// ReasonBusy: try again later.
	ReasonBusy
	// ReasonRingExhausted: the endpoint's receive ring has no room for another session.
	ReasonRingExhausted
	// ReasonNoResources: memory, queue pairs or the like have run out.
	ReasonNoResources
	// ReasonVersion: the two processes speak different versions.
	ReasonVersion
	// ReasonBadRequest: the acceptor did not understand the payload.
	ReasonBadRequest
	// ReasonShuttingDown: the process or the endpoint is about to end.
	ReasonShuttingDown
	// ReasonKey: one of the two processes has a key, and the other has none or
	// another one; see [WithKey].
	ReasonKey
)

func (r Reason) String() string {
	switch r {
	case ReasonInternal:
		return "internal error"
	case ReasonNoSuchEndpoint:
		return "no such endpoint"
	case ReasonBusy:
		return "busy"
	case ReasonRingExhausted:
		return "receive ring exhausted"
	case ReasonNoResources:
		return "out of resources"
	case ReasonVersion:
		return "another protocol version"
	case ReasonBadRequest:
		return "bad request"
	case ReasonShuttingDown:
		return "shutting down"
	case ReasonKey:
		return "no common key"
	}
	return fmt.Sprintf("reason %d", uint16(r))
}

// RefusedError is a server's refusal. An [Acceptor] returns one to choose the
// reason and text that the client gets.
type RefusedError struct {
	Reason Reason
	Text   string // for people; at most 200 bytes travel
}

func (e *RefusedError) Error() string {
	if e.Text == "" {
		return "nexus: connection refused: " + e.Reason.String()
	}
	return fmt.Sprintf("nexus: connection refused: %v: %s", e.Reason, e.Text)
}

// TimeoutError says that a server did not answer in time.
type TimeoutError struct {
	URI   string
	After time.Duration
	Err   error // the context's
}

func (e *TimeoutError) Error() string {
	return fmt.Sprintf("nexus: no answer from %s for %v; is a server running there, and does a firewall let UDP through?",
		e.URI, e.After.Round(time.Millisecond))
}

// Unwrap returns the context's error.
func (e *TimeoutError) Unwrap() error { return e.Err }

// Timeout says that this is a timeout, as net.Error does.
func (e *TimeoutError) Timeout() bool { return true }
