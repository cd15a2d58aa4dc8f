package engine

// simNode is an endpoint and its NIC.
type simNode struct {
	*endpoint
	s        *sim
	id       int
	dead     bool
	skew     int64 // of its clock
	ring     [][]byte
	freeRing []uint32
	arrived  []Rx
	done     []func(now int64) // completions that the owner has not polled yet
	submit   []func(now int64) // what other goroutines ask of the owner
	wakeAt   int64             // of the poll that is planned, 0 = none
	held     int
	granted  map[uint32]*simOffer // by token
	depth    int                  // handlers that block
	polling  int                  // polls under way
	out      []*simSession        // of which it is the client
}

// clock is the node's own time.
func (n *simNode) clock() int64 { return n.s.now + n.skew }

// ask is what another goroutine does: fn runs on the owner.
func (n *simNode) ask(fn func(now int64)) {
	n.submit = append(n.submit, fn)
	n.wake(n.s.upTo(5000))
}

// wake plans a poll at the latest after d.
func (n *simNode) wake(d int64) {
	at := n.s.now + d
	if n.dead || n.wakeAt != 0 && n.wakeAt <= at {
		return
	}
	n.wakeAt = at
	n.s.after(d, func() {
		if n.wakeAt == at {
			n.wakeAt = 0
			n.poll()
		}
	})
}

// poll is one turn of the owner's loop.
func (n *simNode) poll() {
	s := n.s
	if n.dead {
		return
	}
	n.polling++
	defer n.account()
	now := n.clock()
	n.e.Receive(now, nil) // it polls all the time, and has just found nothing
	submit := n.submit
	n.submit = nil
	for _, fn := range submit {
		fn(now)
	}
	n.completions(now)
	burst := n.arrived
	n.arrived = nil
	n.e.Receive(now, burst)
	for i := range burst {
		if burst[i].Held {
			n.held++
		} else {
			n.repost(burst[i].Slot)
		}
	}
	n.e.Tick(now)
	for range 4 {
		n.post(now)
		n.e.Flushed()
		if n.e.Idle() {
			break
		}
	}
	for _, slot := range n.e.Released {
		n.held--
		n.repost(slot)
	}
	n.e.Released = n.e.Released[:0]
	if !n.e.Idle() || len(n.submit)+len(n.done)+len(n.arrived) > 0 {
		n.wake(s.upTo(5000))
	}
	if at, ok := n.e.NextTimer(); ok {
		n.wake(max(at-now, 1) + s.rng.Int64N(20_000))
	}
}

func (n *simNode) completions(now int64) {
	done := n.done
	n.done = nil
	for _, fn := range done {
		fn(now)
	}
}

// account checks, after every poll, that each receive buffer is in one place.
func (n *simNode) account() {
	n.polling--
	if n.polling == 0 && !n.dead && n.held+len(n.freeRing)+len(n.arrived) != len(n.ring) {
		n.s.tb.Fatalf("node %d: %d receive buffers are held, %d are free and %d have arrived, of %d", n.id, n.held, len(n.freeRing), len(n.arrived), len(n.ring))
	}
}

// repost gives a receive buffer back to the NIC; its content is gone.
func (n *simNode) repost(slot uint32) {
	scribble(n.ring[slot])
	n.freeRing = append(n.freeRing, slot)
}

func scribble(b []byte) {
	for i := range b {
		b[i] = 0xEE
	}
}

// post hands the engine's wishes to the NIC. Now and then it finds the send
// queue full and takes completions meanwhile, as the transport does.
func (n *simNode) post(now int64) {
	s := n.s
	if n.e.Unstamped() {
		n.e.Stamp(now)
	}
	for i := 0; i < len(n.e.Tx); i++ {
		if s.chance(0.05) {
			n.completions(now)
		}
		tx := n.e.Tx[i]
		l := s.links[tx.Dest]
		if l.broken { // the peer is gone: not posted
			n.e.TxDone(tx.Token)
			continue
		}
		head := append([]byte(nil), tx.Head[:tx.HeadLen]...)
		if tx.Token == 0 {
			if int(tx.Data.Len) > n.e.cfg.MaxInline {
				s.tb.Fatalf("%d bytes without a token", tx.Data.Len)
			}
			n.send(l, append(head, n.gather(tx.Data)...))
			continue
		}
		s.after(s.upTo(30_000), func() { // the NIC gets to it
			n.checkWhole(&tx)
			n.send(l, append(head, n.gather(tx.Data)...))
			s.after(s.upTo(200_000), func() { // the completion is seen
				n.done = append(n.done, func(int64) { n.e.TxDone(tx.Token) })
				n.wake(s.upTo(5000))
			})
		})
	}
	for _, r := range n.e.Reads {
		n.startRead(r)
	}
	n.e.Reads = n.e.Reads[:0]
	n.postOffers()
}

func (n *simNode) gather(m Mem) []byte {
	if m.Len == 0 {
		return nil
	}
	b := n.mem.at(m.Addr, uint64(m.Len), m.LKey)
	if b == nil {
		n.s.tb.Fatalf("node %d sends memory that is not registered", n.id)
	}
	return b
}

// checkWhole requires that the message of which tx is a part is in its buffer.
func (n *simNode) checkWhole(tx *Tx) {
	h, _ := ParseHeader(tx.Head[:])
	if h.Kind != KindRequestPart && h.Kind != KindResponsePart {
		return
	}
	p, _, ok := ParsePart(tx.Head[HeaderBytes:tx.HeadLen])
	if !ok {
		n.s.tb.Fatalf("node %d sends a bad part", n.id)
	}
	var off uint64
	for _, q := range n.s.pairs {
		if h.Token == q.cs.token || h.Token == q.ss.token {
			off = uint64(p.Index) * uint64(min(q.cs.partBytes, q.ss.partBytes))
		}
	}
	b := n.mem.at(tx.Data.Addr-off, uint64(p.Total), tx.Data.LKey)
	if b == nil || !intact(b) {
		n.s.tb.Errorf("node %d: %v: the NIC sends a part of a buffer that is in use for something else", n.id, h.Kind)
	}
}

// send puts a datagram on the wire: it may get lost, doubled, and late.
func (n *simNode) send(l *simLink, data []byte) {
	s := n.s
	to := l.other(n)
	data = append([]byte(nil), data...)
	if n.dead {
		return
	}
	if h := (packet{data: data}).header(); (h.Kind == KindRequest || h.Kind == KindResponse) && !intact(data[HeaderBytes:]) {
		s.tb.Errorf("node %d: %v: the NIC sends a buffer that is in use for something else", n.id, h.Kind)
	}
	copies := 1
	if s.chance(s.cfg.loss) || s.now < l.cut {
		copies = 0
	}
	if s.chance(s.cfg.dup) {
		copies++
	}
	for i := range copies {
		d := s.upTo(20_000)
		if s.chance(s.cfg.late) {
			d = s.upTo(40 * ms)
		}
		if i == 1 && s.chance(0.2) {
			d = s.upTo(2_000 * ms) // a ghost from long ago
		}
		s.after(d, func() { s.nodes[to.id].receive(data, n.qpn) })
	}
}

func (n *simNode) receive(data []byte, from uint32) {
	if n.dead {
		return
	}
	if len(n.freeRing) == 0 {
		n.s.overflows++
		return
	}
	i := n.s.rng.IntN(len(n.freeRing))
	slot := n.freeRing[i]
	n.freeRing[i] = n.freeRing[len(n.freeRing)-1]
	n.freeRing = n.freeRing[:len(n.freeRing)-1]
	n.arrived = append(n.arrived, Rx{Data: n.ring[slot][:copy(n.ring[slot], data)], Slot: slot, SrcQPN: from})
	n.wake(n.s.upTo(5000))
}

// startRead does an RDMA READ piece by piece, at random moments, in each of
// which the remote buffer must still hold the message and the local one must
// still be the engine's. Where nobody wants the message any more, it may stop.
func (n *simNode) startRead(r Read) {
	s := n.s
	l := s.links[r.Dest]
	pieces := uint64(1 + s.rng.IntN(4))
	fails := s.chance(s.cfg.readFails)
	stall := -1
	if s.chance(s.cfg.stalls) {
		stall = s.rng.IntN(int(pieces))
	}
	var step func(i uint64)
	step = func(i uint64) {
		ok := i == pieces
		wanted := n.e.Wanted(r.Token) || s.chance(0.5)
		if i < pieces && wanted && r.Conn != 0 && !l.broken && !n.dead {
			if int(i) == stall {
				stall = -1
				n.replaceConn(l)
			}
			if !n.renewed(l, &r) {
				s.after(s.upTo(ms), func() { step(i) })
				return
			}
		}
		if i < pieces && wanted && int(i) == stall && !l.broken && !n.dead {
			stall = -1
			n.ask(func(now int64) { n.e.Broken(now, l.id, 7) })
			s.after(s.upTo(100*ms), func() {
				n.ask(func(int64) { n.e.Repaired(l.id) })
				step(i)
			})
			return
		}
		if i < pieces && wanted && !l.broken && !n.dead {
			if l.other(n).dead || s.now < l.cut {
				s.after(ms, func() { step(i) }) // retries until the link breaks
				return
			}
			from, to := r.Len*i/pieces, r.Len*(i+1)/pieces
			src := s.mem.remote(r.Remote+from, to-from, r.RKey, r.Conn)
			dst := s.mem.at(r.Local+from, to-from, r.LKey)
			g := s.mem.grants[r.RKey]
			lost := src == nil && g != nil && g.forced // the READ ends with an access error
			if (src == nil || g != nil && g.owner != l.other(n).endpoint) && !lost || dst == nil {
				s.tb.Fatalf("node %d: READ without access, outside of an offer: %+v", n.id, r)
			}
			copy(dst, src)
			if !lost && (!fails || i+1 < pieces) {
				s.after(s.upTo(100_000), func() { step(i + 1) })
				return
			}
		}
		if !ok {
			s.readFailed = s.readFailed || wanted
		} else if b := s.mem.at(r.Local, r.Len, r.LKey); !intact(b) {
			s.tb.Errorf("node %d: a READ of %d bytes met a buffer that is in use for something else", n.id, r.Len)
		}
		s.after(s.upTo(20_000), func() {
			n.done = append(n.done, func(now int64) { n.e.ReadDone(now, r.Token, ok) })
			n.wake(s.upTo(5000))
		})
	}
	s.after(s.upTo(50_000), func() { step(0) })
}
