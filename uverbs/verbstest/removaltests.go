package verbstest

import (
	"context"
	"errors"

	"github.com/rrppcc-go/rrppcc/uverbs"
)

var removalTests = []test{
	{name: "RemovedDeviceIsToldAndClosed", needs: []Capability{Removal}, run: func(e *env) {
		a, z := e.connect(shape{}, rc{timeout: 15, retries: 3})
		mr, ah := a.mr(64, localOnly), a.ah(a.prot, z.host)
		works(a, z)
		a.recv(1, mr.SGE(0, 8))
		e.must(a.recvCQ.Arm(false))
		events, completions := make(chan error, 2), make(chan error, 2)
		types := make(chan uverbs.EventType, 1)
		for range 2 {
			go func() { _, err := a.recvCh.Wait(context.Background()); completions <- err }()
		}
		go func() { // until the device is told to be gone
			told := false
			for {
				ev, err := a.ctx.WaitAsyncEvent(context.Background())
				if err != nil {
					if !told {
						close(types)
					}
					events <- err
					return
				}
				if ev.Type == uverbs.EventDeviceFatal && !told {
					told = true
					types <- ev.Type
				}
			}
		}()
		e.must(e.pair.Remove())
		for range 2 {
			e.fails("Wait", e.result(completions), uverbs.ErrDeviceRemoved)
		}
		if err := e.result(events); !errors.Is(err, uverbs.ErrDeviceRemoved) {
			e.Errorf("WaitAsyncEvent: %v", err)
		}
		if _, ok := <-types; !ok {
			e.Error("no EventDeviceFatal")
		}
		for name, err := range map[string]error{
			"AllocPD":           second(a.ctx.AllocPD()),
			"QueryDevice":       second(a.ctx.QueryDevice()),
			"QueryPort":         second(a.ctx.QueryPort(port)),
			"QueryGIDTable":     second(a.ctx.QueryGIDTable()),
			"CreateCQ":          second(a.ctx.CreateCQ(&uverbs.CQInitAttr{Depth: 4})),
			"CreateCompChannel": second(a.ctx.CreateCompChannel()),
			"RegisterMR":        second(a.prot.RegisterMR(mr.Bytes(), localOnly)),
			"Query":             second(a.qp.Query()),
			"Modify":            a.qp.Modify(&uverbs.QPAttr{State: uverbs.QPStateErr}, uverbs.AttrState),
		} {
			e.fails(name, err, uverbs.ErrDeviceRemoved)
		}
		// The data path must not crash.
		a.qp.PostSend([]uverbs.SendWR{{Opcode: uverbs.WRSend}})
		a.qp.PostRecv([]uverbs.RecvWR{{}})
		a.recvCQ.Poll(make([]uverbs.WC, 4))
		a.sendCQ.Poll(make([]uverbs.WC, 4))
		a.recvCQ.Arm(false)
		for _, c := range []interface{ Close() error }{a.qp, ah, mr, a.sendCQ, a.recvCQ, a.recvCh, a.sendCh, a.prot} {
			if err := c.Close(); err != nil {
				e.Errorf("close a %T: %v", c, err)
			}
		}
		e.must(a.ctx.Close())
		if _, err := a.ctx.Device().Open(); err == nil {
			e.Error("the removed device opened")
		}
		// The peer's sends are not answered.
		z.send(uverbs.SendWR{WRID: 5, Opcode: uverbs.WRSend})
		if got := z.failed(z.sendCQ, 5); got != status(uverbs.WCRetryExcErr) {
			e.Errorf("the peer: %s", got)
		}
	}},
	{name: "RemovedDeviceLetsItsContextClose", needs: []Capability{Removal}, run: func(e *env) {
		a, z := e.connect(shape{}, rc{})
		mr := a.mr(64, localOnly)
		works(a, z)
		e.must(e.pair.Remove())
		e.must(a.ctx.Close()) // takes QPs, CQs and channels along
		e.abandoned(mr, a.prot)
	}},
}
