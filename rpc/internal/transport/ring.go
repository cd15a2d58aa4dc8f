package transport

import "github.com/rrppcc-go/rrppcc/msgbuf"

// TakeRing gives the receive ring's memory to the caller, who frees it instead
// of Close: messages that were held may still be read in it.
func (t *Transport) TakeRing() msgbuf.Buf {
	ring := t.ring
	t.ring = msgbuf.Buf{}
	return ring
}
