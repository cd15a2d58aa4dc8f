package engine

import "testing"

// roundTripper runs calls between two engines without a network between them
// and without allocating.
type roundTripper struct {
	p     *pair
	call  Call
	burst [MaxParts]Rx
	bufs  [MaxParts][HeaderBytes + testMaxSmall]byte
	ended bool
}

func newRoundTripper(tb testing.TB, n, parts int, offers bool) *roundTripper {
	r := &roundTripper{p: newPairOfParts(tb, parts, func(c *Config) { c.MaxMsg, c.Offers = 4<<20, offers })}
	r.p.s.e.Handle(1, echo)
	r.call = Call{Type: 1, Req: r.p.c.message(n, 1), Resp: r.p.c.alloc(n), Fn: func(*Call) { r.ended = true }}
	return r
}

// move does what a transport does: what from sends, to receives.
func (r *roundTripper) move(from, to *endpoint) {
	e := from.e
	for i := range e.Reads {
		rd := &e.Reads[i]
		copy(r.p.mem.at(rd.Local, rd.Len, rd.LKey), r.p.mem.at(rd.Remote, rd.Len, rd.RKey&^(1<<31)))
		e.ReadDone(r.p.now, rd.Token, true)
	}
	e.Reads = e.Reads[:0]
	for i := range e.Offers {
		e.OfferDone(r.p.now, e.Offers[i].Token, e.Offers[i].LKey, 1, true) // a key that at takes
	}
	e.Offers = e.Offers[:0]
	for _, token := range e.Withdrawn {
		e.TxDone(token)
	}
	e.Withdrawn = e.Withdrawn[:0]
	k := 0
	for i := 0; i < len(e.Tx); i++ {
		tx := &e.Tx[i]
		b := r.bufs[k][:]
		n := copy(b, tx.Head[:tx.HeadLen])
		if tx.Data.Len > 0 {
			n += copy(b[n:], r.p.mem.at(tx.Data.Addr, uint64(tx.Data.Len), tx.Data.LKey))
		}
		r.burst[k] = Rx{Data: b[:n], SrcQPN: from.qpn}
		k++
		if tx.Token != 0 {
			e.TxDone(tx.Token)
		}
	}
	e.Flushed()
	if k > 0 {
		to.e.Receive(r.p.now, r.burst[:k])
	}
	to.e.Tick(r.p.now)
}

func (r *roundTripper) trip() {
	r.p.now += 3000
	r.ended = false
	r.p.cs.Start(r.p.now, &r.call)
	for i := 0; !r.ended || !r.p.c.e.Idle() || !r.p.s.e.Idle(); i++ {
		if i > 20 {
			r.p.Fatal("the call does not end")
		}
		r.move(r.p.c, r.p.s)
		r.move(r.p.s, r.p.c)
	}
	if r.call.Err != nil {
		r.p.Fatal(r.call.Err)
	}
}

func TestRoundTripsDoNotAllocate(t *testing.T) {
	for _, c := range []struct{ n, parts int }{
		{0, 1}, {32, 1}, {testMaxSmall, 1}, {testMaxSmall + 1, 1}, {100_000, 1}, {1 << 20, 1},
		{100_001, 1}, {testMaxSmall + 1, 4}, {4 * testPart, 4}, {20_000, 64}, {64 * testPart, 64},
	} {
		n := c.n
		r := newRoundTripper(t, n, c.parts, n%2 == 1 || n == 1<<20)
		for range 3 * testWindow {
			r.trip()
		}
		if a := testing.AllocsPerRun(200, r.trip); a != 0 {
			t.Errorf("%d bytes, %d parts: %v allocations per call", n, c.parts, a)
		}
		if sum(r.call.Req.Bytes()) != sum(r.call.Resp.Bytes()) {
			t.Errorf("%d bytes, %d parts: wrong response", n, c.parts)
		}
	}
}

func benchmarkRPC(b *testing.B, n, parts int, offers bool) {
	r := newRoundTripper(b, n, parts, offers)
	b.ReportAllocs()
	for b.Loop() {
		r.trip()
	}
}

// Both engines together, and the copies that stand for the network.
func BenchmarkSmallRPC(b *testing.B)   { benchmarkRPC(b, 32, 1, false) }
func BenchmarkTokenRPC(b *testing.B)   { benchmarkRPC(b, 512, 1, false) }
func BenchmarkPulledRPC(b *testing.B)  { benchmarkRPC(b, 2000, 1, false) }
func BenchmarkPartsRPC(b *testing.B)   { benchmarkRPC(b, 2000, 3, false) }
func BenchmarkOfferedRPC(b *testing.B) { benchmarkRPC(b, 2000, 1, true) }

// BenchmarkSmallRPCWindow keeps the window full, so that a burst carries four.
func BenchmarkSmallRPCWindow(b *testing.B) {
	r := newRoundTripper(b, 32, 1, false)
	calls := make([]Call, testWindow)
	left := 0
	for i := range calls {
		calls[i] = r.call
		calls[i].Resp = r.p.c.alloc(32)
		calls[i].Fn = func(*Call) { left-- }
	}
	b.ReportAllocs()
	for b.Loop() {
		r.p.now += 3000
		left = testWindow
		for i := range calls {
			r.p.cs.Start(r.p.now, &calls[i])
		}
		for left > 0 {
			r.move(r.p.c, r.p.s)
			r.move(r.p.s, r.p.c)
		}
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*testWindow), "ns/rpc")
}
