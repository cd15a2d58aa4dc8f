package rpc

import (
	"errors"
	"fmt"
	"math"

	"github.com/rrppcc-go/rrppcc/msgbuf"
	"github.com/rrppcc-go/rrppcc/uverbs"
)

// Region is memory of the user, or of a device, that an endpoint may send from and
// receive into without a copy. Its methods may be called from any goroutine.
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
	if ep.isClosing() {
		return nil, ErrClosed
	}
	x, err := msgbuf.NewExternal(ep.reg, mem, access)
	if err != nil {
		return nil, fmt.Errorf("rpc: endpoint %d: %w", ep.id, err)
	}
	return &Region{x}, nil
}

// RegisterDMABuf makes length bytes at offset of the dma-buf fd known to the
// endpoint's device: memory of another device, such as a GPU, which NICs then read
// and write without the CPU's help (Linux 5.12, and a device and an exporter that
// can; otherwise the error is EOPNOTSUPP, or the exporter's). The offset counts
// from the start of the dma-buf, and in Region.Buf from there on. The descriptor
// may be closed afterwards.
//
// The CPU does not see such memory: the Bytes of its buffers are nil. Messages are
// sent from it as from other memory, whatever their size; the NIC gathers small
// ones itself. Only large messages can be received into it: a response that comes
// in datagrams ends with ErrUnmapped at the caller (a server's LargeThreshold says
// which do), and requests get there by PlaceRequests.
//
// The kernel lets no memory windows into a dma-buf. With msgbuf.RemoteRead, which
// sending large messages from it takes, the peers of all sessions can read all of
// the region as long as it is registered, once a message has shown them its key. With
// msgbuf.Local nobody can; it is enough to receive into.
func (ep *Endpoint) RegisterDMABuf(fd int, offset, length uint64, access msgbuf.Access) (*Region, error) {
	if ep.isClosing() {
		return nil, ErrClosed
	}
	flags := uverbs.AccessLocalWrite
	if access == msgbuf.RemoteRead {
		flags |= uverbs.AccessRemoteRead
	}
	if length > math.MaxInt {
		return nil, fmt.Errorf("rpc: endpoint %d: register %d bytes of a dma-buf: %w", ep.id, length, msgbuf.ErrTooLarge)
	}
	mr, err := ep.pd.RegisterDMABuf(fd, offset, length, flags)
	if err != nil {
		return nil, fmt.Errorf("rpc: endpoint %d: %w", ep.id, err)
	}
	x, err := msgbuf.NewUnmapped(ep.reg, mr, mr.Addr(), int(length), access)
	if err != nil {
		return nil, fmt.Errorf("rpc: endpoint %d: %w", ep.id, errors.Join(err, mr.Close()))
	}
	return &Region{x}, nil
}

func (ep *Endpoint) isClosing() bool {
	ep.mu.Lock()
	defer ep.mu.Unlock()
	return ep.closing
}

// PlaceRequests has large requests of a type pulled into buffers that fn gives,
// such as those of a Region, instead of the endpoint's own. fn is called in the
// loop with the request's length in bytes, must not block, and returns a buffer of
// at least that capacity, which the endpoint frees when it is done with the
// request. An error, or a buffer that cannot be used, ends the request with
// ErrServerMemory at its caller. Requests that come in datagrams are placed as
// ever. As Handle, PlaceRequests belongs to the driving goroutine, or to any before
// the endpoint is driven; nil undoes it.
func (ep *Endpoint) PlaceRequests(reqType uint8, fn func(n int) (msgbuf.Buf, error)) {
	ep.e.Place(reqType, fn)
}

// Buf returns n bytes at offset off as a buffer. It is used like one of
// Endpoint.Alloc, also as a handler's response; Free drops the view only. The
// caller must not write to parts that are under way, in this view or another.
func (r *Region) Buf(off, n int) (msgbuf.Buf, error) { return r.x.View(off, n) }

// Len returns the size of the region in bytes.
func (r *Region) Len() int { return r.x.Len() }

// Bytes returns the memory; nil for that of a dma-buf.
func (r *Region) Bytes() []byte { return r.x.Bytes() }

// Close ends the registration: no device touches the memory any more. While
// buffers of the region are not freed it returns a *msgbuf.InUseError, and may
// be called again. It may be called after the endpoint's Close, and before that
// of its context.
func (r *Region) Close() error { return r.x.Close() }
