package verbstest

import (
	"errors"
	"runtime"

	_ "github.com/rrppcc-go/rrppcc/mlx5" // the simulated ConnectX needs its provider
	"github.com/rrppcc-go/rrppcc/mlx5/mlx5sim"
	"github.com/rrppcc-go/rrppcc/uverbs"
)

// InProcess returns a backend of two simulated devices of one fabric: what one
// sends is received before its doorbell returns.
func InProcess() Backend {
	b := simBackend("mlx5sim in process", func() (*Pair, error) {
		f := mlx5sim.NewFabric()
		return simPair(
			[]mlx5sim.Option{mlx5sim.WithFabric(f), mlx5sim.InProcess()},
			[]mlx5sim.Option{mlx5sim.WithFabric(f), mlx5sim.InProcess()})
	})
	b.Lacks[Processes] = "the fabric is this process's own"
	return b
}

// InProcessOneDevice returns a backend of one simulated device that is opened
// twice. Its MTU is 1024, so that there are larger ones which it must refuse.
func InProcessOneDevice() Backend {
	b := simBackend("mlx5sim in process, one device", func() (*Pair, error) {
		return simPair([]mlx5sim.Option{mlx5sim.WithFabric(mlx5sim.NewFabric()), mlx5sim.InProcess(), mlx5sim.WithMTU(uverbs.MTU1024)}, nil)
	})
	b.Lacks[Processes] = "the fabric is this process's own"
	b.Lacks[Removal] = "both contexts are of one device: nobody is left to look on"
	return b
}

// Loopback returns a backend of two simulated devices of two fabrics, which
// send RoCEv2 packets to each other over the loopback interface.
func Loopback() Backend {
	b := simBackend("mlx5sim over UDP", func() (*Pair, error) {
		return simPair(
			[]mlx5sim.Option{mlx5sim.WithFabric(mlx5sim.NewFabric())},
			[]mlx5sim.Option{mlx5sim.WithFabric(mlx5sim.NewFabric())})
	})
	b.Child = simChild
	b.EventRounds = 10_000
	return b
}

// InfiniBand returns a backend of two simulated devices of one fabric whose ports
// are InfiniBand: they reach each other by LID, without a GRH.
func InfiniBand() Backend {
	return infiniBand("mlx5sim on InfiniBand", func() (*Pair, error) {
		f := mlx5sim.NewFabric()
		return simPair(
			[]mlx5sim.Option{mlx5sim.WithFabric(f), mlx5sim.WithInfiniBand()},
			[]mlx5sim.Option{mlx5sim.WithFabric(f), mlx5sim.WithInfiniBand()})
	})
}

// InfiniBandOneDevice returns a backend of one simulated device that is opened twice
// and reaches itself over its InfiniBand port, by LID and GRH.
func InfiniBandOneDevice() Backend {
	b := infiniBand("mlx5sim on InfiniBand, one device, with GRH", func() (*Pair, error) {
		return simPair([]mlx5sim.Option{mlx5sim.WithFabric(mlx5sim.NewFabric()), mlx5sim.WithInfiniBand(), mlx5sim.WithMTU(uverbs.MTU1024)}, nil)
	})
	b.GRH = true
	b.Lacks[Removal] = "both contexts are of one device: nobody is left to look on"
	return b
}

func infiniBand(name string, open func() (*Pair, error)) Backend {
	b := simBackend(name, open)
	delete(b.Lacks, LIDs)
	b.Lacks[Processes] = "the fabric is this process's own"
	b.EventRounds = 10_000
	return b
}

// simPair makes one or two devices and opens them.
func simPair(first, second []mlx5sim.Option) (*Pair, error) {
	a, err := mlx5sim.New(first...)
	if err != nil {
		return nil, err
	}
	if second == nil {
		return openPair(a.Verbs(), a.Verbs(), a.Close)
	}
	b, err := mlx5sim.New(second...)
	if err != nil {
		return nil, errors.Join(err, a.Close())
	}
	p, err := openPair(a.Verbs(), b.Verbs(), func() error { return errors.Join(a.Close(), b.Close()) })
	if err != nil {
		return nil, err
	}
	p.Remove = a.Close
	return p, nil
}

const onEthernet = "the ports are Ethernet"

func simBackend(name string, open func() (*Pair, error)) Backend {
	lacks := map[Capability]string{Multicast: "mlx5sim models no groups", LIDs: onEthernet}
	if runtime.GOOS != "linux" {
		const why = "this system does not check the accesses of a process to its own memory"
		lacks[OnDemand], lacks[DMABuf] = why, why
	}
	return Backend{
		Name:  name,
		Open:  open,
		Lacks: lacks,
		Deviations: []Deviation{
			{RuleHopLimit, asAsked, "there are no routes in the simulator; a kernel takes the hop limit from the route"},
			{RuleBoundRegion, accepted, "the simulator lets the region go, and the window grants nothing from then on"},
			{RuleZeroBased, notSupported, "mlx5_ib has no zero-based MRs by this command"},
			{RuleReadOnly, accepted, "in its own process the simulator asks what is mapped, not what may be written"},
		},
	}
}
