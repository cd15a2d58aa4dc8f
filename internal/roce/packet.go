package roce

import "errors"

// Why Parse refuses a packet.
var (
	ErrTruncated = errors.New("roce: packet shorter than its headers")
	ErrVersion   = errors.New("roce: transport header version is not 0")
	ErrOpcode    = errors.New("roce: unknown opcode")
	ErrLength    = errors.New("roce: packet length does not fit its opcode and pad count")
)

// Packet is a parsed packet. Payload and the extension headers are views of
// what was parsed.
//
// An accessor of a header that the opcode does not have returns zeros.
type Packet struct {
	BTH
	ext     []byte
	Payload []byte // without pad
}

// Pad is the number of pad bytes behind n bytes of payload.
func Pad(n int) int { return -n & 3 }

// Size is the length of a packet with n bytes of payload, in bytes of UDP
// payload.
func Size(op Opcode, n int) int { return op.HeaderSize() + n + Pad(n) + ICRCSize }

// Parse decodes a UDP payload. It does not check the ICRC; see [Flow.Valid].
func Parse(b []byte) (Packet, error) {
	if len(b) < BTHSize+ICRCSize {
		return Packet{}, ErrTruncated
	}
	p := Packet{BTH: parseBTH(b)}
	if b[1]&0x0f != 0 {
		return Packet{}, ErrVersion
	}
	info := &opcodes[p.Opcode]
	if info.traits&known == 0 {
		return Packet{}, ErrOpcode
	}
	end := len(b) - ICRCSize
	start := BTHSize + int(info.ext)
	if end < start {
		return Packet{}, ErrTruncated
	}
	p.ext = b[BTHSize:start:start]
	n := end - start - int(p.Pad)
	if n < 0 || Pad(n) != int(p.Pad) || n > 0 && info.traits&payload == 0 {
		return Packet{}, ErrLength
	}
	p.Payload = b[start : start+n : start+n]
	return p, nil
}

// at returns the header of the trait h, or nil. No opcode has more than two:
// the immediate and AtomicAckETH stand behind another one, at the end.
func (p *Packet) at(h traits, size int, atEnd bool) []byte {
	if p.Opcode.traits()&h == 0 || len(p.ext) < size {
		return nil
	}
	if atEnd {
		return p.ext[len(p.ext)-size:]
	}
	return p.ext[:size]
}

// DETH returns the datagram header.
func (p *Packet) DETH() DETH {
	b := p.at(hasDETH, DETHSize, false)
	if b == nil {
		return DETH{}
	}
	return DETH{QKey: be.Uint32(b), SrcQPN: be.Uint32(b[4:]) & PSNMask}
}

// RETH returns the RDMA header.
func (p *Packet) RETH() RETH {
	b := p.at(hasRETH, RETHSize, false)
	if b == nil {
		return RETH{}
	}
	return RETH{VA: be.Uint64(b), RKey: be.Uint32(b[8:]), Length: be.Uint32(b[12:])}
}

// AETH returns the acknowledge header.
func (p *Packet) AETH() AETH {
	b := p.at(hasAETH, AETHSize, false)
	if b == nil {
		return AETH{}
	}
	return AETH{Syndrome: Syndrome(b[0]), MSN: be.Uint32(b) & PSNMask}
}

// Imm returns the immediate.
func (p *Packet) Imm() uint32 {
	b := p.at(hasImm, ImmSize, true)
	if b == nil {
		return 0
	}
	return be.Uint32(b)
}

// AtomicETH returns the atomic header.
func (p *Packet) AtomicETH() AtomicETH {
	b := p.at(hasAtomic, AtomicETHSize, false)
	if b == nil {
		return AtomicETH{}
	}
	return AtomicETH{VA: be.Uint64(b), RKey: be.Uint32(b[8:]), SwapAdd: be.Uint64(b[12:]), Compare: be.Uint64(b[20:])}
}

// AtomicAck returns the value that the atomic found.
func (p *Packet) AtomicAck() uint64 {
	b := p.at(hasAtomicAck, AtomicAckSize, true)
	if b == nil {
		return 0
	}
	return be.Uint64(b)
}

// InvalidateRKey returns the key of a SEND with Invalidate.
func (p *Packet) InvalidateRKey() uint32 {
	b := p.at(hasIETH, IETHSize, false)
	if b == nil {
		return 0
	}
	return be.Uint32(b)
}
