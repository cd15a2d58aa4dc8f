package mlx5sim

// arenaDMA is DMA over one bounded piece of memory that starts at address
// base: what a fuzzer or a test lets the device reach.
type arenaDMA struct {
	base uint64
	mem  []byte
	// noView makes View answer nil, as for memory of another process.
	noView bool
}

func (a *arenaDMA) at(addr, n uint64) []byte {
	off := addr - a.base
	if addr < a.base || off > uint64(len(a.mem)) || n > uint64(len(a.mem))-off {
		return nil
	}
	return a.mem[off : off+n : off+n]
}

func (a *arenaDMA) Read(addr uint64, p []byte) error {
	m := a.at(addr, uint64(len(p)))
	if m == nil {
		return errDMA
	}
	copy(p, m)
	return nil
}

func (a *arenaDMA) Write(addr uint64, p []byte) error {
	m := a.at(addr, uint64(len(p)))
	if m == nil {
		return errDMA
	}
	copy(m, p)
	return nil
}

func (a *arenaDMA) View(addr uint64, n int) []byte {
	if a.noView || n < 0 {
		return nil
	}
	return a.at(addr, uint64(n))
}

func (a *arenaDMA) Mapped(addr uint64, n uint64) bool { return a.at(addr, n) != nil }
