package mlx5sim

import "syscall"

// Limits of the simulated device: a ConnectX-6.
const (
	maxSQDescBytes = 1024
	maxRQDescBytes = 512
	maxWQEBBs      = 1 << 15
	maxRecvWR      = 1 << 15
	maxSRQWR       = 1 << 15
	maxCQESlots    = 1 << 22
	maxRdAtomic    = 16
	bfRegBytes     = 512
	cacheLineBytes = 64
	dumpFillMKey   = 0x300
	maxStaticBF    = 512 // MLX5_MAX_BFREGS
	noUIDX         = 0xffffff
)

const (
	libCap4KUAR  = 1 << 0 // MLX5_LIB_CAP_4K_UAR
	libCapDynUAR = 1 << 1 // MLX5_LIB_CAP_DYN_UAR

	uctxDEVX = 1 << 0 // MLX5_IB_ALLOC_UCTX_DEVX
)

// comp_mask of struct mlx5_ib_alloc_ucontext_resp: DUMP_FILL_MKEY, ECE,
// SQD2RTS, MKEY_UPDATE_TAG. CORE_CLOCK_OFFSET is not among them: there is no
// clock page to map.
const uctxRespMask = 1<<1 | 1<<2 | 1<<3 | 1<<5

// getContext answers GET_CONTEXT with its driver-private half: struct
// mlx5_ib_alloc_ucontext_req_v2 of 16, 24 or 32 bytes, and struct
// mlx5_ib_alloc_ucontext_resp.
func (c *call) getContext() error {
	f := c.f
	if f.ready {
		return syscall.EINVAL
	}
	var req [32]byte
	n, err := c.in(attrUHWIn, req[:])
	if err != nil {
		return err
	}
	if n != 8 && n < 16 { // version 1 is 8 bytes: the two counts
		return syscall.EINVAL
	}
	total, low := le.Uint32(req[0:]), le.Uint32(req[4:])
	flags := le.Uint32(req[8:])
	if flags&^uint32(uctxDEVX) != 0 || le.Uint32(req[12:])|le.Uint32(req[20:]) != 0 || req[17]|req[18]|req[19] != 0 {
		return syscall.EOPNOTSUPP
	}
	if flags&uctxDEVX != 0 {
		return syscall.EINVAL // the device has no DEVX
	}
	total = (total + 1) &^ 1
	if total == 0 || low > total-1 {
		return syscall.EINVAL
	}
	caps := le.Uint64(req[24:])
	dyn := caps&libCapDynUAR != 0
	if !dyn && total > maxStaticBF {
		return syscall.ENOMEM
	}

	cqeVersion := min(req[16], 1)
	static := total
	if dyn {
		static = 0
	}
	if err := firstError(
		c.putU32(attrCtxVectors, numCompVectors),
		c.putU64(attrCtxSupport, 1), // OPTIONAL_MR_ACCESS
		c.putUHW(uctxResp(c.len(attrUHWOut), static, cqeVersion))); err != nil {
		return err
	}
	f.dynUAR = dyn
	if !dyn {
		for range total / bfregsPerPage {
			if _, err := f.newUAR(); err != nil {
				f.dropUARs()
				return err
			}
		}
		f.bfregs, f.lowLatency = make([]uint32, total), int(low)
	}
	f.ready, f.cqeVersion = true, cqeVersion
	return nil
}

// uctxResp is the first n bytes of struct mlx5_ib_alloc_ucontext_resp.
func uctxResp(n int, bfregs uint32, cqeVersion uint8) []byte {
	var resp [72]byte
	n = min(n, len(resp))
	le.PutUint32(resp[0:], 1<<18) // qp_tab_size
	le.PutUint32(resp[4:], bfRegBytes)
	le.PutUint32(resp[8:], bfregs) // tot_bfregs
	le.PutUint32(resp[12:], cacheLineBytes)
	le.PutUint16(resp[16:], maxSQDescBytes)
	le.PutUint16(resp[18:], maxRQDescBytes)
	le.PutUint32(resp[20:], maxWQEBBs)
	le.PutUint32(resp[24:], maxRecvWR)
	le.PutUint32(resp[28:], maxSRQWR)
	le.PutUint16(resp[32:], 1) // num_ports
	le.PutUint32(resp[36:], uctxRespMask)
	le.PutUint32(resp[40:], uint32(n)) // response_length
	resp[44] = cqeVersion
	resp[45] = 3                // cmds_supp_uhw: QUERY_DEVICE, CREATE_AH
	resp[46] = 1                // eth_min_inline: none needed
	le.PutUint32(resp[56:], 12) // log_uar_size
	le.PutUint32(resp[60:], 1)  // num_uars_per_page
	le.PutUint32(resp[68:], dumpFillMKey)
	return resp[:n]
}

// queryContext answers UVERBS_METHOD_QUERY_CONTEXT: what GET_CONTEXT said, for
// who was handed an open device.
func (c *call) queryContext() error {
	f := c.f
	return firstError(
		c.putU32(attrCtxVectors, numCompVectors),
		c.putU64(attrCtxSupport, 1),
		c.put(attrQueryCtxUCtx, uctxResp(c.len(attrQueryCtxUCtx), uint32(len(f.bfregs)), f.cqeVersion)))
}

// asyncEventAlloc answers UVERBS_METHOD_ASYNC_EVENT_ALLOC. The file's first
// async event file gets the events of all its objects.
func (c *call) asyncEventAlloc() error {
	e, err := c.newEvents(true)
	if err != nil {
		return err
	}
	if c.f.async == nil {
		c.f.async = e
	}
	c.setHandle(attrAsyncFD, uint32(e.fd))
	return nil
}

// createCompChannel answers CREATE_COMP_CHANNEL.
func (c *call) createCompChannel() error {
	if a := c.arg(attrCoreOut); !c.f.dma.Mapped(a.data, 4) {
		return syscall.EFAULT // before the program has a descriptor that nobody told it of
	}
	e, err := c.newEvents(false)
	if err != nil {
		return err
	}
	var out [4]byte // struct ib_uverbs_create_comp_channel_resp
	le.PutUint32(out[:], uint32(e.fd))
	if err := c.respond(out[:], nil); err != nil {
		delete(c.f.events, e.fd)
		return err
	}
	return nil
}
