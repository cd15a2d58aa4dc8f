//go:build amd64 || arm64

package guest

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/rrppcc-go/rrppcc/mlx5/mlx5sim"
)

func newDevices(t testing.TB, n int) []*mlx5sim.Device {
	t.Helper()
	fab := mlx5sim.NewFabric()
	var devs []*mlx5sim.Device
	for i := range n {
		d, err := mlx5sim.New(mlx5sim.InProcess(), mlx5sim.WithFabric(fab), mlx5sim.WithName("mlx5_"+string(rune('0'+i))))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := d.Close(); err != nil {
				t.Error(err)
			}
		})
		devs = append(devs, d)
	}
	return devs
}

func newTestTree(t *testing.T, n int) *tree {
	t.Helper()
	tr, err := newTree(newDevices(t, n))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := tr.remove(); err != nil {
			t.Error(err)
		}
		if _, err := os.Stat(tr.root); !os.IsNotExist(err) {
			t.Errorf("the directory is still there: %v", err)
		}
	})
	return tr
}

func TestTreeShowsWhatLibibverbsReads(t *testing.T) {
	tr := newTestTree(t, 2)
	for name, want := range map[string]string{
		"/sys/class/infiniband_verbs/abi_version":                         "6",
		"/sys/class/infiniband_verbs/uverbs1/ibdev":                       "mlx5_1",
		"/sys/class/infiniband_verbs/uverbs1/abi_version":                 "1",
		"/sys/class/infiniband_verbs/uverbs1/dev":                         "231:193",
		"/sys/class/infiniband/mlx5_0/node_type":                          "1: CA",
		"/sys/class/infiniband/mlx5_1/ports/1/state":                      "4: ACTIVE",
		"/sys/class/infiniband/mlx5_1/ports/1/pkeys/0":                    "0xffff",
		"/sys/class/infiniband/mlx5_1/ports/1/gids/15":                    "0000:0000:0000:0000:0000:0000:0000:0000",
		"/sys/class/infiniband/mlx5_1/ports/1/gid_attrs/types/3":          "RoCE v2",
		"/sys/class/infiniband/mlx5_0/device/vendor":                      "0x15b3",
		"/sys/class/infiniband/mlx5_0/device/infiniband/mlx5_0/node_type": "1: CA",
		"/sys/class/infiniband_verbs/uverbs0/device/device":               "0x101b",
	} {
		b, err := os.ReadFile(tr.host(name))
		if err != nil || strings.TrimSuffix(string(b), "\n") != want || !strings.HasSuffix(string(b), "\n") {
			t.Errorf("%s: %q, %v; want %q and a newline", name, b, err, want)
		}
	}
	if b, err := os.ReadFile(tr.host("/sys/class/infiniband/mlx5_0/ports/1/gid_attrs/types/9")); err != nil || len(b) != 0 {
		t.Errorf("the type of an empty GID slot: %q, %v", b, err)
	}
	for _, link := range []string{"/sys/class/infiniband/mlx5_1", "/sys/class/infiniband_verbs/uverbs0", "/sys/class/infiniband/mlx5_0/device"} {
		real, err := filepath.EvalSymlinks(tr.host(link))
		if err != nil || !serves(tr.guestName(real)) || !strings.HasPrefix(tr.guestName(real), busRoot) {
			t.Errorf("%s leads to %s, %v", link, real, err)
		}
	}
}

func TestPathsAreResolvedAsTheKernelDoes(t *testing.T) {
	tr := newTestTree(t, 1)
	const slot = busRoot + "/0000:c0:00.0"
	for p, want := range map[string]string{
		"/sys/class/infiniband":                     "/sys/class/infiniband",
		"//sys/./class//infiniband":                 "/sys/class/infiniband",
		"/sys/class/infiniband/":                    "/sys/class/infiniband/",
		"/sys/class/infiniband/mlx5_0/.":            "/sys/class/infiniband/mlx5_0/",
		"/sys/class/infiniband/../infiniband_verbs": "/sys/class/infiniband_verbs",
		"/sys/class/infiniband/../../kernel":        "/sys/kernel",
		"/sys/class/infiniband/mlx5_0/..":           slot + "/infiniband",
		"/sys/class/infiniband/mlx5_0/device/..":    busRoot,
		"/sys/class/infiniband/mlx5_0/../../vendor": slot + "/vendor",
		"/sys/class/../class/infiniband/mlx5_0":     "/sys/class/infiniband/mlx5_0",
		"/dev/infiniband/../../../etc/passwd":       "/etc/passwd",
		"/usr/../dev/infiniband/uverbs0":            "/dev/infiniband/uverbs0",
		"/":                                         "/",
		"/..":                                       "/",
	} {
		if got := tr.resolve(p); got != want {
			t.Errorf("%s: %s, want %s", p, got, want)
		}
	}
	for name, want := range map[string]bool{
		"/sys/class/infiniband": true, "/sys/class/infiniband_verbs/uverbs0": true, "/dev/infiniband": true, "/dev/infiniband/": true,
		"/sys/class/infiniband_mad": false, "/sys/class": false, "/dev/infinibandx": false, "/": false, "": false,
	} {
		if serves(name) != want {
			t.Errorf("%q: served %v", name, !want)
		}
	}
	for name, want := range map[string]int{"/dev/infiniband/uverbs0": 0, "/dev/infiniband/uverbs1": -1, "/dev/infiniband/uverbs0/": -1, "/dev/infiniband/uverbs00": -1} {
		if got := tr.device(name); got != want {
			t.Errorf("%s is device %d, want %d", name, got, want)
		}
	}
}

func TestCPUMask(t *testing.T) {
	for n, want := range map[int]string{1: "00000001", 2: "00000003", 32: "ffffffff", 33: "00000001,ffffffff", 96: "ffffffff,ffffffff,ffffffff"} {
		if got := cpuMask(n); got != want {
			t.Errorf("%d processors: %s, want %s", n, got, want)
		}
	}
}
