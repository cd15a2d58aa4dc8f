package engine

import (
	"encoding/binary"

	"github.com/rrppcc-go/rrppcc/msgbuf"
)

// PartBytes is the size of the block behind the header of KindRequestPart and
// KindResponsePart.
const PartBytes = 8

// MaxParts is the most datagrams that one message goes in: KindMissing has a bit
// for each.
const MaxParts = 64

// missingBytes is the size of what is behind the header of KindMissing.
const missingBytes = 8

// everyPart asks for all of a message whose length is not known.
const everyPart = ^uint64(0)

// Part says which part of a message a datagram carries, little-endian:
//
//	bytes 0-3  length of the whole message in bytes
//	byte  4    index of the part
//	bytes 5-7  zero
//
// All parts but the last are as long as the session's datagrams allow, so offset
// and length of each follow from its index and that of the message.
type Part struct {
	Total uint32
	Index uint8
}

// Put writes the block to b.
func (p *Part) Put(b *[PartBytes]byte) {
	binary.LittleEndian.PutUint64(b[0:], uint64(p.Total)|uint64(p.Index)<<32)
}

// ParsePart reads the block in front of b, and returns what is behind it.
func ParsePart(b []byte) (p Part, data []byte, ok bool) {
	if len(b) < PartBytes {
		return p, nil, false
	}
	w := binary.LittleEndian.Uint64(b)
	return Part{Total: uint32(w), Index: uint8(w >> 32)}, b[PartBytes:], w>>40 == 0
}

// PartsFor returns in how many datagrams a message may go when each side keeps so
// many receive buffers for a session with a window of so many slots. Every slot
// has a buffer for what is not a message, so that the messages of all slots in
// full, and the confirmations of those before, find room.
func PartsFor(credits, window int) int { return min(max(credits/window-1, 1), MaxParts) }

// setParts computes what goes to and comes from a peer in parts, when each
// side's ring has room for n datagrams of every slot.
func (s *Session) setParts(n int) {
	s.partBytes = s.maxSmall - PartBytes
	s.maxParts = 0
	if n = min(n, MaxParts); n > 1 && n*s.partBytes > s.maxSmall {
		s.maxParts = n * s.partBytes
	}
	s.maxUD = max(s.maxSmall, min(s.e.cfg.Threshold, s.maxParts))
}

// MaxUD returns the longest message that this end sends in datagrams. It changes
// when the session is connected.
func (s *Session) MaxUD() int { return s.maxUD }

// parts returns how many parts a message of n bytes has.
func (s *Session) parts(n int) int { return (n + s.partBytes - 1) / s.partBytes }

// pushParts appends the parts of buf whose bits are set in which. token counts
// the NIC's use of buf, as in Engine.data.
func (s *Session) pushParts(kind Kind, typ, slot uint8, seq uint32, buf msgbuf.Buf, which uint64, token uint32) uint32 {
	e := s.e
	total := buf.Len()
	for i, off := 0, 0; off < total; i, off = i+1, off+s.partBytes {
		if which>>i&1 == 0 {
			continue
		}
		tx := e.push(s, kind, typ, slot, seq)
		(&Part{Total: uint32(total), Index: uint8(i)}).Put((*[PartBytes]byte)(tx.Head[HeaderBytes:]))
		tx.HeadLen = HeaderBytes + PartBytes
		token = e.dataAt(tx, buf, off, min(s.partBytes, total-off), token)
	}
	return token
}

// pushMissing asks for parts of a message.
func (s *Session) pushMissing(slot uint8, seq uint32, which uint64) {
	tx := s.e.push(s, KindMissing, 0, slot, seq)
	binary.LittleEndian.PutUint64(tx.Head[HeaderBytes:], which)
	tx.HeadLen = HeaderBytes + missingBytes
}

// parseMissing reads what is behind the header of KindMissing.
func parseMissing(body []byte) (which uint64, ok bool) {
	if len(body) != missingBytes {
		return 0, false
	}
	which = binary.LittleEndian.Uint64(body)
	return which, which != 0
}
