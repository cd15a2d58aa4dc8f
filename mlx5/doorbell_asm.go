//go:build amd64 || arm64

package mlx5

// mmioSafe says that the stores below reach a device as they must.
const mmioSafe = true

// ring publishes count in the doorbell record's word rec, and then stores word
// to the doorbell register reg. Everything that was stored before, the WQEs
// above all, is visible to the device before the record, and the record before
// the register. The store leaves the processor at once.
//
// count and word are in memory order, which is big-endian.
//
//go:noescape
func ring(rec *uint32, count uint32, reg *byte, word uint64)

// ringBlueFlame is ring with a BlueFlame register: it stores the WQE at wqe,
// blocks times 64 bytes, in ascending order. The WQE wraps around at end to
// start, the bounds of the send queue. Nothing else may store to the register
// meanwhile.
//
//go:noescape
func ringBlueFlame(rec *uint32, count uint32, reg, wqe *byte, blocks uint32, start, end *byte)
