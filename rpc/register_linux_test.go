package rpc

import (
	"bytes"
	"errors"
	"syscall"
	"testing"

	"github.com/rrppcc-go/rrppcc/msgbuf"
)

// mapped returns n bytes of mapped memory.
func mapped(t *testing.T, n int) []byte {
	t.Helper()
	mem, err := syscall.Mmap(-1, 0, n, syscall.PROT_READ|syscall.PROT_WRITE, syscall.MAP_PRIVATE|syscall.MAP_ANON)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { syscall.Munmap(mem) })
	return mem
}

func (r *rig) region(ep *Endpoint, n int, access msgbuf.Access) *Region {
	r.Helper()
	reg, err := ep.Register(mapped(r.TB.(*testing.T), n), access)
	if err != nil {
		r.Fatal(err)
	}
	r.Cleanup(func() {
		if err := reg.Close(); err != nil {
			r.Errorf("close region: %v", err)
		}
	})
	return reg
}

func TestRegisteredMemoryIsSentFromAndReceivedInto(t *testing.T) {
	r := newRig(t)
	s := r.connect()
	from, to := r.region(r.cli, 8<<20, msgbuf.RemoteRead), r.region(r.cli, 8<<20, msgbuf.Local)
	atServer := r.region(r.srv, 4<<20, msgbuf.RemoteRead)
	r.srv.Handle(rigEcho, func(h *RequestHandle) (msgbuf.Buf, error) {
		buf, err := atServer.Buf(77, len(h.Bytes()))
		if err == nil {
			copy(buf.Bytes(), h.Bytes())
		}
		return buf, err
	})
	for i, n := range []int{0, 1, 100, 4000, 5000, 1 << 20, 3<<20 + 5} {
		req, err := from.Buf(i*13, n)
		if err != nil {
			t.Fatal(err)
		}
		resp, err := to.Buf(i*17, n)
		if err != nil {
			t.Fatal(err)
		}
		fill(req, uint64(i))
		if err := r.call(s, rigEcho, req, resp); err != nil || !bytes.Equal(req.Bytes(), to.Bytes()[i*17:][:n]) {
			t.Errorf("%d bytes: %v", n, err)
		}
		req.Free()
		resp.Free()
	}
	r.closeSession(s)
	if err := atServer.Close(); err != nil {
		t.Errorf("the server's views are not freed: %v", err)
	}
}

func TestLocalMemoryIsNotOfferedToPeers(t *testing.T) {
	r := newRig(t)
	s := r.connect()
	local := r.region(r.cli, 1<<20, msgbuf.Local)
	req, err := local.Buf(0, 100_000)
	if err != nil {
		t.Fatal(err)
	}
	if err := r.call(s, rigEcho, req, msgbuf.Buf{}); !errors.Is(err, ErrBuffer) {
		t.Errorf("a large request from local memory: %v", err)
	}
	req.Free()
	r.closeSession(s)
}

func TestMemoryOfAnotherEndpointIsRefused(t *testing.T) {
	r := newRig(t)
	s := r.connect()
	other := r.region(r.srv, 1<<20, msgbuf.RemoteRead)
	buf, err := other.Buf(0, 64)
	if err != nil {
		t.Fatal(err)
	}
	if err := r.call(s, rigEcho, buf, msgbuf.Buf{}); !errors.Is(err, ErrBuffer) {
		t.Errorf("as a request: %v", err)
	}
	if err := r.call(s, rigEcho, msgbuf.Buf{}, buf); !errors.Is(err, ErrBuffer) {
		t.Errorf("as room for the response: %v", err)
	}
	buf.Free()
	if err := r.call(s, rigEcho, buf, msgbuf.Buf{}); !errors.Is(err, ErrBuffer) {
		t.Errorf("freed: %v", err)
	}
	r.closeSession(s)
}

func TestRegionInUseIsNotDeregistered(t *testing.T) {
	r := newRig(t)
	s := r.connect()
	region := r.region(r.cli, 1<<20, msgbuf.RemoteRead)
	req, err := region.Buf(0, 1<<20)
	if err != nil {
		t.Fatal(err)
	}
	var ended error
	over := false
	s.Enqueue(rigHold, req, msgbuf.Buf{}, 0, func(q *Request) { over, ended = true, q.Err() })
	r.poll(func() bool { return r.srv.e.Stats.Handled == 1 })
	var inUse *msgbuf.InUseError
	if err := region.Close(); !errors.As(err, &inUse) {
		t.Errorf("close of a region under way: %v", err)
	}
	r.closeSession(s)
	if !over || !errors.Is(ended, ErrSessionClosed) {
		t.Errorf("%v, %v", over, ended)
	}
	req.Free()
}
