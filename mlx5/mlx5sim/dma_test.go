package mlx5sim

import (
	"bytes"
	"errors"
	"testing"
	"unsafe"
)

func testPage(t *testing.T) (p []byte, addr uint64) {
	t.Helper()
	p, err := allocPage()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := freePage(p); err != nil {
			t.Error(err)
		}
	})
	return p, uint64(uintptr(unsafe.Pointer(&p[0])))
}

func TestDirectDMAReachesMappedMemory(t *testing.T) {
	p, addr := testPage(t)
	if len(p) != uarPageBytes || addr%uarPageBytes != 0 && addr%8 != 0 {
		t.Fatalf("page of %d bytes at %#x", len(p), addr)
	}
	d := newDirectDMA()
	if err := d.Write(addr+8, []byte("hello")); err != nil || string(p[8:13]) != "hello" {
		t.Errorf("Write: %v, page has %q", err, p[8:13])
	}
	var b [5]byte
	if err := d.Read(addr+8, b[:]); err != nil || string(b[:]) != "hello" {
		t.Errorf("Read: %v, %q", err, b)
	}
	if v := d.View(addr+8, 5); !bytes.Equal(v, []byte("hello")) || &v[0] != &p[8] {
		t.Errorf("View: %q", v)
	}
	if !d.Mapped(addr, uarPageBytes) || !d.Mapped(addr+100, 1) {
		t.Error("the page is not mapped")
	}
}

func TestDirectDMARefusesImpossibleRanges(t *testing.T) {
	_, addr := testPage(t)
	d := newDirectDMA()
	for _, r := range [][2]uint64{{0, 1}, {8, 4}, {4095, 2}, {^uint64(0), 2}, {^uint64(0) - 7, 9}} {
		if d.Mapped(r[0], r[1]) {
			t.Errorf("%d bytes at %#x are mapped", r[1], r[0])
		}
		if d.View(r[0], int(r[1])) != nil {
			t.Errorf("%d bytes at %#x have a view", r[1], r[0])
		}
		if err := d.Read(r[0], make([]byte, r[1])); !errors.Is(err, errDMA) {
			t.Errorf("Read of %d bytes at %#x: %v", r[1], r[0], err)
		}
		if err := d.Write(r[0], make([]byte, r[1])); !errors.Is(err, errDMA) {
			t.Errorf("Write of %d bytes at %#x: %v", r[1], r[0], err)
		}
	}
	if d.View(addr, -1) != nil {
		t.Error("a negative length has a view")
	}
	if d.Mapped(addr, 1<<62) {
		t.Error("2^62 bytes are mapped")
	}
}

func TestDoorbellWordsAreAlignedBigEndian(t *testing.T) {
	p, addr := testPage(t)
	for _, noView := range []bool{false, true} {
		var d DMA = &arenaDMA{base: addr, mem: p, noView: noView}
		if !store32(d, addr+4, 0x01020304) || !bytes.Equal(p[4:8], []byte{1, 2, 3, 4}) {
			t.Errorf("stored % x", p[4:8])
		}
		if v, ok := load32(d, addr+4); !ok || v != 0x01020304 {
			t.Errorf("loaded %#x", v)
		}
		for _, a := range []uint64{addr + 5, addr + 2, addr + uarPageBytes} {
			if _, ok := load32(d, a); ok || store32(d, a, 1) {
				t.Errorf("the word at page+%d was reached", a-addr)
			}
		}
	}
	copy(p[0x800:], []byte{1, 2, 3, 4, 5, 6, 7, 8})
	if v := register(&p[0], 0x800); v != 0x0102030405060708 {
		t.Errorf("register %#x", v)
	}
}
