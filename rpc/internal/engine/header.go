package engine

import "encoding/binary"

// HeaderBytes is the size of the header in front of every datagram.
const HeaderBytes = 16

// ControlBytes is the size of the control block behind the header of
// KindLargeRequest and KindLargeResponse.
const ControlBytes = 24

// Version is the protocol version in every header.
const Version = 2

// Kind says what a datagram is.
type Kind uint8

const (
	// KindRequest carries a whole request behind the header.
	KindRequest Kind = 1 + iota
	// KindResponse carries a whole response.
	KindResponse
	// KindLargeRequest carries a control block: where the request lies. The
	// server pulls it with RDMA READ and answers KindPulled.
	KindLargeRequest
	// KindLargeResponse carries a control block: where the response lies. The
	// client pulls it and answers KindPulled.
	KindLargeResponse
	// KindError answers a request with a Code and a text instead of a response.
	KindError
	// KindPulled says that the receiver's memory offered for this request
	// number will not be read any more: it was pulled, or never will be.
	KindPulled
	// KindCancel asks the server to give up a large request that it has not
	// pulled yet, and to answer KindPulled.
	KindCancel
	// KindBroken tells the client that the server cannot pull from it: the
	// connection of that generation (4 bytes behind the header, little-endian)
	// broke. The client makes a new one.
	KindBroken
	// KindRequestPart carries a part of a request behind a Part block. The
	// server runs the handler when it has all.
	KindRequestPart
	// KindResponsePart carries a part of a response behind a Part block.
	KindResponsePart
	// KindMissing names parts of the other side's message that have not come, a
	// bit each (8 bytes behind the header, little-endian), and asks for them. A
	// client that does not know how far its request has got asks for all of the
	// response, and is asked for the request if that is not complete.
	KindMissing

	kindEnd
)

var kindNames = [kindEnd]string{"?", "REQUEST", "RESPONSE", "LARGE_REQUEST", "LARGE_RESPONSE", "ERROR", "PULLED", "CANCEL", "BROKEN", "REQUEST_PART", "RESPONSE_PART", "MISSING"}

// answers reports whether k is an answer to a request, or part of one.
func (k Kind) answers() bool {
	return k == KindResponse || k == KindLargeResponse || k == KindError || k == KindResponsePart
}

// timed has the kinds whose byte 3 may be other than zero.
const timed = 1<<KindRequest | 1<<KindLargeRequest | 1<<KindRequestPart |
	1<<KindResponse | 1<<KindLargeResponse | 1<<KindResponsePart | 1<<KindError

func (k Kind) String() string {
	if k < kindEnd {
		return kindNames[k]
	}
	return "?"
}

// Header is the first 16 bytes of every datagram, little-endian:
//
//	byte  0      version (high 4 bits) and kind (low 4 bits)
//	byte  1      request type; of KindError the code
//	byte  2      slot of the session's window
//	byte  3      of requests, 1 if the answer is to say how long the server had
//	             it; of answers, that, see encodeHold; otherwise zero
//	bytes 4-7    the receiver's session index
//	bytes 8-11   the receiver's session token, random
//	bytes 12-15  request number of the slot, serial arithmetic without 0
type Header struct {
	Kind    Kind
	Type    uint8
	Slot    uint8
	Hold    uint8
	Session uint32
	Token   uint32
	Seq     uint32
}

// Put writes the header to b.
func (h *Header) Put(b *[HeaderBytes]byte) {
	putHeader(b, h.Kind, h.Type, h.Slot, h.Session, h.Token, h.Seq)
	b[3] = h.Hold
}

// putHeader is Put for what is in registers: a Header that is made for it is
// stored field by field and read back at once, which costs more than the rest.
func putHeader(b *[HeaderBytes]byte, kind Kind, typ, slot uint8, session, token, seq uint32) {
	binary.LittleEndian.PutUint64(b[0:], uint64(Version<<4|kind)|uint64(typ)<<8|uint64(slot)<<16|uint64(session)<<32)
	binary.LittleEndian.PutUint64(b[8:], uint64(token)|uint64(seq)<<32)
}

// ParseHeader reads a header. It reports false for another version, an unknown
// kind, a nonzero reserved byte or fewer than 16 bytes.
func ParseHeader(b []byte) (h Header, ok bool) {
	if len(b) < HeaderBytes {
		return h, false
	}
	w0, w1 := headerWords(b)
	return headerOf(w0, w1), headerOK(w0)
}

// headerWords are the first 16 bytes of b.
func headerWords(b []byte) (w0, w1 uint64) {
	return binary.LittleEndian.Uint64(b), binary.LittleEndian.Uint64(b[8:HeaderBytes])
}

// headerOK says whether the first word is of our version and a kind that there
// is.
func headerOK(w0 uint64) bool {
	kind := Kind(w0 & 0xf)
	return w0>>4&0xf == Version && kind != 0 && kind < kindEnd && (w0>>24&0xff == 0 || 1<<kind&timed != 0)
}

func headerOf(w0, w1 uint64) Header {
	return Header{
		Kind:    Kind(w0 & 0xf),
		Type:    uint8(w0 >> 8),
		Slot:    uint8(w0 >> 16),
		Hold:    uint8(w0 >> 24),
		Session: uint32(w0 >> 32),
		Token:   uint32(w1),
		Seq:     uint32(w1 >> 32),
	}
}

// Control says where a large message lies, little-endian:
//
//	bytes 0-7    address
//	bytes 8-15   length in bytes
//	bytes 16-19  rkey
//	bytes 20-23  number of the RC connection by which alone the rkey works: 1
//	             for the first of a pair of endpoints, 2 for what replaced
//	             that, and so on; 0 if it works by any
type Control struct {
	Addr uint64
	Len  uint64
	RKey uint32
	Conn uint32
}

// Put writes the control block to b.
func (c *Control) Put(b *[ControlBytes]byte) {
	binary.LittleEndian.PutUint64(b[0:], c.Addr)
	binary.LittleEndian.PutUint64(b[8:], c.Len)
	binary.LittleEndian.PutUint64(b[16:], uint64(c.RKey)|uint64(c.Conn)<<32)
}

// ParseControl reads a control block, which must be all of b.
func ParseControl(b []byte) (c Control, ok bool) {
	if len(b) != ControlBytes {
		return c, false
	}
	c = Control{Addr: binary.LittleEndian.Uint64(b), Len: binary.LittleEndian.Uint64(b[8:]),
		RKey: binary.LittleEndian.Uint32(b[16:]), Conn: binary.LittleEndian.Uint32(b[20:])}
	return c, c.Addr+c.Len >= c.Addr
}
