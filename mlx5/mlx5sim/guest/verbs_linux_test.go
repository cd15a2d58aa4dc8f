//go:build amd64 || arm64

package guest

import (
	"os"
	"strings"
	"testing"

	"github.com/rrppcc-go/rrppcc/uverbs/verbstest"
)

// The conformance suite of the verbs, in a guest program: this library's own
// driver on what it takes for the kernel's device files.
func TestVerbsOfAGuest(t *testing.T) {
	if os.Getenv(markerName) == "" {
		if testing.Short() {
			t.Skip("it takes seconds")
		}
		r := newRunner(t)
		self, err := os.Executable()
		if err != nil {
			t.Fatal(err)
		}
		exit, err := r.run(t.Context(), Config{
			Args: []string{self, "-test.run=^TestVerbsOfAGuest$", "-test.v"},
		})
		if err != nil || exit.Code() != 0 {
			t.Fatalf("ended with %d, %v\n%s", exit.Code(), err, r.out.String())
		}
		for line := range strings.Lines(r.out.String()) {
			if strings.Contains(line, " ran, ") || strings.Contains(line, "deviation:") {
				t.Log(strings.TrimSpace(line))
			}
		}
		return
	}
	b, err := verbstest.Devices("mlx5_0", "mlx5_1")
	if err != nil {
		t.Fatal(err)
	}
	b.EventRounds = 200 // each takes a doorbell and an event
	verbstest.Run(t, b)
}
