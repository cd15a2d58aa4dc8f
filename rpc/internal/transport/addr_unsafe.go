package transport

import (
	"unsafe"

	"github.com/rrppcc-go/rrppcc/rpc/internal/engine"
)

// headAddr is the address of tx's header, for a send that copies it while it
// is posted. tx lies in the engine's slice, on the heap, and the caller keeps
// it alive and unchanged until then.
func headAddr(tx *engine.Tx) uint64 { return uint64(uintptr(unsafe.Pointer(&tx.Head[0]))) }
