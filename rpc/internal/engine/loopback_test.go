package engine

import (
	"fmt"
	"testing"
	"time"
	"unsafe"

	"github.com/rrppcc-go/rrppcc/msgbuf"
	"github.com/rrppcc-go/rrppcc/rpc/congestion"
)

// loopback is two engines on one goroutine, and rings where the NICs would be:
// what one side posts is copied, once, into a buffer of the other side's receive
// ring, and what that side polls is the ring. It is what the engine costs by
// itself, with one clock reading per turn of a loop, as its owner has.
type loopback struct {
	testing.TB
	ends  [2]*ringEnd
	epoch time.Time
	calls []Call
	left  int // calls still to be started
	open  int
	err   error
	pairs []*Session
}

// ringEnd is an engine and its receive ring.
type ringEnd struct {
	e      *Engine
	qpn    uint32
	slots  [][]byte
	free   []uint32
	filled []Rx // what has arrived and was not polled
}

const (
	loopbackRing  = 512
	loopbackBurst = 32
)

func newLoopback(tb testing.TB, mtu, bytes, outstanding int, changes ...func(*Config)) *loopback {
	l := &loopback{TB: tb, epoch: time.Now()}
	m := &memory{}
	for i := range l.ends {
		ep := newEndpoint(tb, m, uint32(11+i), 0, func(c *Config) {
			c.Window, c.MaxSmall, c.MaxInline, c.MaxMsg = 8, mtu-HeaderBytes, 128, 256<<20
			c.InitialRTO, c.MinRTO, c.MaxRTO = 20*ms, 5*ms, 500*ms
			c.Burst = loopbackBurst
			for _, f := range changes {
				f(c)
			}
		})
		n := &ringEnd{e: ep.e, qpn: ep.qpn, filled: make([]Rx, 0, loopbackRing)}
		for slot := range loopbackRing {
			n.slots = append(n.slots, make([]byte, mtu))
			n.free = append(n.free, uint32(slot))
		}
		l.ends[i] = n
	}
	c, s := l.ends[0], l.ends[1]
	for range (outstanding + 7) / 8 {
		cs, ss := c.e.NewSession(true, 0xc1c1c1c1), s.e.NewSession(false, 0x51515151)
		cs.Connect(0, Peer{Session: ss.Index(), Token: ss.Token(), QPN: s.qpn, MaxSmall: mtu - HeaderBytes})
		ss.Connect(0, Peer{Session: cs.Index(), Token: cs.Token(), QPN: c.qpn, MaxSmall: mtu - HeaderBytes})
		l.pairs = append(l.pairs, cs)
	}
	s.e.Handle(1, func(h *Handle) (msgbuf.Buf, error) {
		resp, err := h.Response(min(len(h.Data()), 32))
		if err == nil {
			copy(resp.Bytes(), h.Data())
		}
		return resp, err
	})
	l.calls = make([]Call, outstanding)
	for i := range l.calls {
		req, err := c.e.Alloc(bytes)
		if err != nil {
			tb.Fatal(err)
		}
		resp, err := c.e.Alloc(32)
		if err != nil {
			tb.Fatal(err)
		}
		stream(uint64(i), req.Bytes())
		cs := l.pairs[i%len(l.pairs)]
		l.calls[i] = Call{Type: 1, Req: req, Resp: resp, Fn: func(call *Call) {
			l.open--
			if call.Err != nil {
				l.err = call.Err
			}
			if l.left > 0 {
				l.left--
				l.open++
				cs.Start(c.e.now, call)
			}
		}}
	}
	return l
}

// poll is one turn of the loop of end, as Endpoint.poll and the transport do it.
func (l *loopback) poll(end *ringEnd, now int64) {
	e := end.e
	n := min(len(end.filled), loopbackBurst)
	burst := end.filled[:n]
	e.Receive(now, burst)
	if n > 0 {
		for i := range burst {
			if !burst[i].Held {
				end.free = append(end.free, burst[i].Slot)
			}
		}
		end.filled = end.filled[:copy(end.filled, end.filled[n:])]
	}
	e.Tick(now)
	for range 4 {
		if e.Unstamped() {
			e.Stamp(int64(time.Since(l.epoch)))
		}
		l.post(end)
		e.Flushed()
		if e.Idle() {
			break
		}
	}
	if len(e.Released) > 0 {
		end.free = append(end.free, e.Released...)
		e.Released = e.Released[:0]
	}
}

func (l *loopback) post(end *ringEnd) {
	e, to := end.e, l.ends[0]
	if to == end {
		to = l.ends[1]
	}
	for i := range e.Tx {
		tx := &e.Tx[i]
		n := len(to.free)
		if n == 0 { // lost, as on a NIC
			e.TxDone(tx.Token)
			continue
		}
		slot := to.free[n-1]
		to.free = to.free[:n-1]
		b := to.slots[slot]
		k := copy(b, tx.Head[:tx.HeadLen])
		if tx.Data.Len > 0 {
			k += copy(b[k:], memoryAt(tx.Data.Addr, uint64(tx.Data.Len)))
		}
		to.filled = to.filled[:len(to.filled)+1]
		rx := &to.filled[len(to.filled)-1]
		rx.Data, rx.Slot, rx.SrcQPN = b[:k], slot, end.qpn
		e.TxDone(tx.Token)
	}
	for i := range e.Reads {
		r := &e.Reads[i]
		copy(memoryAt(r.Local, r.Len), memoryAt(r.Remote, r.Len))
		e.ReadDone(e.now, r.Token, true)
	}
	e.Reads = e.Reads[:0]
}

// memoryAt is what a NIC finds at an address of a pool's memory, which is
// outside the heap.
func memoryAt(addr, n uint64) []byte {
	return unsafe.Slice((*byte)(*(*unsafe.Pointer)(unsafe.Pointer(&addr))), n)
}

// run makes n calls.
func (l *loopback) run(n int) {
	c, s := l.ends[0], l.ends[1]
	l.left = n
	for i := 0; i < len(l.calls) && l.left > 0; i++ {
		l.left--
		l.open++
		l.pairs[i%len(l.pairs)].Start(c.e.now, &l.calls[i])
	}
	for l.open > 0 {
		l.poll(c, int64(time.Since(l.epoch)))
		l.poll(s, int64(time.Since(l.epoch)))
	}
	if l.err != nil {
		l.Fatal(l.err)
	}
}

// BenchmarkLoopback is requests of 32 bytes and as many back, both ends on this
// goroutine.
func BenchmarkLoopback(b *testing.B) {
	for _, mtu := range []int{1024, 4096} {
		for _, outstanding := range []int{1, 8, 32} {
			b.Run(fmt.Sprintf("mtu%d/32B/%d", mtu, outstanding), func(b *testing.B) {
				l := newLoopback(b, mtu, 32, outstanding)
				l.run(1000)
				b.ReportAllocs()
				b.ResetTimer()
				l.run(b.N)
			})
		}
	}
}

// BenchmarkLoopbackCongestion is BenchmarkLoopback with congestion control, off
// and on; custom is the same behind the interface.
func BenchmarkLoopbackCongestion(b *testing.B) {
	for _, mtu := range []int{1024, 4096} {
		for _, outstanding := range []int{1, 8, 32} {
			for _, c := range []struct {
				name    string
				control congestion.Control
			}{{"off", nil}, {"on", congestion.Swift{}}, {"custom", customSwift{}}} {
				b.Run(fmt.Sprintf("mtu%d/32B/%d/%s", mtu, outstanding, c.name), func(b *testing.B) {
					l := newLoopback(b, mtu, 32, outstanding, func(cfg *Config) { cfg.Congestion = c.control })
					l.run(1000)
					b.ReportAllocs()
					b.ResetTimer()
					l.run(b.N)
				})
			}
		}
	}
}

// customSwift is Swift that the engine does not know as such.
type customSwift struct{ congestion.Swift }

func (c customSwift) NewController(window int) congestion.Controller {
	return &customController{c.Swift.NewController(window)}
}

type customController struct{ congestion.Controller }

// BenchmarkLoopbackLarge is large requests, one at a time, with 32 bytes back.
func BenchmarkLoopbackLarge(b *testing.B) {
	for _, bytes := range []int{16 << 10, 64 << 10, 1 << 20, 64 << 20} {
		b.Run(fmt.Sprintf("mtu1024/%dKiB", bytes>>10), func(b *testing.B) {
			l := newLoopback(b, 1024, bytes, 1)
			l.run(10)
			b.SetBytes(int64(bytes))
			b.ReportAllocs()
			b.ResetTimer()
			l.run(b.N)
		})
	}
}

// The loop of the benchmarks loses and sends again nothing, and allocates
// nothing.
func TestLoopbackIsClean(t *testing.T) {
	if raceEnabled {
		t.Skip("built with -race, msgbuf records who frees what")
	}
	for _, bytes := range []int{32, 5000} {
		l := newLoopback(t, 1024, bytes, 32)
		l.run(1000)
		if a := testing.AllocsPerRun(20, func() { l.run(100) }); a != 0 {
			t.Errorf("%d bytes: %v allocations", bytes, a)
		}
		for _, end := range l.ends {
			if st := &end.e.Stats; st.DropSession+st.DropToken+st.DropMalformed+st.DropBusy+st.DropStale != 0 {
				t.Errorf("%d bytes: %+v", bytes, *st)
			}
		}
	}
}
