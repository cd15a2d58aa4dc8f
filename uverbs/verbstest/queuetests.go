package verbstest

import (
	"github.com/rrppcc-go/rrppcc/uverbs"
)

var queueTests = []test{
	{name: "UnsignaledSendsCompleteWithTheNextSignaledOne", run: func(e *env) {
		a, z := e.connect(shape{wrs: 16}, rc{})
		runs := scaled(200, 30)
		src, dst := a.mr(8*runs, localOnly), z.mr(8*runs, remoteRW)
		fill(src.Bytes(), 3)
		for run := range runs { // many laps of the ring
			for k := range 8 {
				wr := uverbs.SendWR{WRID: uint64(100*run + k), Opcode: uverbs.WRRDMAWrite, SGList: []uverbs.SGE{src.SGE(8*run+k, 1)},
					RemoteAddr: dst.Addr() + uint64(8*run+k), RKey: dst.RKey()}
				if k == 7 {
					wr.Flags = uverbs.SendSignaled
				}
				a.send(wr)
			}
			a.sent(uint64(100*run+7), uverbs.WCRDMAWrite)
		}
		e.same(dst.Bytes(), src.Bytes())
		a.idle(a.sendCQ)
	}},
	{name: "SigAllSignalsEverySend", run: func(e *env) {
		a, z := e.connect(shape{sigAll: true}, rc{})
		src, dst := a.mr(8, 0), z.mr(8, remoteRW)
		for i := range uint64(20) {
			a.send(uverbs.SendWR{WRID: i, Opcode: uverbs.WRRDMAWrite, SGList: []uverbs.SGE{src.SGE(0, 8)}, RemoteAddr: dst.Addr(), RKey: dst.RKey()})
		}
		for i, wc := range a.wait(a.sendCQ, 20) {
			if wc.Status != uverbs.WCSuccess || wc.WRID != uint64(i) {
				e.Errorf("completion %d: %+v", i, wc)
			}
		}
	}},
	{name: "FullSendQueueRefusesAndLosesNothing", run: func(e *env) {
		// The peer has no receive, so that nothing leaves the queue.
		a, z := e.connect(shape{wrs: 16}, rc{minRNR: 14})
		depth := int(a.qp.Cap().MaxSendWR)
		if depth < 16 {
			e.Fatalf("MaxSendWR %d, asked for 16", depth)
		}
		src, dst := a.mr(4, 0), z.mr(4, localOnly)
		wrs := make([]uverbs.SendWR, 4*depth)
		for i := range wrs {
			wrs[i] = uverbs.SendWR{WRID: uint64(i), Opcode: uverbs.WRSendWithImm, ImmData: uint32(i), Flags: uverbs.SendSignaled, SGList: []uverbs.SGE{src.SGE(0, 4)}}
		}
		for lap := range 2 {
			posted, err := a.qp.PostSend(wrs)
			e.fails("a burst longer than the queue", err, uverbs.ErrQueueFull)
			if posted < depth || posted >= len(wrs) {
				e.Fatalf("lap %d: %d posted of %d to a queue of %d", lap, posted, len(wrs), depth)
			}
			n, err := a.qp.PostSend(wrs[posted : posted+1])
			e.fails("one more", err, uverbs.ErrQueueFull)
			if n != 0 {
				e.Errorf("%d posted to a full queue", n)
			}
			for i := range posted {
				z.recv(uint64(i), dst.SGE(0, 4))
				if wc := z.received(uint64(i), uverbs.WCRecv, 4); wc.ImmData != uint32(i) {
					e.Fatalf("lap %d: message %d came as number %d", lap, wc.ImmData, i)
				}
			}
			for i, wc := range a.wait(a.sendCQ, posted) {
				if wc.Status != uverbs.WCSuccess || wc.WRID != uint64(i) {
					e.Fatalf("lap %d, completion %d: %+v", lap, i, wc)
				}
			}
		}
	}},
	{name: "FullReceiveQueueRefusesAndLosesNothing", run: func(e *env) {
		a, z := e.connect(shape{wrs: 16}, rc{})
		depth := int(z.qp.Cap().MaxRecvWR)
		if depth < 16 {
			e.Fatalf("MaxRecvWR %d, asked for 16", depth)
		}
		src := a.mr(4, 0)
		wrs := make([]uverbs.RecvWR, 4*depth)
		dst := z.mr(4*len(wrs), localOnly)
		for i := range wrs {
			wrs[i] = uverbs.RecvWR{WRID: uint64(i), SGList: []uverbs.SGE{dst.SGE(4*i, 4)}}
		}
		for lap := range 3 {
			posted, err := z.qp.PostRecv(wrs)
			e.fails("a burst longer than the queue", err, uverbs.ErrQueueFull)
			if posted < depth || posted >= len(wrs) {
				e.Fatalf("lap %d: %d posted of %d to a queue of %d", lap, posted, len(wrs), depth)
			}
			for i := range posted {
				fill(src.Bytes(), byte(i+lap))
				a.send(uverbs.SendWR{WRID: 7, Opcode: uverbs.WRSend, Flags: uverbs.SendSignaled, SGList: []uverbs.SGE{src.SGE(0, 4)}})
				a.sent(7, uverbs.WCSend)
				z.received(uint64(i), uverbs.WCRecv, 4)
				e.same(dst.Bytes()[4*i:4*i+4], src.Bytes())
			}
		}
	}},
	{name: "QueuesAreAtLeastAsLargeAsAskedFor", run: func(e *env) {
		for _, c := range []uverbs.QPCap{
			{MaxSendWR: 1, MaxRecvWR: 1, MaxSendSGE: 1, MaxRecvSGE: 1},
			{MaxSendWR: 100, MaxRecvWR: 7, MaxSendSGE: 3, MaxRecvSGE: 1, MaxInline: 33},
			{MaxSendWR: 3, MaxRecvWR: 1000, MaxSendSGE: 1, MaxRecvSGE: 5, MaxInline: 200},
		} {
			for _, typ := range []uverbs.QPType{uverbs.QPTypeRC, uverbs.QPTypeUD} {
				pd, cq := e.a.pd(), e.a.cq(2000, nil)
				got := e.a.qp(pd, uverbs.QPInitAttr{Type: typ, SendCQ: cq, RecvCQ: cq, Cap: c}).Cap()
				if got.MaxSendWR < c.MaxSendWR || got.MaxRecvWR < c.MaxRecvWR || got.MaxSendSGE < c.MaxSendSGE || got.MaxRecvSGE < c.MaxRecvSGE || got.MaxInline < c.MaxInline {
					e.Errorf("%v: asked for %+v, got %+v", typ, c, got)
				}
			}
		}
		for _, depth := range []int{1, 2, 3, 64, 1000} {
			if cq := e.a.cq(depth, nil); cq.Depth() < depth {
				e.Errorf("asked for a CQ of %d, got %d", depth, cq.Depth())
			}
		}
	}},
	{name: "ImpossibleQueuesAreRefused", run: func(e *env) {
		dev, err := e.a.ctx.QueryDevice()
		e.must(err)
		pd, cq := e.a.pd(), e.a.cq(8, nil)
		tooDeep := dev.MaxCQE + 1
		if tooDeep > 1<<20 {
			tooDeep = 1 << 24 // no device: it saves the memory that a provider prepares before it asks
		}
		for name, attr := range map[string]uverbs.CQInitAttr{
			"depth 0":        {},
			"depth -1":       {Depth: -1},
			"too deep":       {Depth: tooDeep},
			"no such vector": {Depth: 8, Vector: e.a.ctx.NumCompVectors() + 1000},
		} {
			if got, err := e.a.ctx.CreateCQ(&attr); err == nil {
				e.Errorf("CQ with %s was created", name)
				e.must(got.Close())
			}
		}
		for name, c := range map[string]uverbs.QPCap{
			"too many sends":       {MaxSendWR: uint32(dev.MaxQPWR) + 1, MaxRecvWR: 1, MaxSendSGE: 1, MaxRecvSGE: 1},
			"too many receives":    {MaxSendWR: 1, MaxRecvWR: uint32(dev.MaxQPWR) + 1, MaxSendSGE: 1, MaxRecvSGE: 1},
			"too many pieces":      {MaxSendWR: 1, MaxRecvWR: 1, MaxSendSGE: 1 << 16, MaxRecvSGE: 1},
			"too many pieces each": {MaxSendWR: 1, MaxRecvWR: 1, MaxSendSGE: 1, MaxRecvSGE: 1 << 16},
			"too much inline":      {MaxSendWR: 1, MaxRecvWR: 1, MaxSendSGE: 1, MaxRecvSGE: 1, MaxInline: 1 << 20},
		} {
			if got, err := pd.CreateQP(&uverbs.QPInitAttr{Type: uverbs.QPTypeRC, SendCQ: cq, RecvCQ: cq, Cap: c}); err == nil {
				e.Errorf("QP with %s was created: %+v", name, got.Cap())
				e.must(got.Close())
			}
		}
		if got, err := pd.CreateQP(&uverbs.QPInitAttr{Type: 77, SendCQ: cq, RecvCQ: cq}); err == nil {
			e.Errorf("a QP of type 77 was created")
			e.must(got.Close())
		}
		e.must(cq.Close()) // the failures left nothing behind
		e.must(pd.Close())
	}},
	{name: "CQIsSharedByQPs", run: func(e *env) {
		pd, cq := e.a.pd(), e.a.cq(256, nil)
		zs := []*end{e.z.end(shape{}), e.z.end(shape{}), e.z.end(shape{})}
		src := e.mr(pd, 64, 0)
		var as []*end
		for _, z := range zs {
			a := &end{host: e.a, prot: pd, sendCQ: cq, recvCQ: cq}
			a.qp = e.a.qp(pd, uverbs.QPInitAttr{Type: uverbs.QPTypeRC, SendCQ: cq, RecvCQ: cq,
				Cap: uverbs.QPCap{MaxSendWR: 8, MaxRecvWR: 8, MaxSendSGE: 1, MaxRecvSGE: 1}})
			a.up(z, rc{})
			z.up(a, rc{})
			as = append(as, a)
		}
		const rounds = 8
		for i, z := range zs {
			dst, out := z.mr(64, localOnly), z.mr(64, 0)
			in := e.mr(pd, 64, localOnly)
			for k := range rounds {
				z.recv(uint64(k), dst.SGE(0, 8))
				as[i].recv(uint64(100+k), in.SGE(0, 8))
				as[i].send(uverbs.SendWR{WRID: uint64(k), Opcode: uverbs.WRSend, Flags: uverbs.SendSignaled, SGList: []uverbs.SGE{src.SGE(0, 8)}})
				z.send(uverbs.SendWR{WRID: uint64(k), Opcode: uverbs.WRSend, Flags: uverbs.SendSignaled, SGList: []uverbs.SGE{out.SGE(0, 8)}})
			}
			z.wait(z.recvCQ, rounds)
			z.wait(z.sendCQ, rounds)
		}
		next := map[uint32][2]uint64{} // by QPN: send, receive
		for _, wc := range as[0].wait(cq, len(as)*2*rounds) {
			n := next[wc.QPN]
			if wc.Status != uverbs.WCSuccess {
				e.Fatalf("%+v", wc)
			}
			if kind := wc.WRID / 100; kind > 1 || wc.WRID%100 != n[kind] || (kind == 1) != (wc.Opcode == uverbs.WCRecv) {
				e.Fatalf("%+v after %v of its QP", wc, n)
			} else {
				n[kind]++
			}
			next[wc.QPN] = n
		}
		for _, a := range as {
			if next[a.qp.QPN()] != [2]uint64{rounds, rounds} {
				e.Errorf("QP %#x: %v", a.qp.QPN(), next[a.qp.QPN()])
			}
		}
	}},
	{name: "PollTakesNoMoreThanItHasRoomFor", run: func(e *env) {
		a, z := e.connect(shape{}, rc{})
		src, dst := a.mr(8, 0), z.mr(8, remoteRW)
		for i := range uint64(10) {
			a.send(uverbs.SendWR{WRID: i, Opcode: uverbs.WRRDMAWrite, Flags: uverbs.SendSignaled, SGList: []uverbs.SGE{src.SGE(0, 8)}, RemoteAddr: dst.Addr(), RKey: dst.RKey()})
		}
		if n, err := a.sendCQ.Poll(nil); n != 0 || err != nil {
			e.Fatalf("Poll(nil): %d, %v", n, err)
		}
		next := uint64(0)
		wc := make([]uverbs.WC, 3)
		e.until("10 completions", func() bool {
			n, err := a.sendCQ.Poll(wc)
			e.must(err)
			for _, w := range wc[:n] {
				if w.WRID != next || w.Status != uverbs.WCSuccess {
					e.Fatalf("%+v, want work request %d", w, next)
				}
				next++
			}
			return next == 10
		})
	}},
	{name: "CQChangesItsSize", needs: []Capability{ResizeCQ}, run: func(e *env) {
		a, z := e.connect(shape{}, rc{})
		src, dst := a.mr(8, 0), z.mr(8, remoteRW)
		id := uint64(0)
		next := id
		for _, depth := range []int{100, 500, 70, 300} {
			for range 12 { // they stay in the queue while it changes
				a.send(uverbs.SendWR{WRID: id, Opcode: uverbs.WRRDMAWrite, Flags: uverbs.SendSignaled, SGList: []uverbs.SGE{src.SGE(0, 8)}, RemoteAddr: dst.Addr(), RKey: dst.RKey()})
				id++
			}
			e.must(a.sendCQ.Resize(depth))
			if a.sendCQ.Depth() < depth {
				e.Errorf("depth %d, asked for %d", a.sendCQ.Depth(), depth)
			}
			for _, wc := range a.wait(a.sendCQ, 12) {
				if wc.WRID != next || wc.Status != uverbs.WCSuccess {
					e.Fatalf("%+v, want work request %d", wc, next)
				}
				next++
			}
		}
		if err := a.sendCQ.Resize(0); err == nil {
			e.Error("resized to 0")
		}
	}},
}
