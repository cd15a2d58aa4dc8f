package verbstest

import (
	"fmt"
	"slices"
	"strings"

	"github.com/rrppcc-go/rrppcc/uverbs"
)

// Rule is a place where devices are known to differ. Its text is what is done;
// rules holds what should come of it.
type Rule string

const (
	// Local errors of a requester.
	RuleBadGather   Rule = "RC SEND or WRITE that gathers with a key that its PD does not have"
	RuleOverGather  Rule = "RC SEND or WRITE that gathers from outside of a region"
	RuleBadReadSink Rule = "RC READ into memory without AccessLocalWrite"
	RuleBadUDGather Rule = "UD SEND that gathers with a key that its PD does not have"
	RuleUDErrState  Rule = "state of a UD QP whose send failed"
	RuleUDTooLong   Rule = "UD SEND of more than the MTU"
	RuleUDBadQKey   Rule = "UD SEND with a wrong QKey" // no completion at the receiver

	// Errors of a responder: what both sides see.
	RuleRecvTooSmall  Rule = "RC SEND longer than the receive: receiver, sender"
	RuleRecvBadMemory Rule = "RC SEND to a receive of unusable memory: receiver, sender"
	RuleNoQPAccess    Rule = "WRITE to a QP without AccessRemoteWrite"
	RuleNoQPRead      Rule = "READ from a QP without AccessRemoteRead"
	RuleAccessEvent   Rule = "async event at the responder of a WRITE with a bad rkey"
	RuleUDRecvSmall   Rule = "UD datagram longer than the receive"
	RuleUCRecvSmall   Rule = "UC SEND longer than the receive"
	RuleMisaligned    Rule = "atomic on an address that is not aligned to 8"
	RuleWindowBounds  Rule = "WRITE over the end of a memory window, within its region"

	// Queues.
	RuleRecvAfterErr Rule = "receive posted to a QP in ERR"
	RuleFlushEvent   Rule = "CQ armed for solicited completions, when a receive is flushed"
	RuleOverrunState Rule = "state of the QP whose CQ overran"

	// Headers.
	RuleGRH Rule = "first 20 bytes of a datagram's GRH on IPv4"

	// What Modify checks and changes.
	RuleHopLimit  Rule = "hop limit of a QP's address vector"
	RulePKeyIndex Rule = "INIT with a P_Key index beyond the table"
	RulePathMTU   Rule = "RTR with a path MTU above the active MTU"
	RuleMaxDestRd Rule = "RTR with 200 outstanding READs to serve"

	// MRs.
	RuleBoundRegion  Rule = "deregister a region that a window is bound to"
	RuleFaultedWrite Rule = "WRITE to a region of on-demand paging whose memory is gone"
	RuleZeroBased    Rule = "register with AccessZeroBased"
	RuleReadOnly     Rule = "register memory that is mapped read-only with AccessLocalWrite"
)

const (
	dropped  = "dropped"
	accepted = "accepted"
	refused  = "refused"
	invalid  = "EINVAL"

	// Answers to RuleFlushEvent.
	anEvent = "an event"

	// Answers to RuleHopLimit.
	routesOwn = "the route's"
	asAsked   = "as it was set"
)

// rules is what the specification says, or what a ConnectX does where it says
// nothing.
var rules = map[Rule]string{
	RuleBadGather:     status(uverbs.WCLocProtErr),
	RuleOverGather:    status(uverbs.WCLocProtErr),
	RuleBadReadSink:   status(uverbs.WCLocProtErr),
	RuleBadUDGather:   status(uverbs.WCLocProtErr),
	RuleUDErrState:    uverbs.QPStateSQE.String(),
	RuleUDTooLong:     status(uverbs.WCLocLenErr),
	RuleUDBadQKey:     dropped,
	RuleRecvTooSmall:  both(uverbs.WCLocLenErr, uverbs.WCRemInvReqErr),
	RuleRecvBadMemory: both(uverbs.WCLocProtErr, uverbs.WCRemOpErr),
	RuleNoQPAccess:    status(uverbs.WCRemInvReqErr),
	RuleNoQPRead:      status(uverbs.WCRemInvReqErr),
	RuleAccessEvent:   uverbs.EventQPAccessErr.String(),
	RuleUDRecvSmall:   status(uverbs.WCLocLenErr),
	RuleUCRecvSmall:   status(uverbs.WCLocLenErr),
	RuleMisaligned:    status(uverbs.WCRemInvReqErr),
	RuleRecvAfterErr:  status(uverbs.WCWRFlushErr),
	RuleFlushEvent:    anEvent,
	RuleOverrunState:  uverbs.QPStateErr.String(),
	RuleGRH:           "zero",
	RuleWindowBounds:  status(uverbs.WCRemAccessErr),
	RuleHopLimit:      routesOwn,
	RulePKeyIndex:     invalid,
	RulePathMTU:       invalid,
	RuleMaxDestRd:     invalid,
	RuleBoundRegion:   refused,
	RuleFaultedWrite:  status(uverbs.WCRemOpErr),
	RuleZeroBased:     accepted,
	RuleReadOnly:      badAddress,
}

// Deviation is a rule that a device is known to break.
type Deviation struct {
	Rule   Rule
	Answer string // what comes instead of what the suite expects
	Why    string
}

func status(s uverbs.WCStatus) string { return s.String() }

func both(first, second uverbs.WCStatus) string { return status(first) + ", " + status(second) }

// check finds mistakes in the backend's own description.
func (b *Backend) check() error {
	var bad []string
	seen := map[Rule]bool{}
	for _, d := range b.Deviations {
		switch want, ok := rules[d.Rule]; {
		case !ok:
			bad = append(bad, fmt.Sprintf("no rule %q", d.Rule))
		case seen[d.Rule]:
			bad = append(bad, fmt.Sprintf("two deviations from %q", d.Rule))
		case d.Answer == want:
			bad = append(bad, fmt.Sprintf("%q: %s is no deviation", d.Rule, d.Answer))
		case d.Why == "":
			bad = append(bad, fmt.Sprintf("%q: without a reason", d.Rule))
		}
		seen[d.Rule] = true
	}
	for c, why := range b.Lacks {
		if why == "" {
			bad = append(bad, fmt.Sprintf("lacks %s without a reason", c))
		}
	}
	if b.Child == "" && b.Lacks[Processes] == "" {
		bad = append(bad, "a second process, but no way to open the device there")
	}
	if len(bad) == 0 {
		return nil
	}
	slices.Sort(bad)
	return fmt.Errorf("verbstest: backend %s: %s", b.Name, strings.Join(bad, "; "))
}

// answer is what the backend answers where the rule applies, and why, if that
// is a deviation.
func (b *Backend) answer(r Rule) (want, why string) {
	for _, d := range b.Deviations {
		if d.Rule == r {
			return d.Answer, d.Why
		}
	}
	return rules[r], ""
}
