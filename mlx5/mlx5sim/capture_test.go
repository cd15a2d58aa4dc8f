//go:build linux

package mlx5sim_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/rrppcc-go/rrppcc/internal/roce"
	"github.com/rrppcc-go/rrppcc/mlx5/mlx5sim"
	"github.com/rrppcc-go/rrppcc/uverbs"
)

// captured is a packet of a capture.
type captured struct {
	at       time.Time
	src, dst netip.AddrPort
	class    uint8 // TOS, or traffic class
	hops     uint8
	pkt      []byte
}

// readPcap reads a capture, and checks all of its headers and each ICRC.
func readPcap(t testing.TB, b []byte) (all []captured) {
	t.Helper()
	le, be := binary.LittleEndian, binary.BigEndian
	if len(b) < 24 || le.Uint32(b) != 0xa1b23c4d || le.Uint32(b[4:]) != 4<<16|2 || le.Uint32(b[20:]) != 101 {
		t.Fatalf("file header %x", b[:min(24, len(b))])
	}
	for b = b[24:]; len(b) > 0; {
		n := int(le.Uint32(b[8:]))
		if int(le.Uint32(b[12:])) != n {
			t.Fatalf("packet %d is cut", len(all))
		}
		c := captured{at: time.Unix(int64(le.Uint32(b)), int64(le.Uint32(b[4:])))}
		ip := b[16 : 16+n]
		b = b[16+n:]
		var src, dst []byte
		var udp []byte
		if ip[0] == 0x45 {
			sum := uint32(0)
			for i := 0; i < 20; i += 2 {
				sum += uint32(be.Uint16(ip[i:]))
			}
			if sum = sum>>16 + sum&0xffff; sum != 0xffff || be.Uint16(ip[2:]) != uint16(n) || be.Uint32(ip[4:]) != 0x4000 || ip[8] == 0 || ip[9] != 17 {
				t.Fatalf("packet %d: IPv4 header %x", len(all), ip[:20])
			}
			src, dst, udp = ip[12:16], ip[16:20], ip[20:]
			c.class, c.hops = ip[1], ip[8]
		} else {
			c.class, c.hops = ip[0]<<4|ip[1]>>4, ip[7]
			if be.Uint32(ip)&^(0xff<<20) != 6<<28 || int(be.Uint16(ip[4:])) != n-40 || ip[6] != 17 || ip[7] == 0 {
				t.Fatalf("packet %d: IPv6 header %x", len(all), ip[:40])
			}
			src, dst, udp = ip[8:24], ip[24:40], ip[40:]
		}
		s, _ := netip.AddrFromSlice(src)
		d, _ := netip.AddrFromSlice(dst)
		c.src, c.dst = netip.AddrPortFrom(s, be.Uint16(udp)), netip.AddrPortFrom(d, be.Uint16(udp[2:]))
		if int(be.Uint16(udp[4:])) != len(udp) || c.dst.Port() != roce.Port {
			t.Fatalf("packet %d: UDP header %x", len(all), udp[:8])
		}
		c.pkt = udp[8:]
		if f := roce.NewFlow(c.src, c.dst); !f.Valid(c.pkt) {
			t.Errorf("packet %d: the ICRC is wrong", len(all))
		}
		all = append(all, c)
	}
	return all
}

// farDevices makes two devices that share nothing but the loopback interface.
func farDevices(t testing.TB, opts ...mlx5sim.Option) (a, b *mlx5sim.Device) {
	one := func() *mlx5sim.Device {
		d, err := mlx5sim.New(append([]mlx5sim.Option{mlx5sim.WithFabric(mlx5sim.NewFabric())}, opts...)...)
		check(t, err)
		t.Cleanup(func() { check(t, d.Close()) })
		return d
	}
	return one(), one()
}

// farPair is two connected ends on devices that share nothing.
func farPair(t testing.TB, timeout uint8) (a, b *end) {
	da, db := farDevices(t)
	a, b = newEnd(t, da, uverbs.QPTypeRC, 64), newEnd(t, db, uverbs.QPTypeRC, 64)
	slowConnect(a, b, timeout)
	return a, b
}

// slowConnect connects with an ACK timer of 4 µs times 2 to the power of timeout:
// for 18, a busy machine does not run into it.
func slowConnect(a, b *end, timeout uint8) {
	for _, e := range [...]*end{a, b} {
		check(e.t, e.qp.Modify(&uverbs.QPAttr{State: uverbs.QPStateInit, Port: 1, AccessFlags: fullMR | uverbs.AccessRemoteAtomic},
			uverbs.AttrState|uverbs.AttrPKeyIndex|uverbs.AttrPort|uverbs.AttrAccessFlags))
	}
	a.rcRTR(b)
	b.rcRTR(a)
	for _, e := range [...]*end{a, b} {
		check(e.t, e.qp.Modify(&uverbs.QPAttr{State: uverbs.QPStateRTS, SQPSN: e.qp.QPN() * 7 & 0xffffff, MaxRdAtomic: 4, Timeout: timeout, RetryCnt: 7, RNRRetry: 7},
			uverbs.AttrState|uverbs.AttrSQPSN|uverbs.AttrMaxRdAtomic|uverbs.AttrTimeout|uverbs.AttrRetryCnt|uverbs.AttrRNRRetry))
	}
}

// writes does n RDMA WRITEs of 3000 bytes, one by one.
func writes(a, b *end, n int) {
	a.t.Helper()
	ma, mb := a.mr(4096, fullMR), b.mr(4096, fullMR)
	for i := range n {
		fill(ma, byte(i))
		a.send(uverbs.SendWR{WRID: uint64(i), Opcode: uverbs.WRRDMAWrite, Flags: uverbs.SendSignaled, SGList: []uverbs.SGE{ma.SGE(0, 3000)}, RemoteAddr: mb.Addr(), RKey: mb.RKey()})
		a.want(a.sendCQ, outcome{uint64(i), 0})
	}
}

func TestCapturesOfBothEndsShowTheSamePackets(t *testing.T) {
	a, b := farPair(t, 18)
	var fileA, fileB bytes.Buffer
	stopA, err := a.sim.Capture(&fileA)
	check(t, err)
	stopB, err := b.sim.Capture(&fileB)
	check(t, err)
	before := time.Now()
	writes(a, b, 20)
	check(t, stopA())
	check(t, stopA()) // again
	check(t, stopB())
	writes(a, b, 1) // in no capture any more
	inA, inB := readPcap(t, fileA.Bytes()), readPcap(t, fileB.Bytes())
	if len(inA) < 20*4 {
		t.Fatalf("%d packets", len(inA))
	}
	var sent, got [2][]string // by direction
	for i, all := range [2][]captured{inA, inB} {
		for _, c := range all {
			if c.at.Before(before.Add(-time.Second)) || c.at.After(time.Now()) {
				t.Fatalf("time %v", c.at)
			}
			s := fmt.Sprintf("%v>%v %x", c.src, c.dst, c.pkt)
			if (c.src.Addr() == a.sim.Addr()) == (i == 0) {
				sent[i] = append(sent[i], s)
			} else {
				got[i] = append(got[i], s)
			}
		}
	}
	for i := range sent {
		if strings.Join(sent[i], "\n") != strings.Join(got[1-i], "\n") {
			t.Errorf("end %d sent %d packets, and others arrived: %d", i, len(sent[i]), len(got[1-i]))
		}
	}
}

func TestCaptureShowsThePortBeforeFaultsOutAndBehindFaultsIn(t *testing.T) {
	a, b := farPair(t, 12)
	seed, err := a.sim.SetFaults(mlx5sim.BothWays, mlx5sim.Faults{Loss: 0.05, Duplicate: 0.1, Delay: 10 * time.Microsecond}, 0)
	check(t, err)
	t.Log("seed", seed)
	var file bytes.Buffer
	stop, err := a.sim.Capture(&file)
	check(t, err)
	before := a.sim.Stats()
	writes(a, b, 60)
	check(t, stop())
	after := a.sim.Stats()
	var tx, rx uint64
	for _, c := range readPcap(t, file.Bytes()) {
		if c.src.Addr() == a.sim.Addr() {
			tx++
		} else {
			rx++
		}
	}
	// Late duplicates may come after stop.
	if tx != after.TxPackets-before.TxPackets || rx > after.RxPackets-before.RxPackets || after.FaultsOut.Lost == 0 || after.FaultsIn.Duplicated == 0 {
		t.Errorf("%d sent and %d received in the capture; stats %+v, before %+v", tx, rx, after, before)
	}
}

func TestWithPcapLastsFromNewToClose(t *testing.T) {
	for _, addr := range []string{"", "::1"} {
		var file bytes.Buffer
		opts := []mlx5sim.Option{mlx5sim.WithFabric(mlx5sim.NewFabric()), mlx5sim.WithPcap(&file)}
		to := netip.MustParseAddr("127.0.0.9")
		if addr != "" {
			to = netip.MustParseAddr(addr)
			opts = append(opts, mlx5sim.WithAddr(to))
		}
		d, err := mlx5sim.New(opts...)
		if addr != "" && errors.Is(err, syscall.EADDRNOTAVAIL) {
			t.Skip("no IPv6:", err)
		}
		check(t, err)
		t.Run(d.Addr().String(), func(t *testing.T) {
			e := newEnd(t, d, uverbs.QPTypeUD, 16)
			e.ud()
			m := e.mr(64, 0)
			ah, err := e.pd.CreateAH(&uverbs.AHAttr{DGID: uverbs.GIDFromAddr(netip.MustParseAddr(map[bool]string{true: "127.0.0.9", false: "::2"}[to.Is4()])),
				SGIDIndex: 3, HopLimit: 64, IsGlobal: true, Port: 1})
			check(t, err)
			defer ah.Close()
			e.send(uverbs.SendWR{WRID: 1, Flags: uverbs.SendSignaled, Opcode: uverbs.WRSend, SGList: []uverbs.SGE{m.SGE(0, 8)}, AH: ah, RemoteQPN: 5, RemoteQKey: qkey})
			e.want(e.sendCQ, outcome{1, 0})
		})
		check(t, d.Close())
		if all := readPcap(t, file.Bytes()); len(all) != 1 || all[0].src.Addr() != d.Addr() {
			t.Errorf("%v: %d packets: %v", d.Addr(), len(all), all)
		}
	}
}

// slowWriter takes nothing until it is let go.
type slowWriter struct {
	once    sync.Once
	started chan struct{}
	let     chan struct{}
}

func (w *slowWriter) Write(b []byte) (int, error) {
	w.once.Do(func() { close(w.started) })
	<-w.let
	return len(b), nil
}

func TestACaptureNeverHoldsUpTheDevice(t *testing.T) {
	a, b := farPair(t, 18)
	w := &slowWriter{started: make(chan struct{}), let: make(chan struct{})}
	stop, err := a.sim.Capture(w)
	check(t, err)
	<-w.started
	const size = 16 << 20
	ma, mb := a.mr(size, fullMR), b.mr(size, fullMR)
	a.send(uverbs.SendWR{WRID: 1, Opcode: uverbs.WRRDMAWrite, Flags: uverbs.SendSignaled, SGList: []uverbs.SGE{ma.SGE(0, size)}, RemoteAddr: mb.Addr(), RKey: mb.RKey()})
	a.want(a.sendCQ, outcome{1, 0})
	missing := a.sim.Stats().NotCaptured
	close(w.let)
	if err := stop(); err == nil || missing == 0 || !strings.Contains(err.Error(), fmt.Sprint(missing)) {
		t.Errorf("%d packets found no room: %v", missing, err)
	}
}

// failingWriter fails from the second Write on.
type failingWriter struct{ n int }

var errFull = errors.New("disk full")

func (w *failingWriter) Write(b []byte) (int, error) {
	if w.n++; w.n > 1 {
		return 0, errFull
	}
	return len(b), nil
}

func TestACaptureEndsWithItsWritersError(t *testing.T) {
	a, b := farPair(t, 18)
	w := new(failingWriter)
	stop, err := a.sim.Capture(w)
	check(t, err)
	writes(a, b, 50)
	for range 2 {
		if err := stop(); !errors.Is(err, errFull) {
			t.Errorf("stop: %v", err)
		}
	}
	if w.n > 2 {
		t.Errorf("%d Writes, the second one failed", w.n)
	}
}

func TestCaptureNeedsALink(t *testing.T) {
	d := newDevice(t, mlx5sim.NewFabric())
	if _, err := d.Capture(io.Discard); !errors.Is(err, syscall.ENODEV) {
		t.Errorf("in process: %v", err)
	}
	if d, err := mlx5sim.New(mlx5sim.InProcess(), mlx5sim.WithPcap(io.Discard)); err == nil {
		d.Close()
		t.Error("New takes WithPcap and InProcess")
	}
	far, _ := farDevices(t)
	stop, err := far.Capture(io.Discard)
	check(t, err)
	check(t, far.Close())
	check(t, stop()) // it ended with the device
	if _, err := far.Capture(io.Discard); !errors.Is(err, syscall.ENODEV) {
		t.Errorf("after Close: %v", err)
	}
}
