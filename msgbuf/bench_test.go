package msgbuf

import (
	"fmt"
	"testing"
)

func BenchmarkAllocFree(b *testing.B) {
	for _, size := range []int{64, 4 << 10, 1 << 20, 8 << 20} {
		b.Run(fmt.Sprint(size), func(b *testing.B) {
			p, _ := newTestPool(b, Local)
			b.ReportAllocs()
			for b.Loop() {
				buf, err := p.Alloc(size)
				if err != nil {
					b.Fatal(err)
				}
				buf.Free()
			}
		})
	}
}

func BenchmarkAllocFreeLocal(b *testing.B) {
	for _, size := range []int{64, 4 << 10, 1 << 20} {
		b.Run(fmt.Sprint(size), func(b *testing.B) {
			p, _ := newTestPool(b, Local)
			b.ReportAllocs()
			for b.Loop() {
				buf, err := p.Alloc(size)
				if err != nil {
					b.Fatal(err)
				}
				p.FreeLocal(buf)
			}
		})
	}
}

// BenchmarkAllocFreeBurst holds 32 buffers before it frees them, as a window of
// requests does.
func BenchmarkAllocFreeBurst(b *testing.B) {
	for _, size := range []int{64, 4 << 10, 1 << 20} {
		b.Run(fmt.Sprint(size), func(b *testing.B) {
			p, _ := newTestPool(b, Local)
			var bufs [32]Buf
			b.ReportAllocs()
			for i := 0; b.Loop(); i++ {
				s := &bufs[i%len(bufs)]
				s.Free()
				var err error
				if *s, err = p.Alloc(size); err != nil {
					b.Fatal(err)
				}
			}
			for _, s := range bufs {
				s.Free()
			}
		})
	}
}

func BenchmarkSharedAllocFree(b *testing.B) {
	d := new(fakeDevice)
	p := NewSharedPool(d, Local)
	b.ReportAllocs()
	for b.Loop() {
		buf, err := p.Alloc(4096)
		if err != nil {
			b.Fatal(err)
		}
		buf.Free()
	}
	if err := p.Close(); err != nil {
		b.Fatal(err)
	}
}

func BenchmarkBytes(b *testing.B) {
	p, _ := newTestPool(b, Local)
	buf := mustAlloc(b, p, 64)
	n := 0
	for b.Loop() {
		n += len(buf.Bytes())
	}
	if n == 0 {
		b.Fatal("empty")
	}
	buf.Free()
}
