package main

import (
	"bytes"
	"go/ast"
	"regexp"
	"strings"
)

// maxLines is the longest a file of code may be. One noun per file: a longer
// one holds two.
const maxLines = 700

// checkLength reports code files that are too long. Generated files are free,
// and so are documents.
func (t *tree) checkLength() {
	for _, f := range t.files {
		if strings.HasSuffix(f.name, ".md") || f.ast != nil && ast.IsGenerated(f.ast) {
			continue
		}
		if n := countLines(f.src); n > maxLines {
			t.report(f, maxLines+1, "%d lines, %d at most: look for the second noun and give it its own file", n, maxLines)
		}
	}
}

func countLines(src []byte) int {
	n := bytes.Count(src, []byte("\n"))
	if len(src) > 0 && src[len(src)-1] != '\n' {
		n++
	}
	return n
}

// unfinished matches the marks of work put off. They are spelled in halves so
// that this file passes its own check.
var unfinished = regexp.MustCompile(`\b(` + "TO" + "DO|FIX" + "ME|XX" + `X)\b`)

// checkWords reports marks of unfinished work in code and documents.
func (t *tree) checkWords() {
	for _, f := range t.files {
		n := 0
		for line := range bytes.Lines(f.src) {
			n++
			if w := unfinished.Find(line); w != nil {
				t.report(f, n, "%s: finish it, or return a clear error and say so in the documentation", w)
			}
		}
	}
}

// checkPackageComments reports packages without a package comment, and package
// comments that do not name their package as godoc expects.
func (t *tree) checkPackageComments() {
	type pkg struct{ dir, name string }
	var order []pkg
	first := map[pkg]*sourceFile{}
	documented := map[pkg]bool{}
	for f := range t.goFiles {
		if f.isTest() {
			continue
		}
		p := pkg{f.dir(), f.ast.Name.Name}
		if first[p] == nil {
			first[p] = f
			order = append(order, p)
		}
		text := f.ast.Doc.Text()
		if text == "" {
			continue
		}
		documented[p] = true
		if words := strings.Fields(text); p.name != "main" && (len(words) < 2 || words[0] != "Package" || words[1] != p.name) {
			t.report(f, t.line(f.ast.Doc.Pos()), "the package comment starts with %q", "Package "+p.name)
		}
	}
	for _, p := range order {
		if !documented[p] {
			f := first[p]
			t.report(f, t.line(f.ast.Package), "package %s has no package comment: say in doc.go what it is for, who owns what, and what may run concurrently", p.name)
		}
	}
}
