package mlx5sim

// cqEngine is the queue engine's part of a CQ. All of it is guarded by fab.mu.
type cqEngine struct {
	ci      uint32 // consumer index when it was last read, 24 bits
	solPI   uint32 // pi behind the last solicited or failed completion
	armWord uint32 // arm record that was acted on
	errQPs  int    // QPs in ERR that receive here
	entry   [cqeBytes]byte
}

// Offsets in a CQ's doorbell record (MLX5_CQ_SET_CI, MLX5_CQ_ARM_DB).
const (
	dbConsumer = 0
	dbArm      = 4
)

const (
	ciMask       = 1<<24 - 1
	armSolicited = 1 << 24 // bit of the arm word
	// armNever cannot be an arm word: its command bits have no meaning.
	armNever = 0xffffffff
)

// engineCreated prepares the CQ after CREATE_CQ. The arm record gets a value
// that no arming writes, because the first one writes 0.
func (c *cq) engineCreated() {
	c.eng.armWord = armNever
	store32(c.file.dma, c.dbrec+dbArm, armNever)
}

// add writes one completion and raises the event that waits for it.
func (c *cq) add(e *cqe) {
	if c.overrun {
		return
	}
	if (c.pi-c.eng.ci)&ciMask >= c.size {
		v, ok := load32(c.file.dma, c.dbrec+dbConsumer)
		c.eng.ci = v & ciMask
		if used := (c.pi - c.eng.ci) & ciMask; !ok || used >= c.size {
			c.overran()
			return
		}
	}
	b := &c.eng.entry
	e.put(b)
	if e.inline > 0 {
		c.putInline(c.file.dev.fab.eng.inline[:e.inline])
	}
	if c.pi&c.size != 0 {
		b[cqeBytes-1] |= 1
	}
	at := c.buf + uint64(c.pi&(c.size-1))*uint64(c.cqeSize) + uint64(c.cqeSize-cqeBytes)
	// The owner bit, in the last byte, hands the entry over: it is stored after
	// the rest. Nothing is known of the order in which one Write stores.
	if v := c.file.dma.View(at, cqeBytes); v != nil {
		copy(v[:cqeBytes-4], b[:])
		atomicStoreBE32(v[cqeBytes-4:], be.Uint32(b[cqeBytes-4:]))
	} else if c.file.publish(at, b[:]) != nil {
		c.overran()
		return
	}
	c.pi++
	if e.solicited || e.syn != synOK {
		c.eng.solPI = c.pi
	}
	if c.armed && (!c.armedSol || c.eng.solPI == c.pi) {
		c.fire()
	}
}

// inlineBytes is how much data an entry can carry.
func (c *cq) inlineBytes() uint64 {
	if c.cqeSize == 128 {
		return 64
	}
	return 32
}

// putInline puts data into the entry that is being made: of 64 bytes into the
// entry proper, of 128 in front of it.
func (c *cq) putInline(data []byte) {
	b := &c.eng.entry
	if c.cqeSize == cqeBytes {
		b[cqeBytes-1] |= cqeInline32
		clear(b[copy(b[:32], data):32])
		return
	}
	b[cqeBytes-1] |= cqeInline64
	c.file.dma.Write(c.buf+uint64(c.pi&(c.size-1))*uint64(c.cqeSize), data) // if it fails, so will the entry proper
}

// fire raises the one event that an arming is good for.
func (c *cq) fire() {
	c.armed = false
	c.eventPI = c.pi
	c.notify()
}

// arm handles the arm word: sequence number, command and consumer index. The
// event is raised at once if there is a completion (of the wanted kind) that the
// consumer has not seen and that is newer than the last event.
func (c *cq) arm(word uint32) {
	c.eng.armWord = word
	// Where both kinds are asked for, any completion wins (IBTA 11.4.2.2).
	c.armedSol = word&armSolicited != 0 && (!c.armed || c.armedSol)
	c.armed = true
	newest := c.pi
	if c.armedSol {
		newest = c.eng.solPI
	}
	unseen := (newest - word) & ciMask
	if unseen != 0 && unseen <= c.size && int32(newest-c.eventPI) > 0 {
		c.fire()
	}
	if c.eng.errQPs > 0 {
		for _, q := range c.file.dev.qps {
			if q.recvCQ == c && q.attr.state == stateErr {
				q.flushRQ()
			}
		}
	}
}

// overran puts the CQ out of use: a completion was lost. Its QPs cannot be
// told so any more but by going to ERR.
func (c *cq) overran() {
	c.overrun = true
	c.asyncEvent(eventCQErr)
	for _, q := range c.file.dev.qps {
		if q.sendCQ == c || q.recvCQ == c {
			q.toError()
		}
	}
}
