package rxe

import (
	"fmt"
	"sync/atomic"
	"syscall"

	kabi "github.com/rrppcc-go/rrppcc/internal/abi"
	"github.com/rrppcc-go/rrppcc/internal/kernel"
	"github.com/rrppcc-go/rrppcc/uverbs"
)

func init() { uverbs.RegisterProvider(provider{}) }

const (
	minABI = 1 // on 64-bit machines the same as 2
	maxABI = 2
)

type provider struct{}

func (provider) Name() string     { return "rxe" }
func (provider) DriverID() uint32 { return kabi.RDMA_DRIVER_RXE }

// contextDriver is the provider's half of an open device.
type contextDriver struct {
	ctx  *uverbs.Context
	file kernel.File
	// ud has a bit for each QP number, set for UD. The kernel marks every
	// receive with WCGRH, but only those of UD have the 40 bytes.
	ud []atomic.Uint32
}

const maxQPN = 1<<24 - 1

func (provider) OpenContext(c *uverbs.Context) (uverbs.ContextDriver, error) {
	if v := c.Device().DriverABI(); v < minABI || v > maxABI {
		return nil, fmt.Errorf("rxe: the driver's ABI version is %d, and this program knows %d to %d: %w", v, minABI, maxABI, syscall.EOPNOTSUPP)
	}
	if err := c.GetContext(nil, nil); err != nil {
		return nil, err
	}
	// 2 MiB of addresses; pages that are not touched take no memory.
	return &contextDriver{ctx: c, file: c.Kernel(), ud: make([]atomic.Uint32, (maxQPN+1)/32)}, nil
}

func (d *contextDriver) markUD(qpn uint32, ud bool) {
	word, bit := &d.ud[qpn/32], uint32(1)<<(qpn%32)
	if ud {
		word.Or(bit)
	} else {
		word.And(^bit)
	}
}

func (d *contextDriver) isUD(qpn uint32) bool {
	return qpn <= maxQPN && d.ud[qpn/32].Load()>>(qpn%32)&1 != 0
}

// Close has nothing to free: the rings went with their objects.
func (d *contextDriver) Close() error { return nil }

// prepare builds a command that the data path issues; free gives its memory
// back.
func (d *contextDriver) prepare(cmd uint32, in []byte, outBytes int) (p *kernel.Prepared, mem []byte, err error) {
	if mem, err = kernel.AllocPages(commandBytes); err != nil {
		return nil, nil, fmt.Errorf("allocate a command: %w", err)
	}
	if p, err = kernel.PrepareWrite(mem, kabi.RDMA_DRIVER_RXE, cmd, in, outBytes); err != nil {
		kernel.FreePages(mem)
		return nil, nil, err
	}
	return p, mem, nil
}

// commandBytes is room for the largest command of the data path; the kernel
// rounds it up to a page.
const commandBytes = 256

// commandError converts what a command of the data path failed with.
func (d *contextDriver) commandError(err error) error {
	switch {
	case d.ctx.Lost(err):
		return uverbs.ErrDataRemoved
	case err == syscall.EINVAL:
		return uverbs.ErrQPState
	}
	return err
}
