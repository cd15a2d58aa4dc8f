package uverbs

import (
	"errors"
	"fmt"
	"io/fs"
	"math"
	"syscall"

	"github.com/rrppcc-go/rrppcc/internal/abi"
	"github.com/rrppcc-go/rrppcc/internal/kernel"
)

const (
	gidEntrySize = 32 // struct ib_uverbs_gid_entry, bytes
	// maxTable is how many entries one command can bring: an attribute's length
	// has 16 bits.
	maxTable = math.MaxUint16 / gidEntrySize
	// maxSlots bounds a search slot by slot, over all ports.
	maxSlots = 1 << 16
)

// QueryGIDTable returns all filled slots of the GID tables of all ports. On
// kernels before 5.10, which lack the command, it reads sysfs.
func (c *Context) QueryGIDTable() ([]GIDEntry, error) {
	gids, err := c.gidTable()
	switch {
	case errors.Is(err, syscall.EPROTONOSUPPORT):
		gids, err = c.gidSlots(c.sysfsGID)
	case errors.Is(err, syscall.EINVAL): // more entries than there was room for
		gids, err = c.gidSlots(c.gidSlot)
	}
	if err != nil {
		return nil, opError("query", "GID table of "+c.dev.Name(), err)
	}
	return gids, nil
}

// QueryGID returns one slot of a port's GID table. An empty slot is ENODATA.
func (c *Context) QueryGID(port uint8, index int) (GIDEntry, error) {
	e, err := c.gidSlot(port, index)
	if errors.Is(err, syscall.EPROTONOSUPPORT) {
		e, err = c.sysfsGID(port, index)
	}
	if err != nil {
		return GIDEntry{}, opError("query", fmt.Sprintf("GID %d of port %d of %s", index, port, c.dev.Name()), err)
	}
	return e, nil
}

// gidTable asks for all entries by one command.
func (c *Context) gidTable() ([]GIDEntry, error) {
	table := new([maxTable]abi.Ib_uverbs_gid_entry)
	num := new(uint64)
	cmd := c.command(abi.UVERBS_OBJECT_DEVICE, abi.UVERBS_METHOD_QUERY_GID_TABLE)
	cmd.Const(abi.UVERBS_ATTR_QUERY_GID_TABLE_ENTRY_SIZE, gidEntrySize)
	cmd.U32(abi.UVERBS_ATTR_QUERY_GID_TABLE_FLAGS, 0)
	cmd.Out(abi.UVERBS_ATTR_QUERY_GID_TABLE_RESP_ENTRIES, kernel.Bytes(table))
	cmd.Out(abi.UVERBS_ATTR_QUERY_GID_TABLE_RESP_NUM_ENTRIES, kernel.Bytes(num))
	if err := c.run(cmd); err != nil {
		return nil, err
	}
	if *num > maxTable {
		return nil, fmt.Errorf("%w: %d GIDs in a table of %d", ErrBadAnswer, *num, maxTable)
	}
	gids := make([]GIDEntry, *num)
	for i := range gids {
		var err error
		if gids[i], err = gidEntry(&table[i]); err != nil {
			return nil, err
		}
	}
	return gids, nil
}

// gidSlot asks for one entry by a command.
func (c *Context) gidSlot(port uint8, index int) (GIDEntry, error) {
	if index < 0 {
		return GIDEntry{}, syscall.EINVAL
	}
	cmd, out := c.gidEntryCommand(port, index)
	if err := c.run(cmd); err != nil {
		return GIDEntry{}, err
	}
	return gidEntry(out)
}

// gidEntryCommand is the command for one slot, and where its answer goes.
func (c *Context) gidEntryCommand(port uint8, index int) (*kernel.Command, *abi.Ib_uverbs_gid_entry) {
	out := new(abi.Ib_uverbs_gid_entry)
	cmd := c.command(abi.UVERBS_OBJECT_DEVICE, abi.UVERBS_METHOD_QUERY_GID_ENTRY)
	cmd.Const(abi.UVERBS_ATTR_QUERY_GID_ENTRY_PORT, uint64(port))
	cmd.Const(abi.UVERBS_ATTR_QUERY_GID_ENTRY_GID_INDEX, uint64(index))
	cmd.U32(abi.UVERBS_ATTR_QUERY_GID_ENTRY_FLAGS, 0)
	cmd.Out(abi.UVERBS_ATTR_QUERY_GID_ENTRY_RESP_ENTRY, kernel.Bytes(out))
	return cmd, out
}

func gidEntry(e *abi.Ib_uverbs_gid_entry) (GIDEntry, error) {
	if e.Port_num == 0 || e.Port_num > math.MaxUint8 || e.Gid_index >= maxSlots ||
		e.Gid_type > math.MaxUint8 || e.Netdev_ifindex > math.MaxInt32 {
		return GIDEntry{}, fmt.Errorf("%w: GID entry %+v", ErrBadAnswer, *e)
	}
	return GIDEntry{GID: e.Gid, Port: uint8(e.Port_num), Index: int(e.Gid_index), Type: GIDType(e.Gid_type), IfIndex: int(e.Netdev_ifindex)}, nil
}

// gidSlots collects the filled slots of all ports' tables, one by one.
func (c *Context) gidSlots(slot func(port uint8, index int) (GIDEntry, error)) ([]GIDEntry, error) {
	dev, err := c.QueryDevice()
	if err != nil {
		return nil, err
	}
	var gids []GIDEntry
	left := maxSlots
	for port := 1; port <= dev.Ports; port++ {
		attr, err := c.QueryPort(uint8(port))
		if err != nil {
			return nil, err
		}
		for i := 0; i < attr.GIDTblLen && left > 0; i++ {
			left--
			e, err := slot(uint8(port), i)
			if errors.Is(err, fs.ErrNotExist) {
				break // the table is shorter than the port says
			}
			if errors.Is(err, syscall.ENODATA) {
				continue
			}
			if err != nil {
				return nil, err
			}
			gids = append(gids, e)
		}
	}
	return gids, nil
}

// sysfsGID reads one slot as the kernel shows it in text. An empty slot is
// ENODATA, as by command.
func (c *Context) sysfsGID(port uint8, index int) (GIDEntry, error) {
	e := GIDEntry{Port: port, Index: index}
	text, err := c.dev.k.Attr(fmt.Sprintf("ports/%d/gids/%d", port, index))
	if err != nil {
		return e, err
	}
	gid, err := kernel.ParseGID(text)
	if err != nil {
		return e, fmt.Errorf("%w: %w", ErrBadAnswer, err)
	}
	e.GID = gid
	if e.GID.IsZero() {
		return e, syscall.ENODATA
	}
	kind, err := c.dev.k.Attr(fmt.Sprintf("ports/%d/gid_attrs/types/%d", port, index))
	switch {
	case errors.Is(err, syscall.EINVAL):
		return e, syscall.ENODATA // emptied between the two reads
	case errors.Is(err, fs.ErrNotExist):
		kind = "IB/RoCE v1" // before the kernel knew RoCE v2
	case err != nil:
		return e, err
	}
	if e.Type, err = parseGIDType(kind); err != nil {
		return e, err
	}
	// An InfiniBand GID has no network interface, and then this reads EINVAL.
	name, err := c.dev.k.Attr(fmt.Sprintf("ports/%d/gid_attrs/ndevs/%d", port, index))
	if err != nil {
		return e, nil
	}
	if e.Type == GIDTypeIB {
		e.Type = GIDTypeRoCEv1
	}
	devs, err := c.netdevs()
	if err != nil {
		return e, err
	}
	for _, d := range devs {
		if d.name == name {
			e.IfIndex = d.index
		}
	}
	return e, nil
}

// parseGIDType decodes a slot of gid_attrs/types. The kernel has one name for
// the GIDs of InfiniBand and of RoCE v1.
func parseGIDType(s string) (GIDType, error) {
	switch s {
	case "IB/RoCE v1":
		return GIDTypeIB, nil
	case "RoCE v2":
		return GIDTypeRoCEv2, nil
	}
	return 0, fmt.Errorf("%w: GID type %q", ErrBadAnswer, s)
}
