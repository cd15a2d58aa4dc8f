package verbstest

import (
	"errors"
	"fmt"
	"syscall"

	"github.com/rrppcc-go/rrppcc/uverbs"
)

var objectTests = []test{
	{name: "ThousandObjectsComeAndGo", run: func(e *env) {
		n := scaled(1000, 100)
		before := e.handles(e.a)
		mem := e.pages(4096)
		pd, cq := e.a.pd(), e.a.cq(8, nil)
		// One after the other, and all at once.
		for name, make := range map[string]func() (interface{ Close() error }, error){
			"PD": func() (interface{ Close() error }, error) { return e.a.ctx.AllocPD() },
			"MR": func() (interface{ Close() error }, error) { return pd.RegisterMR(mem, localOnly) },
			"CQ": func() (interface{ Close() error }, error) { return e.a.ctx.CreateCQ(&uverbs.CQInitAttr{Depth: 8}) },
			"QP": func() (interface{ Close() error }, error) {
				return pd.CreateQP(&uverbs.QPInitAttr{Type: uverbs.QPTypeRC, SendCQ: cq, RecvCQ: cq, Cap: uverbs.QPCap{MaxSendWR: 4, MaxRecvWR: 4, MaxSendSGE: 1, MaxRecvSGE: 1}})
			},
			"AH": func() (interface{ Close() error }, error) { av := e.a.av(e.z); return pd.CreateAH(&av) },
		} {
			for range n {
				o, err := make()
				if err == nil {
					err = o.Close()
				}
				if err != nil {
					e.Fatalf("%s: %v", name, err)
				}
			}
			var all []interface{ Close() error }
			for range n {
				o, err := make()
				if err != nil {
					e.Errorf("%d %ss: %v", len(all)+1, name, err)
					break
				}
				all = append(all, o)
			}
			for _, o := range all { // the oldest first
				e.must(o.Close())
			}
		}
		e.must(cq.Close())
		e.must(pd.Close())
		if after := e.handles(e.a); after != before {
			e.Errorf("the kernel has %s, and had %s", after, before)
		}
	}},
	{name: "ChannelsAndContextsComeAndGo", run: func(e *env) {
		for range scaled(200, 20) {
			ch, err := e.a.ctx.CreateCompChannel()
			e.must(err)
			cq, err := e.a.ctx.CreateCQ(&uverbs.CQInitAttr{Depth: 4, Channel: ch})
			e.must(err)
			e.must(cq.Close())
			e.must(ch.Close())
			ctx, err := e.a.ctx.Device().Open()
			e.must(err)
			e.must(ctx.Close())
			e.fails("close it again", ctx.Close(), uverbs.ErrClosed)
		}
	}},
	{name: "ObjectsInUseAreBusyAndStayUsable", run: func(e *env) {
		a, z := e.connect(shape{}, rc{})
		mr, ah := a.mr(8, localOnly), a.ah(a.prot, z.host)
		busy := func(what string, err error) {
			e.Helper()
			e.fails(what, err, syscall.EBUSY)
		}
		busy("PD with everything", a.prot.Close())
		busy("send CQ with a QP", a.sendCQ.Close())
		busy("receive CQ with a QP", a.recvCQ.Close())
		works(a, z)
		e.must(a.qp.Close())
		busy("PD with an MR and an AH", a.prot.Close())
		e.must(mr.Close())
		if !a.ib { // there the kernel need not know of it
			busy("PD with an AH", a.prot.Close())
		}
		e.must(ah.Close())
		e.must(a.sendCQ.Close())
		e.must(a.recvCQ.Close())
		e.must(a.prot.Close())
		for name, c := range map[string]interface{ Close() error }{"QP": a.qp, "MR": mr, "AH": ah, "CQ": a.sendCQ, "PD": a.prot} {
			e.fails("close "+name+" again", c.Close(), uverbs.ErrClosed)
		}
		_, err := a.qp.Query()
		e.fails("query a closed QP", err, uverbs.ErrClosed)
		e.fails("modify a closed QP", a.qp.Modify(&uverbs.QPAttr{}, uverbs.AttrState), uverbs.ErrClosed)
		_, err = a.prot.CreateQP(&uverbs.QPInitAttr{Type: uverbs.QPTypeRC, SendCQ: z.sendCQ, RecvCQ: z.recvCQ})
		if err == nil {
			e.Error("a QP in a closed PD, on CQs of another context")
		}
		_, err = a.prot.RegisterMR(mr.Bytes(), localOnly)
		e.fails("register with a closed PD", err, uverbs.ErrClosed)
		_, err = a.ctx.CreateCQ(&uverbs.CQInitAttr{Depth: 8, Channel: z.recvCh})
		e.fails("CQ on a channel of another context", err, syscall.EINVAL)
	}},
	{name: "ClosedContextTakesItsObjectsAlong", run: func(e *env) {
		a, z := e.connect(shape{}, rc{})
		mr := a.mr(8, localOnly)
		works(a, z)
		a.recv(1, mr.SGE(0, 8))
		a.send(uverbs.SendWR{Opcode: uverbs.WRSend, SGList: []uverbs.SGE{mr.SGE(0, 8)}}) // waits for a receive
		waiting := make(chan error, 2)
		go func() { _, err := a.recvCh.Wait(e.Context()); waiting <- err }()
		go func() {
			for {
				if ev, err := a.ctx.WaitAsyncEvent(e.Context()); err != nil || ev.Port == 0 {
					waiting <- err
					return
				}
			}
		}()
		e.must(a.ctx.Close())
		for range 2 {
			e.fails("a waiter", e.result(waiting), uverbs.ErrClosed)
		}
		for name, c := range map[string]interface{ Close() error }{"QP": a.qp, "send CQ": a.sendCQ, "receive CQ": a.recvCQ, "channel": a.recvCh, "context": a.ctx} {
			e.fails("close "+name, c.Close(), uverbs.ErrClosed)
		}
		for name, err := range map[string]error{
			"AllocPD":     second(a.ctx.AllocPD()),
			"QueryDevice": second(a.ctx.QueryDevice()),
			"QueryPort":   second(a.ctx.QueryPort(port)),
			"CreateCQ":    second(a.ctx.CreateCQ(&uverbs.CQInitAttr{Depth: 4})),
			"RegisterMR":  second(a.prot.RegisterMR(mr.Bytes(), localOnly)),
			"CreateAH":    second(a.prot.CreateAH(&uverbs.AHAttr{Port: port, IsGlobal: true, DGID: z.gid, SGIDIndex: a.gidIndex})),
		} {
			if err == nil {
				e.Errorf("%s worked on a closed context", name)
			}
		}
		if n, err := a.qp.PostSend([]uverbs.SendWR{{Opcode: uverbs.WRSend}}); n != 0 || err == nil {
			e.Errorf("posted %d on a closed context, %v", n, err)
		}
		for _, c := range []interface{ Close() error }{mr, a.prot} {
			if err := c.Close(); err == nil {
				e.Errorf("%T closed after its context, without an error", c)
			}
		}
		// The peer finds out, and its device goes on.
		z.modify(uverbs.QPStateErr)
		nz, nz2 := e.z.end(shape{}), e.z.end(shape{})
		nz.up(nz2, rc{})
		nz2.up(nz, rc{})
		works(nz, nz2)
		e.abandoned(mr, a.prot)
	}},
	{name: "ForgottenObjectsGoWithTheContext", run: func(e *env) {
		for range scaled(20, 4) {
			ctx, err := e.a.ctx.Device().Open()
			e.must(err)
			h := *e.a
			h.ctx = ctx
			pd, err := ctx.AllocPD()
			e.must(err)
			cq, err := ctx.CreateCQ(&uverbs.CQInitAttr{Depth: 8})
			e.must(err)
			_, err = pd.RegisterMR(e.pages(8), localOnly)
			e.must(err)
			av := h.av(e.z)
			_, err = pd.CreateAH(&av)
			e.must(err)
			_, err = pd.CreateQP(&uverbs.QPInitAttr{Type: uverbs.QPTypeUD, SendCQ: cq, RecvCQ: cq, Cap: uverbs.QPCap{MaxSendWR: 4, MaxRecvWR: 4, MaxSendSGE: 1, MaxRecvSGE: 1}})
			e.must(err)
			e.must(ctx.Close())
		}
	}},
}

func second[T any](_ T, err error) error { return err }

// abandoned says that these were of a context that the test closed, so that
// closing them at its end may fail.
func (e *env) abandoned(all ...interface{ Close() error }) {
	for _, c := range all {
		e.forgiven[c] = true
	}
}

// handles tells how many objects the kernel has for a context, "" where it
// does not say.
func (e *env) handles(h *host) string {
	e.Helper()
	n, err := countHandles(h.ctx)
	if errors.Is(err, errors.ErrUnsupported) || errors.Is(err, syscall.EPROTONOSUPPORT) {
		return ""
	}
	e.must(err)
	return fmt.Sprint(n)
}
