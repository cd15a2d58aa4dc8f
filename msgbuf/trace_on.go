//go:build race || msgbufdebug

package msgbuf

import (
	"fmt"
	"runtime"
	"strings"
	"sync"
)

// freeTrace remembers where a block was freed last.
type freeTrace struct {
	mu  sync.Mutex // a double free may race with the first one's recording
	gen uint64
	pcs [16]uintptr
	n   int
}

func (t *freeTrace) record(gen uint64) {
	t.mu.Lock()
	t.gen = gen
	t.n = runtime.Callers(4, t.pcs[:]) // without Callers, record, end, Free
	t.mu.Unlock()
}

func (t *freeTrace) where(gen uint64) string {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.n == 0 || t.gen != gen {
		return "; its memory has been allocated and freed again since the first time"
	}
	var s strings.Builder
	s.WriteString("; it was freed first at:")
	frames := runtime.CallersFrames(t.pcs[:t.n])
	for {
		f, more := frames.Next()
		fmt.Fprintf(&s, "\n\t%s\n\t\t%s:%d", f.Function, f.File, f.Line)
		if !more {
			return s.String()
		}
	}
}
