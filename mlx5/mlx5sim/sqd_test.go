package mlx5sim

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/rrppcc-go/rrppcc/internal/roce"
)

// drain moves q from RTS to SQD as MODIFY_QP does that asks for the event.
func (q *qp) drain() {
	fab := q.file.dev.fab
	fab.mu.Lock()
	defer fab.mu.Unlock()
	q.attr.state = stateSQD
	q.eng.notifyDrained = true
	q.engineStateChanged(stateRTS)
}

func TestSQDOfAnIdleQueueIsDrainedAtOnce(t *testing.T) {
	p := newDuo(t, "RC")
	p.qa.drain()
	wantAsyncs(t, "idle", p.a.asyncs(), eventSQDrained)
	p.a.send(p.qa, ctrl{op: opNOP, flags: ce})
	wantCQEs(t, "in SQD", p.a.pollAll(p.qa.sendCQ))
	p.qa.to(stateRTS)
	wantCQEs(t, "in RTS", p.a.pollAll(p.qa.sendCQ), got{op: cqeReq})
	wantAsyncs(t, "once", p.a.asyncs())
}

func TestSQDFinishesWhatTheWireHas(t *testing.T) {
	s := newStranger(t, nil)
	for range 3 {
		s.put(s.q, ctrl{op: opSend, flags: ce})
	}
	s.ring(s.q)
	s.q.drain()
	s.put(s.q, ctrl{op: opSend, flags: ce})
	s.ring(s.q)
	if n := len(s.link.take(t)); n != 3 {
		t.Fatalf("%d packets sent, want 3", n)
	}
	s.ack(0x101, roce.Ack)
	wantAsyncs(t, "one is out", s.asyncs())
	if !s.q.draining() {
		t.Error("not draining")
	}
	s.ack(0x102, roce.Ack)
	wantAsyncs(t, "none is out", s.asyncs(), eventSQDrained)
	s.wantSent("drained", synOK, synOK, synOK)
	s.want("nothing new is sent")
	s.q.to(stateRTS)
	s.want("in RTS again", line{roce.RCSendOnly, 0x103, true, 0})
}

func TestSQDFinishesWhatIsTriedAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newDuo(t, "RC")
		dst := p.b.mr(64, accessLocalWrite)
		p.a.put(p.qa, ctrl{op: opSend, flags: ce})
		p.a.put(p.qa, ctrl{op: opSend, flags: ce})
		p.a.ring(p.qa) // RNR
		p.qa.drain()
		wantAsyncs(t, "waiting", p.a.asyncs())
		p.b.locked(func() {
			p.b.recv(p.qb, dst.sge(0, 64))
			p.b.recv(p.qb, dst.sge(0, 64))
		})
		time.Sleep(rnrDelay(p.qb.attr.minRNRTimer))
		synctest.Wait()
		wantCQEs(t, "the one that was begun", p.a.take(p.qa.sendCQ), got{op: cqeReq})
		wantAsyncs(t, "drained", p.a.asyncs(), eventSQDrained)
		p.qa.to(stateRTS)
		wantCQEs(t, "the other", p.a.take(p.qa.sendCQ), got{op: cqeReq, index: 1})
	})
}

func TestErrorInSQDDrainsNothing(t *testing.T) {
	s := newStranger(t, nil)
	s.put(s.q, ctrl{op: opSend, flags: ce})
	s.ring(s.q)
	s.q.drain()
	s.give(s.packet(roce.BTH{Opcode: roce.RCAck, PSN: 0x100}, aeth(roce.NAKRemoteOp), nil))
	s.wantSent("failed", synRemOp)
	wantAsyncs(t, "no SQ_DRAINED", s.asyncs())
	if s.q.attr.state != stateErr {
		t.Errorf("state %d", s.q.attr.state)
	}
}

func TestModifyQPAsksForSQDrained(t *testing.T) {
	for _, tt := range []struct {
		name string
		mask uint32
		en   uint8
		want []uint32
	}{
		{"asked for", maskState | maskSQDNotify, 1, []uint32{eventSQDrained}},
		{"not asked for", maskState, 1, nil},
		{"asked for, with 0", maskState | maskSQDNotify, 0, nil},
	} {
		u := newUser(t)
		u.getContext()
		async := uint32(dataWord(u.must(command(objAsync, 0, newID(attrAsyncFD))), 0))
		_, index := u.allocUAR()
		h := u.createQP(qpRC, u.allocPD(), u.createCQ(index), index)
		for state, mask := range []uint32{1: 1<<3 | 1<<4 | 1<<5, 2: 1<<7 | 1<<8 | 1<<12 | 1<<15 | 1<<17 | 1<<20, 3: 1<<9 | 1<<10 | 1<<11 | 1<<13 | 1<<16} {
			if mask != 0 {
				u.must(u.modify(h, mask|maskState, uint8(state), nil))
			}
		}
		u.must(u.modify(h, tt.mask, stateSQD, func(b []byte) { b[100] = tt.en }))
		var have []uint32
		for _, rec := range events(u.f.events[int32(async)]) {
			have = append(have, le.Uint32(rec[8:]))
		}
		wantAsyncs(t, tt.name, have, tt.want...)
		q := u.f.handles[h].(*qp)
		in := make([]byte, 16)
		le.PutUint32(in[8:], h)
		out := u.out(attrCoreOut, 128)
		query := func() (state, draining uint8) {
			u.must(writeCommand(25, u.in(attrCoreIn, in), out))
			b := u.at(out.data, 128)
			return b[108], b[112]
		}
		if s, d := query(); s != stateSQD || d != 0 {
			t.Errorf("%s: state %d, draining %d", tt.name, s, d)
		}
		q.sq.next++ // as if one were under way
		if _, d := query(); d != 1 {
			t.Errorf("%s: not draining", tt.name)
		}
		q.sq.next--
	}
}

// TestAddressChangedInSQDIsUsed: what the wire derived from the old address
// must not outlive it.
func TestAddressChangedInSQDIsUsed(t *testing.T) {
	s := newStranger(t, nil)
	s.put(s.q, ctrl{op: opSend, flags: ce})
	s.ring(s.q)
	s.give(s.packet(roce.BTH{Opcode: roce.RCAck, PSN: 0x100}, aeth(roce.Ack), nil))
	s.q.drain()
	s.locked(func() {
		s.q.attr.dest.dgid = gidOf("10.0.0.3")
		s.q.rerouted()
	})
	s.q.to(stateRTS)
	s.put(s.q, ctrl{op: opSend, flags: ce})
	s.ring(s.q)
	if to := s.q.req.path.to.Addr().String(); to != "10.0.0.3" {
		t.Errorf("sends to %s", to)
	}
	s.ack(0x101, roce.Ack) // from the old address
	if n := s.d.Stats().Drops.BadSource; n != 1 {
		t.Errorf("%d packets from a stranger", n)
	}
}
