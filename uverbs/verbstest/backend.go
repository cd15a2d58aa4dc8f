package verbstest

import (
	"errors"

	"github.com/rrppcc-go/rrppcc/uverbs"
)

// Capability is something that not every device can do.
type Capability string

const (
	SRQ           Capability = "shared receive queues"
	UC            Capability = "unreliable connections"
	Atomics       Capability = "compare-and-swap and fetch-and-add"
	Invalidation  Capability = "SEND_WITH_INV and LOCAL_INV"
	MemoryWindows Capability = "memory windows"
	ResizeCQ      Capability = "resizing of CQs"
	ReregMR       Capability = "reregistration of MRs"
	OnDemand      Capability = "on-demand paging"
	DMABuf        Capability = "regions of descriptors that stand in for dma-bufs"
	Multicast     Capability = "multicast groups"
	Drain         Capability = "state SQD"
	Removal       Capability = "removal of the device by the test"
	Processes     Capability = "a second process that reaches the device"
	LIDs          Capability = "a port whose link layer is InfiniBand"
)

// Backend is a pair of devices for the suite, and what is known about them.
type Backend struct {
	// Name is the name of the suite's subtest.
	Name string
	// Open opens the devices, anew for each test.
	Open func() (*Pair, error)
	// Lacks gives the reason for each capability that is missing.
	Lacks map[Capability]string
	// Deviations from what the suite expects, at most one per rule.
	Deviations []Deviation
	// GRH asks for a GRH in all address vectors, also on InfiniBand, where it may be
	// left out and else is. RoCE always has it.
	GRH bool
	// EventRounds is how often arming races with an arrival, where -short does
	// not make it fewer. 0 is 100,000; devices that take long have less.
	EventRounds int
	// Child tells another process which device to open; "mlx5sim" for a simulated one. It is
	// empty where Processes is lacking.
	Child string
}

// Pair is two opened devices, or one that was opened twice.
type Pair struct {
	A, B *uverbs.Context
	// Remove takes A's device away. Nil where Removal is lacking.
	Remove func() error
	// Close closes what stands below the contexts. The contexts are closed by
	// then.
	Close func() error
}

// openPair opens two devices. On failure it calls done, which closes what
// stands below.
func openPair(a, b *uverbs.Device, done func() error) (*Pair, error) {
	ca, err := a.Open()
	if err != nil {
		return nil, errors.Join(err, done())
	}
	cb, err := b.Open()
	if err != nil {
		return nil, errors.Join(err, ca.Close(), done())
	}
	return &Pair{A: ca, B: cb, Close: done}, nil
}
