package uverbs

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"

	"github.com/rrppcc-go/rrppcc/internal/abi"
	"github.com/rrppcc-go/rrppcc/internal/kernel"
)

// Context is an opened device. All methods may be called from several
// goroutines at once. Close it after everything that was created through it.
type Context struct {
	dev     *Device
	file    kernel.File
	drv     ContextDriver
	async   kernel.EventFile
	netdevs func() ([]netdev, error) // of this network namespace

	numCompVectors uint32
	removed        atomic.Bool // the kernel said that the device is gone

	mu         sync.Mutex
	closed     bool
	nextHandle uint64         // user handles: never reused, never 0
	cqs        map[uint64]*CQ // by user handle
	qps        map[uint64]*QP // by user handle
	srqs       map[uint64]*SRQ
	channels   map[*CompChannel]struct{}
}

func newContext(d *Device, file kernel.File, p Provider) (*Context, error) {
	c := &Context{dev: d, file: file, netdevs: hostNetdevs,
		cqs: make(map[uint64]*CQ), qps: make(map[uint64]*QP), srqs: make(map[uint64]*SRQ), channels: make(map[*CompChannel]struct{})}
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
	if err := c.run(cmd); err != nil {
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
	err := c.run(c.writeCommand(abi.IB_USER_VERBS_EX_CMD_QUERY_DEVICE, kernel.Bytes(in), kernel.Bytes(out)))
	if errors.Is(err, syscall.EOPNOTSUPP) || errors.Is(err, syscall.ENOSYS) {
		in := new(abi.Ib_uverbs_query_device)
		err = c.run(c.writeCommand(abi.IB_USER_VERBS_CMD_QUERY_DEVICE, kernel.Bytes(in), kernel.Bytes(&out.Base)))
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
		MaxSRQSGE:         int(b.Max_srq_sge),
		MaxMW:             int(b.Max_mw),
		MaxMcastGroups:    int(b.Max_mcast_grp),
		MaxMcastQPAttach:  int(b.Max_mcast_qp_attach),
		Caps:              DeviceCaps(uint64(b.Device_cap_flags) | out.Device_cap_flags_ex),
		LocalCAAckDelay:   b.Local_ca_ack_delay,
		MaxQPRdAtomic:     int(b.Max_qp_rd_atom),
		MaxQPInitRdAtomic: int(b.Max_qp_init_rd_atom),
		AtomicCap:         b.Atomic_cap,
		MaxPKeys:          int(b.Max_pkeys),
		Ports:             int(b.Phys_port_cnt),

		ODP: ODPCaps{General: out.Odp_caps.General_caps, RC: out.Odp_caps.Rc_odp_caps, UC: out.Odp_caps.Uc_odp_caps,
			UD: out.Odp_caps.Ud_odp_caps},
		TimestampMask: out.Timestamp_mask,
		CoreClockKHz:  out.Hca_core_clock,
		MaxDMBytes:    out.Max_dm_size,
		MaxCQModCount: int(out.Cq_moderation_caps.Max_cq_moderation_count),
		MaxCQModUs:    int(out.Cq_moderation_caps.Max_cq_moderation_period),
	}, nil
}

// QueryPort returns the attributes of a port; ports count from 1.
func (c *Context) QueryPort(port uint8) (*PortAttr, error) {
	out := new(abi.Ib_uverbs_query_port_resp_ex)
	cmd := c.command(abi.UVERBS_OBJECT_DEVICE, abi.UVERBS_METHOD_QUERY_PORT)
	cmd.Const(abi.UVERBS_ATTR_QUERY_PORT_PORT_NUM, uint64(port))
	cmd.Out(abi.UVERBS_ATTR_QUERY_PORT_RESP, kernel.Bytes(out))
	if err := c.run(cmd); err != nil {
		return nil, portError(port, c.dev, err)
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

		CapFlags:      p.Port_cap_flags,
		CapFlags2:     out.Port_cap_flags2,
		Flags:         p.Flags,
		LMC:           p.Lmc,
		MaxVLNum:      p.Max_vl_num,
		SMSL:          p.Sm_sl,
		SubnetTimeout: p.Subnet_timeout,
		InitTypeReply: p.Init_type_reply,
		BadPKeys:      p.Bad_pkey_cntr,
		BadQKeys:      p.Qkey_viol_cntr,
	}, nil
}

// QueryPKey returns one slot of a port's P_Key table, host order. The kernel
// shows it in sysfs alone.
func (c *Context) QueryPKey(port uint8, index int) (uint16, error) {
	object := fmt.Sprintf("P_Key %d of port %d of %s", index, port, c.dev.Name())
	s, err := c.dev.k.Attr(fmt.Sprintf("ports/%d/pkeys/%d", port, index))
	if err != nil {
		return 0, opError("query", object, err)
	}
	v, err := kernel.ParsePKey(s)
	if err != nil {
		return 0, opError("query", object, fmt.Errorf("%w: %w", ErrBadAnswer, err))
	}
	return v, nil
}

// WaitAsyncEvent blocks until the device reports an event that belongs to no
// work request, or until ctx ends. Each event goes to one waiter. Close ends it
// with [ErrClosed], a device that goes away with [ErrDeviceRemoved].
func (c *Context) WaitAsyncEvent(ctx context.Context) (AsyncEvent, error) {
	desc := new(abi.Ib_uverbs_async_event_desc)
	if err := c.readEvent(ctx, c.async, kernel.Bytes(desc)); err != nil {
		return AsyncEvent{}, opError("read", "async event", err)
	}
	ev := AsyncEvent{Type: EventType(desc.Event_type)}
	if ev.Type == EventDeviceFatal {
		c.fatal()
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	switch ev.Type.object() {
	case "cq":
		ev.CQ = c.cqs[desc.Element]
	case "qp":
		ev.QP = c.qps[desc.Element]
	case "srq":
		ev.SRQ = c.srqs[desc.Element]
	case "port":
		ev.Port = uint8(desc.Element)
	}
	return ev, nil
}

// readEvent reads exactly one record from an event file.
func (c *Context) readEvent(ctx context.Context, file kernel.EventFile, record []byte) error {
	n, err := file.ReadEvent(ctx, record)
	switch {
	case errors.Is(err, fs.ErrClosed) && file == c.async && c.removed.Load() && !c.isClosed():
		return fmt.Errorf("%w: %w", ErrDeviceRemoved, syscall.EIO)
	case errors.Is(err, fs.ErrClosed):
		return fmt.Errorf("%w: %w", ErrClosed, err)
	case errors.Is(err, syscall.EIO):
		return fmt.Errorf("%w: %w", ErrDeviceRemoved, err)
	case err != nil:
		return err
	case n != len(record):
		return fmt.Errorf("%w: event of %d bytes, not %d", ErrBadAnswer, n, len(record))
	}
	return nil
}

// Close closes the device. CQs, QPs, SRQs and completion channels that are still open
// are closed with it, and nobody may use their queues any more; the kernel
// destroys what is left of the other objects.
func (c *Context) Close() error {
	c.mu.Lock()
	if c.closed {
		c.mu.Unlock()
		return opError("close", "device "+c.dev.Name(), ErrClosed)
	}
	c.closed = true // nothing is added to the maps any more
	qps, cqs, srqs := slices.Collect(maps.Values(c.qps)), slices.Collect(maps.Values(c.cqs)), slices.Collect(maps.Values(c.srqs))
	channels := slices.Collect(maps.Keys(c.channels))
	c.mu.Unlock()

	// In the order in which the kernel lets them go.
	for _, qp := range qps {
		qp.Close()
	}
	for _, srq := range srqs {
		srq.Close()
	}
	for _, cq := range cqs {
		cq.Close()
	}
	for _, ch := range channels {
		ch.Close()
	}
	var errs []error
	if err := c.async.Close(); !errors.Is(err, fs.ErrClosed) { // a device that went away has ended it
		errs = append(errs, err)
	}
	// What the kernel did not destroy one by one (it answers EIO to everything
	// once the device is gone) goes with the file. Its queues' memory may be
	// unmapped before: the kernel holds the pages until then. The provider comes
	// after them, because they use what it shares out.
	for _, qp := range qps {
		errs = append(errs, qp.abandon())
	}
	for _, srq := range srqs {
		errs = append(errs, srq.abandon())
	}
	for _, cq := range cqs {
		errs = append(errs, cq.abandon())
	}
	if err := c.drv.Close(); err != nil && !c.lost(err) { // its objects went with the device
		errs = append(errs, err)
	}
	errs = append(errs, c.file.Close())
	return opError("close", "device "+c.dev.Name(), errors.Join(errs...))
}

// adopt enters an object in the maps by way of add, unless the context is
// closed.
func (c *Context) adopt(add func()) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return ErrClosed
	}
	add()
	return nil
}

func (c *Context) isClosed() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.closed
}

func (c *Context) userHandle() uint64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.nextHandle++
	return c.nextHandle
}
