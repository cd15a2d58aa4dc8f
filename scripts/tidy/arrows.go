package main

import "strings"

// An arrow says what one package may import outside the standard library.
//
// Paths are below the module's root. "x/..." stands for x and everything below
// it, "..." for the whole module. Where several arrows fit a package, the most
// specific (longest) one counts; a package that none fits is a finding, so that
// a new package gets its place in the design before it gets users.
type arrow struct {
	pkg   string
	ours  []string // packages of this module that it may import
	third []string // packages of other modules that it may import

	// neverInTests lists what even tests inside the package may not import.
	// Test files are free otherwise.
	neverInTests []string

	why string
}

const (
	sys   = "golang.org/x/sys/..."
	gocmp = "github.com/google/go-cmp/..."
)

var arrows = []arrow{
	{
		pkg: "internal/abi",
		why: "the kernel's layouts stand on nothing, so that everybody may use them",
	},
	{
		pkg: "internal/abi/abitest",
		why: "it compares sources with C headers, and imports none of what it judges",
	},
	{
		pkg:   "internal/kernel",
		ours:  []string{"internal/abi"},
		third: []string{sys},
		why:   "the seam knows commands and files, not verbs or devices",
	},
	{
		pkg: "internal/roce",
		why: "wire formats stand on nothing, so that any tool can read a packet with them",
	},
	{
		pkg: "internal/leakcheck",
		why: "every package's tests use it, so it may use none of them",
	},
	{
		pkg:   "uverbs",
		ours:  []string{"internal/abi", "internal/kernel"},
		third: []string{sys},
		why:   "the verbs know the kernel, and no provider: providers register themselves with them",
	},
	{
		pkg:   "uverbs/rxe/...",
		ours:  []string{"uverbs", "uverbs/rxe/...", "internal/abi", "internal/kernel"},
		third: []string{sys},
		why:   "a provider fills in the verbs and stands beside the other providers, not on them",
	},
	{
		pkg:   "uverbs/verbstest",
		ours:  []string{"uverbs", "uverbs/rxe", "mlx5", "mlx5/mlx5sim", "internal/abi", "internal/kernel", "internal/leakcheck"},
		third: []string{sys, gocmp},
		why:   "the conformance suite judges every backend through the verbs, makes the simulated ones, and asks the kernel alone what was leaked",
	},
	{
		pkg:   "mlx5",
		ours:  []string{"uverbs", "internal/abi", "internal/kernel", "mlx5/internal/..."},
		third: []string{sys},
		why:   "the driver must not know that a simulator exists",
	},
	{
		pkg: "mlx5/internal/prm",
		why: "the device's formats stand on nothing, so that golden bytes can pin them alone",
	},
	{
		pkg:  "mlx5/internal/abi",
		ours: []string{"internal/abi"},
		why:  "driver-private layouts stand on the kernel's layouts alone",
	},
	{
		pkg:   "mlx5/mlx5sim/...",
		ours:  []string{"uverbs", "internal/abi", "internal/kernel", "internal/roce", "mlx5/mlx5sim/..."},
		third: []string{sys},
		neverInTests: []string{
			"mlx5/internal/prm", // tests within the package check the simulator's decoder
			"mlx5/internal/abi",
		},
		why: "the simulator reads the device's formats with code of its own, or a mistake shared with the driver would hide",
	},
	{
		pkg:   "msgbuf/...",
		ours:  []string{"msgbuf/..."},
		third: []string{sys},
		why:   "buffers are registered through an interface of their own, so that they need no device",
	},
	{
		pkg:   "nexus/...",
		ours:  []string{"nexus/..."},
		third: []string{sys},
		why:   "session management is datagrams and time; it must work where no device does",
	},
	{
		pkg:  "rpc",
		ours: []string{"nexus", "msgbuf", "uverbs", "uverbs/rxe", "mlx5", "rpc/internal/...", "rpc/congestion"},
		why:  "RPC runs on whichever device it is handed; the simulator comes in through the caller, never by itself",
	},
	{
		pkg: "rpc/congestion",
		why: "an algorithm of congestion control knows samples and times, and no engine",
	},
	{
		pkg:  "rpc/internal/engine",
		ours: []string{"msgbuf", "rpc/congestion"},
		why:  "the protocol does no I/O, so that a seed can replay it",
	},
	{
		pkg:  "rpc/internal/transport",
		ours: []string{"rpc/internal/engine", "msgbuf", "uverbs"},
		why:  "the transport binds the engine to queue pairs of any provider",
	},
	{
		pkg:   "rpc/rpctest",
		ours:  []string{"rpc/...", "nexus", "msgbuf", "uverbs", "uverbs/rxe", "mlx5", "mlx5/mlx5sim", "internal/leakcheck"},
		third: []string{gocmp},
		why:   "the conformance suite runs RPC on every backend, and stands below nothing but tests",
	},
	{
		pkg:   "cmd/...",
		ours:  []string{"..."},
		third: []string{sys},
		why:   "commands put everything together, on this module and x/sys",
	},
	{
		pkg:   "scripts/...",
		ours:  []string{"..."},
		third: []string{sys},
		why:   "scripts serve the repository; they bring no dependency into it",
	},
	{
		pkg: "scripts/tidy",
		why: "the checker must build when nothing else does",
	},
}

// checkArrows reports imports that the table does not allow, and packages that
// the table does not know.
func (t *tree) checkArrows(table []arrow) {
	unknown := map[string]bool{} // directories reported already
	for f := range t.goFiles {
		a := findArrow(table, f.dir())
		if a == nil && !f.isTest() && !unknown[f.dir()] {
			unknown[f.dir()] = true
			t.report(f, t.line(f.ast.Package), "package %s has no arrow: give it a line in scripts/tidy/arrows.go that says what it may import, and why", f.dir())
		}
		for p, line := range t.imports(f) {
			if p == "C" {
				t.report(f, line, "cgo is not used here: everything builds with CGO_ENABLED=0")
				continue
			}
			if a != nil && !t.importAllowed(a, f, p) {
				t.report(f, line, "%s may not import %s: %s", f.dir(), t.below(p), a.why)
			}
		}
	}
}

// importAllowed reports whether file f, whose package has arrow a, may import p.
func (t *tree) importAllowed(a *arrow, f *sourceFile, p string) bool {
	ours, isOurs := t.cutModule(p)
	if f.isTest() {
		external := strings.HasSuffix(f.ast.Name.Name, "_test")
		return external || !isOurs || !matchAny(a.neverInTests, ours)
	}
	if isOurs {
		return matchAny(a.ours, ours)
	}
	first, _, _ := strings.Cut(p, "/")
	std := !strings.Contains(first, ".")
	return std || matchAny(a.third, p)
}

// cutModule returns the path of p below the module's root, and whether p
// belongs to the module at all.
func (t *tree) cutModule(p string) (string, bool) {
	if p == t.module {
		return ".", true
	}
	return strings.CutPrefix(p, t.module+"/")
}

// below returns p as a reader knows it: without the module's path.
func (t *tree) below(p string) string {
	rest, _ := t.cutModule(p)
	return rest
}

// findArrow returns the most specific arrow that fits dir, or nil.
func findArrow(table []arrow, dir string) *arrow {
	var best *arrow
	for i := range table {
		a := &table[i]
		if match(a.pkg, dir) && (best == nil || len(a.pkg) > len(best.pkg)) {
			best = a
		}
	}
	return best
}

// match reports whether p fits pattern: itself, or "x/..." for x and all below.
func match(pattern, p string) bool {
	if pattern == "..." {
		return true
	}
	if top, ok := strings.CutSuffix(pattern, "/..."); ok {
		return p == top || strings.HasPrefix(p, top+"/")
	}
	return pattern == p
}

func matchAny(patterns []string, p string) bool {
	for _, pattern := range patterns {
		if match(pattern, p) {
			return true
		}
	}
	return false
}
