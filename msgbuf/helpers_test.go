package msgbuf

import (
	"fmt"
	"os"
	"sync/atomic"
	"testing"
)

func TestMain(m *testing.M) {
	code := m.Run()
	if n := mappedBytes.Load(); n != 0 && code == 0 {
		fmt.Fprintf(os.Stderr, "%d bytes stay mapped\n", n)
		code = 1
	}
	os.Exit(code)
}

// fakeDevice registers memory in name only and counts.
type fakeDevice struct {
	regions  atomic.Int64 // registered now
	bytes    atomic.Int64
	keys     atomic.Uint32
	calls    atomic.Int64 // of Register
	failOver int          // registering more than this fails with failWith; 0: never
	failWith error
	stuck    error // deregistering fails with this
}

type fakeRegistration struct {
	d    *fakeDevice
	key  uint32
	size int
	open bool
}

func (d *fakeDevice) Register(mem []byte, access Access) (Registration, error) {
	d.calls.Add(1)
	if d.failWith != nil && len(mem) > d.failOver {
		return nil, d.failWith
	}
	if addrOf(mem)%hugePage != 0 || len(mem)%hugePage != 0 {
		return nil, fmt.Errorf("region %#x+%#x is not aligned", addrOf(mem), len(mem))
	}
	d.regions.Add(1)
	d.bytes.Add(int64(len(mem)))
	return &fakeRegistration{d: d, key: d.keys.Add(1), size: len(mem), open: true}, nil
}

func (r *fakeRegistration) LKey() uint32 { return r.key }
func (r *fakeRegistration) RKey() uint32 { return r.key | 1<<31 }
func (r *fakeRegistration) Close() error {
	if r.d.stuck != nil {
		return r.d.stuck
	}
	if !r.open {
		panic("deregistered twice")
	}
	r.open = false
	r.d.regions.Add(-1)
	r.d.bytes.Add(-int64(r.size))
	return nil
}

// newTestPool returns a pool whose end must leave nothing registered.
func newTestPool(t testing.TB, access Access, opts ...Option) (*Pool, *fakeDevice) {
	d := new(fakeDevice)
	p := NewPool(d, access, opts...)
	t.Cleanup(func() {
		if err := p.Close(); err != nil {
			t.Error(err)
		}
		if n, b := d.regions.Load(), d.bytes.Load(); n != 0 || b != 0 {
			t.Errorf("%d regions of %d bytes stay registered", n, b)
		}
	})
	return p, d
}

func mustAlloc(t testing.TB, p *Pool, n int) Buf {
	t.Helper()
	b, err := p.Alloc(n)
	if err != nil {
		t.Fatal(err)
	}
	return b
}
