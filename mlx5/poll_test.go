package mlx5

import (
	"encoding/binary"
	"testing"

	"github.com/rrppcc-go/rrppcc/mlx5/internal/prm"
	"github.com/rrppcc-go/rrppcc/uverbs"
)

func pollQP(tb testing.TB) *qp {
	_, q, _ := newBench(tb, uverbs.QPTypeRC, uverbs.QPCap{MaxSendWR: 16, MaxRecvWR: 16, MaxSendSGE: 1, MaxRecvSGE: 1})
	for i := range 8 {
		if _, err := q.PostSend([]uverbs.SendWR{{WRID: uint64(i), Opcode: uverbs.WRSend}}); err != nil {
			tb.Fatal(err)
		}
		if _, err := q.PostRecv([]uverbs.RecvWR{{WRID: uint64(i)}}); err != nil {
			tb.Fatal(err)
		}
	}
	return q
}

// TestPollRefusesImpossibleEntries checks that each is consumed, reported, and
// retires nothing.
func TestPollRefusesImpossibleEntries(t *testing.T) {
	cases := map[string]func(q *qp, c *cq) []byte{
		"unknown QP": func(q *qp, c *cq) []byte {
			b := c.cqe(0, q, prm.CQEReq, prm.OpcodeSend, 0)
			binary.BigEndian.PutUint32(b[32:], 77)
			return b
		},
		"QP number of another QP": func(q *qp, c *cq) []byte {
			b := c.cqe(0, q, prm.CQEReq, prm.OpcodeSend, 0)
			b[59]++
			return b
		},
		"send not posted":       func(q *qp, c *cq) []byte { return c.cqe(0, q, prm.CQEReq, prm.OpcodeSend, 8) },
		"send of another lap":   func(q *qp, c *cq) []byte { return c.cqe(0, q, prm.CQEReq, prm.OpcodeSend, uint16(q.sq.entries)) },
		"receive not posted":    func(q *qp, c *cq) []byte { return c.cqe(0, q, prm.CQERespSend, 0, 8) },
		"unknown operation":     func(q *qp, c *cq) []byte { return c.cqe(0, q, prm.CQEReq, 0x77, 0) },
		"unknown opcode":        func(q *qp, c *cq) []byte { return c.cqe(0, q, 9, 0, 0) },
		"data within the CQE":   func(q *qp, c *cq) []byte { b := c.cqe(0, q, prm.CQERespSend, 0, 0); b[63] |= 4; return b },
		"error of nothing":      func(q *qp, c *cq) []byte { return c.cqe(0, q, prm.CQEReqErr, 0, 100) },
		"receive error of none": func(q *qp, c *cq) []byte { return c.cqe(0, q, prm.CQERespErr, 0, 0xffff) },
	}
	for name, make := range cases {
		t.Run(name, func(t *testing.T) {
			q := pollQP(t)
			for _, c := range []*cq{q.sendCQ, q.recvCQ} {
				b := make(q, c)
				op := b[63] >> 4
				c.put(0, b)
				// A good one behind it is not lost.
				good, counter := byte(prm.CQEReq), uint16(3)
				if c == q.recvCQ {
					good, counter = prm.CQERespSend, 0
				}
				c.put(1, c.cqe(1, q, good, prm.OpcodeSend, counter))
				wcs := []uverbs.WC{{}, {}}
				n, err := c.Poll(wcs)
				if n != 0 || err != uverbs.ErrCQCorrupt || c.ci != 1 || c.db.Load(prm.CQCI) != 1 {
					t.Fatalf("op %d: %d, %v, ci %d", op, n, err, c.ci)
				}
				if name != "unknown operation" && (q.sq.tail.Load() != 0 && c == q.sendCQ || q.rq.tail.Load() != 0) {
					t.Errorf("retired %d, %d", q.sq.tail.Load(), q.rq.tail.Load())
				}
				if n, err := c.Poll(wcs); n != 1 || err != nil || wcs[0].WRID != uint64(counter) {
					t.Errorf("the next: %d, %v, %+v", n, err, wcs[0])
				}
			}
		})
	}
}

// TestPollRefusesWrongCQ checks that a send completion does not count in the
// receive CQ, nor a second time.
func TestPollRefusesWrongCQ(t *testing.T) {
	q := pollQP(t)
	wcs := make([]uverbs.WC, 4)
	c := q.recvCQ
	c.put(0, c.cqe(0, q, prm.CQEReq, prm.OpcodeSend, 0))
	if n, err := c.Poll(wcs); n != 0 || err != uverbs.ErrCQCorrupt {
		t.Errorf("%d, %v", n, err)
	}
	c = q.sendCQ
	c.put(0, c.cqe(0, q, prm.CQEReq, prm.OpcodeSend, 2))
	c.put(1, c.cqe(1, q, prm.CQEReq, prm.OpcodeSend, 2))
	if n, err := c.Poll(wcs); n != 1 || err != uverbs.ErrCQCorrupt || wcs[0].WRID != 2 {
		t.Errorf("%d, %v", n, err)
	}
}

// TestPollServesSeveralQPs checks the bookkeeping of a burst that switches
// between QPs.
func TestPollServesSeveralQPs(t *testing.T) {
	r := openRig(t, newFakeKernel(t))
	r.drv.uars.kick = nil
	both := r.cq(63)
	layout, err := layoutQP(&r.drv.lim, uverbs.QPCap{MaxSendWR: 16, MaxRecvWR: 16, MaxSendSGE: 1, MaxRecvSGE: 1}, overheadRC)
	if err != nil {
		t.Fatal(err)
	}
	var qps []*qp
	for i := range 3 {
		q := r.qpWith(uverbs.QPTypeRC, both, both, layout, false, 500+uint32(i), 0)
		qps = append(qps, q)
		for j := range 6 {
			q.PostSend([]uverbs.SendWR{{WRID: uint64(i*100 + j), Opcode: uverbs.WRSend}})
			q.PostRecv([]uverbs.RecvWR{{WRID: uint64(1000 + i*100 + j)}})
		}
	}
	c := qps[0].sendCQ
	var want []uint64
	at := uint32(0)
	for j := range 6 {
		for i, q := range qps {
			c.put(at, c.cqe(at, q, prm.CQEReq, prm.OpcodeSend, uint16(j)))
			c.put(at+1, c.cqe(at+1, q, prm.CQERespSendImm, 0, uint16(j)))
			at += 2
			want = append(want, uint64(i*100+j), uint64(1000+i*100+j))
		}
	}
	wcs := make([]uverbs.WC, 64)
	n, err := c.Poll(wcs)
	if n != len(want) || err != nil {
		t.Fatalf("%d, %v", n, err)
	}
	for i, id := range want {
		if wcs[i].WRID != id {
			t.Errorf("completion %d: %d, want %d", i, wcs[i].WRID, id)
		}
	}
	for _, q := range qps {
		if q.sq.tail.Load() != 6 || q.rq.tail.Load() != 6 {
			t.Errorf("retired %d, %d", q.sq.tail.Load(), q.rq.tail.Load())
		}
	}
}

// FuzzPollShared polls rings of arbitrary entries of 128 bytes, with data in
// them, of a QP on an SRQ: no panic, no receive twice.
func FuzzPollShared(f *testing.F) {
	f.Setenv("MLX5_SCATTER_TO_CQE", "1")
	f.Setenv("MLX5_CQE_SIZE", "128")
	open := func(tb testing.TB) (*uverbs.SRQ, *qp) {
		_, us, qps := srqRig(tb, 7, 1, 15)
		post(tb, us, 0, 7)
		return us, qps[0]
	}
	_, q := open(f)
	for _, op := range []byte{prm.CQEReq, prm.CQERespSend, prm.CQERespSendInv, prm.CQERespErr, prm.CQEResize} {
		for _, format := range []byte{0, prm.CQEScatter32, prm.CQEScatter64, prm.CQEFormatMask} {
			e := q.recvCQ.cqe(0, q, op, prm.OpcodeRDMARead, 3)
			e[63] |= format
			f.Add(append(make([]byte, 64), e...))
		}
	}
	f.Add(append(make([]byte, 64), fault(q.recvCQ, 0, q, 2)...))
	f.Fuzz(func(t *testing.T, data []byte) {
		us, q := open(t)
		s, c := shared(us), q.recvCQ
		entries := 0
		for ; len(data) >= 128 && entries < 15; entries++ {
			c.put(uint32(entries), data[:128])
			data = data[128:]
		}
		wcs := make([]uverbs.WC, 4)
		done := 0
		for range entries + 1 {
			n, _ := c.Poll(wcs)
			done += n
			for _, wc := range wcs[:n] {
				if wc.WRID > 6 || wc.QPN != q.qpn {
					t.Fatalf("%+v", wc)
				}
			}
		}
		if free := room(us); done > 7 || free != done {
			t.Fatalf("%d completions, room for %d", done, free)
		}
		if s.gate.Load() != 0 {
			t.Fatal("the gate is shut")
		}
	})
}

// FuzzPollCQE polls rings of arbitrary entries: no panic, nothing is returned
// that was not posted, and everything valid is consumed.
func FuzzPollCQE(f *testing.F) {
	q := pollQP(f)
	for _, op := range []byte{prm.CQEReq, prm.CQERespWrImm, prm.CQERespSend, prm.CQERespSendImm, prm.CQERespSendInv, prm.CQEReqErr, prm.CQERespErr} {
		f.Add(append(q.sendCQ.cqe(0, q, op, prm.OpcodeSend, 1), q.sendCQ.cqe(1, q, op, prm.OpcodeRDMARead, 2)...))
	}
	f.Add(make([]byte, 64))
	f.Fuzz(func(t *testing.T, data []byte) {
		q := pollQP(t)
		for _, c := range []*cq{q.sendCQ, q.recvCQ} {
			n := uint32(0)
			for ; len(data) >= int(n+1)*prm.CQEBytes && n < c.mask; n++ {
				c.put(n, data[n*prm.CQEBytes:][:prm.CQEBytes])
			}
			wcs := make([]uverbs.WC, 3)
			total := 0
			for range n + 1 {
				got, _ := c.Poll(wcs)
				total += got
				for _, wc := range wcs[:got] {
					if wc.WRID > 7 || wc.QPN != q.qpn {
						t.Fatalf("%+v", wc)
					}
				}
			}
			if total > 8 {
				t.Fatalf("%d completions of 8 posted", total)
			}
			if c.ci < n && c.written(c.ci) {
				t.Fatalf("entry %d of %d is left", c.ci, n)
			}
			if c.ci > n {
				t.Fatalf("consumed %d of %d", c.ci, n)
			}
		}
	})
}
