package main

import (
	"go/ast"
	"slices"
)

// purePackages do no I/O, read no clock and start no goroutine: what they do
// depends on their arguments alone. That is why a test can drive the engine
// through hours of lost packets in a moment and replay it from a seed, and why
// a format can be fuzzed. Their tests are free.
var purePackages = []string{
	"rpc/internal/engine",
	"mlx5/internal/prm",
	"internal/roce",
}

// impureImports are the standard packages through which the outside world comes
// in. Other modules (x/sys) are for the arrows to refuse.
var impureImports = []string{"net/...", "os/...", "syscall/...", "log"}

// clockFuncs are the functions of package time that read the clock or wait.
var clockFuncs = []string{
	"Now", "Since", "Until", "Sleep", "After", "AfterFunc", "Tick", "NewTimer", "NewTicker",
}

// checkPurity reports what the pure packages must not use.
func (t *tree) checkPurity(pure []string) {
	for f := range t.goFiles {
		if f.isTest() || !matchAny(pure, f.dir()) {
			continue
		}
		for p, line := range t.imports(f) {
			// An address is a value: net/netip opens nothing.
			if matchAny(impureImports, p) && p != "net/netip" {
				t.report(f, line, "%s may not import %s: it does no I/O of its own", f.dir(), p)
			}
		}
		clock := timeName(f.ast)
		if clock == "." {
			t.report(f, t.line(f.ast.Package), "%s may not dot-import time: clock reads would not be seen", f.dir())
		}
		ast.Inspect(f.ast, func(n ast.Node) bool {
			switch n := n.(type) {
			case *ast.GoStmt:
				t.report(f, t.line(n.Pos()), "%s may not start goroutines: its owner calls it", f.dir())
			case *ast.SelectorExpr:
				x, ok := n.X.(*ast.Ident)
				if ok && clock != "" && x.Name == clock && slices.Contains(clockFuncs, n.Sel.Name) {
					t.report(f, t.line(n.Pos()), "%s may not use time.%s: time is an argument", f.dir(), n.Sel.Name)
				}
			}
			return true
		})
	}
}

// timeName returns the name under which f imports package time, or "".
func timeName(f *ast.File) string {
	for _, spec := range f.Imports {
		switch {
		case spec.Path.Value != `"time"`:
		case spec.Name != nil:
			return spec.Name.Name
		default:
			return "time"
		}
	}
	return ""
}
