package mlx5sim

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"strings"
	"syscall"
	"testing"

	"github.com/rrppcc-go/rrppcc/uverbs"
)

func testPort(t testing.TB, fab *Fabric, opts ...Option) *Device {
	t.Helper()
	d, err := New(append(opts, WithInfiniBand(), WithFabric(fab))...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.Close() })
	return d
}

func TestInfiniBandRefusesWhatIsAboutPackets(t *testing.T) {
	for name, opt := range map[string]Option{
		"WithAddr": WithAddr(netip.MustParseAddr("127.0.0.9")), "WithEthernet": WithEthernet(struct{ io.ReadWriteCloser }{}),
		"ByWire": ByWire(), "WithPcap": WithPcap(new(bytes.Buffer)),
	} {
		d, err := New(WithInfiniBand(), opt)
		if err == nil {
			d.Close()
		}
		if err == nil || !strings.Contains(err.Error(), name) || !strings.Contains(err.Error(), "WithInfiniBand") {
			t.Errorf("%s: %v", name, err)
		}
	}
	d := testPort(t, NewFabric(), InProcess()) // says the same twice
	if _, err := d.Capture(io.Discard); !errors.Is(err, syscall.ENODEV) {
		t.Errorf("Capture: %v", err)
	}
	if d.Addr().IsValid() {
		t.Errorf("address %v", d.Addr())
	}
}

func TestAttributesOfAnInfiniBandPort(t *testing.T) {
	fab := NewFabric()
	testPort(t, fab)
	d := testPort(t, fab)
	g := d.nodeGUID()
	for path, want := range map[string]string{
		"ports/1/link_layer": "InfiniBand", "ports/1/lid": "0x3", "ports/1/sm_lid": "0x1", "ports/1/lid_mask_count": "0", "ports/1/sm_sl": "0",
		"ports/1/state": "4: ACTIVE", "ports/1/pkeys/0": "0xffff", "ports/1/cap_mask": "0x2651e848",
		"ports/1/gids/0":            fmt.Sprintf("fe80:0000:0000:0000:%x:%x:%x:%x", g[:2], g[2:4], g[4:6], g[6:]),
		"ports/1/gids/1":            "0000:0000:0000:0000:0000:0000:0000:0000",
		"ports/1/gid_attrs/types/0": "IB/RoCE v1",
	} {
		if got, err := d.Attr(path); err != nil || got != want {
			t.Errorf("%s: %q, %v; want %q", path, got, err, want)
		}
	}
	for _, path := range []string{"ports/1/gid_attrs/types/1", "ports/1/gid_attrs/ndevs/0"} {
		if _, err := d.Attr(path); !errors.Is(err, syscall.EINVAL) {
			t.Errorf("%s: %v, want EINVAL", path, err)
		}
	}
	// Of struct ib_uverbs_query_port_resp: lid 22, sm_lid 24, lmc 29, link_layer 37, flags 38.
	p := d.portResp()
	if le.Uint16(p[22:]) != 3 || le.Uint16(p[24:]) != smLID || p[29] != 0 || p[37] != linkIB || p[38] != 0 {
		t.Errorf("QUERY_PORT answers % x", p)
	}
}

func TestLIDsAreUniqueAndNotSoonUsedAgain(t *testing.T) {
	fab := NewFabric()
	a, b := testPort(t, fab), testPort(t, fab)
	a.Close()
	c := testPort(t, fab)
	if b.lid != 3 || c.lid != 4 {
		t.Errorf("LIDs %d and %d, want 3 and 4", b.lid, c.lid)
	}
	if other := testPort(t, NewFabric()); other.lid != 2 {
		t.Errorf("first LID of another fabric is %d", other.lid)
	}
	fab.lastLID = lastLID - 1
	for _, want := range []uint16{lastLID, 2, 5} { // 3 and 4 are taken
		if d := testPort(t, fab); d.lid != want {
			t.Errorf("LID %#x, want %#x", d.lid, want)
		}
	}
	for lid := uint16(smLID + 1); lid <= lastLID; lid++ {
		if fab.byLID[lid] == nil {
			fab.byLID[lid] = &Device{}
		}
	}
	if d, err := New(WithInfiniBand(), WithFabric(fab)); !errors.Is(err, syscall.EADDRINUSE) {
		t.Errorf("a port more than there are LIDs: %v", err)
		d.Close()
	}
}

func TestLinkLayersDoNotMeet(t *testing.T) {
	fab := NewFabric()
	ib, port := testPort(t, fab), testPort(t, fab)
	eth := testDevice(t, fab, "10.0.0.1")
	ibGID, ethGID := ib.gids[0].gid, eth.gids[3].gid
	for name, c := range map[string]struct {
		from *Device
		av   addressVector
		want *Device
	}{
		"Ethernet to InfiniBand's GID": {eth, addressVector{dgid: ibGID, isGlobal: true}, nil},
		"Ethernet to a LID":            {eth, addressVector{dlid: ib.lid}, nil},
		"Ethernet to itself":           {eth, addressVector{dgid: ethGID, isGlobal: true}, eth},
		"InfiniBand to Ethernet's GID": {ib, addressVector{dgid: ethGID, isGlobal: true}, nil},
		"its GID at a LID":             {ib, addressVector{dgid: ethGID, dlid: port.lid, isGlobal: true}, nil},
		"LID 0":                        {ib, addressVector{}, nil},
		"the subnet manager":           {ib, addressVector{dlid: smLID}, nil},
		"a multicast LID":              {ib, addressVector{dlid: 0xc001}, nil},
		"the permissive LID":           {ib, addressVector{dlid: 0xffff}, nil},
		"another port":                 {ib, addressVector{dlid: port.lid}, port},
		"another port, with GRH":       {ib, addressVector{dlid: port.lid, dgid: port.gids[0].gid, isGlobal: true}, port},
		"another port's GID":           {ib, addressVector{dlid: port.lid, dgid: ibGID, isGlobal: true}, nil},
		"itself":                       {ib, addressVector{dlid: ib.lid}, ib},
	} {
		if got := c.from.destination(&c.av); got != c.want {
			t.Errorf("%s: reaches %v", name, got)
		}
	}
	port.Close()
	if ib.destination(&addressVector{dlid: port.lid}) != nil {
		t.Error("a port that is gone is reached")
	}
}

// TestCreateAHOnInfiniBand: no program of ours or of libmlx5 asks the kernel; it
// would answer without an address, and check what it checks of a QP's.
func TestCreateAHOnInfiniBand(t *testing.T) {
	d := testPort(t, NewFabric())
	gid := d.gids[0].gid
	for name, c := range map[string]struct {
		av   addressVector
		want error
	}{
		"by LID":              {addressVector{dlid: 7, port: 1, sgidIndex: 99}, nil},
		"with a GRH":          {addressVector{dlid: 7, port: 1, dgid: gid, isGlobal: true}, nil},
		"port 2":              {addressVector{dlid: 7, port: 2}, syscall.EINVAL},
		"an empty GID":        {addressVector{dlid: 7, port: 1, dgid: gid, isGlobal: true, sgidIndex: 1}, syscall.ENODATA},
		"a GID of no slot":    {addressVector{dlid: 7, port: 1, dgid: gid, isGlobal: true, sgidIndex: gidTableLen}, syscall.EINVAL},
		"path bits and level": {addressVector{dlid: 7, port: 1, srcPathBits: 3, sl: 15}, nil},
	} {
		av := c.av
		if err := d.resolve(&av); !errors.Is(err, c.want) {
			t.Errorf("%s: %v, want %v", name, err, c.want)
		}
		if !av.isGlobal && av.sgidIndex != 0 {
			t.Errorf("%s: the GID index %d of no GRH is kept", name, av.sgidIndex)
		}
		if av.dlid != 7 || av.sl != c.av.sl || av.srcPathBits != c.av.srcPathBits {
			t.Errorf("%s: %+v", name, av)
		}
	}
}

// TestAddressVectorOfInfiniBand reads struct mlx5_wqe_av as written for a port of
// that link layer.
func TestAddressVectorOfInfiniBand(t *testing.T) {
	var b [avBytes]byte
	be.PutUint32(b[0:], 0x80001234)           // QKey
	be.PutUint32(b[8:], avExtended|0x1a4)     // DQPN
	be.PutUint32(b[12:], 0x7d_85_0102)        // static rate 7, service level 13, path bits 5, LID
	be.PutUint32(b[28:], avGRH|2<<20|0x54321) // GRH, GID index, flow label
	copy(b[32:], bytes.Repeat([]byte{0xab}, 16))
	var av udAV
	if !av.decode(b[:]) {
		t.Fatal("refused")
	}
	av.asInfiniBand()
	if av.qpn != 0x1a4 || av.dlid != 0x102 || av.sl != 13 || av.srcPathBits != 5 || !av.isGlobal || av.sgidIndex != 2 || av.flowLabel != 0x54321 || av.dgid[15] != 0xab {
		t.Errorf("%+v", av)
	}
	b[28] &^= avGRH >> 24
	av.decode(b[:])
	if av.asInfiniBand(); av.isGlobal {
		t.Error("a GRH that nobody asked for")
	}
}

func TestPortOfInfiniBandGoesDownAndUp(t *testing.T) {
	d := testPort(t, NewFabric(), WithMTU(uverbs.MTU2048))
	d.SetPortDown()
	if state, err := d.Attr("ports/1/state"); state != "1: DOWN" || err != nil {
		t.Errorf("%q, %v", state, err)
	}
	d.SetPortUp()
	if p := d.portResp(); p[26] != portActive || p[27] != uint8(uverbs.MTU2048) || le.Uint16(p[22:]) != d.lid {
		t.Errorf("QUERY_PORT answers % x", p)
	}
}

// onInfiniBand puts both devices of p on InfiniBand instead.
func (p *duo) onInfiniBand() {
	for _, d := range []*Device{p.a.d, p.b.d} {
		p.fab.leave(d)
		d.opt.infiniband = true
		d.gids = []gidSlot{{gid: d.portGID(), typ: gidIB}}
		p.fab.join(d)
	}
}

// TestDatagramsByLIDInBytes posts address vectors byte by byte, sensible and not.
func TestDatagramsByLIDInBytes(t *testing.T) {
	for _, c := range []struct {
		name    string
		rateSL  byte
		gidFL   uint32
		lid     uint16
		gid     int // 0: the receiver's, 1: none
		syn     syndrome
		arrives bool
		grh     bool
	}{
		{name: "no GRH", rateSL: 0x79, lid: 3, gid: 1, arrives: true},
		{name: "no GRH, and what belongs to one", rateSL: 5, gidFL: 0xff<<20 | 1<<31, lid: 3, arrives: true},
		{name: "GRH", rateSL: 0xf, gidFL: avGRH | 0x12345, lid: 3, arrives: true, grh: true},
		{name: "GRH to nobody's GID", gidFL: avGRH, lid: 3, gid: 1},
		{name: "GRH from a GID that is not there", gidFL: avGRH | 0xff<<20, lid: 3, syn: synLocalQPOp},
		{name: "nobody's LID", lid: 4},
		{name: "a multicast LID", lid: 0xc003},
	} {
		t.Run(c.name, func(t *testing.T) {
			p := newDuo(t, "UD")
			p.onInfiniBand()
			dst := p.b.mr(64, accessLocalWrite)
			p.b.fill(dst, 0x55)
			before := append([]byte(nil), p.b.bytes(dst)[:grhBytes]...)
			p.b.recv(p.qb, dst.sge(0, 64))
			av := p.av(p.qb.attr.qkey)
			av[12] = c.rateSL
			be.PutUint16(av[14:], c.lid)
			be.PutUint32(av[28:], c.gidFL)
			if c.gid != 0 {
				clear(av[32:48])
			}
			p.a.send(p.qa, ctrl{op: opSend, flags: ce}, av, segInline([]byte("abcde")))
			sent := got{op: cqeReq}
			if c.syn != synOK {
				sent = got{op: cqeReqErr, syn: c.syn}
			}
			wantCQEs(t, "sender", p.a.pollAll(p.qa.sendCQ), sent)
			raw, ok := p.b.poll(p.qb.recvCQ)
			if ok != c.arrives {
				t.Fatalf("arrives: %v", ok)
			}
			if !ok {
				if n := p.a.d.stats.Drops.Unreachable; c.syn == synOK && n != 1 {
					t.Errorf("%d are counted as unreachable", n)
				}
				return
			}
			flags := be.Uint32(raw[24:])
			if be.Uint16(raw[22:]) != p.a.d.lid || flags>>24&0xf != uint32(c.rateSL&0xf) || flags>>28&3 != uint32(b2u8(c.grh)) || be.Uint32(raw[44:]) != 45 {
				t.Errorf("CQE %x", raw)
			}
			h := p.b.bytes(dst)
			if string(h[grhBytes:45]) != "abcde" || c.grh == bytes.Equal(h[:grhBytes], before) {
				t.Errorf("received %x", h)
			}
			if c.grh && (be.Uint32(h) != 6<<28|0x12345 || h[6] != 0x1b || [16]byte(h[8:24]) != p.a.d.gids[0].gid || [16]byte(h[24:40]) != p.b.d.gids[0].gid) {
				t.Errorf("GRH %x", h[:grhBytes])
			}
		})
	}
}
