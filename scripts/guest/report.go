package main

import (
	"fmt"
	"io"
	"strings"
	"time"
)

// What process 1 writes on the second serial port is the jobs' output as it
// is, with lines of its own between. kerneltest.sh looks for them:
//
//	guest: hello Linux 6.1.0          /init runs; before this line a boot may be tried again
//	guest: job NAME
//	guest: ok NAME 1.25s
//	guest: FAILED NAME 1.25s: exit status 1
//	guest: end 3 jobs, 1 failed       the last line; without it the guest died
type report struct {
	w      io.Writer
	jobs   int
	failed int
}

func (r *report) say(format string, args ...any) {
	fmt.Fprintf(r.w, "guest: "+format+"\n", args...)
}

func (r *report) start(name string) {
	r.jobs++
	r.say("job %s", name)
}

// done ends a job; problems are why it failed. It begins a new line, because a job
// that was killed has not ended its last one.
func (r *report) done(name string, took time.Duration, problems []string) {
	fmt.Fprintln(r.w)
	if len(problems) == 0 {
		r.say("ok %s %.2fs", name, took.Seconds())
		return
	}
	r.failed++
	r.say("FAILED %s %.2fs: %s", name, took.Seconds(), strings.Join(problems, "; "))
}

func (r *report) end() { r.say("end %d jobs, %d failed", r.jobs, r.failed) }

// resources is what "rdma resource show" says: one line per device, such as
// "0: rxe0: qp 1 cq 1 pd 1 mr 0 ctx 0". The kernel's own management agent holds
// the first few, so that the devices' state after the set-up, not an empty list,
// is what must come back.
type resources map[string]string

func parseResources(text string) resources {
	r := resources{}
	for line := range strings.Lines(text) {
		_, rest, _ := strings.Cut(strings.TrimSpace(line), ": ")
		if dev, counts, ok := strings.Cut(rest, ": "); ok {
			r[dev] = strings.TrimSpace(counts)
		}
	}
	return r
}

// more lists the devices of r that do not hold exactly what base says. Devices
// that are gone hold nothing; a new one is compared with nothing.
func (r resources) more(base resources) []string {
	var problems []string
	for dev, counts := range r {
		if was, ok := base[dev]; ok && was != counts {
			problems = append(problems, fmt.Sprintf("left on %s: %s (was: %s)", dev, counts, was))
		}
	}
	return problems
}
