package mlx5

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"syscall"
	"testing"

	"github.com/rrppcc-go/rrppcc/mlx5/internal/prm"
	"github.com/rrppcc-go/rrppcc/uverbs"
)

// unwrap returns the bytes of the WQE that starts at WQEBB i.
func (s *sendQueue) unwrap(i uint32) []byte {
	ring := prm.Bytes(s.start, s.entries*prm.WQEBBBytes)
	at := i & (s.entries - 1) * prm.WQEBBBytes
	return append(append([]byte(nil), ring[at:]...), ring[:at]...)
}

// TestPostSendWrapsRing posts WQEs of all sizes through many laps of a small
// ring, and reads each back.
func TestPostSendWrapsRing(t *testing.T) {
	mem, err := allocMemory(4096)
	if err != nil {
		t.Fatal(err)
	}
	defer freeMemory(mem)
	for i := range mem {
		mem[i] = byte(i*7 + i>>8)
	}
	for _, typ := range []uverbs.QPType{uverbs.QPTypeUD, uverbs.QPTypeRC} {
		t.Run(typ.String(), func(t *testing.T) {
			r, q, _ := newBench(t, typ, uverbs.QPCap{MaxSendWR: 3, MaxRecvWR: 1, MaxSendSGE: 6, MaxRecvSGE: 1, MaxInline: 300})
			s := &q.sq
			ah := r.ah()
			rnd := rand.New(rand.NewPCG(1, uint64(typ)))
			first := uint32(16)
			if typ == uverbs.QPTypeUD {
				first = overheadUD
			}
			wcs := make([]uverbs.WC, 1)
			for step := range 5000 {
				pi := s.pi
				wr := uverbs.SendWR{WRID: uint64(step), Opcode: uverbs.WRSend, Flags: uverbs.SendSignaled, AH: ah, RemoteQPN: 3}
				if rnd.IntN(2) == 0 {
					wr.Flags |= uverbs.SendInline
				}
				want, left := []byte(nil), 300
				for range rnd.IntN(7) {
					n, off := rnd.IntN(left/2+1), rnd.IntN(3000)
					left -= n
					wr.SGList = append(wr.SGList, uverbs.SGE{Addr: prm.Addr(&mem[off]), Length: uint32(n), LKey: uint32(off)})
					if wr.Flags&uverbs.SendInline != 0 {
						want = append(want, mem[off:off+n]...)
					} else if n > 0 {
						want = binary.BigEndian.AppendUint32(want, uint32(n))
						want = binary.BigEndian.AppendUint32(want, uint32(off))
						want = binary.BigEndian.AppendUint64(want, prm.Addr(&mem[off]))
					}
				}
				if n, err := q.PostSend([]uverbs.SendWR{wr}); n != 1 || err != nil {
					t.Fatalf("step %d: %d, %v", step, n, err)
				}
				wqe := s.unwrap(pi)
				if wr.Flags&uverbs.SendInline != 0 && len(want) > 0 {
					want = append(binary.BigEndian.AppendUint32(nil, uint32(len(want))|1<<31), want...)
				}
				if got := wqe[first:][:len(want)]; !bytes.Equal(got, want) {
					t.Fatalf("step %d at %d:\n got %x\nwant %x", step, pi, got, want)
				}
				ds := (first + uint32(len(want)) + 15) / 16
				if got := binary.BigEndian.Uint32(wqe[4:]); got != q.qpn<<8|ds {
					t.Fatalf("step %d: qpn and ds %#x, want ds %d", step, got, ds)
				}
				if got := binary.BigEndian.Uint32(wqe); got != pi&0xffff<<8|prm.OpcodeSend {
					t.Fatalf("step %d: index and opcode %#x", step, got)
				}
				if s.pi != pi+(ds+3)/4 || q.db.Load(prm.QPSend) != s.pi&0xffff {
					t.Fatalf("step %d: pi %d after %d", step, s.pi, pi)
				}
				c := q.sendCQ
				c.put(0, c.cqe(0, q, prm.CQEReq, prm.OpcodeSend, uint16(pi)))
				if n, err := c.Poll(wcs); n != 1 || err != nil || wcs[0].WRID != uint64(step) || wcs[0].Status != uverbs.WCSuccess {
					t.Fatalf("step %d: %d, %v, %+v", step, n, err, wcs[0])
				}
			}
		})
	}
}

// TestSendQueueHoldsWhatItPromises posts until full, of the largest WQEs, and
// checks that one completion frees what precedes it and no more.
func TestSendQueueHoldsWhatItPromises(t *testing.T) {
	r, q, _ := newBench(t, uverbs.QPTypeRC, uverbs.QPCap{MaxSendWR: 5, MaxRecvWR: 1, MaxSendSGE: 4, MaxRecvSGE: 1})
	_ = r
	s := &q.sq
	wr := uverbs.SendWR{Opcode: uverbs.WRRDMAWrite, SGList: []uverbs.SGE{{Length: 1}, {Length: 2}, {Length: 3}, {Length: 4}}}
	one := func() error {
		wr.WRID++
		_, err := q.PostSend([]uverbs.SendWR{wr})
		return err
	}
	for range s.maxPost {
		if err := one(); err != nil {
			t.Fatal(err)
		}
	}
	if s.pi > s.entries {
		t.Fatalf("%d WQEBBs posted in %d", s.pi, s.entries)
	}
	rings := s.half
	if err := one(); err != uverbs.ErrQueueFull || !errors.Is(err, syscall.ENOMEM) || s.half != rings {
		t.Fatalf("%v", err)
	}
	c, wcs := q.sendCQ, make([]uverbs.WC, 2)
	third := *s.slot(2 * s.pi / s.maxPost)
	c.put(0, c.cqe(0, q, prm.CQEReq, prm.OpcodeRDMAWrite, third.index))
	if n, err := c.Poll(wcs); n != 1 || err != nil || wcs[0].WRID != 3 || wcs[0].Opcode != uverbs.WCRDMAWrite {
		t.Fatalf("%d, %v, %+v", n, err, wcs[0])
	}
	for i := range 3 {
		if err := one(); err != nil {
			t.Fatalf("%d: %v", i, err)
		}
	}
	if err := one(); err != uverbs.ErrQueueFull {
		t.Fatalf("%v", err)
	}
}

// TestPostSendRefuses checks each refusal at the head and in the middle of a
// list: what precedes it is posted and rung, with its own WQE.
func TestPostSendRefuses(t *testing.T) {
	other := openRig(t, newFakeKernel(t)).ah()
	for _, typ := range []uverbs.QPType{uverbs.QPTypeUD, uverbs.QPTypeUC, uverbs.QPTypeRC} {
		r, q, retire := newBench(t, typ, uverbs.QPCap{MaxSendWR: 8, MaxRecvWR: 1, MaxSendSGE: 2, MaxRecvSGE: 1, MaxInline: 32})
		s := &q.sq
		good := uverbs.SendWR{Opcode: uverbs.WRSend, AH: r.ah(), SGList: []uverbs.SGE{{Addr: 1, Length: 8}}}
		cases := map[string]struct {
			change func(*uverbs.SendWR)
			want   error
		}{
			"garbage":    {func(w *uverbs.SendWR) { w.Opcode = 200 }, uverbs.ErrBadOpcode},
			"SGEs":       {func(w *uverbs.SendWR) { w.SGList = make([]uverbs.SGE, 3) }, uverbs.ErrTooManySGEs},
			"SGE length": {func(w *uverbs.SendWR) { w.SGList = []uverbs.SGE{{Length: 1 << 31}} }, errSGETooLong},
			"inline": {func(w *uverbs.SendWR) {
				w.Flags, w.SGList = uverbs.SendInline, []uverbs.SGE{{Length: s.maxInline}, {Length: 1}}
			}, uverbs.ErrInlineTooLong},
			"inline overflow": {func(w *uverbs.SendWR) {
				w.Flags, w.SGList = uverbs.SendInline, []uverbs.SGE{{Length: 1<<32 - 1}, {Length: 1<<32 - 1}}
			}, uverbs.ErrInlineTooLong},
		}
		if typ == uverbs.QPTypeUD {
			cases["no AH"] = struct {
				change func(*uverbs.SendWR)
				want   error
			}{func(w *uverbs.SendWR) { w.AH = nil }, uverbs.ErrBadAH}
			cases["AH of another device"] = struct {
				change func(*uverbs.SendWR)
				want   error
			}{func(w *uverbs.SendWR) { w.AH = other }, uverbs.ErrBadAH}
			for _, op := range []uverbs.WROpcode{uverbs.WRRDMARead, uverbs.WRLocalInv, uverbs.WRBindMW, uverbs.WRSendWithInv, uverbs.WRAtomicCmpAndSwp, uverbs.WRAtomicFetchAndAdd} {
				cases[op.String()] = struct {
					change func(*uverbs.SendWR)
					want   error
				}{func(w *uverbs.SendWR) { w.Opcode = op }, uverbs.ErrBadOpcode}
			}
		} else {
			if typ == uverbs.QPTypeUC {
				for _, op := range []uverbs.WROpcode{uverbs.WRRDMARead, uverbs.WRSendWithInv, uverbs.WRAtomicCmpAndSwp, uverbs.WRAtomicFetchAndAdd} {
					cases[op.String()] = struct {
						change func(*uverbs.SendWR)
						want   error
					}{func(w *uverbs.SendWR) { w.Opcode = op }, uverbs.ErrBadOpcode}
				}
			}
			for name, c := range map[string]struct {
				change func(*uverbs.SendWR)
				want   error
			}{
				"atomic inline":     {func(w *uverbs.SendWR) { w.Opcode, w.Flags = uverbs.WRAtomicCmpAndSwp, uverbs.SendInline }, errAtomicSGE},
				"atomic of nothing": {func(w *uverbs.SendWR) { w.Opcode, w.SGList = uverbs.WRAtomicCmpAndSwp, nil }, errAtomicSGE},
				"atomic of 7 bytes": {func(w *uverbs.SendWR) { w.Opcode, w.SGList = uverbs.WRAtomicFetchAndAdd, []uverbs.SGE{{Length: 7}} }, errAtomicSGE},
				"atomic in two":     {func(w *uverbs.SendWR) { w.Opcode, w.SGList = uverbs.WRAtomicFetchAndAdd, make([]uverbs.SGE, 2) }, errAtomicSGE},
				"no binding":        {func(w *uverbs.SendWR) { w.Opcode = uverbs.WRBindMW }, errNoWindow},
				"no window":         {func(w *uverbs.SendWR) { w.Opcode, w.Bind = uverbs.WRBindMW, &uverbs.MWBind{Length: 1} }, errNoWindow},
				"long window": {func(w *uverbs.SendWR) {
					w.Opcode, w.Bind = uverbs.WRBindMW, &uverbs.MWBind{MW: new(uverbs.MW), Length: 1<<31 + 1}
				}, errBindLong},
			} {
				if typ == uverbs.QPTypeUC && strings.HasPrefix(name, "atomic") {
					c.want = uverbs.ErrBadOpcode
				}
				cases[name] = c
			}
			cases["inline READ"] = struct {
				change func(*uverbs.SendWR)
				want   error
			}{func(w *uverbs.SendWR) { w.Opcode, w.Flags = uverbs.WRRDMARead, uverbs.SendInline }, uverbs.ErrBadOpcode}
		}
		for name, c := range cases {
			for before := range 3 {
				t.Run(fmt.Sprintf("%v/%s/%d", typ, name, before), func(t *testing.T) {
					bad := good
					c.change(&bad)
					list := []uverbs.SendWR{good, good, good, good}
					list[before] = bad
					pi, half := s.pi, s.half
					page := s.reg.page.mem
					fill(page)
					n, err := q.PostSend(list)
					if n != before || err != c.want || !errors.Is(err, syscall.EINVAL) {
						t.Fatalf("%d, %v", n, err)
					}
					per := uint32(1)
					if typ == uverbs.QPTypeUD {
						per = 2
					}
					if s.pi != pi+uint32(n)*per || q.db.Load(prm.QPSend) != s.pi&0xffff {
						t.Errorf("pi %d after %d", s.pi, pi)
					}
					reg := page[s.reg.off+half:][:8]
					if n == 0 {
						if s.half != half || reg[0] != prefill {
							t.Error("rung for nothing")
						}
					} else if want := s.unwrap(s.pi - per)[:8]; !bytes.Equal(reg, want) {
						t.Errorf("doorbell %x, want %x", reg, want)
					}
					retire()
				})
			}
		}
		q.Close()
		if n, err := q.PostSend([]uverbs.SendWR{good}); n != 0 || err != uverbs.ErrQPState {
			t.Errorf("after Close: %d, %v", n, err)
		}
		if n, err := q.PostRecv(make([]uverbs.RecvWR, 1)); n != 0 || err != uverbs.ErrQPState {
			t.Errorf("after Close: %d, %v", n, err)
		}
	}
}

// TestQueueOfNothingIsFull checks that a QP without a send or receive queue
// refuses work.
func TestQueueOfNothingIsFull(t *testing.T) {
	_, q, _ := newBench(t, uverbs.QPTypeRC, uverbs.QPCap{MaxSendWR: 1, MaxSendSGE: 1})
	if n, err := q.PostRecv(make([]uverbs.RecvWR, 1)); n != 0 || err != uverbs.ErrQueueFull {
		t.Errorf("%d, %v", n, err)
	}
	_, q, _ = newBench(t, uverbs.QPTypeRC, uverbs.QPCap{MaxRecvWR: 1, MaxRecvSGE: 1})
	if n, err := q.PostSend([]uverbs.SendWR{{Opcode: uverbs.WRSend}}); n != 0 || err != uverbs.ErrQueueFull {
		t.Errorf("%d, %v", n, err)
	}
}

// TestPostRecvRefuses checks that the requests before a bad one are published.
func TestPostRecvRefuses(t *testing.T) {
	_, q, _ := newBench(t, uverbs.QPTypeUD, uverbs.QPCap{MaxSendWR: 1, MaxRecvWR: 8, MaxSendSGE: 1, MaxRecvSGE: 2})
	list := []uverbs.RecvWR{{WRID: 1}, {WRID: 2, SGList: []uverbs.SGE{{Length: 1 << 31}}}}
	if n, err := q.PostRecv(list); n != 1 || err != errSGETooLong || !errors.Is(err, syscall.EINVAL) || q.db.Load(prm.QPRecv) != 1 {
		t.Errorf("%d, %v", n, err)
	}
}
