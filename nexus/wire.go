package nexus

import (
	"encoding/binary"
	"errors"
	"unicode/utf8"
)

// Limits of the format, in bytes.
const (
	// MaxPayload is the largest payload of a Connect and of its reply.
	MaxPayload = 1024

	headerBytes = 40
	maxMessage  = headerBytes + MaxPayload
	maxText     = 200 // of a Refuse
	maxPingIDs  = MaxPayload / 8

	magic   = 0x5252504e // "RRPN"
	version = 1
)

type kind uint8

const (
	kindConnect kind = 1 + iota
	kindAccept
	kindRefuse
	kindDisconnect
	kindDisconnectAck
	kindPing
	kindPong
	kindReset
	kindChallenge // only sealed
)

// flagAcceptor says that the sender is the connection's accepting side (of a
// Ping: that the ids are of connections that it accepted). A process may
// connect to itself, and then has both sides under one id. flagSealed says that
// the payload is encrypted and the whole message authenticated.
const (
	flagAcceptor = 1 << 0
	flagSealed   = 1 << 1
)

// message is a decoded datagram. The payload aliases the datagram's memory.
type message struct {
	version  uint8
	kind     kind
	acceptor bool
	from     uint64 // sender's incarnation
	to       uint64 // receiver's incarnation, 0 if unknown
	id       uint64 // connection id, or a Ping's random number
	endpoint uint16
	reason   Reason
	payload  []byte

	// Of a sealed message, as received; the last four once it has been opened.
	sealed  bool
	salt    uint32
	counter uint64
	sender  *sender
	cookie  []byte // of a Connect
}

var (
	errForeign   = errors.New("nexus: not a message of ours")
	errMalformed = errors.New("nexus: malformed message")
)

// encode returns the datagram, in clear. The payload must be within its limit.
func (m *message) encode() []byte {
	b := make([]byte, headerBytes, headerBytes+len(m.payload))
	binary.BigEndian.PutUint32(b[0:], magic)
	b[4] = m.version
	b[5] = byte(m.kind)
	if m.acceptor {
		b[7] = flagAcceptor
	}
	binary.BigEndian.PutUint64(b[8:], m.from)
	binary.BigEndian.PutUint64(b[16:], m.to)
	binary.BigEndian.PutUint64(b[24:], m.id)
	binary.BigEndian.PutUint16(b[32:], m.endpoint)
	binary.BigEndian.PutUint16(b[34:], uint16(m.reason))
	binary.BigEndian.PutUint16(b[36:], uint16(len(m.payload)))
	return append(b, m.payload...)
}

// decode reads a datagram. Of a version other than ours it reads only the
// common header, and drops the payload unless it is a Refuse of our format. Of a
// sealed message it reads the header only, which is not to be believed before
// open.
func decode(b []byte) (message, error) {
	if len(b) < 8 || binary.BigEndian.Uint32(b) != magic {
		return message{}, errForeign
	}
	if len(b) < headerBytes {
		return message{}, errMalformed
	}
	m := message{
		version:  b[4],
		kind:     kind(b[5]),
		from:     binary.BigEndian.Uint64(b[8:]),
		to:       binary.BigEndian.Uint64(b[16:]),
		id:       binary.BigEndian.Uint64(b[24:]),
		endpoint: binary.BigEndian.Uint16(b[32:]),
		reason:   Reason(binary.BigEndian.Uint16(b[34:])),
	}
	flags := binary.BigEndian.Uint16(b[6:])
	m.acceptor = flags&flagAcceptor != 0
	n := int(binary.BigEndian.Uint16(b[36:]))
	if m.from == 0 {
		return message{}, errMalformed
	}
	if flags&flagSealed != 0 {
		if m.version != version {
			return m, nil
		}
		limit := MaxPayload
		if m.kind == kindConnect {
			limit += cookieBytes
		}
		if n > limit || headerBytes+sealBytes+n != len(b) || b[38] != 0 || b[39] != 0 || flags&^(flagAcceptor|flagSealed) != 0 {
			return message{}, errMalformed
		}
		m.sealed = true
		return m, nil
	}
	whole := n <= MaxPayload && headerBytes+n == len(b) && b[38] == 0 && b[39] == 0 && flags&^flagAcceptor == 0
	if whole {
		m.payload = b[headerBytes:]
		whole = m.consistent()
	}
	switch {
	case whole:
		return m, nil
	case m.version == version:
		return message{}, errMalformed
	}
	m.payload = nil
	return m, nil
}

// consistent checks the fields that depend on the kind.
func (m *message) consistent() bool {
	if m.endpoint != 0 && m.kind != kindConnect || (m.reason != 0) != (m.kind == kindRefuse) {
		return false
	}
	n := len(m.payload)
	switch m.kind {
	case kindConnect:
		return !m.acceptor
	case kindAccept:
		return m.acceptor
	case kindRefuse:
		return m.acceptor && n <= maxText && utf8.Valid(m.payload)
	case kindPing, kindPong:
		return n%8 == 0
	case kindDisconnect, kindDisconnectAck, kindReset:
		return n == 0
	case kindChallenge:
		return m.sealed && m.acceptor && n == cookieBytes
	}
	return false
}

// clip cuts a text at maxText bytes, between characters.
func clip(text string) []byte {
	b := []byte(text)
	if !utf8.Valid(b) {
		b = []byte(string([]rune(text))) // replaces what is not UTF-8
	}
	if len(b) <= maxText {
		return b
	}
	b = b[:maxText]
	for !utf8.Valid(b) {
		b = b[:len(b)-1]
	}
	return b
}

// ids returns the numbers in a Ping or Pong.
func (m *message) ids(yield func(uint64) bool) {
	for p := m.payload; len(p) >= 8; p = p[8:] {
		if !yield(binary.BigEndian.Uint64(p)) {
			return
		}
	}
}
