//go:build !race && !msgbufdebug

package msgbuf

// freeTrace would record where a buffer was freed; see trace_on.go.
type freeTrace struct{}

func (freeTrace) record(uint64) {}

func (freeTrace) where(uint64) string {
	return " (build with -race or -tags msgbufdebug to see where it was freed first)"
}
