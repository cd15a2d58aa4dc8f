package mlx5sim

import (
	"bytes"
	"testing"
	"testing/synctest"
	"time"

	"github.com/rrppcc-go/rrppcc/internal/roce"
)

func TestPortDownIsToldOnce(t *testing.T) {
	p := newDuo(t, "RC")
	p.a.d.SetPortDown()
	p.a.d.SetPortDown()
	wantAsyncs(t, "down", p.a.asyncs(), eventPortErr)
	wantAsyncs(t, "the other device", p.b.asyncs())
	for path, want := range map[string]string{"ports/1/state": "1: DOWN", "ports/1/phys_state": "3: Disabled"} {
		if have, err := p.a.d.Attr(path); err != nil || have != want {
			t.Errorf("%s: %q, %v", path, have, err)
		}
	}
	if b := p.a.d.portResp(); b[26] != portDown || b[36] != physDisabled {
		t.Errorf("QUERY_PORT % x", b)
	}
	p.a.d.SetPortUp()
	p.a.d.SetPortUp()
	wantAsyncs(t, "up", p.a.asyncs(), eventPortActive)
	if b := p.a.d.portResp(); b[26] != portActive || b[36] != physLinkUp {
		t.Errorf("QUERY_PORT % x", b)
	}
}

func TestRCOutlivesAPortThatComesBackInTime(t *testing.T) {
	for _, sender := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			p := newDuo(t, "RC")
			down := p.b.d
			if sender {
				down = p.a.d
			}
			dst := p.b.mr(64, accessLocalWrite|accessRemoteWrite)
			down.SetPortDown()
			p.a.send(p.qa, ctrl{op: opWrite, flags: ce}, segRAddr(dst.iova, dst.key), segInline([]byte("hello")))
			wantCQEs(t, "down", p.a.take(p.qa.sendCQ))
			down.SetPortUp()
			time.Sleep(ackTimeout(p.qa.attr.timeout))
			synctest.Wait()
			wantCQEs(t, "up", p.a.take(p.qa.sendCQ), got{op: cqeReq, bytes: 5})
			down.SetPortDown()
			p.a.send(p.qa, ctrl{op: opWrite}, segRAddr(dst.iova, dst.key), segInline([]byte("world")))
			time.Sleep(10 * ackTimeout(p.qa.attr.timeout))
			synctest.Wait()
			wantCQEs(t, "down for too long", p.a.take(p.qa.sendCQ), got{op: cqeReqErr, index: 1, syn: synRetryExc})
			if n := p.a.d.Stats().Drops.PortDown; n != 4 {
				t.Errorf("%d drops counted, want 1 and 3 tries", n)
			}
		})
	}
}

func TestDatagramsToAPortThatIsDownAreLost(t *testing.T) {
	p := newDuo(t, "UD")
	dst := p.b.mr(64, accessLocalWrite)
	p.b.recv(p.qb, dst.sge(0, 64))
	p.b.d.SetPortDown()
	p.a.send(p.qa, ctrl{op: opSend, flags: ce}, p.av(p.qb.attr.qkey), segInline([]byte("x")))
	wantCQEs(t, "sender", p.a.pollAll(p.qa.sendCQ), got{op: cqeReq})
	wantCQEs(t, "receiver", p.b.pollAll(p.qb.recvCQ))
	p.b.d.SetPortUp()
	p.a.send(p.qa, ctrl{op: opSend, flags: ce}, p.av(p.qb.attr.qkey), segInline([]byte("x")))
	wantCQEs(t, "receiver", p.b.pollAll(p.qb.recvCQ), got{op: cqeRespSend, bytes: 41})
}

func TestPortThatIsDownCutsTheWire(t *testing.T) {
	s := newStranger(t, nil)
	m := s.mr(64, accessLocalWrite)
	s.recv(s.q, m.sge(0, 64))
	s.d.SetPortDown()
	s.give(s.only(0x200, "x"))
	s.send(s.q, ctrl{op: opSend, flags: ce}, m.sge(0, 8))
	if n := len(s.link.take(t)); n != 0 {
		t.Errorf("%d packets were sent", n)
	}
	if st := s.d.Stats(); st.Drops.PortDown != 2 || st.RxPackets != 0 {
		t.Errorf("%+v", st)
	}
	s.d.SetPortUp()
	s.give(s.only(0x200, "x"))
	s.wantAnswers("up again", answer{0x200, roce.Ack, 1})
}

// TestFlappingPortsLoseNothingOverTheWire takes each side down again and again
// under a stream of WRITEs.
func TestFlappingPortsLoseNothingOverTheWire(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := lossyPair(t, 3, Faults{})
		a, b := p.connect(qpOpts{sqSize: 64}, func(q *qp) { q.attr.timeout = 14 })
		src, dst := p.a.mr(64<<10, accessLocalWrite), p.b.mr(64<<10, accessLocalWrite|accessRemoteWrite)
		data := bytes.Clone(p.a.fill(src, 7))
		for i := range 20 {
			p.a.send(a, ctrl{op: opWrite, flags: ce}, segRAddr(dst.iova, dst.key), src.sge(0, 64<<10))
			d := []*Device{p.a.d, p.b.d}[i%2]
			time.Sleep(time.Duration(i) * 2 * time.Microsecond)
			d.SetPortDown()
			time.Sleep(50 * time.Millisecond)
			d.SetPortUp()
			time.Sleep(time.Second)
			synctest.Wait()
			if all := p.a.take(a.sendCQ); len(all) != 1 || all[0].op != cqeReq {
				t.Fatalf("round %d: %+v", i, all)
			}
		}
		p.b.locked(func() {
			if !bytes.Equal(p.b.bytes(dst), data) {
				t.Error("data differ")
			}
		})
		if p.b.d.stats.Drops.PortDown == 0 && p.a.d.stats.Drops.PortDown == 0 || b.attr.state != stateRTS {
			t.Error("nothing was lost")
		}
	})
}
