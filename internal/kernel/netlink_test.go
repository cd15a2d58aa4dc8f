package kernel

import (
	"encoding/binary"
	"errors"
	"math"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/rrppcc-go/rrppcc/internal/abi"
)

func nlText(b []byte, typ uint16, s string) []byte { return appendAttr(b, typ, append([]byte(s), 0)) }

func nlU64(b []byte, typ uint16, v uint64) []byte {
	return appendAttr(b, typ, binary.NativeEndian.AppendUint64(nil, v))
}

// nlAnswerMessage is a message of the kernel.
func nlAnswerMessage(typ uint16, seq uint32, body []byte) []byte {
	b := binary.NativeEndian.AppendUint32(nil, uint32(nlHeaderBytes+len(body)))
	b = binary.NativeEndian.AppendUint16(b, typ)
	b = binary.NativeEndian.AppendUint16(b, 2)
	b = binary.NativeEndian.AppendUint32(b, seq)
	b = binary.NativeEndian.AppendUint32(b, 77)
	return append(append(b, body...), make([]byte, nlAlign(len(body))-len(body))...)
}

// fakeNetlink answers requests in the kernel's words, as one datagram each.
type fakeNetlink map[uint16]func(request nlAttrs) [][]byte

func (f fakeNetlink) ask(cmd uint16, dump bool, attrs []byte) ([]nlAttrs, error) {
	const seq = 9
	messages, err := splitMessages(nlRequestMessage(seq, cmd, dump, attrs))
	if err != nil || len(messages) != 1 || messages[0].typ != nlType(cmd) {
		return nil, errNetlink
	}
	request, err := parseAttrs(messages[0].body)
	if err != nil {
		return nil, err
	}
	var datagram []byte
	bodies := f[cmd](request)
	if bodies == nil {
		datagram = nlAnswerMessage(nlMsgError, seq, binary.NativeEndian.AppendUint32(nil, uint32(0xffffffff-uint32(syscall.EINVAL)+1)))
	}
	for _, b := range bodies {
		datagram = append(datagram, nlAnswerMessage(nlType(cmd), seq, b)...)
	}
	end := uint16(nlMsgError)
	if dump {
		end = nlMsgDone
	}
	datagram = append(datagram, nlAnswerMessage(end, seq, make([]byte, 4))...)
	answer := nlAnswer{seq: seq, typ: nlType(cmd)}
	if done, err := answer.add(datagram); err != nil || !done {
		return nil, cmpErr(err)
	}
	return answer.list, nil
}

func cmpErr(err error) error {
	if err == nil {
		return errors.New("not done")
	}
	return err
}

// twoDevices are a ConnectX and a Soft-RoCE device, and one without uverbs.
func twoDevices() fakeNetlink {
	device := func(index uint32, name string, guid uint64) []byte {
		return nlU64(nlText(appendU32(nil, abi.RDMA_NLDEV_ATTR_DEV_INDEX, index), abi.RDMA_NLDEV_ATTR_DEV_NAME, name), abi.RDMA_NLDEV_ATTR_NODE_GUID, guid)
	}
	chardev := func(name string, version, dev, driver uint64) []byte {
		b := nlU64(nlU64(nlText(nil, abi.RDMA_NLDEV_ATTR_CHARDEV_NAME, name), abi.RDMA_NLDEV_ATTR_CHARDEV_ABI, version), abi.RDMA_NLDEV_ATTR_CHARDEV, dev)
		return appendU32(b, abi.RDMA_NLDEV_ATTR_UVERBS_DRIVER_ID, uint32(driver))
	}
	index := func(request nlAttrs) uint64 { v, _ := request.num(abi.RDMA_NLDEV_ATTR_DEV_INDEX); return v }
	return fakeNetlink{
		abi.RDMA_NLDEV_CMD_GET: func(nlAttrs) [][]byte {
			return [][]byte{device(3, "rxe0", 0x5054_00ff_fe12_3456), device(0, "mlx5_0", 1), device(7, "odd0", 2)}
		},
		abi.RDMA_NLDEV_CMD_GET_CHARDEV: func(request nlAttrs) [][]byte {
			if what, _ := request.text(abi.RDMA_NLDEV_ATTR_CHARDEV_TYPE); what != "uverbs" {
				return nil
			}
			switch index(request) {
			case 3:
				return [][]byte{chardev("uverbs1", 2, 231<<8|193, abi.RDMA_DRIVER_RXE)}
			case 0:
				return [][]byte{chardev("uverbs300", 1, 511<<8|0x2c|1<<20, abi.RDMA_DRIVER_MLX5)}
			}
			return nil
		},
		abi.RDMA_NLDEV_CMD_PORT_GET: func(request nlAttrs) [][]byte {
			if index(request) != 3 {
				return [][]byte{appendU32(nil, abi.RDMA_NLDEV_ATTR_PORT_INDEX, 1)} // InfiniBand
			}
			b := appendU32(appendU32(nil, abi.RDMA_NLDEV_ATTR_PORT_INDEX, 1), abi.RDMA_NLDEV_ATTR_NDEV_INDEX, 12)
			return [][]byte{nlText(b, abi.RDMA_NLDEV_ATTR_NDEV_NAME, "eth7")}
		},
	}
}

func TestNetlinkTellsDevicesDriversAndInterfaces(t *testing.T) {
	tr := tree{sys: t.TempDir(), dev: "/dev"}
	got, err := tr.byNetlink(twoDevices().ask)
	if err != nil {
		t.Fatal(err)
	}
	var infos []DeviceInfo
	for _, d := range got {
		infos = append(infos, d.info)
	}
	want := []DeviceInfo{
		{Name: "mlx5_0", Node: filepath.Join("/dev", "infiniband", "uverbs300"), Driver: "mlx5_core", DriverID: abi.RDMA_DRIVER_MLX5, ABI: 1, NodeGUID: [8]byte{7: 1}},
		{Name: "rxe0", Node: filepath.Join("/dev", "infiniband", "uverbs1"), Driver: "rdma_rxe", DriverID: abi.RDMA_DRIVER_RXE, ABI: 2,
			NodeGUID: [8]byte{0x50, 0x54, 0, 0xff, 0xfe, 0x12, 0x34, 0x56}, Netdevs: []Netdev{{Port: 1, IfIndex: 12, Name: "eth7"}}},
	}
	if d := cmp.Diff(want, infos); d != "" {
		t.Error(d)
	}
	if got[0].major != 511 || got[0].minor != 0x12c || got[1].major != 231 || got[1].minor != 193 {
		t.Errorf("%d:%d, %d:%d", got[0].major, got[0].minor, got[1].major, got[1].minor)
	}
}

func TestNetlinkErrorsAreErrnos(t *testing.T) {
	for code, want := range map[uint32]error{0xffffffff - 21: syscall.EINVAL, 5: errNetlink, 1 << 31: errNetlink} {
		a := nlAnswer{seq: 1, typ: 2}
		if _, err := a.add(nlAnswerMessage(nlMsgError, 1, binary.NativeEndian.AppendUint32(nil, code))); !errors.Is(err, want) {
			t.Errorf("%#x: %v, want %v", code, err, want)
		}
	}
	a := nlAnswer{seq: 2, typ: 0x1401}
	if done, err := a.add(nlAnswerMessage(nlMsgDone, 1, nil)); done || err != nil {
		t.Errorf("the end of another answer: %v, %v", done, err)
	}
	tr := tree{sys: t.TempDir(), dev: "/dev"}
	if _, err := tr.byNetlink(func(uint16, bool, []byte) ([]nlAttrs, error) { return nil, syscall.EPROTONOSUPPORT }); err != syscall.EPROTONOSUPPORT {
		t.Error(err)
	}
}

// answerOf is everything that a device's discovery is told, as one datagram.
func answerOf(f fakeNetlink) []byte {
	var all []byte
	request, _ := parseAttrs(appendU32(nlText(nil, abi.RDMA_NLDEV_ATTR_CHARDEV_TYPE, "uverbs"), abi.RDMA_NLDEV_ATTR_DEV_INDEX, 3))
	for _, cmd := range []uint16{abi.RDMA_NLDEV_CMD_GET, abi.RDMA_NLDEV_CMD_GET_CHARDEV, abi.RDMA_NLDEV_CMD_PORT_GET} {
		for _, b := range f[cmd](request) {
			all = append(all, nlAnswerMessage(nlType(cmd), 1, b)...)
		}
	}
	return append(all, nlAnswerMessage(nlMsgDone, 1, nil)...)
}

func TestNetlinkAnswersCutAnywhere(t *testing.T) {
	whole := answerOf(twoDevices())
	for cut := range len(whole) + 1 {
		a := nlAnswer{seq: 1, typ: nlType(abi.RDMA_NLDEV_CMD_GET)}
		done, err := a.add(whole[:cut])
		if complete := cut == len(whole); done != complete || err != nil && !errors.Is(err, errNetlink) {
			t.Errorf("%d of %d bytes: %v, %v", cut, len(whole), done, err)
		}
	}
}

func FuzzNetlink(f *testing.F) {
	f.Add(answerOf(twoDevices()))
	f.Add(nlAnswerMessage(nlMsgError, 1, []byte{1, 2, 3}))
	f.Add(nlAnswerMessage(nlType(abi.RDMA_NLDEV_CMD_GET), 1, []byte{3, 0, 1, 0}))
	tr := tree{sys: f.TempDir(), dev: "/dev"}
	f.Fuzz(func(t *testing.T, datagram []byte) {
		// Every command gets the same answer.
		devices, _ := tr.byNetlink(func(cmd uint16, _ bool, _ []byte) ([]nlAttrs, error) {
			var all []nlAttrs
			for _, c := range []uint16{abi.RDMA_NLDEV_CMD_GET, abi.RDMA_NLDEV_CMD_GET_CHARDEV, abi.RDMA_NLDEV_CMD_PORT_GET} {
				a := nlAnswer{seq: 1, typ: nlType(c)}
				if _, err := a.add(datagram); err != nil {
					return nil, err
				}
				if c == cmd {
					all = a.list
				}
			}
			return all, nil
		})
		for _, d := range devices {
			if d.info.Name == "" || filepath.Dir(d.info.Node) != filepath.Join("/dev", "infiniband") || d.info.ABI < 0 {
				t.Errorf("%+v", d.info)
			}
			for _, n := range d.info.Netdevs {
				if n.Port == 0 || n.IfIndex <= 0 || n.IfIndex > math.MaxInt32 || n.Name == "" {
					t.Errorf("%+v", n)
				}
			}
		}
	})
}
