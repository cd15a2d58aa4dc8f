package mlx5

import (
	"testing"

	"github.com/rrppcc-go/rrppcc/mlx5/internal/prm"
)

// TestQueueMemory maps memory of sizes around that of a huge page, and frees it.
func TestQueueMemory(t *testing.T) {
	before := mapped.Load()
	for _, n := range []int{4096, 2<<20 - 4096, 2 << 20, 2<<20 + 4096, 5 << 20} {
		mem, err := allocMemory(n)
		if err != nil {
			t.Fatal(err)
		}
		if len(mem) != n || prm.Addr(&mem[0])%4096 != 0 || mem[0] != 0 || mem[n-1] != 0 {
			t.Errorf("%d bytes: %d at %#x", n, len(mem), prm.Addr(&mem[0]))
		}
		mem[n-1] = 1
		if err := freeMemory(mem); err != nil {
			t.Errorf("%d bytes: %v", n, err)
		}
	}
	if n := mapped.Load() - before; n != 0 {
		t.Errorf("%d bytes are counted as mapped", n)
	}
}
