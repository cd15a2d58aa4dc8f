package mlx5sim

import (
	"syscall"
	"testing"
)

// capBits reads a field of a capability structure.
func capBits(b []byte, at, n uint) (v uint64) {
	for i := at; i < at+n; i++ {
		v = v<<1 | uint64(b[i/8]>>(7-i%8)&1)
	}
	return v
}

// TestHCACapabilitiesAgreeWithOtherAnswers: what QUERY_HCA_CAP tells is what
// GET_CONTEXT, QUERY_DEVICE and QUERY_PORT tell.
func TestHCACapabilitiesAgreeWithOtherAnswers(t *testing.T) {
	u := newUser(t)
	u.getContext()
	ask := func(opmod uint16, out int) (*tattr, []byte) {
		in := make([]byte, 16)
		be.PutUint16(in, cmdQueryHCACap)
		be.PutUint16(in[6:], opmod)
		o := u.out(attrDEVXOut, out)
		return &o, command(objDEVX, 0x1000, u.in(attrDEVXIn, in), o)
	}
	answer := func(typ uint16) []byte {
		o, cmd := ask(typ<<1|1, cmdHeaderBytes+hcaCapBytes)
		u.must(cmd)
		b := u.at(o.data, cmdHeaderBytes+hcaCapBytes)
		if b[0] != 0 {
			t.Errorf("type %d: status %d", typ, b[0])
		}
		return b[cmdHeaderBytes:]
	}
	dev := u.d.deviceResp()
	port := u.d.portResp()
	d32 := func(at int) uint64 { return uint64(le.Uint32(dev[at:])) }
	b := answer(capGeneral)
	for _, f := range []struct {
		name     string
		at, bits uint
		want     uint64
	}{
		// Offsets of QUERY_DEVICE's answer: max_qp 52, max_qp_wr 56, max_cq 72, max_cqe
		// 76, max_qp_rd_atom 88, local_ca_ack_delay 170.
		{"log_max_qp", 0x9b, 5, log2(d32(52))},
		{"log_max_qp_sz", 0x88, 8, log2(d32(56))},
		{"log_max_cq", 0xdb, 5, log2(d32(72))},
		{"log_max_cq_sz", 0xc8, 8, log2(d32(76) + 1)},
		{"log_max_srq_sz", 0x80, 8, log2(maxSRQWR)},
		{"log_max_ra_req_qp", 0x14a, 6, log2(maxRdAtomic)},
		{"log_max_ra_res_qp", 0x15a, 6, log2(maxRdAtomic)},
		{"local_ca_ack_delay", 0x1ab, 5, uint64(dev[170])},
		{"gid_table_size", 0x170, 16, log2(gidTableLen / 8)},
		{"num_ports", 0x1b8, 8, uint64(dev[171])},
		{"log_max_msg", 0x1c3, 5, log2(uint64(le.Uint32(port[4:])))},
		{"port_type", 0x1b6, 2, 1},
		{"cqe_version", 0x1fc, 4, uint64(u.f.cqeVersion)},
		{"log_bf_reg_size", 0x26b, 5, log2(bfRegBytes)},
		{"max_wqe_sz_sq", 0x290, 16, maxSQDescBytes},
		{"max_wqe_sz_rq", 0x2b0, 16, maxRQDescBytes},
		{"ud, uc, rc", 0x23d, 3, 7}, {"xrc", 0x23c, 1, 0}, {"dct", 0x21a, 1, 0}, {"atomic, roce", 0x21d, 2, 3},
		{"cqe_compression", 0x5bf, 1, 0}, {"tag_matching", 0x5f0, 1, 0}, {"crypto", 0x469, 1, 0}, {"hca_cap_2", 0x20, 1, 0},
		{"general_obj_types", 0x400, 64, 0}, {"qp_data_in_order", 0x62, 1, 0},
	} {
		if got := capBits(b, f.at, f.bits); got != f.want {
			t.Errorf("%s is %d, want %d", f.name, got, f.want)
		}
	}
	b = answer(capAtomic)
	if ops, size, pci := capBits(b, 0x90, 16), capBits(b, 0xb0, 16), capBits(b, 0x280, 48); ops != 3 || size != 8 || pci != 0 {
		t.Errorf("atomics %#x of %#x bytes, over PCI %#x", ops, size, pci)
	}
	b = answer(capODP)
	if faultable() != nil && (capBits(b, 0x80, 6) != 0x3f || capBits(b, 0xa0, 6) != 0 || capBits(b, 0xc0, 6) != 0x21) {
		t.Errorf("on-demand paging % x", b[0x10:0x20])
	}

	// Shorter answers are cut; what is not there is refused, by the device or the
	// kernel.
	o, cmd := ask(1, 48)
	u.must(cmd)
	if u.at(o.data, 48)[16+0x88/8] != 15 {
		t.Error("a short answer differs")
	}
	b = answer(0x1a) // cryptography
	for i, v := range b {
		if v != 0 {
			t.Fatalf("byte %d of what it cannot do is %#x", i, v)
		}
	}
	o, cmd = ask(0x21<<1|1, 64)
	u.want(errRemoteIO, cmd)
	if got := u.at(o.data, 1)[0]; got != cmdStatusBadArg {
		t.Errorf("status %d of a capability that nobody knows", got)
	}
	_, cmd = ask(1, 8)
	u.want(syscall.EINVAL, cmd)
	in := make([]byte, 16)
	be.PutUint16(in, cmdQueryHCACap)
	in[7], in[8] = 1, 0x80
	u.want(errRemoteIO, command(objDEVX, 0x1000, u.in(attrDEVXIn, in), u.out(attrDEVXOut, 64)))
	be.PutUint16(in, 0x842) // QUERY_LAG
	u.want(syscall.EINVAL, command(objDEVX, 0x1000, u.in(attrDEVXIn, in), u.out(attrDEVXOut, 64)))
}

func log2(v uint64) (n uint64) {
	for ; v > 1; v >>= 1 {
		n++
	}
	return n
}
