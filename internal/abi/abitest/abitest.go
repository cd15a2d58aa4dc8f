// Package abitest compares a Go package of kernel structures with the C
// headers that they describe.
//
// It type-checks the Go package's source, so that no constant and no field can
// be forgotten; generates a C program that prints the same names' values, sizes
// and offsets; compiles and runs it; and compares the two. That is proof for
// the headers of the machine that runs the test, and for no other kernel.
package abitest

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"go/ast"
	"go/constant"
	"go/parser"
	"go/token"
	"go/types"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// Config says where the C side is.
type Config struct {
	Dir     string   // of the Go package; "" is the test's own
	Headers []string // as in #include <...>

	// C gives the C expression of a Go constant, and the C type of a Go
	// struct, where the rule does not: a constant has its own name, and the
	// struct Xyz is "struct xyz". A field's C name is its Go name with a small
	// first letter; an entry "Xyz.Field" overrides that.
	C map[string]string

	// Only limits the comparison to these constants and structs, if not nil.
	Only []string

	// Skip names what the headers do not have, with the reason.
	Skip map[string]string
}

// item is one number that both sides must agree on.
type item struct {
	name string // what it is, for the message
	expr string // in C
	want string // in Go, decimal
}

// Run compares the package with the headers. It skips the test where there is
// no C compiler or no such header.
func Run(t *testing.T, cfg Config) {
	t.Helper()
	cc := need(t, cfg.Headers)
	problems, n, err := compare(cc, t.TempDir(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range problems {
		t.Error(p)
	}
	for name, reason := range cfg.Skip {
		t.Logf("not compared: %s: %s", name, reason)
	}
	t.Logf("compared %d constants, sizes and offsets with %s", n, strings.Join(cfg.Headers, ", "))
}

// compare returns what differs, and how many numbers were compared.
func compare(cc, tmp string, cfg Config) (problems []string, n int, err error) {
	items, problems, err := load(cfg)
	if err != nil {
		return nil, 0, err
	}
	got, err := compile(cc, tmp, cfg.Headers, items)
	if err != nil {
		return nil, 0, err
	}
	for i, it := range items {
		if got[i] != it.want {
			problems = append(problems, fmt.Sprintf("%s: Go has %s, the headers have %s", it.name, it.want, got[i]))
		}
	}
	return problems, len(items), nil
}

// Eval returns the values of C integer constant expressions, as Run compares
// them, for Go packages that Run cannot load because they import others.
func Eval(t *testing.T, headers []string, exprs []string) []int64 {
	t.Helper()
	cc := need(t, headers)
	items := make([]item, len(exprs))
	for i, e := range exprs {
		items[i].expr = e
	}
	got, err := compile(cc, t.TempDir(), headers, items)
	if err != nil {
		t.Fatal(err)
	}
	values := make([]int64, len(got))
	for i, s := range got {
		if values[i], err = strconv.ParseInt(s, 10, 64); err != nil {
			t.Fatal(err)
		}
	}
	return values
}

// need skips the test where there is nothing to compare with.
func need(t *testing.T, headers []string) (cc string) {
	t.Helper()
	cc, err := exec.LookPath("cc")
	if err != nil {
		t.Skip("no C compiler (cc) to compare with the headers")
	}
	for _, h := range headers {
		if _, err := os.Stat(filepath.Join("/usr/include", h)); err != nil {
			t.Skipf("header %s is not installed (linux-libc-dev, libibverbs-dev)", h)
		}
	}
	return cc
}

// load lists what the Go package says, and what is wrong with it already.
func load(cfg Config) (items []item, problems []string, err error) {
	dir := cfg.Dir
	if dir == "" {
		dir = "."
	}
	fset := token.NewFileSet()
	names, err := filepath.Glob(filepath.Join(dir, "*.go"))
	if err != nil {
		return nil, nil, err
	}
	var files []*ast.File
	for _, name := range names {
		if strings.HasSuffix(name, "_test.go") {
			continue
		}
		f, err := parser.ParseFile(fset, name, nil, 0)
		if err != nil {
			return nil, nil, err
		}
		files = append(files, f)
	}
	sizes := types.SizesFor("gc", runtime.GOARCH)
	conf := types.Config{Sizes: sizes, Importer: noImports{}}
	pkg, err := conf.Check(dir, fset, files, nil)
	if err != nil {
		return nil, nil, err
	}

	scope := pkg.Scope()
	unused := make(map[string]bool) // entries of the maps that name nothing
	for _, m := range []map[string]string{cfg.C, cfg.Skip} {
		for name := range m {
			unused[name] = true
		}
	}
	for _, name := range scope.Names() {
		delete(unused, name)
		if _, skip := cfg.Skip[name]; skip || !token.IsExported(name) || cfg.Only != nil && !slices.Contains(cfg.Only, name) {
			continue
		}
		switch obj := scope.Lookup(name).(type) {
		case *types.Const:
			v := constant.ToInt(obj.Val())
			if v.Kind() != constant.Int {
				continue // text
			}
			items = append(items, item{name, or(cfg.C[name], name), v.ExactString()})
		case *types.TypeName:
			st, ok := obj.Type().Underlying().(*types.Struct)
			if !ok {
				continue
			}
			ctype := or(cfg.C[name], "struct "+lower(name))
			items = append(items, item{"sizeof " + name, "sizeof(" + ctype + ")", fmt.Sprint(sizes.Sizeof(st))})
			fields := make([]*types.Var, st.NumFields())
			for i := range fields {
				fields[i] = st.Field(i)
			}
			end := int64(0) // where the next field must start
			for i, off := range sizes.Offsetsof(fields) {
				field, size := fields[i].Name(), sizes.Sizeof(fields[i].Type())
				full := name + "." + field
				delete(unused, full)
				if off != end {
					problems = append(problems, fmt.Sprintf("%s: %d bytes before it have no name", full, off-end))
				}
				end = off + size
				if _, skip := cfg.Skip[full]; skip {
					continue
				}
				cfield := or(cfg.C[full], lower(field))
				items = append(items,
					item{"offset of " + full, fmt.Sprintf("offsetof(%s, %s)", ctype, cfield), fmt.Sprint(off)},
					item{"size of " + full, fmt.Sprintf("sizeof(((%s *)0)->%s)", ctype, cfield), fmt.Sprint(size)})
			}
			if end != sizes.Sizeof(st) {
				problems = append(problems, fmt.Sprintf("%s: %d bytes at its end have no name", name, sizes.Sizeof(st)-end))
			}
		}
	}
	for name := range unused {
		problems = append(problems, fmt.Sprintf("%s: no such constant, struct or field", name))
	}
	slices.Sort(problems)
	return items, problems, nil
}

// compile runs the C program and returns its numbers, in the order of items.
func compile(cc, dir string, headers []string, items []item) ([]string, error) {
	var src bytes.Buffer
	src.WriteString("#include <stddef.h>\n#include <stdint.h>\n#include <stdio.h>\n")
	for _, h := range headers {
		fmt.Fprintf(&src, "#include <%s>\n", h)
	}
	// A negative value is printed with its sign, anything else unsigned.
	src.WriteString("#define SHOW(x) ((x) < 0 ? printf(\"%lld\\n\", (long long)(x)) : printf(\"%llu\\n\", (unsigned long long)(x)))\n")
	src.WriteString("int main(void) {\n")
	for _, it := range items {
		fmt.Fprintf(&src, "\tSHOW(%s);\n", it.expr)
	}
	src.WriteString("\treturn 0;\n}\n")
	source, program := filepath.Join(dir, "abi.c"), filepath.Join(dir, "abi")
	if err := os.WriteFile(source, src.Bytes(), 0o600); err != nil {
		return nil, err
	}
	if out, err := exec.Command(cc, "-o", program, source).CombinedOutput(); err != nil {
		var lines []string
		for line := range strings.Lines(string(out)) {
			if _, msg, ok := strings.Cut(line, "error: "); ok && !slices.Contains(lines, msg) {
				lines = append(lines, msg)
			}
		}
		return nil, fmt.Errorf("%w (a name that the installed headers lack?)\n%s", err, strings.Join(lines, ""))
	}
	out, err := exec.Command(program).Output()
	if err != nil {
		return nil, err
	}
	var numbers []string
	for sc := bufio.NewScanner(bytes.NewReader(out)); sc.Scan(); {
		if _, err := strconv.ParseUint(strings.TrimPrefix(sc.Text(), "-"), 10, 64); err != nil {
			return nil, err
		}
		numbers = append(numbers, sc.Text())
	}
	if len(numbers) != len(items) {
		return nil, fmt.Errorf("%d numbers for %d items", len(numbers), len(items))
	}
	return numbers, nil
}

// noImports is for packages that import nothing but unsafe.
type noImports struct{}

func (noImports) Import(path string) (*types.Package, error) {
	if path == "unsafe" {
		return types.Unsafe, nil
	}
	return nil, errors.New("a package of kernel structures imports " + path)
}

func or(s, otherwise string) string {
	if s != "" {
		return s
	}
	return otherwise
}

func lower(s string) string { return strings.ToLower(s[:1]) + s[1:] }
