package verbstest

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"runtime"
	"time"

	"github.com/rrppcc-go/rrppcc/uverbs"
)

// childMain is the second process.
func childMain(device string, stdin io.Reader, stdout io.Writer) (err error) {
	ctx, done, err := openChild(device)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, ctx.Close(), done()) }()
	e, err := newEcho(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, e.Close()) }()
	lines := bufio.NewReader(stdin)
	var peer peerParams
	line, err := lines.ReadString('\n')
	if err != nil {
		return err
	}
	if err := json.Unmarshal([]byte(line), &peer); err != nil {
		return err
	}
	if err := e.connect(peer); err != nil {
		return err
	}
	text, err := json.Marshal(e.params())
	if err != nil {
		return err
	}
	if _, err := fmt.Fprintln(stdout, string(text)); err != nil {
		return err
	}
	if _, err := lines.ReadString('\n'); err != nil { // "ready"
		return err
	}
	ended := make(chan struct{})
	go func() {
		io.Copy(io.Discard, lines)
		close(ended)
	}()
	return e.serve(ended)
}

// echo is the second process's half: it answers each message with itself.
type echo struct {
	ctx     *uverbs.Context
	port    *uverbs.PortAttr
	gid     uverbs.GIDEntry
	pd      *uverbs.PD
	cq      *uverbs.CQ
	rc, ud  *uverbs.QP
	mr      *uverbs.MR // receives of RC, of UD, then what is exposed
	ah      *uverbs.AH
	peer    peerParams
	closers []func() error // in the order of creation
}

const (
	udAt      = echoRecvs * echoBytes
	udBytes   = 256 + grhBytes
	exposedAt = udAt + echoRecvs*udBytes
)

func newEcho(ctx *uverbs.Context) (_ *echo, err error) {
	e := &echo{ctx: ctx}
	defer func() {
		if err != nil {
			err = errors.Join(err, e.Close())
		}
	}()
	if e.gid, _, err = ctx.ChooseGID(port, -1); err != nil {
		return nil, err
	}
	if e.port, err = ctx.QueryPort(port); err != nil {
		return nil, err
	}
	if e.pd, err = ctx.AllocPD(); err != nil {
		return nil, err
	}
	e.closers = append(e.closers, e.pd.Close)
	mem, unmap, err := mapPages((exposedAt + exposedBytes + pageBytes - 1) &^ (pageBytes - 1))
	if err != nil {
		return nil, err
	}
	e.closers = append(e.closers, unmap)
	if e.mr, err = e.pd.RegisterMR(mem, remoteRW); err != nil {
		return nil, err
	}
	e.closers = append(e.closers, e.mr.Close)
	if e.cq, err = ctx.CreateCQ(&uverbs.CQInitAttr{Depth: 8 * echoRecvs}); err != nil {
		return nil, err
	}
	e.closers = append(e.closers, e.cq.Close)
	for _, q := range []struct {
		qp  **uverbs.QP
		typ uverbs.QPType
	}{{&e.rc, uverbs.QPTypeRC}, {&e.ud, uverbs.QPTypeUD}} {
		if *q.qp, err = e.pd.CreateQP(&uverbs.QPInitAttr{Type: q.typ, SendCQ: e.cq, RecvCQ: e.cq,
			Cap: uverbs.QPCap{MaxSendWR: echoRecvs, MaxRecvWR: echoRecvs, MaxSendSGE: 1, MaxRecvSGE: 1}}); err != nil {
			return nil, err
		}
		e.closers = append(e.closers, (*q.qp).Close)
	}
	return e, nil
}

// Close closes everything, the newest first.
func (e *echo) Close() error {
	var errs []error
	for i := len(e.closers) - 1; i >= 0; i-- {
		errs = append(errs, e.closers[i]())
	}
	e.closers = nil
	return errors.Join(errs...)
}

func (e *echo) params() peerParams {
	return peerParams{GID: e.gid.GID, LID: e.port.LID, RC: e.rc.QPN(), UD: e.ud.QPN(), Addr: e.mr.Addr() + exposedAt, RKey: e.mr.RKey(), MTU: e.port.ActiveMTU}
}

// connect brings the QPs up and posts their receives.
func (e *echo) connect(peer peerParams) (err error) {
	e.peer = peer
	conn := rc{mtu: min(peer.MTU, e.port.ActiveMTU)}
	av := uverbs.AHAttr{DGID: peer.GID, SGIDIndex: uint8(e.gid.Index), HopLimit: 64, IsGlobal: true, Port: port}
	if e.port.LinkLayer == uverbs.LinkLayerInfiniBand {
		av = uverbs.AHAttr{DLID: peer.LID, Port: port}
	}
	for _, s := range []struct {
		qp   *uverbs.QP
		attr *uverbs.QPAttr
		mask uverbs.QPAttrMask
	}{
		{e.rc, conn.init(), rcInit},
		{e.rc, conn.rtr(av, peer.RC, 0), rcRTR},
		{e.rc, conn.rts(e.rc.QPN(), 0), rcRTS},
		{e.ud, &uverbs.QPAttr{State: uverbs.QPStateInit, Port: port, QKey: qkey}, initMask | uverbs.AttrQKey},
		{e.ud, &uverbs.QPAttr{State: uverbs.QPStateRTR}, uverbs.AttrState},
		{e.ud, &uverbs.QPAttr{State: uverbs.QPStateRTS}, udRTS},
	} {
		if err := s.qp.Modify(s.attr, s.mask); err != nil {
			return err
		}
	}
	if e.ah, err = e.pd.CreateAH(&av); err != nil {
		return err
	}
	e.closers = append(e.closers, e.ah.Close)
	for i := range echoRecvs {
		if err := errors.Join(e.post(e.rc, uint64(i)), e.post(e.ud, uint64(i))); err != nil {
			return err
		}
	}
	return nil
}

// slot is the memory of a receive.
func (e *echo) slot(qp *uverbs.QP, i uint64) uverbs.SGE {
	if qp == e.ud {
		return e.mr.SGE(udAt+int(i)*udBytes, udBytes)
	}
	return e.mr.SGE(int(i)*echoBytes, echoBytes)
}

func (e *echo) post(qp *uverbs.QP, i uint64) error {
	_, err := qp.PostRecv([]uverbs.RecvWR{{WRID: i, SGList: []uverbs.SGE{e.slot(qp, i)}}})
	return err
}

// serve echoes until it is told to end.
func (e *echo) serve(ended <-chan struct{}) error {
	wc := make([]uverbs.WC, 16)
	for deadline := time.Now().Add(childLimit); ; {
		n, err := e.cq.Poll(wc)
		if err != nil {
			return err
		}
		for i := range wc[:n] {
			if err := e.answer(&wc[i]); err != nil {
				return err
			}
		}
		if n > 0 {
			continue
		}
		select {
		case <-ended:
			return nil
		default:
			runtime.Gosched()
		}
		if time.Now().After(deadline) {
			return errors.New("nobody ended it")
		}
	}
}

// answer sends a message back; once that is done, its memory receives again.
func (e *echo) answer(wc *uverbs.WC) error {
	qp := e.rc
	if wc.QPN == e.ud.QPN() {
		qp = e.ud
	}
	if wc.Status != uverbs.WCSuccess {
		return fmt.Errorf("work request %d of the %v QP: %v", wc.WRID, qp.Type(), wc.Status)
	}
	if wc.Opcode != uverbs.WCRecv {
		return e.post(qp, wc.WRID)
	}
	sge := e.slot(qp, wc.WRID)
	sge.Length = wc.ByteLen
	wr := uverbs.SendWR{WRID: wc.WRID, Opcode: uverbs.WRSend, Flags: uverbs.SendSignaled, ImmData: wc.ImmData, SGList: []uverbs.SGE{sge}}
	if wc.Flags&uverbs.WCWithImm != 0 {
		wr.Opcode = uverbs.WRSendWithImm
	}
	if qp == e.ud {
		wr.SGList[0].Addr += grhBytes
		wr.SGList[0].Length -= grhBytes
		wr.AH, wr.RemoteQPN, wr.RemoteQKey = e.ah, wc.SrcQP, qkey
	}
	_, err := qp.PostSend([]uverbs.SendWR{wr})
	return err
}
