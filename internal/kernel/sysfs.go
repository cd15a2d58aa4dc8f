package kernel

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"github.com/rrppcc-go/rrppcc/internal/abi"
)

// Why Devices finds none.
var (
	// ErrNoInterface: the operating system has no uverbs interface.
	ErrNoInterface = errors.New("no kernel RDMA on this operating system")
	// ErrNoModule: the kernel has not loaded ib_uverbs.
	ErrNoModule = errors.New("the kernel module ib_uverbs is not loaded")
	// ErrABI: the kernel's uverbs interface is not the one described in
	// internal/abi.
	ErrABI = errors.New("unknown uverbs ABI version")
	// ErrWrongNode: the character device at a device's path is another one.
	ErrWrongNode = errors.New("device node does not belong to this device")
)

// tree is where the kernel shows its devices. Tests point it elsewhere.
type tree struct {
	sys string // /sys
	dev string // /dev
}

func (t tree) verbs(elem ...string) string {
	return filepath.Join(append([]string{t.sys, "class", "infiniband_verbs"}, elem...)...)
}

func (t tree) device(elem ...string) string {
	return filepath.Join(append([]string{t.sys, "class", "infiniband"}, elem...)...)
}

// checkVersion refuses a kernel whose uverbs interface is another one.
func (t tree) checkVersion() error {
	version, err := readText(t.verbs("abi_version"))
	if errors.Is(err, fs.ErrNotExist) {
		return ErrNoModule
	}
	if err != nil {
		return err
	}
	v, err := ParseVersion(version)
	if err != nil {
		return fmt.Errorf("%s: %w", t.verbs("abi_version"), err)
	}
	if v != abi.IB_USER_VERBS_ABI_VERSION {
		return fmt.Errorf("%w: the kernel has %d, this program knows %d", ErrABI, v, abi.IB_USER_VERBS_ABI_VERSION)
	}
	return nil
}

// scan lists the uverbs devices in the order of their names. A device that
// vanishes meanwhile is left out, and so is one that cannot be decoded, unless
// none is left: then the error says why.
func (t tree) scan() ([]*sysfsDevice, error) {
	if err := t.checkVersion(); err != nil {
		return nil, err
	}
	entries, err := os.ReadDir(t.verbs())
	if err != nil {
		return nil, err
	}
	var devices []*sysfsDevice
	var bad []error
	for _, e := range entries {
		if !strings.HasPrefix(e.Name(), "uverbs") {
			continue
		}
		d, err := t.read(e.Name())
		switch {
		case err == nil:
			devices = append(devices, d)
		case !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, syscall.ENODEV):
			bad = append(bad, fmt.Errorf("%s: %w", t.verbs(e.Name()), err))
		}
	}
	if len(devices) == 0 {
		return nil, errors.Join(bad...)
	}
	slices.SortFunc(devices, func(a, b *sysfsDevice) int { return compareNames(a.info.Name, b.info.Name) })
	return devices, nil
}

// read decodes one entry of the class infiniband_verbs.
func (t tree) read(node string) (*sysfsDevice, error) {
	d := &sysfsDevice{tree: t}
	var err error
	text := func(path string) (s string) { // does nothing after an error
		if err == nil {
			s, err = readText(path)
		}
		return s
	}
	name, dev, version := text(t.verbs(node, "ibdev")), text(t.verbs(node, "dev")), text(t.verbs(node, "abi_version"))
	if err != nil {
		return nil, err
	}
	if d.info.Name, err = parseName(name); err != nil {
		return nil, err
	}
	if d.major, d.minor, err = ParseDev(dev); err != nil {
		return nil, err
	}
	if d.info.ABI, err = ParseVersion(version); err != nil {
		return nil, err
	}
	guid := text(t.device(name, "node_guid"))
	if err != nil {
		return nil, err
	}
	if d.info.NodeGUID, err = ParseGUID(guid); err != nil {
		return nil, err
	}
	d.info.Node = filepath.Join(t.dev, "infiniband", node)
	d.info.Driver, d.info.DriverID = t.driver(name)
	// Soft-RoCE's one interface, which only netlink tells of the others.
	if parent, err := readText(t.device(name, "parent")); err == nil {
		if parent, err = parseName(parent); err == nil {
			d.info.Netdevs = []Netdev{{Port: 1, Name: parent}}
		}
	}
	return d, nil
}

// drivers gives the enum rdma_driver_id of kernel drivers, by the name of the
// driver that the device's parent is bound to.
var drivers = map[string]uint32{
	"mlx5_core":  abi.RDMA_DRIVER_MLX5,
	"mlx4_core":  abi.RDMA_DRIVER_MLX4,
	"cxgb4":      abi.RDMA_DRIVER_CXGB4,
	"ib_mthca":   abi.RDMA_DRIVER_MTHCA,
	"bnxt_en":    abi.RDMA_DRIVER_BNXT_RE,
	"vmw_pvrdma": abi.RDMA_DRIVER_VMW_PVRDMA,
	"hfi1":       abi.RDMA_DRIVER_HFI1,
	"efa":        abi.RDMA_DRIVER_EFA,
	"erdma":      abi.RDMA_DRIVER_ERDMA,
}

// driver tells the kernel driver's name and id. The kernel itself says the id
// over netlink only; sysfs shows what it follows from. A wrong id is EINVAL in every command. Id 0 means that sysfs does not
// tell, and no provider will be found.
func (t tree) driver(name string) (string, uint32) {
	var driver string
	if link, err := os.Readlink(t.device(name, "device", "driver")); err == nil {
		driver = filepath.Base(link)
	}
	// A mlx5 subfunction hangs on an auxiliary device, whose driver's name is
	// the module's with a suffix: mlx5_core.sf.
	module, _, _ := strings.Cut(driver, ".")
	if id, ok := drivers[module]; ok {
		return driver, id
	}
	// Soft-RoCE has no parent device (before 5.10 that of its netdev), but an
	// attribute of its own, which names the netdev.
	if _, err := readText(t.device(name, "parent")); err == nil {
		return "rdma_rxe", abi.RDMA_DRIVER_RXE
	}
	return driver, abi.RDMA_DRIVER_UNKNOWN
}

// sysfsDevice is a device of the kernel. Its Open is in linux.go.
type sysfsDevice struct {
	tree         tree
	info         DeviceInfo
	major, minor uint32
}

func (d *sysfsDevice) Info() DeviceInfo { return d.info }

func (d *sysfsDevice) Attr(path string) (string, error) {
	if !filepath.IsLocal(path) {
		return "", &fs.PathError{Op: "read", Path: path, Err: fs.ErrInvalid}
	}
	return readText(d.tree.device(d.info.Name, path))
}

// readText reads a sysfs attribute, which has at most a page, without the
// newline at its end.
func readText(path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, 4096))
	if err != nil {
		return "", err
	}
	return strings.TrimRight(string(text), "\n"), nil
}

// compareNames orders mlx5_2 before mlx5_10.
func compareNames(a, b string) int {
	pa, na := splitNumber(a)
	pb, nb := splitNumber(b)
	return cmp.Or(cmp.Compare(pa, pb), cmp.Compare(na, nb), cmp.Compare(a, b))
}

func splitNumber(s string) (string, int) {
	prefix := strings.TrimRight(s, "0123456789")
	n, _ := strconv.Atoi(s[len(prefix):])
	return prefix, n
}
