package engine

import (
	"bytes"
	"testing"
)

func TestPartBytesAreFixed(t *testing.T) {
	var b [PartBytes]byte
	(&Part{Total: 0x01020304, Index: 0x11}).Put(&b)
	if want := [PartBytes]byte{4, 3, 2, 1, 0x11, 0, 0, 0}; b != want {
		t.Errorf("block is % x, want % x", b, want)
	}
	for n := range b {
		if _, _, ok := ParsePart(b[:n]); ok {
			t.Errorf("a block of %d bytes is accepted", n)
		}
	}
	if p, data, ok := ParsePart(append(b[:], 7, 8)); !ok || p != (Part{0x01020304, 0x11}) || !bytes.Equal(data, []byte{7, 8}) {
		t.Errorf("read back as %+v, data % x, %v", p, data, ok)
	}
	for i := 5; i < PartBytes; i++ {
		c := b
		c[i] = 1
		if _, _, ok := ParsePart(c[:]); ok {
			t.Errorf("reserved byte %d is not checked", i)
		}
	}
}

func TestMissingCutAtEveryLength(t *testing.T) {
	b := []byte{1, 0, 0, 0, 0, 0, 0, 0x80}
	for n := range b {
		if _, ok := parseMissing(b[:n]); ok {
			t.Errorf("%d bytes are accepted", n)
		}
	}
	if which, ok := parseMissing(b); !ok || which != 1<<63|1 {
		t.Errorf("read as %#x, %v", which, ok)
	}
	if _, ok := parseMissing(append(b, 0)); ok {
		t.Error("too many bytes are accepted")
	}
	if _, ok := parseMissing(make([]byte, 8)); ok {
		t.Error("asking for nothing is accepted")
	}
}

func FuzzParsePart(f *testing.F) {
	f.Add([]byte{})
	f.Add([]byte{4, 3, 2, 1, 0x11, 0, 0, 0, 'd', 'a', 't', 'a'})
	f.Add(bytes.Repeat([]byte{0xff}, 8))
	f.Fuzz(func(t *testing.T, b []byte) {
		p, data, ok := ParsePart(b)
		if !ok {
			return
		}
		var again [PartBytes]byte
		p.Put(&again)
		if !bytes.Equal(again[:], b[:PartBytes]) || len(data) != len(b)-PartBytes {
			t.Errorf("% x is written back as % x and %d bytes", b, again, len(data))
		}
		// Whatever is accepted lies within its message.
		pr := newPairOfParts(t, 5)
		if s := pr.ss; s.checkPart(p, data) {
			off := int(p.Index) * s.partBytes
			if off+len(data) > int(p.Total) || int(p.Total) > 5*s.partBytes || len(data) == 0 || int(p.Index) >= s.parts(int(p.Total)) {
				t.Errorf("%+v with %d bytes is accepted", p, len(data))
			}
		}
	})
}

func TestPartsForLeavesRoomForConfirmations(t *testing.T) {
	for _, c := range []struct{ credits, window, want int }{
		{1, 1, 1}, {8, 8, 1}, {16, 8, 1}, {24, 8, 2}, {32, 8, 3}, {40, 8, 4}, {128, 64, 1}, {1000, 8, 64}, {65535, 1, 64}, {0, 8, 1},
	} {
		if n := PartsFor(c.credits, c.window); n != c.want {
			t.Errorf("%d credits, window %d: %d parts, want %d", c.credits, c.window, n, c.want)
		}
	}
}

// A session's limits follow from what both rings hold, and from the endpoint's
// own threshold.
func TestMaxUD(t *testing.T) {
	const p = testMaxSmall - PartBytes
	for _, c := range []struct{ threshold, parts, want int }{
		{0, 64, testMaxSmall},
		{10, 64, testMaxSmall},
		{testMaxSmall + 1, 64, testMaxSmall + 1},
		{testMaxMsg, 0, testMaxSmall},
		{testMaxMsg, 1, testMaxSmall},
		{testMaxMsg, 2, 2 * p},
		{testMaxMsg, 3, 3 * p},
		{testMaxMsg, 64, 64 * p},
		{testMaxMsg, 1000, 64 * p},
		{2 * p, 3, 2 * p},
	} {
		pr := newPairOfParts(t, c.parts, func(cfg *Config) { cfg.Threshold = c.threshold })
		if got := pr.cs.MaxUD(); got != c.want || pr.ss.MaxUD() != c.want {
			t.Errorf("threshold %d, %d parts: %d, want %d", c.threshold, c.parts, got, c.want)
		}
		pr.finish()
	}
	pr := newPairOfParts(t, 64)
	pr.cs.Fail(pr.now, ErrSessionClosed)
	pr.cs = pr.c.e.NewSession(true, 5)
	pr.connect(PartBytes) // a datagram that would be nothing but block
	if pr.cs.MaxUD() != PartBytes {
		t.Errorf("datagrams of %d bytes: messages of %d", PartBytes, pr.cs.MaxUD())
	}
	pr.finish()
}
