package mlx5

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"strings"
	"testing"

	kabi "github.com/rrppcc-go/rrppcc/internal/abi"
	"github.com/rrppcc-go/rrppcc/mlx5/internal/prm"
	"github.com/rrppcc-go/rrppcc/uverbs"
)

// fmCeSe is the flags byte of the WQE at producer index i.
func (s *sendQueue) fmCeSe(i uint32) byte { return s.unwrap(i)[11] }

// TestSmallFenceFollowsInvalidation checks which request carries it.
func TestSmallFenceFollowsInvalidation(t *testing.T) {
	_, q, _ := newBench(t, uverbs.QPTypeRC, uverbs.QPCap{MaxSendWR: 32, MaxSendSGE: 1})
	s := &q.sq
	send := func(wrs ...uverbs.SendWR) []byte {
		var flags []byte
		for _, wr := range wrs {
			at := s.pi
			if n, err := q.PostSend([]uverbs.SendWR{wr}); n != 1 {
				t.Fatal(err)
			}
			flags = append(flags, s.fmCeSe(at))
		}
		return flags
	}
	inv, plain, fenced := uverbs.SendWR{Opcode: uverbs.WRLocalInv}, uverbs.SendWR{Opcode: uverbs.WRSend}, uverbs.SendWR{Opcode: uverbs.WRSend, Flags: uverbs.SendFence}
	if got := send(inv, plain, plain); !bytes.Equal(got, []byte{0, 0x20, 0}) {
		t.Errorf("%x", got)
	}
	if got := send(inv, inv, fenced, plain); !bytes.Equal(got, []byte{0, 0x20, 0x80, 0}) {
		t.Errorf("%x", got)
	}
	send(inv)
	if _, err := q.PostSend([]uverbs.SendWR{{Opcode: 200}}); err != uverbs.ErrBadOpcode {
		t.Fatal(err)
	}
	if got := send(plain); got[0] != 0x20 {
		t.Errorf("after a refused request: %x", got)
	}
	send(inv)
	s.reset()
	if got := send(plain); got[0] != 0 {
		t.Errorf("after reset: %x", got)
	}
}

// TestInvalidationsCountForTheirSize fills queues with LOCAL_INV, of two WQEBBs,
// among requests of one: nothing is overwritten, and completions free what they
// took.
func TestInvalidationsCountForTheirSize(t *testing.T) {
	for _, sges := range []uint32{1, 2, 8} { // WQEBBs per request: 1, 1, 3
		_, q, _ := newBench(t, uverbs.QPTypeRC, uverbs.QPCap{MaxSendWR: 8, MaxSendSGE: sges})
		s, c := &q.sq, q.sendCQ
		wcs := make([]uverbs.WC, 4)
		done := s.pi
		for round := range 2000 {
			op := uverbs.WRSend
			if round*7%5 < 2 {
				op = uverbs.WRLocalInv
			}
			at := s.pi
			n, err := q.PostSend([]uverbs.SendWR{{WRID: uint64(round), Opcode: op}})
			if s.pi-done > s.entries || s.head-s.tail.Load() > s.maxPost {
				t.Fatalf("round %d: %d WQEBBs in use of %d, %d requests of %d", round, s.pi-done, s.entries, s.head-s.tail.Load(), s.maxPost)
			}
			if n == 1 {
				if op == uverbs.WRLocalInv && s.pi-at != 2 {
					t.Fatalf("%d WQEBBs", s.pi-at)
				}
				continue
			}
			if err != uverbs.ErrQueueFull || s.pi != at {
				t.Fatal(err)
			}
			// Everything completes with the last one.
			last := *s.slot(s.pi - 1)
			if last.wrid != uint64(round-1) {
				last = *s.slot(s.pi - 2)
			}
			code, want := byte(prm.OpcodeSend), uverbs.WCSend
			if last.opcode == uverbs.WRLocalInv {
				code, want = prm.OpcodeUMR, uverbs.WCLocalInv
			}
			c.put(0, c.cqe(0, q, prm.CQEReq, code, last.index))
			if n, err := c.Poll(wcs); n != 1 || err != nil || wcs[0].WRID != uint64(round-1) || wcs[0].Opcode != want {
				t.Fatalf("round %d: %d, %v, %+v", round, n, err, wcs[0])
			}
			done = s.pi
			if s.tail.Load() != s.head {
				t.Fatalf("round %d: %d of %d retired", round, s.tail.Load(), s.head)
			}
		}
	}
	_, q, _ := newBench(t, uverbs.QPTypeRC, uverbs.QPCap{MaxSendWR: 1, MaxSendSGE: 1})
	if n, err := q.PostSend([]uverbs.SendWR{{Opcode: uverbs.WRLocalInv}}); n != 0 || err != errTinyQueue {
		t.Errorf("%d, %v", n, err)
	}
}

// TestUMRCompletionNeedsItsRequest checks that a completion of an invalidation
// where none was posted is refused.
func TestUMRCompletionNeedsItsRequest(t *testing.T) {
	q := pollQP(t)
	c := q.sendCQ
	c.put(0, c.cqe(0, q, prm.CQEReq, prm.OpcodeUMR, 0))
	if n, err := c.Poll(make([]uverbs.WC, 1)); n != 0 || err != uverbs.ErrCQCorrupt {
		t.Errorf("%d, %v", n, err)
	}
}

// TestBindMW compares the WQE with bytes put together by hand from the structures
// of libmlx5's set_bind_wr; no recording has one.
func TestBindMW(t *testing.T) {
	r, q, _ := newBench(t, uverbs.QPTypeRC, uverbs.QPCap{MaxSendWR: 8, MaxSendSGE: 1})
	s, c := &q.sq, q.sendCQ
	s.pi, s.head, s.seenTail = 15, 15, 15 // a WQE that wraps around
	s.tail.Store(15)
	if s.entries != 8 {
		t.Fatalf("%d WQEBBs", s.entries)
	}
	r.k.onWrite = func(cmd uint64, resp []byte) bool {
		if cmd != kabi.IB_USER_VERBS_CMD_ALLOC_MW {
			return false
		}
		binary.LittleEndian.PutUint32(resp, 0x1234500)
		return true
	}
	ctrl := func(ds byte, imm string) string { // index 15, UMR, QP, signaled
		return "00000f25" + hex.EncodeToString([]byte{byte(q.qpn >> 16), byte(q.qpn >> 8), byte(q.qpn), ds}) + "00000008" + imm
	}
	zero := func(n int) string { return strings.Repeat("00", n) }
	for _, tc := range []struct {
		name string
		typ  uverbs.MWType
		bind uverbs.MWBind
		want string
	}{
		{"type 2", uverbs.MWType2, uverbs.MWBind{OldRKey: 0x1234500, NewRKey: 0x1234501, LKey: 0x777, Addr: 0x7f0000001000, Length: 0x2000, Access: uverbs.AccessRemoteRead | uverbs.AccessRemoteWrite},
			ctrl(12, "01234500") + "b0000000" + "00040000" + "00000000203c6041" + zero(32) +
				"00003000" + hex.EncodeToString([]byte{byte(q.qpn >> 16), byte(q.qpn >> 8), byte(q.qpn), 1}) + zero(8) + "00007f0000001000" + "0000000000002000" + zero(32) +
				"00002000" + "00000777" + "00007f0000001000" + zero(48)},
		{"type 1, zero based, atomic", uverbs.MWType1, uverbs.MWBind{OldRKey: 0x1234500, NewRKey: 0x12345ff, LKey: 0x777, Addr: 0x7f0000001000, Length: 1 << 31, Access: uverbs.AccessRemoteAtomic | uverbs.AccessZeroBased},
			ctrl(12, "01234500") + "90000000" + "00040000" + "00000000203c2041" + zero(32) +
				"00004000" + "ffffffff" + zero(8) + "0000000000000000" + "0000000080000000" + zero(32) +
				"80000000" + "00000777" + "00007f0000001000" + zero(48)},
		{"type 1, unbind", uverbs.MWType1, uverbs.MWBind{OldRKey: 0x12345ff, NewRKey: 0x1234500},
			ctrl(8, "012345ff") + "90000000" + "00000000" + "0000000020002000" + zero(32) +
				"40000000" + "ffffff00" + zero(56)},
	} {
		mw, err := r.pd.AllocMW(tc.typ)
		if err != nil {
			t.Fatal(err)
		}
		tc.bind.MW = mw
		s.fence, s.pi = 0, 15
		if n, err := q.PostSend([]uverbs.SendWR{{WRID: 3, Opcode: uverbs.WRBindMW, Flags: uverbs.SendSignaled, Bind: &tc.bind}}); n != 1 {
			t.Fatal(err)
		}
		if got := hex.EncodeToString(s.unwrap(15)[:len(tc.want)/2]); got != tc.want {
			t.Errorf("%s:\n got %s\nwant %s", tc.name, got, tc.want)
		}
		if s.fence != prm.CtrlSmallFence {
			t.Error("no fence follows")
		}
		c.put(0, c.cqe(0, q, prm.CQEReq, prm.OpcodeUMR, 15))
		wcs := make([]uverbs.WC, 1)
		if n, err := c.Poll(wcs); n != 1 || err != nil || wcs[0].Opcode != uverbs.WCBindMW || wcs[0].WRID != 3 {
			t.Errorf("%s: %d, %v, %+v", tc.name, n, err, wcs[0])
		}
	}
}
