package mlx5

import "unsafe"

var (
	_ [sendSlotBytes]byte = [unsafe.Sizeof(sendSlot{})]byte{}
	_ [srqSlotBytes]byte  = [unsafe.Sizeof(srqSlot{})]byte{}
)

// slot returns the slot of the WQE that starts at WQEBB i.
func (s *sendQueue) slot(i uint32) *sendSlot {
	return (*sendSlot)(unsafe.Add(unsafe.Pointer(s.slots), i&(s.entries-1)*sendSlotBytes))
}

// wrid returns the work request id of WQE i.
func (r *recvQueue) wrid(i uint32) *uint64 {
	return (*uint64)(unsafe.Add(unsafe.Pointer(r.ids), i&(r.entries-1)*8))
}

// slot returns the slot of WQE i.
func (s *srq) slot(i uint32) *srqSlot {
	return (*srqSlot)(unsafe.Add(unsafe.Pointer(s.slots), i&s.mask*srqSlotBytes))
}
