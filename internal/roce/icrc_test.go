package roce

import (
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"net/netip"
	"testing"
)

// withIP returns the flow with an IPv4 identification and flags of its own,
// for packets that others sent.
func withIP(f Flow, id, flags uint16) Flow {
	f.SetIdentification(id, flags)
	return f
}

func unhex(t testing.TB, s string) []byte {
	b, err := hex.DecodeString(s)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// Packets with ICRCs that others computed. The first is a CNP captured on a
// ConnectX-4 Lx, the second a UC SEND Only captured from a Mellanox NIC; both
// are in the tests of scapy's RoCE layer.
func TestICRCMatchesPacketsFromHardware(t *testing.T) {
	for _, tt := range []struct {
		name     string
		src, dst string
		id       uint16
		pkt      string
	}{
		{"CNP", "10.0.17.1:0", "10.0.18.1:4791", 0x718c,
			"8100ffff400001180000000000000000000000000000000000000000" + "82fd002a"},
		{"UC SEND Only", "192.168.0.7:49152", "192.168.0.7:4791", 1144,
			"2460ffff000000d300cf1710" + "4630818be28935d90e9a95505401be885e500000" + "78f353f3"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			f := withIP(NewFlow(netip.MustParseAddrPort(tt.src), netip.MustParseAddrPort(tt.dst)), tt.id, 0x4000)
			b := unhex(t, tt.pkt)
			if !f.Valid(b) {
				t.Errorf("ICRC of %x is refused, computed %#08x", b, f.sum(b))
			}
			f.SetIdentification(tt.id+1, 0x4000)
			if f.Valid(b) {
				t.Error("another identification is accepted")
			}
			f.SetIdentification(tt.id, 0x4000)
			sealed := append([]byte{}, b[:len(b)-4]...)
			sealed = append(sealed, 0, 0, 0, 0)
			f.Seal(sealed)
			if string(sealed) != string(b) {
				t.Errorf("sealed %x, want %x", sealed, b)
			}
		})
	}
}

// bitwise is the ICRC as the specification states it: over whole headers with
// the variant fields set to ones, one bit at a time.
func bitwise(ip, udp, pkt []byte) uint32 {
	var all []byte
	for range 8 {
		all = append(all, 0xff)
	}
	ip, udp, pkt = append([]byte{}, ip...), append([]byte{}, udp...), append([]byte{}, pkt[:len(pkt)-4]...)
	if ip[0]>>4 == 4 {
		ip[1], ip[8], ip[10], ip[11] = 0xff, 0xff, 0xff, 0xff
	} else {
		ip[0] |= 0x0f
		ip[1], ip[2], ip[3], ip[7] = 0xff, 0xff, 0xff, 0xff
	}
	udp[6], udp[7] = 0xff, 0xff
	pkt[4] = 0xff
	all = append(append(append(all, ip...), udp...), pkt...)
	crc := ^uint32(0)
	for _, x := range all {
		crc ^= uint32(x)
		for range 8 {
			if crc&1 != 0 {
				crc = crc>>1 ^ 0xedb88320
			} else {
				crc >>= 1
			}
		}
	}
	return ^crc
}

func TestICRCCoversWhatTheSpecificationSays(t *testing.T) {
	u16 := binary.BigEndian.AppendUint16
	for _, v6 := range []bool{false, true} {
		for _, n := range []int{0, 1, 2, 3, 4, 64, 1023, 4096} {
			op := RCSendOnly
			b := make([]byte, Size(op, n))
			h := BTH{Opcode: op, Pad: uint8(Pad(n)), PKey: 0xffff, DestQPN: 7, PSN: uint32(n)}
			h.Put(b)
			for i := BTHSize; i < len(b)-4; i++ {
				b[i] = byte(i * 13)
			}
			src, dst := netip.MustParseAddrPort("127.3.2.1:4791"), netip.MustParseAddrPort("127.9.8.7:4791")
			var ip []byte
			if v6 {
				src, dst = netip.MustParseAddrPort("[fd00::1:2]:49999"), netip.MustParseAddrPort("[fe80::9]:4791")
				ip = append(ip, 0x61, 0x23, 0x45, 0x67)
				ip = u16(ip, uint16(8+len(b)))
				ip = append(ip, 17, 63)
			} else {
				ip = append(ip, 0x45, 0x12)
				ip = u16(ip, uint16(28+len(b)))
				ip = append(ip, 0, 0, 0x40, 0, 63, 17, 0x12, 0x34)
			}
			ip = append(append(ip, src.Addr().AsSlice()...), dst.Addr().AsSlice()...)
			udp := u16(u16(u16(u16(nil, src.Port()), dst.Port()), uint16(8+len(b))), 0x5678)

			f := NewFlow(src, dst)
			f.Seal(b)
			want := bitwise(ip, udp, b)
			if got := binary.LittleEndian.Uint32(b[len(b)-4:]); got != want {
				t.Errorf("v6 %v, %d bytes: ICRC %#08x, want %#08x", v6, n, got, want)
			}
		}
	}
}

func TestICRCRefusesEveryFlippedBitButCongestionMarks(t *testing.T) {
	b := build(RCWriteOnlyImm, 6)
	f := NewFlow(netip.MustParseAddrPort("10.0.0.1:4791"), netip.MustParseAddrPort("10.0.0.2:4791"))
	for i := range len(b) * 8 {
		b[i/8] ^= 1 << (i % 8)
		if got, want := f.Valid(b), i/8 == 4; got != want {
			t.Errorf("byte %d bit %d flipped: valid is %v", i/8, i%8, got)
		}
		b[i/8] ^= 1 << (i % 8)
	}
	for _, other := range []Flow{
		NewFlow(netip.MustParseAddrPort("10.0.0.3:4791"), netip.MustParseAddrPort("10.0.0.2:4791")),
		NewFlow(netip.MustParseAddrPort("10.0.0.1:4791"), netip.MustParseAddrPort("10.0.0.3:4791")),
		NewFlow(netip.MustParseAddrPort("10.0.0.1:4792"), netip.MustParseAddrPort("10.0.0.2:4791")),
	} {
		if other.Valid(b) {
			t.Error("valid in a flow of other addresses")
		}
	}
}

func BenchmarkSeal(b *testing.B) {
	for _, n := range []int{0, 32, 256, 1024, 4096} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			pkt := make([]byte, Size(RCSendOnly, n))
			f := NewFlow(netip.MustParseAddrPort("10.0.0.1:4791"), netip.MustParseAddrPort("10.0.0.2:4791"))
			h := BTH{Opcode: RCSendOnly, Pad: uint8(Pad(n)), PKey: 0xffff, DestQPN: 7}
			b.SetBytes(int64(n))
			b.ReportAllocs()
			for b.Loop() {
				h.PSN++
				h.Put(pkt)
				f.Seal(pkt)
			}
		})
	}
}

func BenchmarkValidateAndParse(b *testing.B) {
	for _, n := range []int{0, 32, 1024, 4096} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			pkt := build(RCSendOnly, n)
			f := NewFlow(netip.MustParseAddrPort("10.0.0.1:4791"), netip.MustParseAddrPort("10.0.0.2:4791"))
			b.SetBytes(int64(n))
			b.ReportAllocs()
			for b.Loop() {
				if _, err := Parse(pkt); err != nil || !f.Valid(pkt) {
					b.Fatal(err)
				}
			}
		})
	}
}
