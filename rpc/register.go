package rpc

import (
	"fmt"

	"github.com/rrppcc-go/rrppcc/msgbuf"
)

// Region is memory of the user that an endpoint may send from and receive into
// without a copy. Its methods may be called from any goroutine.
type Region struct {
	x *msgbuf.External
}

// Register makes mem known to the endpoint's device, so that parts of it can be
// requests and responses. With msgbuf.RemoteRead, large messages can be sent from
// it: peers can read the parts that are offered to them, or, where MemoryWindows is
// false, all of it as long as it is registered. With msgbuf.Local it can be sent
// from up to LargeThreshold bytes, and received into whatever the size.
//
// mem must be mapped memory (mmap: anonymous, of a file, shared), never memory
// of the Go heap or a stack: the device goes on writing where the heap's memory
// was when the garbage collector has given it to somebody else, and pins a page
// that a forked child then does not share. Nothing can check that; it is the
// caller's promise. It must stay mapped until Close has returned nil.
func (ep *Endpoint) Register(mem []byte, access msgbuf.Access) (*Region, error) {
	ep.mu.Lock()
	closing := ep.closing
	ep.mu.Unlock()
	if closing {
		return nil, ErrClosed
	}
	x, err := msgbuf.NewExternal(ep.reg, mem, access)
	if err != nil {
		return nil, fmt.Errorf("rpc: endpoint %d: %w", ep.id, err)
	}
	return &Region{x}, nil
}

// Buf returns n bytes at offset off as a buffer. It is used like one of
// Endpoint.Alloc, also as a handler's response; Free drops the view only. The
// caller must not write to parts that are under way, in this view or another.
func (r *Region) Buf(off, n int) (msgbuf.Buf, error) { return r.x.View(off, n) }

// Bytes returns the memory.
func (r *Region) Bytes() []byte { return r.x.Bytes() }

// Close ends the registration: no device touches the memory any more. While
// buffers of the region are not freed it returns a *msgbuf.InUseError, and may
// be called again. It may be called after the endpoint's Close, and before that
// of its context.
func (r *Region) Close() error { return r.x.Close() }
