package mlx5sim

import (
	"bytes"
	"testing"
	"testing/synctest"
	"time"
)

// rcFault is one way for an RC operation to go wrong.
type rcFault struct {
	name     string
	prepare  func(p *duo)
	op       ctrl
	segs     func(p *duo, src, dst *mr) [][]byte
	recv     func(p *duo, dst *mr) [][]byte
	sendSyn  syndrome
	recvSyn  syndrome // of the responder's receive; 0: none completes in error
	event    int      // async event at the responder, -1: none
	peerLive bool     // the responder stays in RTS
	writes   bool     // the data are in memory before the fault
}

func inlineX(*duo, *mr, *mr) [][]byte { return [][]byte{segInline([]byte("xxxxxxxx"))} }

func remote(off uint64, n uint32, key uint32) func(*duo, *mr, *mr) [][]byte {
	return func(p *duo, src, dst *mr) [][]byte {
		return [][]byte{segRAddr(dst.iova+off, dst.key+key), src.sge(0, n)}
	}
}

var rcFaults = []rcFault{
	{name: "bad lkey", op: ctrl{op: opSend}, sendSyn: synLocalProt, peerLive: true, event: -1,
		segs: func(p *duo, src, dst *mr) [][]byte { return [][]byte{segData(src.iova, 8, src.key+1)} }},
	{name: "lkey of another PD", op: ctrl{op: opSend}, sendSyn: synLocalProt, peerLive: true, event: -1,
		prepare: func(p *duo) { p.qa.pd = &pd{file: p.a.f} },
		segs:    func(p *duo, src, dst *mr) [][]byte { return [][]byte{src.sge(0, 8)} }},
	{name: "beyond the MR", op: ctrl{op: opSend}, sendSyn: synLocalProt, peerLive: true, event: -1,
		segs: func(p *duo, src, dst *mr) [][]byte { return [][]byte{src.sge(4090, 8)} }},
	{name: "below the MR", op: ctrl{op: opSend}, sendSyn: synLocalProt, peerLive: true, event: -1,
		segs: func(p *duo, src, dst *mr) [][]byte { return [][]byte{segData(src.iova-1, 8, src.key)} }},
	{name: "address wraps", op: ctrl{op: opSend}, sendSyn: synLocalProt, peerLive: true, event: -1,
		segs: func(p *duo, src, dst *mr) [][]byte { return [][]byte{segData(^uint64(0)-3, 8, src.key)} }},
	{name: "MR deregistered", op: ctrl{op: opSend}, sendSyn: synLocalProt, peerLive: true, event: -1,
		segs: func(p *duo, src, dst *mr) [][]byte {
			delete(p.a.d.mrs, src.key)
			return [][]byte{src.sge(0, 8)}
		}},
	{name: "SGE of 2 GiB", op: ctrl{op: opSend}, sendSyn: synLocalLen, peerLive: true, event: -1,
		segs: func(p *duo, src, dst *mr) [][]byte { return [][]byte{segData(src.iova, 0, src.key)} }},
	{name: "READ into memory without local write", op: ctrl{op: opRead}, sendSyn: synLocalProt, peerLive: true, event: -1,
		prepare: func(p *duo) {
			for _, m := range p.a.d.mrs {
				m.access = 0
			}
		},
		segs: remote(0, 8, 0)},
	{name: "READ without max_rd_atomic", op: ctrl{op: opRead}, sendSyn: synLocalQPOp, peerLive: true, event: -1,
		prepare: func(p *duo) { p.qa.attr.maxRdAtomic = 0 }, segs: remote(0, 8, 0)},
	{name: "unknown opcode", op: ctrl{op: 0x11}, sendSyn: synLocalQPOp, peerLive: true, event: -1, segs: inlineX},
	{name: "WRITE with bad rkey", op: ctrl{op: opWrite}, sendSyn: synRemAccess, event: eventQPAccessErr, segs: remote(0, 8, 1)},
	{name: "WRITE beyond the MR", op: ctrl{op: opWrite}, sendSyn: synRemAccess, event: eventQPAccessErr, segs: remote(4089, 8, 0)},
	{name: "WRITE at 2^64", op: ctrl{op: opWrite}, sendSyn: synRemAccess, event: eventQPAccessErr,
		segs: func(p *duo, src, dst *mr) [][]byte {
			return [][]byte{segRAddr(^uint64(0)-3, dst.key), src.sge(0, 8)}
		}},
	{name: "WRITE to an MR without remote write", op: ctrl{op: opWrite}, sendSyn: synRemAccess, event: eventQPAccessErr,
		prepare: func(p *duo) {
			for _, m := range p.b.d.mrs {
				m.access &^= accessRemoteWrite
			}
		}, segs: remote(0, 8, 0)},
	{name: "WRITE to an MR of another PD", op: ctrl{op: opWrite}, sendSyn: synRemAccess, event: eventQPAccessErr,
		prepare: func(p *duo) { p.qb.pd = &pd{file: p.b.f} }, segs: remote(0, 8, 0)},
	{name: "WRITE to a QP without remote write", op: ctrl{op: opWrite}, sendSyn: synRemInvReq, event: eventQPReqErr,
		prepare: func(p *duo) { p.qb.attr.access &^= accessRemoteWrite }, segs: remote(0, 8, 0)},
	{name: "READ from an MR without remote read", op: ctrl{op: opRead}, sendSyn: synRemAccess, event: eventQPAccessErr,
		prepare: func(p *duo) {
			for _, m := range p.b.d.mrs {
				m.access &^= accessRemoteRead
			}
		}, segs: remote(0, 8, 0)},
	{name: "READ from a QP without responder resources", op: ctrl{op: opRead}, sendSyn: synRemInvReq, event: eventQPReqErr,
		prepare: func(p *duo) { p.qb.attr.maxDestRd = 0 }, segs: remote(0, 8, 0)},
	{name: "SEND longer than the receive", op: ctrl{op: opSend}, sendSyn: synRemInvReq, recvSyn: synLocalLen, event: -1, segs: inlineX,
		recv: func(p *duo, dst *mr) [][]byte { return [][]byte{dst.sge(0, 7)} }},
	{name: "SEND into a bad receive buffer", op: ctrl{op: opSend}, sendSyn: synRemOp, recvSyn: synLocalProt, event: -1, segs: inlineX,
		recv: func(p *duo, dst *mr) [][]byte { return [][]byte{segData(dst.iova, 8, dst.key+1)} }},
	{name: "SEND into read-only memory", op: ctrl{op: opSend}, sendSyn: synRemOp, recvSyn: synLocalProt, event: -1, segs: inlineX,
		prepare: func(p *duo) {
			for _, m := range p.b.d.mrs {
				m.access = 0
			}
		}},
}

// TestRCFaultsFlushInOrder runs each fault between two good work requests. The
// first succeeds, the second fails with its syndrome though it is unsignaled,
// the third and what is received later is flushed, and no byte moves.
func TestRCFaultsFlushInOrder(t *testing.T) {
	for _, f := range append(rcFaults, atomicFaults...) {
		t.Run(f.name, func(t *testing.T) {
			p := newDuo(t, "RC")
			src := p.a.mr(4096, accessLocalWrite)
			dst := p.b.mr(4096, allAccess)
			p.qb.attr.access |= accessRemoteAtomic
			p.a.fill(src, 1)
			if f.prepare != nil {
				f.prepare(p)
			}
			before := [][]byte{bytes.Clone(p.a.bytes(src)), bytes.Clone(p.b.bytes(dst))}
			list := [][]byte{dst.sge(0, 64)}
			if f.recv != nil {
				list = f.recv(p, dst)
			}
			p.b.recv(p.qb, list...)
			p.b.recv(p.qb, dst.sge(0, 64))
			p.b.put(p.qb, ctrl{op: opNOP}) // has not rung yet
			p.a.put(p.qa, ctrl{op: opNOP, flags: ce})
			p.a.put(p.qa, f.op, f.segs(p, src, dst)...)
			p.a.put(p.qa, ctrl{op: opSend}, segInline(make([]byte, 200))) // 4 WQEBBs
			p.a.put(p.qa, ctrl{op: opNOP})
			p.a.recv(p.qa)
			p.a.ring(p.qa)

			all := p.a.pollAll(p.qa.sendCQ)
			if len(all) != 4 {
				t.Fatalf("CQEs %+v, want 4", all)
			}
			second := all[2].index
			wantCQEs(t, "requester", all, got{op: cqeReq}, got{op: cqeReqErr, index: 1, syn: f.sendSyn},
				got{op: cqeReqErr, index: second, syn: synFlush}, got{op: cqeReqErr, index: second + 4, syn: synFlush})
			wantCQEs(t, "requester's RQ", p.a.pollAll(p.qa.recvCQ), got{op: cqeRespErr, syn: synFlush})
			if p.qa.attr.state != stateErr {
				t.Errorf("requester in state %d, want ERR", p.qa.attr.state)
			}

			rq, sq := p.b.pollAll(p.qb.recvCQ), p.b.pollAll(p.qb.sendCQ)
			switch {
			case f.peerLive:
				wantCQEs(t, "responder's RQ", rq)
				wantCQEs(t, "responder's SQ", sq)
				if p.qb.attr.state != stateRTS {
					t.Errorf("responder in state %d, want RTS", p.qb.attr.state)
				}
			default:
				first := synFlush
				if f.recvSyn != 0 {
					first = f.recvSyn
				}
				wantCQEs(t, "responder's RQ", rq, got{op: cqeRespErr, syn: first}, got{op: cqeRespErr, index: 1, syn: synFlush})
				wantCQEs(t, "responder's SQ", sq, got{op: cqeReqErr, syn: synFlush})
				if p.qb.attr.state != stateErr {
					t.Errorf("responder in state %d, want ERR", p.qb.attr.state)
				}
			}
			recs := events(p.b.f.async)
			if f.event < 0 && len(recs) > 0 || f.event >= 0 && (len(recs) != 1 || int(le.Uint32(recs[0][8:])) != f.event) {
				t.Errorf("async events %x, want %d", recs, f.event)
			}
			if !f.writes && (!bytes.Equal(before[0], p.a.bytes(src)) || !bytes.Equal(before[1], p.b.bytes(dst))) {
				t.Error("bytes were moved")
			}

			// What is posted to a dead QP is flushed too.
			p.a.send(p.qa, ctrl{op: opNOP})
			wantCQEs(t, "requester later", p.a.pollAll(p.qa.sendCQ), got{op: cqeReqErr, index: second + 5, syn: synFlush})
			p.a.recv(p.qa)
			p.a.arm(p.qa.recvCQ, false)
			wantCQEs(t, "requester's RQ later", p.a.pollAll(p.qa.recvCQ), got{op: cqeRespErr, index: 1, syn: synFlush})
			if n := len(events(p.qa.recvCQ.channel)); n != 1 {
				t.Errorf("%d events for the late flush, want 1", n)
			}
		})
	}
}

func TestZeroLengthRDMAIgnoresTheKey(t *testing.T) {
	p := newDuo(t, "RC")
	p.a.put(p.qa, ctrl{op: opWrite, flags: ce}, segRAddr(1, 2))
	p.a.put(p.qa, ctrl{op: opRead, flags: ce}, segRAddr(3, 4))
	p.a.ring(p.qa)
	wantCQEs(t, "sender", p.a.pollAll(p.qa.sendCQ), got{op: cqeReq}, got{op: cqeReq, index: 1})
}

func TestMalformedWQEsFail(t *testing.T) {
	for name, breakIt := range map[string]func(wqe []byte){
		"no segments":              func(w []byte) { w[7] = 0 },
		"ends inside the address":  func(w []byte) { w[7] = 3 },
		"more than was announced":  func(w []byte) { w[7] = 63 },
		"stale index":              func(w []byte) { w[2]++ },
		"another QP's":             func(w []byte) { w[6]++ },
		"opmod":                    func(w []byte) { w[0] = 1 },
		"inline beyond the WQE":    func(w []byte) { be.PutUint32(w[64:], 1<<31|200) },
		"inline with unknown bits": func(w []byte) { be.PutUint32(w[64:], 1<<31|1<<16|4) },
		"compact address vector":   func(w []byte) { w[24] = 0 },
		"GID index beyond the table": func(w []byte) {
			be.PutUint32(w[16+28:], 200<<20)
		},
	} {
		t.Run(name, func(t *testing.T) {
			p := newDuo(t, "UD")
			p.a.put(p.qa, ctrl{op: opSend}, p.av(p.qb.attr.qkey), segInline([]byte("hello")))
			breakIt(p.at(p.qa.sq.buf, 128))
			p.a.ring(p.qa)
			all := p.a.pollAll(p.qa.sendCQ)
			if len(all) == 0 || all[0] != (got{op: cqeReqErr, syn: synLocalQPOp}) {
				t.Fatalf("CQEs %+v, want a local QP operation error", all)
			}
			if p.qa.attr.state != stateSQE || p.qa.sq.ci != p.qa.sq.pi {
				t.Errorf("state %d, ci %d, pi %d; want SQE and an empty SQ", p.qa.attr.state, p.qa.sq.ci, p.qa.sq.pi)
			}
		})
	}
}

func TestUDSendErrorLeavesReceivesAlive(t *testing.T) {
	p := newDuo(t, "UD")
	src, dst := p.a.mr(8192, 0), p.a.mr(64, accessLocalWrite)
	p.a.recv(p.qa, dst.sge(0, 64))
	p.a.send(p.qa, ctrl{op: opSend}, p.av(p.qb.attr.qkey), src.sge(0, 4097)) // beyond the MTU
	p.a.send(p.qa, ctrl{op: opSend}, p.av(p.qb.attr.qkey), src.sge(0, 16))
	wantCQEs(t, "sender", p.a.pollAll(p.qa.sendCQ), got{op: cqeReqErr, syn: synLocalLen}, got{op: cqeReqErr, index: 2, syn: synFlush})
	if p.qa.attr.state != stateSQE {
		t.Fatalf("state %d, want SQE", p.qa.attr.state)
	}
	p.b.send(p.qb, ctrl{op: opSend}, segAV(p.a.d.gids[0].gid, p.qa.qpn, p.qa.attr.qkey), segInline([]byte("still here")))
	wantCQEs(t, "receiver", p.a.pollAll(p.qa.recvCQ), got{op: cqeRespSend, bytes: 50})
	p.qa.to(stateRTS)
	p.b.recv(p.qb, p.b.mr(64, accessLocalWrite).sge(0, 64))
	p.a.send(p.qa, ctrl{op: opSend, flags: ce}, p.av(p.qb.attr.qkey), segInline([]byte("back")))
	wantCQEs(t, "sender", p.a.pollAll(p.qa.sendCQ), got{op: cqeReq, index: 4})
	wantCQEs(t, "receiver", p.b.pollAll(p.qb.recvCQ), got{op: cqeRespSend, bytes: 44})
}

func TestUDDropsAreCountedAndSucceed(t *testing.T) {
	for _, c := range []struct {
		name string
		av   func(p *duo) []byte
		prep func(p *duo)
		want func(d *Drops) *uint64
	}{
		{"QKey", func(p *duo) []byte { return p.av(p.qb.attr.qkey + 1) }, nil, func(d *Drops) *uint64 { return &d.BadQKey }},
		{"the sender's own QKey", func(p *duo) []byte { return p.av(1 << 31) }, func(p *duo) { p.qa.attr.qkey++ }, func(d *Drops) *uint64 { return &d.BadQKey }},
		{"QPN", func(p *duo) []byte { return segAV(p.b.d.gids[0].gid, 0x999, p.qb.attr.qkey) }, nil, func(d *Drops) *uint64 { return &d.NoQP }},
		{"state", func(p *duo) []byte { return p.av(p.qb.attr.qkey) }, func(p *duo) { p.qb.attr.state = stateInit }, func(d *Drops) *uint64 { return &d.QPState }},
		{"no receive", func(p *duo) []byte { return p.av(p.qb.attr.qkey) }, func(p *duo) { p.qb.rq.pi, p.qb.rq.ci = 1, 1 }, func(d *Drops) *uint64 { return &d.NoReceive }},
	} {
		t.Run(c.name, func(t *testing.T) {
			p := newDuo(t, "UD")
			p.b.recv(p.qb, p.b.mr(64, accessLocalWrite).sge(0, 64))
			if c.prep != nil {
				c.prep(p)
			}
			p.a.send(p.qa, ctrl{op: opSend, flags: ce}, c.av(p), segInline([]byte("x")))
			wantCQEs(t, "sender", p.a.pollAll(p.qa.sendCQ), got{op: cqeReq})
			wantCQEs(t, "receiver", p.b.pollAll(p.qb.recvCQ))
			if n := *c.want(&p.b.d.stats.Drops); n != 1 {
				t.Errorf("counted %d, want 1: %+v", n, p.b.d.stats.Drops)
			}
		})
	}
	t.Run("nobody there", func(t *testing.T) {
		p := newDuo(t, "UD")
		p.a.send(p.qa, ctrl{op: opSend, flags: ce}, segAV([16]byte{1}, 5, 6), segInline([]byte("x")))
		wantCQEs(t, "sender", p.a.pollAll(p.qa.sendCQ), got{op: cqeReq})
		if n := p.a.d.stats.Drops.Unreachable; n != 1 {
			t.Errorf("counted %d, want 1", n)
		}
	})
}

func TestUDHighBitQKeyMeansTheQPsOwn(t *testing.T) {
	p := newDuo(t, "UD")
	p.b.recv(p.qb, p.b.mr(64, accessLocalWrite).sge(0, 64))
	p.a.send(p.qa, ctrl{op: opSend}, p.av(0x80000000), segInline([]byte("x")))
	wantCQEs(t, "receiver", p.b.pollAll(p.qb.recvCQ), got{op: cqeRespSend, bytes: 41})
}

func TestUDReceiveWithoutRoomForGRHFails(t *testing.T) {
	p := newDuo(t, "UD")
	p.b.recv(p.qb, p.b.mr(64, accessLocalWrite).sge(0, 40))
	p.a.send(p.qa, ctrl{op: opSend, flags: ce}, p.av(p.qb.attr.qkey), segInline([]byte("x")))
	wantCQEs(t, "sender", p.a.pollAll(p.qa.sendCQ), got{op: cqeReq})
	wantCQEs(t, "receiver", p.b.pollAll(p.qb.recvCQ), got{op: cqeRespErr, syn: synLocalLen})
	if p.qb.attr.state != stateErr {
		t.Errorf("receiver in state %d, want ERR", p.qb.attr.state)
	}
}

func TestRNRWaitsForAReceive(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newDuo(t, "RC")
		dst := p.b.mr(64, accessLocalWrite|accessRemoteWrite)
		p.a.put(p.qa, ctrl{op: opSend, flags: ce}, segInline([]byte("later")))
		p.a.put(p.qa, ctrl{op: opWrite, flags: ce}, segRAddr(dst.iova, dst.key), segInline([]byte("behind")))
		p.a.ring(p.qa)
		time.Sleep(time.Millisecond)
		synctest.Wait()
		wantCQEs(t, "before the receive", p.sent())
		p.locked(func() { p.b.recv(p.qb, dst.sge(32, 32)) })
		start := time.Now()
		for len(p.sent()) < 2 {
			time.Sleep(10 * time.Microsecond)
			synctest.Wait()
		}
		if d := time.Since(start); d > rnrDelay(p.qb.attr.minRNRTimer) {
			t.Errorf("took %v after the receive was posted", d)
		}
		wantCQEs(t, "sender", p.sent(), got{op: cqeReq, bytes: 5}, got{op: cqeReq, index: 1, bytes: 6})
		if p.b.d.stats.RNRNaks == 0 {
			t.Error("no RNR NAK counted")
		}
	})
}

// sent is a snapshot of what is in the sender's CQ; it takes nothing.
func (p *duo) sent() []got {
	p.fab.mu.Lock()
	defer p.fab.mu.Unlock()
	db := p.at(p.qa.sendCQ.dbrec, 4)
	ci := be.Uint32(db)
	defer be.PutUint32(db, ci)
	return p.a.pollAll(p.qa.sendCQ)
}

func TestRNRGivesUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newDuo(t, "RC")
		start := time.Now()
		p.a.send(p.qa, ctrl{op: opSend}, segInline([]byte("x")))
		for len(p.sent()) == 0 {
			time.Sleep(10 * time.Microsecond)
			synctest.Wait()
		}
		want := 3 * rnrDelay(p.qb.attr.minRNRTimer)
		if d := time.Since(start); d < want || d > want+time.Millisecond {
			t.Errorf("gave up after %v, want %v", d, want)
		}
		wantCQEs(t, "sender", p.sent(), got{op: cqeReqErr, syn: synRNRExc})
		if p.qb.attr.state != stateRTS {
			t.Errorf("responder in state %d, want RTS", p.qb.attr.state)
		}
	})
}

func TestRNRSevenNeverGivesUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newDuo(t, "RC")
		p.qa.attr.rnrRetry = 7
		p.a.send(p.qa, ctrl{op: opSend, flags: ce}, segInline([]byte("x")))
		time.Sleep(10 * time.Second)
		synctest.Wait()
		wantCQEs(t, "sender", p.sent())
		p.qa.to(stateErr)
		wantCQEs(t, "sender", p.sent(), got{op: cqeReqErr, syn: synFlush})
		p.qa.to(stateReset) // no timer of it may be left
		time.Sleep(time.Second)
	})
}

func TestSilentPeerExceedsRetries(t *testing.T) {
	for name, silence := range map[string]func(p *duo){
		"no QP":              func(p *duo) { delete(p.b.d.qps, p.qb.qpn) },
		"not RTR":            func(p *duo) { p.qb.attr.state = stateInit },
		"connected to other": func(p *duo) { p.qb.attr.destQPN++ },
		"connected to another device": func(p *duo) {
			p.qb.attr.dest.dgid = p.b.d.gids[0].gid
		},
		"PSN of another life": func(p *duo) {
			p.qb.eng.rqPSN++
		},
		"device gone": func(p *duo) {
			p.fab.leave(p.b.d)
			p.b.d.closed = true
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p := newDuo(t, "RC")
				silence(p)
				start := time.Now()
				p.a.put(p.qa, ctrl{op: opWrite}, segRAddr(0, 0))
				p.a.put(p.qa, ctrl{op: opNOP})
				p.a.ring(p.qa)
				want := 3 * ackTimeout(p.qa.attr.timeout) // retry_cnt 2
				time.Sleep(want - time.Microsecond)
				synctest.Wait()
				wantCQEs(t, "too early", p.sent())
				time.Sleep(2 * time.Microsecond)
				synctest.Wait()
				wantCQEs(t, "sender", p.sent(), got{op: cqeReqErr, syn: synRetryExc}, got{op: cqeReqErr, index: 1, syn: synFlush})
				if d := time.Since(start); d > want+time.Millisecond {
					t.Errorf("took %v, want %v", d, want)
				}
				if s := p.a.d.stats; s.Timeouts != 3 || s.Retransmits != 2 {
					t.Errorf("%d timeouts, %d retransmits; want 3, 2", s.Timeouts, s.Retransmits)
				}
			})
		})
	}
}

// TestEverySendHasItsOwnRetries makes each of several sends use up all the
// retries that it may, of both kinds.
func TestEverySendHasItsOwnRetries(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newDuo(t, "RC")
		dst := p.b.mr(64, accessLocalWrite)
		p.qb.attr.minRNRTimer = 1
		rnr, ack := rnrDelay(1), ackTimeout(p.qa.attr.timeout)
		silent := func(yes bool) {
			p.locked(func() { p.qb.attr.state = map[bool]uint8{true: stateInit, false: stateRTS}[yes] })
		}
		after := func(d time.Duration) {
			time.Sleep(d)
			synctest.Wait()
			p.locked(func() {
				if p.qa.attr.state != stateRTS {
					t.Fatal("gave up too early")
				}
			})
		}
		for i := range 3 {
			silent(true)
			p.a.send(p.qa, ctrl{op: opSend, flags: ce}, segInline([]byte("x")))
			after(2*ack - time.Microsecond) // one try and one retry of two are lost
			silent(false)
			after(2 * time.Microsecond) // the last one is answered: no receive
			silent(true)
			after(rnr + 2*ack - 2*time.Microsecond) // an answer renews the retries
			silent(false)
			after(2*time.Microsecond + rnr) // the second and the third RNR NAK
			p.locked(func() { p.b.recv(p.qb, dst.sge(0, 64)) })
			after(rnr)
			if n := len(p.sent()); n != i+1 {
				t.Fatalf("send %d: %d completions", i, n)
			}
		}
		if n := p.b.d.stats.RNRNaks; n != 9 {
			t.Errorf("%d RNR NAKs, want 3 each", n)
		}
	})
}

func TestPeerThatComesUpInTimeIsReached(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newDuo(t, "RC")
		p.qb.attr.state = stateInit
		dst := p.b.mr(64, accessLocalWrite|accessRemoteWrite)
		p.a.send(p.qa, ctrl{op: opWrite, flags: ce}, segRAddr(dst.iova, dst.key), segInline([]byte("hello")))
		p.locked(func() { p.qb.attr.state = stateRTR })
		time.Sleep(ackTimeout(p.qa.attr.timeout))
		synctest.Wait()
		wantCQEs(t, "sender", p.sent(), got{op: cqeReq, bytes: 5})
	})
}

func TestTimeoutZeroWaitsForEver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newDuo(t, "RC")
		p.qa.attr.timeout = 0
		p.qb.attr.destQPN++
		p.a.send(p.qa, ctrl{op: opWrite}, segRAddr(0, 0))
		time.Sleep(time.Hour)
		synctest.Wait()
		wantCQEs(t, "sender", p.sent())
		p.qa.to(stateErr)
		wantCQEs(t, "sender", p.sent(), got{op: cqeReqErr, syn: synFlush})
	})
}

func TestSQDHoldsSendsUntilRTS(t *testing.T) {
	p := newDuo(t, "RC")
	p.qa.to(stateSQD)
	p.a.send(p.qa, ctrl{op: opNOP, flags: ce})
	wantCQEs(t, "in SQD", p.a.pollAll(p.qa.sendCQ))
	p.qa.to(stateRTS)
	wantCQEs(t, "in RTS", p.a.pollAll(p.qa.sendCQ), got{op: cqeReq})
}
