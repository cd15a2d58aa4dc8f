package mlx5sim

import (
	"encoding/binary"
	"syscall"
)

const (
	fwVersion   = 20<<32 | 35<<16 | 1012
	vendorID    = 0x2c9
	partID      = 0x101b
	deviceCaps  = 0x21361c36
	portCaps    = 0x04010000
	portCapsIB  = 0x2651e848
	maxMsgBytes = 1 << 30
	pkeyDefault = 0xffff

	portActive    = 4  // IB_PORT_ACTIVE
	physLinkUp    = 5  // IB_PORT_PHYS_STATE_LINK_UP
	linkIB        = 1  // IB_LINK_LAYER_INFINIBAND
	linkEthernet  = 2  // IB_LINK_LAYER_ETHERNET
	vls0to3       = 3  // code of 4 data VLs
	subnetTimeout = 18 // 4.096 us * 2^18, as opensm sets it
	width4X       = 2  // IB_WIDTH_4X
	speedHDR      = 64

	gidIB     = 0 // IB_UVERBS_GID_TYPE_IB
	gidRoCEv1 = 1 // IB_UVERBS_GID_TYPE_ROCE_V1
	gidRoCEv2 = 2 // IB_UVERBS_GID_TYPE_ROCE_V2
)

// writer appends little-endian fields: an answer is written in the order of
// its struct.
type writer []byte

func (w *writer) u8(v ...uint8) { *w = append(*w, v...) }
func (w *writer) u16(v ...uint16) {
	for _, x := range v {
		*w = binary.LittleEndian.AppendUint16(*w, x)
	}
}
func (w *writer) u32(v ...uint32) {
	for _, x := range v {
		*w = binary.LittleEndian.AppendUint32(*w, x)
	}
}
func (w *writer) u64(v ...uint64) {
	for _, x := range v {
		*w = binary.LittleEndian.AppendUint64(*w, x)
	}
}

// deviceResp is struct ib_uverbs_query_device_resp, 176 bytes.
func (d *Device) deviceResp() []byte {
	guid := d.nodeGUID()
	w := make(writer, 0, 304)
	w.u64(fwVersion)
	w.u8(guid[:]...)
	w.u8(guid[:]...)
	w.u64(^uint64(0))            // max_mr_size
	w.u64(^uint64(pageSize - 1)) // page_size_cap
	w.u32(vendorID, partID, 0)   // hw_ver 0
	w.u32(1<<17, maxWQEBBs)      // max_qp, max_qp_wr
	w.u32(deviceCaps)            //
	w.u32(30, 30)                // max_sge, max_sge_rd
	w.u32(1<<24, maxCQESlots-1)  // max_cq, max_cqe
	w.u32(1<<24, 1<<23)          // max_mr, max_pd
	w.u32(maxRdAtomic, 0)        // max_qp_rd_atom, max_ee_rd_atom
	w.u32(maxRdAtomic << 17)     // max_res_rd_atom
	w.u32(maxRdAtomic, 0)        // max_qp_init_rd_atom, max_ee_init_rd_atom
	w.u32(1)                     // atomic_cap: IB_ATOMIC_HCA
	w.u32(0, 0)                  // max_ee, max_rdd
	w.u32(1<<24, 0, 0)           // max_mw, max_raw_ipv6_qp, max_raw_ethy_qp
	w.u32(1<<21, 240, 240<<21)   // max_mcast_grp, _qp_attach, max_total_mcast_qp_attach
	w.u32(1<<31-1, 0, 0)         // max_ah, max_fmr, max_map_per_fmr
	w.u32(1<<23, maxSRQWR-1, 31) // max_srq, max_srq_wr, max_srq_sge
	w.u16(128)                   // max_pkeys
	w.u8(16, 1)                  // local_ca_ack_delay, phys_port_cnt
	w.u32(0)                     //
	return w
}

// queryDevice answers QUERY_DEVICE.
func (c *call) queryDevice() error {
	return c.respond(c.f.dev.deviceResp(), nil)
}

// queryDeviceEx answers the extended QUERY_DEVICE, struct
// ib_uverbs_ex_query_device_resp, and struct mlx5_ib_query_device_resp: the
// device has none of the optional capabilities of the latter.
func (c *call) queryDeviceEx() error {
	var req [8]byte
	if err := c.coreIn(req[:]); err != nil {
		return err
	}
	if le.Uint64(req[:]) != 0 {
		return syscall.EINVAL
	}
	if a := c.arg(attrUHWIn); a != nil && !c.zeroBeyond(a, 0) {
		return syscall.EINVAL
	}
	w := writer(c.f.dev.deviceResp())
	w.u32(0, 304) // comp_mask, response_length
	if c.f.faultable() != nil {
		w.u64(odpSupport | odpImplicit)
		w.u32(odpReliable, 0, odpDatagrams, 0) // RC, UC, UD
	} else {
		w.u64(0, 0, 0)
	}
	w.u64(1<<63 - 1)                           // timestamp_mask
	w.u64(1000000)                             // hca_core_clock, kHz
	w.u64(deviceCaps)                          // device_cap_flags_ex
	w = append(w, make([]byte, 304-len(w))...) // RSS, raw packets, tag matching, moderation, device memory
	n := min(c.len(attrCoreOut), len(w))       // older callers have less room
	le.PutUint32(w[180:], uint32(n))           // response_length
	uhw := make([]byte, 104)
	n = c.len(attrUHWOut)
	if n > 0 && n < 8 {
		return syscall.EINVAL
	}
	// Whole fields only: comp_mask, response_length; tso_caps; rss_caps;
	// cqe_comp_caps; packet_pacing_caps; multi-packet WQEs; flags; sw_parsing_caps;
	// striding_rq_caps; tunnel_offloads_caps; dci_streams_caps.
	length := 0
	for _, end := range [...]int{8, 16, 32, 40, 56, 60, 64, 72, 96, 100, 104} {
		if end <= n {
			length = end
		}
	}
	le.PutUint32(uhw[4:], uint32(length))
	return c.respond(w, uhw[:length])
}

func (d *Device) portCaps() uint32 {
	if d.infiniband() {
		return portCapsIB
	}
	return portCaps
}

// portResp is struct ib_uverbs_query_port_resp, 40 bytes.
func (d *Device) portResp() []byte {
	mtu := uint8(d.opt.mtu)
	state, phys := d.portState()
	w := make(writer, 0, 48)
	link := uint8(linkEthernet)
	var sm uint16
	var vls, timeout uint8
	grhRequired := uint8(1)
	if d.infiniband() {
		link, sm, vls, timeout, grhRequired = linkIB, smLID, vls0to3, subnetTimeout, 0
	}
	w.u32(d.portCaps(), maxMsgBytes, 0, 0, gidTableLen)
	w.u16(1, d.lid, sm) // pkey_tbl_len, lid, sm_lid
	w.u8(state, mtu, mtu, 0, vls, 0, timeout, 0)
	w.u8(width4X, speedHDR, phys, link, grhRequired, 0)
	return w
}

// queryPort answers UVERBS_METHOD_QUERY_PORT, struct
// ib_uverbs_query_port_resp_ex.
func (c *call) queryPort() error {
	if c.word(attrPortNum) != 1 {
		return syscall.EINVAL
	}
	return c.put(attrPortResp, append(c.f.dev.portResp(), make([]byte, 8)...))
}

// queryPortWrite answers the write-style QUERY_PORT.
func (c *call) queryPortWrite() error {
	var req [16]byte // struct ib_uverbs_query_port
	if err := c.coreIn(req[:]); err != nil {
		return err
	}
	if req[8] != 1 {
		return syscall.EINVAL
	}
	return c.respond(c.f.dev.portResp(), nil)
}

// gidEntry is struct ib_uverbs_gid_entry, 32 bytes.
func (d *Device) gidEntry(i int) []byte {
	g := &d.gids[i]
	w := make(writer, 0, 32)
	w.u8(g.gid[:]...)
	w.u32(uint32(i), 1, uint32(g.typ), g.ifindex)
	return w
}

// queryGIDTable answers UVERBS_METHOD_QUERY_GID_TABLE.
func (c *call) queryGIDTable() error {
	d := c.f.dev
	size, room := c.word(attrGIDEntrySize), uint64(c.len(attrGIDEntries))
	if c.word(attrGIDFlags) != 0 || size == 0 || room/size < uint64(len(d.gids)) {
		return syscall.EINVAL
	}
	table := make([]byte, uint64(len(d.gids))*size)
	for i := range d.gids {
		// A caller with a shorter struct gets its beginning.
		e := d.gidEntry(i)
		copy(table[uint64(i)*size:], e[:min(uint64(len(e)), size)])
	}
	a := c.arg(attrGIDEntries)
	return firstError(c.write(a, table), c.putU64(attrGIDCount, uint64(len(d.gids))))
}

// queryGIDEntry answers UVERBS_METHOD_QUERY_GID_ENTRY.
func (c *call) queryGIDEntry() error {
	if c.word(attrGIDEntryFlags) != 0 || c.word(attrGIDPort) != 1 {
		return syscall.EINVAL
	}
	i := c.word(attrGIDIndex)
	if i >= gidTableLen {
		return syscall.EINVAL
	}
	if i >= uint64(len(c.f.dev.gids)) {
		return syscall.ENODATA
	}
	return c.put(attrGIDEntry, c.f.dev.gidEntry(int(i)))
}
