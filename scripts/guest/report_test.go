package main

import (
	"strings"
	"testing"
	"time"
)

func TestReportCountsFailures(t *testing.T) {
	var out strings.Builder
	r := &report{w: &out}
	r.say("hello Linux %s", "6.1.0")
	r.start("good")
	r.done("good", 1250*time.Millisecond, nil)
	r.start("bad")
	out.WriteString("cut sho")
	r.done("bad", time.Second, []string{"exit status 1", "left on rxe0"})
	r.end()
	want := `guest: hello Linux 6.1.0
guest: job good

guest: ok good 1.25s
guest: job bad
cut sho
guest: FAILED bad 1.00s: exit status 1; left on rxe0
guest: end 2 jobs, 1 failed
`
	if out.String() != want {
		t.Errorf("got\n%swant\n%s", out.String(), want)
	}
}

func TestResourcesOfADeviceThatIsStillInUseAreNamed(t *testing.T) {
	base := parseResources("0: rxe0: pd 1 cq 1 qp 1 cm_id 0 mr 0 ctx 0 srq 0 \n1: rxe1: pd 1 cq 1 qp 1 mr 0 \n")
	if len(base) != 2 || base["rxe0"] != "pd 1 cq 1 qp 1 cm_id 0 mr 0 ctx 0 srq 0" {
		t.Fatalf("parsed %v", base)
	}
	if p := parseResources("1: rxe1: pd 1 cq 1 qp 1 mr 0\n").more(base); len(p) != 0 {
		t.Errorf("a device that is gone: %v", p)
	}
	now := parseResources("0: rxe0: pd 1 cq 1 qp 1 cm_id 0 mr 0 ctx 0 srq 0\n1: rxe1: pd 2 cq 1 qp 1 mr 1\n2: rxe9: pd 1\n\ngarbage\n")
	if p := now.more(base); len(p) != 1 || !strings.Contains(p[0], "rxe1: pd 2 cq 1 qp 1 mr 1 (was: pd 1") {
		t.Errorf("got %q", p)
	}
}
