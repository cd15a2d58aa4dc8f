package uverbs

import (
	"encoding/binary"
	"errors"
	"fmt"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/rrppcc-go/rrppcc/internal/abi"
)

// roce is an entry of port 1's table.
func roce(index int, typ GIDType, ifindex int, a string) abi.Ib_uverbs_gid_entry {
	return abi.Ib_uverbs_gid_entry{Gid: GIDFromAddr(addr(a)), Gid_index: uint32(index), Port_num: 1, Gid_type: uint32(typ), Netdev_ifindex: uint32(ifindex)}
}

func TestChooseGIDTakesTheAddressThatOthersReach(t *testing.T) {
	const v1, v2 = GIDTypeRoCEv1, GIDTypeRoCEv2
	for _, tt := range []struct {
		name      string
		gids      []abi.Ib_uverbs_gid_entry
		ask       int
		link      LinkLayer
		simulated bool
		want      int    // index; -1 for an error
		words     string // in the reason or the error, separated by |
	}{
		{"IPv4 before IPv6", []abi.Ib_uverbs_gid_entry{roce(0, v1, 7, "fe80::5"), roce(1, v2, 7, "fe80::5"), roce(2, v1, 7, "10.0.0.5"), roce(3, v2, 7, "2001:db8::5"), roce(5, v2, 7, "10.0.0.5"), roce(6, v2, 7, "10.0.0.6")}, -1, LinkLayerEthernet, false, 5, "10.0.0.5|eth7|IPv4|3 of 6"},
		{"global IPv6 where there is no IPv4", []abi.Ib_uverbs_gid_entry{roce(1, v2, 7, "fe80::5"), roce(3, v2, 7, "2001:db8::5")}, -1, LinkLayerEthernet, false, 3, "2001:db8::5"},
		{"another port's entry does not count", []abi.Ib_uverbs_gid_entry{{Gid: GIDFromAddr(addr("10.0.0.5")), Gid_index: 0, Port_num: 2, Gid_type: 2, Netdev_ifindex: 7}, roce(4, v2, 7, "10.0.0.6")}, -1, LinkLayerEthernet, false, 4, "10.0.0.6"},
		{"loopback's whole network", []abi.Ib_uverbs_gid_entry{roce(0, v2, 1, "127.9.8.7")}, -1, LinkLayerEthernet, false, 0, "127.9.8.7|lo"},
		{"loopback last", []abi.Ib_uverbs_gid_entry{roce(0, v2, 1, "127.0.0.1"), roce(1, v2, 7, "2001:db8::5")}, -1, LinkLayerEthernet, false, 1, ""},
		{"nothing usable", []abi.Ib_uverbs_gid_entry{roce(0, v1, 7, "10.0.0.5"), roce(1, v2, 7, "fe80::5"), roce(2, v2, 99, "10.9.9.9"), roce(3, v2, 8, "10.0.0.8"), roce(4, v2, 7, "10.0.0.7"), roce(5, v2, 0, "10.0.0.5")}, -1, LinkLayerEthernet, false, -1,
			"index 0|only RoCE v2|index 1|link-local|index 2|interface 99 is not in this network namespace|index 3|down|index 4|does not hold|index 5|no network interface"},
		{"127/8 is not held by other interfaces", []abi.Ib_uverbs_gid_entry{roce(0, v2, 7, "127.0.0.1")}, -1, LinkLayerEthernet, false, -1, "does not hold"},
		{"a simulator without interface", []abi.Ib_uverbs_gid_entry{roce(0, v2, 0, "127.0.0.2")}, -1, LinkLayerEthernet, true, 0, "lo"},
		{"empty table", nil, -1, LinkLayerEthernet, false, -1, "empty|ip address add"},
		{"asked for", []abi.Ib_uverbs_gid_entry{roce(3, v2, 7, "10.0.0.5"), roce(4, v2, 7, "10.0.0.6")}, 4, LinkLayerEthernet, false, 4, "asked for"},
		{"asked for link-local", []abi.Ib_uverbs_gid_entry{roce(1, v2, 7, "fe80::5")}, 1, LinkLayerEthernet, false, 1, "fe80::5"},
		{"asked for RoCE v1", []abi.Ib_uverbs_gid_entry{roce(0, v1, 7, "10.0.0.5"), roce(1, v2, 7, "10.0.0.5")}, 0, LinkLayerEthernet, false, -1, "only RoCE v2|index 1: RoCE v2 10.0.0.5 of eth7"},
		{"asked for an empty one", []abi.Ib_uverbs_gid_entry{roce(3, v2, 7, "10.0.0.5")}, 9, LinkLayerEthernet, false, -1, "index 9 is empty|index 3"},
		{"InfiniBand", []abi.Ib_uverbs_gid_entry{roce(0, GIDTypeIB, 0, "fe80::1"), roce(1, GIDTypeIB, 0, "fe80::2")}, -1, LinkLayerInfiniBand, false, 0, "InfiniBand"},
		{"InfiniBand, asked for", []abi.Ib_uverbs_gid_entry{roce(0, GIDTypeIB, 0, "fe80::1"), roce(1, GIDTypeIB, 0, "fe80::2")}, 1, LinkLayerInfiniBand, false, 1, "asked for"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			k := newFakeKernel()
			k.gids, k.port.Legacy_resp.Link_layer, k.info.Simulated = tt.gids, uint8(tt.link), tt.simulated
			c := open(t, k)
			defer c.Close()
			e, reason, err := c.ChooseGID(1, tt.ask)
			if tt.want < 0 {
				if !errors.Is(err, ErrNoGID) {
					t.Fatalf("%+v, %v; want ErrNoGID", e, err)
				}
				reason = err.Error()
			} else if err != nil || e.Index != tt.want {
				t.Fatalf("%+v, %q, %v; want index %d", e, reason, err, tt.want)
			}
			for _, word := range strings.Split(tt.words, "|") {
				if !strings.Contains(reason, word) {
					t.Errorf("%q lacks %q", reason, word)
				}
			}
		})
	}
}

func TestChooseGIDNeedsAnActivePort(t *testing.T) {
	k := newFakeKernel()
	k.port.Legacy_resp.State = uint8(PortDown)
	c := open(t, k)
	defer c.Close()
	if _, _, err := c.ChooseGID(1, -1); !errors.Is(err, ErrPortDown) || !strings.Contains(err.Error(), "DOWN") {
		t.Error(err)
	}
	if _, _, err := c.ChooseGID(2, -1); !errors.Is(err, syscall.EINVAL) || !strings.Contains(err.Error(), "no port of this number") {
		t.Errorf("port 2 of 1: %v", err)
	}
	c.netdevs = func() ([]netdev, error) { return nil, syscall.EMFILE }
	k.port.Legacy_resp.State = uint8(PortActive)
	if _, _, err := c.ChooseGID(1, -1); !errors.Is(err, syscall.EMFILE) {
		t.Errorf("without interfaces: %v", err)
	}
}

// sysfsKernel shows its GIDs in sysfs, as kernels do that lack the commands.
func sysfsKernel() *fakeKernel {
	k := newFakeKernel()
	k.fail = func(_ int, c *fakeCommand) syscall.Errno {
		if c.object == abi.UVERBS_OBJECT_DEVICE && (c.method == abi.UVERBS_METHOD_QUERY_GID_TABLE || c.method == abi.UVERBS_METHOD_QUERY_GID_ENTRY) {
			return syscall.EPROTONOSUPPORT
		}
		return 0
	}
	k.attrs = make(map[string]string)
	slot := func(i int, gid, typ, ndev string) {
		k.attrs[fmt.Sprintf("ports/1/gids/%d", i)] = gid
		k.attrs[fmt.Sprintf("ports/1/gid_attrs/types/%d", i)] = typ
		k.attrs[fmt.Sprintf("ports/1/gid_attrs/ndevs/%d", i)] = ndev
	}
	slot(0, "fe80:0000:0000:0000:0000:0000:0000:0005", "IB/RoCE v1", "eth7")
	slot(1, "0000:0000:0000:0000:0000:0000:0000:0000", "EINVAL", "EINVAL")
	slot(2, "0000:0000:0000:0000:0000:ffff:0a00:0005", "RoCE v2", "eth7")
	slot(3, "fe80:0000:0000:0000:0000:0000:0000:0009", "IB/RoCE v1", "EINVAL")
	return k
}

func TestGIDTableFallsBackToSysfs(t *testing.T) {
	k := sysfsKernel()
	k.port.Legacy_resp.Gid_tbl_len = 1 << 31 // ends with the files
	c := open(t, k)
	defer c.Close()
	got, err := c.QueryGIDTable()
	if err != nil {
		t.Fatal(err)
	}
	want := []GIDEntry{
		{GID: GIDFromAddr(addr("fe80::5")), Port: 1, Index: 0, Type: GIDTypeRoCEv1, IfIndex: 7},
		{GID: GIDFromAddr(addr("10.0.0.5")), Port: 1, Index: 2, Type: GIDTypeRoCEv2, IfIndex: 7},
		{GID: GIDFromAddr(addr("fe80::9")), Port: 1, Index: 3, Type: GIDTypeIB},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	if _, err := c.QueryGID(1, 1); !errors.Is(err, syscall.ENODATA) {
		t.Errorf("empty slot: %v", err)
	}
	if e, _, err := c.ChooseGID(1, -1); err != nil || e.Index != 2 {
		t.Errorf("%+v, %v", e, err)
	}
	for _, bad := range []string{"ports/1/gids/2", "ports/1/gid_attrs/types/2"} {
		k := sysfsKernel()
		k.attrs[bad] = "nonsense"
		c := open(t, k)
		if _, err := c.QueryGIDTable(); !errors.Is(err, ErrBadAnswer) {
			t.Errorf("%s: %v", bad, err)
		}
		c.Close()
	}
}

func TestGIDTableTooLargeForOneCommandIsReadSlotBySlot(t *testing.T) {
	k := newFakeKernel()
	k.gids = nil
	for i := range 2100 {
		k.gids = append(k.gids, roce(2*i, GIDTypeRoCEv2, 7, fmt.Sprintf("10.0.%d.%d", i/256, i%256)))
	}
	k.port.Legacy_resp.Gid_tbl_len = 4200
	c := open(t, k)
	defer c.Close()
	got, err := c.QueryGIDTable()
	if err != nil || len(got) != 2100 || got[2099].Index != 4198 {
		t.Errorf("%d entries, %v", len(got), err)
	}
	k.gids = k.gids[:maxTable]
	if got, err := c.QueryGIDTable(); err != nil || len(got) != maxTable {
		t.Errorf("%d entries, %v; want %d", len(got), err, maxTable)
	}
}

func TestGIDTableThatContradictsItselfIsRefused(t *testing.T) {
	for name, garble := range map[string]func(p []byte){
		"more entries than room": func(p []byte) {
			if len(p) == 8 {
				binary.NativeEndian.PutUint64(p, maxTable+1)
			}
		},
		"port 0": func(p []byte) {
			if len(p) == 32 {
				p[20] = 0
			}
		},
		"huge index": func(p []byte) {
			if len(p) == 32 {
				p[19] = 1
			}
		},
	} {
		k := newFakeKernel()
		for i := len(k.gids); i < maxTable; i++ { // a full table, so that one more is beyond it
			k.gids = append(k.gids, roce(i, GIDTypeRoCEv2, 7, "10.0.0.5"))
		}
		c := open(t, k)
		k.garble = garble
		if _, err := c.QueryGIDTable(); !errors.Is(err, ErrBadAnswer) {
			t.Errorf("%s: %v", name, err)
		}
		c.Close()
	}
}

func TestHostNetdevsFindsLoopback(t *testing.T) {
	devs, err := hostNetdevs()
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range devs {
		if d.loopback && d.up {
			if !d.holds(addr("127.0.0.1")) || !d.holds(addr("127.44.0.9")) || d.holds(addr("128.0.0.1")) {
				t.Errorf("%+v", d)
			}
			return
		}
	}
	t.Skip("no loopback interface is up here")
}

func TestGIDReadsAsAddress(t *testing.T) {
	g := GIDFromAddr(addr("10.0.0.5"))
	if g.Addr() != addr("10.0.0.5") || g.String() != "::ffff:10.0.0.5" || g.IsZero() || !(GID{}).IsZero() {
		t.Errorf("%v %v", g, g.Addr())
	}
}

func FuzzSysfsGID(f *testing.F) {
	f.Add("fe80:0000:0000:0000:0000:0000:0000:0005", "IB/RoCE v1", "eth7")
	f.Add("0000:0000:0000:0000:0000:ffff:0a00:0005", "RoCE v2", "lo")
	f.Add("0000:0000:0000:0000:0000:0000:0000:0000", "EINVAL", "EINVAL")
	f.Add("", "", "")
	f.Fuzz(func(t *testing.T, gid, typ, ndev string) {
		k := newFakeKernel()
		k.attrs = map[string]string{"ports/1/gids/0": gid, "ports/1/gid_attrs/types/0": typ, "ports/1/gid_attrs/ndevs/0": ndev}
		c := &Context{dev: NewDevice(k), netdevs: ownNetdevs}
		e, err := c.sysfsGID(1, 0)
		if err == nil && (e.GID.IsZero() || e.Type > GIDTypeRoCEv2) {
			t.Errorf("%+v", e)
		}
	})
}
