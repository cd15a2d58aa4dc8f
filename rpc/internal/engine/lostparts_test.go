package engine

import (
	"bytes"
	"math/bits"
	"math/rand/v2"
	"testing"

	"github.com/rrppcc-go/rrppcc/msgbuf"
)

func TestLostPartsOfARequestAreSentAgain(t *testing.T) {
	const parts, n = 5, 5 * testPart
	for lost := 1; lost < 1<<parts; lost++ {
		p := newPairOfParts(t, parts)
		p.s.e.Handle(1, echo)
		c := p.call(1, n, n)
		for i, ps := 0, p.c.expect(kinds(KindRequestPart, parts)...); i < parts; i++ {
			if lost>>i&1 == 0 {
				p.to(p.s, ps[i])
			}
		}
		p.s.expect()
		p.wait(20 * ms)
		asked := p.c.expect(KindMissing)
		p.to(p.s, asked...)
		answer := p.s.expect(KindMissing)
		want := uint64(lost)
		if lost == 1<<parts-1 {
			want = everyPart // the server has not heard of it
		}
		if got := answer[0].missing(); got != want {
			t.Errorf("lost %b: the server misses %b", lost, got)
		}
		p.to(p.c, answer...)
		again := p.c.expect(kinds(KindRequestPart, bits.OnesCount(uint(lost)))...)
		p.to(p.c, answer...) // nobody gets more out of us by saying it twice
		p.c.expect()
		p.to(p.s, again...)
		p.run()
		p.wantEcho(c)
		if p.c.e.Stats.Retransmits != 1 || p.cs.srtt != 0 {
			t.Errorf("lost %b: %d retransmissions, RTT %d", lost, p.c.e.Stats.Retransmits, p.cs.srtt)
		}
		p.finish()
	}
}

func TestLostPartsOfAResponseAreSentAgain(t *testing.T) {
	const parts, n = 5, 4*testPart + 1
	for lost := 1; lost < 1<<parts; lost++ {
		p := newPairOfParts(t, parts)
		runs := 0
		p.s.e.Handle(1, func(h *Handle) (msgbuf.Buf, error) {
			runs++
			b := p.s.message(n, 42)
			return b, nil
		})
		c := p.call(1, 10, n)
		p.to(p.s, p.c.expect(KindRequest)...)
		for i, ps := 0, p.s.expect(kinds(KindResponsePart, parts)...); i < parts; i++ {
			if lost>>i&1 == 0 {
				p.to(p.c, ps[i])
			}
		}
		p.wait(20 * ms)
		if lost == 1<<parts-1 {
			p.to(p.s, p.c.expect(KindRequest)...)
			p.to(p.c, p.s.expect(kinds(KindResponsePart, parts)...)...)
		} else {
			ask := p.c.expect(KindMissing)
			if got := ask[0].missing(); got != uint64(lost) {
				t.Errorf("lost %b: the client asks for %b", lost, got)
			}
			p.to(p.s, ask...)
			p.to(p.c, p.s.expect(kinds(KindResponsePart, bits.OnesCount(uint(lost)))...)...)
		}
		p.run()
		p.want(c, nil)
		want := make([]byte, n)
		stream(42, want)
		if !bytes.Equal(c.Resp.Bytes(), want) || runs != 1 {
			t.Errorf("lost %b: wrong response, or the handler ran %d times", lost, runs)
		}
		p.finish()
	}
}

// Whatever keeps the server busy, a repeated request in parts is one datagram
// without data.
func TestRequestInPartsIsNotRepeatedWhileItsHandlerWorks(t *testing.T) {
	p := newPairOfParts(t, 4)
	var h *Handle
	p.s.e.Handle(1, func(x *Handle) (msgbuf.Buf, error) { h = x; return h.Defer() })
	c := p.call(1, 4*testPart, 4*testPart)
	burst := p.to(p.s, p.c.expect(kinds(KindRequestPart, 4)...)...)
	for _, rx := range burst {
		if rx.Held {
			t.Error("a receive buffer is held although its part was copied")
		}
	}
	want := sum(c.Req.Bytes())
	for range 5 {
		p.wait(100 * ms)
		p.to(p.s, p.c.expect(KindMissing)...)
		p.s.expect()
	}
	if sum(h.Data()) != want {
		t.Error("the request has changed under its handler")
	}
	resp := p.s.alloc(len(h.Data()))
	copy(resp.Bytes(), h.Data())
	h.Take()
	p.s.e.Respond(p.now, h, resp, nil)
	ps := p.s.expect(kinds(KindResponsePart, 4)...)
	// All of them are lost: the client asks again, and gets them.
	p.wait(200 * ms)
	p.to(p.s, p.c.expect(KindMissing)...)
	p.to(p.c, p.s.expect(kinds(KindResponsePart, 4)...)...)
	p.to(p.c, ps...)
	p.run()
	p.wantEcho(c)
	p.finish()
}

func TestLostQuestionsAreAskedAgain(t *testing.T) {
	p := newPairOfParts(t, 4)
	p.s.e.Handle(1, echo)
	c := p.call(1, 3*testPart, 3*testPart)
	ps := p.c.sent()
	p.to(p.s, ps[1])
	p.wait(20 * ms)
	p.c.expect(KindMissing) // lost
	p.wait(40 * ms)
	p.to(p.s, p.c.expect(KindMissing)...)
	p.s.expect(KindMissing) // lost
	p.wait(80 * ms)
	p.to(p.s, p.c.expect(KindMissing)...)
	p.to(p.c, p.s.expect(KindMissing)...)
	p.c.expect(KindRequestPart, KindRequestPart) // lost
	p.wait(80 * ms)
	p.to(p.s, p.c.expect(KindMissing)...)
	p.to(p.c, p.s.expect(KindMissing)...)
	p.to(p.s, p.c.expect(KindRequestPart, KindRequestPart)...)
	p.run()
	p.wantEcho(c)
	p.finish()
}

// Over a network that loses a fifth of everything, messages of 16 parts cost
// little more than what is lost; if all parts were repeated for one that is
// missing, they would cost several times their bytes.
func TestOnlyWhatIsLostIsSentAgain(t *testing.T) {
	const parts, n, rounds = 16, 16 * testPart, 50
	p := newPairOfParts(t, parts)
	p.s.e.Handle(1, echo)
	rng := rand.New(rand.NewPCG(1, 1))
	questions := 0
	lossy := func(ps []packet) (left []packet) {
		for _, pk := range ps {
			if pk.header().Kind == KindMissing {
				questions++
			}
			if rng.IntN(5) > 0 {
				left = append(left, pk)
			}
		}
		return left
	}
	for range rounds {
		c := p.call(1, n, n)
		for !p.over(c) {
			for {
				toServer, toClient := lossy(p.c.sent()), lossy(p.s.sent())
				if len(toServer)+len(toClient) == 0 {
					break
				}
				p.to(p.s, toServer...)
				p.to(p.c, toClient...)
			}
			p.c.txDone()
			p.s.txDone()
			if !p.over(c) {
				p.wait(80 * ms)
			}
		}
		p.wantEcho(c)
		p.run()
	}
	sent := float64(p.c.e.Stats.TxBytes+p.s.e.Stats.TxBytes) / (2 * rounds * n)
	t.Logf("%.2f times the bytes, %.1f questions a call", sent, float64(questions)/rounds)
	if sent > 1.4 || sent < 1.15 {
		t.Errorf("%.2f times the bytes were sent, 1.25 are needed", sent)
	}
	p.finish()
}
