//go:build linux

package mlx5sim_test

import (
	"bytes"
	"encoding/hex"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/rrppcc-go/rrppcc/mlx5/mlx5sim"
	"github.com/rrppcc-go/rrppcc/uverbs"
)

// tsharkFields are what tshark is asked for. It shows the ICRC, and does not
// verify it: readPcap does that, with code that packets from hardware tested.
var tsharkFields = []string{"ip.src", "infiniband.bth.opcode", "infiniband.bth.destqp", "infiniband.bth.psn", "infiniband.bth.padcnt", "infiniband.bth.se", "infiniband.bth.a",
	"infiniband.deth.q_key", "infiniband.deth.srcqp", "infiniband.reth.va", "infiniband.reth.r_key", "infiniband.reth.dmalen",
	"infiniband.immdt", "infiniband.ieth", "infiniband.aeth.syndrome.opcode", "infiniband.aeth.syndrome.error_code",
	"infiniband.atomiceth.swapdt", "infiniband.atomiceth.cmpdt", "infiniband.atomicacketh.origremdt",
	"infiniband.invariant.crc", "infiniband.bth.p_key", "ip.id", "ip.flags.df", "ip.dsfield", "ip.ttl", "ip.checksum.status", "udp.length", "_ws.malformed"}

// fields is one packet as tshark reads it: by name, without empty ones.
type fields map[string]string

// dissect has tshark read a capture.
func dissect(t *testing.T, pcap []byte) (all []fields) {
	t.Helper()
	tshark, err := exec.LookPath("tshark")
	if err != nil {
		t.Skip("tshark is not installed:", err)
	}
	file := filepath.Join(t.TempDir(), "all.pcap")
	check(t, os.WriteFile(file, pcap, 0o600))
	args := []string{"-r", file, "-o", "ip.check_checksum:TRUE", "-T", "fields", "-E", "separator=|", "-E", "occurrence=f"}
	for _, f := range tsharkFields {
		args = append(args, "-e", f)
	}
	out, err := exec.CommandContext(t.Context(), tshark, args...).Output()
	if err != nil {
		t.Skip("tshark does not run:", err)
	}
	for line := range strings.Lines(string(out)) {
		f := fields{}
		for i, v := range strings.Split(strings.TrimSuffix(line, "\n"), "|") {
			if v != "" {
				f[strings.TrimPrefix(tsharkFields[i], "infiniband.")] = v
			}
		}
		all = append(all, f)
	}
	return all
}

// story is what one side sends, as the verbs that were posted have it.
type story struct {
	psn    uint32
	destQP uint32
	want   []fields
}

// say adds a packet: its opcode, and pairs of a field and its value. It takes
// psns PSNs.
func (s *story) say(opcode int, psns int, pairs ...any) {
	f := fields{"bth.opcode": fmt.Sprint(opcode), "bth.psn": fmt.Sprint(s.psn), "bth.destqp": fmt.Sprintf("0x%06x", s.destQP)}
	for i := 0; i < len(pairs); i += 2 {
		f[pairs[i].(string)] = fmt.Sprint(pairs[i+1])
	}
	s.psn = (s.psn + uint32(psns)) & 0xffffff
	s.want = append(s.want, f)
}

func hex8(v uint64) string { return fmt.Sprintf("0x%016x", v) }
func hex4(v uint32) string { return fmt.Sprintf("0x%08x", v) }

// compare checks that got is the story, in order, in the fields that it tells.
func (s *story) compare(t *testing.T, who string, got []fields) {
	t.Helper()
	for i, w := range s.want {
		if i == len(got) {
			break
		}
		for name, v := range w {
			if got[i][name] != v {
				t.Errorf("%s, packet %d: %s is %q for tshark, want %q: %v", who, i, name, got[i][name], v, got[i])
			}
		}
		for _, name := range []string{"reth.va", "immdt", "ieth", "deth.q_key", "atomiceth.swapdt"} {
			if _, ok := w[name]; !ok && got[i][name] != "" {
				t.Errorf("%s, packet %d: tshark finds %s %q in it: %v", who, i, name, got[i][name], got[i])
			}
		}
	}
	if len(got) != len(s.want) {
		t.Errorf("%s: %d packets, want %d", who, len(got), len(s.want))
	}
}

// TestTsharkDissectsEveryOpcode runs all operations through the verbs and over
// UDP, and has tshark say what went over the wire.
func TestTsharkDissectsEveryOpcode(t *testing.T) {
	if _, err := exec.LookPath("tshark"); err != nil {
		t.Skip("tshark is not installed:", err)
	}
	a, b := farPair(t, 18)
	da, db := newEnd(t, a.sim, uverbs.QPTypeUD, 16), newEnd(t, b.sim, uverbs.QPTypeUD, 16)
	da.ud()
	db.ud()
	ca, cb := newEnd(t, a.sim, uverbs.QPTypeUC, 16), newEnd(t, b.sim, uverbs.QPTypeUC, 16)
	ucConnect(ca, cb)
	ma := a.mr(8192, fullMR)
	mb := b.mr(8192, fullMR|uverbs.AccessRemoteAtomic|uverbs.AccessMWBind)
	ua, ub := da.mr(64, 0), db.mr(128, uverbs.AccessLocalWrite)
	ah := da.ah(db)
	mw, err := b.pd.AllocMW(uverbs.MWType2)
	check(t, err)
	t.Cleanup(func() { check(t, mw.Close()) })
	// tshark guesses at the protocol in the payload, and gives up in a short one
	// that it takes for RPC.
	const small = 37
	for _, m := range []*uverbs.MR{ma, mb, ua} {
		for i := range m.Bytes() {
			m.Bytes()[i] = 0xa5
		}
	}

	var file bytes.Buffer
	stop, err := a.sim.Capture(&file)
	check(t, err)

	var id uint64
	psn := a.qp.QPN() * 7 & 0xffffff
	req := &story{psn: psn, destQP: b.qp.QPN()}
	resp := &story{destQP: a.qp.QPN()}
	op := func(status uverbs.WCStatus, wr uverbs.SendWR, n int) {
		t.Helper()
		id++
		wr.WRID, wr.Flags = id, wr.Flags|uverbs.SendSignaled
		if n > 0 {
			wr.SGList = []uverbs.SGE{ma.SGE(0, n)}
		}
		a.send(wr)
		if status != never {
			a.want(a.sendCQ, outcome{id, status})
		}
	}
	// answer adds a packet of b that names the PSN at.
	answer := func(at uint32, opcode int, pairs ...any) {
		resp.psn = at & 0xffffff
		resp.say(opcode, 0, pairs...)
	}
	const ack, nak, rnr = "0", "3", "1" // of aeth.syndrome.opcode
	acked := func() { answer(req.psn-1, 0x11, "aeth.syndrome.opcode", ack) }

	// SEND: only; first, middle, last; with immediate, and with invalidate.
	key := mw.RKey()
	for _, n := range []int{small, 3000} {
		sends := func(only, last int, pairs ...any) {
			if n <= 1024 {
				req.say(only, 1, append([]any{"bth.padcnt", -n & 3}, pairs...)...)
			} else {
				req.say(0x00, 1)
				req.say(0x01, 1)
				req.say(last, 1, pairs...)
			}
			acked()
		}
		b.recv(1, mb.SGE(0, 4096))
		op(0, uverbs.SendWR{Opcode: uverbs.WRSend, Flags: uverbs.SendSolicited}, n)
		sends(0x04, 0x02, "bth.se", 1)
		b.recv(1, mb.SGE(0, 4096))
		op(0, uverbs.SendWR{Opcode: uverbs.WRSendWithImm, ImmData: 0x12345678}, n)
		sends(0x05, 0x03, "immdt", "12345678")

		old := key
		key = uverbs.NextRKey(old)
		b.send(uverbs.SendWR{WRID: 1, Opcode: uverbs.WRBindMW, Flags: uverbs.SendSignaled, Bind: &uverbs.MWBind{MW: mw, OldRKey: old, NewRKey: key,
			LKey: mb.LKey(), Addr: mb.Addr(), Length: 128, Access: uverbs.AccessRemoteWrite}})
		b.want(b.sendCQ, outcome{1, 0})
		b.recv(1, mb.SGE(0, 4096))
		op(0, uverbs.SendWR{Opcode: uverbs.WRSendWithInv, InvalidateRKey: key}, n)
		sends(0x17, 0x16, "ieth", fmt.Sprintf("%08x", key))
	}
	// WRITE.
	for _, n := range []int{small, 3000} {
		for _, imm := range []bool{false, true} {
			wr := uverbs.SendWR{Opcode: uverbs.WRRDMAWrite, RemoteAddr: mb.Addr() + 100, RKey: mb.RKey()}
			only, last, with := 0x0a, 0x08, []any(nil)
			if imm {
				b.recv(1)
				wr.Opcode, wr.ImmData = uverbs.WRRDMAWriteWithImm, 0xfedcba98
				only, last, with = 0x0b, 0x09, []any{"immdt", "fedcba98"}
			}
			reth := []any{"reth.va", hex8(mb.Addr() + 100), "reth.r_key", hex4(mb.RKey()), "reth.dmalen", n}
			op(0, wr, n)
			if n <= 1024 {
				req.say(only, 1, append(reth, with...)...)
			} else {
				req.say(0x06, 1, reth...)
				req.say(0x07, 1)
				req.say(last, 1, with...)
			}
			acked()
		}
	}
	// READ.
	for _, n := range []int{small, 3000} {
		op(0, uverbs.SendWR{Opcode: uverbs.WRRDMARead, RemoteAddr: mb.Addr() + 8, RKey: mb.RKey()}, n)
		first := req.psn
		req.say(0x0c, (n+1023)/1024, "reth.va", hex8(mb.Addr()+8), "reth.r_key", hex4(mb.RKey()), "reth.dmalen", n)
		if n <= 1024 {
			answer(first, 0x10, "aeth.syndrome.opcode", ack)
		} else {
			answer(first, 0x0d, "aeth.syndrome.opcode", ack)
			answer(first+1, 0x0e)
			answer(first+2, 0x0f, "aeth.syndrome.opcode", ack, "bth.padcnt", 0)
		}
	}
	// Atomics. tshark has the fields of RETH for their address and key.
	const was = 0xa5a5a5a5a5a5a5a5
	for _, x := range []struct {
		opcode        int
		wr            uverbs.WROpcode
		add, cmp, old uint64
	}{{0x14, uverbs.WRAtomicFetchAndAdd, 5, 0, was}, {0x13, uverbs.WRAtomicCmpAndSwp, 77, was + 5, was + 5}} {
		wr := uverbs.SendWR{Opcode: x.wr, RemoteAddr: mb.Addr() + 4096, RKey: mb.RKey(), CompareAdd: x.add}
		if x.opcode == 0x13 {
			wr.CompareAdd, wr.Swap = x.cmp, x.add
		}
		op(0, wr, 8)
		first := req.psn
		req.say(x.opcode, 1, "reth.va", hex8(mb.Addr()+4096), "reth.r_key", hex4(mb.RKey()), "atomiceth.swapdt", x.add, "atomiceth.cmpdt", x.cmp)
		answer(first, 0x12, "aeth.syndrome.opcode", ack, "atomicacketh.origremdt", x.old)
	}
	// RNR NAK: the receive comes late. How often a asks is up to time.
	op(never, uverbs.SendWR{Opcode: uverbs.WRSend}, small)
	for deadline := time.Now().Add(10 * time.Second); b.sim.Stats().RNRNaks == 0; {
		if time.Now().After(deadline) {
			t.Fatal("no RNR NAK")
		}
	}
	b.recv(1, mb.SGE(0, 4096))
	a.want(a.sendCQ, outcome{id, 0})
	asks := int(b.sim.Stats().RNRNaks)
	for range asks {
		answer(req.psn, 0x11, "aeth.syndrome.opcode", rnr)
		req.say(0x04, 0)
	}
	req.say(0x04, 1)
	acked()
	// NAK for a gap: the first of two WRITEs is lost.
	write := uverbs.SendWR{Opcode: uverbs.WRRDMAWrite, RemoteAddr: mb.Addr(), RKey: mb.RKey()}
	reth := []any{"reth.va", hex8(mb.Addr()), "reth.r_key", hex4(mb.RKey()), "reth.dmalen", small}
	check(t, a.sim.Partition(mlx5sim.Outbound, b.sim.Addr()))
	op(never, write, small)
	check(t, a.sim.Partition(mlx5sim.Outbound))
	op(never, write, small)
	a.want(a.sendCQ, outcome{id - 1, 0}, outcome{id, 0})
	gap := req.psn
	req.say(0x0a, 1, reth...)
	req.say(0x0a, 1, reth...)
	answer(gap, 0x11, "aeth.syndrome.opcode", nak, "aeth.syndrome.error_code", 0)
	req.psn = gap
	req.say(0x0a, 1, reth...)
	req.say(0x0a, 1, reth...)
	acked()
	// NAK for a key.
	write.RKey ^= 0xff
	op(uverbs.WCRemAccessErr, write, small)
	answer(req.psn, 0x11, "aeth.syndrome.opcode", nak, "aeth.syndrome.error_code", 2)
	req.say(0x0a, 1, "reth.va", hex8(mb.Addr()), "reth.r_key", hex4(write.RKey), "reth.dmalen", small)

	// Datagrams.
	datagrams := &story{psn: 77, destQP: db.qp.QPN()}
	for _, imm := range []bool{false, true} {
		wr := uverbs.SendWR{WRID: 1, Opcode: uverbs.WRSend, Flags: uverbs.SendSignaled, SGList: []uverbs.SGE{ua.SGE(0, 37)}, AH: ah, RemoteQPN: db.qp.QPN(), RemoteQKey: qkey}
		deth := []any{"deth.q_key", hex8(qkey), "deth.srcqp", hex4(da.qp.QPN()), "bth.padcnt", 3}
		if imm {
			wr.Opcode, wr.ImmData = uverbs.WRSendWithImm, 0x01020304
			datagrams.say(0x65, 1, append(deth, "immdt", "01020304")...)
		} else {
			datagrams.say(0x64, 1, deth...)
		}
		db.recv(1, ub.SGE(0, 128))
		da.send(wr)
		da.want(da.sendCQ, outcome{1, 0})
		db.want(db.recvCQ, outcome{1, 0})
	}
	// Unreliable connections: RC's SENDs and WRITEs, and no answers.
	ka, kb := ca.mr(4096, fullMR), cb.mr(4096, fullMR)
	for _, m := range []*uverbs.MR{ka, kb} {
		for i := range m.Bytes() {
			m.Bytes()[i] = 0xa5
		}
	}
	unreliable := &story{psn: ca.qp.QPN() * 7 & 0xffffff, destQP: cb.qp.QPN()}
	for _, n := range []int{small, 3000} {
		for i, opcode := range []uverbs.WROpcode{uverbs.WRSend, uverbs.WRSendWithImm, uverbs.WRRDMAWrite, uverbs.WRRDMAWriteWithImm} {
			base, imm, write := 0x20, i&1, i >= 2
			var head, tail []any
			if write {
				base = 0x26
				head = []any{"reth.va", hex8(kb.Addr() + 16), "reth.r_key", hex4(kb.RKey()), "reth.dmalen", n}
			}
			if imm != 0 {
				tail = []any{"immdt", "89abcdef"}
			}
			if n <= 1024 {
				unreliable.say(base+4+imm, 1, append(head, append(tail, "bth.padcnt", -n&3, "bth.a", 0)...)...)
			} else {
				unreliable.say(base, 1, append(head, "bth.a", 0)...)
				unreliable.say(base+1, 1, "bth.a", 0)
				unreliable.say(base+2+imm, 1, append(tail, "bth.a", 0)...)
			}
			cb.recv(1, kb.SGE(0, 4096))
			ca.send(uverbs.SendWR{WRID: 1, Opcode: opcode, Flags: uverbs.SendSignaled, ImmData: 0x89abcdef, SGList: []uverbs.SGE{ka.SGE(0, n)}, RemoteAddr: kb.Addr() + 16, RKey: kb.RKey()})
			ca.want(ca.sendCQ, outcome{1, 0})
			if opcode != uverbs.WRRDMAWrite {
				cb.want(cb.recvCQ, outcome{1, 0})
			}
		}
	}
	check(t, stop())

	all := readPcap(t, file.Bytes())
	rows := dissect(t, file.Bytes())
	if len(all) != len(rows) {
		t.Fatalf("tshark reads %d packets, we %d", len(rows), len(all))
	}
	var fromA, fromB, ud, uc []fields
	opcodes := map[string]bool{}
	for i, f := range rows {
		pkt := all[i].pkt
		for name, want := range map[string]string{
			"_ws.malformed": "", "ip.id": "0x0000", "ip.flags.df": "1", "ip.checksum.status": "1", "bth.p_key": "65535",
			"udp.length": fmt.Sprint(8 + len(pkt)), "invariant.crc": "0x" + hex.EncodeToString(pkt[len(pkt)-4:]),
		} {
			if f[name] != want {
				t.Errorf("packet %d: %s is %q for tshark, want %q: %v", i, name, f[name], want, f)
			}
		}
		opcodes[f["bth.opcode"]] = true
		switch {
		case netip.MustParseAddr(f["ip.src"]) == b.sim.Addr():
			fromB = append(fromB, f)
		case f["deth.srcqp"] != "":
			ud = append(ud, f)
			if f["ip.dsfield"] != "0x68" || f["ip.ttl"] != "33" { // as its address handle has it
				t.Errorf("datagram with traffic class %s and hop limit %s for tshark", f["ip.dsfield"], f["ip.ttl"])
			}
		case f["bth.destqp"] == fmt.Sprintf("0x%06x", cb.qp.QPN()):
			uc = append(uc, f)
		default:
			fromA = append(fromA, f)
		}
	}
	req.compare(t, "requester", fromA)
	resp.compare(t, "responder", fromB)
	datagrams.compare(t, "datagrams", ud)
	unreliable.compare(t, "unreliable connection", uc)
	if len(opcodes) != 37 {
		t.Errorf("%d opcodes of 37: %v", len(opcodes), opcodes)
	}
}

// never says that nobody waits for a completion yet.
const never = ^uverbs.WCStatus(0)
