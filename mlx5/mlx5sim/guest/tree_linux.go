//go:build amd64 || arm64

package guest

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/rrppcc-go/rrppcc/mlx5/mlx5sim"
)

// Places that the program sees as the tree has them, and not as the machine has
// them. busRoot is where the devices' own directories are: the links of the
// class directories lead there, as they do on a real machine.
const (
	classRDMA   = "/sys/class/infiniband"
	classVerbs  = "/sys/class/infiniband_verbs"
	devRoot     = "/dev/infiniband"
	busRoot     = "/sys/devices/mlx5sim"
	uverbsMajor = 231 // IB_UVERBS_MAJOR
	uverbsMinor = 192 // IB_UVERBS_BASE_MINOR
	verbsABI    = 6   // IB_USER_VERBS_ABI_VERSION
	gidSlots    = 16
	pkeySlots   = 1
)

var servedRoots = [...]string{classRDMA, classVerbs, devRoot, busRoot}

// tree is a directory with the files that the program sees at servedRoots. The
// device files in it are placeholders: opening one opens the device.
type tree struct {
	root string // without symbolic links
	devs int
	lock *os.File // locked for as long as the tree is in use
}

// What the directories of trees are named, and the file in them that is locked.
// staleAge is how old a directory that nobody has locked must be to be nobody's:
// a younger one may be about to be locked.
const (
	treePrefix = "rrpc-sim-"
	lockName   = "lock"
	staleAge   = time.Minute
)

// newTree writes the tree of devs to a new directory below the system's place
// for temporary files. Trees there whose supervisor was killed are removed.
func newTree(devs []*mlx5sim.Device) (*tree, error) {
	removeStale()
	dir, err := os.MkdirTemp("", treePrefix)
	if err != nil {
		return nil, err
	}
	t := &tree{root: dir, devs: len(devs)}
	t.lock, err = os.OpenFile(filepath.Join(dir, lockName), os.O_CREATE|os.O_RDWR, 0o600)
	if err == nil {
		err = unix.Flock(int(t.lock.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	}
	if err == nil {
		t.root, err = filepath.EvalSymlinks(dir)
	}
	if err == nil {
		err = t.fill(devs)
	}
	if err != nil {
		return nil, errors.Join(err, t.remove())
	}
	return t, nil
}

// remove deletes the tree.
func (t *tree) remove() error {
	err := os.RemoveAll(t.root)
	t.lock.Close()
	return err
}

// removeStale removes the trees that nobody uses, as far as it can.
func removeStale() {
	dirs, _ := filepath.Glob(filepath.Join(os.TempDir(), treePrefix+"*"))
	for _, dir := range dirs {
		if st, err := os.Lstat(dir); err != nil || !st.IsDir() || time.Since(st.ModTime()) < staleAge {
			continue
		}
		lock, err := os.OpenFile(filepath.Join(dir, lockName), os.O_RDWR|unix.O_NOFOLLOW, 0)
		if err != nil {
			continue // another user's, or not ours at all
		}
		if unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB) == nil {
			os.RemoveAll(dir)
		}
		lock.Close()
	}
}

// host is where the tree has the program's path name.
func (t *tree) host(name string) string { return t.root + name }

// serves reports whether the program sees name in the tree. name is absolute and
// clean.
func serves(name string) bool {
	for _, root := range servedRoots {
		if rest, ok := strings.CutPrefix(name, root); ok && (rest == "" || rest[0] == '/') {
			return true
		}
	}
	return false
}

// resolve makes the absolute path p clean as the program's kernel would: ".."
// leads out of where a link of the tree led to. A slash at the end stays, because
// it has links followed.
func (t *tree) resolve(p string) string {
	slash := strings.HasSuffix(p, "/") || strings.HasSuffix(p, "/.")
	name := path.Clean(p)
	if strings.Contains(p, "..") {
		name = "/"
		parts := strings.Split(p, "/")
		for i, part := range parts {
			switch name = path.Join(name, part); {
			case i == len(parts)-1 && !slash, part == "", part == ".", part == "..", !serves(name):
			default:
				if to, err := os.Readlink(t.host(name)); err == nil {
					name = path.Join(path.Dir(name), to)
				}
			}
		}
	}
	if slash && name != "/" {
		name += "/"
	}
	return name
}

// device returns the number of the device whose file name is, -1 if it is none.
func (t *tree) device(name string) int {
	for i := range t.devs {
		if name == fmt.Sprintf("%s/uverbs%d", devRoot, i) {
			return i
		}
	}
	return -1
}

// guestName undoes host, for the names of descriptors that came from the tree.
func (t *tree) guestName(name string) string {
	if rest, ok := strings.CutPrefix(name, t.root); ok && strings.HasPrefix(rest, "/") {
		return rest
	}
	return name
}

// rdev is the device number of device i.
func rdev(i int) (major, minor uint32) { return uverbsMajor, uverbsMinor + uint32(i) }

func (t *tree) fill(devs []*mlx5sim.Device) error {
	if err := t.file(classVerbs+"/abi_version", fmt.Sprint(verbsABI)); err != nil {
		return err
	}
	for i, d := range devs {
		if err := t.addDevice(i, d); err != nil {
			return err
		}
	}
	return nil
}

// attrsOfDevice and attrsOfPort are what a ConnectX shows of itself, without its
// counters. What the device does not have is left out.
var (
	attrsOfDevice = []string{"node_guid", "sys_image_guid", "node_type", "node_desc", "fw_ver", "hca_type", "hw_rev", "board_id"}
	attrsOfPort   = []string{"state", "phys_state", "link_layer", "rate", "lid", "lid_mask_count", "sm_lid", "sm_sl", "cap_mask"}
)

func (t *tree) addDevice(i int, d *mlx5sim.Device) error {
	info := d.Info()
	uverbs := fmt.Sprintf("uverbs%d", i)
	major, minor := rdev(i)
	address := fmt.Sprintf("0000:%02x:00.0", 0xc0+i%0x40)
	slot := path.Join(busRoot, address)
	ib, verbs := path.Join(slot, "infiniband", info.Name), path.Join(slot, "infiniband_verbs", uverbs)

	texts := map[string]string{
		devRoot + "/" + uverbs:  "",
		verbs + "/ibdev":        info.Name,
		verbs + "/abi_version":  fmt.Sprint(info.ABI),
		verbs + "/dev":          fmt.Sprintf("%d:%d", major, minor),
		slot + "/vendor":        "0x15b3",
		slot + "/device":        "0x101b", // ConnectX-6, MT4123
		slot + "/revision":      "0x00",
		slot + "/class":         "0x020700",
		slot + "/modalias":      "pci:v000015B3d0000101Bsv000015B3sd00000007bc02sc07i00",
		slot + "/numa_node":     "-1",
		slot + "/local_cpus":    cpuMask(runtime.NumCPU()),
		slot + "/local_cpulist": fmt.Sprintf("0-%d", runtime.NumCPU()-1),

		slot + "/subsystem_vendor": "0x15b3",
		slot + "/subsystem_device": "0x0007",
	}
	attrs := append([]string{}, attrsOfDevice...)
	for _, a := range attrsOfPort {
		attrs = append(attrs, "ports/1/"+a)
	}
	for n := range pkeySlots {
		attrs = append(attrs, fmt.Sprintf("ports/1/pkeys/%d", n))
	}
	for n := range gidSlots {
		attrs = append(attrs, fmt.Sprintf("ports/1/gids/%d", n),
			fmt.Sprintf("ports/1/gid_attrs/types/%d", n), fmt.Sprintf("ports/1/gid_attrs/ndevs/%d", n))
	}
	for _, a := range attrs {
		switch text, err := d.Attr(a); {
		case err == nil:
			texts[ib+"/"+a] = text
		case errors.Is(err, syscall.EINVAL):
			texts[ib+"/"+a] = "" // a slot that is empty: the file exists, and reading it fails
		case !errors.Is(err, fs.ErrNotExist):
			return err
		}
	}
	for name, text := range texts {
		if err := t.file(name, text); err != nil {
			return err
		}
	}
	for _, l := range [...][2]string{
		{classRDMA + "/" + info.Name, "../../devices/mlx5sim/" + address + "/infiniband/" + info.Name},
		{classVerbs + "/" + uverbs, "../../devices/mlx5sim/" + address + "/infiniband_verbs/" + uverbs},
		{slot + "/driver", "../../../bus/pci/drivers/" + info.Driver},
		{slot + "/subsystem", "../../../bus/pci"},
		{ib + "/device", "../../../" + address},
		{verbs + "/device", "../../../" + address},
	} {
		if err := t.link(l[0], l[1]); err != nil {
			return err
		}
	}
	return nil
}

// file writes an attribute, with the newline that sysfs ends it with.
func (t *tree) file(name, text string) error {
	if text != "" {
		text += "\n"
	}
	host := t.host(name)
	if err := os.MkdirAll(filepath.Dir(host), 0o755); err != nil {
		return err
	}
	return os.WriteFile(host, []byte(text), 0o444)
}

func (t *tree) link(name, to string) error {
	host := t.host(name)
	if err := os.MkdirAll(filepath.Dir(host), 0o755); err != nil {
		return err
	}
	return os.Symlink(to, host)
}

// cpuMask is the mask of n processors as sysfs writes it: words of 32 bits, the
// highest first.
func cpuMask(n int) string {
	var words []string
	for ; n > 32; n -= 32 {
		words = append(words, "ffffffff")
	}
	words = append([]string{fmt.Sprintf("%08x", uint32(1<<n-1))}, words...)
	return strings.Join(words, ",")
}
