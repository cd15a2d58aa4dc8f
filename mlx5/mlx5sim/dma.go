package mlx5sim

import (
	"errors"
	"math/bits"
)

// errDMA is a DMA access that the memory does not allow.
var errDMA = errors.New("mlx5sim: bad DMA address")

// rangeOK reports whether n bytes at addr exist in a 64-bit address space.
// Page 0 is nobody's.
func rangeOK(addr, n uint64) bool {
	_, carry := bits.Add64(addr, n, 0)
	return carry == 0 && addr >= 4096
}

// load32 reads the big-endian doorbell word at addr. The word is shared with
// a thread that may be storing to it, so it is one atomic load wherever the
// memory can be reached directly.
func load32(d DMA, addr uint64) (uint32, bool) {
	if addr&3 != 0 {
		return 0, false
	}
	if v := d.View(addr, 4); v != nil {
		return atomicLoadBE32(v), true
	}
	// Eight aligned bytes are one load of the kernel that copies them; four may
	// be four, of which the program's store can fall in between.
	var b [8]byte
	if d.Read(addr&^7, b[:]) != nil {
		return 0, false
	}
	return be.Uint32(b[addr&4:]), true
}

// store32 writes the big-endian word at addr, atomically and after all that
// the device wrote before, wherever the memory can be reached directly.
func store32(d DMA, addr uint64, v uint32) bool {
	if addr&3 != 0 {
		return false
	}
	if p := d.View(addr, 4); p != nil {
		atomicStoreBE32(p, v)
		return true
	}
	var b [4]byte
	be.PutUint32(b[:], v)
	return d.Write(addr, b[:]) == nil
}
