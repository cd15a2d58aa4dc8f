package mlx5

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"testing"

	"github.com/rrppcc-go/rrppcc/mlx5/internal/prm"
)

// TestLargeQueuesLieInHugePages needs a machine with some to spare. The guest of
// scripts/kerneltest.sh is given some: nobody else is on it.
func TestLargeQueuesLieInHugePages(t *testing.T) {
	const dir = "/sys/kernel/mm/hugepages/hugepages-2048kB/"
	if os.Getenv("RRPC_GUEST") != "" {
		if err := os.WriteFile(dir+"nr_hugepages", []byte("4"), 0); err != nil {
			t.Log(err)
		}
	}
	free, err := os.ReadFile(dir + "free_hugepages")
	if n, _ := strconv.Atoi(strings.TrimSpace(string(free))); err != nil || n < 2 {
		t.Skipf("no huge pages to spare: %q, %v", free, err)
	}
	for _, c := range []struct {
		n    int
		huge bool
	}{{2<<20 - 4096, false}, {2 << 20, true}, {2<<20 + 4096, true}} {
		mem, err := allocMemory(c.n)
		if err != nil {
			t.Fatal(err)
		}
		mem[0] = 1
		if got := pageKiB(t, prm.Addr(&mem[0])); (got == 2048) != c.huge {
			t.Errorf("%d bytes lie in pages of %d KiB", c.n, got)
		}
		if err := freeMemory(mem); err != nil {
			t.Error(err)
		}
	}
}

// pageKiB is the size of the pages of the mapping that addr is in.
func pageKiB(t *testing.T, addr uint64) int {
	t.Helper()
	smaps, err := os.ReadFile("/proc/self/smaps")
	if err != nil {
		t.Skip(err)
	}
	within := false
	for line := range strings.Lines(string(smaps)) {
		var lo, hi uint64
		if n, _ := fmt.Sscanf(line, "%x-%x ", &lo, &hi); n == 2 {
			within = lo <= addr && addr < hi
		}
		if v, ok := strings.CutPrefix(line, "KernelPageSize:"); ok && within {
			var kib int
			fmt.Sscanf(v, "%d", &kib)
			return kib
		}
	}
	t.Fatalf("no mapping at %#x", addr)
	return 0
}
