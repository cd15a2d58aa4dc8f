package mlx5sim

import (
	"fmt"
	"slices"
	"testing"
	"testing/synctest"
	"time"
)

// oneOfEach are WQEs of all kinds from a's MR to z's.
func (p *guestPair) oneOfEach() map[string]func() {
	remote := segRAddr(p.mz.iova, p.mz.key)
	post := func(op uint8, segs ...[]byte) func() {
		return func() { p.na.put(p.qa, ctrl{op: op, flags: ce, imm: 7}, segs...) }
	}
	return map[string]func(){
		"SEND":      post(opSend, p.ma.sge(0, 3000)),
		"SEND_IMM":  post(opSendImm, p.ma.sge(0, 3000)),
		"WRITE":     post(opWrite, remote, p.ma.sge(0, 3000)),
		"WRITE_IMM": post(opWriteImm, remote, p.ma.sge(0, 3000)),
		"READ":      post(opRead, remote, p.ma.sge(0, 3000)),
		"CAS":       post(opCmpSwap, remote, make([]byte, 16), p.ma.sge(0, 8)),
		"FADD":      post(opFetchAdd, remote, make([]byte, 16), p.ma.sge(0, 8)),
	}
}

// TestMemoryThatGoesBetweenPostAndExecution unmaps one thing at a time that an
// operation needs. It fails at the side whose memory it was, as an access that
// was refused; neither side stops working otherwise.
func TestMemoryThatGoesBetweenPostAndExecution(t *testing.T) {
	const alive, dead = stateRTS, stateErr
	type end struct {
		syn   syndrome // of the operation's or the receive's completion
		state uint8
	}
	ok := end{synOK, alive}
	mine := func(s syndrome) [2]end { return [2]end{{s, dead}, ok} }
	theirs := [2]end{{synRemOp, dead}, {synOK, dead}}
	send, write, fetch := []string{"SEND", "SEND_IMM"}, []string{"WRITE", "WRITE_IMM"}, []string{"READ", "CAS", "FADD"}
	all := slices.Concat(send, write, fetch)
	for _, tt := range []struct {
		what  string
		gone  func(p *guestPair) (*guest, uint64)
		ops   []string
		want  [2]end
		event int // async event at the side whose memory went, -1 for none
	}{
		{"the requester's data", func(p *guestPair) (*guest, uint64) { return p.a, p.ma.start }, all, mine(synLocalProt), -1},
		{"the target", func(p *guestPair) (*guest, uint64) { return p.z, p.mz.start }, slices.Concat(write, fetch), theirs, -2},
		{"the receive's buffer", func(p *guestPair) (*guest, uint64) { return p.z, p.mz.start + 4096 }, send, [2]end{{synRemOp, dead}, {synLocalProt, dead}}, -1},
		{"the send queue", func(p *guestPair) (*guest, uint64) { return p.a, p.qa.sq.buf }, all, mine(synLocalQPOp), -1},
		{"the receive queue", func(p *guestPair) (*guest, uint64) { return p.z, p.qz.rq.buf }, append(send, "WRITE_IMM"), [2]end{{synRemOp, dead}, {synLocalQPOp, dead}}, -1},
		{"the responder's doorbell record", func(p *guestPair) (*guest, uint64) { return p.z, p.qz.dbrec }, append(send, "WRITE_IMM"), [2]end{{synRemOp, dead}, {synOK, dead}}, eventQPFatal},
		{"the requester's doorbell record", func(p *guestPair) (*guest, uint64) { return p.a, p.qa.dbrec }, all, [2]end{{synOK, dead}, ok}, eventQPFatal},
		{"the requester's CQ", func(p *guestPair) (*guest, uint64) { return p.a, p.qa.sendCQ.buf }, all, [2]end{{synOK, dead}, ok}, eventCQErr},
	} {
		for _, op := range tt.ops {
			for _, wired := range []bool{false, true} {
				t.Run(fmt.Sprintf("%s/%s/wired=%v", tt.what, op, wired), func(t *testing.T) {
					synctest.Test(t, func(t *testing.T) {
						p := newGuestPair
						if wired {
							p = wiredGuestPair
						}
						testGone(t, p(t), op, tt.gone, tt.event, func(p *guestPair, a, z []got) {
							syn := func(all []got) syndrome {
								for _, g := range all {
									if g.syn != synFlush {
										return g.syn
									}
								}
								return synOK
							}
							have := [2]end{{syn(a), p.qa.attr.state}, {syn(z), p.qz.attr.state}}
							if have != tt.want {
								t.Errorf("got %+v, want %+v (%+v, %+v)", have, tt.want, a, z)
							}
						})
					})
				})
			}
		}
	}
}

func testGone(t *testing.T, p *guestPair, op string, gone func(p *guestPair) (*guest, uint64), event int, check func(p *guestPair, a, z []got)) {
	events := map[*guest]*testSink{p.a: p.a.asyncEvents(), p.z: p.z.asyncEvents()}
	recv := p.mz.sge(4096, 4096)
	p.nz.recv(p.qz, recv)
	p.oneOfEach()[op]()
	g, addr := gone(p)
	g.mem.punch(addr&^(pageSize-1), pageSize)
	p.a.ring(p.qa)
	time.Sleep(time.Minute)
	synctest.Wait()
	p.a.fo.Poll()
	p.z.fo.Poll()
	g.mem.holes = nil
	check(p, p.na.pollAll(p.qa.sendCQ), p.nz.pollAll(p.qz.recvCQ))
	seen := -1
	for _, rec := range events[g].recs {
		if seen < 0 {
			seen = int(le.Uint32(rec[8:]))
		}
	}
	if event != -2 && seen != event {
		t.Errorf("async event %d, want %d", seen, event)
	}

	// With the memory back, the same QPs work after a reset.
	p.qa.to(stateReset)
	p.qz.to(stateReset)
	for _, q := range []*qp{p.qa, p.qz} {
		clear(q.file.dma.(*holedDMA).at(q.dbrec, 8))
		if q.sendCQ.overrun {
			return // a CQ does not come back
		}
	}
	join(p.qa, p.qz)
	p.nz.recv(p.qz, recv)
	p.oneOfEach()[op]()
	p.a.ring(p.qa)
	time.Sleep(time.Minute)
	synctest.Wait()
	wantCQEs(t, "afterwards", p.na.pollAll(p.qa.sendCQ), got{op: cqeReq, bytes: p.na.lastBytes(p.qa)})
}

// lastBytes is what a success of q's first operation counts.
func (n *node) lastBytes(q *qp) uint32 {
	switch op := n.at(q.sq.buf, 4)[3]; op {
	case opCmpSwap, opFetchAdd:
		return 8
	}
	return 3000
}
