package kernel

import (
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"path/filepath"
	"slices"
	"syscall"

	"github.com/rrppcc-go/rrppcc/internal/abi"
)

// Discovery by NETLINK_RDMA, where the kernel itself says which driver a device
// belongs to and which network interfaces it stands on. Sysfs is the fallback.

var errNetlink = errors.New("malformed netlink message")

// Netlink's own framing, linux/netlink.h.
const (
	nlHeaderBytes = 16
	nlAttrBytes   = 4
	nlMsgNoop     = 1
	nlMsgError    = 2
	nlMsgDone     = 3
	nlRequest     = 0x1
	nlAck         = 0x4
	nlDump        = 0x300
	nlAttrType    = 0x3fff // without the flags NLA_F_NESTED and NLA_F_NET_BYTEORDER
)

func nlAlign(n int) int { return (n + 3) &^ 3 }

// nlMessage is one message of a datagram.
type nlMessage struct {
	typ  uint16
	seq  uint32
	body []byte
}

// splitMessages decodes a datagram.
func splitMessages(b []byte) ([]nlMessage, error) {
	var all []nlMessage
	for len(b) > 0 {
		if len(b) < nlHeaderBytes {
			return nil, fmt.Errorf("%w: %d bytes left", errNetlink, len(b))
		}
		n := binary.NativeEndian.Uint32(b)
		if n < nlHeaderBytes || uint64(n) > uint64(len(b)) {
			return nil, fmt.Errorf("%w: length %d of %d", errNetlink, n, len(b))
		}
		all = append(all, nlMessage{typ: binary.NativeEndian.Uint16(b[4:]), seq: binary.NativeEndian.Uint32(b[8:]), body: b[nlHeaderBytes:n]})
		b = b[min(nlAlign(int(n)), len(b)):]
	}
	return all, nil
}

// nlAttrs are the attributes of one message, by type.
type nlAttrs map[uint16][]byte

func parseAttrs(b []byte) (nlAttrs, error) {
	attrs := make(nlAttrs)
	for len(b) > 0 {
		if len(b) < nlAttrBytes {
			return nil, fmt.Errorf("%w: %d bytes of an attribute", errNetlink, len(b))
		}
		n := int(binary.NativeEndian.Uint16(b))
		if n < nlAttrBytes || n > len(b) {
			return nil, fmt.Errorf("%w: attribute of %d bytes in %d", errNetlink, n, len(b))
		}
		attrs[binary.NativeEndian.Uint16(b[2:])&nlAttrType] = b[nlAttrBytes:n]
		b = b[min(nlAlign(n), len(b)):]
	}
	return attrs, nil
}

// num is a u32 or u64 attribute.
func (a nlAttrs) num(typ uint16) (uint64, bool) {
	switch p := a[typ]; len(p) {
	case 4:
		return uint64(binary.NativeEndian.Uint32(p)), true
	case 8:
		return binary.NativeEndian.Uint64(p), true
	}
	return 0, false
}

// text is a string attribute, without the zero at its end, if it can be a name.
func (a nlAttrs) text(typ uint16) (string, bool) {
	p := a[typ]
	if n := len(p); n > 0 && p[n-1] == 0 {
		p = p[:n-1]
	}
	s, err := parseName(string(p))
	return s, err == nil
}

func appendAttr(b []byte, typ uint16, data []byte) []byte {
	b = binary.NativeEndian.AppendUint16(b, uint16(nlAttrBytes+len(data)))
	b = binary.NativeEndian.AppendUint16(b, typ)
	b = append(b, data...)
	return append(b, make([]byte, nlAlign(len(data))-len(data))...)
}

func appendU32(b []byte, typ uint16, v uint32) []byte {
	return appendAttr(b, typ, binary.NativeEndian.AppendUint32(nil, v))
}

// nlType is the type of a command's messages.
func nlType(cmd uint16) uint16 { return abi.RDMA_NL_NLDEV<<10 | cmd }

// nlRequestMessage is a command to the client NLDEV.
func nlRequestMessage(seq uint32, cmd uint16, dump bool, attrs []byte) []byte {
	flags := uint16(nlRequest | nlAck)
	if dump {
		flags = nlRequest | nlDump
	}
	b := binary.NativeEndian.AppendUint32(nil, uint32(nlHeaderBytes+len(attrs)))
	b = binary.NativeEndian.AppendUint16(b, nlType(cmd))
	b = binary.NativeEndian.AppendUint16(b, flags)
	b = binary.NativeEndian.AppendUint32(b, seq)
	b = binary.NativeEndian.AppendUint32(b, 0)
	return append(b, attrs...)
}

// nlAnswer collects the answers to one command from datagrams.
type nlAnswer struct {
	seq  uint32
	typ  uint16
	list []nlAttrs
}

// add takes a datagram, and reports whether the answer is complete.
func (a *nlAnswer) add(datagram []byte) (done bool, err error) {
	messages, err := splitMessages(datagram)
	if err != nil {
		return false, err
	}
	for _, m := range messages {
		if m.seq != a.seq {
			continue // of a command that was given up
		}
		switch m.typ {
		case nlMsgNoop:
		case nlMsgDone:
			return true, nil
		case nlMsgError: // the acknowledgement, too
			if len(m.body) < 4 {
				return false, fmt.Errorf("%w: %d bytes of an error", errNetlink, len(m.body))
			}
			code := -int64(int32(binary.NativeEndian.Uint32(m.body)))
			if code < 0 || code > 4095 {
				return false, fmt.Errorf("%w: error %d", errNetlink, -code)
			}
			if code != 0 {
				return false, syscall.Errno(code)
			}
			return true, nil
		case a.typ:
			attrs, err := parseAttrs(m.body)
			if err != nil {
				return false, err
			}
			a.list = append(a.list, attrs)
		}
	}
	return false, nil
}

// nlAsk issues one command and returns its answers.
type nlAsk func(cmd uint16, dump bool, attrs []byte) ([]nlAttrs, error)

// byNetlink lists the devices that have a uverbs node, by name. A device that
// vanishes meanwhile, or that the answers describe wrongly, is left out.
func (t tree) byNetlink(ask nlAsk) ([]*sysfsDevice, error) {
	list, err := ask(abi.RDMA_NLDEV_CMD_GET, true, nil)
	if err != nil {
		return nil, err
	}
	var devices []*sysfsDevice
	for _, attrs := range list {
		index, ok1 := attrs.num(abi.RDMA_NLDEV_ATTR_DEV_INDEX)
		name, ok2 := attrs.text(abi.RDMA_NLDEV_ATTR_DEV_NAME)
		guid, ok3 := attrs.num(abi.RDMA_NLDEV_ATTR_NODE_GUID)
		if !ok1 || !ok2 || !ok3 || index > math.MaxUint32 {
			continue
		}
		d := &sysfsDevice{tree: t}
		d.info.Name = name
		binary.BigEndian.PutUint64(d.info.NodeGUID[:], guid)
		if t.chardev(ask, d, uint32(index)) {
			d.info.Netdevs = netlinkPorts(ask, uint32(index))
			devices = append(devices, d)
		}
	}
	slices.SortFunc(devices, func(a, b *sysfsDevice) int { return compareNames(a.info.Name, b.info.Name) })
	return devices, nil
}

// chardev asks for the device's uverbs node and its driver's id.
func (t tree) chardev(ask nlAsk, d *sysfsDevice, index uint32) bool {
	request := appendAttr(nil, abi.RDMA_NLDEV_ATTR_CHARDEV_TYPE, []byte("uverbs\x00"))
	list, err := ask(abi.RDMA_NLDEV_CMD_GET_CHARDEV, false, appendU32(request, abi.RDMA_NLDEV_ATTR_DEV_INDEX, index))
	if err != nil || len(list) == 0 {
		return false
	}
	node, ok1 := list[0].text(abi.RDMA_NLDEV_ATTR_CHARDEV_NAME)
	version, ok2 := list[0].num(abi.RDMA_NLDEV_ATTR_CHARDEV_ABI)
	dev, ok3 := list[0].num(abi.RDMA_NLDEV_ATTR_CHARDEV)
	if !ok1 || !ok2 || !ok3 || version > math.MaxInt32 {
		return false
	}
	d.info.Node = filepath.Join(t.dev, "infiniband", node)
	d.info.ABI = int(version)
	d.major, d.minor = devMajor(dev), devMinor(dev)
	d.info.Driver, d.info.DriverID = t.driver(d.info.Name)
	if id, ok := list[0].num(abi.RDMA_NLDEV_ATTR_UVERBS_DRIVER_ID); ok && id <= math.MaxUint32 {
		d.info.DriverID = uint32(id)
		d.info.Driver = cmp.Or(d.info.Driver, driverName(uint32(id)))
	}
	return true
}

// The dev_t that the kernel shows to user space (huge_encode_dev).
func devMajor(dev uint64) uint32 { return uint32(dev >> 8 & 0xfff) }
func devMinor(dev uint64) uint32 { return uint32(dev&0xff | dev>>12&0xfff00) }

// driverName is a name for an id where sysfs does not tell.
func driverName(id uint32) string {
	if id == abi.RDMA_DRIVER_RXE {
		return "rdma_rxe"
	}
	for name, known := range drivers {
		if known == id {
			return name
		}
	}
	return ""
}

// netlinkPorts asks for the network interfaces under the device's ports.
func netlinkPorts(ask nlAsk, index uint32) []Netdev {
	list, err := ask(abi.RDMA_NLDEV_CMD_PORT_GET, true, appendU32(nil, abi.RDMA_NLDEV_ATTR_DEV_INDEX, index))
	if err != nil {
		return nil
	}
	var devs []Netdev
	for _, attrs := range list {
		port, ok1 := attrs.num(abi.RDMA_NLDEV_ATTR_PORT_INDEX)
		ifindex, ok2 := attrs.num(abi.RDMA_NLDEV_ATTR_NDEV_INDEX)
		name, ok3 := attrs.text(abi.RDMA_NLDEV_ATTR_NDEV_NAME)
		if ok1 && ok2 && ok3 && port > 0 && port <= math.MaxUint8 && ifindex > 0 && ifindex <= math.MaxInt32 {
			devs = append(devs, Netdev{Port: uint8(port), IfIndex: int(ifindex), Name: name})
		}
	}
	return devs
}
