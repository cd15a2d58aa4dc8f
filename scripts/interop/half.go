package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"time"

	"github.com/rrppcc-go/rrppcc/uverbs"
)

const (
	port     = 1
	qkey     = 0x11111111 // also that of ibv_ud_pingpong
	grhBytes = 40
	depth    = 128 // of the queues

	allAccess = uverbs.AccessLocalWrite | uverbs.AccessRemoteRead | uverbs.AccessRemoteWrite | uverbs.AccessRemoteAtomic

	// The memory of a half: what it sends and lets be read, and what is received
	// and written into.
	largest = 1 << 20
	outAt   = 0
	inAt    = largest + 64<<10
	memory  = 2 * inAt
)

// half is one end of the scenario: a device and what was made on it. All methods
// are for one goroutine.
type half struct {
	ctx    *uverbs.Context
	gid    uverbs.GIDEntry
	mtu    uverbs.MTU
	pd     *uverbs.PD
	sendCQ queue
	recvCQ queue
	mr     *uverbs.MR
	limits limits // of the device's driver

	// count reads the device's counters.
	count func() (counts, error)

	closers []func() error
}

// queue is a CQ with its channel.
type queue struct {
	cq *uverbs.CQ
	ch *uverbs.CompChannel
}

// counts are what a device has counted so far.
type counts struct {
	Sent, Received uint64 // packets
	RNRs           uint64 // RNR NAKs that it has sent
}

// openHalf makes what all queue pairs share. The context stays the caller's.
func openHalf(ctx *uverbs.Context) (_ *half, err error) {
	h := &half{ctx: ctx}
	defer func() {
		if err != nil {
			err = errors.Join(err, h.Close())
		}
	}()
	table, err := ctx.QueryGIDTable()
	if err != nil {
		return nil, err
	}
	if i := slices.IndexFunc(table, isIPv4); i >= 0 {
		h.gid = table[i]
	} else {
		return nil, fmt.Errorf("no IPv4 address among the GIDs of %s: %v", ctx.Device().Name(), table)
	}
	attr, err := ctx.QueryPort(port)
	if err != nil {
		return nil, err
	}
	h.mtu = attr.ActiveMTU
	if h.pd, err = ctx.AllocPD(); err != nil {
		return nil, err
	}
	h.closers = append(h.closers, h.pd.Close)
	mem, unmap, err := mapPages(memory)
	if err != nil {
		return nil, err
	}
	h.closers = append(h.closers, unmap)
	if h.mr, err = h.pd.RegisterMR(mem, allAccess); err != nil {
		return nil, err
	}
	h.closers = append(h.closers, h.mr.Close)
	for _, q := range []*queue{&h.sendCQ, &h.recvCQ} {
		if q.ch, err = ctx.CreateCompChannel(); err != nil {
			return nil, err
		}
		h.closers = append(h.closers, q.ch.Close)
		if q.cq, err = ctx.CreateCQ(&uverbs.CQInitAttr{Depth: 4 * depth, Channel: q.ch}); err != nil {
			return nil, err
		}
		h.closers = append(h.closers, q.cq.Close)
	}
	return h, nil
}

// Close closes everything, the newest first.
func (h *half) Close() error {
	var errs []error
	for i := len(h.closers) - 1; i >= 0; i-- {
		errs = append(errs, h.closers[i]())
	}
	h.closers = nil
	return errors.Join(errs...)
}

// createQP makes a QP that is closed with the half.
func (h *half) createQP(typ uverbs.QPType) (*uverbs.QP, error) {
	qp, err := h.pd.CreateQP(&uverbs.QPInitAttr{Type: typ, SendCQ: h.sendCQ.cq, RecvCQ: h.recvCQ.cq,
		Cap: uverbs.QPCap{MaxSendWR: depth, MaxRecvWR: depth, MaxSendSGE: 3, MaxRecvSGE: 3, MaxInline: 64}})
	if err == nil {
		h.closers = append(h.closers, qp.Close)
	}
	return qp, err
}

// to is the way to the device of gid.
func (h *half) to(gid uverbs.GID) uverbs.AHAttr {
	return uverbs.AHAttr{DGID: gid, SGIDIndex: uint8(h.gid.Index), HopLimit: 64, IsGlobal: true, Port: port}
}

const (
	initMask = uverbs.AttrState | uverbs.AttrPKeyIndex | uverbs.AttrPort
	rtrMask  = uverbs.AttrState | uverbs.AttrAV | uverbs.AttrPathMTU | uverbs.AttrDestQPN | uverbs.AttrRQPSN |
		uverbs.AttrMaxDestRdAtomic | uverbs.AttrMinRNRTimer
	rtsMask = uverbs.AttrState | uverbs.AttrSQPSN | uverbs.AttrMaxRdAtomic | uverbs.AttrTimeout | uverbs.AttrRetryCnt | uverbs.AttrRNRRetry
)

// link is how an RC QP is connected.
type link struct {
	gid      uverbs.GID
	qpn, psn uint32 // of the peer
	own      uint32 // PSN of this QP
	mtu      uverbs.MTU
	reads    uint8 // READs and atomics at a time
	timeout  uint8
	retries  uint8
}

func (h *half) connectRC(qp *uverbs.QP, l link) error {
	if err := qp.Modify(&uverbs.QPAttr{State: uverbs.QPStateRTR, AV: h.to(l.gid), PathMTU: l.mtu, DestQPN: l.qpn, RQPSN: l.psn,
		MaxDestRdAtomic: l.reads, MinRNRTimer: 12}, rtrMask); err != nil {
		return err
	}
	return qp.Modify(&uverbs.QPAttr{State: uverbs.QPStateRTS, SQPSN: l.own, MaxRdAtomic: l.reads, Timeout: l.timeout, RetryCnt: l.retries,
		RNRRetry: 7}, rtsMask)
}

func initRC(qp *uverbs.QP) error {
	return qp.Modify(&uverbs.QPAttr{State: uverbs.QPStateInit, Port: port, AccessFlags: allAccess &^ uverbs.AccessLocalWrite},
		initMask|uverbs.AttrAccessFlags)
}

// upUD brings a UD QP from RESET to RTS.
func upUD(qp *uverbs.QP, psn uint32) error {
	return errors.Join(
		qp.Modify(&uverbs.QPAttr{State: uverbs.QPStateInit, Port: port, QKey: qkey}, initMask|uverbs.AttrQKey),
		qp.Modify(&uverbs.QPAttr{State: uverbs.QPStateRTR}, uverbs.AttrState),
		qp.Modify(&uverbs.QPAttr{State: uverbs.QPStateRTS, SQPSN: psn}, uverbs.AttrState|uverbs.AttrSQPSN))
}

func post(qp *uverbs.QP, wrs ...uverbs.SendWR) error {
	n, err := qp.PostSend(wrs)
	if err == nil && n != len(wrs) {
		err = fmt.Errorf("%d of %d sends were posted", n, len(wrs))
	}
	return err
}

func recv(qp *uverbs.QP, id uint64, sges ...uverbs.SGE) error {
	_, err := qp.PostRecv([]uverbs.RecvWR{{WRID: id, SGList: sges}})
	return err
}

// until asks now and then until done answers true.
func until(what string, done func() (bool, error)) error {
	for deadline := time.Now().Add(patience); ; time.Sleep(time.Millisecond) {
		if ok, err := done(); ok || err != nil {
			return err
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("waited %v for %s", patience, what)
		}
	}
}

// spins is how often a queue is polled before its channel is waited for: the
// other machine needs the processor, too.
const spins = 100

// take waits for n completions.
func (q *queue) take(n int) ([]uverbs.WC, error) {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	wc := make([]uverbs.WC, n)
	got := 0
	poll := func() error {
		k, err := q.cq.Poll(wc[got:])
		got += k
		return err
	}
	for i := 0; got < n; i++ {
		if err := poll(); err != nil {
			return nil, err
		}
		if i%spins < spins-1 || got == n {
			runtime.Gosched()
			continue
		}
		// What came before the queue was armed raises no event.
		if err := errors.Join(q.cq.Arm(false), poll()); err != nil {
			return nil, err
		}
		if got == n {
			break
		}
		if _, err := q.ch.Wait(ctx); err != nil {
			return nil, fmt.Errorf("%d of %d completions in %v: %w; came: %+v", got, n, patience, err, wc[:got])
		}
	}
	return wc, nil
}

// sent waits for the success of work request id.
func (h *half) sent(id uint64, op uverbs.WCOpcode) error {
	wc, err := h.sendCQ.take(1)
	if err == nil && (wc[0].Status != uverbs.WCSuccess || wc[0].WRID != id || wc[0].Opcode != op) {
		err = fmt.Errorf("completion %+v (%v), want success of work request %d, a %v", wc[0], wc[0].Status, id, op)
	}
	return err
}

// received waits for a message of n bytes in receive id.
func (h *half) received(id uint64, op uverbs.WCOpcode, n int) (uverbs.WC, error) {
	wc, err := h.recvCQ.take(1)
	if err != nil {
		return uverbs.WC{}, err
	}
	if wc[0].Status != uverbs.WCSuccess || wc[0].WRID != id || wc[0].Opcode != op || int(wc[0].ByteLen) != n {
		err = fmt.Errorf("completion %+v (%v), want success of receive %d, a %v of %d bytes", wc[0], wc[0].Status, id, op, n)
	}
	return wc[0], err
}

func (h *half) mem(at, n int) []byte        { return h.mr.Bytes()[at : at+n] }
func (h *half) sge(at, n int) uverbs.SGE    { return h.mr.SGE(at, n) }
func (h *half) fill(at, n int, seed uint32) { fill(h.mem(at, n), seed) }

// fill writes bytes that tell the seed and the place, with a period that no
// packet size divides.
func fill(b []byte, seed uint32) {
	x := seed*2654435761 + 12345
	for i := range b {
		if i%251 == 0 {
			x = x*1664525 + 1013904223
		}
		b[i] = byte(x>>24) + byte(i%251)
	}
}

// guard is how many bytes behind a message must stay as they were.
const guard = 64

// poison prepares n bytes, and a few more, for holds.
func (h *half) poison(at, n int) {
	b := h.mem(at, n+guard)
	for i := range b {
		b[i] = 0xee
	}
}

// holds checks that the n bytes are what fill writes, and those behind them
// still poison.
func (h *half) holds(at, n int, seed uint32) error {
	want := make([]byte, n+guard)
	fill(want[:n], seed)
	copy(want[n:], bytes.Repeat([]byte{0xee}, guard))
	return same(h.mem(at, n+guard), want)
}

func same(got, want []byte) error {
	if bytes.Equal(got, want) {
		return nil
	}
	for i := range got {
		if got[i] != want[i] {
			return fmt.Errorf("byte %d of %d is %#x, want %#x", i, len(want), got[i], want[i])
		}
	}
	return fmt.Errorf("%d bytes, want %d", len(got), len(want))
}
