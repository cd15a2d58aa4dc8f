package main

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/rrppcc-go/rrppcc/uverbs"
)

// Atomics work on a word in the order of the host's bytes, and both halves run
// on little-endian machines: what is seen is the same number.
var word = binary.LittleEndian

const wordAt = inAt + 8*13

func stepAtomics(p *party, active bool) error {
	const start = 0xfffffffffffffff0
	if !active {
		p.poison(inAt, 4096)
		word.PutUint64(p.mem(wordAt, 8), start)
	}
	if err := p.meet("prepared"); err != nil {
		return err
	}
	ops := []struct {
		op         uverbs.WROpcode
		arg, swap  uint64
		found, now uint64
	}{
		{uverbs.WRAtomicFetchAndAdd, 0x21, 0, start, 0x11}, // wraps
		{uverbs.WRAtomicCmpAndSwp, 0x11, 0x0123456789abcdef, 0x11, 0x0123456789abcdef},
		{uverbs.WRAtomicCmpAndSwp, 0x11, 5, 0x0123456789abcdef, 0x0123456789abcdef},
		{uverbs.WRAtomicFetchAndAdd, ^uint64(0), 0, 0x0123456789abcdef, 0x0123456789abcdee},
	}
	if active {
		for i, o := range ops {
			result := inAt + 64
			p.poison(result, 8)
			if err := post(p.rc, uverbs.SendWR{WRID: uint64(i), Opcode: o.op, Flags: uverbs.SendSignaled, SGList: []uverbs.SGE{p.sge(result, 8)},
				RemoteAddr: p.remote(wordAt), RKey: p.peer.RKey, CompareAdd: o.arg, Swap: o.swap}); err != nil {
				return err
			}
			op := uverbs.WCFetchAdd
			if o.op == uverbs.WRAtomicCmpAndSwp {
				op = uverbs.WCCompSwap
			}
			if err := p.sent(uint64(i), op); err != nil {
				return err
			}
			if got := word.Uint64(p.mem(result, 8)); got != o.found {
				return fmt.Errorf("atomic %d found %#x, want %#x", i, got, o.found)
			}
		}
	}
	if err := p.meet("done"); err != nil || active {
		return err
	}
	if got, want := word.Uint64(p.mem(wordAt, 8)), ops[len(ops)-1].now; got != want {
		return fmt.Errorf("the word is %#x, want %#x", got, want)
	}
	for _, at := range []int{wordAt - 8, wordAt + 8} {
		if got := word.Uint64(p.mem(at, 8)); got != 0xeeeeeeeeeeeeeeee {
			return fmt.Errorf("the word at %d is %#x", at-wordAt, got)
		}
	}
	return nil
}

// A queue of all opcodes: rounds of SEND, WRITE, READ and FADD, of which only
// the last is signaled.
const (
	rounds    = 24
	roundSpan = 16 << 10
	addAt     = inAt + rounds*roundSpan
	foundAt   = addAt + 8
)

// roundLen is how long the messages of a round are: no longer than half of its
// span.
func roundLen(i int) int { return min((i*i*97+i)%12000, roundSpan/2-guard) }

// Where a round's data are, behind inAt and outAt: first of the SEND, then of
// the WRITE or the READ.
func roundAt(i, part int) int { return i*roundSpan + part*(roundSpan/2) }

// post4 posts a round.
func (p *party) post4(i int, last bool) error {
	n := roundLen(i)
	flags := uverbs.SendFlags(0)
	if last {
		flags = uverbs.SendSignaled
	}
	return post(p.rc,
		uverbs.SendWR{Opcode: uverbs.WRSend, SGList: []uverbs.SGE{p.sge(outAt+roundAt(i, 0), n)}},
		uverbs.SendWR{Opcode: uverbs.WRRDMAWrite, SGList: []uverbs.SGE{p.sge(outAt+roundAt(i, 1), n)}, RemoteAddr: p.remote(inAt + roundAt(i, 1)), RKey: p.peer.RKey},
		uverbs.SendWR{Opcode: uverbs.WRRDMARead, SGList: []uverbs.SGE{p.sge(inAt+largest/2+roundAt(i, 0), p.queuedRead(i))}, RemoteAddr: p.remote(outAt + roundAt(i, 1)), RKey: p.peer.RKey},
		uverbs.SendWR{WRID: uint64(i), Opcode: uverbs.WRAtomicFetchAndAdd, Flags: flags, SGList: []uverbs.SGE{p.sge(foundAt+8*i, 8)},
			RemoteAddr: p.remote(addAt), RKey: p.peer.RKey, CompareAdd: uint64(i)})
}

// prepareRounds fills what is sent and read, and posts the receives.
func (p *party) prepareRounds(seed uint32, receives bool) error {
	word.PutUint64(p.mem(addAt, 8), 0)
	for i := range rounds {
		n := roundLen(i)
		for part := range uint32(2) {
			// One byte at least: queuedRead may make 0 that.
			p.fill(outAt+roundAt(i, int(part)), max(n, 1), seed+uint32(i)*2+part)
			p.poison(inAt+roundAt(i, int(part)), n)
		}
		p.poison(inAt+largest/2+roundAt(i, 0), p.queuedRead(i))
		if receives {
			if err := recv(p.rc, uint64(i), p.sge(inAt+roundAt(i, 0), n)); err != nil {
				return err
			}
		}
	}
	return nil
}

// postRounds posts all rounds and waits for the last.
func (p *party) postRounds() error {
	for i := range rounds {
		if err := p.post4(i, i == rounds-1); err != nil {
			return err
		}
	}
	return p.sent(rounds-1, uverbs.WCFetchAdd)
}

// checkActive looks at what was read and found; checkPassive at what was sent,
// written and added.
func (p *party) checkActive(seed uint32) error {
	sum := uint64(0)
	for i := range rounds {
		if err := p.holds(inAt+largest/2+roundAt(i, 0), p.queuedRead(i), seed+uint32(i)*2+1); err != nil {
			return fmt.Errorf("READ %d: %w", i, err)
		}
		if got := word.Uint64(p.mem(foundAt+8*i, 8)); got != sum {
			return fmt.Errorf("FADD %d found %d, want %d", i, got, sum)
		}
		sum += uint64(i)
	}
	return nil
}

func (p *party) checkPassive(seed uint32) error {
	for i := range rounds {
		n := roundLen(i)
		if _, err := p.received(uint64(i), uverbs.WCRecv, n); err != nil {
			return fmt.Errorf("SEND %d: %w", i, err)
		}
		for part := range uint32(2) {
			if err := p.holds(inAt+roundAt(i, int(part)), n, seed+uint32(i)*2+part); err != nil {
				return fmt.Errorf("round %d, part %d: %w", i, part, err)
			}
		}
	}
	if got := word.Uint64(p.mem(addAt, 8)); got != rounds*(rounds-1)/2 {
		return fmt.Errorf("the sum is %d", got)
	}
	return nil
}

func stepMixed(p *party, active bool) error {
	const activeSeed, passiveSeed = 1000, 2000
	seed := uint32(passiveSeed)
	if active {
		seed = activeSeed
	}
	if err := errors.Join(p.prepareRounds(seed, !active), p.meet("prepared")); err != nil {
		return err
	}
	if active {
		if err := p.postRounds(); err != nil {
			return err
		}
	}
	if err := p.meet("done"); err != nil {
		return err
	}
	if active {
		return p.checkActive(passiveSeed)
	}
	return p.checkPassive(activeSeed)
}

// stepBoth is stepMixed in both directions at once.
func stepBoth(p *party, active bool) error {
	seeds := [2]uint32{3000, 4000}
	if active {
		seeds[0], seeds[1] = seeds[1], seeds[0]
	}
	if err := errors.Join(p.prepareRounds(seeds[0], true), p.meet("prepared")); err != nil {
		return err
	}
	if err := p.postRounds(); err != nil {
		return err
	}
	if err := p.meet("done"); err != nil {
		return err
	}
	return errors.Join(p.checkActive(seeds[1]), p.checkPassive(seeds[1]))
}

// stepRNR posts the receive when the SEND was turned away at least once.
func stepRNR(p *party, active bool) error {
	const n, seed = 3000, 500
	if active {
		p.fill(outAt, n, seed)
		if err := post(p.rc, uverbs.SendWR{WRID: 1, Opcode: uverbs.WRSend, Flags: uverbs.SendSignaled, SGList: []uverbs.SGE{p.sge(outAt, n)}}); err != nil {
			return err
		}
		return p.sent(1, uverbs.WCSend)
	}
	// The SEND may be here already: no receive is posted, so there is one NAK at
	// least from now on, or two if the first came before this.
	before, err := p.count()
	if err != nil {
		return err
	}
	if err := until("an RNR NAK", func() (bool, error) {
		now, err := p.count()
		return now.RNRs > before.RNRs, err
	}); err != nil {
		return err
	}
	p.poison(inAt, n)
	if err := recv(p.rc, 2, p.sge(inAt, n)); err != nil {
		return err
	}
	if _, err := p.received(2, uverbs.WCRecv, n); err != nil {
		return err
	}
	return p.holds(inAt, n, seed)
}
