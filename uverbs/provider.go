package uverbs

import (
	"fmt"
	"sync"

	"github.com/rrppcc-go/rrppcc/internal/kernel"
)

// Provider is the driver-private half of the verbs for one kernel driver: it
// knows the payloads that the driver adds to the commands, and it drives the
// queues. Providers register themselves in an init function; a program imports
// the packages of the providers that it wants.
type Provider interface {
	// Name of the provider: "mlx5".
	Name() string
	// DriverID is the kernel's enum rdma_driver_id.
	DriverID() uint32
	// OpenContext issues GET_CONTEXT by way of c.GetContext, by which alone the
	// context becomes usable, and maps what the data path needs. On error it
	// leaves nothing behind but the kernel's objects, which go with the file.
	OpenContext(c *Context) (ContextDriver, error)
}

// ContextDriver is a provider's half of a [Context]. Methods may be called
// from several goroutines at once.
type ContextDriver interface {
	// CreateCQ allocates the queue, calls issue once with the number of
	// entries asked of the kernel and the driver's payloads, and returns the
	// queue. issue returns the entries that the kernel granted.
	CreateCQ(attr *CQInitAttr, issue func(cqe uint32, uhwIn, uhwOut []byte) (uint32, error)) (CQDriver, error)
	// CreateQP does the same for a QP. issue takes the capacities that go to
	// the kernel and returns its answer and the QP number. The driver writes
	// the capacities that the user gets into attr.Cap.
	CreateQP(attr *QPInitAttr, issue func(cap QPCap, uhwIn, uhwOut []byte) (QPCap, uint32, error)) (QPDriver, error)
	// CreateAH builds the address vector; the result is what AH.Driver
	// returns. issue may be called at most once, and creates the kernel's
	// object, which the AH then owns.
	CreateAH(attr *AHAttr, issue func(uhwOut []byte) error) (any, error)
	// Close unmaps and frees everything; all objects are closed already.
	Close() error
}

// SRQCreator is implemented by a ContextDriver that has shared receive queues.
type SRQCreator interface {
	// CreateSRQ allocates the queue and calls issue once with the capacities
	// asked of the kernel and the driver's payloads; issue returns the
	// kernel's answer. The driver writes what the user gets into attr.
	CreateSRQ(attr *SRQInitAttr, issue func(ask SRQAttr, uhwIn, uhwOut []byte) (SRQAttr, error)) (SRQDriver, error)
}

// SRQDriver is a provider's half of an [SRQ]. PostRecv is called by the
// queue's owner alone.
type SRQDriver interface {
	PostRecv(wrs []RecvWR) (n int, err error)
	// Modify calls issue once with the driver's payload, which may be nil.
	// With SRQMaxWR nobody posts meanwhile.
	Modify(attr *SRQAttr, mask SRQAttrMask, issue func(uhwIn []byte) error) error
	// Close frees the queue's memory; the kernel's object is gone already.
	Close() error
}

// CQResizer is implemented by a CQDriver whose queue can change its size.
type CQResizer interface {
	// Resize calls issue once, as ContextDriver.CreateCQ does, and moves the
	// completions that are in the queue. Nobody polls or arms meanwhile.
	Resize(depth int, issue func(cqe uint32, uhwIn, uhwOut []byte) (uint32, error)) error
}

// HandleUser is implemented by a CQDriver or QPDriver whose data path names the
// object in commands. SetHandle is called once, before the object is used.
type HandleUser interface {
	SetHandle(handle uint32) error
}

func setHandle(drv any, handle uint32) error {
	if u, ok := drv.(HandleUser); ok {
		return u.SetHandle(handle)
	}
	return nil
}

// CQDriver is a provider's half of a [CQ]. Poll and Arm are called by the CQ's
// owner alone; EventArrived by any goroutine.
type CQDriver interface {
	// Depth is the number of completions that the queue holds.
	Depth() int
	Poll(wc []WC) (int, error)
	Arm(solicitedOnly bool) error
	// EventArrived notes that one completion event was read from the channel.
	// The context's lock is held: it must not block, nor call the context. It
	// is never called after Close.
	EventArrived()
	// Close frees the queue's memory; the kernel's object is gone already.
	Close() error
}

// QPDriver is a provider's half of a [QP]. PostSend is called by the send
// queue's owner alone, PostRecv by the receive queue's.
type QPDriver interface {
	// PostSend posts requests in order and returns how many were posted; the
	// error belongs to wrs[n].
	PostSend(wrs []SendWR) (n int, err error)
	PostRecv(wrs []RecvWR) (n int, err error)
	// StateChanged tells that the kernel moved the QP to state. A move to
	// QPStateReset empties the queues and removes the QP's entries from its CQs.
	// The QP's lock is held: it must not call Modify, Query or Close.
	StateChanged(state QPState)
	// Close frees the queues' memory; the kernel's object is gone already.
	Close() error
}

var providers struct {
	sync.Mutex
	byDriver map[uint32]Provider
}

// RegisterProvider makes p available to Device.Open. It panics if the driver
// already has a provider.
func RegisterProvider(p Provider) {
	providers.Lock()
	defer providers.Unlock()
	if providers.byDriver == nil {
		providers.byDriver = make(map[uint32]Provider)
	}
	if q := providers.byDriver[p.DriverID()]; q != nil {
		panic(fmt.Sprintf("uverbs: providers %s and %s for the same driver id %d", q.Name(), p.Name(), p.DriverID()))
	}
	providers.byDriver[p.DriverID()] = p
}

func providerFor(driverID uint32) Provider {
	providers.Lock()
	defer providers.Unlock()
	return providers.byDriver[driverID]
}

// Kernel returns the seam under the context, for providers: driver-private
// commands and mappings go through it.
func (c *Context) Kernel() kernel.File { return c.file }

// Lost reports whether the device is known to be gone, for providers: err is
// the kernel's answer to a command of theirs.
func (c *Context) Lost(err error) bool { return c.lost(err) }
