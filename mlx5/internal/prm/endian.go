package prm

import "math/bits"

// BE16, BE32 and BE64 are words that lie in memory with the most significant
// byte first, whatever the host's order is.
type (
	BE16 uint16
	BE32 uint32
	BE64 uint64
)

// ToBE16 converts from host order.
func ToBE16(v uint16) BE16 {
	if hostLittleEndian {
		return BE16(bits.ReverseBytes16(v))
	}
	return BE16(v)
}

// ToBE32 converts from host order.
func ToBE32(v uint32) BE32 {
	if hostLittleEndian {
		return BE32(bits.ReverseBytes32(v))
	}
	return BE32(v)
}

// ToBE64 converts from host order.
func ToBE64(v uint64) BE64 {
	if hostLittleEndian {
		return BE64(bits.ReverseBytes64(v))
	}
	return BE64(v)
}

// Host converts to host order.
func (v BE16) Host() uint16 { return uint16(ToBE16(uint16(v))) }

// Host converts to host order.
func (v BE32) Host() uint32 { return uint32(ToBE32(uint32(v))) }

// Host converts to host order.
func (v BE64) Host() uint64 { return uint64(ToBE64(uint64(v))) }
