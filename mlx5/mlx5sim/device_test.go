package mlx5sim

import (
	"errors"
	"io/fs"
	"net/netip"
	"runtime"
	"strings"
	"syscall"
	"testing"

	"github.com/rrppcc-go/rrppcc/uverbs"
)

func TestNewRefusesBadOptions(t *testing.T) {
	for name, opts := range map[string][]Option{
		"nil fabric":    {WithFabric(nil)},
		"MTU 0":         {WithMTU(0)},
		"MTU 6":         {WithMTU(6)},
		"unspecified":   {WithAddr(netip.IPv4Unspecified())},
		"unspecified 6": {WithAddr(netip.IPv6Unspecified())},
		"multicast":     {WithAddr(netip.MustParseAddr("224.0.0.1"))},
		"zone":          {WithAddr(netip.MustParseAddr("fe80::1%lo"))},
	} {
		if d, err := New(append(opts, InProcess())...); err == nil {
			t.Errorf("%s: accepted", name)
			d.Close()
		}
	}
}

func TestAddressOfAnotherHostIsNamed(t *testing.T) {
	d, err := New(WithAddr(netip.MustParseAddr("203.0.113.7"))) // TEST-NET-3: nobody's
	if err == nil {
		d.Close()
		t.Skip("this host binds any address (net.ipv4.ip_nonlocal_bind)")
	}
	if !strings.Contains(err.Error(), "203.0.113.7") {
		t.Errorf("%v", err)
	}
	if runtime.GOOS == "linux" && (!errors.Is(err, syscall.EADDRNOTAVAIL) || !strings.Contains(err.Error(), "no address of this host")) {
		t.Errorf("%v", err)
	}
}

func TestAddressesAreUniqueInAFabric(t *testing.T) {
	fab := NewFabric()
	a := testDevice(t, fab, "10.1.2.3")
	if _, err := New(InProcess(), WithFabric(fab), WithAddr(a.addr)); !errors.Is(err, syscall.EADDRINUSE) {
		t.Errorf("same address: %v", err)
	}
	testDevice(t, NewFabric(), "10.1.2.3") // another fabric is another world
	a.Close()
	testDevice(t, fab, "10.1.2.3") // and a closed device frees its address
	seen := map[netip.Addr]bool{}
	for range 50 {
		d, err := New(InProcess(), WithFabric(fab))
		if err != nil {
			t.Fatal(err)
		}
		defer d.Close()
		b := d.Addr().As4()
		if seen[d.Addr()] || b[0] != 127 || b[1] == 0 || b[3] == 0 || b[3] == 255 {
			t.Errorf("default address %s", d.Addr())
		}
		seen[d.Addr()] = true
	}
}

// TestNewBindsALinkOfItsOwn stands for two processes: two fabrics.
func TestNewBindsALinkOfItsOwn(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("only Linux has all of 127.0.0.0/8")
	}
	a, err := New(WithFabric(NewFabric()))
	if err != nil {
		t.Fatal(err)
	}
	defer a.Close()
	b, err := New(WithFabric(NewFabric()))
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	if a.link == nil || b.link == nil || a.Addr() == b.Addr() {
		t.Errorf("addresses %s and %s, links %v and %v", a.Addr(), b.Addr(), a.link, b.link)
	}
	if _, err := New(WithFabric(NewFabric()), WithAddr(a.Addr())); err == nil {
		t.Error("a second link on one address")
	}
	if err := a.Close(); err != nil {
		t.Fatal(err)
	}
	again, err := New(WithFabric(NewFabric()), WithAddr(a.Addr()))
	if err != nil {
		t.Fatalf("the address of a closed device: %v", err)
	}
	again.Close()
	fab := NewFabric()
	if _, err := New(WithFabric(fab), WithAddr(netip.MustParseAddr("192.0.2.1"))); err == nil {
		t.Error("a link on an address that this machine does not have")
	}
	if len(fab.byGID) != 0 {
		t.Error("a device that could not start is in the fabric")
	}
}

func TestDevicesHaveNamesOfTheirOwn(t *testing.T) {
	fab := NewFabric()
	a, b := testDevice(t, fab, "10.0.0.1"), testDevice(t, fab, "10.0.0.2")
	if a.name == b.name || !strings.HasPrefix(a.name, "mlx5_sim") {
		t.Errorf("names %q and %q", a.name, b.name)
	}
	if a.Info().NodeGUID == b.Info().NodeGUID {
		t.Error("two devices with one node GUID")
	}
	c, err := New(InProcess(), WithFabric(fab), WithName("left"))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if v := c.Verbs(); v.Name() != "left" || !v.Simulated() || v.DriverID() != 1 {
		t.Errorf("verbs device %v, driver id %d", v, v.DriverID())
	}
}

func TestGIDTableIsThatOfARoCEPort(t *testing.T) {
	for _, tt := range []struct{ addr, ll, ip string }{
		{"10.0.0.1", "fe80:0000:0000:0000:005a:0aff:fe00:0001", "0000:0000:0000:0000:0000:ffff:0a00:0001"},
		{"2001:db8::7", "", "2001:0db8:0000:0000:0000:0000:0000:0007"},
		{"127.0.0.9", "fe80:0000:0000:0000:005a:7fff:fe00:0009", "0000:0000:0000:0000:0000:ffff:7f00:0009"},
	} {
		d := testDevice(t, NewFabric(), tt.addr)
		want := map[string]string{
			"ports/1/gid_attrs/types/0": "IB/RoCE v1", "ports/1/gid_attrs/types/1": "RoCE v2",
			"ports/1/gid_attrs/types/2": "IB/RoCE v1", "ports/1/gid_attrs/types/3": "RoCE v2",
			"ports/1/gids/2": tt.ip, "ports/1/gids/3": tt.ip,
			"ports/1/gids/4":  "0000:0000:0000:0000:0000:0000:0000:0000",
			"ports/1/pkeys/0": "0xffff", "ports/1/state": "4: ACTIVE", "ports/1/link_layer": "Ethernet", "node_type": "1: CA",
			"fw_ver": "20.35.1012",
		}
		if tt.ll != "" {
			want["ports/1/gids/0"], want["ports/1/gids/1"] = tt.ll, tt.ll
		}
		for path, text := range want {
			if got, err := d.Attr(path); err != nil || got != text {
				t.Errorf("%s %s: %q, %v; want %q", tt.addr, path, got, err, text)
			}
		}
		for _, path := range []string{"ports/1/gid_attrs/types/4", "ports/1/gid_attrs/ndevs/15"} {
			if _, err := d.Attr(path); !errors.Is(err, syscall.EINVAL) {
				t.Errorf("%s: %v, want EINVAL", path, err)
			}
		}
		for _, path := range []string{"", "nothing", "ports/2/state", "ports/1/gids/16", "ports/1/gids/-1", "ports/1/gids/01", "ports/1/gids/x",
			"ports/1/pkeys/1", "ports/1/gid_attrs/types/99999999999", "ports/1/gid_attrs/types/"} {
			if _, err := d.Attr(path); !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("%s: %v, want ErrNotExist", path, err)
			}
		}
	}
	if d := testDevice(t, NewFabric(), "127.0.0.10"); d.ifname == "" || d.gids[3].ifindex == 0 {
		t.Error("a loopback address has no interface")
	} else if got, err := d.Attr("ports/1/gid_attrs/ndevs/3"); err != nil || got != d.ifname {
		t.Errorf("ndev %q, %v", got, err)
	}
	if d := testDevice(t, NewFabric(), "192.0.2.77"); d.gids[3].ifindex != 0 {
		t.Error("an address that nobody has is on an interface")
	}
}

func TestMACAndLinkLocalGIDAgree(t *testing.T) {
	for _, s := range []string{"10.0.0.1", "255.254.253.252", "2001:db8::1", "fe80::1"} {
		mac := macOf(netip.MustParseAddr(s))
		if got := macOfGID(linkLocal(mac)); got != mac {
			t.Errorf("%s: MAC %x, by its link-local GID %x", s, mac, got)
		}
		if mac[0]&3 != 2 {
			t.Errorf("%s: MAC %x is not a local unicast one", s, mac)
		}
	}
}

func TestGIDTableQueryTakesAnyEntrySize(t *testing.T) {
	u := newUser(t)
	u.getContext()
	for _, tt := range []struct {
		size  uint64
		room  int
		errno syscall.Errno
	}{{32, 4 * 32, 0}, {32, 16 * 32, 0}, {48, 4 * 48, 0}, {16, 4 * 16, 0}, {32, 4*32 - 1, syscall.EINVAL}, {0, 128, syscall.EINVAL}, {1 << 63, 128, syscall.EINVAL}} {
		entries, count := u.out(attrGIDEntries, tt.room), u.out(attrGIDCount, 8)
		err := u.f.Ioctl(command(objDevice, 5, in64(attrGIDEntrySize, tt.size), in32(attrGIDFlags, 0), entries, count))
		if tt.errno != 0 || err != nil {
			if err != tt.errno {
				t.Errorf("size %d, room %d: %v, want %v", tt.size, tt.room, err, tt.errno)
			}
			continue
		}
		if n := le.Uint64(u.at(count.data, 8)); n != 4 {
			t.Errorf("size %d: %d entries", tt.size, n)
		}
		if got, want := u.at(entries.data+3*tt.size, 16), gidOf("10.0.0.1"); [16]byte(got) != want {
			t.Errorf("size %d: entry 3 has GID %x", tt.size, got)
		}
	}
}

func TestMTUIsWhatTheOptionSays(t *testing.T) {
	d, err := New(InProcess(), WithFabric(NewFabric()), WithMTU(uverbs.MTU1024))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.Close() })
	u := openUser(t, d, 1<<16)
	u.getContext()
	resp := u.out(attrPortResp, 48)
	u.must(command(objDevice, 2, in64(attrPortNum, 1), resp))
	if got := u.at(resp.data, 48); got[27] != 3 || got[28] != 3 {
		t.Errorf("max and active MTU codes %d and %d", got[27], got[28])
	}
}
