package programs

import (
	"bufio"
	"bytes"
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"runtime"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	_ "github.com/rrppcc-go/rrppcc/mlx5"
	"github.com/rrppcc-go/rrppcc/mlx5/mlx5sim"
	"github.com/rrppcc-go/rrppcc/mlx5/mlx5sim/guest"
	"github.com/rrppcc-go/rrppcc/uverbs"
)

const (
	qkey     = 0x11111111
	gidIndex = 3 // RoCE v2 with the IPv4 address, on every simulated Ethernet port
	startPSN = 0xfffff0
	memBytes = 2 << 20
	grhBytes = 40

	allAccess = uverbs.AccessLocalWrite | uverbs.AccessRemoteRead | uverbs.AccessRemoteWrite | uverbs.AccessRemoteAtomic
)

// TestLibmlx5MeetsOurVerbs has a program on the real libibverbs and libmlx5 and
// this test on package mlx5 do to each other all that RC, UC and UD offer, every
// byte compared: over one fabric, over UDP, and by LID on InfiniBand.
func TestLibmlx5MeetsOurVerbs(t *testing.T) {
	for _, c := range []struct {
		name   string
		fabric *mlx5sim.Fabric // of our device; nil is theirs
		opts   []mlx5sim.Option
	}{{name: "one fabric"}, {name: "over UDP", fabric: mlx5sim.NewFabric()}, {name: "InfiniBand", opts: []mlx5sim.Option{mlx5sim.WithInfiniBand()}}} {
		t.Run(c.name, func(t *testing.T) {
			needs(t, python)
			theirs := mlx5sim.NewFabric()
			if c.fabric == nil {
				c.fabric = theirs
			}
			p := startPeer(t, device(t, "mlx5_0", theirs, c.opts...))
			u := openOurs(t, device(t, "mlx5_1", c.fabric, c.opts...))
			p.ask(t, &p.hello, "hello")
			u.connect(t, p)
			for _, n := range []int{0, 1, 64, 1023, 1024, 1025, 4096, 300_000} {
				if n > 0 {
					t.Run(fmt.Sprintf("RDMA of %d bytes", n), func(t *testing.T) { exchangeRDMA(t, u, p, n) })
				}
				for _, kind := range []string{"RC", "UC", "UD"} {
					// What is not acknowledged stays short: a busy machine loses packets.
					if kind == "RC" || n <= 4096 {
						t.Run(fmt.Sprintf("%s messages of %d bytes", kind, n), func(t *testing.T) { exchangeMessages(t, u, p, kind, n) })
					}
				}
			}
			t.Run("atomics", func(t *testing.T) { exchangeAtomics(t, u, p) })
			t.Run("errors", func(t *testing.T) { exchangeErrors(t, u, p) })
		})
	}
}

// Both ends keep what they send at outAt, and receive at inAt.
const (
	outAt = 0
	inAt  = memBytes / 2
)

// exchangeMessages sends n bytes each way with an immediate.
func exchangeMessages(t *testing.T, u *ours, p *peer, kind string, n int) {
	head := 0
	if kind == "UD" {
		head = grhBytes
	}
	p.ask(t, nil, "recv", kind, inAt, head+n)
	u.fill(outAt, n, 1)
	u.post(t, kind, uverbs.SendWR{Opcode: uverbs.WRSendWithImm, ImmData: 0x01020304, SGList: []uverbs.SGE{u.mr.SGE(outAt, n)}})
	if wc := u.take(t); wc.Status != uverbs.WCSuccess {
		t.Fatalf("our send: %v", wc.Status)
	}
	got := p.wait(t)
	// Of UD the count includes the GRH; libibverbs leaves the immediate in network order.
	if got.Status != 0 || got.Bytes != head+n || got.Imm != 0x01020304 && got.Imm != 0x04030201 {
		t.Fatalf("their receive: %+v", got)
	}
	if kind == "UD" && got.Src != u.qps[kind].QPN() {
		t.Fatalf("their receive is from QP %#x, ours is %#x", got.Src, u.qps[kind].QPN())
	}
	p.holds(t, inAt+head, n, 1)

	u.poison(inAt, head+n+guard)
	if _, err := u.qps[kind].PostRecv([]uverbs.RecvWR{{WRID: 7, SGList: []uverbs.SGE{u.mr.SGE(inAt, head+n)}}}); err != nil {
		t.Fatal(err)
	}
	p.ask(t, nil, "fill", outAt, n, 2)
	p.post(t, kind, "SEND", outAt, n)
	if wc := u.take(t); wc.Status != uverbs.WCSuccess || int(wc.ByteLen) != head+n || wc.WRID != 7 {
		t.Fatalf("our receive: %+v", wc)
	}
	u.holds(t, inAt+head, n, 2)
}

// exchangeRDMA writes and reads n bytes each way.
func exchangeRDMA(t *testing.T, u *ours, p *peer, n int) {
	for i, kind := range []string{"RC", "UC"} {
		if kind == "UC" && n > 4096 {
			continue
		}
		seed := 10 * i
		u.fill(outAt, n, seed)
		u.post(t, kind, uverbs.SendWR{Opcode: uverbs.WRRDMAWrite, RemoteAddr: p.hello.Addr + inAt, RKey: p.hello.RKey, SGList: []uverbs.SGE{u.mr.SGE(outAt, n)}})
		if wc := u.take(t); wc.Status != uverbs.WCSuccess {
			t.Fatalf("our %s write: %v", kind, wc.Status)
		}
		if kind == "UC" { // nothing says when it has arrived; what comes behind it does
			exchangeMessages(t, u, p, kind, 1)
			u.post(t, "RC", uverbs.SendWR{Opcode: uverbs.WRRDMARead, RemoteAddr: p.hello.Addr + inAt, RKey: p.hello.RKey, SGList: []uverbs.SGE{u.mr.SGE(inAt, n)}})
			u.take(t)
			if n > 1 && u.mr.Bytes()[inAt+1] != pattern(1, seed) {
				t.Fatalf("their byte 1 is %#x", u.mr.Bytes()[inAt+1])
			}
		} else {
			p.holds(t, inAt, n, seed)
		}
	}
	p.ask(t, nil, "fill", outAt, n, 3)
	u.poison(inAt, n+guard)
	u.post(t, "RC", uverbs.SendWR{Opcode: uverbs.WRRDMARead, RemoteAddr: p.hello.Addr + outAt, RKey: p.hello.RKey, SGList: []uverbs.SGE{u.mr.SGE(inAt, n)}})
	if wc := u.take(t); wc.Status != uverbs.WCSuccess {
		t.Fatalf("our read: %v", wc.Status)
	}
	u.holds(t, inAt, n, 3)

	p.ask(t, nil, "fill", outAt, n, 4)
	u.poison(inAt, n+guard)
	p.post(t, "RC", "RDMA_WRITE", outAt, n, inAt)
	u.holds(t, inAt, n, 4)

	u.fill(outAt, n, 5)
	p.post(t, "RC", "RDMA_READ", inAt, n, outAt)
	p.holds(t, inAt, n, 5)
}

// exchangeAtomics adds and swaps a word at each end.
func exchangeAtomics(t *testing.T, u *ours, p *peer) {
	word := func(off int, v uint64) { *u.word(off) = v }
	p.ask(t, nil, "put", inAt, "0500000000000000")
	atomic := func(wr uverbs.SendWR, old uint64) {
		t.Helper()
		wr.RemoteAddr, wr.RKey, wr.SGList = p.hello.Addr+inAt, p.hello.RKey, []uverbs.SGE{u.mr.SGE(outAt, 8)}
		word(outAt, 0xdead)
		u.post(t, "RC", wr)
		if wc := u.take(t); wc.Status != uverbs.WCSuccess {
			t.Fatalf("our %v: %v", wr.Opcode, wc.Status)
		}
		if got := *u.word(outAt); got != old {
			t.Errorf("our %v found %d, want %d", wr.Opcode, got, old)
		}
	}
	atomic(uverbs.SendWR{Opcode: uverbs.WRAtomicFetchAndAdd, CompareAdd: 1<<32 - 1}, 5)
	atomic(uverbs.SendWR{Opcode: uverbs.WRAtomicCmpAndSwp, CompareAdd: 1<<32 + 4, Swap: 9}, 1<<32+4)
	atomic(uverbs.SendWR{Opcode: uverbs.WRAtomicCmpAndSwp, CompareAdd: 8, Swap: 10}, 9)
	p.shows(t, inAt, "0900000000000000")

	word(inAt, 100)
	p.post(t, "RC", "ATOMIC_FETCH_AND_ADD", outAt, 8, inAt, 11)
	p.shows(t, outAt, "6400000000000000")
	p.post(t, "RC", "ATOMIC_CMP_AND_SWP", outAt, 8, inAt, 111, 7)
	p.shows(t, outAt, "6f00000000000000")
	if got := *u.word(inAt); got != 7 {
		t.Errorf("after their atomics our word is %d, want 7", got)
	}
}

// exchangeErrors reads beyond the other's memory. It ends the RC QPs.
func exchangeErrors(t *testing.T, u *ours, p *peer) {
	u.post(t, "RC", uverbs.SendWR{Opcode: uverbs.WRRDMARead, RemoteAddr: p.hello.Addr + memBytes, RKey: p.hello.RKey, SGList: []uverbs.SGE{u.mr.SGE(inAt, 8)}})
	if wc := u.take(t); wc.Status != uverbs.WCRemAccessErr {
		t.Errorf("our read behind their memory: %v, want %v", wc.Status, uverbs.WCRemAccessErr)
	}
	var w completion
	p.ask(t, &w, "post", "RC", "SEND", outAt, 8)
	if w.Status == 0 {
		t.Error("their send succeeded on a connection that is broken")
	}
}

// device makes a simulated device that lives as long as the test.
func device(t *testing.T, name string, f *mlx5sim.Fabric, opts ...mlx5sim.Option) *mlx5sim.Device {
	t.Helper()
	d, err := mlx5sim.New(append(opts, mlx5sim.WithName(name), mlx5sim.WithFabric(f))...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := d.Close(); err != nil {
			t.Error(err)
		}
	})
	return d
}

// peer is testdata/peer.py, run on a device.
type peer struct {
	in    *os.File
	out   *bufio.Scanner
	hello struct {
		GID  string
		LID  uint16
		Addr uint64
		RKey uint32
		QPN  map[string]uint32
	}
}

type completion struct {
	Status, Bytes int
	Imm, Src      uint32
}

func startPeer(t *testing.T, d *mlx5sim.Device) *peer {
	t.Helper()
	inR, inW, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	outR, outW, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	ended := make(chan error, 1)
	go func() {
		exit, err := guest.Run(ctx, guest.Config{Devices: []*mlx5sim.Device{d}, Args: []string{python, "testdata/peer.py", "mlx5_0"},
			Stdin: inR, Stdout: outW, Stderr: os.Stderr})
		if err == nil && exit.Code() != 0 {
			err = fmt.Errorf("exit code %d", exit.Code())
		}
		outW.Close() // ends what waits for an answer
		ended <- err
	}()
	t.Cleanup(func() {
		defer cancel()
		inW.Close()
		if err := <-ended; err != nil {
			t.Errorf("the program on libmlx5: %v", err)
		}
		inR.Close()
		outR.Close()
	})
	s := bufio.NewScanner(outR)
	s.Buffer(nil, 4<<20)
	return &peer{in: inW, out: s}
}

// ask gives an order and reads the answer.
func (p *peer) ask(t *testing.T, answer any, order ...any) {
	t.Helper()
	line, err := json.Marshal(order)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := p.in.Write(append(line, '\n')); err != nil {
		t.Fatal(err)
	}
	if !p.out.Scan() {
		t.Fatalf("no answer to %s: %v", line, errors.Join(p.out.Err(), errors.New("the program ended")))
	}
	if answer != nil {
		if err := json.Unmarshal(p.out.Bytes(), answer); err != nil {
			t.Fatalf("answer %q to %s: %v", p.out.Text(), line, err)
		}
	}
}

func (p *peer) wait(t *testing.T) (c completion) {
	t.Helper()
	p.ask(t, &c, "wait")
	return c
}

// post posts a send that must succeed.
func (p *peer) post(t *testing.T, order ...any) {
	t.Helper()
	var c completion
	if p.ask(t, &c, append([]any{"post"}, order...)...); c.Status != 0 {
		t.Fatalf("their %v: status %d", order, c.Status)
	}
}

func (p *peer) shows(t *testing.T, off int, want string) {
	t.Helper()
	var got struct{ Data string }
	if p.ask(t, &got, "show", off, len(want)/2); got.Data != want {
		t.Errorf("their memory at %#x is %s, want %s", off, got.Data, want)
	}
}

func (p *peer) holds(t *testing.T, off, n, seed int) {
	t.Helper()
	want := make([]byte, n)
	for i := range want {
		want[i] = pattern(i, seed)
	}
	if n > 0 {
		p.shows(t, off, hex.EncodeToString(want))
	}
}

// pattern is what both ends fill their memory with.
func pattern(i, seed int) byte { return byte(seed + 31*i + i>>8) }

const guard = 64

// ours is this side.
type ours struct {
	gid uverbs.GIDEntry
	lid uint16 // on InfiniBand, whose GID is not used
	mr  *uverbs.MR
	cq  *uverbs.CQ
	qps map[string]*uverbs.QP
	ah  *uverbs.AH
	to  uverbs.AHAttr
	p   *peer
}

func openOurs(t *testing.T, d *mlx5sim.Device) *ours {
	t.Helper()
	u := &ours{qps: map[string]*uverbs.QP{}}
	ctx, err := d.Verbs().Open()
	must(t, err)
	closing(t, ctx.Close)
	port, err := ctx.QueryPort(1)
	must(t, err)
	if port.LinkLayer == uverbs.LinkLayerInfiniBand {
		u.lid = port.LID
	}
	table, err := ctx.QueryGIDTable()
	must(t, err)
	for _, e := range table {
		if int(e.Index) == gidIndex {
			u.gid = e
		}
	}
	pd, err := ctx.AllocPD()
	must(t, err)
	closing(t, pd.Close)
	mem, err := unix.Mmap(-1, 0, memBytes, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	must(t, err)
	closing(t, func() error { return unix.Munmap(mem) })
	u.mr, err = pd.RegisterMR(mem, allAccess)
	must(t, err)
	closing(t, u.mr.Close)
	u.cq, err = ctx.CreateCQ(&uverbs.CQInitAttr{Depth: 256})
	must(t, err)
	closing(t, u.cq.Close)
	for name, typ := range map[string]uverbs.QPType{"RC": uverbs.QPTypeRC, "UC": uverbs.QPTypeUC, "UD": uverbs.QPTypeUD} {
		qp, err := pd.CreateQP(&uverbs.QPInitAttr{Type: typ, SendCQ: u.cq, RecvCQ: u.cq,
			Cap: uverbs.QPCap{MaxSendWR: 64, MaxRecvWR: 64, MaxSendSGE: 2, MaxRecvSGE: 2, MaxInline: 64}})
		must(t, err)
		closing(t, qp.Close)
		u.qps[name] = qp
	}
	return u
}

// connect tells both ends of each other and brings the QPs to RTS.
func (u *ours) connect(t *testing.T, p *peer) {
	t.Helper()
	u.p = p
	gid, err := netip.ParseAddr(p.hello.GID)
	must(t, err)
	u.to = uverbs.AHAttr{DGID: gid.As16(), SGIDIndex: gidIndex, HopLimit: 64, IsGlobal: true, Port: 1}
	if u.lid != 0 {
		u.to = uverbs.AHAttr{DLID: p.hello.LID, Port: 1}
	}
	qpns := map[string]uint32{}
	for kind, qp := range u.qps {
		qpns[kind] = qp.QPN()
		a := uverbs.QPAttr{State: uverbs.QPStateInit, Port: 1, QKey: qkey, AccessFlags: allAccess &^ uverbs.AccessLocalWrite}
		mask := uverbs.AttrState | uverbs.AttrPKeyIndex | uverbs.AttrPort
		if kind == "UD" {
			must(t, qp.Modify(&a, mask|uverbs.AttrQKey))
			must(t, qp.Modify(&uverbs.QPAttr{State: uverbs.QPStateRTR}, uverbs.AttrState))
			must(t, qp.Modify(&uverbs.QPAttr{State: uverbs.QPStateRTS}, uverbs.AttrState|uverbs.AttrSQPSN))
			continue
		}
		if kind == "UC" {
			a.AccessFlags = uverbs.AccessRemoteWrite
		}
		must(t, qp.Modify(&a, mask|uverbs.AttrAccessFlags))
		a = uverbs.QPAttr{State: uverbs.QPStateRTR, AV: u.to, PathMTU: uverbs.MTU1024, DestQPN: p.hello.QPN[kind], RQPSN: startPSN, MaxDestRdAtomic: 4, MinRNRTimer: 12}
		mask = uverbs.AttrState | uverbs.AttrAV | uverbs.AttrPathMTU | uverbs.AttrDestQPN | uverbs.AttrRQPSN
		rts := uverbs.AttrState | uverbs.AttrSQPSN
		if kind == "RC" {
			mask |= uverbs.AttrMaxDestRdAtomic | uverbs.AttrMinRNRTimer
			rts |= uverbs.AttrMaxRdAtomic | uverbs.AttrTimeout | uverbs.AttrRetryCnt | uverbs.AttrRNRRetry
		}
		must(t, qp.Modify(&a, mask))
		must(t, qp.Modify(&uverbs.QPAttr{State: uverbs.QPStateRTS, SQPSN: startPSN, MaxRdAtomic: 4, Timeout: 14, RetryCnt: 7, RNRRetry: 7}, rts))
	}
	u.ah, err = u.mr.PD().CreateAH(&u.to)
	must(t, err)
	closing(t, u.ah.Close)
	p.ask(t, nil, "connect", gidText(u.gid.GID), u.lid, u.mr.Addr(), u.mr.RKey(), qpns, startPSN)
}

// gidText is a GID as pyverbs reads it.
func gidText(g uverbs.GID) string {
	var b []byte
	for i := 0; i < len(g); i += 2 {
		b = fmt.Appendf(b, ":%02x%02x", g[i], g[i+1])
	}
	return string(b[1:])
}

func (u *ours) post(t *testing.T, kind string, wr uverbs.SendWR) {
	t.Helper()
	wr.Flags |= uverbs.SendSignaled
	if kind == "UD" {
		wr.AH, wr.RemoteQPN, wr.RemoteQKey = u.ah, u.p.hello.QPN["UD"], qkey
	}
	if _, err := u.qps[kind].PostSend([]uverbs.SendWR{wr}); err != nil {
		t.Fatal(err)
	}
}

// take waits for one completion.
func (u *ours) take(t *testing.T) uverbs.WC {
	t.Helper()
	var wc [1]uverbs.WC
	for deadline := time.Now().Add(20 * time.Second); time.Now().Before(deadline); runtime.Gosched() {
		n, err := u.cq.Poll(wc[:])
		if err != nil {
			t.Fatal(err)
		}
		if n == 1 {
			return wc[0]
		}
	}
	t.Fatal("no completion")
	return wc[0]
}

func (u *ours) word(off int) *uint64 { return (*uint64)(unsafe.Pointer(&u.mr.Bytes()[off])) }

func (u *ours) fill(off, n, seed int) {
	for i := range n {
		u.mr.Bytes()[off+i] = pattern(i, seed)
	}
}

func (u *ours) poison(off, n int) {
	for i := range n {
		u.mr.Bytes()[off+i] = 0xee
	}
}

// holds checks n bytes, and that those behind them are poison.
func (u *ours) holds(t *testing.T, off, n, seed int) {
	t.Helper()
	for i, b := range u.mr.Bytes()[off : off+n] {
		if b != pattern(i, seed) {
			t.Fatalf("our byte %d of %d is %#x, want %#x", i, n, b, pattern(i, seed))
		}
	}
	if g := u.mr.Bytes()[off+n : off+n+guard]; !bytes.Equal(g, bytes.Repeat([]byte{0xee}, guard)) {
		t.Fatalf("behind %d bytes there is %x", n, g)
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func closing(t *testing.T, f func() error) {
	t.Cleanup(func() {
		if err := f(); err != nil {
			t.Error(err)
		}
	})
}
