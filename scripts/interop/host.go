package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"time"

	_ "github.com/rrppcc-go/rrppcc/mlx5" // the simulated ConnectX needs its provider
	"github.com/rrppcc-go/rrppcc/mlx5/mlx5sim"
)

// request is what the guest wants of the host.
type request struct {
	Scenario bool
	Lossy    bool
	PingPong *pingpong
}

// answer says where the program's TCP connection is to lead, and at the end,
// what went wrong.
type answer struct {
	Port int
	Err  string
}

// host is a simulated device on a segment that the guest is on, too.
type host struct {
	dev *mlx5sim.Device
	log io.Writer
}

// newHost makes the device. It closes frames.
func newHost(frames io.ReadWriteCloser, addr netip.Addr, log io.Writer, opts ...mlx5sim.Option) (*host, error) {
	opts = append(opts, mlx5sim.WithEthernet(frames), mlx5sim.WithAddr(addr), mlx5sim.WithFabric(mlx5sim.NewFabric()))
	dev, err := mlx5sim.New(opts...)
	if err != nil {
		return nil, errors.Join(err, frames.Close())
	}
	return &host{dev: dev, log: log}, nil
}

func (h *host) Close() error { return h.dev.Close() }

func hostMain(args []string) error {
	flags := flag.NewFlagSet("interop host", flag.ExitOnError)
	dir := flags.String("dir", "", "`directory` for the sockets host and guest, and for the file port, which tells the TCP port; it is removed at the end")
	addr := flags.String("addr", "10.9.0.1", "`address` of the simulated device")
	pcap := flags.String("pcap", "", "`file` for all packets")
	flags.Parse(args)
	a, err := netip.ParseAddr(*addr)
	if err != nil {
		return err
	}
	var opts []mlx5sim.Option
	if *pcap != "" {
		f, err := os.Create(*pcap)
		if err != nil {
			return err
		}
		defer f.Close()
		opts = append(opts, mlx5sim.WithPcap(f))
	}
	frames, err := listenDgram(filepath.Join(*dir, "host"), filepath.Join(*dir, "guest"))
	if err != nil {
		return err
	}
	h, err := newHost(frames, a, os.Stderr, opts...)
	if err != nil {
		return err
	}
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		return errors.Join(err, h.Close())
	}
	// Renamed, so that whoever waits for it finds it whole.
	file := filepath.Join(*dir, "port")
	if err := os.WriteFile(file+".new", []byte(strconv.Itoa(tcpPort(l))), 0o644); err != nil {
		return errors.Join(err, l.Close(), h.Close())
	}
	if err := os.Rename(file+".new", file); err != nil {
		return errors.Join(err, l.Close(), h.Close())
	}
	ctx, cancel := context.WithCancel(context.Background())
	go func() {
		io.Copy(io.Discard, os.Stdin)
		cancel()
	}()
	return errors.Join(h.serve(ctx, l), h.Close(), os.RemoveAll(*dir))
}

func tcpPort(l net.Listener) int { return l.Addr().(*net.TCPAddr).Port }

// serve handles one guest after the other, until ctx ends. It closes l.
func (h *host) serve(ctx context.Context, l net.Listener) error {
	stop := context.AfterFunc(ctx, func() { l.Close() })
	defer stop()
	for {
		c, err := l.Accept()
		if ctx.Err() != nil {
			if err == nil {
				c.Close()
			}
			return nil
		}
		if err != nil {
			return errors.Join(err, l.Close())
		}
		err = h.handle(newTalk(c))
		c.Close()
		if err != nil {
			fmt.Fprintln(h.log, "interop host:", err) // the guest was told
		}
	}
}

// handle does what the guest asks, and tells it what became of it.
func (h *host) handle(t *talk) (err error) {
	var r request
	if err := t.hear(&r); err != nil {
		return err
	}
	before := h.dev.Stats()
	if err := h.lose(r.Lossy); err != nil {
		return errors.Join(err, t.tell(answer{Err: err.Error()}))
	}
	switch {
	case r.Scenario:
		err = h.scenario(t, r.Lossy)
	case r.PingPong != nil:
		err = h.pingpong(t, *r.PingPong)
	default:
		err = errors.New("the request is for nothing")
	}
	err = errors.Join(err, h.lose(false))
	now := h.dev.Stats()
	bad, was := now.Drops, before.Drops
	out, in := now.FaultsOut, now.FaultsIn
	lost := out.Lost + in.Lost - before.FaultsOut.Lost - before.FaultsIn.Lost
	odd := out.Duplicated + in.Duplicated + out.Reordered + in.Reordered -
		before.FaultsOut.Duplicated - before.FaultsIn.Duplicated - before.FaultsOut.Reordered - before.FaultsIn.Reordered
	fmt.Fprintf(h.log, "interop host: %d packets received, %d with a bad ICRC; %d sent, %d of them again; %d lost on purpose, %d repeated or late\n",
		now.RxPackets-before.RxPackets, bad.BadICRC-was.BadICRC, now.TxPackets-before.TxPackets, now.Retransmits-before.Retransmits, lost, odd)
	if bad.BadICRC != was.BadICRC || bad.Malformed != was.Malformed {
		err = errors.Join(err, fmt.Errorf("%d packets with a bad ICRC, %d malformed", bad.BadICRC-was.BadICRC, bad.Malformed-was.Malformed))
	}
	if r.Lossy && (lost == 0 || odd == 0) {
		err = errors.Join(err, errors.New("no packet was lost, or none late"))
	}
	var a answer
	if err != nil {
		a.Err = err.Error()
	}
	return errors.Join(err, t.tell(a))
}

// lose sets what happens to packets on purpose.
func (h *host) lose(lossy bool) error {
	var f mlx5sim.Faults
	if lossy {
		f = mlx5sim.Faults{Loss: 0.02, Duplicate: 0.01, Reorder: 0.01}
	}
	_, err := h.dev.SetFaults(mlx5sim.BothWays, f, 1)
	return err
}

// open makes a half on the device and hands it to f.
func (h *host) open(f func(*half) error) error {
	ctx, err := h.dev.Verbs().Open()
	if err != nil {
		return err
	}
	half, err := openHalf(ctx)
	if err != nil {
		return errors.Join(err, ctx.Close())
	}
	half.count = func() (counts, error) {
		s := h.dev.Stats()
		return counts{Sent: s.TxPackets - s.Drops.LinkTx, Received: s.RxPackets, RNRs: s.RNRNaks}, nil
	}
	return errors.Join(f(half), half.Close(), ctx.Close())
}

func (h *host) scenario(t *talk, lossy bool) error {
	return h.open(func(half *half) error { return runScenario(half, t, lossy, io.Discard) })
}

// pingpong plays with a program whose TCP connection comes in at a port of its
// own.
func (h *host) pingpong(t *talk, o pingpong) error {
	return h.open(func(half *half) error {
		l, err := net.Listen("tcp4", "127.0.0.1:0")
		if err != nil {
			return err
		}
		defer l.Close()
		if err := t.tell(answer{Port: tcpPort(l)}); err != nil {
			return err
		}
		l.(*net.TCPListener).SetDeadline(time.Now().Add(patience))
		c, err := l.Accept()
		if err != nil {
			return err
		}
		defer c.Close()
		return half.play(o, c)
	})
}
