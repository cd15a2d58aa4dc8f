package mlx5sim

import "syscall"

// QUERY_HCA_CAP, by the one method of DEVX that answers programs which did not ask
// for DEVX: mlx5_ib lets it through for everybody. What is told are capabilities
// of this device, in the layout of the PRM's "HCA capabilities"; all that is not
// named here is 0: it cannot.

const (
	cmdQueryHCACap  = 0x100
	cmdHeaderBytes  = 16 // of a command's answer: status, syndrome
	hcaCapBytes     = 4096
	cmdStatusBadArg = 3 // MLX5_CMD_STAT_BAD_PARAM_ERR

	// enum mlx5_cap_type, above the bit that asks for what is in force.
	capGeneral = 0
	capODP     = 2
	capAtomic  = 3
	capLast    = 0x20 // the highest that the PRM of these devices has
)

// errRemoteIO is Linux's EREMOTEIO, which not every system has a name for.
const errRemoteIO = syscall.Errno(121)

// capField is a field of a capability structure: where it begins, in bits from
// the most significant one of the first byte, how many it has, and its value.
type capField struct {
	at, bits uint
	value    uint64
}

// hcaCaps is what the device can, by type.
func (c *call) hcaCaps(typ uint16) ([]capField, bool) {
	odp := c.f.faultable() != nil
	portType := bit(!c.f.dev.infiniband())
	switch typ {
	case capGeneral:
		return []capField{
			{0x80, 8, 15},        // log_max_srq_sz
			{0x88, 8, 15},        // log_max_qp_sz
			{0x9b, 5, 17},        // log_max_qp
			{0xab, 5, 23},        // log_max_srq
			{0xc8, 8, 22},        // log_max_cq_sz
			{0xdb, 5, 24},        // log_max_cq
			{0xea, 6, 24},        // log_max_mkey
			{0xf8, 1, 1},         // dump_fill_mkey
			{0x14a, 6, 4},        // log_max_ra_req_qp: 16 outstanding READs and atomics
			{0x15a, 6, 4},        // log_max_ra_res_qp
			{0x170, 16, 1},       // gid_table_size: 8 << 1
			{0x190, 16, 0},       // pkey_table_size: 128 << 0
			{0x1ab, 5, 16},       // local_ca_ack_delay
			{0x1b6, 2, portType}, // InfiniBand 0, Ethernet 1
			{0x1b8, 8, 1},        // num_ports
			{0x1c3, 5, 30},       // log_max_msg
			{0x1fc, 4, 1},        // cqe_version
			{0x215, 1, 1},        // sctr_data_cqe
			{0x21d, 1, portType}, // roce
			{0x21e, 1, 1},        // atomic
			{0x220, 1, 1},        // cq_oi
			{0x221, 1, 1},        // cq_resize
			{0x227, 1, bit(odp)}, // pg
			{0x23d, 1, 1},        // ud
			{0x23e, 1, 1},        // uc
			{0x23f, 1, 1},        // rc
			{0x240, 1, 1},        // uar_4k
			{0x258, 8, 12},       // log_pg_sz
			{0x260, 1, 1},        // bf
			{0x26b, 5, 9},        // log_bf_reg_size
			{0x290, 16, maxSQDescBytes},
			{0x2b0, 16, maxRQDescBytes},
			{0x32b, 5, 23},  // log_max_pd
			{0x490, 16, 12}, // log_uar_page_sz
			{0x520, 32, 1},  // num_of_uars_per_page
		}, true
	case capAtomic:
		return []capField{
			{0x90, 16, 3},      // COMPARE & SWAP, FETCH & ADD
			{0xb0, 16, 1 << 3}, // of 8 bytes
		}, true
	case capODP:
		if !odp {
			return nil, true
		}
		// Bits from the top: send, receive, write, read, atomic, SRQ receive.
		return []capField{{0x80, 6, 0x3f}, {0xc0, 6, 0x21}}, true
	}
	return nil, typ <= capLast // steering and the like: nothing of it
}

func bit(b bool) uint64 { return uint64(b2u8(b)) }

// put writes f's value into b.
func (f *capField) put(b []byte) {
	for i := range f.bits {
		if f.value>>(f.bits-1-i)&1 != 0 {
			at := f.at + i
			b[at/8] |= 0x80 >> (at % 8)
		}
	}
}

// devxOther answers MLX5_IB_METHOD_DEVX_OTHER: QUERY_HCA_CAP, and no other
// command, because no context has DEVX.
func (c *call) devxOther() error {
	var in [16]byte
	if _, err := c.in(attrDEVXIn, in[:]); err != nil {
		return err
	}
	if be.Uint16(in[0:]) != cmdQueryHCACap {
		return syscall.EINVAL
	}
	out := make([]byte, cmdHeaderBytes+hcaCapBytes)
	fields, ok := c.hcaCaps(be.Uint16(in[6:]) >> 1)
	if !ok || in[8]&0x80 != 0 { // other_function: a manager's right
		out[0] = cmdStatusBadArg
		if err := c.put(attrDEVXOut, out[:cmdHeaderBytes]); err != nil {
			return err
		}
		return errRemoteIO // the device refused: see the answer
	}
	for i := range fields {
		fields[i].put(out[cmdHeaderBytes:])
	}
	return c.put(attrDEVXOut, out)
}
