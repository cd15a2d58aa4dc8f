package main

import (
	"slices"
	"testing"

	"github.com/rrppcc-go/rrppcc/uverbs"
)

func TestSoftRoCEIsSparedWhereItIsBroken(t *testing.T) {
	both := limits{NoEmptyRead: true, NoLongRead: true}
	for release, want := range map[string]limits{
		"6.1.0-56-amd64\n":          {},
		"5.15.0\n":                  {},
		"6.12.117+deb13-amd64\n":    both,
		"7.3.4+deb13-amd64\n":       both,
		"10.0.0\n":                  both,
		"what kernel may this be\n": {},
	} {
		if got := rxeLimits(release); got != want {
			t.Errorf("%q: %+v, want %+v", release, got, want)
		}
	}
}

// reads is all lengths of READs of p, alone and in queues.
func reads(p *party) (alone, queued []int) {
	for i := range rounds {
		queued = append(queued, p.queuedRead(i))
	}
	return p.readSizes(true), queued
}

func TestReadsKeepToTheLimits(t *testing.T) {
	no := limits{}
	for _, tt := range []struct {
		name             string
		lossy            bool
		own, peer        limits
		empty, longQueue bool
	}{
		{"without loss", false, limits{true, true}, limits{true, true}, true, true},
		{"no limits", true, no, no, true, true},
		{"the requester's", true, limits{true, true}, no, true, false},
		{"the responder's", true, no, limits{true, true}, false, true},
	} {
		p := &party{half: &half{mtu: uverbs.MTU1024, limits: tt.own}, peer: params{MTU: uverbs.MTU4096, Limits: tt.peer}, lossy: tt.lossy}
		alone, queued := reads(p)
		if slices.Contains(alone, 0) != tt.empty || slices.Contains(queued, 0) != tt.empty {
			t.Errorf("%s: READs of 0 bytes among %v or %v, or not", tt.name, alone, queued)
		}
		if long := slices.Max(queued) > 1024; long != tt.longQueue {
			t.Errorf("%s: the longest READ of a queue has %d bytes", tt.name, slices.Max(queued))
		}
		if slices.Max(alone) != largest {
			t.Errorf("%s: no READ of %d bytes among %v", tt.name, largest, alone)
		}
	}
}
