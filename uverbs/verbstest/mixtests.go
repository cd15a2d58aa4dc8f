package verbstest

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"

	"github.com/rrppcc-go/rrppcc/uverbs"
)

// mixTests: many things at once, against a model or against each other.
var mixTests = []test{
	{name: "RandomWorkAgreesWithAModel", run: func(e *env) {
		for seed := range uint64(scaled(6, 2)) {
			mtu := []uverbs.MTU{uverbs.MTU256, uverbs.MTU1024}[seed%2]
			a, z := e.connect(shape{wrs: 64, inline: 120}, rc{mtu: mtu})
			m := &model{a: a, z: z, rnd: rand.New(rand.NewPCG(seed, 1)), inline: int(a.qp.Cap().MaxInline)}
			m.src, m.landing = a.mr(mixBytes, 0), a.mr(mixBursts*mixLimit, localOnly)
			m.far, m.slots = z.mr(mixBytes, remoteRW), z.mr(mixBursts*mixLimit, localOnly)
			m.want = make([]byte, mixBytes)
			fill(m.src.Bytes(), byte(seed))
			for round := range scaled(100, 10) {
				m.burst()
				if e.Failed() {
					e.Fatalf("seed %d, round %d", seed, round)
				}
			}
		}
	}},
	{name: "MoreReadsThanMayBeOutstanding", run: func(e *env) {
		a, z := e.connect(shape{wrs: 64}, rc{})
		const n, reads = 2100, 60 // 4 may be outstanding
		src, dst := z.mr(n*reads, remoteRW), a.mr(n*reads, localOnly)
		fill(src.Bytes(), 1)
		for range scaled(10, 2) {
			clear(dst.Bytes())
			var wrs []uverbs.SendWR
			for i := range reads {
				wrs = append(wrs, uverbs.SendWR{WRID: uint64(i), Opcode: uverbs.WRRDMARead, Flags: uverbs.SendSignaled, SGList: []uverbs.SGE{dst.SGE(i*n, n)},
					RemoteAddr: src.Addr() + uint64(i*n), RKey: src.RKey()})
			}
			a.send(wrs...)
			for i, wc := range a.wait(a.sendCQ, reads) {
				if wc.Status != uverbs.WCSuccess || wc.WRID != uint64(i) {
					e.Fatalf("completion %d: %+v", i, wc)
				}
			}
			e.same(dst.Bytes(), src.Bytes())
		}
	}},
	{name: "ControlPathServesManyGoroutinesUnderLoad", run: func(e *env) {
		a, z := e.connect(shape{}, rc{})
		mem := e.pages(1 << 16)
		var wg sync.WaitGroup
		defer wg.Wait()
		for g := range 6 {
			h := []*host{e.a, e.z}[g%2]
			av := h.av([]*host{e.z, e.a}[g%2])
			wg.Go(func() {
				for range scaled(60, 8) {
					if err := h.churn(mem, &av); err != nil {
						e.Errorf("goroutine %d: %v", g, err)
						return
					}
				}
			})
		}
		for range scaled(200, 20) {
			works(a, z)
		}
	}},
	{name: "QPOfAMulticastGroupIsBusy", needs: []Capability{Multicast}, run: func(e *env) {
		_, z, _ := e.datagrams(shape{})
		group := uverbs.GID{10: 0xff, 11: 0xff, 12: 239, 13: 7, 14: 7, 15: 7} // 239.7.7.7
		if !z.gid.Addr().Is4() {
			group = uverbs.GID{0: 0xff, 1: 0x0e, 15: 7}
		}
		if err := z.qp.DetachMulticast(group, 0); err == nil {
			e.Error("detached from a group that it is not in")
		}
		e.must(z.qp.AttachMulticast(group, 0))
		if err := z.qp.Close(); err == nil {
			e.Error("closed while attached")
		}
		e.must(z.qp.DetachMulticast(group, 0))
		e.must(z.qp.Close())
	}},
}

// churn makes one of each object, has them modified and queried, and closes
// them.
func (h *host) churn(mem []byte, av *uverbs.AHAttr) (err error) {
	var open []func() error
	defer func() {
		for _, c := range slices.Backward(open) {
			if err2 := c(); err == nil && err2 != nil {
				err = err2
			}
		}
	}()
	pd, err := h.ctx.AllocPD()
	if err != nil {
		return err
	}
	open = append(open, pd.Close)
	mr, err := pd.RegisterMR(mem, remoteRW)
	if err != nil {
		return err
	}
	open = append(open, mr.Close)
	ch, err := h.ctx.CreateCompChannel()
	if err != nil {
		return err
	}
	open = append(open, ch.Close)
	cq, err := h.ctx.CreateCQ(&uverbs.CQInitAttr{Depth: 16, Channel: ch})
	if err != nil {
		return err
	}
	open = append(open, cq.Close)
	qp, err := pd.CreateQP(&uverbs.QPInitAttr{Type: uverbs.QPTypeRC, SendCQ: cq, RecvCQ: cq, Cap: uverbs.QPCap{MaxSendWR: 4, MaxRecvWR: 4, MaxSendSGE: 1, MaxRecvSGE: 1}})
	if err != nil {
		return err
	}
	open = append(open, qp.Close)
	ah, err := pd.CreateAH(av)
	if err != nil {
		return err
	}
	open = append(open, ah.Close)
	if err := qp.Modify(rc{}.init(), rcInit); err != nil {
		return err
	}
	q, err := qp.Query()
	if err == nil && q.State != uverbs.QPStateInit {
		err = fmt.Errorf("QP in %v, want INIT", q.State)
	}
	return err
}

const (
	mixBytes  = 64 << 10 // of the memory that is written and read
	mixLimit  = 3000     // of one operation
	mixBursts = 40       // operations at once, at most
)

// model is random work on one connection, and what should come of it.
type model struct {
	a, z         *end
	rnd          *rand.Rand
	inline       int
	src, landing *uverbs.MR // at a
	far, slots   *uverbs.MR // at z
	want         []byte     // what far should hold
	laps         uint64
}

// burst posts random operations at once, and checks all that they change.
func (m *model) burst() {
	e := m.a.e
	e.Helper()
	type landed struct {
		name      string
		got, want []byte
	}
	var wrs []uverbs.SendWR
	var all []landed
	signaled := []uint64{}
	recvs, fence := 0, false
	clear(m.landing.Bytes())
	clear(m.slots.Bytes())
	total := 1 + m.rnd.IntN(mixBursts)
	for i := range total {
		n := m.rnd.IntN(mixLimit + 1)
		if m.rnd.IntN(3) == 0 {
			n = m.rnd.IntN(m.inline + 1)
		}
		from, to := m.rnd.IntN(mixBytes-n+1), m.rnd.IntN(mixBytes-n+1)
		data := m.src.Bytes()[from : from+n]
		m.laps++
		wr := uverbs.SendWR{WRID: m.laps, RemoteAddr: m.far.Addr() + uint64(to), RKey: m.far.RKey(), SGList: split(m.src, from, n, 1+m.rnd.IntN(4))}
		if fence { // behind a READ, nothing may change what it reads
			wr.Flags |= uverbs.SendFence
		}
		fence = false
		switch m.rnd.IntN(4) {
		case 0, 1:
			wr.Opcode = uverbs.WRRDMAWrite
			copy(m.want[to:], data)
		case 2:
			wr.Opcode, fence = uverbs.WRRDMARead, true
			wr.SGList = split(m.landing, i*mixLimit, n, 1+m.rnd.IntN(4))
			all = append(all, landed{fmt.Sprintf("READ of %d bytes", n), m.landing.Bytes()[i*mixLimit : i*mixLimit+n], slices.Clone(m.want[to : to+n])})
		case 3:
			wr.Opcode = uverbs.WRSend
			slot := m.slots.Bytes()[i*mixLimit : (i+1)*mixLimit]
			m.z.recv(uint64(recvs), split(m.slots, i*mixLimit, mixLimit, 1+m.rnd.IntN(4))...)
			recvs++
			all = append(all, landed{fmt.Sprintf("SEND of %d bytes", n), slot[:n], data}, landed{"behind a SEND", slot[n:], make([]byte, mixLimit-n)})
		}
		if wr.Opcode != uverbs.WRRDMARead && n <= m.inline && m.rnd.IntN(2) == 0 {
			wr.Flags |= uverbs.SendInline
		}
		if i == total-1 || m.rnd.IntN(3) == 0 {
			wr.Flags |= uverbs.SendSignaled
			signaled = append(signaled, wr.WRID)
		}
		wrs = append(wrs, wr)
	}
	for rest := wrs; len(rest) > 0; { // in doorbells of any size
		n := 1 + m.rnd.IntN(len(rest))
		m.a.send(rest[:n]...)
		rest = rest[n:]
	}
	for i, wc := range m.a.wait(m.a.sendCQ, len(signaled)) {
		if wc.WRID != signaled[i] || wc.Status != uverbs.WCSuccess {
			e.Fatalf("completion %d: %+v, want success of %d", i, wc, signaled[i])
		}
	}
	for i, wc := range m.z.wait(m.z.recvCQ, recvs) {
		if wc.WRID != uint64(i) || wc.Status != uverbs.WCSuccess {
			e.Fatalf("receive %d: %+v", i, wc)
		}
	}
	for _, l := range all {
		if !slices.Equal(l.got, l.want) {
			e.Errorf("%s: the data differ", l.name)
		}
	}
	e.same(m.far.Bytes(), m.want)
}
