package rpc

import (
	"encoding/binary"
	"errors"

	"github.com/rrppcc-go/rrppcc/rpc/internal/transport"
	"github.com/rrppcc-go/rrppcc/uverbs"
)

// helloBytes is the size of a hello.
const helloBytes = 76

// helloVersion is the version of the format and of the engine's protocol.
const helloVersion = 2

// hello is what two endpoints tell each other when a session is made: the
// payload of the session manager's Connect and of its answer. Big-endian:
//
//	offset size
//	     0    2  version, 2
//	     2    1  window, slots
//	     3    1  MTU, enum ibv_mtu
//	     4    2  LID on InfiniBand, else 0
//	     6    2  credits: receive buffers that the sender keeps for this session
//	     8    8  pair: random id of the pair of endpoints, chosen by the client
//	    16   16  GID
//	    32    4  QPN of the UD QP
//	    36    4  QKey of the UD QP
//	    40    4  QPN of the pair's RC QP
//	    44    4  first PSN of the RC QP
//	    48    4  session index
//	    52    4  session token
//	    56    8  longest message that the sender takes, bytes
//	    64    4  generation: 0 for a session; otherwise the number of the RC
//	             connection that takes the place of the pair's broken one, and
//	             session and token are zero
//	    68    1  lane: 0 for a session of its own, else the number of the lane
//	    69    3  zero
//	    72    4  of a lane: the receiver's index of the session that it is of
type hello struct {
	window     uint8
	credits    uint16
	pair       uint64
	addr       transport.Address
	session    uint32
	token      uint32
	maxMessage uint64
	generation uint32
	lane       uint8
	main       uint32
}

var errHello = errors.New("malformed endpoint parameters")

func (h *hello) encode() []byte {
	b := make([]byte, helloBytes)
	be := binary.BigEndian
	be.PutUint16(b[0:], helloVersion)
	b[2] = h.window
	b[3] = uint8(h.addr.MTU)
	be.PutUint16(b[4:], h.addr.LID)
	be.PutUint16(b[6:], h.credits)
	be.PutUint64(b[8:], h.pair)
	copy(b[16:32], h.addr.GID[:])
	be.PutUint32(b[32:], h.addr.QPN)
	be.PutUint32(b[36:], h.addr.QKey)
	be.PutUint32(b[40:], h.addr.RCQPN)
	be.PutUint32(b[44:], h.addr.RCPSN)
	be.PutUint32(b[48:], h.session)
	be.PutUint32(b[52:], h.token)
	be.PutUint64(b[56:], h.maxMessage)
	be.PutUint32(b[64:], h.generation)
	b[68] = h.lane
	be.PutUint32(b[72:], h.main)
	return b
}

func decodeHello(b []byte) (h hello, err error) {
	be := binary.BigEndian
	if len(b) != helloBytes || be.Uint16(b) != helloVersion {
		return h, errHello
	}
	h = hello{
		window:  b[2],
		credits: be.Uint16(b[6:]),
		pair:    be.Uint64(b[8:]),
		addr: transport.Address{
			MTU: uverbs.MTU(b[3]), LID: be.Uint16(b[4:]), GID: uverbs.GID(b[16:32]), QPN: be.Uint32(b[32:]), QKey: be.Uint32(b[36:]),
			RCQPN: be.Uint32(b[40:]), RCPSN: be.Uint32(b[44:]),
		},
		session:    be.Uint32(b[48:]),
		token:      be.Uint32(b[52:]),
		maxMessage: be.Uint64(b[56:]),
		generation: be.Uint32(b[64:]),
		lane:       b[68],
		main:       be.Uint32(b[72:]),
	}
	switch {
	case h.window == 0 || h.window > 64, h.addr.MTU.Bytes() == 0, h.addr.QPN>>24 != 0, h.addr.RCQPN>>24 != 0, h.addr.RCPSN>>24 != 0,
		h.pair == 0, h.maxMessage == 0, b[69]|b[70]|b[71] != 0, h.lane == 0 && h.main != 0, h.lane > maxLanes:
		return hello{}, errHello
	}
	return h, nil
}
