package main

import (
	"bytes"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// A cpioEntry is what readCPIO finds.
type cpioEntry struct {
	mode, rdev uint64
	data       string
}

// readCPIO reads an archive as the kernel's initramfs.c does: by the sizes in
// the headers and by the alignment of what follows.
func readCPIO(t *testing.T, p []byte) (names []string, entries map[string]cpioEntry) {
	t.Helper()
	entries = map[string]cpioEntry{}
	for at := 0; ; {
		if at%4 != 0 || len(p)-at < 110 || string(p[at:at+6]) != "070701" {
			t.Fatalf("no header at %d of %d", at, len(p))
		}
		var f [13]uint64
		for i := range f {
			v, err := strconv.ParseUint(string(p[at+6+8*i:at+14+8*i]), 16, 32)
			if err != nil {
				t.Fatal(err)
			}
			f[i] = v
		}
		size, nameSize := int(f[6]), int(f[11])
		name := string(p[at+110 : at+110+nameSize])
		if !strings.HasSuffix(name, "\x00") {
			t.Fatalf("name %q has no end", name)
		}
		name = name[:nameSize-1]
		at = (at + 110 + nameSize + 3) &^ 3
		if name == "TRAILER!!!" {
			return names, entries
		}
		names = append(names, name)
		entries[name] = cpioEntry{f[1], f[9]<<8 | f[10], string(p[at : at+size])}
		at = (at + size + 3) &^ 3
	}
}

func TestArchiveReadsBack(t *testing.T) {
	var buf bytes.Buffer
	a := newArchive(&buf)
	want := map[string]cpioEntry{}
	for n := range 9 { // every alignment of names and data
		name, data := "d/e/"+strings.Repeat("f", n+1), strings.Repeat("x", n)
		a.add("/"+name, modeFile|0o644, []byte(data), 0, 0)
		want[name] = cpioEntry{modeFile | 0o644, 0, data}
	}
	a.mkdir("/d") // is there already
	a.add("link", modeSymlink|0o777, []byte("d/e/f"), 0, 0)
	a.add("console", modeChar|0o600, nil, 5, 1)
	if err := a.close(); err != nil {
		t.Fatal(err)
	}
	want["link"] = cpioEntry{modeSymlink | 0o777, 0, "d/e/f"}
	want["console"] = cpioEntry{modeChar | 0o600, 5<<8 | 1, ""}
	want["d"] = cpioEntry{modeDir | 0o755, 0, ""}
	want["d/e"] = cpioEntry{modeDir | 0o755, 0, ""}
	names, got := readCPIO(t, buf.Bytes())
	if !maps.Equal(got, want) {
		t.Errorf("got %v\nwant %v", got, want)
	}
	if !slices.Equal(names[:2], []string{"d", "d/e"}) {
		t.Errorf("a file is before its directory: %v", names)
	}
}

func TestArchiveRefusesTwoEntriesOfOneName(t *testing.T) {
	a := newArchive(new(bytes.Buffer))
	a.add("init", modeFile|0o755, nil, 0, 0)
	a.add("/init", modeFile|0o755, nil, 0, 0)
	if err := a.close(); err == nil || !strings.Contains(err.Error(), "/init") {
		t.Errorf("error %v", err)
	}
}

type failingWriter struct{ left int }

func (w *failingWriter) Write(p []byte) (int, error) {
	if w.left -= len(p); w.left < 0 {
		return 0, fmt.Errorf("disk full")
	}
	return len(p), nil
}

func TestArchiveReportsTheFirstWriteError(t *testing.T) {
	a := newArchive(&failingWriter{200})
	a.add("a", modeFile, make([]byte, 1000), 0, 0)
	a.add("a", modeFile, nil, 0, 0) // would be another error
	if err := a.close(); err == nil || err.Error() != "disk full" {
		t.Errorf("error %v", err)
	}
}
