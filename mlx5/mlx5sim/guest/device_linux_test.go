//go:build amd64 || arm64

package guest

import (
	"strconv"
	"strings"
	"testing"
)

// history is what the supervisor noticed: o and c for device 0 opened and closed,
// | for a mark.
func (r *runner) history() string {
	var b strings.Builder
	for line := range strings.Lines(r.log.String()) {
		opened, first := strings.Contains(line, "msg=opened"), strings.Contains(line, "device=0")
		switch {
		case opened && first:
			b.WriteByte('o')
		case opened:
			b.WriteByte('|')
		case strings.Contains(line, "msg=closed") && first:
			b.WriteByte('c')
		}
	}
	return b.String()
}

func TestContextLivesAsLongAsItsFile(t *testing.T) {
	for name, want := range map[string]string{
		"close": "oc|", "child exits": "oc|", "child dies": "oc|", "exec": "oc|",
		"duplicate": "o|c|", "mapping": "o|c|", "child inherits": "o|c|",
	} {
		t.Run(name, func(t *testing.T) {
			r := newRunner(t)
			r.ok(scenario(name))
			if got := r.history(); got != want {
				t.Errorf("%s, want %s\n%s", got, want, r.log.String())
			}
		})
	}
}

func TestProgramThatDiesLeavesNothing(t *testing.T) {
	r := newRunner(t)
	exit, err := r.run(t.Context(), scenario("die"))
	if err != nil || exit.Signal != 9 {
		t.Errorf("%+v, %v", exit, err)
	}
	r = newRunner(t)
	r.ok(scenario("massacre"))
	h := r.history()
	if opened, closed := strings.Count(h, "o"), strings.Count(h, "c"); opened < 12 || opened != closed || !strings.HasSuffix(h, "|") {
		t.Errorf("%d opened, %d closed: …%s", opened, closed, h[max(0, len(h)-20):])
	}
}

func TestDaemonKeepsItsParentsDevice(t *testing.T) {
	r := newRunner(t)
	cfg := scenario("daemon")
	cfg.Linger = patience
	r.ok(cfg)
	if got := r.history(); !strings.HasPrefix(got, "o|") || r.out.String() != "" {
		t.Errorf("%s\n%s\n%s", got, r.out.String(), r.log.String())
	}
}

func TestRemovedDeviceCannotBeOpened(t *testing.T) {
	r := newRunner(t)
	if err := r.devs[0].Close(); err != nil {
		t.Fatal(err)
	}
	r.ok(scenario("gone"))
	if got := r.history(); got != "|" {
		t.Error(got)
	}
}

func TestCallsThatNameFiles(t *testing.T)         { newRunner(t).ok(scenario("calls")) }
func TestNonsenseIsAnsweredByErrors(t *testing.T) { newRunner(t).ok(scenario("hostile")) }
func TestCommandsRunOnceUnderSignals(t *testing.T) {
	newRunner(t).ok(scenario("signals"))
}

// BenchmarkGuest measures what calls take in a program: a verbs command with an
// answer (ALLOC_PD), an open and close that is none of ours, and a call that the
// filter lets pass. One iteration is each of them once.
func BenchmarkGuest(b *testing.B) {
	r := newRunner(b)
	r.ok(scenario("bench", strconv.Itoa(b.N)))
	f := strings.Fields(r.out.String())
	for i := 0; i+1 < len(f); i += 2 {
		ns, err := strconv.ParseFloat(f[i+1], 64)
		if err != nil {
			b.Fatal(err)
		}
		b.ReportMetric(ns, "ns/"+f[i])
	}
	b.ReportMetric(0, "ns/op")
}
