package mlx5sim

import (
	"net/netip"
	"syscall"
)

func (a *ah) busy() bool { return false }

func (a *ah) destroy() { a.pd.refs-- }

// createAH answers CREATE_AH: struct ib_uverbs_create_ah.
func (c *call) createAH() error {
	var in [56]byte
	if err := c.coreIn(in[:]); err != nil {
		return err
	}
	p, err := lookup[*pd](c.f, uint64(le.Uint32(in[16:])))
	if err != nil {
		return err
	}
	av := ahAttr(in[24:56])
	if err := c.f.dev.resolve(&av); err != nil {
		return err
	}
	a := &ah{pd: p}
	p.refs++
	if err := c.create(a, &a.handle); err != nil {
		return err
	}
	var out [4]byte // struct ib_uverbs_create_ah_resp
	le.PutUint32(out[:], a.handle)
	var uhw [16]byte // struct mlx5_ib_create_ah_resp
	mac := macOfGID(av.dgid)
	copy(uhw[4:], mac[:])
	n := c.len(attrUHWOut)
	if n == 0 || c.f.dev.infiniband() { // mlx5_ib resolves for RoCE alone
		return c.respond(out[:], nil)
	}
	// The driver needs room for the MAC address and says how much it wrote.
	if n < 12 {
		return syscall.EINVAL
	}
	n = min(n, len(uhw))
	le.PutUint32(uhw[0:], uint32(n))
	return c.respond(out[:], uhw[:n])
}

// ahAttr decodes struct ib_uverbs_ah_attr.
func ahAttr(b []byte) addressVector {
	return addressVector{
		dgid:         [16]byte(b[:16]),
		flowLabel:    le.Uint32(b[16:]) & 0xfffff,
		sgidIndex:    b[20],
		hopLimit:     b[21],
		trafficClass: b[22],
		sl:           b[26],
		srcPathBits:  b[27],
		dlid:         le.Uint16(b[24:]),
		isGlobal:     b[29] != 0,
		port:         b[30],
	}
}

// resolve checks an address vector as the kernel does before the device sees
// it, and resolves its destination as neighbour discovery would. Caller holds
// fab.mu.
func (d *Device) resolve(av *addressVector) error {
	if d.infiniband() {
		return d.resolveLID(av)
	}
	av.dlid, av.srcPathBits = 0, 0
	if av.port != 1 || !av.isGlobal {
		return syscall.EINVAL
	}
	if av.sgidIndex >= gidTableLen {
		return syscall.EINVAL
	}
	if int(av.sgidIndex) >= len(d.gids) {
		return syscall.ENODATA
	}
	s := d.gids[av.sgidIndex]
	a := netip.AddrFrom16(av.dgid).Unmap()
	if a.IsUnspecified() || av.dgid == ([16]byte{}) {
		return syscall.EINVAL
	}
	if a.IsMulticast() {
		return syscall.EINVAL // multicast groups are not modelled
	}
	if isLinkLocal(av.dgid) {
		// The GID holds the MAC address: nothing to resolve, and no route can
		// be missing.
		return nil
	}
	if isIPv4(av.dgid) != isIPv4(s.gid) {
		return syscall.EINVAL
	}
	if d.fab.byGID[av.dgid] != nil {
		return nil
	}
	if d.link == nil || s.typ != gidRoCEv2 {
		return syscall.ETIMEDOUT // nobody answers; RoCE v1 frames do not leave the process
	}
	return nil
}
