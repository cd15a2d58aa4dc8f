package uverbs

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"unsafe"

	"github.com/rrppcc-go/rrppcc/internal/abi"
	"github.com/rrppcc-go/rrppcc/internal/kernel"
)

// Context is an opened device. All methods may be called from several
// goroutines at once. Close it after everything that was created through it.
type Context struct {
	dev   *Device
	file  kernel.File
	drv   ContextDriver
	async kernel.EventFile

	numCompVectors uint32

	mu         sync.Mutex
	closed     bool
	nextHandle uint64         // user handles: never reused, never 0
	cqs        map[uint64]*CQ // by user handle
	qps        map[uint64]*QP // by user handle
}

func newContext(d *Device, file kernel.File, p Provider) (*Context, error) {
	c := &Context{dev: d, file: file, cqs: make(map[uint64]*CQ), qps: make(map[uint64]*QP)}
	drv, err := p.OpenContext(c)
	if err != nil {
		file.Close()
		return nil, opError("open", "device "+d.Name(), err)
	}
	c.drv = drv
	cmd := kernel.NewCommand(d.info.DriverID, abi.UVERBS_OBJECT_ASYNC_EVENT, abi.UVERBS_METHOD_ASYNC_EVENT_ALLOC)
	cmd.NewFD(abi.UVERBS_ATTR_ASYNC_EVENT_ALLOC_FD_HANDLE)
	if err = cmd.Run(file); err == nil {
		c.async, err = file.Events(int32(cmd.Handle(abi.UVERBS_ATTR_ASYNC_EVENT_ALLOC_FD_HANDLE)))
	}
	if err != nil {
		drv.Close()
		file.Close()
		return nil, opError("create", "async event file", err)
	}
	return c, nil
}

// GetContext issues GET_CONTEXT with the driver's payloads, for providers.
func (c *Context) GetContext(uhwIn, uhwOut []byte) error {
	out := new(struct {
		vectors uint32
		support uint64
	})
	cmd := c.command(abi.UVERBS_OBJECT_DEVICE, abi.UVERBS_METHOD_GET_CONTEXT)
	cmd.Out(abi.UVERBS_ATTR_GET_CONTEXT_NUM_COMP_VECTORS, kernel.Bytes(&out.vectors))
	cmd.Out(abi.UVERBS_ATTR_GET_CONTEXT_CORE_SUPPORT, kernel.Bytes(&out.support))
	cmd.UHW(uhwIn, uhwOut)
	if err := cmd.Run(c.file); err != nil {
		return err
	}
	c.numCompVectors = out.vectors
	return nil
}

func (c *Context) command(object, method uint16) *kernel.Command {
	return kernel.NewCommand(c.dev.info.DriverID, object, method)
}

func (c *Context) writeCommand(cmd uint32, in, out []byte) *kernel.Command {
	return kernel.NewWriteCommand(c.dev.info.DriverID, cmd, in, out)
}

// Device returns the device that was opened.
func (c *Context) Device() *Device { return c.dev }

// Driver returns the provider's half, for providers.
func (c *Context) Driver() ContextDriver { return c.drv }

// NumCompVectors returns the number of completion vectors (interrupts) that
// CQs can be spread over.
func (c *Context) NumCompVectors() int { return int(c.numCompVectors) }

// QueryDevice returns the device's attributes and limits.
func (c *Context) QueryDevice() (*DeviceAttr, error) {
	in := new(abi.Ib_uverbs_ex_query_device)
	out := new(abi.Ib_uverbs_ex_query_device_resp)
	err := c.writeCommand(abi.IB_USER_VERBS_EX_CMD_QUERY_DEVICE, kernel.Bytes(in), kernel.Bytes(out)).Run(c.file)
	if errors.Is(err, syscall.EOPNOTSUPP) || errors.Is(err, syscall.ENOSYS) {
		in := new(abi.Ib_uverbs_query_device)
		err = c.writeCommand(abi.IB_USER_VERBS_CMD_QUERY_DEVICE, kernel.Bytes(in), kernel.Bytes(&out.Base)).Run(c.file)
	}
	if err != nil {
		return nil, opError("query", "device "+c.dev.Name(), err)
	}
	b := &out.Base
	return &DeviceAttr{
		FirmwareVersion:   fmt.Sprintf("%d.%d.%04d", b.Fw_ver>>32, b.Fw_ver>>16&0xffff, b.Fw_ver&0xffff),
		NodeGUID:          b.Node_guid,
		SysImageGUID:      b.Sys_image_guid,
		MaxMRSize:         b.Max_mr_size,
		PageSizeCap:       b.Page_size_cap,
		VendorID:          b.Vendor_id,
		VendorPartID:      b.Vendor_part_id,
		HWVersion:         b.Hw_ver,
		MaxQP:             int(b.Max_qp),
		MaxQPWR:           int(b.Max_qp_wr),
		MaxSGE:            int(b.Max_sge),
		MaxSGERead:        int(b.Max_sge_rd),
		MaxCQ:             int(b.Max_cq),
		MaxCQE:            int(b.Max_cqe),
		MaxMR:             int(b.Max_mr),
		MaxPD:             int(b.Max_pd),
		MaxAH:             int(b.Max_ah),
		MaxSRQ:            int(b.Max_srq),
		MaxSRQWR:          int(b.Max_srq_wr),
		MaxQPRdAtomic:     int(b.Max_qp_rd_atom),
		MaxQPInitRdAtomic: int(b.Max_qp_init_rd_atom),
		AtomicCap:         b.Atomic_cap,
		MaxPKeys:          int(b.Max_pkeys),
		Ports:             int(b.Phys_port_cnt),
	}, nil
}

// QueryPort returns the attributes of a port; ports count from 1.
func (c *Context) QueryPort(port uint8) (*PortAttr, error) {
	out := new(abi.Ib_uverbs_query_port_resp_ex)
	cmd := c.command(abi.UVERBS_OBJECT_DEVICE, abi.UVERBS_METHOD_QUERY_PORT)
	cmd.Const(abi.UVERBS_ATTR_QUERY_PORT_PORT_NUM, uint64(port))
	cmd.Out(abi.UVERBS_ATTR_QUERY_PORT_RESP, kernel.Bytes(out))
	if err := cmd.Run(c.file); err != nil {
		return nil, opError("query", fmt.Sprintf("port %d of %s", port, c.dev.Name()), err)
	}
	p := &out.Legacy_resp
	return &PortAttr{
		State:       PortState(p.State),
		MaxMTU:      MTU(p.Max_mtu),
		ActiveMTU:   MTU(p.Active_mtu),
		GIDTblLen:   int(p.Gid_tbl_len),
		PKeyTblLen:  int(p.Pkey_tbl_len),
		MaxMsgSize:  p.Max_msg_sz,
		LID:         p.Lid,
		SMLID:       p.Sm_lid,
		PhysState:   p.Phys_state,
		LinkLayer:   LinkLayer(p.Link_layer),
		ActiveWidth: p.Active_width,
		ActiveSpeed: p.Active_speed,
	}, nil
}

// maxGIDs bounds what one GID table query asks for.
const maxGIDs = 4096

// QueryGIDTable returns all filled slots of the GID tables of all ports.
// Kernels before 5.10 lack the command (EPROTONOSUPPORT).
func (c *Context) QueryGIDTable() ([]GIDEntry, error) {
	entries := make([]abi.Ib_uverbs_gid_entry, maxGIDs)
	size := int(unsafe.Sizeof(entries[0]))
	num := new(uint64)
	cmd := c.command(abi.UVERBS_OBJECT_DEVICE, abi.UVERBS_METHOD_QUERY_GID_TABLE)
	cmd.Const(abi.UVERBS_ATTR_QUERY_GID_TABLE_ENTRY_SIZE, uint64(size))
	cmd.U32(abi.UVERBS_ATTR_QUERY_GID_TABLE_FLAGS, 0)
	cmd.Out(abi.UVERBS_ATTR_QUERY_GID_TABLE_RESP_ENTRIES, unsafe.Slice((*byte)(unsafe.Pointer(&entries[0])), size*maxGIDs))
	cmd.Out(abi.UVERBS_ATTR_QUERY_GID_TABLE_RESP_NUM_ENTRIES, kernel.Bytes(num))
	if err := cmd.Run(c.file); err != nil {
		return nil, opError("query", "GID table of "+c.dev.Name(), err)
	}
	if *num > maxGIDs {
		return nil, opError("query", "GID table of "+c.dev.Name(), ErrBadAnswer)
	}
	gids := make([]GIDEntry, *num)
	for i := range gids {
		gids[i] = gidEntry(&entries[i])
	}
	return gids, nil
}

// QueryGID returns one slot of a port's GID table. An empty slot is ENODATA.
func (c *Context) QueryGID(port uint8, index int) (GIDEntry, error) {
	out := new(abi.Ib_uverbs_gid_entry)
	cmd := c.command(abi.UVERBS_OBJECT_DEVICE, abi.UVERBS_METHOD_QUERY_GID_ENTRY)
	cmd.Const(abi.UVERBS_ATTR_QUERY_GID_ENTRY_PORT, uint64(port))
	cmd.Const(abi.UVERBS_ATTR_QUERY_GID_ENTRY_GID_INDEX, uint64(index))
	cmd.U32(abi.UVERBS_ATTR_QUERY_GID_ENTRY_FLAGS, 0)
	cmd.Out(abi.UVERBS_ATTR_QUERY_GID_ENTRY_RESP_ENTRY, kernel.Bytes(out))
	if err := cmd.Run(c.file); err != nil {
		return GIDEntry{}, opError("query", fmt.Sprintf("GID %d of port %d of %s", index, port, c.dev.Name()), err)
	}
	return gidEntry(out), nil
}

func gidEntry(e *abi.Ib_uverbs_gid_entry) GIDEntry {
	return GIDEntry{GID: e.Gid, Port: uint8(e.Port_num), Index: int(e.Gid_index), Type: GIDType(e.Gid_type), IfIndex: int(e.Netdev_ifindex)}
}

// QueryPKey returns one slot of a port's P_Key table, host order. The kernel
// shows it in sysfs alone.
func (c *Context) QueryPKey(port uint8, index int) (uint16, error) {
	object := fmt.Sprintf("P_Key %d of port %d of %s", index, port, c.dev.Name())
	s, err := c.dev.k.Attr(fmt.Sprintf("ports/%d/pkeys/%d", port, index))
	if err != nil {
		return 0, opError("query", object, err)
	}
	v, err := strconv.ParseUint(strings.TrimPrefix(strings.TrimSpace(s), "0x"), 16, 16)
	if err != nil {
		return 0, opError("query", object, ErrBadAnswer)
	}
	return uint16(v), nil
}

// WaitAsyncEvent blocks until the device reports an event that belongs to no
// work request, or until ctx ends.
func (c *Context) WaitAsyncEvent(ctx context.Context) (AsyncEvent, error) {
	desc := new(abi.Ib_uverbs_async_event_desc)
	n, err := c.async.ReadEvent(ctx, kernel.Bytes(desc))
	if err != nil {
		return AsyncEvent{}, opError("read", "async event", err)
	}
	if n != int(unsafe.Sizeof(*desc)) {
		return AsyncEvent{}, opError("read", "async event", ErrBadAnswer)
	}
	ev := AsyncEvent{Type: EventType(desc.Event_type)}
	c.mu.Lock()
	defer c.mu.Unlock()
	switch ev.Type.object() {
	case "cq":
		ev.CQ = c.cqs[desc.Element]
	case "qp":
		ev.QP = c.qps[desc.Element]
	case "port":
		ev.Port = uint8(desc.Element)
	}
	return ev, nil
}

// Close closes the device; the kernel destroys what is left of its objects.
func (c *Context) Close() error {
	c.mu.Lock()
	closed := c.closed
	c.closed = true
	c.mu.Unlock()
	if closed {
		return opError("close", "device "+c.dev.Name(), ErrClosed)
	}
	return errors.Join(c.async.Close(), c.drv.Close(), c.file.Close())
}

func (c *Context) userHandle() uint64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.nextHandle++
	return c.nextHandle
}
