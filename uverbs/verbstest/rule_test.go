package verbstest

import (
	"strings"
	"testing"

	"github.com/rrppcc-go/rrppcc/uverbs"
)

func TestBackendsDescribeThemselvesSoundly(t *testing.T) {
	for _, b := range []Backend{InProcess(), InProcessOneDevice(), Loopback()} {
		if err := b.check(); err != nil {
			t.Error(err)
		}
	}
	for _, v := range [][2]int{{5, 15}, {6, 1}, {6, 12}, {7, 3}} {
		b := Backend{Name: "rxe", Child: "rxe0", Deviations: rxeDeviations(v)}
		if err := b.check(); err != nil {
			t.Error(v, err)
		}
	}
}

func TestUnsoundDescriptionsAreRefused(t *testing.T) {
	flushed := status(uverbs.WCWRFlushErr)
	for want, b := range map[string]Backend{
		"no rule":          {Child: "x", Deviations: []Deviation{{"flying", flushed, "wings"}}},
		"two deviations":   {Child: "x", Deviations: []Deviation{{RuleBadGather, flushed, "a"}, {RuleBadGather, dropped, "b"}}},
		"is no deviation":  {Child: "x", Deviations: []Deviation{{RuleRecvAfterErr, flushed, "as it should be"}}},
		"without a reason": {Child: "x", Deviations: []Deviation{{RuleBadGather, flushed, ""}}},
		"lacks shared":     {Child: "x", Lacks: map[Capability]string{SRQ: ""}},
		"no way to open":   {},
		"state of a UD QP": {Child: "x", Deviations: []Deviation{{RuleUDErrState, "SQE", "the same"}}},
	} {
		if err := b.check(); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %q in it", err, want)
		}
	}
}

func TestRulesAndTestsAreNamedOnce(t *testing.T) {
	for r, want := range rules {
		if want == "" {
			t.Errorf("%q has no answer", r)
		}
	}
	names := map[string]bool{}
	for _, group := range groups {
		for _, c := range group {
			if names[c.name] {
				t.Errorf("two tests are called %s", c.name)
			}
			names[c.name] = true
		}
	}
}
