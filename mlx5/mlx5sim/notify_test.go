package mlx5sim

import "testing"

// eventRig is an RC duo whose sender's CQ is armed and filled by NOPs.
func newEventRig(t *testing.T) (*duo, *cq) {
	p := newDuo(t, "RC")
	return p, p.qa.sendCQ
}

func (p *duo) nop(n int) {
	for range n {
		p.a.send(p.qa, ctrl{op: opNOP, flags: ce})
	}
}

func wantEvents(t *testing.T, what string, c *cq, want int) {
	t.Helper()
	recs := events(c.channel)
	if len(recs) != want {
		t.Errorf("%s: %d events, want %d", what, len(recs), want)
	}
	for _, r := range recs {
		if le.Uint64(r[:]) != c.user {
			t.Errorf("%s: event names %#x, want the CQ's user handle %#x", what, le.Uint64(r[:]), c.user)
		}
	}
}

func TestArmFiresOnce(t *testing.T) {
	p, c := newEventRig(t)
	p.nop(1)
	wantEvents(t, "not armed", c, 0)
	p.a.pollAll(c)
	p.a.arm(c, false)
	wantEvents(t, "armed", c, 0)
	p.nop(3)
	wantEvents(t, "first of three", c, 1)
}

func TestArmFiresAtOnceForNewCompletionsOnly(t *testing.T) {
	p, c := newEventRig(t)
	p.nop(1)
	p.a.arm(c, false) // unseen, and no event told of it
	wantEvents(t, "unseen completion", c, 1)
	p.a.arm(c, false) // unseen still, but an event told of it
	wantEvents(t, "unseen completion again", c, 0)
	p.nop(1)
	wantEvents(t, "the next one", c, 1)
	p.nop(1) // not armed
	p.a.pollAll(c)
	p.a.arm(c, false) // all seen
	wantEvents(t, "all seen", c, 0)
	p.nop(1)
	wantEvents(t, "after it", c, 1)
}

func TestArmHoldsOverTheIndexWrap(t *testing.T) {
	p, c := newEventRig(t)
	start := uint32(ciMask - 2)
	c.pi, c.eventPI, c.eng.solPI, c.eng.ci = start, start, start, start
	be.PutUint32(p.at(c.dbrec, 4), start)
	for i := range 6 {
		p.a.arm(c, false)
		wantEvents(t, "armed", c, 0)
		p.nop(1)
		wantEvents(t, "completion", c, 1)
		p.a.arm(c, false)
		p.nop(1)
		wantEvents(t, "next completion", c, 1)
		be.PutUint32(p.at(c.dbrec, 4), c.pi&ciMask)
		if c.pi != start+uint32(i+1)*2 {
			t.Fatalf("pi %#x", c.pi)
		}
	}
}

func TestSolicitedArmWantsSolicitedOrError(t *testing.T) {
	p := newDuo(t, "RC")
	c, dst := p.qb.recvCQ, p.b.mr(64, accessLocalWrite)
	send := func(flags uint8) {
		p.b.recv(p.qb, dst.sge(0, 64))
		p.a.send(p.qa, ctrl{op: opSend, flags: flags}, segInline([]byte("x")))
	}
	p.b.arm(c, true)
	send(0)
	wantEvents(t, "unsolicited", c, 0)
	send(ctrlSolicited)
	wantEvents(t, "solicited", c, 1)
	send(0)
	p.b.arm(c, true) // the newest solicited one was told
	wantEvents(t, "unsolicited, armed later", c, 0)
	send(0)
	wantEvents(t, "unsolicited again", c, 0)
	p.b.pollAll(c)
	p.b.recv(p.qb)
	p.a.send(p.qa, ctrl{op: opSend}, segInline([]byte("too long")))
	wantEvents(t, "an error", c, 1)
}

func TestSolicitedArmDoesNotWeakenAnArm(t *testing.T) {
	p := newDuo(t, "RC")
	c, dst := p.qb.recvCQ, p.b.mr(64, accessLocalWrite)
	p.b.arm(c, false)
	p.b.arm(c, true)
	p.b.recv(p.qb, dst.sge(0, 64))
	p.a.send(p.qa, ctrl{op: opSend}, segInline([]byte("x")))
	wantEvents(t, "unsolicited", c, 1)
}

// TestArmThatWasOverwrittenIsFound stores the armings of two CQs before the
// device sees either: the register holds the second one only.
func TestArmThatWasOverwrittenIsFound(t *testing.T) {
	p, c := newEventRig(t)
	other := p.qa.recvCQ
	be.PutUint32(p.at(c.dbrec+4, 4), 0) // the first arming of all writes 0
	p.a.arm(other, false)
	if !c.armed || !other.armed {
		t.Fatalf("armed %v %v, want both", c.armed, other.armed)
	}
	p.nop(1)
	wantEvents(t, "the overwritten one", c, 1)
}

func TestOverrunIsCQErr(t *testing.T) {
	p := newDuo(t, "RC")
	c := p.a.cq(4)
	p.qa.sendCQ = c
	p.nop(4)
	if p.qa.attr.state != stateRTS || c.overrun {
		t.Fatal("a full CQ is no overrun yet")
	}
	p.nop(1)
	if !c.overrun || p.qa.attr.state != stateErr {
		t.Errorf("overrun %v, QP in state %d; want an overrun and ERR", c.overrun, p.qa.attr.state)
	}
	recs := events(p.a.f.async)
	if len(recs) != 1 || le.Uint32(recs[0][8:]) != eventCQErr || le.Uint64(recs[0][:]) != c.user {
		t.Errorf("async events %x, want one CQ_ERR", recs)
	}
	if n := len(p.a.pollAll(c)); n != 4 {
		t.Errorf("%d CQEs, want the 4 that fit", n)
	}
}

func TestConsumedEntriesAreReused(t *testing.T) {
	p := newDuo(t, "RC")
	c := p.a.cq(4)
	p.qa.sendCQ = c
	for i := range 50 {
		p.nop(1 + i%4)
		if n := len(p.a.pollAll(c)); n != 1+i%4 {
			t.Fatalf("round %d: %d CQEs", i, n)
		}
	}
	if c.overrun {
		t.Error("overrun")
	}
}
