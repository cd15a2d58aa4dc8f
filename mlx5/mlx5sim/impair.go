package mlx5sim

import (
	"bytes"
	"math/rand/v2"
	"net/netip"
	"slices"
	"time"
)

// impairment is one direction of a link that does something to packets. It is
// guarded by the fabric's mutex, as the device is.
type impairment struct {
	dev    *Device
	dir    Direction
	f      Faults
	window time.Duration // of lateness
	buffer int           // bytes that may be held
	rng    rand.PCG
	cut    map[netip.Addr]struct{}

	held      []heldPacket // by time, then in the order of coming
	heldBytes int
	last      time.Duration // when the last packet goes that keeps its order
	busy      time.Duration // until then bandwidth is used up
	seq       uint64
	timer     *time.Timer
	timerAt   time.Duration // 0: not set

	// Packets that go on now, and the room to do it.
	ready []movedPacket
	runs  []run
}

// movedPacket is a packet with where it comes from or goes to.
type movedPacket struct {
	peer  netip.AddrPort
	class ipClass
	ip    []byte // as in burst
	b     []byte
}

type heldPacket struct {
	movedPacket
	at  time.Duration // by the wire's clock
	seq uint64
}

// chance draws one number, whatever p is.
func (im *impairment) chance(p float64) bool {
	return float64(im.rng.Uint64()>>11)/(1<<53) < p
}

// take decides what becomes of a packet. What goes on at once is in ready until
// emit, and not copied.
func (im *impairment) take(p movedPacket, now time.Duration) {
	f, st := &im.f, im.stats()
	// Each packet draws as many numbers as any other, so that its fate does not
	// depend on theirs.
	lost, twice, late, corrupt := im.chance(f.Loss), im.chance(f.Duplicate), im.chance(f.Reorder), im.chance(f.Corrupt)
	jitter, lateness, bit := im.rng.Uint64(), im.rng.Uint64(), im.rng.Uint64()
	if _, ok := im.cut[p.peer.Addr()]; ok {
		st.Partitioned++
		return
	}
	if lost {
		st.Lost++
		return
	}
	at, busy := now, im.busy
	if f.Bandwidth > 0 {
		at = max(at, busy) + time.Duration(float64(len(p.b)*8)*1e9/float64(f.Bandwidth))
		busy = at
	}
	at += f.Delay
	if f.Jitter > 0 {
		at += time.Duration(jitter % uint64(f.Jitter))
	}
	if late {
		at += 1 + time.Duration(lateness%uint64(im.window))
	} else {
		at = max(at, im.last)
	}
	if at > now && im.heldBytes+len(p.b) > im.buffer {
		st.Overflowed++
		return
	}
	im.busy = busy
	if late {
		st.Reordered++
	} else {
		im.last = at
	}
	if corrupt {
		st.Corrupted++
		p.b = flipped(p.b, bit)
	}
	im.put(p, at, now)
	if twice {
		st.Duplicated++
		im.put(p, at, now)
	}
}

// flipped is pkt with another bit n. The byte of the congestion marks stays: the
// ICRC does not cover it.
func flipped(pkt []byte, n uint64) []byte {
	const marks = 4
	if len(pkt) <= marks+1 {
		return pkt // only strangers send such
	}
	pkt = bytes.Clone(pkt)
	n %= uint64(len(pkt)-1) * 8
	i := n / 8
	if i >= marks {
		i++
	}
	pkt[i] ^= 1 << (n % 8)
	return pkt
}

func (im *impairment) put(p movedPacket, at, now time.Duration) {
	if at <= now {
		im.ready = append(im.ready, p)
		return
	}
	p.b, p.ip = bytes.Clone(p.b), bytes.Clone(p.ip)
	im.heldBytes += len(p.b)
	im.seq++
	h := heldPacket{p, at, im.seq}
	i := len(im.held) // most packets go last
	for i > 0 && im.held[i-1].at > at {
		i--
	}
	im.held = slices.Insert(im.held, i, h)
}

// release makes ready what is due.
func (im *impairment) release(now time.Duration) {
	n := 0
	for n < len(im.held) && im.held[n].at <= now {
		im.heldBytes -= len(im.held[n].b)
		im.ready = append(im.ready, im.held[n].movedPacket)
		n++
	}
	clear(im.held[:n])
	im.held = im.held[n:]
}

// emit passes on what is ready, and returns how many packets the link refused.
func (im *impairment) emit() (refused int) {
	d := im.dev
	if im.dir == Inbound {
		for _, p := range im.ready {
			d.receive(p.peer, p.class, p.ip, p.b)
		}
	} else if len(im.ready) > 0 {
		for _, p := range im.ready {
			im.runs = append(im.runs, run{to: p.peer, class: p.class, size: len(p.b), b: p.b})
		}
		refused = d.link.send(im.runs)
	}
	clear(im.ready)
	clear(im.runs)
	im.ready, im.runs = im.ready[:0], im.runs[:0]
	return refused
}

// pass has the packets of runs go to the link.
func (im *impairment) pass(runs []run) (refused int) {
	now := im.dev.wire.now()
	im.release(now)
	for i := range runs {
		for pkt := range slices.Chunk(runs[i].b, runs[i].size) {
			im.take(movedPacket{peer: runs[i].to, class: runs[i].class, b: pkt}, now)
		}
	}
	refused = im.emit()
	im.schedule(now)
	return refused
}

// arrive has packets of the link go to the device.
func (im *impairment) arrive(bursts []burst) {
	now := im.dev.wire.now()
	im.release(now)
	for i := range bursts {
		in := &bursts[i]
		for b := in.b; len(b) > 0; {
			pkt := b[:min(in.size, len(b))]
			b = b[len(pkt):]
			im.take(movedPacket{in.from, in.class, in.ip, pkt}, now)
		}
	}
	im.emit()
	im.schedule(now)
}

// schedule sets the timer for what is held.
func (im *impairment) schedule(now time.Duration) {
	if len(im.held) == 0 || im.timerAt != 0 && im.timerAt <= im.held[0].at {
		return
	}
	im.timerAt = im.held[0].at
	if im.timer == nil {
		im.timer = time.AfterFunc(im.timerAt-now, im.fire)
		return
	}
	im.timer.Reset(im.timerAt - now)
}

// fire passes on what is due.
func (im *impairment) fire() {
	d := im.dev
	d.fab.mu.Lock()
	defer d.fab.mu.Unlock()
	im.timerAt = 0
	if d.closed {
		return
	}
	now := d.wire.now()
	im.release(now)
	d.stats.Drops.LinkTx += uint64(im.emit())
	im.schedule(now)
	im.retire()
	d.flushWire()
}

// retire takes the impairment off the link if it does nothing any more.
func (im *impairment) retire() {
	if im.f == (Faults{}) && len(im.cut) == 0 && len(im.held) == 0 {
		*im.dev.impairment(im.dir) = nil
	}
}

// stop ends the timer. What is held is lost.
func (im *impairment) stop() {
	if im != nil && im.timer != nil {
		im.timer.Stop()
	}
}

func (im *impairment) stats() *FaultStats {
	if im.dir == Inbound {
		return &im.dev.stats.FaultsIn
	}
	return &im.dev.stats.FaultsOut
}
