package prm

import (
	"bytes"
	"encoding/hex"
	"testing"
	"unsafe"
)

func memory[T any](v *T) []byte {
	return unsafe.Slice((*byte)(unsafe.Pointer(v)), unsafe.Sizeof(*v))
}

// TestSegmentsLieBigEndian writes each segment with distinct fields and compares
// the bytes, which were put together by hand from the PRM.
func TestSegmentsLieBigEndian(t *testing.T) {
	cases := map[string]struct {
		got  []byte
		want string
	}{
		"control": {memory(&CtrlSeg{OpmodIdxOpcode: ToBE32(0x1234<<8 | OpcodeSendImm), QPNDS: ToBE32(0xabcdef<<8 | 5),
			FmCeSe: ToBE32(CtrlFence | CtrlCQUpdate | CtrlSolicited), Imm: ToBE32(0x01020304)}),
			"0012340b" + "abcdef05" + "0000008a" + "01020304"},
		"datagram": {memory(&AV{QKey: ToBE32(0x11111111), DQPN: ToBE32(AVExtended | 0x222222), StatSLLID: ToBE32(0x8e00e341),
			RMACHi: ToBE32(0x025a0a00), RMACLoHop: ToBE32(0x0002_68_40), GRHGIDFL: ToBE32(AVGRH | 3<<20 | 0x12345),
			RGID: [2]BE64{ToBE64(0xfe80000000000000), ToBE64(0x0123456789abcdef)}}),
			"11111111" + "00000000" + "80222222" + "8e00e341" + "00000000" + "025a0a00" + "00026840" + "40312345" + "fe80000000000000" + "0123456789abcdef"},
		"remote address": {memory(&RAddrSeg{RAddr: ToBE64(0x7e5500a0b0c0), RKey: ToBE32(0x0badf00d)}), "00007e5500a0b0c0" + "0badf00d" + "00000000"},
		"data":           {memory(&DataSeg{ByteCount: ToBE32(64), LKey: ToBE32(0x1822a7), Addr: ToBE64(0x7f1000001000)}), "00000040" + "001822a7" + "00007f1000001000"},
		"atomic":         {memory(&AtomicSeg{SwapAdd: ToBE64(0x1122334455667788), Compare: ToBE64(0x99aabbccddeeff00)}), "1122334455667788" + "99aabbccddeeff00"},
		"UMR control": {memory(&UMRCtrlSeg{Flags: ToBE32(UMRInline | UMRTranslationOffset | UMRCheckQPN), KLM: ToBE32(4 << 16), MKeyMask: ToBE64(UMRMaskFree | UMRMaskMKey | UMRMaskQPN)}),
			"98000000" + "00040000" + "0000000020006000" + "0000000000000000000000000000000000000000000000000000000000000000"},
		"mkey": {memory(&MKeySeg{Access: ToBE32(MKeyFree | MKeyRemoteAtomic | MKeyRemoteWrite | MKeyRemoteRead), QPNMKey: ToBE32(0x1a307), Start: ToBE64(1), Len: ToBE64(2)}),
			"40007000" + "0001a307" + "0000000000000000" + "0000000000000001" + "0000000000000002" + "0000000000000000000000000000000000000000000000000000000000000000"},
		"next":   {memory(&NextSeg{Next: ToBE32(0x1234)}), "00001234" + "000000000000000000000000"},
		"inline": {memory(&InlineSeg{ByteCount: ToBE32(InlineFlag | 3)}), "80000003"},
	}
	for name, c := range cases {
		if want, _ := hex.DecodeString(c.want); !bytes.Equal(c.got, want) {
			t.Errorf("%s: %x, want %x", name, c.got, want)
		}
	}
	arm := CQDoorbell(1<<ArmSNShift|ArmSolicited|7, 0x405)
	if got := hex.EncodeToString(memory(&arm)); got != "1100000700000405" {
		t.Errorf("CQ doorbell %s", got)
	}
}

// TestWordsKeepTheirValue converts there and back.
func TestWordsKeepTheirValue(t *testing.T) {
	if v := ToBE16(0x1234); v.Host() != 0x1234 || !bytes.Equal(memory(&v), []byte{0x12, 0x34}) {
		t.Errorf("%#x", v)
	}
	if v := ToBE32(0x12345678); v.Host() != 0x12345678 {
		t.Errorf("%#x", v)
	}
	if v := ToBE64(0x123456789abcdef0); v.Host() != 0x123456789abcdef0 {
		t.Errorf("%#x", v)
	}
}

// TestCQEFields reads a CQE whose every byte is its offset.
func TestCQEFields(t *testing.T) {
	ring := make([]CQE64, 2)
	b := memory(&ring[1])
	for i := range b {
		b[i] = byte(i)
	}
	e := CQE(&memory(&ring[0])[0], 1, CQEBytes)
	for name, f := range map[string][2]uint32{
		"path": {e.MLPath.Host(), 0x10111213}, "slid": {e.SLID.Host(), 0x14151617}, "flags": {e.FlagsRQPN.Host(), 0x18191a1b},
		"uidx": {e.SRQNUIDX.Host(), 0x20212223}, "imm": {e.ImmInvalPKey.Host(), 0x24252627}, "count": {e.ByteCnt.Host(), 0x2c2d2e2f},
		"syndrome": {e.TimestampLow.Host(), 0x34353637}, "qpn": {e.SOPDropQPN.Host(), 0x38393a3b}, "last": {e.LoadLast(), 0x3c3d3e3f},
	} {
		if f[0] != f[1] {
			t.Errorf("%s: %#x, want %#x", name, f[0], f[1])
		}
	}
	ring[0].CopyBody(e, CQEBytes)
	ring[0].StoreLast(0x01020304)
	if !bytes.Equal(memory(&ring[0])[:60], b[:60]) || ring[0].LoadLast() != 0x01020304 {
		t.Errorf("copy %x", memory(&ring[0]))
	}
	if got := e.Data(CQEScatter32, 32); !bytes.Equal(got, b[:32]) {
		t.Errorf("data in the entry: %x", got)
	}
}

// TestLargeCQE reads and copies entries of 128 bytes: the second half is what
// counts, the first holds data.
func TestLargeCQE(t *testing.T) {
	ring := make([]byte, 4*CQEBytes)
	for i := range ring {
		ring[i] = byte(i)
	}
	first, second := CQE(&ring[CQEBytes], 0, 2*CQEBytes), CQE(&ring[CQEBytes], 1, 2*CQEBytes)
	if v := second.SRQNUIDX.Host(); v != 0xe0e1e2e3 {
		t.Errorf("uidx %#x", v)
	}
	if got := second.Data(CQEScatter64, 64); !bytes.Equal(got, ring[128:192]) {
		t.Errorf("data %x", got)
	}
	first.CopyBody(second, 2*CQEBytes)
	if !bytes.Equal(ring[:124], ring[128:252]) || ring[124] != 124 {
		t.Errorf("copy %x", ring[:128])
	}
}
