package main

import (
	"bytes"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

const module = "example.org/m"

// writeTree makes a module of the given files and returns its root. A file's
// text may say MOD for the module's path.
func writeTree(t *testing.T, files map[string]string) string {
	t.Helper()
	root := t.TempDir()
	if _, ok := files["go.mod"]; !ok {
		writeFile(t, root, "go.mod", "module "+module+"\n\ngo 1.26\n")
	}
	for name, text := range files {
		writeFile(t, root, name, strings.ReplaceAll(text, "MOD", module))
	}
	return root
}

func writeFile(t *testing.T, root, name, text string) {
	t.Helper()
	p := filepath.Join(root, filepath.FromSlash(name))
	if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(p, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

// goFile returns a documented Go file of package pkg that imports the paths.
func goFile(pkg string, imports ...string) string {
	var b strings.Builder
	b.WriteString("// Package " + pkg + " is a fixture.\npackage " + pkg + "\n\n")
	for _, p := range imports {
		b.WriteString("import _ \"" + p + "\"\n")
	}
	return b.String()
}

// expect runs tidy on files and checks that its findings start with the wanted
// texts, one each and in this order.
func expect(t *testing.T, files map[string]string, want ...string) {
	t.Helper()
	var out bytes.Buffer
	code := run(writeTree(t, files), &out, io.Discard)
	got := strings.FieldsFunc(out.String(), func(r rune) bool { return r == '\n' })
	wantCode := 0
	if len(want) > 0 {
		wantCode = 1
	}
	if code != wantCode {
		t.Errorf("exit code %d, want %d", code, wantCode)
	}
	for i := range got {
		if i < len(want) && strings.HasPrefix(got[i], want[i]) {
			got[i] = want[i]
		}
	}
	if !slices.Equal(got, want) {
		t.Errorf("findings:\n\t%s\nwant:\n\t%s", strings.Join(got, "\n\t"), strings.Join(want, "\n\t"))
	}
}

func TestCleanTreeHasNoFindings(t *testing.T) {
	expect(t, map[string]string{
		"uverbs/doc.go":                         goFile("uverbs", "fmt", "MOD/internal/kernel", "golang.org/x/sys/unix"),
		"uverbs/mr_unsafe.go":                   goFile("uverbs", "unsafe"),
		"uverbs/mr_unsafe_linux.go":             goFile("uverbs", "unsafe"),
		"uverbs/mr_test.go":                     goFile("uverbs", "unsafe", "MOD/mlx5", "github.com/google/go-cmp/cmp"),
		"mlx5/doc.go":                           goFile("mlx5", "MOD/uverbs", "MOD/mlx5/internal/prm", "MOD/mlx5/internal/abi"),
		"mlx5/internal/prm/seg.go":              goFile("prm", "unsafe", "math/bits"),
		"mlx5/mlx5sim/doc.go":                   goFile("mlx5sim", "MOD/uverbs", "MOD/internal/roce"),
		"mlx5/mlx5sim/e2e_test.go":              goFile("mlx5sim_test", "MOD/mlx5", "MOD/mlx5/internal/prm"),
		"rpc/doc.go":                            goFile("rpc", "MOD/nexus", "MOD/msgbuf", "MOD/uverbs", "MOD/mlx5", "MOD/rpc/internal/engine"),
		"rpc/internal/engine/doc.go":            goFile("engine", "MOD/msgbuf", "net/netip"),
		"rpc/internal/transport/t.go":           goFile("transport", "MOD/rpc/internal/engine", "MOD/msgbuf", "MOD/uverbs"),
		"cmd/rrpc/main.go":                      "// Rrpc is a fixture.\npackage main\n\nimport _ \"MOD/mlx5/mlx5sim\"\n",
		"README.md":                             "words\n",
		"tools/go.mod":                          "module elsewhere\n",
		"tools/bad.go":                          "not Go at all",
		"uverbs/testdata/bad.go":                "not Go at all",
		".cache/bad.go":                         "not Go at all",
		"vendor/golang.org/x/sys/unix/a.go":     "not Go at all",
		"uverbs/_draft.go":                      "not Go at all",
		"internal/kernel/command_unsafe_arm.go": goFile("kernel", "unsafe", "MOD/internal/abi"),
	})
}

func TestArrowsRefuse(t *testing.T) {
	for name, tc := range map[string]struct {
		file, pkg, imp, message string
	}{
		"verbs importing a provider":          {"uverbs/a.go", "uverbs", "MOD/mlx5", "uverbs may not import mlx5: the verbs know"},
		"driver importing its simulator":      {"mlx5/a.go", "mlx5", "MOD/mlx5/mlx5sim", "mlx5 may not import mlx5/mlx5sim: "},
		"formats importing the verbs":         {"mlx5/internal/prm/a.go", "prm", "MOD/uverbs", "mlx5/internal/prm may not import uverbs: "},
		"simulator importing prm":             {"mlx5/mlx5sim/a.go", "mlx5sim", "MOD/mlx5/internal/prm", "mlx5/mlx5sim may not import mlx5/internal/prm: "},
		"simulator importing the driver":      {"mlx5/mlx5sim/a.go", "mlx5sim", "MOD/mlx5", "mlx5/mlx5sim may not import mlx5: "},
		"simulator importing UHW structs":     {"mlx5/mlx5sim/a.go", "mlx5sim", "MOD/mlx5/internal/abi", "mlx5/mlx5sim may not import mlx5/internal/abi: "},
		"simulator's part importing prm":      {"mlx5/mlx5sim/wire/a.go", "wire", "MOD/mlx5/internal/prm", "mlx5/mlx5sim/wire may not import mlx5/internal/prm: "},
		"simulator's own test importing prm":  {"mlx5/mlx5sim/a_test.go", "mlx5sim", "MOD/mlx5/internal/prm", "mlx5/mlx5sim may not import mlx5/internal/prm: "},
		"buffers importing the verbs":         {"msgbuf/a.go", "msgbuf", "MOD/uverbs", "msgbuf may not import uverbs: "},
		"nexus importing buffers":             {"nexus/a.go", "nexus", "MOD/msgbuf", "nexus may not import msgbuf: "},
		"wire formats importing anything":     {"internal/roce/a.go", "roce", "MOD/uverbs", "internal/roce may not import uverbs: "},
		"RPC importing the simulator":         {"rpc/a.go", "rpc", "MOD/mlx5/mlx5sim", "rpc may not import mlx5/mlx5sim: "},
		"engine importing the verbs":          {"rpc/internal/engine/a.go", "engine", "MOD/uverbs", "rpc/internal/engine may not import uverbs: "},
		"transport importing a provider":      {"rpc/internal/transport/a.go", "transport", "MOD/mlx5", "rpc/internal/transport may not import mlx5: "},
		"library importing another module":    {"rpc/a.go", "rpc", "github.com/google/go-cmp/cmp", "rpc may not import github.com/google/go-cmp/cmp: "},
		"library importing the root package":  {"rpc/a.go", "rpc", "MOD", "rpc may not import .: "},
		"a name that only starts like ours":   {"rpc/a.go", "rpc", "MODern/x", "rpc may not import MODern/x: "},
		"cgo":                                 {"cmd/rrpc/a.go", "rrpc", "C", "cgo is not used here"},
		"cgo in a test":                       {"uverbs/a_test.go", "uverbs", "C", "cgo is not used here"},
		"unsafe in a plain file":              {"uverbs/a.go", "uverbs", "unsafe", "unsafe is imported only in"},
		"unsafe in a file with a longer name": {"uverbs/a_unsafely.go", "uverbs", "unsafe", "unsafe is imported only in"},
		"unsafe below prm":                    {"mlx5/internal/prm/x/a.go", "x", "unsafe", "unsafe is imported only in"},
	} {
		t.Run(name, func(t *testing.T) {
			want := []string{tc.file + ":4: " + strings.ReplaceAll(tc.message, "MOD", module)}
			if name == "unsafe below prm" { // and nobody gave that package a place
				want = append([]string{tc.file + ":2: package mlx5/internal/prm/x has no arrow"}, want...)
			}
			expect(t, map[string]string{tc.file: goFile(tc.pkg, tc.imp)}, want...)
		})
	}
}

func TestPackageWithoutArrowIsReportedOnce(t *testing.T) {
	expect(t, map[string]string{
		"attic/a.go":      goFile("attic"),
		"attic/b.go":      "package attic\n",
		"attic/a_test.go": goFile("attic"),
		"only/a_test.go":  goFile("only", "MOD/mlx5/internal/prm"),
	}, "attic/a.go:2: package attic has no arrow")
}

// Every platform is judged in one run, whatever platform tidy runs on.
func TestFilesOfOtherPlatformsAreRead(t *testing.T) {
	expect(t, map[string]string{
		"uverbs/a_windows.go": goFile("uverbs", "MOD/mlx5"),
		"uverbs/b.go":         "//go:build plan9\n\n" + goFile("uverbs", "MOD/rpc"),
	},
		"uverbs/a_windows.go:4: uverbs may not import mlx5: ",
		"uverbs/b.go:6: uverbs may not import rpc: ")
}

func TestLongestArrowWins(t *testing.T) {
	table := []arrow{{pkg: "..."}, {pkg: "a/..."}, {pkg: "a/b"}, {pkg: "a/b/..."}}
	for dir, want := range map[string]string{".": "...", "b": "...", "a": "a/...", "a/c": "a/...", "ab": "...", "a/b/c": "a/b/..."} {
		if got := findArrow(table, dir); got == nil || got.pkg != want {
			t.Errorf("findArrow(%q) = %v, want %q", dir, got, want)
		}
	}
	if got := findArrow(table[1:], "b"); got != nil {
		t.Errorf("findArrow(b) = %v, want none", got)
	}
}

func TestEveryArrowHasAReason(t *testing.T) {
	seen := map[string]bool{}
	for _, a := range arrows {
		if a.why == "" {
			t.Errorf("%s: no reason", a.pkg)
		}
		if seen[a.pkg] {
			t.Errorf("%s: two arrows", a.pkg)
		}
		seen[a.pkg] = true
	}
}

func TestEngineMayNotTouchTheWorld(t *testing.T) {
	expect(t, map[string]string{
		"rpc/internal/engine/a.go": `// Package engine is a fixture.
package engine

import (
	"net"
	"net/http"
	"os"
	"syscall"
	clock "time"

	"golang.org/x/sys/unix"
)

const tick = clock.Millisecond

var now = clock.Now

func f(at clock.Time) {
	go f(at)
	clock.Sleep(tick)
	_ = at.After(at)
}
`,
		"rpc/internal/engine/b.go":      "package engine\n\nimport . \"time\"\n\nvar _ = Now\n",
		"rpc/internal/engine/a_test.go": "package engine\n\nimport (\n\t\"os\"\n\t\"time\"\n)\n\nvar _ = os.Exit\n\nfunc g() { go time.Sleep(1) }\n",
		"rpc/a.go":                      "// Package rpc is a fixture.\npackage rpc\n\nimport (\n\t\"net\"\n\t\"time\"\n)\n\nvar _ net.IP\n\nfunc g() { go time.Sleep(1) }\n",
	},
		"rpc/internal/engine/a.go:5: rpc/internal/engine may not import net: ",
		"rpc/internal/engine/a.go:6: rpc/internal/engine may not import net/http: ",
		"rpc/internal/engine/a.go:7: rpc/internal/engine may not import os: ",
		"rpc/internal/engine/a.go:8: rpc/internal/engine may not import syscall: ",
		"rpc/internal/engine/a.go:11: rpc/internal/engine may not import golang.org/x/sys/unix: ",
		"rpc/internal/engine/a.go:16: rpc/internal/engine may not use time.Now",
		"rpc/internal/engine/a.go:19: rpc/internal/engine may not start goroutines",
		"rpc/internal/engine/a.go:20: rpc/internal/engine may not use time.Sleep",
		"rpc/internal/engine/b.go:1: rpc/internal/engine may not dot-import time")
}

func TestPackageCommentIsRequired(t *testing.T) {
	expect(t, map[string]string{
		"uverbs/a.go":        "package uverbs\n",
		"uverbs/a_test.go":   goFile("uverbs"), // a test's comment is not the package's
		"nexus/a.go":         "// Package nexusish is misnamed.\npackage nexus\n",
		"msgbuf/a.go":        "package msgbuf\n",
		"msgbuf/doc.go":      "// Package msgbuf is a fixture.\npackage msgbuf\n",
		"rpc/a.go":           "//go:build linux\n\n// Copyright nobody.\n\npackage rpc\n",
		"cmd/rrpc/main.go":   "// Rrpc may start as it likes.\npackage main\n",
		"cmd/other/main.go":  "package main\n",
		"mlx5/doc.go":        "// Package mlx5\n// breaks its line early.\npackage mlx5\n",
		"rpc/rpctest/a.go":   "//go:generate true\npackage rpctest\n",
		"scripts/gen/gen.go": "// Gen is a fixture.\npackage main\n",
	},
		"cmd/other/main.go:1: package main has no package comment",
		"nexus/a.go:1: the package comment starts with \"Package nexus\"",
		"rpc/a.go:5: package rpc has no package comment",
		"rpc/rpctest/a.go:2: package rpctest has no package comment",
		"uverbs/a.go:1: package uverbs has no package comment")
}

func TestFilesOver700LinesAreReported(t *testing.T) {
	lines := func(n int) string { return goFile("uverbs") + strings.Repeat("//\n", n-3) }
	expect(t, map[string]string{
		"uverbs/fits.go":       lines(700),
		"uverbs/ragged.go":     lines(700) + "// 701 without a newline",
		"uverbs/long_test.go":  lines(701),
		"uverbs/gen.go":        "// Code generated by a fixture. DO NOT EDIT.\n\n" + lines(900),
		"uverbs/testdata/x.go": lines(900),
		"mlx5/doorbell.s":      strings.Repeat("\n", 702),
		"CHANGELOG.md":         strings.Repeat("\n", 900),
	},
		"mlx5/doorbell.s:701: 702 lines, 700 at most",
		"uverbs/long_test.go:701: 701 lines, 700 at most",
		"uverbs/ragged.go:701: 701 lines, 700 at most")
}

func TestUnfinishedWorkIsReported(t *testing.T) {
	todo, fixme, xxx := "TO"+"DO", "FIX"+"ME", "XX"+"X"
	expect(t, map[string]string{
		"uverbs/a.go": goFile("uverbs") + "\n// " + todo + ": more\nfunc f() { panic(\"" + fixme + "\") } // " + xxx + "\n",
		"uverbs/b.go": "package uverbs\n\n// FuzzXxx and mktemp " + xxx + xxx + " and todos are words of their own.\n",
		"README.md":   "\n" + todo + "\n",
	},
		"README.md:2: "+todo+": ",
		"uverbs/a.go:5: "+todo+": ",
		"uverbs/a.go:6: "+fixme+": ")
}

func TestFileThatDoesNotParseIsReportedAndTheRestChecked(t *testing.T) {
	expect(t, map[string]string{
		"uverbs/a.go": goFile("uverbs", "MOD/mlx5"),
		"uverbs/b.go": "package uverbs\n\nfunc {\n",
	},
		"uverbs/a.go:4: uverbs may not import mlx5",
		"uverbs/b.go:3: does not parse: ")
}

func TestTreeWithoutModuleIsAnError(t *testing.T) {
	var stderr bytes.Buffer
	if code := run(t.TempDir(), io.Discard, &stderr); code != 2 || stderr.Len() == 0 {
		t.Errorf("no go.mod: exit code %d, message %q; want 2 and a message", code, stderr.String())
	}
	root := writeTree(t, map[string]string{"go.mod": "go 1.26\n"})
	stderr.Reset()
	if code := run(root, io.Discard, &stderr); code != 2 || !strings.Contains(stderr.String(), "no module line") {
		t.Errorf("go.mod without module: exit code %d, message %q; want 2 and a message", code, stderr.String())
	}
}

func TestModulePathReadsEverySpelling(t *testing.T) {
	for mod, want := range map[string]string{
		"module a.b/c\n":                      "a.b/c",
		"// comment\n\nmodule a.b/c // why\n": "a.b/c",
		"module \"a.b/c\"":                    "a.b/c",
		"go 1.26\n":                           "",
		"":                                    "",
	} {
		if got := modulePath([]byte(mod)); got != want {
			t.Errorf("modulePath(%q) = %q, want %q", mod, got, want)
		}
	}
}
