package rpc

import (
	"bytes"
	"errors"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/rrppcc-go/rrppcc/msgbuf"
)

// gpu is memory that an endpoint knows as a GPU's, and what the GPU sees of it.
type gpu struct {
	*Region
	mem []byte
}

// newGPU registers n bytes of a dma-buf, for which a memfd stands in; where the
// device takes none, of memory that the endpoint is not told where it is.
func newGPU(r *rig, ep *Endpoint, n int, access msgbuf.Access, dmaBuf bool) *gpu {
	r.Helper()
	g := &gpu{}
	if dmaBuf {
		const page = 4096
		fd, err := unix.MemfdCreate("gpu", 0)
		if err == nil {
			err = unix.Ftruncate(fd, int64(n+2*page))
		}
		if err != nil {
			r.Fatal(err)
		}
		mem, err := unix.Mmap(fd, page, n, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
		if err != nil {
			r.Fatal(err)
		}
		r.Cleanup(func() { unix.Munmap(mem) })
		g.mem = mem
		g.Region, err = ep.RegisterDMABuf(fd, page, uint64(n), access)
		unix.Close(fd)
		if errors.Is(err, syscall.EOPNOTSUPP) {
			r.Skip("the device takes no dma-bufs")
		}
		if err != nil {
			r.Fatal(err)
		}
	} else {
		g.mem = mapped(r.TB.(*testing.T), n)
		x, err := msgbuf.NewExternal(ep.reg, g.mem, access)
		if err != nil {
			r.Fatal(err)
		}
		whole, err := x.View(0, n)
		if err != nil {
			r.Fatal(err)
		}
		key := keys{lkey: whole.LKey(), rkey: whole.RKey(), close: func() error { whole.Free(); return x.Close() }}
		y, err := msgbuf.NewUnmapped(ep.reg, key, whole.Addr(), n, access)
		if err != nil {
			r.Fatal(err)
		}
		g.Region = &Region{y}
	}
	r.Cleanup(func() {
		if err := g.Close(); err != nil {
			r.Errorf("close region: %v", err)
		}
	})
	return g
}

// keys is a registration.
type keys struct {
	lkey, rkey uint32
	close      func() error
}

func (k keys) LKey() uint32 { return k.lkey }
func (k keys) RKey() uint32 { return k.rkey }
func (k keys) Close() error { return k.close() }

func (g *gpu) buf(r *rig, off, n int) msgbuf.Buf {
	r.Helper()
	b, err := g.Buf(off, n)
	if err != nil {
		r.Fatal(err)
	}
	if b.Bytes() != nil || b.Full() != nil || b.Mapped() || b.Len() != n || b.Cap() != n {
		r.Fatalf("a buffer of %d bytes in a GPU has %d bytes here, length %d, capacity %d", n, len(b.Full()), b.Len(), b.Cap())
	}
	r.Cleanup(func() {
		if b.Valid() {
			b.Free()
		}
	})
	return b
}

// onGPUs runs fn with memory that is called unmapped, and with that of dma-bufs.
func onGPUs(t *testing.T, fn func(t *testing.T, dmaBuf bool)) {
	t.Run("unmapped", func(t *testing.T) { fn(t, false) })
	t.Run("dma-buf", func(t *testing.T) { fn(t, true) })
}

func TestMessagesGoFromAndToUnmappedMemory(t *testing.T) {
	onGPUs(t, func(t *testing.T, dmaBuf bool) {
		for _, opts := range [][]Option{nil, {WithRegionKeys()}, {WithLargeThreshold(12_000)}} {
			r := newRig(t, opts...)
			s := r.connect()
			from, to := newGPU(r, r.cli, 8<<20, msgbuf.RemoteRead, dmaBuf), newGPU(r, r.cli, 8<<20, msgbuf.Local, dmaBuf)
			for i, n := range []int{1, 100, 150, 1000, 5000, 11_000, 100_000, 3<<20 + 5} {
				req := from.buf(r, i*13, n)
				for k := range n {
					from.mem[i*13+k] = byte(k * (i + 3) >> 2)
				}
				want := from.mem[i*13 : i*13+n]
				here := r.buf(r.cli, n) // a small message can be received where the CPU sees it
				if err := r.call(s, rigEcho, req, here); err != nil || !bytes.Equal(here.Bytes(), want) {
					t.Fatalf("request of %d bytes: %v", n, err)
				}
				resp := to.buf(r, i*17, n)
				err := r.call(s, rigEcho, req, resp)
				switch small := n <= s.LargeThreshold(); {
				case small && !errors.Is(err, ErrUnmapped):
					t.Errorf("small response of %d bytes: %v", n, err)
				case !small && (err != nil || !bytes.Equal(to.mem[i*17:i*17+n], want)):
					t.Errorf("response of %d bytes: %v", n, err)
				}
				if err := r.call(s, rigEcho, msgbuf.Buf{}, resp); err != nil || resp.Len() != 0 {
					t.Errorf("empty response: %v", err)
				}
			}
			r.closeSession(s)
		}
	})
}

func TestLocalUnmappedMemoryIsNotOfferedToPeers(t *testing.T) {
	onGPUs(t, func(t *testing.T, dmaBuf bool) {
		r := newRig(t)
		s := r.connect()
		g := newGPU(r, r.cli, 1<<20, msgbuf.Local, dmaBuf)
		if err := r.call(s, rigEcho, g.buf(r, 0, 100_000), msgbuf.Buf{}); !errors.Is(err, ErrBuffer) {
			t.Errorf("a large request from local memory: %v", err)
		}
		r.closeSession(s)
	})
}

func TestResponsesGoFromUnmappedMemory(t *testing.T) {
	onGPUs(t, func(t *testing.T, dmaBuf bool) {
		r := newRig(t)
		g := newGPU(r, r.srv, 1<<20, msgbuf.RemoteRead, dmaBuf)
		for i := range g.mem {
			g.mem[i] = byte(i * 7 >> 3)
		}
		r.srv.Handle(rigHold, func(h *RequestHandle) (msgbuf.Buf, error) {
			return g.Buf(99, int(h.Bytes()[0])<<12|int(h.Bytes()[1]))
		})
		s := r.connect()
		req, resp := r.buf(r.cli, 2), r.buf(r.cli, 1<<20)
		for _, n := range []int{0, 1, 140, 255, 3<<12 | 5, 200 << 12} {
			req.Bytes()[0], req.Bytes()[1] = byte(n>>12), byte(n)
			if err := r.call(s, rigHold, req, resp); err != nil || !bytes.Equal(resp.Bytes(), g.mem[99:99+n]) {
				t.Errorf("%d bytes: %v", n, err)
			}
		}
		r.closeSession(s)
	})
}

func TestRequestsArePlacedInUnmappedMemory(t *testing.T) {
	onGPUs(t, func(t *testing.T, dmaBuf bool) {
		r := newRig(t, WithLargeThreshold(1))
		g := newGPU(r, r.srv, 8<<20, msgbuf.Local, dmaBuf)
		places := 0
		var failing error
		r.srv.PlaceRequests(rigEcho, func(n int) (msgbuf.Buf, error) {
			places++
			switch {
			case failing == errNone:
				return r.cli.Alloc(n) // of another device
			case failing != nil:
				return msgbuf.Buf{}, failing
			}
			return g.Buf(1000, n+10)
		})
		small := 0
		r.srv.Handle(rigEcho, func(h *RequestHandle) (msgbuf.Buf, error) {
			if !h.Large() {
				small++
				if !h.Buf().IsNil() || len(h.Bytes()) != 100 {
					t.Errorf("a small request in %d bytes", h.Buf().Len())
				}
				return msgbuf.Buf{}, nil
			}
			if h.Bytes() != nil || h.Buf().Mapped() || h.Buf().Addr() == 0 {
				t.Errorf("a placed request has %d bytes", len(h.Bytes()))
			}
			resp, err := h.Response(8)
			if err == nil {
				copy(resp.Bytes(), checksum(g.mem[1000:][:h.Buf().Len()]))
			}
			return resp, err
		})
		s := r.connect()
		resp := r.buf(r.cli, 8)
		for i, n := range []int{100, 5000, 100_000, 5 << 20} {
			req := r.buf(r.cli, n)
			fill(req, uint64(i))
			if err := r.call(s, rigEcho, req, resp); err != nil || n > 100 && !bytes.Equal(resp.Bytes(), checksum(req.Bytes())) {
				t.Errorf("%d bytes: %v", n, err)
			}
		}
		if places != 3 || small != 1 {
			t.Errorf("%d requests were placed, %d small ones", places, small)
		}
		req := r.buf(r.cli, 100_000)
		for _, failing = range []error{errors.New("the GPU is full"), errNone} {
			if err := r.call(s, rigEcho, req, resp); !errors.Is(err, ErrServerMemory) {
				t.Errorf("a request without a place: %v", err)
			}
		}
		failing = nil
		r.srv.PlaceRequests(rigEcho, nil)
		r.srv.Handle(rigEcho, func(h *RequestHandle) (msgbuf.Buf, error) {
			if len(h.Bytes()) != 100_000 {
				t.Errorf("%d bytes", len(h.Bytes()))
			}
			return msgbuf.Buf{}, nil
		})
		if err := r.call(s, rigEcho, req, resp); err != nil {
			t.Error(err)
		}
		r.closeSession(s)
	})
}

func TestRegisterDMABufRefuses(t *testing.T) {
	r := newRig(t)
	for _, c := range []struct {
		fd             int
		offset, length uint64
	}{{-1, 0, 4096}, {0, 0, 0}, {0, 0, 1 << 63}, {1 << 20, 0, 4096}} {
		if reg, err := r.cli.RegisterDMABuf(c.fd, c.offset, c.length, msgbuf.Local); err == nil {
			reg.Close()
			t.Errorf("%+v is taken", c)
		}
	}
	if _, err := msgbuf.NewUnmapped(r.cli.reg, keys{}, ^uint64(0)-10, 100, msgbuf.Local); err == nil {
		t.Error("memory around the end of all addresses")
	}
	if _, err := msgbuf.NewUnmapped(r.cli.reg, keys{}, 0, 0, msgbuf.Local); err == nil {
		t.Error("no memory at all")
	}
}
