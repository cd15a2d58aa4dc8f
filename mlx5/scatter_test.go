package mlx5

import (
	"bytes"
	"encoding/binary"
	"errors"
	"syscall"
	"testing"

	kabi "github.com/rrppcc-go/rrppcc/internal/abi"
	"github.com/rrppcc-go/rrppcc/mlx5/internal/abi"
	"github.com/rrppcc-go/rrppcc/mlx5/internal/prm"
	"github.com/rrppcc-go/rrppcc/uverbs"
)

// flags of the last create QP.
func (k *fakeKernel) qpFlags() uint32 {
	for i := len(k.commands) - 1; ; i-- {
		if c := &k.commands[i]; c.object == kabi.UVERBS_OBJECT_QP && c.method == kabi.UVERBS_METHOD_QP_CREATE {
			return decode[abi.Mlx5_ib_create_qp](c.attrs[kabi.UVERBS_ATTR_UHW_IN].in).Flags
		}
	}
}

// TestScatterToCQEIsAskedFor checks that the kernel hears of it only if the
// environment says so.
func TestScatterToCQEIsAskedFor(t *testing.T) {
	for i, v := range []string{"", "0", "1"} { // not set at first
		want := v == "1"
		if i > 0 {
			t.Setenv("MLX5_SCATTER_TO_CQE", v)
		}
		r := openRig(t, newFakeKernel(t))
		cq := r.cq(7)
		qp, err := r.pd.CreateQP(&uverbs.QPInitAttr{Type: uverbs.QPTypeRC, SendCQ: cq, RecvCQ: cq, Cap: uverbs.QPCap{MaxSendWR: 1, MaxSendSGE: 1}})
		if err != nil {
			t.Fatal(err)
		}
		if got := r.k.qpFlags()&abi.MLX5_QP_FLAG_SCATTER_CQE != 0; got != want || quePair(qp).inline != want {
			t.Errorf("%q: asked for: %v", v, got)
		}
	}
}

// TestCQESizeOfEnvironment checks the values.
func TestCQESizeOfEnvironment(t *testing.T) {
	t.Setenv("MLX5_CQE_SIZE", "96")
	if err := session(newFakeKernel(t)); !errors.Is(err, syscall.EINVAL) {
		t.Error(err)
	}
	for v, want := range map[string]uint32{"64": 64, "128": 128} {
		t.Setenv("MLX5_CQE_SIZE", v)
		r := openRig(t, newFakeKernel(t))
		c := r.cq(7).Driver().(*cq)
		in := r.k.commands[len(r.k.commands)-1].attrs[kabi.UVERBS_ATTR_UHW_IN].in
		req := decode[abi.Mlx5_ib_create_cq](in)
		if c.stride != want || req.Cqe_size != want || req.Cqe_comp_en != 0 {
			t.Errorf("%s: %d bytes, %+v", v, c.stride, req)
		}
	}
}

// TestScatterToCQE receives and reads data of all lengths through completions,
// with elements of many shapes and READs at every place of the ring.
func TestScatterToCQE(t *testing.T) {
	t.Setenv("MLX5_SCATTER_TO_CQE", "1")
	mem, err := allocMemory(4096)
	if err != nil {
		t.Fatal(err)
	}
	defer freeMemory(mem)
	for _, large := range []bool{false, true} {
		format, most := byte(prm.CQEScatter32), 32
		if large {
			t.Setenv("MLX5_CQE_SIZE", "128")
			format, most = prm.CQEScatter64, 64
		}
		_, q, _ := newBench(t, uverbs.QPTypeRC, uverbs.QPCap{MaxSendWR: 8, MaxRecvWR: 8, MaxSendSGE: 4, MaxRecvSGE: 4})
		_, us, sharing := srqRig(t, 7, 1, 31)
		entry := func(c *cq, q *qp, op, wqeOp byte, i uint16, n int) []byte {
			b := c.cqe(0, q, op, wqeOp, i)
			binary.BigEndian.PutUint32(b[44:], uint32(n))
			b[63] |= format
			if large {
				b = append(make([]byte, 64), b...)
			}
			for k := range n {
				b[k] = byte(k + 1)
			}
			return b
		}
		wcs := make([]uverbs.WC, 1)
		for n := 0; n <= most; n++ {
			for shape, lens := range [][]uint32{{100}, {0, 5, 0, 100}, {1, 1, 1, 61}, {10, 0, 3}} {
				room := 0
				var sges []uverbs.SGE
				var want []byte
				clear(mem)
				for i, l := range lens {
					sges = append(sges, uverbs.SGE{Addr: prm.Addr(&mem[i*200]), Length: l})
					for k := range min(int(l), max(n-room, 0)) {
						want = append(want, byte(room+k+1))
					}
					room += int(l)
				}
				check := func(what string, c *cq, e []byte) {
					t.Helper()
					c.put(0, e)
					k, err := c.Poll(wcs)
					status := uverbs.WCSuccess
					if n > room {
						status = uverbs.WCLocLenErr
					}
					if k != 1 || err != nil || wcs[0].Status != status || wcs[0].ByteLen != uint32(n) {
						t.Fatalf("%s of %d bytes into %v: %d, %v, %+v", what, n, lens, k, err, wcs[0])
					}
					var got []byte
					for i, l := range lens {
						got = append(got, mem[i*200:][:l]...)
						if mem[i*200+int(l)] != 0 {
							t.Fatalf("%s of %d bytes into %v: beyond element %d", what, n, lens, i)
						}
					}
					if !bytes.Equal(got[:len(want)], want) || bytes.ContainsFunc(got[len(want):], func(r rune) bool { return r != 0 }) {
						t.Fatalf("%s of %d bytes into %v: %x", what, n, lens, got)
					}
					clear(mem)
				}
				if len(lens) <= 3 { // an SRQ of two elements has room for three
					i := uint16(shared(us).head)
					if _, err := us.PostRecv([]uverbs.RecvWR{{SGList: sges}}); err != nil {
						t.Fatal(err)
					}
					c := sharing[0].recvCQ
					check("shared receive", c, entry(c, sharing[0], prm.CQERespSend, 0, i, n))
				}
				i := uint16(q.rq.head)
				if _, err := q.PostRecv([]uverbs.RecvWR{{SGList: sges}}); err != nil {
					t.Fatal(err)
				}
				check("receive", q.recvCQ, entry(q.recvCQ, q, prm.CQERespSend, 0, i, n))
				i = uint16(q.sq.pi)
				if _, err := q.PostSend([]uverbs.SendWR{{Opcode: uverbs.WRRDMARead, SGList: sges}}); err != nil {
					t.Fatal(err)
				}
				check("READ", q.sendCQ, entry(q.sendCQ, q, prm.CQEReq, prm.OpcodeRDMARead, i, n))
				if shape == 0 && n == 8 {
					i = uint16(q.sq.pi)
					if _, err := q.PostSend([]uverbs.SendWR{{Opcode: uverbs.WRAtomicFetchAndAdd, SGList: sges}}); err != nil {
						t.Fatal(err)
					}
					check("atomic", q.sendCQ, entry(q.sendCQ, q, prm.CQEReq, prm.OpcodeAtomicFA, i, n))
				}
			}
		}
	}
}

// TestPollRefusesStrangeFormats checks data that were not asked for, that cannot
// be of that size, and compressed entries.
func TestPollRefusesStrangeFormats(t *testing.T) {
	for _, asked := range []bool{false, true} {
		if asked {
			t.Setenv("MLX5_SCATTER_TO_CQE", "1")
		}
		for name, c := range map[string]struct {
			typ    uverbs.QPType
			format byte
			n      uint32
			ok     bool
		}{
			"32 bytes":            {uverbs.QPTypeRC, prm.CQEScatter32, 32, asked},
			"33 bytes of 32":      {uverbs.QPTypeRC, prm.CQEScatter32, 33, false},
			"64 in a small entry": {uverbs.QPTypeRC, prm.CQEScatter64, 8, false},
			"compressed":          {uverbs.QPTypeRC, prm.CQEFormatMask, 8, false},
			"datagram":            {uverbs.QPTypeUD, prm.CQEScatter32, 8, false},
		} {
			_, q, _ := newBench(t, c.typ, uverbs.QPCap{MaxSendWR: 1, MaxRecvWR: 4, MaxSendSGE: 1, MaxRecvSGE: 1})
			mem, err := allocMemory(4096)
			if err != nil {
				t.Fatal(err)
			}
			q.PostRecv([]uverbs.RecvWR{{SGList: []uverbs.SGE{{Addr: prm.Addr(&mem[0]), Length: 64}}}})
			e := q.recvCQ.cqe(0, q, prm.CQERespSend, 0, 0)
			binary.BigEndian.PutUint32(e[44:], c.n)
			e[63] |= c.format
			q.recvCQ.put(0, e)
			n, err := q.recvCQ.Poll(make([]uverbs.WC, 1))
			if c.ok != (n == 1 && err == nil) || !c.ok && err != uverbs.ErrCQCorrupt {
				t.Errorf("%s, asked %v: %d, %v", name, asked, n, err)
			}
			freeMemory(mem)
		}
	}
}

// TestLargeEntriesKeepTheirData moves entries of 128 bytes, with data in their
// first half, within the ring as a QP is closed, and to another ring.
func TestLargeEntriesKeepTheirData(t *testing.T) {
	t.Setenv("MLX5_SCATTER_TO_CQE", "1")
	t.Setenv("MLX5_CQE_SIZE", "128")
	r := openRig(t, newFakeKernel(t))
	r.drv.uars.kick = nil
	ucq := r.cq(7)
	c := ucq.Driver().(*cq)
	layout := smallLayout(t, r)
	a, b := r.qpWith(uverbs.QPTypeRC, ucq, ucq, layout, false, 500, 0), r.qpWith(uverbs.QPTypeRC, ucq, ucq, layout, false, 501, 0)
	mem, err := allocMemory(4096)
	if err != nil {
		t.Fatal(err)
	}
	defer freeMemory(mem)
	for i := range 2 {
		a.PostRecv([]uverbs.RecvWR{{SGList: []uverbs.SGE{{Addr: prm.Addr(&mem[i*64]), Length: 64}}}})
		b.PostRecv([]uverbs.RecvWR{{}})
	}
	data := bytes.Repeat([]byte("0123456789abcdef"), 8)
	for i, q := range []*qp{a, b, a, b} {
		e := c.cqe(uint32(i), q, prm.CQERespSend, 0, uint16(i/2))
		e[63] |= prm.CQEScatter64
		c.put(uint32(i), append(append([]byte(nil), data[i/2*3:][:64]...), e...))
	}
	b.Close()
	r.k.onResize = func(uint32, *abi.Mlx5_ib_resize_cq) { c.at(4).StoreLast(prm.CQEResize << 4) }
	if err := ucq.Resize(31); err != nil {
		t.Fatal(err)
	}
	if n, err := c.Poll(make([]uverbs.WC, 4)); n != 2 || err != nil {
		t.Fatal(n, err)
	}
	if !bytes.Equal(mem[:64], data[:64]) || !bytes.Equal(mem[64:128], data[3:67]) {
		t.Errorf("%q", mem[:128])
	}
	a.Close()
}
