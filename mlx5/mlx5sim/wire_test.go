package mlx5sim

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"testing"
	"testing/synctest"
	"time"
)

// workload runs messages of all kinds from a to b and checks every byte and
// every completion. idle is called when nothing is left to do but wait.
type workload struct {
	t        testing.TB
	p        *wirePair
	qa, qb   *qp
	rng      *rand.Rand
	sizes    []uint32
	messages int
	idle     func()
}

const (
	loadSlots = 8
	loadSlot  = 64 << 10
)

type message struct {
	op   uint8
	size uint32
	seed byte
	imm  uint32
	done bool // what was written was compared
}

func (m *message) data() []byte {
	b := make([]byte, m.size)
	for i := range b {
		b[i] = m.seed + byte(i) + byte(i>>8)*3
	}
	return b
}

func (w *workload) run() {
	t, a, b := w.t, w.p.a, w.p.b
	src := a.mr(loadSlots*loadSlot, accessLocalWrite)
	dst := b.mr(loadSlots*loadSlot, accessLocalWrite)
	far := b.mr(loadSlots*loadSlot, accessLocalWrite|accessRemoteRead|accessRemoteWrite)
	ops := []uint8{opSend, opSendImm, opWrite, opWriteImm, opRead}

	var all []message // by number
	var recvs []int   // numbers of messages that consume a receive, in order
	var posted, sent, received int
	slot := func(mem *mr, n *node, i int, size uint32) []byte {
		return n.bytes(mem)[i%loadSlots*loadSlot:][:size]
	}
	check := func(what string, i int, got []byte) {
		if !bytes.Equal(got, all[i].data()) {
			t.Fatalf("message %d (opcode %#x, %d bytes): %s differs", i, all[i].op, all[i].size, what)
		}
	}
	b.locked(func() {
		for i := range uint32(loadSlots) {
			b.recv(w.qb, dst.sge(i*loadSlot, loadSlot))
		}
	})
	start := time.Now()
	for sent < w.messages || received < len(recvs) {
		busy := false
		b.locked(func() {
			for {
				raw, ok := b.poll(w.qb.recvCQ)
				if !ok {
					return
				}
				busy = true
				if syn := syndrome(raw[55]); raw[63]>>4 >= cqeReqErr {
					t.Fatalf("receive %d failed: %v", received, syn)
				}
				if received == len(recvs) {
					t.Fatal("a receive completed that no message asked for")
				}
				i := recvs[received]
				m := &all[i]
				if n := be.Uint32(raw[44:]); n != m.size {
					t.Fatalf("message %d: %d bytes received, want %d", i, n, m.size)
				}
				if m.op == opSendImm || m.op == opWriteImm {
					if imm := be.Uint32(raw[36:]); imm != m.imm {
						t.Fatalf("message %d: immediate %#x, want %#x", i, imm, m.imm)
					}
				}
				if m.op == opSend || m.op == opSendImm {
					check("what was received", i, slot(dst, b, received, m.size))
				}
				received++
				b.recv(w.qb, dst.sge(uint32((received-1)%loadSlots*loadSlot), loadSlot))
			}
		})
		ring := false
		a.locked(func() {
			for _, g := range a.pollAll(w.qa.sendCQ) {
				busy = true
				if g.syn != synOK {
					t.Fatalf("message %d failed: %v", sent, g.syn)
				}
				if m := &all[sent]; m.op == opRead {
					check("what was read", sent, slot(src, a, sent, m.size))
				}
				sent++
			}
		})
		// What was written is compared before the slot is used again.
		b.locked(func() {
			for i := max(0, sent-loadSlots); i < sent; i++ {
				if m := &all[i]; (m.op == opWrite || m.op == opWriteImm) && !m.done {
					check("what was written", i, slot(far, b, i, m.size))
					m.done = true
				}
			}
		})
		for posted < w.messages && posted-sent < loadSlots {
			m := message{op: ops[w.rng.IntN(len(ops))], size: w.sizes[w.rng.IntN(len(w.sizes))], seed: byte(w.rng.Uint32()), imm: w.rng.Uint32()}
			i := posted
			all = append(all, m)
			off := uint32(i % loadSlots * loadSlot)
			data := [][]byte{src.sge(off, m.size)}
			if m.size == 0 {
				data = nil
			}
			if m.op == opRead {
				b.locked(func() { copy(slot(far, b, i, m.size), m.data()) })
			}
			a.locked(func() {
				if m.op == opRead {
					clear(slot(src, a, i, m.size))
				} else {
					copy(slot(src, a, i, m.size), m.data())
				}
				if m.op == opWrite || m.op == opWriteImm || m.op == opRead {
					data = append([][]byte{segRAddr(far.iova+uint64(off), far.key)}, data...)
				}
				a.put(w.qa, ctrl{op: m.op, flags: ce, imm: m.imm}, data...)
			})
			if m.op == opSend || m.op == opSendImm || m.op == opWriteImm {
				recvs = append(recvs, i)
			}
			posted++
			ring, busy = true, true
		}
		if ring {
			a.ring(w.qa)
		}
		if !busy {
			if time.Since(start) > time.Hour {
				t.Fatalf("%d of %d messages in an hour; a: %+v b: %+v", sent, w.messages, a.statsNow(), b.statsNow())
			}
			w.idle()
		}
	}
}

func TestLossReorderingAndDuplicationCostTimeAndNotData(t *testing.T) {
	for _, tt := range []struct {
		name string
		Faults
		mtu uint8
		n   int
	}{
		{"perfect", Faults{}, 3, 2000},
		{"drop 1%", Faults{Loss: 0.01}, 3, 2000},
		{"dup 10%", Faults{Duplicate: 0.1}, 3, 2000},
		{"reorder 5%", Faults{Reorder: 0.05}, 3, 2000},
		{"all at once", Faults{Loss: 0.01, Duplicate: 0.02, Reorder: 0.02}, 3, 10000},
		{"all at once, MTU 256", Faults{Loss: 0.003, Duplicate: 0.01, Reorder: 0.01}, 1, 2000},
		{"all at once, MTU 4096", Faults{Loss: 0.03, Duplicate: 0.03, Reorder: 0.03}, 5, 2000},
	} {
		for seed := range uint64(2) {
			t.Run(fmt.Sprintf("%s/seed %d", tt.name, seed), func(t *testing.T) {
				if testing.Short() {
					tt.n = min(tt.n, 300)
				}
				synctest.Test(t, func(t *testing.T) {
					tt.Delay = 20 * time.Microsecond
					p := lossyPair(t, seed, tt.Faults)
					a, b := p.connect(qpOpts{sqSize: 256, qpn: 0x555550}, func(q *qp) {
						q.attr.pathMTU = tt.mtu
						q.attr.timeout = 10 // 4 ms; connect makes PSNs of 0xfffff0
						q.attr.rnrRetry = rnrInfinite
					})
					w := &workload{t: t, p: p, qa: a, qb: b, rng: rand.New(rand.NewPCG(seed, 7)), messages: tt.n,
						sizes: []uint32{0, 1, 3, 100, 255, 256, 257, 1023, 1024, 1025, 4096, 4097, 9000, 40000, 65536},
						idle:  func() { time.Sleep(20 * time.Microsecond) }}
					w.run()
					sa, sb := p.a.statsNow(), p.b.statsNow()
					t.Logf("a: %+v", sa)
					t.Logf("b: %+v", sb)
					if tt.Loss > 0 && sa.Retransmits == 0 {
						t.Error("packets were dropped and none was sent again")
					}
					if tt.Loss == 0 && tt.Reorder == 0 && sa.Timeouts > 0 {
						t.Error("a timeout without loss")
					}
				})
			})
		}
	}
}
