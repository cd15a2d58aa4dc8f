package main

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/rrppcc-go/rrppcc/uverbs"
	_ "github.com/rrppcc-go/rrppcc/uverbs/rxe" // Soft-RoCE needs its provider
)

// guest is the guest's side.
type guest struct {
	device string
	host   string // address of the host's TCP port
	out    io.Writer
}

func guestMain(args []string) error {
	flags := flag.NewFlagSet("interop guest", flag.ExitOnError)
	g := &guest{out: os.Stdout}
	flags.StringVar(&g.device, "device", "", "RDMA `device` that reaches the host's")
	flags.StringVar(&g.host, "connect", "", "TCP `address` of the host's half")
	local := flags.String("local", "", "RDMA `device` of this machine that plays with the programs, too, which use -local-peer")
	localPeer := flags.String("local-peer", "", "RDMA `device` that reaches -local's")
	parts := flags.String("parts", "scenario,loss,programs", "what to run: any of scenario, loss, programs")
	flags.Parse(args)
	failed := 0
	run := func(name string, f func() error) {
		start := time.Now()
		err := f()
		took := time.Since(start).Seconds()
		if err != nil {
			failed++
			fmt.Fprintf(g.out, "--- FAIL: %s (%.2fs): %v\n", name, took, err)
			return
		}
		fmt.Fprintf(g.out, "--- PASS: %s (%.2fs)\n", name, took)
	}
	for p := range strings.SplitSeq(*parts, ",") {
		switch p {
		case "scenario":
			run("scenario", func() error { return g.scenario(false) })
		case "loss":
			run("scenario with loss", func() error { return g.scenario(true) })
		case "programs":
			for _, o := range games(4096, 1024) {
				run(o.String()+", the simulated device at the other end", func() error { return g.playHost(o) })
			}
			if *local == "" {
				break
			}
			for _, o := range games(5001, 1) {
				run(o.String()+", uverbs/rxe at the other end", func() error { return g.playHere(o, *local, *localPeer) })
			}
		default:
			return fmt.Errorf("no part %s", p)
		}
	}
	if failed > 0 {
		return fmt.Errorf("%d failed", failed)
	}
	return nil
}

// games is each program as client and as server, with messages of rc and ud
// bytes.
func games(rc, ud int) (all []pingpong) {
	for _, client := range []bool{false, true} {
		all = append(all, pingpong{Client: client, Size: rc, Iters: 200}, pingpong{UD: true, Client: client, Size: ud, Iters: 200})
	}
	return all
}

// ask sends the host a request.
func (g *guest) ask(r request) (*talk, error) {
	c, err := net.DialTimeout("tcp", g.host, patience)
	if err != nil {
		return nil, err
	}
	t := newTalk(c)
	if err := t.tell(r); err != nil {
		return nil, errors.Join(err, c.Close())
	}
	return t, nil
}

// verdict hears what the host says about it all.
func (t *talk) verdict() error {
	var a answer
	if err := t.hear(&a); err != nil {
		return err
	}
	if a.Err != "" {
		return fmt.Errorf("the host says: %s", a.Err)
	}
	return nil
}

// open opens a device of this machine and hands a half on it to f.
func open(name string, f func(*half) error) error {
	dev, err := uverbs.DeviceByName(name)
	if err != nil {
		return err
	}
	ctx, err := dev.Open()
	if err != nil {
		return err
	}
	h, err := openHalf(ctx)
	if err != nil {
		return errors.Join(err, ctx.Close())
	}
	h.count = func() (counts, error) { return readCounts(name) }
	return errors.Join(f(h), h.Close(), ctx.Close())
}

// readCounts reads Soft-RoCE's counters. It counts a packet as received when
// its ICRC is right and a QP is there for it.
func readCounts(device string) (c counts, err error) {
	for name, v := range map[string]*uint64{"sent_pkts": &c.Sent, "rcvd_pkts": &c.Received, "send_rnr_err": &c.RNRs} {
		text, err := os.ReadFile(filepath.Join("/sys/class/infiniband", device, "ports/1/hw_counters", name))
		if err != nil {
			return c, err
		}
		if *v, err = strconv.ParseUint(strings.TrimSpace(string(text)), 10, 64); err != nil {
			return c, err
		}
	}
	return c, nil
}

func (g *guest) scenario(lossy bool) error {
	release, err := kernelRelease()
	if err != nil {
		return err
	}
	t, err := g.ask(request{Scenario: true, Lossy: lossy})
	if err != nil {
		return err
	}
	defer t.conn.Close()
	return errors.Join(open(g.device, func(h *half) error {
		h.limits = rxeLimits(release)
		return runScenario(h, t, lossy, g.out)
	}), t.verdict())
}

// playHost runs the program on this machine's device, with the host at its
// other end.
func (g *guest) playHost(o pingpong) error {
	t, err := g.ask(request{PingPong: &o})
	if err != nil {
		return err
	}
	defer t.conn.Close()
	var a answer
	if err := t.hear(&a); err != nil || a.Err != "" {
		return fmt.Errorf("the host cannot begin: %s %w", a.Err, err)
	}
	host, _, err := net.SplitHostPort(g.host)
	if err != nil {
		return err
	}
	return errors.Join(runProgram(o, g.device, func(c net.Conn) error {
		up, err := net.DialTimeout("tcp", net.JoinHostPort(host, strconv.Itoa(a.Port)), patience)
		if err != nil {
			return err
		}
		// The host hangs up when it is done.
		go func() {
			io.Copy(up, c)
			up.(*net.TCPConn).CloseWrite()
		}()
		io.Copy(c, up)
		return up.Close()
	}), t.verdict())
}

// playHere runs the program on one of this machine's devices, with our verbs on
// another at its other end.
func (g *guest) playHere(o pingpong, ours, theirs string) error {
	return open(ours, func(h *half) error {
		return runProgram(o, theirs, func(c net.Conn) error { return h.play(o, c) })
	})
}

// runProgram starts the program and hands its TCP connection to peer. Both must
// end well.
func runProgram(o pingpong, device string, peer func(net.Conn) error) error {
	gid, err := gidIndex(device)
	if err != nil {
		return err
	}
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		return err
	}
	defer l.Close()
	where := tcpPort(l)
	ctx, cancel := context.WithTimeout(context.Background(), 2*patience)
	defer cancel()
	args := []string{"-d", device, "-g", strconv.Itoa(gid), "-s", strconv.Itoa(o.Size), "-n", strconv.Itoa(o.Iters), "-p", strconv.Itoa(where)}
	if o.Client {
		l.Close() // the port is the program's
	} else {
		args = append(args, "127.0.0.1")
	}
	cmd := exec.CommandContext(ctx, o.program(), args...)
	var output bytes.Buffer
	cmd.Stdout, cmd.Stderr = &output, &output
	cmd.WaitDelay = patience
	if err := cmd.Start(); err != nil {
		return err
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	c, err := programConn(o, l, where, ended)
	if err == nil {
		err = errors.Join(peer(c), c.Close())
	}
	if err != nil {
		cancel() // it would wait for ever
	}
	perr := <-ended
	if perr == nil && !strings.Contains(output.String(), fmt.Sprintf("%d iters in", o.Iters)) {
		perr = errors.New("it does not say that it is done")
	}
	if err := errors.Join(err, perr); err != nil {
		return fmt.Errorf("%w; %s says: %s", err, cmd, strings.TrimSpace(output.String()))
	}
	return nil
}

// programConn is the TCP connection to the program: it calls, or is called as
// soon as it listens.
func programConn(o pingpong, l net.Listener, where int, ended chan error) (net.Conn, error) {
	if !o.Client {
		l.(*net.TCPListener).SetDeadline(time.Now().Add(patience))
		return l.Accept()
	}
	var c net.Conn
	return c, until("the program to listen", func() (bool, error) {
		select {
		case err := <-ended:
			ended <- err
			return false, fmt.Errorf("the program ended: %w", err)
		default:
		}
		var err error
		c, err = net.Dial("tcp4", net.JoinHostPort("127.0.0.1", strconv.Itoa(where)))
		return err == nil, nil
	})
}

// gidIndex is the place of the device's IPv4 address in its GID table.
func gidIndex(device string) (index int, err error) {
	dev, err := uverbs.DeviceByName(device)
	if err != nil {
		return 0, err
	}
	ctx, err := dev.Open()
	if err != nil {
		return 0, err
	}
	table, err := ctx.QueryGIDTable()
	i := slices.IndexFunc(table, isIPv4)
	if err = errors.Join(err, ctx.Close()); err != nil {
		return 0, err
	}
	if i < 0 {
		return 0, fmt.Errorf("%s has no IPv4 address", device)
	}
	return table[i].Index, nil
}

func isIPv4(g uverbs.GIDEntry) bool { return g.Type == uverbs.GIDTypeRoCEv2 && g.GID.Addr().Is4() }
