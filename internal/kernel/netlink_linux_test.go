package kernel

import (
	"net"
	"os"
	"testing"
)

// On a machine with devices, netlink and sysfs say the same.
func TestNetlinkAgreesWithSysfs(t *testing.T) {
	tr := tree{sys: "/sys", dev: "/dev"}
	want, err := tr.scan()
	if err != nil || len(want) == 0 {
		if os.Getenv("RRPC_DEVICE") != "" {
			t.Fatal(err)
		}
		t.Skipf("no devices: %v", err)
	}
	var got []*sysfsDevice
	if err := withNetlink(func(ask nlAsk) (err error) {
		got, err = tr.byNetlink(ask)
		return err
	}); err != nil {
		t.Fatal(err)
	}
	if len(got) != len(want) {
		t.Fatalf("%d devices by netlink, %d in sysfs", len(got), len(want))
	}
	for i, g := range got {
		w := want[i]
		t.Logf("%+v", g.info)
		if g.info.Name != w.info.Name || g.info.Node != w.info.Node || g.info.NodeGUID != w.info.NodeGUID || g.info.ABI != w.info.ABI ||
			g.info.Driver != w.info.Driver || w.info.DriverID != 0 && g.info.DriverID != w.info.DriverID || g.major != w.major || g.minor != w.minor {
			t.Errorf("netlink %+v %d:%d\nsysfs %+v %d:%d", g.info, g.major, g.minor, w.info, w.major, w.minor)
		}
		for _, n := range g.info.Netdevs {
			if dev, err := net.InterfaceByIndex(n.IfIndex); err != nil || dev.Name != n.Name {
				t.Errorf("%+v: %v, %v", n, dev, err)
			}
		}
	}
}
