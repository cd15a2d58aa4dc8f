package mlx5

import (
	"unsafe"

	"github.com/rrppcc-go/rrppcc/mlx5/internal/prm"
)

func avBytes(av *prm.AV) []byte {
	return unsafe.Slice((*byte)(unsafe.Pointer(av)), unsafe.Sizeof(*av))
}

func recordBytes(r *prm.DBRec) []byte {
	return append([]byte(nil), unsafe.Slice((*byte)(unsafe.Pointer(r)), unsafe.Sizeof(*r))...)
}

func bytePtr(r *prm.DBRec) *byte { return (*byte)(unsafe.Pointer(r)) }

// decode is the structure that a command's bytes hold.
func decode[T any](b []byte) T {
	var v T
	copy(unsafe.Slice((*byte)(unsafe.Pointer(&v)), unsafe.Sizeof(v)), b)
	return v
}
