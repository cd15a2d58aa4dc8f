package mlx5sim

// span is a run of memory that was checked and may be moved to or from: the
// bytes themselves, or an address of a DMA that has no views.
type span struct {
	mem  []byte // nil: addr of dma
	dma  DMA
	addr uint64
	n    uint64
}

// bounceBytes is how much is moved at a time between two memories neither of
// which can be viewed.
const bounceBytes = 64 << 10

// scratch is memory that the engine reuses from one work request to the next,
// so that none is allocated.
type scratch struct {
	op     sendOp
	src    []span
	dst    []span
	head   [1]span // the one span of a GRH or of remote memory
	grh    [grhBytes]byte
	bounce []byte
	rwqe   []byte // a receive WQE that cannot be viewed
	ahead  lookahead
	inline [64]byte // data that go into a CQE
	word   [atomicBytes]byte
}

// find returns the MR of key if n bytes at addr of it may be accessed from a
// QP of p, or nil.
func (d *Device) find(p *pd, key uint32, addr, n uint64, access uint32) *mr {
	m := d.mrs[key]
	if m == nil || m.pd != p || m.access&access != access {
		return nil
	}
	off := addr - m.iova
	if addr < m.iova || n > m.length || off > m.length-n {
		return nil
	}
	return m
}

// dma is how m's memory is reached.
func (m *mr) dma() DMA {
	if m.reach != nil {
		return m.reach
	}
	return m.pd.file.dma
}

// spanOf is the run of n bytes at addr of m, which find has checked.
func (m *mr) spanOf(addr, n uint64) span {
	va := m.start + (addr - m.iova)
	dma := m.dma()
	return span{mem: dma.View(va, int(n)), dma: dma, addr: va, n: n}
}

// remoteAccess checks a remote access to n bytes at addr by way of rkey,
// coming in on q. access is the right that the operation needs
// (accessRemoteRead, accessRemoteWrite or accessRemoteAtomic), of the QP and of
// the MR or memory window. The
// syndrome is what the requester's completion shows: a QP that does not do
// such operations at all is an invalid request, a bad key or range an access
// error. n = 0 is always allowed and returns no MR.
func (d *Device) remoteAccess(q *qp, rkey uint32, addr, n uint64, access uint32) (*mr, syndrome) {
	if q.attr.access&access != access {
		return nil, synRemInvReq
	}
	if n == 0 {
		return nil, synOK
	}
	m := d.find(q.pd, rkey, addr, n, access)
	if m == nil {
		m = d.window(q, rkey, addr, n, access)
	}
	if m == nil {
		return nil, synRemAccess
	}
	return m, synOK
}

// read copies from addr of m; remoteAccess has checked the range.
func (m *mr) read(addr uint64, p []byte) error {
	return m.dma().Read(m.start+(addr-m.iova), p)
}

// write copies to addr of m; remoteAccess has checked the range.
func (m *mr) write(addr uint64, p []byte) error {
	return m.dma().Write(m.start+(addr-m.iova), p)
}

// resolve appends the spans of sges' first n bytes to out, if p may use them. wqe is where inline
// segments point. access is what every MR must allow.
func (p *pd) resolve(out []span, sges []dataSeg, wqe []byte, n uint64, access uint32) ([]span, syndrome) {
	for i := range sges {
		s := &sges[i]
		k := min(uint64(s.n), n)
		if k == 0 {
			continue
		}
		n -= k
		if s.inline {
			out = append(out, span{mem: wqe[s.addr : s.addr+k], n: k})
			continue
		}
		m := p.file.dev.find(p, s.lkey, s.addr, k, access)
		if m == nil {
			return out, synLocalProt
		}
		out = append(out, m.spanOf(s.addr, k))
	}
	return out, synOK
}

// window copies between p and the len(p) bytes at offset off of sges: to sges
// if store is set. It serves packets: every piece is looked up again, because
// the MR may be gone since the last packet.
func (dom *pd) window(sges []dataSeg, wqe []byte, off uint64, p []byte, store bool) syndrome {
	var access uint32
	if store {
		access = accessLocalWrite
	}
	for i := range sges {
		s := &sges[i]
		if off >= uint64(s.n) {
			off -= uint64(s.n)
			continue
		}
		if len(p) == 0 {
			return synOK
		}
		k := min(uint64(s.n)-off, uint64(len(p)))
		if s.inline {
			if store {
				return synLocalProt
			}
			copy(p[:k], wqe[s.addr+off:])
		} else {
			m := dom.file.dev.find(dom, s.lkey, s.addr+off, k, access)
			if m == nil || s.addr+off < s.addr { // the list may wrap past 2^64
				return synLocalProt
			}
			var err error
			if store {
				err = m.write(s.addr+off, p[:k])
			} else {
				err = m.read(s.addr+off, p[:k])
			}
			if err != nil {
				return synLocalProt
			}
		}
		p, off = p[k:], 0
	}
	if len(p) != 0 {
		return synLocalLen
	}
	return synOK
}

// gather copies the op's data from offset off on into dst, which it fills.
func (q *qp) gather(op *sendOp, off uint64, dst []byte) syndrome {
	return q.pd.window(op.sges, op.wqe, off, dst, false)
}

// scatterLocal copies src to offset off of the op's data: answers to READs and
// atomics.
func (q *qp) scatterLocal(op *sendOp, off uint64, src []byte) syndrome {
	return q.pd.window(op.sges, op.wqe, off, src, true)
}

// moved is how move ended. Memory that was checked when it was registered may
// be gone by now: its program unmapped it, or died.
type moved uint8

const (
	movedAll moved = iota
	cannotRead
	cannotWrite
)

// move copies src to dst until either ends. Two views are one memmove, which
// may overlap.
func (fab *Fabric) move(dst, src []span) moved {
	if len(dst) == 0 || len(src) == 0 {
		return movedAll
	}
	d, s := dst[0], src[0]
	for {
		k := min(d.n, s.n)
		if d.mem == nil && s.mem == nil {
			k = min(k, bounceBytes)
		}
		switch {
		case d.mem != nil && s.mem != nil:
			copy(d.mem[:k], s.mem[:k])
		case d.mem != nil:
			if s.dma.Read(s.addr, d.mem[:k]) != nil {
				return cannotRead
			}
		case s.mem != nil:
			if d.dma.Write(d.addr, s.mem[:k]) != nil {
				return cannotWrite
			}
		default:
			if fab.eng.bounce == nil {
				fab.eng.bounce = make([]byte, bounceBytes)
			}
			b := fab.eng.bounce[:k]
			if s.dma.Read(s.addr, b) != nil {
				return cannotRead
			}
			if d.dma.Write(d.addr, b) != nil {
				return cannotWrite
			}
		}
		if d.advance(k); d.n == 0 {
			if dst = dst[1:]; len(dst) == 0 {
				return movedAll
			}
			d = dst[0]
		}
		if s.advance(k); s.n == 0 {
			if src = src[1:]; len(src) == 0 {
				return movedAll
			}
			s = src[0]
		}
	}
}

// skip drops the first n bytes of spans, in place.
func skip(spans []span, n uint64) []span {
	for len(spans) > 0 {
		k := min(n, spans[0].n)
		spans[0].advance(k)
		if n -= k; spans[0].n > 0 {
			break
		}
		spans = spans[1:]
	}
	return spans
}

func (s *span) advance(k uint64) {
	s.n -= k
	s.addr += k
	if s.mem != nil {
		s.mem = s.mem[k:]
	}
}
