package mlx5

import (
	"errors"
	"fmt"
	"os"
	"sync"
	"sync/atomic"

	kabi "github.com/rrppcc-go/rrppcc/internal/abi"
	"github.com/rrppcc-go/rrppcc/internal/kernel"
	"github.com/rrppcc-go/rrppcc/mlx5/internal/abi"
	"github.com/rrppcc-go/rrppcc/mlx5/internal/prm"
	"github.com/rrppcc-go/rrppcc/uverbs"
)

// Registers of a UAR: the device's first two BlueFlame registers of a 4 KiB
// page belong to user space, the other two to the kernel's fast path.
const (
	uarBytes       = 4096
	bfregsPerUAR   = 4 // as numbered in a bfreg index
	userBFRegs     = 2
	wantBFRegs     = 16 // asked of a kernel with static UARs, as libmlx5 does
	wantLowLatency = 4
)

// uarPage is one mapped UAR page.
type uarPage struct {
	mem    []byte // the mapping
	id     uint32 // what create CQ and create QP name; dynamic UARs
	handle uint32 // of the UAR object; dynamic UARs
	object bool   // handle is valid
}

// bfreg is a doorbell register within a page. QPs that share one must not use
// BlueFlame, which would mix their WQEs.
type bfreg struct {
	page   *uarPage
	off    uint32 // in page.mem
	half   uint32 // bytes of half a BlueFlame register; 0: doorbells alone
	users  int    // guarded by uars.mu
	shared atomic.Bool

	// kickMu keeps store and kick together where several queues use the
	// register of a simulated device, which looks at the memory only when it is
	// kicked. Hardware takes each store by itself.
	kickMu sync.Mutex
}

// uars owns the context's UAR pages.
type uars struct {
	file    kernel.File
	kick    func(uar *byte, offset uint32) // nil on hardware
	bfSize  uint32                         // bytes of a BlueFlame register
	shutUp  bool                           // MLX5_SHUT_UP_BF
	dynamic bool

	cq *bfreg // where CQs are armed: UAR offset 0x20
	nc *bfreg // dynamic: the doorbell of QPs without BlueFlame

	mu    sync.Mutex
	pages []*uarPage
	free  []*bfreg          // dynamic: registers without a QP, next one last
	index map[uint32]*bfreg // static: by bfreg index
}

// openUARs maps what the answer to GET_CONTEXT calls for.
func openUARs(file kernel.File, lim *limits, shutUp bool) (*uars, error) {
	u := &uars{file: file, bfSize: lim.bfRegBytes, shutUp: shutUp, dynamic: lim.staticBFRegs == 0}
	if k, ok := file.(kernel.Kicker); ok {
		u.kick = k.Kicker()
	}
	var err error
	if u.dynamic {
		err = u.openDynamic()
	} else {
		err = u.openStatic(lim)
	}
	if err != nil {
		u.close()
		return nil, err
	}
	return u, nil
}

func (u *uars) openDynamic() error {
	page, err := u.allocPage(abi.MLX5_IB_UAPI_UAR_ALLOC_TYPE_NC)
	if err != nil {
		return err
	}
	if page.id > 0xffff {
		return fmt.Errorf("%w: UAR page %#x for CQs", uverbs.ErrBadAnswer, page.id)
	}
	u.cq = &bfreg{page: page, off: prm.UARCQDoorbell}
	u.nc = &bfreg{page: page, off: prm.UARBlueFlame}
	u.nc.shared.Store(true)
	return nil
}

// openStatic maps the pages that GET_CONTEXT allocated and numbers their
// registers as the kernel does. Register 0 is for doorbells alone, whoever
// shares it.
func (u *uars) openStatic(lim *limits) error {
	pageBytes := os.Getpagesize()
	perPage := int(lim.uarsPerPage)
	if perPage*uarBytes > pageBytes {
		return fmt.Errorf("%w: %d UARs in a page of %d bytes", uverbs.ErrBadAnswer, perPage, pageBytes)
	}
	n := int(lim.staticBFRegs) / (perPage * userBFRegs)
	if n == 0 || n > 256 {
		return fmt.Errorf("%w: %d BlueFlame registers", uverbs.ErrBadAnswer, lim.staticBFRegs)
	}
	u.index = make(map[uint32]*bfreg)
	for i := range n {
		offset := int64(abi.MLX5_IB_MMAP_REGULAR_PAGE<<abi.MLX5_IB_MMAP_CMD_SHIFT|i) * int64(pageBytes)
		mem, err := u.file.Mmap(offset, pageBytes, kernel.ProtWrite)
		if err != nil {
			return fmt.Errorf("mmap UAR page %d: %w", i, err)
		}
		page := &uarPage{mem: mem}
		u.pages = append(u.pages, page)
		for j := range perPage {
			for k := range userBFRegs {
				nr := uint32(i*perPage+j)*bfregsPerUAR + uint32(k)
				reg := &bfreg{page: page, off: uint32(j)*uarBytes + prm.UARBlueFlame + uint32(k)*u.bfSize}
				if nr == 0 {
					reg.shared.Store(true)
				} else if !u.shutUp {
					reg.half = u.bfSize / 2
				}
				u.index[nr] = reg
			}
		}
	}
	u.cq = &bfreg{page: u.pages[0], off: prm.UARCQDoorbell}
	return nil
}

// allocPage creates a UAR object and maps it.
func (u *uars) allocPage(typ uint64) (*uarPage, error) {
	out := new(struct {
		offset uint64
		length uint32
		id     uint32
	})
	cmd := kernel.NewCommand(kabi.RDMA_DRIVER_MLX5, abi.MLX5_IB_OBJECT_UAR, abi.MLX5_IB_METHOD_UAR_OBJ_ALLOC)
	cmd.NewObject(abi.MLX5_IB_ATTR_UAR_OBJ_ALLOC_HANDLE)
	cmd.Const(abi.MLX5_IB_ATTR_UAR_OBJ_ALLOC_TYPE, typ)
	cmd.Out(abi.MLX5_IB_ATTR_UAR_OBJ_ALLOC_MMAP_OFFSET, kernel.Bytes(&out.offset))
	cmd.Out(abi.MLX5_IB_ATTR_UAR_OBJ_ALLOC_MMAP_LENGTH, kernel.Bytes(&out.length))
	cmd.Out(abi.MLX5_IB_ATTR_UAR_OBJ_ALLOC_PAGE_ID, kernel.Bytes(&out.id))
	if err := cmd.Run(u.file); err != nil {
		return nil, fmt.Errorf("alloc UAR: %w", err)
	}
	page := &uarPage{id: out.id, handle: cmd.Handle(abi.MLX5_IB_ATTR_UAR_OBJ_ALLOC_HANDLE), object: true}
	err := error(uverbs.ErrBadAnswer)
	if out.length >= uarBytes && out.length <= 1<<20 && out.offset <= 1<<62 {
		page.mem, err = u.file.Mmap(int64(out.offset), int(out.length), kernel.ProtWrite)
	}
	if err != nil {
		u.freePage(page)
		return nil, fmt.Errorf("mmap UAR page %d: %w", out.id, err)
	}
	u.pages = append(u.pages, page)
	return page, nil
}

func (u *uars) freePage(p *uarPage) error {
	var errs []error
	if p.mem != nil {
		errs = append(errs, u.file.Munmap(p.mem))
	}
	if p.object {
		cmd := kernel.NewCommand(kabi.RDMA_DRIVER_MLX5, abi.MLX5_IB_OBJECT_UAR, abi.MLX5_IB_METHOD_UAR_OBJ_DESTROY)
		cmd.Object(abi.MLX5_IB_ATTR_UAR_OBJ_DESTROY_HANDLE, p.handle)
		errs = append(errs, cmd.Run(u.file))
	}
	return errors.Join(errs...)
}

// take returns a register for a new QP of a kernel with dynamic UARs.
func (u *uars) take() (*bfreg, error) {
	if u.shutUp || u.bfSize == 0 {
		return u.nc, nil
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	if len(u.free) == 0 {
		page, err := u.allocPage(abi.MLX5_IB_UAPI_UAR_ALLOC_TYPE_BF)
		if err != nil {
			return nil, err
		}
		for k := userBFRegs - 1; k >= 0; k-- {
			u.free = append(u.free, &bfreg{page: page, off: prm.UARBlueFlame + uint32(k)*u.bfSize, half: u.bfSize / 2})
		}
	}
	reg := u.free[len(u.free)-1]
	u.free = u.free[:len(u.free)-1]
	return reg, nil
}

// byIndex returns the register that a kernel with static UARs assigned.
func (u *uars) byIndex(index uint32) (*bfreg, error) {
	u.mu.Lock()
	defer u.mu.Unlock()
	reg := u.index[index]
	if reg == nil {
		return nil, fmt.Errorf("%w: BlueFlame register %d", uverbs.ErrBadAnswer, index)
	}
	reg.users++
	if reg.users > 1 {
		reg.shared.Store(true)
	}
	return reg, nil
}

// release takes back a QP's register.
func (u *uars) release(reg *bfreg) {
	if reg == nil || reg == u.nc {
		return
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.dynamic {
		if u.pages != nil { // else the context is closed
			u.free = append(u.free, reg)
		}
		return
	}
	reg.users--
	if reg.users <= 1 && reg.half != 0 {
		reg.shared.Store(false)
	}
}

// close unmaps and destroys all pages.
func (u *uars) close() error {
	u.mu.Lock()
	defer u.mu.Unlock()
	var errs []error
	for i := len(u.pages) - 1; i >= 0; i-- {
		errs = append(errs, u.freePage(u.pages[i]))
	}
	u.pages, u.free, u.index = nil, nil, nil
	return errors.Join(errs...)
}
