package mlx5sim

// Atomics work on 8 bytes in the host's byte order, at an address that is a
// multiple of 8. The fabric's mutex serialises those of all its devices; against
// the program's own atomics they are atomic too where the memory can be viewed.

const atomicBytes = 8

// isAtomic reports whether the opcode is COMPARE & SWAP or FETCH & ADD.
func (op *sendOp) isAtomic() bool { return op.opcode == opCmpSwap || op.opcode == opFetchAdd }

// fetches reports whether the responder answers with data: a READ or an
// atomic. max_rd_atomic bounds how many of them are under way. Of the opcodes
// that decode lets through they alone have this bit.
func (op *sendOp) fetches() bool { return op.opcode&opRead != 0 }

// remoteAtomic checks the rights of an atomic at addr, coming in on q.
func (q *qp) remoteAtomic(rkey uint32, addr uint64) (*mr, syndrome) {
	if q.attr.maxDestRd == 0 {
		return nil, synRemInvReq
	}
	m, s := q.file.dev.remoteAccess(q, rkey, addr, atomicBytes, accessRemoteAtomic)
	if s != synOK {
		return nil, s
	}
	if addr%atomicBytes != 0 || (m.start+(addr-m.iova))%atomicBytes != 0 {
		return nil, synRemInvReq // C9-91: an atomic that is not aligned is an invalid request
	}
	return m, synOK
}

// atomic executes an atomic at addr of m, which remoteAtomic has checked, and
// returns what was there. It reports false where the memory cannot be reached.
func (fab *Fabric) atomic(m *mr, addr uint64, swap bool, operand, compare uint64) (old uint64, ok bool) {
	va := m.start + (addr - m.iova)
	dma := m.dma()
	if v := dma.View(va, atomicBytes); v != nil {
		if swap {
			return atomicSwap64(v, compare, operand), true
		}
		return atomicAdd64(v, operand), true
	}
	b := fab.eng.word[:]
	if dma.Read(va, b) != nil {
		return 0, false
	}
	old = hostOrder.Uint64(b)
	switch {
	case !swap:
		hostOrder.PutUint64(b, old+operand)
	case old == compare:
		hostOrder.PutUint64(b, operand)
	default:
		return old, true
	}
	return old, dma.Write(va, b) == nil
}

// rcAtomic is the responder's side of an atomic.
func (q *qp) rcAtomic(op *sendOp, r *qp, dst []span) rcResult {
	m, s := r.remoteAtomic(op.rkey, op.raddr)
	if s != synOK {
		r.accessError(s)
		return failed(s)
	}
	fab := r.file.dev.fab
	old, ok := fab.atomic(m, op.raddr, op.opcode == opCmpSwap, op.swapAdd, op.compare)
	if !ok {
		r.toError()
		return failed(synRemOp)
	}
	hostOrder.PutUint64(fab.eng.word[:], old)
	fab.eng.head[0] = span{mem: fab.eng.word[:], n: atomicBytes}
	if fab.move(dst, fab.eng.head[:]) != movedAll {
		return failed(synLocalProt)
	}
	return rcResult{}
}
