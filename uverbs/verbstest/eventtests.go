package verbstest

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"runtime"
	"time"

	"github.com/rrppcc-go/rrppcc/uverbs"
)

var eventTests = []test{
	{name: "ArmedCQRaisesOneEvent", run: func(e *env) {
		a, z := e.connect(shape{}, rc{})
		other := e.secondCQ(z) // on the same channel
		for range 5 {
			e.must(z.recvCQ.Arm(false))
			a.message(z, 0)
			e.event(z, z.recvCQ)
			z.received(2, uverbs.WCRecv, 8)
			// Not armed: no event. The next one is the other CQ's.
			a.message(z, 0)
			z.received(2, uverbs.WCRecv, 8)
			other.raise()
			e.event(z, other.recvCQ)
		}
	}},
	{name: "SolicitedArmWaitsForASolicitedMessage", run: func(e *env) {
		a, z := e.connect(shape{}, rc{})
		other := e.secondCQ(z)
		for range 3 {
			e.must(z.recvCQ.Arm(true))
			a.message(z, 0)
			z.received(2, uverbs.WCRecv, 8)
			other.raise()
			e.event(z, other.recvCQ) // so there was none of z.recvCQ
			a.message(z, uverbs.SendSolicited)
			e.event(z, z.recvCQ)
			z.received(2, uverbs.WCRecv, 8)
		}
	}},
	{name: "FailedWorkIsSolicited", run: func(e *env) {
		a, z := e.connect(shape{}, rc{})
		dst := z.mr(8, localOnly)
		e.must(z.recvCQ.Arm(true))
		z.recv(1, dst.SGE(0, 8))
		z.modify(uverbs.QPStateErr)
		z.flushed(z.recvCQ, 1)
		other := e.secondCQ(z)
		other.raise()
		got, err := z.recvCh.Wait(e.soon())
		e.must(err)
		e.rule(RuleFlushEvent, map[bool]string{true: anEvent, false: noEvent}[got == z.recvCQ])
		if got == z.recvCQ {
			e.event(z, other.recvCQ)
		}
		a.idle(a.recvCQ)
	}},
	{name: "SendCompletionsRaiseEvents", run: func(e *env) {
		a, z := e.connect(shape{}, rc{})
		src, dst := a.mr(8, 0), z.mr(8, remoteRW)
		for range 3 {
			e.must(a.sendCQ.Arm(false))
			a.send(uverbs.SendWR{WRID: 5, Opcode: uverbs.WRRDMAWrite, Flags: uverbs.SendSignaled, SGList: []uverbs.SGE{src.SGE(0, 8)}, RemoteAddr: dst.Addr(), RKey: dst.RKey()})
			if cq, err := a.sendCh.Wait(e.soon()); err != nil || cq != a.sendCQ {
				e.Fatal(cq, err)
			}
			a.sent(5, uverbs.WCRDMAWrite)
		}
	}},
	{name: "ArmRaceLosesNoEvent", run: func(e *env) {
		a, z := e.connect(shape{}, rc{})
		e.armRace(a, z, scaled(cmp.Or(e.b.EventRounds, 100_000), 1000))
	}},
	{name: "WaitEndsWithItsContext", run: func(e *env) {
		ch := e.a.channel()
		ctx, cancel := context.WithCancel(context.Background())
		done := make(chan error)
		go func() {
			_, err := ch.Wait(ctx)
			done <- err
		}()
		cancel()
		e.fails("Wait", e.result(done), context.Canceled)
		ctx, cancel = context.WithTimeout(context.Background(), time.Millisecond)
		defer cancel()
		_, err := ch.Wait(ctx)
		e.fails("Wait", err, context.DeadlineExceeded)
		ctx, cancel = context.WithTimeout(context.Background(), time.Millisecond)
		defer cancel()
		for err = nil; err == nil; { // events of the port may come
			_, err = e.a.ctx.WaitAsyncEvent(ctx)
		}
		e.fails("WaitAsyncEvent", err, context.DeadlineExceeded)
	}},
	{name: "CloseWakesAllWaiters", run: func(e *env) {
		ch := e.a.channel()
		const waiters = 4
		done := make(chan error, waiters)
		for range waiters {
			go func() {
				_, err := ch.Wait(context.Background())
				done <- err
			}()
		}
		e.must(ch.Close())
		for range waiters {
			e.fails("Wait", e.result(done), uverbs.ErrClosed)
		}
		_, err := ch.Wait(context.Background())
		e.fails("Wait on a closed channel", err, uverbs.ErrClosed)
	}},
	{name: "EventsOfAClosedCQAreForgotten", run: func(e *env) {
		a, z := e.connect(shape{}, rc{})
		other := e.secondCQ(z)
		e.must(z.recvCQ.Arm(false))
		a.message(z, 0)
		z.received(2, uverbs.WCRecv, 8) // the event is on its way, and stays unread
		e.must(z.qp.Close())
		e.must(z.recvCQ.Close())
		other.raise()
		e.event(z, other.recvCQ)
	}},
}

// armRace has a message arrive at any moment around the arming of its CQ, and
// waits for the event if polling after arming finds nothing.
func (e *env) armRace(a, z *end, rounds int) {
	e.Helper()
	src, dst := a.mr(8, 0), z.mr(8, localOnly)
	turns := make(chan struct{}, 1) // a message may be sent
	done := make(chan error, 1)
	go func() { done <- a.followTurns(turns, src) }()
	defer func() {
		close(turns)
		if err := <-done; err != nil {
			e.Error(err)
		}
	}()
	wc := make([]uverbs.WC, 4)
	recv := []uverbs.RecvWR{{SGList: []uverbs.SGE{dst.SGE(0, 8)}}}
	ctx := e.soon()
	waits, idle, seed := 0, 256, uint32(1)
	for i := 1; i <= rounds; i++ {
		if i%1000 == 0 {
			ctx = e.soon()
		}
		recv[0].WRID = uint64(i)
		if _, err := z.qp.PostRecv(recv); err != nil {
			e.Fatal(err)
		}
		turns <- struct{}{}
		seed = seed*1664525 + 1013904223
		// Idle for about as long as the message takes, so that it arrives now
		// before, now after the arming: a wait makes the next idling longer.
		for k := range idle - idle/4 + int(seed>>8)%(idle/2+1) {
			if k%64 == 63 {
				runtime.Gosched()
			}
		}
		waited := false
		for n := 0; n == 0; {
			e.must(z.recvCQ.Arm(false))
			var err error
			n, err = z.recvCQ.Poll(wc)
			e.must(err)
			if n == 0 {
				waited = true
				if _, err := z.recvCh.Wait(ctx); err != nil {
					n, _ := z.recvCQ.Poll(wc)
					e.Fatalf("round %d of %d: %v, and %d completions in the queue", i, rounds, err, n)
				}
				n, err = z.recvCQ.Poll(wc) // nothing: the event of an earlier arming
				e.must(err)
			}
			if n > 1 || n == 1 && (wc[0].WRID != uint64(i) || wc[0].Status != uverbs.WCSuccess) {
				e.Fatalf("round %d: %d completions, %+v", i, n, wc[0])
			}
		}
		if waited {
			waits++
			idle = min(idle+idle/16+1, maxIdle)
		} else {
			idle -= idle / 16
		}
	}
	e.Logf("%d rounds, %d of them waited, idling for about %d turns", rounds, waits, idle)
}

// maxIdle bounds the idling of armRace: where a message takes longer, every
// round waits.
const maxIdle = 1 << 13

// followTurns sends a message for each turn, until there are no more.
func (d *end) followTurns(turns <-chan struct{}, src *uverbs.MR) error {
	wr := []uverbs.SendWR{{Opcode: uverbs.WRSend, SGList: []uverbs.SGE{src.SGE(0, 8)}}}
	wc := make([]uverbs.WC, 1)
	i := uint64(0)
	for range turns {
		wr[0].WRID, wr[0].Flags = i, 0
		if i%8 == 7 {
			wr[0].Flags = uverbs.SendSignaled
		}
		if _, err := d.qp.PostSend(wr); err != nil {
			return fmt.Errorf("send %d: %w", i, err)
		}
		for deadline := time.Now().Add(patience); i%8 == 7; runtime.Gosched() {
			n, err := d.sendCQ.Poll(wc)
			if err != nil || n == 1 && wc[0].Status != uverbs.WCSuccess {
				return fmt.Errorf("send %d: %v %w", i, wc[0].Status, err)
			}
			if n == 1 {
				break
			}
			if time.Now().After(deadline) {
				return fmt.Errorf("send %d does not complete", i)
			}
		}
		i++
	}
	return nil
}

// message sends 8 bytes from d to z, which gets a receive (number 2) for it.
func (d *end) message(z *end, flags uverbs.SendFlags) {
	d.e.Helper()
	src, dst := d.mr(8, 0), z.mr(8, localOnly)
	z.recv(2, dst.SGE(0, 8))
	d.send(uverbs.SendWR{WRID: 1, Opcode: uverbs.WRSend, Flags: uverbs.SendSignaled | flags, SGList: []uverbs.SGE{src.SGE(0, 8)}})
	d.sent(1, uverbs.WCSend)
}

// witness is an armed CQ on another's channel, whose event shows that no other
// came before it.
type witness struct {
	*end
	from *end
}

// secondCQ makes a witness on z's receive channel.
func (e *env) secondCQ(z *end) *witness {
	e.Helper()
	from := e.a.end(shape{})
	to := &end{host: z.host, prot: z.prot, recvCQ: z.cq(64, z.recvCh), sendCQ: z.cq(64, nil)}
	to.qp = z.host.qp(z.prot, uverbs.QPInitAttr{Type: uverbs.QPTypeRC, SendCQ: to.sendCQ, RecvCQ: to.recvCQ,
		Cap: uverbs.QPCap{MaxSendWR: 8, MaxRecvWR: 8, MaxSendSGE: 1, MaxRecvSGE: 1}})
	from.up(to, rc{})
	to.up(from, rc{})
	return &witness{end: to, from: from}
}

// raise has the witness's event raised.
func (w *witness) raise() {
	w.e.Helper()
	w.e.must(w.recvCQ.Arm(false))
	w.from.message(w.end, 0)
	w.received(2, uverbs.WCRecv, 8)
}

// event waits for the next event of z's receive channel, which must be cq's.
func (e *env) event(z *end, cq *uverbs.CQ) {
	e.Helper()
	got, err := z.recvCh.Wait(e.soon())
	e.must(err)
	if got != cq {
		e.Fatal("the event is another CQ's")
	}
}

// result waits for what a goroutine sends.
func (e *env) result(done <-chan error) error {
	e.Helper()
	timer := time.NewTimer(patience)
	defer timer.Stop()
	select {
	case err := <-done:
		return err
	case <-timer.C:
		e.Fatalf("still waiting after %v", patience)
		return errors.ErrUnsupported // not reached
	}
}
