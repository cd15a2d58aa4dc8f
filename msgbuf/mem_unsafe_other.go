//go:build !linux

package msgbuf

// mapMemory returns aligned Go memory. The region keeps it alive, and Go does
// not move it; only simulated devices exist here.
func mapMemory(size int) (mem []byte, noHuge, err error) {
	raw := make([]byte, size+hugePage)
	head := int(-addrOf(raw) & (hugePage - 1))
	return raw[head : head+size : head+size], nil, nil
}

func unmapMemory([]byte) error { return nil }
