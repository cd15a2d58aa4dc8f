package roce

import (
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// TestTsharkReadsWhatWeWrite gives a capture of every opcode to tshark and
// compares the fields that it finds. tshark shows the ICRC but doesn't verify
// it; the packets from hardware in TestICRCMatchesPacketsFromHardware do that.
func TestTsharkReadsWhatWeWrite(t *testing.T) {
	tshark, err := exec.LookPath("tshark")
	if err != nil {
		t.Skip("tshark is not installed:", err)
	}
	src, dst := netip.MustParseAddrPort("10.0.0.1:4791"), netip.MustParseAddrPort("10.0.0.2:4791")
	le := binary.LittleEndian
	// pcap, version 2.4, link type 228: raw IPv4
	out := le.AppendUint32(nil, 0xa1b2c3d4)
	out = le.AppendUint16(le.AppendUint16(out, 2), 4)
	out = append(out, make([]byte, 8)...)
	out = le.AppendUint32(le.AppendUint32(out, 65535), 228)

	var want []string
	fields := []string{"infiniband.bth.opcode", "infiniband.bth.se", "infiniband.bth.m", "infiniband.bth.padcnt",
		"infiniband.bth.p_key", "infiniband.bth.destqp", "infiniband.bth.a", "infiniband.bth.psn",
		"infiniband.deth.q_key", "infiniband.deth.srcqp",
		"infiniband.reth.va", "infiniband.reth.r_key", "infiniband.reth.dmalen",
		"infiniband.aeth.syndrome.opcode", "infiniband.aeth.msn",
		"infiniband.atomiceth.swapdt", "infiniband.atomiceth.cmpdt",
		"infiniband.atomicacketh.origremdt", "infiniband.invariant.crc"}
	for _, s := range specOpcodes {
		n := 0
		if s.payload {
			n = 37 // tshark guesses at the protocol inside, and gives up in a short one
		}
		b := build(s.op, n)
		ip := append([]byte{0x45, 0}, binary.BigEndian.AppendUint16(nil, uint16(28+len(b)))...)
		ip = append(ip, 0, 0, 0x40, 0, 64, 17, 0, 0)
		ip = append(append(ip, src.Addr().AsSlice()...), dst.Addr().AsSlice()...)
		for _, v := range []uint16{src.Port(), dst.Port(), uint16(8 + len(b)), 0} {
			ip = binary.BigEndian.AppendUint16(ip, v)
		}
		out = append(out, make([]byte, 8)...)
		out = le.AppendUint32(le.AppendUint32(out, uint32(len(ip)+len(b))), uint32(len(ip)+len(b)))
		out = append(append(out, ip...), b...)

		row := make([]string, len(fields))
		copy(row, []string{fmt.Sprint(uint8(s.op)), "1", "1", fmt.Sprint(-n & 3), fmt.Sprint(0xabcd), "0x123456", "1", fmt.Sprint(0xfedcba)})
		if s.op == 0x64 || s.op == 0x65 {
			row[8], row[9] = "0x0000000011111111", "0x00654321"
		}
		if s.op == 0x06 || s.op >= 0x0a && s.op <= 0x0c || s.op == 0x26 || s.op == 0x2a || s.op == 0x2b {
			row[10], row[11], row[12] = "0x1122334455667788", "0xcafe0001", fmt.Sprint(0x01020304)
		}
		if s.op == 0x0d || s.op >= 0x0f && s.op <= 0x12 {
			row[13], row[14] = "3", fmt.Sprint(0xaabbcc)
		}
		if s.op == 0x13 || s.op == 0x14 {
			row[10], row[11] = "0x0102030405060708", "0xcafe0002" // tshark has one field for both headers
			row[15], row[16] = fmt.Sprint(uint64(0x1111222233334444)), fmt.Sprint(uint64(0x5555666677778888))
		}
		if s.op == 0x12 {
			row[17] = fmt.Sprint(uint64(0x99aabbccddeeff00))
		}
		row[18] = "0x" + hex.EncodeToString(b[len(b)-4:])
		want = append(want, strings.Join(row, "|"))
	}
	file := filepath.Join(t.TempDir(), "all.pcap")
	if err := os.WriteFile(file, out, 0o600); err != nil {
		t.Fatal(err)
	}
	args := []string{"-r", file, "-T", "fields", "-E", "separator=|", "-E", "occurrence=f"}
	for _, f := range fields {
		args = append(args, "-e", f)
	}
	stdout, err := exec.CommandContext(t.Context(), tshark, args...).Output()
	if err != nil {
		t.Skip("tshark does not run:", err)
	}
	got := strings.Split(strings.TrimRight(string(stdout), "\n"), "\n")
	if len(got) != len(want) {
		t.Fatalf("tshark found %d packets, want %d", len(got), len(want))
	}
	for i := range want {
		if got[i] != want[i] {
			t.Errorf("%v:\n tshark %s\n ours   %s", specOpcodes[i].op, got[i], want[i])
		}
	}
}
