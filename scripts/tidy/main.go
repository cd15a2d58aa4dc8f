// Tidy checks the rules of this repository that the compiler and vet do not
// know: which package may import which, where unsafe may stand, what the
// protocol engine must not touch, that every package says what it is for, that
// files stay short, and that no unfinished work is marked and forgotten.
//
//	go run ./scripts/tidy [directory of the module]
//
// It prints one "file:line: message" per finding and exits with 1 when there
// is any, with 2 when the tree could not be read. Files are parsed whatever
// their build constraints say, so one run judges every platform. It skips
// testdata, vendor, hidden directories and nested modules.
package main

import (
	"fmt"
	"io"
	"os"
)

func main() {
	root := "."
	switch len(os.Args) {
	case 1:
	case 2:
		root = os.Args[1]
	default:
		fmt.Fprintln(os.Stderr, "usage: tidy [directory of the module]")
		os.Exit(2)
	}
	os.Exit(run(root, os.Stdout, os.Stderr))
}

// run checks the module at root and returns the exit code.
func run(root string, stdout, stderr io.Writer) int {
	t, err := readTree(root)
	if err != nil {
		fmt.Fprintln(stderr, "tidy:", err)
		return 2
	}
	t.checkArrows(arrows)
	t.checkPurity(purePackages)
	t.checkUnsafe()
	t.checkPackageComments()
	t.checkLength()
	t.checkWords()
	for _, f := range t.sortedFindings() {
		fmt.Fprintln(stdout, f)
	}
	if n := len(t.findings); n > 0 {
		fmt.Fprintf(stderr, "tidy: %d findings in %d files\n", n, len(t.files))
		return 1
	}
	return 0
}
