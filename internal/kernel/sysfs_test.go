package kernel

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/rrppcc-go/rrppcc/internal/abi"
)

// fakeTree writes a sysfs with what real kernels show: files by path, and
// symbolic links where the text starts with "-> ".
func fakeTree(t *testing.T, files map[string]string) tree {
	t.Helper()
	if runtime.GOOS == "windows" {
		t.Skip("sysfs paths hold symbolic links and names that Windows lacks")
	}
	root := t.TempDir()
	for path, text := range files {
		full := filepath.Join(root, path)
		if err := os.MkdirAll(filepath.Dir(full), 0o755); err != nil {
			t.Fatal(err)
		}
		var err error
		if target, ok := strings.CutPrefix(text, "-> "); ok {
			err = os.Symlink(target, full)
		} else {
			err = os.WriteFile(full, []byte(text), 0o644)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	return tree{sys: filepath.Join(root, "sys"), dev: filepath.Join(root, "dev")}
}

const verbsClass, deviceClass = "sys/class/infiniband_verbs/", "sys/class/infiniband/"

// realistic is a machine with a ConnectX, one of its subfunctions, an unknown
// device and a Soft-RoCE one.
func realistic() map[string]string {
	m := map[string]string{verbsClass + "abi_version": "6\n"}
	for node, name := range map[string]string{"uverbs0": "mlx5_10", "uverbs1": "mlx5_2", "uverbs2": "odd0", "uverbs3": "rxe0"} {
		m[verbsClass+node+"/ibdev"] = name + "\n"
		m[verbsClass+node+"/dev"] = "231:19" + node[6:] + "\n"
		m[verbsClass+node+"/abi_version"] = "1\n"
		m[deviceClass+name+"/node_guid"] = "5054:00ff:fe12:345" + node[6:] + "\n"
	}
	m[verbsClass+"uverbs3/abi_version"] = "2\n"
	m[deviceClass+"mlx5_10/device/driver"] = "-> ../../../../bus/auxiliary/drivers/mlx5_core.sf"
	m[deviceClass+"mlx5_2/device/driver"] = "-> ../../../../bus/pci/drivers/mlx5_core"
	m[deviceClass+"odd0/device/driver"] = "-> ../../../../bus/pci/drivers/odd"
	m[deviceClass+"rxe0/parent"] = "v0\n"
	m[deviceClass+"rxe0/ports/1/pkeys/0"] = "0xffff\n"
	return m
}

func infos(devices []*sysfsDevice) (all []DeviceInfo) {
	for _, d := range devices {
		all = append(all, d.Info())
	}
	return all
}

func TestScanListsDevicesByNumberWithTheirDrivers(t *testing.T) {
	tr := fakeTree(t, realistic())
	devices, err := tr.scan()
	if err != nil {
		t.Fatal(err)
	}
	node := func(n string) string { return filepath.Join(tr.dev, "infiniband", n) }
	guid := func(last byte) [8]byte { return [8]byte{0x50, 0x54, 0, 0xff, 0xfe, 0x12, 0x34, last} }
	want := []DeviceInfo{
		{Name: "mlx5_2", Node: node("uverbs1"), Driver: "mlx5_core", DriverID: abi.RDMA_DRIVER_MLX5, ABI: 1, NodeGUID: guid(0x51)},
		{Name: "mlx5_10", Node: node("uverbs0"), Driver: "mlx5_core.sf", DriverID: abi.RDMA_DRIVER_MLX5, ABI: 1, NodeGUID: guid(0x50)},
		{Name: "odd0", Node: node("uverbs2"), Driver: "odd", DriverID: abi.RDMA_DRIVER_UNKNOWN, ABI: 1, NodeGUID: guid(0x52)},
		{Name: "rxe0", Node: node("uverbs3"), Driver: "rdma_rxe", DriverID: abi.RDMA_DRIVER_RXE, ABI: 2, NodeGUID: guid(0x53), Netdevs: []Netdev{{Port: 1, Name: "v0"}}},
	}
	if diff := cmp.Diff(want, infos(devices)); diff != "" {
		t.Error(diff)
	}
}

func TestScanWithoutModuleSaysSo(t *testing.T) {
	if _, err := fakeTree(t, map[string]string{"sys/class/net/lo": ""}).scan(); !errors.Is(err, ErrNoModule) {
		t.Error(err)
	}
}

func TestScanWithoutDevicesIsEmpty(t *testing.T) {
	devices, err := fakeTree(t, map[string]string{verbsClass + "abi_version": "6\n"}).scan()
	if err != nil || len(devices) != 0 {
		t.Error(devices, err)
	}
}

func TestScanRefusesOtherABI(t *testing.T) {
	for _, version := range []string{"5\n", "7\n"} {
		m := realistic()
		m[verbsClass+"abi_version"] = version
		if _, err := fakeTree(t, m).scan(); !errors.Is(err, ErrABI) || !strings.Contains(err.Error(), version[:1]) {
			t.Errorf("ABI %s: %v", version, err)
		}
	}
	m := realistic()
	m[verbsClass+"abi_version"] = "six\n"
	if _, err := fakeTree(t, m).scan(); !errors.Is(err, errText) {
		t.Error(err)
	}
}

func TestScanLeavesOutWhatVanishedOrIsMalformed(t *testing.T) {
	for path, text := range map[string]string{
		deviceClass + "mlx5_2/node_guid":   "", // removed between two reads
		verbsClass + "uverbs1/ibdev":       "../../etc\n",
		verbsClass + "uverbs1/dev":         "231\n",
		verbsClass + "uverbs1/abi_version": "one\n",
	} {
		m := realistic()
		if m[path] = text; text == "" {
			delete(m, path)
		}
		devices, err := fakeTree(t, m).scan()
		if err != nil || len(devices) != 3 || devices[0].info.Name != "mlx5_10" {
			t.Errorf("%s: %v, %v", path, infos(devices), err)
		}
	}
}

func TestScanSaysWhyNoDeviceIsLeft(t *testing.T) {
	_, err := fakeTree(t, map[string]string{
		verbsClass + "abi_version":         "6\n",
		verbsClass + "uverbs0/ibdev":       "mlx5_0\n",
		verbsClass + "uverbs0/dev":         "231\n",
		verbsClass + "uverbs0/abi_version": "1\n",
	}).scan()
	if err == nil || !strings.Contains(err.Error(), "uverbs0") {
		t.Error(err)
	}
}

func TestAttrReadsBelowItsDeviceOnly(t *testing.T) {
	devices, err := fakeTree(t, realistic()).scan()
	if err != nil {
		t.Fatal(err)
	}
	rxe := devices[3]
	if s, err := rxe.Attr("ports/1/pkeys/0"); s != "0xffff" || err != nil {
		t.Errorf("%q, %v", s, err)
	}
	if _, err := rxe.Attr("ports/1/pkeys/1"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("missing attribute: %v", err)
	}
	for _, path := range []string{"../mlx5_2/node_guid", "/etc/hostname", ""} {
		if s, err := rxe.Attr(path); !errors.Is(err, fs.ErrInvalid) {
			t.Errorf("%q: %q, %v", path, s, err)
		}
	}
}
