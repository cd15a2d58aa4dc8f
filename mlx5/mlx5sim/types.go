package mlx5sim

import (
	"net/netip"
	"sync"

	"github.com/rrppcc-go/rrppcc/internal/kernel"
)

// Fabric is a set of simulated devices in one process. Devices of one fabric
// reach each other directly: the doorbell of one runs its work requests to
// completion in the queues of the other, on the caller's goroutine.
//
// One mutex guards the state of all its devices, so that a doorbell is one
// critical section. Nothing blocks under it and no callback of a user runs
// under it.
type Fabric struct {
	mu      sync.Mutex
	byGID   map[[16]byte]*Device // ports on Ethernet
	byLID   map[uint16]*Device   // ports on InfiniBand
	lastLID uint16               // that was given to a port
	eng     scratch              // of the queue engine, guarded by mu
}

// Device is one simulated ConnectX with one port. It implements
// kernel.Device.
type Device struct {
	fab  *Fabric
	opt  options
	name string
	addr netip.Addr // the address that its GIDs and its link use; none on InfiniBand
	mac  [6]byte
	lid  uint16 // on InfiniBand; 0 on Ethernet
	gids []gidSlot
	link link // nil: reaches only devices of its fabric
	wire wire // transport over the link; guarded by fab.mu

	// Guarded by fab.mu.
	closed bool
	files  map[*file]struct{}
	qps    map[uint32]*qp // by QPN
	cqs    map[uint32]*cq // by CQN
	mrs    map[uint32]*mr // by key; lkey and rkey of an MR are the same number
	mws    map[uint32]*mw // by index: the key without its variant
	srqs   map[uint32]*srq
	down   bool // the port
	errors errWatch
	stats  Stats

	flaps    *flapping   // nil: the port stays as it is
	out, in  *impairment // faults of the link; nil: none
	captures []*capture
	pcap     *capture // the one that WithPcap asked for

	ifname string // interface that holds addr; empty if none

	// Counters that the next object's number comes from. Guarded by fab.mu.
	nextQPN, nextCQN, nextSRQN, nextPDN, nextUAR, nextMKey uint32
}

type gidSlot struct {
	gid     [16]byte
	typ     uint8 // IB_UVERBS_GID_TYPE_*
	ifindex uint32
}

// file is one open of the device: the kernel's ucontext.
type file struct {
	dev     *Device
	dma     DMA
	foreign *Foreign // nil: the program is this process
	watched bool     // errWatch looks after its QPs in ERR

	// Guarded by dev.fab.mu.
	closed  bool
	ready   bool // GET_CONTEXT was answered
	handles map[uint32]object
	next    uint32 // next handle
	uars    []*uar // all that live or are mapped; the static ones first
	events  map[int32]*eventFile
	async   *eventFile // where events of its objects go; nil: nowhere

	nextFD     int32
	cqeVersion uint8
	dynUAR     bool     // UARs are objects; else bfregs is the static table
	bfregs     []uint32 // QPs per static BlueFlame register
	lowLatency int      // registers at the end of bfregs that serve one QP each
}

// object is anything that a handle names: *pd, *mr, *mw, *cq, *srq, *qp, *ah,
// *uar.
type object interface {
	// busy reports whether another object depends on this one (EBUSY).
	busy() bool
	// destroy takes the object out of the device. Caller holds fab.mu.
	destroy()
}

// DMA is all access that the device has to the user's memory. Addresses are
// user virtual addresses, any 64 bits of them; a bad one answers an error, and
// what of the range was moved by then is not known. Implementations are called
// under the fabric's mutex and must not block.
//
// Nothing is pinned: memory that was registered and is then unmapped, or whose
// process is gone, answers an error from then on, and its work requests fail.
type DMA interface {
	Read(addr uint64, p []byte) error
	Write(addr uint64, p []byte) error
	// View returns the n bytes at addr themselves, or nil where the memory
	// cannot be reached without copying.
	View(addr uint64, n int) []byte
	// Mapped reports whether all n bytes at addr can be read. It is asked when
	// memory becomes an MR or a queue: what is refused here is EFAULT.
	Mapped(addr uint64, n uint64) bool
}

// writableDMA is a DMA that knows which memory may be written, too. Without it,
// writing to a read-only mapping fails when it is tried.
type writableDMA interface {
	DMA
	// Writable reports whether all n bytes at addr, which are mapped, can be
	// written. It is asked for MRs with local write access and for CQs.
	Writable(addr uint64, n uint64) bool
}

// publishingDMA is a DMA that can do with one call what Write needs two for:
// store the last byte of p after all others, as seen by the program.
type publishingDMA interface {
	DMA
	Publish(addr uint64, p []byte) error
}

// publish stores p, whose last byte hands the rest over.
func (f *file) publish(addr uint64, p []byte) error {
	if d, ok := f.dma.(publishingDMA); ok {
		return d.Publish(addr, p)
	}
	last := len(p) - 1
	if err := f.dma.Write(addr, p[:last]); err != nil {
		return err
	}
	return f.dma.Write(addr+uint64(last), p[last:])
}

// mortalDMA is a DMA that knows whether its process has ended. A process loses
// its memory a moment before its files; on hardware the memory stays for as long
// as they do.
type mortalDMA interface {
	DMA
	// Gone reports whether the process, and so its memory, is no more. It is asked
	// when an access has failed.
	Gone() bool
}

// gone reports whether f's process has ended and f is about to be closed: peers
// hear nothing of it any more.
func (f *file) gone() bool {
	m, ok := f.dma.(mortalDMA)
	return ok && m.Gone()
}

// pinnable reports whether n bytes at addr could be pinned.
func (f *file) pinnable(addr, n uint64, write bool) bool {
	if !f.dma.Mapped(addr, n) {
		return false
	}
	w, ok := f.dma.(writableDMA)
	return !write || !ok || w.Writable(addr, n)
}

// uar is one UAR page as user space mapped it.
type uar struct {
	file   *file
	handle uint32
	index  uint32 // page id that QPs and CQs name
	offset int64  // of the mapping
	mem    []byte // the page, shared with user space; nil until mapped
	refs   int    // QPs and CQs that name it
	qps    []*qp  // of them, by the address of their doorbell records
	cqs    []*cq
	maps   int  // mappings of mem
	dead   bool // destroyed; mem goes with its last mapping
}

type pd struct {
	file   *file
	handle uint32
	pdn    uint32
	refs   int // MRs, MWs, SRQs, QPs and AHs
}

type mr struct {
	pd     *pd
	handle uint32
	key    uint32
	iova   uint64 // first address by which work requests name it
	start  uint64 // first user virtual address
	length uint64
	access uint32 // IB_UVERBS_ACCESS_*

	reach   DMA // on-demand paging, dma-buf: how the memory is reached; nil: as the file's
	mapping *mapping
}

// mapping is the memory of a dma-buf.
type mapping struct{ mem []byte }

type ah struct {
	pd     *pd
	handle uint32
}

type cq struct {
	file    *file
	handle  uint32
	user    uint64 // user_handle: what events name
	cqn     uint32
	buf     uint64 // user address of the ring
	dbrec   uint64 // user address of the doorbell record: consumer index, arm word
	cqeSize int    // bytes, 64 or 128
	size    uint32 // entries, a power of two
	channel *eventFile
	uar     *uar
	refs    int // QPs

	pi          uint32 // free-running producer index
	armed       bool
	armedSol    bool   // armed for solicited completions only
	eventPI     uint32 // pi when the last event was raised
	overrun     bool
	compEvents  uint32 // events read from the channel; guarded by its mutex
	asyncEvents uint32 // events read from the async file; guarded by its mutex
	eng         cqEngine
}

type qp struct {
	file   *file
	pd     *pd
	handle uint32
	user   uint64
	qpn    uint32
	uidx   uint32
	typ    uint8 // IB_UVERBS_QPT_*
	sigAll bool
	sendCQ *cq
	recvCQ *cq
	srq    *srq // nil: receives are posted to rq
	cap    qpCap
	attr   qpAttr // what MODIFY_QP set; attr.state is the QP's state
	uar    *uar
	bfreg  int // static BlueFlame register, -1 if none

	recvInCQE   bool // short receives are put into the CQE
	answerInCQE bool // short answers to signaled READs and atomics too

	dbrec uint64 // user address: receive counter, send counter
	rq    wq     // RQ first in the buffer, SQ behind it: the driver's ABI
	sq    wq

	req  requester // wire transport, as requester
	resp responder // wire transport, as responder
	eng  qpEngine

	asyncEvents uint32
}

// wq is a work queue in user memory. pi, next and ci are free-running: WQEBBs
// of 64 bytes in an SQ, WQEs in an RQ. An SQ's entries from ci to next are
// being executed, those from next to pi wait.
type wq struct {
	buf    uint64 // user address of entry 0
	size   uint32 // entries, a power of two; 0 = no queue
	stride uint32 // bytes per entry
	pi     uint32
	next   uint32 // SQ only
	ci     uint32
}

type qpCap struct {
	sendWR, recvWR, sendSGE, recvSGE, inline uint32
}

// qpAttr holds the attributes of MODIFY_QP in the units of the command.
type qpAttr struct {
	state        uint8
	access       uint32
	pkeyIndex    uint16
	port         uint8
	qkey         uint32
	dest         addressVector
	pathMTU      uint8
	timeout      uint8
	retryCnt     uint8
	rnrRetry     uint8
	rqPSN, sqPSN uint32
	maxRdAtomic  uint8
	maxDestRd    uint8
	minRNRTimer  uint8
	destQPN      uint32
}

type addressVector struct {
	dgid         [16]byte
	flowLabel    uint32
	sgidIndex    uint8
	hopLimit     uint8
	trafficClass uint8
	sl           uint8
	isGlobal     bool
	port         uint8
	dlid         uint16 // InfiniBand only, as are the bits
	srcPathBits  uint8
}

var _ kernel.Device = (*Device)(nil)
