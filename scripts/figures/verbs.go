package main

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/rrppcc-go/rrppcc/internal/kernel"
	"github.com/rrppcc-go/rrppcc/uverbs"
	_ "github.com/rrppcc-go/rrppcc/uverbs/rxe" // Soft-RoCE needs its provider
)

const (
	patience  = 60 * time.Second
	grhBytes  = 40
	qkey      = 0x11111111
	depth     = 128 // of the queues; perftest's default for rates is the same
	batch     = 16  // of the posts, where the rate counts
	readDepth = 16  // READs under way
	slotBytes = 256 // of a receive
	memBytes  = 2 << 20
	warmUp    = 200 // rounds that do not count

	access = uverbs.AccessLocalWrite | uverbs.AccessRemoteRead
)

// job tells the peer what to be, and, as its answer, where it is.
type job struct {
	Kind    string
	Device  string     `json:",omitempty"`
	GID     uverbs.GID `json:",omitempty"`
	QPN     uint32     `json:",omitempty"`
	Addr    uint64     `json:",omitempty"`
	RKey    uint32     `json:",omitempty"`
	Count   int        `json:",omitempty"` // messages that will come
	URI     string     `json:",omitempty"` // of the RPC server
	Credits int        `json:",omitempty"` // of the RPC server, 0: the default
}

// Kinds of jobs.
const (
	jobUDLatency = "UD latency"
	jobRCLatency = "RC latency"
	jobUDRate    = "UD rate"
	jobRCRate    = "RC rate"
	jobRead      = "READ"
	jobRPC       = "RPC"
)

func (j job) service() uverbs.QPType {
	if j.Kind == jobUDLatency || j.Kind == jobUDRate {
		return uverbs.QPTypeUD
	}
	return uverbs.QPTypeRC
}

// end is one end of a connection: its queue pair and its memory. Sends come from
// the first half of the memory, receives and READs go to the second.
type end struct {
	gid     uverbs.GIDEntry
	pd      *uverbs.PD
	mr      *uverbs.MR
	sendCQ  *uverbs.CQ
	recvCQ  *uverbs.CQ
	qp      *uverbs.QP
	ah      *uverbs.AH
	remote  job
	wr      uverbs.SendWR
	pings   int
	recvs   []uverbs.RecvWR // one for each slot
	wc      []uverbs.WC
	closers []func() error
}

func newEnd(device string, service uverbs.QPType) (_ *end, err error) {
	e := &end{wc: make([]uverbs.WC, depth)}
	defer func() {
		if err != nil {
			err = errors.Join(err, e.close())
		}
	}()
	dev, err := uverbs.DeviceByName(device)
	if err != nil {
		return nil, err
	}
	ctx, err := dev.Open()
	if err != nil {
		return nil, err
	}
	e.closers = append(e.closers, ctx.Close)
	if e.gid, _, err = ctx.ChooseGID(1, -1); err != nil {
		return nil, err
	}
	if e.pd, err = ctx.AllocPD(); err != nil {
		return nil, err
	}
	e.closers = append(e.closers, e.pd.Close)
	mem, err := kernel.AllocPages(memBytes)
	if err != nil {
		return nil, err
	}
	e.closers = append(e.closers, func() error { return kernel.FreePages(mem) })
	for i := range mem {
		mem[i] = byte(i) // pages that were never written are none yet
	}
	if e.mr, err = e.pd.RegisterMR(mem, access); err != nil {
		return nil, err
	}
	e.closers = append(e.closers, e.mr.Close)
	for _, cq := range []**uverbs.CQ{&e.sendCQ, &e.recvCQ} {
		if *cq, err = ctx.CreateCQ(&uverbs.CQInitAttr{Depth: 2 * depth}); err != nil {
			return nil, err
		}
		e.closers = append(e.closers, (*cq).Close)
	}
	e.qp, err = e.pd.CreateQP(&uverbs.QPInitAttr{Type: service, SendCQ: e.sendCQ, RecvCQ: e.recvCQ,
		Cap: uverbs.QPCap{MaxSendWR: depth, MaxRecvWR: depth, MaxSendSGE: 1, MaxRecvSGE: 1, MaxInline: smallBytes}})
	if err != nil {
		return nil, err
	}
	e.closers = append(e.closers, e.qp.Close)
	attr, mask := uverbs.QPAttr{State: uverbs.QPStateInit, Port: 1}, uverbs.AttrState|uverbs.AttrPKeyIndex|uverbs.AttrPort
	if service == uverbs.QPTypeUD {
		attr.QKey = qkey
		mask |= uverbs.AttrQKey
	} else {
		attr.AccessFlags = access
		mask |= uverbs.AttrAccessFlags
	}
	if err := e.qp.Modify(&attr, mask); err != nil {
		return nil, err
	}
	for i := range depth {
		e.recvs = append(e.recvs, uverbs.RecvWR{WRID: uint64(i), SGList: []uverbs.SGE{e.mr.SGE(memBytes/2+i*slotBytes, slotBytes)}})
	}
	_, err = e.qp.PostRecv(e.recvs)
	return e, err
}

// self is what the other end wants to know.
func (e *end) self(kind string) job {
	return job{Kind: kind, GID: e.gid.GID, QPN: e.qp.QPN(), Addr: e.mr.SGE(0, 0).Addr, RKey: e.mr.RKey()}
}

// connect leads to the other end.
func (e *end) connect(remote job) error {
	e.remote = remote
	av := uverbs.AHAttr{DGID: remote.GID, SGIDIndex: uint8(e.gid.Index), HopLimit: 64, IsGlobal: true, Port: 1}
	e.wr = uverbs.SendWR{Opcode: uverbs.WRSend, Flags: uverbs.SendSignaled | uverbs.SendInline, SGList: []uverbs.SGE{e.mr.SGE(0, smallBytes)}}
	if e.qp.Type() == uverbs.QPTypeUD {
		var err error
		if e.ah, err = e.pd.CreateAH(&av); err != nil {
			return err
		}
		e.closers = append(e.closers, e.ah.Close)
		e.wr.AH, e.wr.RemoteQPN, e.wr.RemoteQKey = e.ah, remote.QPN, qkey
		return errors.Join(
			e.qp.Modify(&uverbs.QPAttr{State: uverbs.QPStateRTR}, uverbs.AttrState),
			e.qp.Modify(&uverbs.QPAttr{State: uverbs.QPStateRTS}, uverbs.AttrState|uverbs.AttrSQPSN))
	}
	port, err := e.pd.Context().QueryPort(1)
	if err != nil {
		return err
	}
	return errors.Join(
		e.qp.Modify(&uverbs.QPAttr{State: uverbs.QPStateRTR, AV: av, PathMTU: port.ActiveMTU, DestQPN: remote.QPN, MaxDestRdAtomic: readDepth, MinRNRTimer: 12},
			uverbs.AttrState|uverbs.AttrAV|uverbs.AttrPathMTU|uverbs.AttrDestQPN|uverbs.AttrRQPSN|uverbs.AttrMaxDestRdAtomic|uverbs.AttrMinRNRTimer),
		e.qp.Modify(&uverbs.QPAttr{State: uverbs.QPStateRTS, Timeout: 14, RetryCnt: 7, RNRRetry: 7, MaxRdAtomic: readDepth},
			uverbs.AttrState|uverbs.AttrTimeout|uverbs.AttrRetryCnt|uverbs.AttrRNRRetry|uverbs.AttrSQPSN|uverbs.AttrMaxRdAtomic))
}

func (e *end) close() error {
	var errs []error
	for _, c := range slices.Backward(e.closers) {
		errs = append(errs, c())
	}
	return errors.Join(errs...)
}

// take polls for at least one completion. Only every now and then it asks the
// clock how long that takes.
func (e *end) take(cq *uverbs.CQ) (n int, err error) {
	var deadline time.Time
	for i := 1; ; i++ {
		if n, err = cq.Poll(e.wc); n > 0 || err != nil {
			break
		}
		if i%100_000 == 0 {
			now := time.Now()
			if deadline.IsZero() {
				deadline = now.Add(patience / 4)
			}
			if now.After(deadline) {
				return 0, fmt.Errorf("no completion for %v", patience/4)
			}
		}
	}
	for _, wc := range e.wc[:n] {
		if wc.Status != uverbs.WCSuccess {
			return n, fmt.Errorf("a completion with %v", wc.Status)
		}
	}
	return n, err
}

func (e *end) post(wrs ...uverbs.SendWR) error {
	_, err := e.qp.PostSend(wrs)
	return err
}

// pong waits for one message and posts its receive again.
func (e *end) pong() error {
	n, err := e.take(e.recvCQ)
	for _, wc := range e.wc[:n] {
		if err == nil {
			_, err = e.qp.PostRecv(e.recvs[wc.WRID : wc.WRID+1])
		}
	}
	return err
}

// ping sends one message. Of every 32 only the last asks for a completion, which
// tells that there is room again.
func (e *end) ping() error {
	wr := e.wr
	if e.pings++; e.pings%32 != 0 {
		wr.Flags &^= uverbs.SendSignaled
		return e.post(wr)
	}
	if err := e.post(wr); err != nil {
		return err
	}
	_, err := e.take(e.sendCQ)
	return err
}

// connected makes our end and the peer's, and lets fn use ours.
func connected(m *machine, kind string, count int, fn func(*end) error) (err error) {
	e, err := newEnd(m.device, job{Kind: kind}.service())
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, e.close()) }()
	self := e.self(kind)
	self.Count = count
	p, remote, err := startPeer(m, self)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, p.end()) }()
	if err := e.connect(remote); err != nil {
		return err
	}
	return fn(e)
}

// oursLatency is half of a round trip in microseconds, the median, as
// ib_send_lat counts.
func oursLatency(kind string) func(*machine) (float64, error) {
	const rounds = 2000
	return func(m *machine) (us float64, err error) {
		took := make([]time.Duration, 0, rounds)
		err = connected(m, kind, warmUp+rounds, func(e *end) error {
			for i := range warmUp + rounds {
				begin := time.Now()
				if err := cmp.Or(e.ping(), e.pong()); err != nil {
					return fmt.Errorf("round %d: %w", i, err)
				}
				if i >= warmUp {
					took = append(took, time.Since(begin))
				}
			}
			return nil
		})
		if err != nil {
			return 0, err
		}
		slices.Sort(took)
		return float64(took[rounds/2].Nanoseconds()) / 2000, nil
	}
}

// oursRate is thousands of sends per second.
func oursRate(kind string) func(*machine) (float64, error) {
	const messages = 20_000 / batch * batch
	return func(m *machine) (rate float64, err error) {
		err = connected(m, kind, messages, func(e *end) error {
			begin := time.Now()
			if err := e.stream(messages, batch, e.wr); err != nil {
				return err
			}
			rate = messages / time.Since(begin).Seconds() / 1000
			return nil
		})
		return rate, err
	}
}

// oursRead is MiB per second of READs of n bytes.
func oursRead(n, times int) func(*machine) (float64, error) {
	return func(m *machine) (rate float64, err error) {
		err = connected(m, jobRead, 0, func(e *end) error {
			wr := uverbs.SendWR{Opcode: uverbs.WRRDMARead, Flags: uverbs.SendSignaled, RemoteAddr: e.remote.Addr, RKey: e.remote.RKey,
				SGList: []uverbs.SGE{e.mr.SGE(memBytes/2, n)}}
			begin := time.Now()
			if err := e.keep(times, readDepth, []uverbs.SendWR{wr}); err != nil {
				return err
			}
			rate = float64(n) * float64(times) / (1 << 20) / time.Since(begin).Seconds()
			return nil
		})
		return rate, err
	}
}

// stream posts wr n times, by bursts, of which one in each asks for a completion.
func (e *end) stream(n, burst int, wr uverbs.SendWR) error {
	wr.Flags &^= uverbs.SendSignaled
	wrs := slices.Repeat([]uverbs.SendWR{wr}, burst)
	wrs[burst-1].Flags |= uverbs.SendSignaled
	return e.keep(n/burst, depth/burst, wrs)
}

// keep posts wrs, whose last asks for a completion, n times; limit of them are
// under way at a time.
func (e *end) keep(n, limit int, wrs []uverbs.SendWR) error {
	for posted, done := 0, 0; done < n; {
		for posted < n && posted-done < limit {
			if err := e.post(wrs...); err != nil {
				return fmt.Errorf("after %d posts: %w", posted, err)
			}
			posted++
		}
		got, err := e.take(e.sendCQ)
		if err != nil {
			return fmt.Errorf("after %d of %d completions: %w", done, n, err)
		}
		done += got
	}
	return nil
}
