package msgbuf

import (
	"bufio"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
)

// mapping returns the lines of /proc/self/smaps for the mapping that covers
// addr, nil if there is none.
func mapping(t *testing.T, addr uint64) map[string]string {
	t.Helper()
	f, err := os.Open("/proc/self/smaps")
	if err != nil {
		t.Skip("no smaps: ", err)
	}
	defer f.Close()
	var found map[string]string
	for s := bufio.NewScanner(f); s.Scan(); {
		var from, to uint64
		if n, _ := fmt.Sscanf(s.Text(), "%x-%x ", &from, &to); n == 2 {
			if found != nil {
				return found
			}
			if from <= addr && addr < to {
				found = map[string]string{"size": fmt.Sprint(to - from)}
			}
			continue
		}
		if key, value, ok := strings.Cut(s.Text(), ":"); ok && found != nil {
			found[key] = strings.TrimSpace(value)
		}
	}
	return found
}

func TestRegionsAreKeptFromForkedChildrenAndUnmapped(t *testing.T) {
	p, _ := newTestPool(t, Local)
	b := mustAlloc(t, p, 100)
	addr := b.Addr()
	m := mapping(t, addr)
	if m == nil || !slices.Contains(strings.Fields(m["VmFlags"]), "dc") {
		t.Errorf("not marked MADV_DONTFORK: %v", m)
	}
	b.Free()
	if err := p.Trim(); err != nil {
		t.Fatal(err)
	}
	if m := mapping(t, addr); m != nil && slices.Contains(strings.Fields(m["VmFlags"]), "dc") {
		t.Errorf("still mapped: %v", m)
	}
}

func TestHugePagesAreUsedWhereThereAreSome(t *testing.T) {
	mem, noHuge, err := mapMemory(hugePage)
	if err != nil {
		t.Fatal(err)
	}
	defer unmapMemory(mem)
	if noHuge != nil {
		t.Skip("no huge pages are free on this machine: ", noHuge)
	}
	if m := mapping(t, uint64(addrOf(mem))); m["KernelPageSize"] != "2048 kB" {
		t.Errorf("mapping %v", m)
	}
}
