package engine

import (
	"math"
	"math/rand/v2"
	"testing"
)

func TestHoldIsRoundedUpByASixteenthAtMost(t *testing.T) {
	check := func(d int64) {
		v := encodeHold(d)
		got, ok := decodeHold(v)
		if !ok {
			if v == 0 || d < 120*ms {
				t.Fatalf("%d ns: encoded as %d", d, v)
			}
			return
		}
		if d = max(d, 0); got < d || got-d > 1<<holdShift+d/16 {
			t.Fatalf("%d ns: encoded as %d, which is %d", d, v, got)
		}
	}
	for _, d := range []int64{math.MinInt64, -1, 0, 1, 255, 256, 257, 31 << 8, 31<<8 + 1, 32 << 8, 63 << 8, 63<<8 + 1, 64 << 8,
		31 << 22, 30 << 22, 30<<22 + 1, 31<<22 + 1, 32 << 22, 1 << 40, math.MaxInt64} {
		check(d)
	}
	for d := int64(0); d < 100_000; d++ {
		check(d)
	}
	r := rand.New(rand.NewPCG(1, 2))
	for range 100_000 {
		check(r.Int64N(1 << (1 + r.IntN(40))))
	}
}

func TestHoldsAreInOrder(t *testing.T) {
	last := int64(0)
	for v := 1; v < holdUnknown; v++ {
		d, ok := decodeHold(uint8(v))
		if !ok || d <= last || encodeHold(d) != uint8(v) {
			t.Fatalf("%d is %d ns, %v, after %d; and back %d", v, d, ok, last, encodeHold(d))
		}
		last = d
	}
	for _, v := range []uint8{0, holdUnknown} {
		if _, ok := decodeHold(v); ok {
			t.Errorf("%d says something", v)
		}
	}
}
