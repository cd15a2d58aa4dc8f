package mlx5sim

import (
	"fmt"
	"testing"

	"github.com/rrppcc-go/rrppcc/internal/roce"
)

// TestResponderServesAsManyReadsAsItSaid: max_dest_rd_atomic bounds the READs and
// atomics that are asked for and not answered; a repetition is none of them.
func TestResponderServesAsManyReadsAsItSaid(t *testing.T) {
	for limit := uint8(1); limit <= maxRdAtomic; limit *= 2 {
		for _, over := range []bool{false, true} {
			t.Run(fmt.Sprintf("%d, beyond it %v", limit, over), func(t *testing.T) {
				s := newStranger(t, func(q *qp) {
					q.attr.maxDestRd = limit
					q.attr.access |= accessRemoteAtomic
				})
				m := s.mr(4096, allAccess)
				var pkts [][]byte
				n := int(limit)
				if over {
					n++
				}
				for i := range n {
					h := roce.BTH{Opcode: roce.RCReadRequest, PSN: 0x200 + uint32(i), AckReq: true}
					pkt := s.packet(h, reth(m.iova, m.key, 8), nil)
					if i%2 == 1 {
						h.Opcode = roce.RCFetchAdd
						pkt = s.packet(h, atomicETH(m.iova, m.key, 1, 0), nil)
					}
					pkts = append(pkts, pkt)
				}
				// All in one burst: nothing is answered before the last was seen.
				s.give(pkts...)
				got := s.link.take(t)
				if !over {
					if len(got) != n || s.q.attr.state != stateRTS {
						t.Fatalf("%d answers, state %d", len(got), s.q.attr.state)
					}
					// Again, and one more in the end: answered before that came.
					s.give(pkts...)
					s.give(s.packet(roce.BTH{Opcode: roce.RCReadRequest, PSN: 0x200 + uint32(n)}, reth(m.iova, m.key, 8), nil))
					if got := s.link.take(t); len(got) != n+1 || s.q.attr.state != stateRTS {
						t.Errorf("%d answers to repetitions and a new one, state %d", len(got), s.q.attr.state)
					}
					return
				}
				last := got[len(got)-1]
				if len(got) != n || last.PSN != 0x200+uint32(limit) || last.AETH().Syndrome != roce.NAKInvalidRequest {
					t.Errorf("%d answers, the last %v of PSN %#x", len(got), last.AETH().Syndrome, last.PSN)
				}
				if s.q.attr.state != stateErr {
					t.Errorf("state %d", s.q.attr.state)
				}
			})
		}
	}
}

// TestNoReadsWithoutMaxRdAtomic: 0 at the requester forbids them there.
func TestNoReadsWithoutMaxRdAtomic(t *testing.T) {
	for _, typ := range []uint8{opRead, opFetchAdd} {
		p := newDuo(t, "RC")
		p.qa.attr.maxRdAtomic = 0
		src, dst := p.a.mr(64, accessLocalWrite), p.b.mr(64, allAccess)
		p.qb.attr.access |= accessRemoteAtomic
		segs := [][]byte{segRAddr(dst.iova, dst.key)}
		if typ == opFetchAdd {
			segs = append(segs, segAtomic(1, 0))
		}
		p.a.send(p.qa, ctrl{op: typ, flags: ce}, append(segs, src.sge(0, 8))...)
		if all := p.a.pollAll(p.qa.sendCQ); len(all) != 1 || all[0].syn != synLocalQPOp {
			t.Errorf("opcode %#x: %+v", typ, all)
		}
	}
}
