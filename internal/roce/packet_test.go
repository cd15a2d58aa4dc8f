package roce

import (
	"bytes"
	"errors"
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// every opcode that the package knows, from the specification's table and
// not from the code's: name, header bytes, payload or not.
var specOpcodes = []struct {
	op      Opcode
	header  int
	payload bool
}{
	{0x00, 12, true}, {0x01, 12, true}, {0x02, 12, true}, {0x03, 16, true}, {0x04, 12, true}, {0x05, 16, true},
	{0x06, 28, true}, {0x07, 12, true}, {0x08, 12, true}, {0x09, 16, true}, {0x0a, 28, true}, {0x0b, 32, true},
	{0x0c, 28, false}, {0x0d, 16, true}, {0x0e, 12, true}, {0x0f, 16, true}, {0x10, 16, true},
	{0x11, 16, false}, {0x12, 24, false}, {0x13, 40, false}, {0x14, 40, false}, {0x16, 16, true}, {0x17, 16, true},
	{0x20, 12, true}, {0x21, 12, true}, {0x22, 12, true}, {0x23, 16, true}, {0x24, 12, true}, {0x25, 16, true},
	{0x26, 28, true}, {0x27, 12, true}, {0x28, 12, true}, {0x29, 16, true}, {0x2a, 28, true}, {0x2b, 32, true},
	{0x64, 20, true}, {0x65, 24, true},
}

// build makes a packet of op with n bytes of payload and recognisable values
// in every header that op has.
func build(op Opcode, n int) []byte {
	b := make([]byte, Size(op, n))
	h := BTH{Opcode: op, Solicited: true, MigReq: true, Pad: uint8(Pad(n)), PKey: 0xabcd,
		DestQPN: 0x123456, AckReq: true, PSN: 0xfedcba}
	h.Put(b)
	ext := b[BTHSize:]
	tr := op.traits()
	if tr&hasDETH != 0 {
		DETH{QKey: 0x11111111, SrcQPN: 0x654321}.Put(ext)
		ext = ext[DETHSize:]
	}
	if tr&hasRETH != 0 {
		RETH{VA: 0x1122334455667788, RKey: 0xcafe0001, Length: 0x01020304}.Put(ext)
		ext = ext[RETHSize:]
	}
	if tr&hasAETH != 0 {
		AETH{Syndrome: NAKRemoteAccess, MSN: 0xaabbcc}.Put(ext)
		ext = ext[AETHSize:]
	}
	if tr&hasAtomic != 0 {
		AtomicETH{VA: 0x0102030405060708, RKey: 0xcafe0002, SwapAdd: 0x1111222233334444, Compare: 0x5555666677778888}.Put(ext)
		ext = ext[AtomicETHSize:]
	}
	if tr&hasAtomicAck != 0 {
		PutUint64(ext, 0x99aabbccddeeff00)
		ext = ext[AtomicAckSize:]
	}
	if tr&(hasImm|hasIETH) != 0 {
		PutUint32(ext, 0x0badcafe)
		ext = ext[ImmSize:]
	}
	for i := range n {
		ext[i] = byte(i*7 + 1)
	}
	f := NewFlow(netip.MustParseAddrPort("10.0.0.1:4791"), netip.MustParseAddrPort("10.0.0.2:4791"))
	f.Seal(b)
	return b
}

func TestParseReturnsWhatPutWrote(t *testing.T) {
	seen := 0
	for _, s := range specOpcodes {
		if s.op.HeaderSize() != s.header {
			t.Errorf("%v: HeaderSize %d, the specification has %d", s.op, s.op.HeaderSize(), s.header)
		}
		seen++
		for n := range 9 {
			if n > 0 && !s.payload {
				break
			}
			b := build(s.op, n)
			p, err := Parse(b)
			if err != nil {
				t.Fatalf("%v with %d bytes: %v", s.op, n, err)
			}
			want := BTH{Opcode: s.op, Solicited: true, MigReq: true, Pad: uint8(-n & 3), PKey: 0xabcd,
				DestQPN: 0x123456, AckReq: true, PSN: 0xfedcba}
			if d := cmp.Diff(want, p.BTH); d != "" {
				t.Errorf("%v: BTH (-want +got):\n%s", s.op, d)
			}
			if !bytes.Equal(p.Payload, b[s.header:s.header+n]) {
				t.Errorf("%v: payload of %d bytes is %x", s.op, n, p.Payload)
			}
			has := func(lo, hi Opcode) bool { return s.op >= lo && s.op <= hi }
			type headers struct {
				D         DETH
				R         RETH
				A         AETH
				X         AtomicETH
				Imm, IETH uint32
				Ack       uint64
			}
			var w headers
			if has(0x64, 0x65) {
				w.D = DETH{0x11111111, 0x654321}
			}
			if s.op == 0x06 || has(0x0a, 0x0c) || s.op == 0x26 || has(0x2a, 0x2b) {
				w.R = RETH{0x1122334455667788, 0xcafe0001, 0x01020304}
			}
			if s.op == 0x0d || has(0x0f, 0x12) {
				w.A = AETH{NAKRemoteAccess, 0xaabbcc}
			}
			if has(0x13, 0x14) {
				w.X = AtomicETH{0x0102030405060708, 0xcafe0002, 0x1111222233334444, 0x5555666677778888}
			}
			if s.op == 0x03 || s.op == 0x05 || s.op == 0x09 || s.op == 0x0b || s.op == 0x65 ||
				s.op == 0x23 || s.op == 0x25 || s.op == 0x29 || s.op == 0x2b {
				w.Imm = 0x0badcafe
			}
			if has(0x16, 0x17) {
				w.IETH = 0x0badcafe
			}
			if s.op == 0x12 {
				w.Ack = 0x99aabbccddeeff00
			}
			got := headers{p.DETH(), p.RETH(), p.AETH(), p.AtomicETH(), p.Imm(), p.InvalidateRKey(), p.AtomicAck()}
			if d := cmp.Diff(w, got); d != "" {
				t.Errorf("%v: headers (-want +got):\n%s", s.op, d)
			}
		}
	}
	known := 0
	for op := range 256 {
		if Opcode(op).Known() {
			known++
		}
	}
	if known != seen {
		t.Errorf("the package knows %d opcodes, the table has %d", known, seen)
	}
}

func TestParseRefusesEveryCut(t *testing.T) {
	for _, s := range specOpcodes {
		n := 0
		if s.payload {
			n = 5
		}
		b := build(s.op, n)
		for cut := range b {
			p, err := Parse(b[:cut])
			// A cut on a word boundary that leaves all headers can look like
			// a shorter packet only where the pad count still fits; the ICRC
			// is what refuses that one.
			if err == nil && (Pad(len(p.Payload)) != int(p.Pad) || !s.payload) {
				t.Errorf("%v cut to %d bytes parses with %d bytes of payload and pad %d", s.op, cut, len(p.Payload), p.Pad)
			}
			f := NewFlow(netip.MustParseAddrPort("10.0.0.1:4791"), netip.MustParseAddrPort("10.0.0.2:4791"))
			if f.Valid(b[:cut]) {
				t.Errorf("%v cut to %d bytes has a valid ICRC", s.op, cut)
			}
		}
	}
}

func TestParseSaysWhatIsWrong(t *testing.T) {
	change := func(op Opcode, n int, f func(b []byte) []byte) []byte { return f(build(op, n)) }
	for _, tt := range []struct {
		name string
		in   []byte
		want error
	}{
		{"nothing", nil, ErrTruncated},
		{"BTH without ICRC", make([]byte, 15), ErrTruncated},
		{"RETH cut", build(RCReadRequest, 0)[:28], ErrTruncated},
		{"version 1", change(RCSendOnly, 4, func(b []byte) []byte { b[1] |= 1; return b }), ErrVersion},
		{"reserved RC opcode", change(RCSendOnly, 4, func(b []byte) []byte { b[0] = 0x15; return b }), ErrOpcode},
		{"a READ of UC", change(RCReadRequest, 0, func(b []byte) []byte { b[0] = 0x2c; return b }), ErrOpcode},
		{"RD", change(RCSendOnly, 4, func(b []byte) []byte { b[0] = 0x44; return b }), ErrOpcode},
		{"CNP", change(RCSendOnly, 16, func(b []byte) []byte { b[0] = 0x81; return b }), ErrOpcode},
		{"pad without payload", change(RCSendOnly, 0, func(b []byte) []byte { b[1] |= 0x10; return b }), ErrLength},
		{"pad count does not round up", change(RCSendOnly, 4, func(b []byte) []byte { return append(b, 0) }), ErrLength},
		{"acknowledge with data", change(RCAck, 0, func(b []byte) []byte { return append(b, 1, 2, 3, 4) }), ErrLength},
	} {
		if _, err := Parse(tt.in); !errors.Is(err, tt.want) {
			t.Errorf("%s: %v, want %v", tt.name, err, tt.want)
		}
	}
}

func TestOpcodeClasses(t *testing.T) {
	for op := range 256 {
		op := Opcode(op)
		if !op.Known() {
			if op.IsFirst() || op.IsLast() || op.IsResponse() || op.HasImm() {
				t.Errorf("%v has properties and is not known", op)
			}
			continue
		}
		n := 0
		for _, is := range []bool{op.IsSend(), op.IsWrite(), op == RCReadRequest, op.IsResponse(), op == RCCmpSwap || op == RCFetchAdd} {
			if is {
				n++
			}
		}
		if n != 1 {
			t.Errorf("%v belongs to %d classes, want 1", op, n)
		}
		if op.IsUD() != (op >= 0x60 && op < 0x80) {
			t.Errorf("%v: IsUD is %v", op, op.IsUD())
		}
		if op.IsReadResponse() && !op.IsResponse() {
			t.Errorf("%v is a READ response and no response", op)
		}
	}
}

func TestSyndromeClasses(t *testing.T) {
	for _, tt := range []struct {
		s             Syndrome
		ack, rnr, nak bool
		code          uint8
	}{
		{Ack, true, false, false, 31},
		{RNR(14), false, true, false, 14},
		{NAKSequence, false, false, true, 0},
		{NAKRemoteOp, false, false, true, 3},
		{0x40, false, false, false, 0},
		{0xe0, false, false, false, 0},
	} {
		if tt.s.IsAck() != tt.ack || tt.s.IsRNR() != tt.rnr || tt.s.IsNAK() != tt.nak || tt.s.Code() != tt.code {
			t.Errorf("syndrome %#x: ack %v rnr %v nak %v code %d", uint8(tt.s), tt.s.IsAck(), tt.s.IsRNR(), tt.s.IsNAK(), tt.s.Code())
		}
	}
}

func TestParseDoesNotAllocate(t *testing.T) {
	b := build(RCReadRespFirst, 4096)
	f := NewFlow(netip.MustParseAddrPort("10.0.0.1:4791"), netip.MustParseAddrPort("10.0.0.2:4791"))
	h := BTH{Opcode: RCReadRespFirst}
	var sink int
	if n := testing.AllocsPerRun(100, func() {
		h.Put(b)
		f.Seal(b)
		p, err := Parse(b)
		if err != nil || !f.Valid(b) {
			t.Fatal(err)
		}
		sink += len(p.Payload) + int(p.AETH().MSN)
	}); n != 0 {
		t.Errorf("%v allocations per packet", n)
	}
}

func FuzzParse(f *testing.F) {
	for _, s := range specOpcodes {
		f.Add(build(s.op, 0))
		if s.payload {
			f.Add(build(s.op, 7))
		}
	}
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, b []byte) {
		before := bytes.Clone(b)
		flow := NewFlow(netip.MustParseAddrPort("10.0.0.1:4791"), netip.MustParseAddrPort("10.0.0.2:4791"))
		flow.Valid(b)
		if !bytes.Equal(b, before) {
			t.Fatal("Valid changed the packet")
		}
		p, err := Parse(b)
		if err != nil {
			return
		}
		if got := Size(p.Opcode, len(p.Payload)); got != len(b) {
			t.Fatalf("%d bytes parse as a packet of %d", len(b), got)
		}
		// What was parsed and is put again is the same packet, but for the
		// bits that Put clears: FECN, BECN and the reserved ones.
		out := make([]byte, BTHSize)
		p.Put(out)
		out[4], out[8] = b[4], out[8]|b[8]&0x7f
		if !bytes.Equal(out, b[:BTHSize]) {
			t.Fatalf("BTH %x put again is %x", b[:BTHSize], out)
		}
		_, _, _, _, _, _, _ = p.DETH(), p.RETH(), p.AETH(), p.AtomicETH(), p.Imm(), p.InvalidateRKey(), p.AtomicAck()
	})
}
