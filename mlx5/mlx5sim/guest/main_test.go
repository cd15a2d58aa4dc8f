package guest

import (
	"fmt"
	"os"
	"testing"

	"github.com/rrppcc-go/rrppcc/uverbs/verbstest"
)

// scenarioVar names what this test binary does in place of the tests: it is its
// own guest program, so that the tests need nothing that is not in this module.
const scenarioVar = "GUEST_SCENARIO"

// scenarios are these programs. An error, or a panic, is a failure of the test
// that started it.
var scenarios = map[string]func(args []string) error{}

func TestMain(m *testing.M) {
	if name := os.Getenv(scenarioVar); name != "" {
		f := scenarios[name]
		if f == nil {
			fmt.Fprintf(os.Stderr, "no scenario %q\n", name)
			os.Exit(3)
		}
		if err := f(os.Args[1:]); err != nil {
			fmt.Fprintf(os.Stderr, "scenario %s: %v\n", name, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	verbstest.Main(m)
}
