package mlx5sim

import (
	"fmt"
	"io/fs"
	"strconv"
	"strings"
	"syscall"
)

// Attr implements kernel.Device: the text attributes that mlx5_ib shows below
// /sys/class/infiniband/<name>/.
func (d *Device) Attr(path string) (string, error) {
	switch path {
	case "node_guid", "sys_image_guid":
		g := d.nodeGUID()
		return fmt.Sprintf("%x:%x:%x:%x", g[0:2], g[2:4], g[4:6], g[6:8]), nil
	case "node_type":
		return "1: CA", nil
	case "fw_ver":
		return fmt.Sprintf("%d.%d.%04d", fwVersion>>32, fwVersion>>16&0xffff, fwVersion&0xffff), nil
	case "hca_type":
		return "MT4123", nil
	case "hw_rev":
		return "0", nil
	case "board_id":
		return "MT_0000000223", nil
	case "node_desc":
		return d.name, nil
	}
	port, ok := strings.CutPrefix(path, "ports/1/")
	if !ok {
		return "", notExist(path)
	}
	switch port {
	case "state":
		if d.isDown() {
			return "1: DOWN", nil
		}
		return "4: ACTIVE", nil
	case "phys_state":
		if d.isDown() {
			return "3: Disabled", nil
		}
		return "5: LinkUp", nil
	case "link_layer":
		if d.infiniband() {
			return "InfiniBand", nil
		}
		return "Ethernet", nil
	case "rate":
		return "200 Gb/sec (4X HDR)", nil
	case "lid":
		return fmt.Sprintf("%#x", d.lid), nil
	case "sm_lid":
		if d.infiniband() {
			return fmt.Sprintf("%#x", smLID), nil
		}
		return "0x0", nil
	case "lid_mask_count", "sm_sl":
		return "0", nil
	case "cap_mask":
		return fmt.Sprintf("%#08x", d.portCaps()), nil
	case "pkeys/0":
		return fmt.Sprintf("%#04x", pkeyDefault), nil
	}
	if n, ok := strings.CutPrefix(port, "gids/"); ok {
		g, err := d.slot(path, n)
		if err != nil {
			return "", err
		}
		var gid [16]byte // an empty slot reads as zeros
		if g != nil {
			gid = g.gid
		}
		var parts [8]string
		for i := range parts {
			parts[i] = fmt.Sprintf("%x", gid[2*i:2*i+2])
		}
		return strings.Join(parts[:], ":"), nil
	}
	types := strings.HasPrefix(port, "gid_attrs/types/")
	if !types && !strings.HasPrefix(port, "gid_attrs/ndevs/") {
		return "", notExist(path)
	}
	g, err := d.slot(path, port[len("gid_attrs/types/"):])
	switch {
	case err != nil:
		return "", err
	case g == nil, !types && d.ifname == "":
		return "", syscall.EINVAL
	case !types:
		return d.ifname, nil
	case g.typ != gidRoCEv2:
		return "IB/RoCE v1", nil
	}
	return "RoCE v2", nil
}

// slot finds GID slot n of the table; nil if it is empty.
func (d *Device) slot(path, n string) (*gidSlot, error) {
	i, err := strconv.ParseUint(n, 10, 16)
	if err != nil || i >= gidTableLen || strconv.FormatUint(i, 10) != n {
		return nil, notExist(path)
	}
	if i >= uint64(len(d.gids)) {
		return nil, nil
	}
	return &d.gids[i], nil
}

func notExist(path string) error {
	return &fs.PathError{Op: "read", Path: path, Err: fs.ErrNotExist}
}
