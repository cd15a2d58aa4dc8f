package mlx5sim

import (
	"bytes"
	"net/netip"
	"testing"
)

var (
	testMAC  = [6]byte{2, 0x5a, 10, 0, 0, 2}
	testPeer = [6]byte{0x52, 0x54, 0, 1, 2, 3}
)

// testFrame is a frame with n bytes for a device of 10.0.0.2.
func testFrame(n int) []byte {
	b := make([]byte, max(frameHead+n, minFrame))
	for i := range b {
		b[i] = byte(i)
	}
	clear(b[frameHead+n:])
	putFrame(b, testMAC, testPeer, addrPort("10.0.0.2:4791"), addrPort("10.0.0.1:50000"), plainClass, n)
	return b
}

func TestFramesBringTheirPacketAndIPHeader(t *testing.T) {
	for _, n := range []int{0, 1, 16, 4200} {
		b := testFrame(n)
		in, ok := parseFrame(b, testMAC, addrPort("10.0.0.2:4791"))
		if !ok || in.from != addrPort("10.0.0.1:50000") || in.size != n || !bytes.Equal(in.b, b[frameHead:frameHead+n]) || !bytes.Equal(in.ip, b[14:34]) {
			t.Errorf("%d bytes: %+v, %v", n, in, ok)
		}
	}
}

func TestFramesForOthersAndMalformedOnesAreIgnored(t *testing.T) {
	to := addrPort("10.0.0.2:4791")
	fixSum := func(b []byte) {
		be.PutUint16(b[24:], 0)
		be.PutUint16(b[24:], ^ipv4Sum(b[14:]))
	}
	for _, tt := range []struct {
		name   string
		change func(b []byte)
	}{
		{"other MAC", func(b []byte) { b[5]++ }},
		{"broadcast", func(b []byte) { copy(b, etherBroadcast[:]) }},
		{"VLAN", func(b []byte) { be.PutUint16(b[12:], 0x8100) }},
		{"IP options", func(b []byte) { b[14] = 0x46; fixSum(b) }},
		{"IP checksum", func(b []byte) { b[24]++ }},
		{"IP length beyond the frame", func(b []byte) { be.PutUint16(b[16:], 5000); fixSum(b) }},
		{"IP length without UDP", func(b []byte) { be.PutUint16(b[16:], 27); fixSum(b) }},
		{"first fragment", func(b []byte) { b[20] |= 0x20; fixSum(b) }},
		{"other fragment", func(b []byte) { b[21] = 1; fixSum(b) }},
		{"TCP", func(b []byte) { b[23] = 6; fixSum(b) }},
		{"other address", func(b []byte) { b[33]++; fixSum(b) }},
		{"other port", func(b []byte) { b[37]++ }},
		{"UDP length", func(b []byte) { b[39]++ }},
	} {
		b := testFrame(100)
		tt.change(b)
		if in, ok := parseFrame(b, testMAC, to); ok {
			t.Errorf("%s: %+v", tt.name, in)
		}
	}
	// A frame that is cut where its padding was is still whole.
	for b, n := testFrame(8), 0; n < frameHead+8; n++ {
		if in, ok := parseFrame(b[:n:n], testMAC, to); ok {
			t.Errorf("cut at %d: %+v", n, in)
		}
	}
}

func TestARPPacketsAreWhatTheyWere(t *testing.T) {
	for _, a := range []arp{
		{request: true, mac: testPeer, sender: netip.MustParseAddr("10.0.0.1"), target: netip.MustParseAddr("10.0.0.2"), destination: etherBroadcast},
		{mac: testMAC, sender: netip.MustParseAddr("10.0.0.2"), targetMAC: testPeer, target: netip.MustParseAddr("10.0.0.1"), destination: testPeer},
	} {
		var b [minFrame]byte
		a.put(&b)
		if got, ok := parseARP(b[:]); !ok || got != a {
			t.Errorf("%+v, %v; want %+v", got, ok, a)
		}
		for n := range etherBytes + arpBytes {
			if got, ok := parseARP(b[:n:n]); ok {
				t.Errorf("cut at %d: %+v", n, got)
			}
		}
		for _, at := range []int{12, 14, 16, 18, 19, 20, 21, 22} {
			bad := b
			bad[at] ^= 0x81 // of 22, the MAC, it makes a multicast one
			if got, ok := parseARP(bad[:]); ok {
				t.Errorf("byte %d changed: %+v", at, got)
			}
		}
	}
}

func FuzzFrame(f *testing.F) {
	var b [minFrame]byte
	(&arp{request: true, mac: testPeer, sender: netip.MustParseAddr("10.0.0.1"), target: netip.MustParseAddr("10.0.0.2")}).put(&b)
	f.Add(b[:])
	f.Add(testFrame(0))
	f.Add(testFrame(100))
	f.Fuzz(func(t *testing.T, b []byte) {
		if in, ok := parseFrame(b, testMAC, addrPort("10.0.0.2:4791")); ok {
			if len(in.b) != in.size || len(in.ip) != ipv4Bytes || in.size > len(b)-frameHead {
				t.Errorf("%+v", in)
			}
		}
		if a, ok := parseARP(b); ok {
			var again [minFrame]byte
			a.put(&again)
			if got, ok := parseARP(again[:]); !ok || got != a {
				t.Errorf("%+v becomes %+v", a, got)
			}
		}
	})
}
