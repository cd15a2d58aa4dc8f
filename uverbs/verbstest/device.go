package verbstest

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"strings"

	"github.com/rrppcc-go/rrppcc/uverbs"
	_ "github.com/rrppcc-go/rrppcc/uverbs/rxe" // Soft-RoCE needs its provider
)

// FromEnvironment returns the backends of the devices that RRPC_DEVICE and
// RRPC_DEVICE2 name: the first one opened twice, and, if there are two, the pair,
// which must reach each other. There are none where RRPC_DEVICE is not set.
func FromEnvironment() ([]Backend, error) {
	first, second := os.Getenv("RRPC_DEVICE"), os.Getenv("RRPC_DEVICE2")
	if first == "" {
		return nil, nil
	}
	one, err := Devices(first, first)
	if err != nil || second == "" || second == first {
		return []Backend{one}, err
	}
	two, err := Devices(first, second)
	return []Backend{two, one}, err
}

// Devices returns the backend of two of the machine's devices. They may be the
// same.
func Devices(name, name2 string) (Backend, error) {
	a, err1 := uverbs.DeviceByName(name)
	z, err2 := uverbs.DeviceByName(name2)
	if err := errors.Join(err1, err2); err != nil {
		return Backend{}, err
	}
	b := Backend{
		Name:  "device " + name,
		Open:  func() (*Pair, error) { return openPair(a, z, func() error { return nil }) },
		Lacks: map[Capability]string{Removal: "a real device stays"},
		Child: name2,

		EventRounds: 20_000,
	}
	if name2 != name {
		b.Name += " and " + name2
	}
	link, err := linkLayer(a)
	if err != nil {
		return Backend{}, err
	}
	switch a.Driver() {
	case "rdma_rxe", "rxe":
		v := release()
		b.Lacks[DMABuf] = "rxe pins the memory of programs"
		if v[0] < 6 || v[0] == 6 && v[1] < 15 {
			b.Lacks[OnDemand] = "rxe has none before 6.15"
		}
		b.Deviations = rxeDeviations(v)
		if v[0] == 6 && v[1] < 12 {
			b.Lacks[ReregMR] = "rxe on 6.1 cannot; on 6.12 it can"
		}
	case "mlx5_core":
		if os.Getenv("RRPC_SIM") != "" { // rrpc sim says so
			sim := polled(simBackend("", nil))
			b.Deviations, b.EventRounds = sim.Deviations, 2000
			maps.Copy(b.Lacks, sim.Lacks)
			break
		}
		b.Lacks[DMABuf] = "it takes real ones, and a memfd is none"
		if attr, err := query(a); err != nil || attr.ODP.General&1 == 0 {
			b.Lacks[OnDemand] = "the device says that it has none"
		}
		b.Deviations = []Deviation{{RuleZeroBased, notSupported, "mlx5_ib has no zero-based MRs by this command"}}
	default:
		return Backend{}, fmt.Errorf("verbstest: nothing is known of driver %s", a.Driver())
	}
	delete(b.Lacks, LIDs)
	if link != uverbs.LinkLayerInfiniBand {
		b.Lacks[LIDs] = onEthernet
	}
	return b, nil
}

// query asks a device what it can.
func query(d *uverbs.Device) (*uverbs.DeviceAttr, error) {
	ctx, err := d.Open()
	if err != nil {
		return nil, err
	}
	defer ctx.Close()
	return ctx.QueryDevice()
}

// linkLayer asks a device for the link layer of its port.
func linkLayer(d *uverbs.Device) (uverbs.LinkLayer, error) {
	ctx, err := d.Open()
	if err != nil {
		return 0, err
	}
	defer ctx.Close()
	p, err := ctx.QueryPort(port)
	if err != nil {
		return 0, err
	}
	return p.LinkLayer, nil
}

// release is the major and minor number of the kernel's version.
func release() (v [2]int) {
	text, _ := os.ReadFile("/proc/sys/kernel/osrelease") // 0.0 where there is none
	fmt.Sscanf(strings.TrimSpace(string(text)), "%d.%d", &v[0], &v[1])
	return v
}

// rxeDeviations is what Linux's Soft-RoCE was seen to do, by kernel version.
func rxeDeviations(v [2]int) []Deviation {
	since := func(major, minor int) bool { return v[0] > major || v[0] == major && v[1] >= minor }
	const unchecked = "rxe does not check it"
	local := Deviation{Answer: status(uverbs.WCLocQPOpErr), Why: "rxe on 6.1 has one status for all that its requester cannot do"}
	if since(6, 12) {
		local = Deviation{Answer: status(uverbs.WCWRFlushErr), Why: "rxe from 6.12 on flushes what its requester cannot do"}
	}
	as := func(r Rule, d Deviation) Deviation { d.Rule = r; return d }
	all := []Deviation{
		as(RuleBadGather, local),
		as(RuleBadUDGather, local),
		{RuleWindowBounds, status(uverbs.WCSuccess), "rxe looks at the bounds of the region alone"},
		{RuleUDErrState, uverbs.QPStateErr.String(), "rxe has no state SQE"},
		{RuleUDTooLong, dropped, "rxe completes it with success"},
		{RuleRecvTooSmall, both(uverbs.WCLocQPOpErr, uverbs.WCRemOpErr), "rxe has one status for all that its responder cannot do"},
		{RuleRecvBadMemory, both(uverbs.WCLocQPOpErr, uverbs.WCRemOpErr), "rxe has one status for all that its responder cannot do"},
		{RuleRecvAfterErr, flushedByState, "posting a receive is no system call: rxe looks when something else calls it"},
		{RuleUCRecvSmall, status(uverbs.WCLocQPOpErr), "rxe has one status for all that its responder cannot do"},
		{RulePKeyIndex, accepted, unchecked},
		{RulePathMTU, accepted, unchecked},
		{RuleMaxDestRd, accepted, unchecked},
	}
	if since(6, 12) {
		all = append(all, as(RuleOverGather, local),
			Deviation{RuleFlushEvent, noEvent, "rxe from 6.12 on flushes without telling those who wait"})
	}
	if !since(7, 0) {
		all = append(all, Deviation{RuleAccessEvent, noEvent, "rxe raises it from 7.x on"})
	}
	if since(6, 12) {
		all = append(all, Deviation{RuleUDRecvSmall, dropped, "rxe from 6.12 on drops it, and keeps the receive"},
			Deviation{RuleZeroBased, notSupported, "rxe from 6.12 on has no zero-based MRs"})
	} else {
		all = append(all, Deviation{RuleUDRecvSmall, status(uverbs.WCLocQPOpErr), "rxe on 6.1 has one status for all that its responder cannot do"})
	}
	return all
}
