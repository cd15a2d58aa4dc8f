package main

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"strings"

	_ "github.com/rrppcc-go/rrppcc/mlx5" // the provider for ConnectX
	"github.com/rrppcc-go/rrppcc/mlx5/mlx5sim"
	"github.com/rrppcc-go/rrppcc/uverbs"
	_ "github.com/rrppcc-go/rrppcc/uverbs/rxe" // the provider for Soft-RoCE
)

// simulated is the --device that asks for the simulated ConnectX.
const simulated = "sim"

// deviceFlags choose device, port and GID.
type deviceFlags struct {
	name    string
	port    uint
	gid     int
	verbose bool
	pcap    string // where packets are captured, if not empty
}

func (f *deviceFlags) register(fs *flag.FlagSet) {
	fs.StringVar(&f.name, "device", "", "RDMA device, such as mlx5_0; \"sim\" is the simulated ConnectX (default: the first real device that works, else sim)")
	fs.UintVar(&f.port, "port", 1, "port of the device")
	fs.IntVar(&f.gid, "gid-index", -1, "index of the port's GID (default: chosen automatically)")
	fs.BoolVar(&f.verbose, "v", false, "log what is chosen and why")
}

// args gives the flags to another process.
func (f *deviceFlags) args() []string {
	args := []string{"--device", f.name, "--port", fmt.Sprint(f.port), "--gid-index", fmt.Sprint(f.gid)}
	if f.verbose {
		args = append(args, "-v")
	}
	return args
}

func (f *deviceFlags) check() error {
	if f.port < 1 || f.port > 255 {
		return fmt.Errorf("%w: port %d; the first is 1", errUsage, f.port)
	}
	if f.pcap != "" && f.name != simulated {
		return fmt.Errorf("%w: --pcap needs --device %s: a real device's packets do not pass this program", errUsage, simulated)
	}
	return nil
}

func (f *deviceFlags) logger(w io.Writer) *slog.Logger {
	if !f.verbose {
		return slog.New(slog.NewTextHandler(w, &slog.HandlerOptions{Level: slog.LevelError}))
	}
	return slog.New(slog.NewTextHandler(w, nil))
}

// opened is a device in use.
type opened struct {
	ctx *uverbs.Context
	sim *mlx5sim.Device // nil for a real device
	out *os.File        // the capture; nil for none
	gid uverbs.GIDEntry
	why string // this device
}

func (o *opened) Close() error {
	err := o.ctx.Close()
	if o.sim != nil {
		err = errors.Join(err, o.sim.Close())
	}
	if o.out != nil {
		err = errors.Join(err, o.out.Close())
	}
	return err
}

func (o *opened) String() string {
	return fmt.Sprintf("%v, GID %v (%v, index %d)", o.ctx.Device(), o.gid.GID.Addr(), o.gid.Type, o.gid.Index)
}

// open opens the device that was asked for; without a name, the first real
// device that works, else the simulated one. near is an address that the
// simulated device should be reachable from.
func (f *deviceFlags) open(near netip.Addr) (*opened, error) {
	if f.name == simulated {
		return f.openSim(near, "asked for")
	}
	if f.name != "" {
		d, err := uverbs.DeviceByName(f.name)
		if err != nil {
			return nil, err
		}
		return f.openReal(d, "asked for")
	}
	list, err := uverbs.Devices()
	if errors.Is(err, uverbs.ErrNoDevice) {
		return f.openSim(near, "no RDMA device here; rrpc devices says why")
	}
	if err != nil {
		return f.openSim(near, err.Error())
	}
	var reasons []string
	for _, d := range list {
		o, err := f.openReal(d, "the first device that works")
		if err == nil {
			return o, nil
		}
		reasons = append(reasons, err.Error())
	}
	return f.openSim(near, "no RDMA device of this machine works: "+strings.Join(reasons, "; "))
}

func (f *deviceFlags) openReal(d *uverbs.Device, why string) (*opened, error) {
	c, err := d.Open()
	if err != nil {
		return nil, err
	}
	gid, _, err := c.ChooseGID(uint8(f.port), f.gid)
	if err != nil {
		c.Close()
		return nil, err
	}
	return &opened{ctx: c, gid: gid, why: why}, nil
}

func (f *deviceFlags) openSim(near netip.Addr, why string) (o *opened, err error) {
	var out *os.File
	defer func() {
		if err != nil && out != nil {
			out.Close()
		}
	}()
	var opts []mlx5sim.Option
	if near.IsValid() && !near.IsLoopback() && !near.IsUnspecified() {
		opts = append(opts, mlx5sim.WithAddr(near))
	}
	if f.pcap != "" {
		if out, err = os.Create(f.pcap); err != nil {
			return nil, err
		}
		opts = append(opts, mlx5sim.WithPcap(out))
	}
	sim, err := mlx5sim.New(opts...)
	if err != nil {
		return nil, err
	}
	o, err = f.openReal(sim.Verbs(), why)
	if err != nil {
		sim.Close()
		return nil, err
	}
	o.sim, o.out = sim, out
	return o, nil
}

// addressOf returns the IP address in a URI "host:port", invalid if there is
// none yet.
func addressOf(uri string) netip.Addr {
	host, _, err := net.SplitHostPort(uri)
	if err != nil {
		return netip.Addr{}
	}
	a, _ := netip.ParseAddr(host)
	return a
}

// addressTowards returns the local address from which uri is reached.
func addressTowards(uri string) netip.Addr {
	c, err := net.Dial("udp", uri) // sends nothing
	if err != nil {
		return netip.Addr{}
	}
	defer c.Close()
	return c.LocalAddr().(*net.UDPAddr).AddrPort().Addr().Unmap()
}
