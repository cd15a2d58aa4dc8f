package main

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"go/ast"
	"go/parser"
	"go/scanner"
	"go/token"
	"io/fs"
	"iter"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// A sourceFile is one file of the tree. ast is nil for files that are not Go,
// and for Go files that do not parse.
type sourceFile struct {
	name string // slash-separated, below the module's root
	src  []byte
	ast  *ast.File
}

// dir returns the file's directory below the module's root, "." for the root.
func (f *sourceFile) dir() string { return path.Dir(f.name) }

func (f *sourceFile) isGo() bool   { return strings.HasSuffix(f.name, ".go") }
func (f *sourceFile) isTest() bool { return strings.HasSuffix(f.name, "_test.go") }

// A finding is one broken rule at one place.
type finding struct {
	file    string
	line    int
	message string
}

func (f finding) String() string { return fmt.Sprintf("%s:%d: %s", f.file, f.line, f.message) }

// A tree is the parsed sources of one module and what was found wrong in them.
type tree struct {
	module   string // module path, from go.mod
	fset     *token.FileSet
	files    []*sourceFile
	findings []finding
}

// sourceSuffixes are the files that tidy reads. Only .go files are parsed.
var sourceSuffixes = []string{".go", ".s", ".sh", ".md"}

// readTree reads every source file of the module at root. A Go file that does
// not parse becomes a finding, so that the rest of the tree is still checked.
func readTree(root string) (*tree, error) {
	mod, err := os.ReadFile(filepath.Join(root, "go.mod"))
	if err != nil {
		return nil, err
	}
	t := &tree{module: modulePath(mod), fset: token.NewFileSet()}
	if t.module == "" {
		return nil, fmt.Errorf("%s: no module line", filepath.Join(root, "go.mod"))
	}
	err = filepath.WalkDir(root, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(root, p)
		if err != nil {
			return err
		}
		if d.IsDir() {
			if rel != "." && skipDir(p, d.Name()) {
				return filepath.SkipDir
			}
			return nil
		}
		// The go command ignores files that start with a dot or underscore.
		if !d.Type().IsRegular() || strings.HasPrefix(d.Name(), ".") || strings.HasPrefix(d.Name(), "_") ||
			!slices.Contains(sourceSuffixes, filepath.Ext(p)) {
			return nil
		}
		return t.read(p, filepath.ToSlash(rel))
	})
	return t, err
}

// skipDir reports whether the directory at p holds nothing of this module.
func skipDir(p, name string) bool {
	if name == "testdata" || name == "vendor" || strings.HasPrefix(name, ".") || strings.HasPrefix(name, "_") {
		return true
	}
	_, err := os.Stat(filepath.Join(p, "go.mod"))
	return err == nil // a module of its own, such as scripts/tools
}

func (t *tree) read(p, name string) error {
	src, err := os.ReadFile(p)
	if err != nil {
		return err
	}
	f := &sourceFile{name: name, src: src}
	t.files = append(t.files, f)
	if !f.isGo() {
		return nil
	}
	parsed, err := parser.ParseFile(t.fset, name, src, parser.ParseComments|parser.SkipObjectResolution)
	if err == nil {
		f.ast = parsed
		return nil
	}
	var list scanner.ErrorList
	if errors.As(err, &list) && len(list) > 0 {
		t.report(f, list[0].Pos.Line, "does not parse: %s", list[0].Msg)
		return nil
	}
	t.report(f, 1, "does not parse: %v", err)
	return nil
}

// modulePath returns the path on go.mod's module line, or "".
func modulePath(mod []byte) string {
	for line := range bytes.Lines(mod) {
		rest, ok := strings.CutPrefix(strings.TrimSpace(string(line)), "module ")
		if !ok {
			continue
		}
		p, _, _ := strings.Cut(rest, "//")
		p = strings.TrimSpace(p)
		if q, err := strconv.Unquote(p); err == nil {
			return q
		}
		return p
	}
	return ""
}

func (t *tree) report(f *sourceFile, line int, format string, args ...any) {
	t.findings = append(t.findings, finding{f.name, line, fmt.Sprintf(format, args...)})
}

func (t *tree) line(p token.Pos) int { return t.fset.Position(p).Line }

// goFiles calls yield for each Go file that parsed.
func (t *tree) goFiles(yield func(*sourceFile) bool) {
	for _, f := range t.files {
		if f.ast != nil && !yield(f) {
			return
		}
	}
}

// imports yields the path and line of each import of f.
func (t *tree) imports(f *sourceFile) iter.Seq2[string, int] {
	return func(yield func(string, int) bool) {
		for _, spec := range f.ast.Imports {
			p, err := strconv.Unquote(spec.Path.Value)
			if err == nil && !yield(p, t.line(spec.Pos())) {
				return
			}
		}
	}
}

func (t *tree) sortedFindings() []finding {
	slices.SortFunc(t.findings, func(a, b finding) int {
		return cmp.Or(cmp.Compare(a.file, b.file), cmp.Compare(a.line, b.line), cmp.Compare(a.message, b.message))
	})
	return t.findings
}
