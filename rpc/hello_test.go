package rpc

import (
	"bytes"
	"errors"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/rrppcc-go/rrppcc/rpc/internal/transport"
	"github.com/rrppcc-go/rrppcc/uverbs"
)

func sampleHello() hello {
	h := hello{
		window: 8, credits: 32, pair: 0x0123456789abcdef, session: 0xfffffffe, token: 0xdeadbeef, maxMessage: 1 << 30, generation: 0x00c0ffee,
		lane: 3, main: 0x00facade,
		addr: transport.Address{LID: 0x1234, QPN: 0xabcdef, QKey: 0x11223344, RCQPN: 0xfedcba, RCPSN: 0xffffff, MTU: uverbs.MTU4096},
	}
	for i := range h.addr.GID {
		h.addr.GID[i] = byte(0xf0 + i)
	}
	return h
}

func TestHelloRoundTrip(t *testing.T) {
	want := sampleHello()
	got, err := decodeHello(want.encode())
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(want, got, cmp.AllowUnexported(hello{})); d != "" {
		t.Error(d)
	}
}

// The layout is what two versions of this package agree on.
func TestHelloLayout(t *testing.T) {
	h := sampleHello()
	want := []byte{
		0, 2, 8, 5, 0x12, 0x34, 0, 32,
		0x01, 0x23, 0x45, 0x67, 0x89, 0xab, 0xcd, 0xef,
		0xf0, 0xf1, 0xf2, 0xf3, 0xf4, 0xf5, 0xf6, 0xf7, 0xf8, 0xf9, 0xfa, 0xfb, 0xfc, 0xfd, 0xfe, 0xff,
		0x00, 0xab, 0xcd, 0xef, 0x11, 0x22, 0x33, 0x44,
		0x00, 0xfe, 0xdc, 0xba, 0x00, 0xff, 0xff, 0xff,
		0xff, 0xff, 0xff, 0xfe, 0xde, 0xad, 0xbe, 0xef,
		0, 0, 0, 0, 0x40, 0, 0, 0,
		0x00, 0xc0, 0xff, 0xee, 3, 0, 0, 0, 0x00, 0xfa, 0xca, 0xde,
	}
	if got := h.encode(); !bytes.Equal(got, want) {
		t.Errorf("got  %x\nwant %x", got, want)
	}
}

func TestHelloOfAnyOtherLengthIsRejected(t *testing.T) {
	h := sampleHello()
	whole := h.encode()
	for n := range whole {
		if _, err := decodeHello(whole[:n]); !errors.Is(err, errHello) {
			t.Errorf("%d bytes of %d: %v", n, len(whole), err)
		}
	}
	if _, err := decodeHello(append(whole, 0)); !errors.Is(err, errHello) {
		t.Errorf("a byte too many: %v", err)
	}
}

func TestHelloRejectsWhatCannotBe(t *testing.T) {
	for name, spoil := range map[string]func(b []byte){
		"version 1":        func(b []byte) { b[1] = 1 },
		"version 257":      func(b []byte) { b[0] = 1 },
		"window 0":         func(b []byte) { b[2] = 0 },
		"window 65":        func(b []byte) { b[2] = 65 },
		"MTU 0":            func(b []byte) { b[3] = 0 },
		"MTU 6":            func(b []byte) { b[3] = 6 },
		"no pair":          func(b []byte) { clear(b[8:16]) },
		"QPN of 25 bits":   func(b []byte) { b[32] = 1 },
		"RC QPN of 25":     func(b []byte) { b[40] = 1 },
		"PSN of 25 bits":   func(b []byte) { b[44] = 1 },
		"no message":       func(b []byte) { clear(b[56:64]) },
		"lane 65":          func(b []byte) { b[68] = 65 },
		"main of no lane":  func(b []byte) { b[68] = 0 },
		"reserved at 69":   func(b []byte) { b[69] = 1 },
		"reserved at last": func(b []byte) { b[71] = 1 },
	} {
		h := sampleHello()
		b := h.encode()
		spoil(b)
		if got, err := decodeHello(b); !errors.Is(err, errHello) || got != (hello{}) {
			t.Errorf("%s: %+v, %v", name, got, err)
		}
	}
}

func FuzzDecodeHello(f *testing.F) {
	h := sampleHello()
	f.Add(h.encode())
	f.Add(make([]byte, helloBytes))
	f.Add([]byte{0, 1})
	h.maxMessage, h.window, h.addr.MTU = 1<<63, 64, uverbs.MTU256
	f.Add(h.encode())
	f.Fuzz(func(t *testing.T, b []byte) {
		h, err := decodeHello(b)
		if err != nil {
			return
		}
		if got := h.encode(); !bytes.Equal(got, b) {
			t.Errorf("%x is decoded and encoded to %x", b, got)
		}
	})
}
