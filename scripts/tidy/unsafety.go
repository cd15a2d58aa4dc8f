package main

import (
	"path"
	"regexp"
)

// unsafeFile matches the names of files that may import unsafe: "_unsafe" in
// the name, with nothing but the suffixes of platforms behind it.
var unsafeFile = regexp.MustCompile(`_unsafe(_[a-z0-9]+)*\.go$`)

// unsafePackages may import unsafe in any file.
var unsafePackages = []string{
	"mlx5/internal/prm", // overlays structs on the device's memory; that is all it does
}

// checkUnsafe reports files that import unsafe without saying so in their
// names. A reader who looks for memory bugs starts from a list of files.
func (t *tree) checkUnsafe() {
	for f := range t.goFiles {
		if f.isTest() || unsafeFile.MatchString(path.Base(f.name)) || matchAny(unsafePackages, f.dir()) {
			continue
		}
		for p, line := range t.imports(f) {
			if p == "unsafe" {
				t.report(f, line, "unsafe is imported only in *_unsafe.go files (or *_unsafe_linux.go and so on): move this there")
			}
		}
	}
}
