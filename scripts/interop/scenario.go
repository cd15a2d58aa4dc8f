package main

import (
	"fmt"
	"io"
	"time"

	"github.com/rrppcc-go/rrppcc/uverbs"
)

// party is one half in a scenario, with its queue pairs connected to the other's.
type party struct {
	*half
	*talk
	rc, ud *uverbs.QP
	ah     *uverbs.AH
	peer   params
	start  counts // of the device, when the scenario began
	lossy  bool   // packets get lost, repeated and late
}

// params is what one half tells the other.
type params struct {
	GID    uverbs.GID
	MTU    uverbs.MTU
	RC, UD uint32 // QPNs
	PSN    uint32
	Addr   uint64 // of the memory
	RKey   uint32
	Limits limits
}

// A step is run twice, with each half once the active one.
type step struct {
	name  string
	lossy bool // is to work where packets get lost, too
	run   func(p *party, active bool) error
}

var steps = []step{
	{"SEND", true, stepSend},
	{"SEND with immediate, inline, gathered", true, stepSendShapes},
	{"WRITE", true, stepWrite},
	{"WRITE with immediate", true, stepWriteImm},
	{"READ", true, stepRead},
	{"atomics", true, stepAtomics},
	{"a queue of all opcodes", true, stepMixed},
	{"both directions at once", true, stepBoth},
	{"SEND before there is a receive", false, stepRNR},
	{"datagrams", false, stepDatagrams},
	{"every packet was counted", false, stepCount},
	{"wrong rkey", false, stepWrongRKey},
	{"READ out of bounds", false, stepOutOfBounds},
	{"SEND that is too long", false, stepTooLong},
	{"SEND to nobody", false, stepNobody},
}

// runScenario runs all steps with the other half, or those that are to work on a
// lossy wire.
func runScenario(h *half, t *talk, lossy bool, log io.Writer) error {
	p := &party{half: h, talk: t, lossy: lossy}
	var err error
	if p.start, err = h.count(); err != nil {
		return err
	}
	if err := p.connect(); err != nil {
		return fmt.Errorf("connect: %w", err)
	}
	theirs, err := swap(t, h.gid.GID.String() < p.peer.GID.String())
	if err != nil {
		return err
	}
	for _, s := range steps {
		if lossy && !s.lossy {
			continue
		}
		for _, active := range []bool{!theirs, theirs} {
			if err := p.step(s, active); err != nil {
				who := "passive"
				if active {
					who = "active"
				}
				return fmt.Errorf("%s, %s: %w", s.name, who, err)
			}
		}
		fmt.Fprintf(log, "ok: %s\n", s.name)
	}
	return nil
}

func (p *party) step(s step, active bool) error {
	if err := p.meet("begin " + s.name); err != nil {
		return err
	}
	if err := s.run(p, active); err != nil {
		p.tell(meeting{At: s.name, Err: err.Error()}) // the other half waits somewhere
		return err
	}
	return p.meet("end " + s.name)
}

func (p *party) params(rc, ud uint32, psn uint32) params {
	return params{GID: p.gid.GID, MTU: p.mtu, RC: rc, UD: ud, PSN: psn, Addr: p.mr.Addr(), RKey: p.mr.RKey(), Limits: p.limits}
}

// nearWrap is a first PSN from which the PSNs soon start over.
func nearWrap(qpn uint32) uint32 { return 0xffffc0 | qpn&0x3f }

func (p *party) connect() (err error) {
	if p.rc, err = p.pair(func(l *link) {}); err != nil {
		return err
	}
	if p.ud, err = p.createQP(uverbs.QPTypeUD); err != nil {
		return err
	}
	if err := upUD(p.ud, nearWrap(p.ud.QPN())); err != nil {
		return err
	}
	if p.peer, err = swap(p.talk, p.params(p.rc.QPN(), p.ud.QPN(), 0)); err != nil {
		return err
	}
	av := p.to(p.peer.GID)
	if p.ah, err = p.pd.CreateAH(&av); err != nil {
		return err
	}
	p.closers = append(p.closers, p.ah.Close)
	return nil
}

// pair makes an RC QP that is connected to one of the other half, who calls it
// too. change makes the connection a special one.
func (p *party) pair(change func(l *link)) (*uverbs.QP, error) {
	qp, err := p.createQP(uverbs.QPTypeRC)
	if err != nil {
		return nil, err
	}
	if err := initRC(qp); err != nil {
		return nil, err
	}
	psn := nearWrap(qp.QPN())
	peer, err := swap(p.talk, p.params(qp.QPN(), 0, psn))
	if err != nil {
		return nil, err
	}
	// 0.27 s: an emulated machine on a busy one is away for that long.
	l := link{gid: peer.GID, qpn: peer.RC, psn: peer.PSN, own: psn, mtu: min(peer.MTU, p.mtu), reads: 4, timeout: 16, retries: 7}
	change(&l)
	if err := p.connectRC(qp, l); err != nil {
		return nil, err
	}
	return qp, p.meet("connected")
}

// sizes of messages: around the edges of packets, and large ones. Where each
// lost packet may cost a timeout they are fewer.
func (p *party) sizes() []int {
	mtu := p.linkMTU()
	if p.lossy {
		return []int{0, mtu + 1, 65536, largest}
	}
	return []int{0, 1, 2, 3, 4, mtu - 1, mtu, mtu + 1, 2 * mtu, 3*mtu + 5, 16*mtu - 3, 65536, 300_001, largest}
}

// linkMTU is that of the path between the halves.
func (p *party) linkMTU() int { return min(p.mtu, p.peer.MTU).Bytes() }

func (p *party) remote(at int) uint64 { return p.peer.Addr + uint64(at) }

func stepSend(p *party, active bool) error {
	for i, n := range p.sizes() {
		seed := uint32(i + 1)
		if !active {
			p.poison(inAt, n)
			if err := recv(p.rc, uint64(i), p.sge(inAt, n)); err != nil {
				return err
			}
		} else {
			p.fill(outAt, n, seed)
		}
		if err := p.meet("posted"); err != nil {
			return err
		}
		if active {
			if err := post(p.rc, uverbs.SendWR{WRID: 7, Opcode: uverbs.WRSend, Flags: uverbs.SendSignaled, SGList: []uverbs.SGE{p.sge(outAt, n)}}); err != nil {
				return err
			}
			if err := p.sent(7, uverbs.WCSend); err != nil {
				return fmt.Errorf("%d bytes: %w", n, err)
			}
			continue
		}
		if _, err := p.received(uint64(i), uverbs.WCRecv, n); err != nil {
			return fmt.Errorf("%d bytes: %w", n, err)
		}
		if err := p.holds(inAt, n, seed); err != nil {
			return fmt.Errorf("%d bytes: %w", n, err)
		}
	}
	return nil
}

func stepSendShapes(p *party, active bool) error {
	const (
		inlined = 50
		parts   = 5003
	)
	mtu := p.linkMTU()
	wrs := []uverbs.SendWR{
		{WRID: 1, Opcode: uverbs.WRSendWithImm, ImmData: 0x01020304, Flags: uverbs.SendSignaled, SGList: []uverbs.SGE{p.sge(outAt, 3*mtu+1)}},
		{WRID: 2, Opcode: uverbs.WRSendWithImm, ImmData: 0xfffefdfc, Flags: uverbs.SendSignaled | uverbs.SendSolicited},
		{WRID: 3, Opcode: uverbs.WRSend, Flags: uverbs.SendSignaled | uverbs.SendInline, SGList: []uverbs.SGE{p.sge(outAt, inlined)}},
		{WRID: 4, Opcode: uverbs.WRSend, Flags: uverbs.SendSignaled, SGList: []uverbs.SGE{p.sge(outAt, 1), p.sge(outAt+1, 1000), p.sge(outAt+1001, parts-1001)}},
	}
	lengths := []int{3*mtu + 1, 0, inlined, parts}
	for i, wr := range wrs {
		n, seed := lengths[i], uint32(100+i)
		if !active {
			p.poison(inAt, n)
			// Scattered as unevenly as it was gathered.
			first := n / 3
			if err := recv(p.rc, wr.WRID, p.sge(inAt, first), p.sge(inAt+first, n-first)); err != nil {
				return err
			}
		} else {
			p.fill(outAt, n, seed)
		}
		if err := p.meet("posted"); err != nil {
			return err
		}
		if active {
			if err := post(p.rc, wr); err != nil {
				return err
			}
			if err := p.sent(wr.WRID, uverbs.WCSend); err != nil {
				return err
			}
			continue
		}
		wc, err := p.received(wr.WRID, uverbs.WCRecv, n)
		if err != nil {
			return err
		}
		if imm := wr.Opcode == uverbs.WRSendWithImm; imm != (wc.Flags&uverbs.WCWithImm != 0) || imm && wc.ImmData != wr.ImmData {
			return fmt.Errorf("message %d: flags %#x, immediate %#x", i, wc.Flags, wc.ImmData)
		}
		if err := p.holds(inAt, n, seed); err != nil {
			return fmt.Errorf("message %d: %w", i, err)
		}
	}
	return nil
}

func stepWrite(p *party, active bool) error {
	for i, n := range p.sizes() {
		seed := uint32(200 + i)
		if active {
			p.fill(outAt, n, seed)
		} else {
			p.poison(inAt, n)
		}
		if err := p.meet("prepared"); err != nil {
			return err
		}
		if active {
			if err := post(p.rc, uverbs.SendWR{WRID: 7, Opcode: uverbs.WRRDMAWrite, Flags: uverbs.SendSignaled, SGList: []uverbs.SGE{p.sge(outAt, n)},
				RemoteAddr: p.remote(inAt), RKey: p.peer.RKey}); err != nil {
				return err
			}
			if err := p.sent(7, uverbs.WCRDMAWrite); err != nil {
				return fmt.Errorf("%d bytes: %w", n, err)
			}
		}
		if err := p.meet("written"); err != nil {
			return err
		}
		if !active {
			if err := p.holds(inAt, n, seed); err != nil {
				return fmt.Errorf("%d bytes: %w", n, err)
			}
		}
	}
	return nil
}

func stepWriteImm(p *party, active bool) error {
	for i, n := range p.sizes() {
		seed := uint32(300 + i)
		if active {
			p.fill(outAt, n, seed)
		} else {
			p.poison(inAt, n)
			if err := recv(p.rc, uint64(i)); err != nil { // the data go elsewhere
				return err
			}
		}
		if err := p.meet("prepared"); err != nil {
			return err
		}
		if active {
			if err := post(p.rc, uverbs.SendWR{WRID: 7, Opcode: uverbs.WRRDMAWriteWithImm, ImmData: seed, Flags: uverbs.SendSignaled,
				SGList: []uverbs.SGE{p.sge(outAt, n)}, RemoteAddr: p.remote(inAt), RKey: p.peer.RKey}); err != nil {
				return err
			}
			if err := p.sent(7, uverbs.WCRDMAWrite); err != nil {
				return fmt.Errorf("%d bytes: %w", n, err)
			}
			continue
		}
		wc, err := p.received(uint64(i), uverbs.WCRecvRDMAWithImm, n)
		if err != nil {
			return fmt.Errorf("%d bytes: %w", n, err)
		}
		if wc.Flags&uverbs.WCWithImm == 0 || wc.ImmData != seed {
			return fmt.Errorf("%d bytes: flags %#x, immediate %#x, want %#x", n, wc.Flags, wc.ImmData, seed)
		}
		if err := p.holds(inAt, n, seed); err != nil {
			return fmt.Errorf("%d bytes: %w", n, err)
		}
	}
	return nil
}

func stepRead(p *party, active bool) error {
	for i, n := range p.readSizes(active) {
		seed := uint32(400 + i)
		if active {
			p.poison(inAt, n)
		} else {
			p.fill(outAt, n, seed)
		}
		if err := p.meet("prepared"); err != nil {
			return err
		}
		if active {
			if err := post(p.rc, uverbs.SendWR{WRID: 7, Opcode: uverbs.WRRDMARead, Flags: uverbs.SendSignaled, SGList: []uverbs.SGE{p.sge(inAt, n)},
				RemoteAddr: p.remote(outAt), RKey: p.peer.RKey}); err != nil {
				return err
			}
			if err := p.sent(7, uverbs.WCRDMARead); err != nil {
				return fmt.Errorf("%d bytes: %w", n, err)
			}
			if err := p.holds(inAt, n, seed); err != nil {
				return fmt.Errorf("%d bytes: %w", n, err)
			}
		}
		if err := p.meet("read"); err != nil {
			return err
		}
	}
	return nil
}

// stepCount compares what each half sent with what the other received: a packet
// that the receiver's ICRC check, or its parser, refused is missing there. The
// last packets of a run, acknowledgements, may still be under way.
func stepCount(p *party, _ bool) error {
	for deadline := time.Now().Add(5 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		now, err := p.count()
		if err != nil {
			return err
		}
		now.Sent -= p.start.Sent
		now.Received -= p.start.Received
		theirs, err := swap(p.talk, now)
		if err != nil {
			return err
		}
		equal := now.Sent == theirs.Received && theirs.Sent == now.Received
		late := time.Now().After(deadline)
		theyToo, err := swap(p.talk, late)
		if err != nil {
			return err
		}
		if equal {
			return nil
		}
		if late || theyToo {
			return fmt.Errorf("packets sent and received: here %d and %d, there %d and %d", now.Sent, now.Received, theirs.Sent, theirs.Received)
		}
	}
}
